"""The versions of the reward models that a run names: the trainer checks them before a run, the run keeps to them.

What does not belong here: scores (`accord.reward`), and how several become one.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from accord.errors import InvalidArgumentError
from accord.runspec import RunSpec
from accord.runspec_parts import GuardsSpec, RolloutSpec
from accord.serving.fields import naming


def resolve_reward_models(part: RolloutSpec, prefix: str, resolve: Callable[[str], str]) -> tuple[str, ...]:
    """The full version names of all reward models of a part of a specification, in its order; errors name the field below `prefix`.

    Raises:
        InvalidArgumentError: two names are the same version: it would count twice in the mean, and narrow the spread.
        AccordError: whatever `resolve` raises.
    """
    versions: list[str] = []
    for field, name in part.reward_models.items():
        with naming(f"{prefix}.{field}"):
            version = resolve(name)
            if version in versions:
                raise InvalidArgumentError(f"{version} is named twice; the reward models of an ensemble must differ")
            versions.append(version)
    return tuple(versions)


def resolve_held_out(guards: GuardsSpec, trained: Sequence[str], prefix: str, resolve: Callable[[str], str]) -> str:
    """The full version name of the reward model that the policy is not trained on, empty where there is none; errors name the field below `prefix`.

    Raises:
        InvalidArgumentError: it is among `trained`, the versions that the policy is trained on.
        AccordError: whatever `resolve` raises.
    """
    if not guards.held_out_reward_model:
        return ""
    with naming(f"{prefix}.held_out_reward_model"):
        version = resolve(guards.held_out_reward_model)
        if version in trained:
            raise InvalidArgumentError(f"{version} is what the policy is trained on; a held-out reward model must be another")
    return version


def by_field(spec: RunSpec, trained: Sequence[str], held_out: str) -> dict[str, str]:
    """The versions of all reward models of a run with rollouts, by the field of the specification that names them.

    Args:
        spec: of the run.
        trained: as `resolve_reward_models` gives them.
        held_out: as `resolve_held_out` gives it.
    """
    assert spec.rollout_part is not None
    found = {f"{spec.algorithm}.{field}": version for field, version in zip(spec.rollout_part.reward_models, trained, strict=True)}
    return found | ({"guards.held_out_reward_model": held_out} if held_out else {})
