"""Training recipes: a YAML file, or one that comes with Accord, with values set on the command line.

What does not belong here: recipes of the study (`accord.study.recipe`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from accord.data.files import absolute_uri
from accord.errors import InvalidArgumentError, NotFoundError

if TYPE_CHECKING:
    from accord.runspec import RunSpec

_ON_PAIRS = ("reward_model", "dpo")
_SHORT = {"reward": "reward-model"}


def shipped_recipes() -> dict[str, Path]:
    """The training recipes that come with Accord, by name."""
    folder = Path(str(resources.files("accord.recipes").joinpath("train")))
    return {path.stem: path for path in sorted(folder.glob("*.yaml"), key=lambda path: path.stem)}


def load_train_recipe(name_or_path: str, settings: Sequence[str] = ()) -> RunSpec:
    """The run that a recipe asks for, with settings ``path.to.key=value`` put over it; a value is YAML.

    Paths of data are taken from the current folder, where they are relative: the services have another one.

    Raises:
        NotFoundError: there is no such recipe or file; the message lists the names there are.
        InvalidArgumentError: it is not YAML, a setting is malformed, a field is unknown, missing or out of range, or other pairs are put in the place
            of those that the recipe's held-out pairs belong to.
    """
    from accord.rpc.config import parse_config
    from accord.runspec import RunSpec

    shipped = shipped_recipes()
    path = shipped.get(_SHORT.get(name_or_path, name_or_path), Path(name_or_path))
    values = _read(path, name_or_path, shipped)
    before = _sources(values)
    for setting in settings:
        _set(values, setting)
    _check_held_out(before, _sources(values), settings)
    return parse_config(_absolute(values), RunSpec, source=str(path))


def _read(path: Path, given: str, shipped: Mapping[str, Path]) -> dict[str, Any]:
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, IsADirectoryError) as error:
        raise NotFoundError(f"there is no recipe {given!r}: neither a file, nor one of {', '.join(shipped)}") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        mark = getattr(error, "problem_mark", None)
        where = f", line {mark.line + 1}: {getattr(error, 'problem', '')}" if mark else ""
        raise InvalidArgumentError(f"{path} is not YAML{where}") from error
    if not isinstance(values, dict):
        raise InvalidArgumentError(f"{path} is not a mapping of fields of a run")
    return values


def _set(values: dict[str, Any], setting: str) -> None:
    path, equals, text = setting.partition("=")
    keys = path.strip().split(".")
    if not equals or not all(keys):
        raise InvalidArgumentError(f"--set {setting!r} is not KEY=VALUE, for example steps=5 or lora.rank=8")
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise InvalidArgumentError(f"--set {path}: the value is not YAML: {text!r}") from error
    place = values
    for key in keys[:-1]:
        below = place.setdefault(key, {})
        if not isinstance(below, dict):
            raise InvalidArgumentError(f"--set {path}: {key} holds no fields of its own")
        place = below
    place[keys[-1]] = value


def _sources(values: Mapping[str, Any]) -> dict[str, tuple[object, object]]:
    """Where the pairs of a run come from, trained on and held out, by the algorithm."""
    return {name: (_uri(part.get("data")), _uri(part.get("eval_data"))) for name in _ON_PAIRS if isinstance(part := values.get(name), dict)}


def _uri(data: object) -> object:
    return data.get("uri") if isinstance(data, dict) else None


def _check_held_out(before: Mapping[str, tuple[object, object]], now: Mapping[str, tuple[object, object]], settings: Sequence[str]) -> None:
    """Raises InvalidArgumentError where settings leave held-out pairs of one data set beside training pairs of another, without a word of it."""
    given = [setting.partition("=")[0].strip() for setting in settings]
    for name, (trained, held_out) in now.items():
        belonged = before.get(name) == (held_out, held_out)
        said = any(path in (name, f"{name}.eval_data", f"{name}.eval_data.uri") for path in given)
        if belonged and held_out is not None and trained != held_out and not said:
            raise InvalidArgumentError(
                f"{name}.data.uri is {trained}, and the held-out pairs are still those of {held_out}: set {name}.eval_data.uri to pairs held out of "
                f"what is trained on, or to {held_out} where that is meant, or {name}.eval_data=null to measure nothing",
                field=f"{name}.eval_data.uri",
            )


def _absolute(values: Any) -> Any:
    """The same with each relative path under the key `uri` made absolute."""
    if not isinstance(values, dict):
        return values
    return {key: _absolute_uri(item) if key == "uri" else _absolute(item) for key, item in values.items()}


def _absolute_uri(uri: object) -> object:
    return absolute_uri(uri) if isinstance(uri, str) else uri
