"""The run specification: the wire form and the pydantic form hold the same fields and lose nothing."""

from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel

from accord import runspec, runspec_parts
from accord.api.trainer.v1 import trainer_pb2
from accord.errors import InvalidArgumentError
from accord.rundir import RunDirectory, RunFile, read_run_file
from accord.trainer.registry import Registry


@pytest.mark.parametrize(
    "name",
    [
        "RunSpec",
        "LoraSpec",
        "OptimizerSpec",
        "DataSpec",
        "SftSpec",
        "RewardModelSpec",
        "DpoSpec",
        "PpoSpec",
        "EvaluateSpec",
        "GrpoSpec",
        "RlooSpec",
        "OnlineDpoSpec",
        "GuardsSpec",
        "TrackingSpec",
        "DistributionSpec",
    ],
)
def test_fields_are_those_of_the_contract(name: str) -> None:
    model: type[BaseModel] = getattr(runspec if name == "RunSpec" else runspec_parts, name)
    assert set(model.model_fields) == {field.name for field in getattr(trainer_pb2, name).DESCRIPTOR.fields}


def test_round_trip_keeps_every_value() -> None:
    spec = runspec.parse_spec(
        {
            "adapter": "policy-a", "seed": 2**63, "steps": 3, "batch_size": 5, "parent_adapter": "adapters/sft/versions/1",
            "lora": {"rank": 4, "alpha": 3.3}, "optimizer": {"learning_rate": 1e-5, "schedule": "cosine"},
            "ppo": {"data": {"uri": "sample:conversation"}, "reward_model": "adapters/rm/versions/2", "kl_coef": 0.0, "epochs": 1,
                    "ptx_coefficient": 27.8, "ptx_data": {"uri": "sample:conversation", "limit": 7}, "value_from_reward_model": False},
        }
    )  # fmt: skip
    assert runspec.spec_from_proto(runspec.spec_to_proto(spec)) == spec
    assert spec.algorithm == "ppo"


@pytest.mark.parametrize("lora", [{}, {"rank": 16}, {"last_layers": 0, "alpha": 32}, {"target_modules": ["q_proj"]}])
def test_what_was_given_of_an_adapters_form_stays_known(tmp_path: Path, lora: dict[str, Any]) -> None:
    """Over the wire, in a run's file and in the registry: the rest is a parent's."""
    spec = runspec.parse_spec({"adapter": "a", "steps": 1, "lora": lora, "sft": {"data": {"uri": "x"}}})
    run = RunFile(name="runs/r", artefacts="store", base_model="embedded", threads=1, spec=spec)
    RunDirectory(tmp_path).write_run_file(run)
    registry = Registry(f"sqlite:///{tmp_path / 'registry.sqlite'}")
    kept = registry.create("runs/r", "id", spec, str(tmp_path))[0].spec
    registry.close()
    for found in (runspec.spec_from_proto(runspec.spec_to_proto(spec)), read_run_file(tmp_path / "run.yaml").spec, kept):
        assert found == spec
        assert found.lora.model_fields_set == set(lora)


RATED = {"data": {"uri": "x"}, "judge_reward": {"task": "conversation", "rubric": "conversation/harmless-rating/1", "judge": "large"}}
PPO: dict[str, Any] = {"adapter": "a", "steps": 1, "ppo": {"data": {"uri": "x"}, "reward_model": "r"}}


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"adapter": "a", "steps": 1}, "exactly one of"),
        ({"adapter": "a", "sft": {"data": {"uri": "x"}}}, "steps"),
        ({"steps": 1, "sft": {"data": {"uri": "x"}}}, "adapter"),
        ({"adapter": "A!", "steps": 1, "sft": {"data": {"uri": "x"}}}, "adapter"),
        ({"adapter": "a", "steps": 1, "sft": {"data": {"uri": "x"}}, "stepz": 1}, "stepz"),
        ({"adapter": "a", "steps": 1, "dpo": {"data": {"uri": "x"}, "label_smoothing": 0.1}}, "cdpo or robust"),
        ({"adapter": "a", "steps": 1, "dpo": {"data": {"uri": "x"}, "beta": -1}}, "dpo.beta"),
        ({"adapter": "a", "steps": 1, "ppo": {"data": {"uri": "x"}, "reward_model": "r", "ptx_coefficient": 1}}, "ptx_data"),
        ({**PPO, "ppo": {**PPO["ppo"], "ptx_data": {"uri": "x"}}}, "ptx_data needs ptx_coefficient, whose default of 0 leaves the text out"),
        ({**PPO, "ppo": {**PPO["ppo"], "kl_controller": "adaptive", "kl_coef": 0}}, "kl_controller adaptive multiplies kl_coef, and 0 stays 0"),
        ({"adapter": "a", "steps": 1, "ppo": {"data": {"uri": "x"}}}, "exactly one of reward_model and judge_reward"),
        ({"adapter": "a", "steps": 1, "ppo": {**RATED, "reward_model": "r"}}, "not both"),
        ({"adapter": "a", "steps": 1, "ppo": {**RATED, "value_from_reward_model": True}}, "the critic starts from 0"),
        ({"adapter": "a", "steps": 1, "rloo": {**RATED, "more_reward_models": ["r"]}}, "more_reward_models are beside a reward_model"),
        ({"adapter": "a", "steps": 1, "grpo": {"data": {"uri": "x"}, "judge_reward": {"task": "poetry"}}}, "summarization"),
        ({"adapter": "a", "steps": 1, "dpo": {"data": {"uri": "x"}}, "guards": {"max_kl": 3}}, "guards are for algorithms that sample"),
        ({**PPO, "guards": {"action": "stop"}}, "guards: action stop has nothing to watch: give held_out_reward_model, max_kl"),
        ({**PPO, "guards": {"action": "stop", "held_out_reward_model": "h", "max_held_out_drop": 0}}, "nothing to watch"),
        ({**PPO, "guards": {"action": "rollback", "max_kl": 3}}, "rollback needs checkpoint_every_steps"),
        ({**PPO, "guards": {"held_out_reward_model": "r"}}, "held_out_reward_model r is what the policy is trained on"),
        ({**PPO, "guards": {"max_length_ratio": 0.5}}, "max_length_ratio 0.5 must be 0"),
        (
            {**PPO, "batch_size": 64, "ppo": {**PPO["ppo"], "kl_controller": "adaptive", "kl_horizon": 12.8}},
            "kl_horizon 12.8 must be over a fifth of batch_size 64",
        ),
        ({"evaluate": {"uri": "x"}, "tracking": {"tensorboard": True}}, "tracking is for training runs"),
    ],
)
def test_bad_specifications_name_the_field(values: dict, words: str) -> None:
    with pytest.raises(InvalidArgumentError, match=words):
        runspec.parse_spec(values)


def test_a_pretraining_term_may_be_turned_off_in_words() -> None:
    """As in a sweep over the coefficient with everything else as it is."""
    spec = runspec.parse_spec({**PPO, "ppo": {**PPO["ppo"], "ptx_data": {"uri": "x"}, "ptx_coefficient": 0}})
    assert runspec.spec_from_proto(runspec.spec_to_proto(spec)) == spec


@pytest.mark.parametrize("kind", ["ppo", "grpo", "rloo"])
def test_what_scores_is_named_by_field(kind: str) -> None:
    part = {"data": {"uri": "sample:conversation"}, "reward_model": "adapters/r", "more_reward_models": ["adapters/q", "adapters/s/versions/3"]}
    spec = runspec.parse_spec({"adapter": "a", "steps": 1, kind: part})
    assert spec.rollout_part is not None
    assert spec.rollout_part.reward_models == {
        "reward_model": "adapters/r", "more_reward_models[0]": "adapters/q", "more_reward_models[1]": "adapters/s/versions/3"
    }  # fmt: skip
    assert runspec.parse_spec({"adapter": "a", "steps": 1, "dpo": {"data": {"uri": "x"}}}).rollout_part is None


def test_processes_must_have_work() -> None:
    sft = {"adapter": "a", "steps": 1, "sft": {"data": {"uri": "sample:conversation"}}}
    for values, words in (
        (sft | {"batch_size": 2, "distribution": {"processes": 3}}, "batch_size 2 must be at least distribution.processes 3"),
        ({"evaluate": {"uri": "rows.jsonl"}, "distribution": {"processes": 2}}, "an evaluation runs in one process"),
    ):
        with pytest.raises(InvalidArgumentError, match=words):
            runspec.parse_spec(values)
    assert runspec.parse_spec(sft | {"distribution": {"strategy": "fsdp"}}).distribution.processes == 1, "of a node; there may be several"


def test_a_checkpoint_belongs_to_any_number_of_processes_and_to_nothing_else() -> None:
    sft = {"adapter": "a", "steps": 1, "sft": {"data": {"uri": "sample:conversation"}}}
    one, two, other = (runspec.parse_spec(sft | more) for more in ({}, {"distribution": {"processes": 2, "strategy": "fsdp"}}, {"seed": 1}))
    assert one.learning_values == two.learning_values != other.learning_values
    assert one.digest != two.digest


class DpoWithMore(runspec.DpoSpec):
    """The part as a later version may have it."""

    more: float = 0.5


class RunWithMore(runspec.RunSpec):
    """The specification as a later version may have it."""

    dpo: DpoWithMore | None = None
    extra: tuple[int, ...] = (3,)


def test_a_new_field_leaves_digests_as_they_are() -> None:
    """A run that an earlier version began is resumed, and a request id still stands for it; what the field says counts as soon as it is given."""
    values: dict[str, Any] = {"adapter": "a", "steps": 2, "lora": {"rank": 4}, "dpo": {"data": {"uri": "x"}, "beta": 0.1, "loss": "ipo"}}
    before, after = runspec.parse_spec(values), RunWithMore.model_validate(values)
    assert (after.digest, after.learning_values) == (before.digest, before.learning_values)
    assert before.learning_values == {"adapter": "a", "steps": 2, "lora": {"rank": 4}, "dpo": {"data": {"uri": "x"}, "loss": "ipo"}}
    for more in ({"extra": (4,)}, {"dpo": values["dpo"] | {"more": 0.6}}):
        assert RunWithMore.model_validate(values | more).digest != before.digest


@pytest.mark.parametrize("algorithm", ["ppo", "grpo", "rloo"])
def test_a_judge_can_be_the_reward(algorithm: str) -> None:
    spec = runspec.parse_spec({"adapter": "a", "steps": 1, algorithm: RATED})
    assert runspec.spec_from_proto(runspec.spec_to_proto(spec)) == spec
    assert spec.rollout_part is not None
    assert spec.rollout_part.reward_models == {}
    if spec.ppo is not None:
        assert not spec.ppo.starts_value_from_reward_model
    assert runspec.parse_spec(PPO).ppo.starts_value_from_reward_model  # type: ignore[union-attr]
