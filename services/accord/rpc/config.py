"""What every service process is configured with, and the one way to read a YAML file into a frozen pydantic model.

What does not belong here: settings of one service (its own `config.py`, which holds a `ServerConfig` as its field ``server``), and secrets,
which come from environment variables.
"""

from __future__ import annotations

import difflib
import types
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, Union, get_args, get_origin
from urllib.parse import urlsplit

import yaml
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, model_validator
from pydantic_core import PydanticCustomError

from accord.errors import InvalidArgumentError

ModelT = TypeVar("ModelT", bound=BaseModel)

LogLevel = Literal["debug", "info", "warning", "error"]
_ERRORS_SHOWN = 5
_GIVEN_CHARACTERS = 60
_PRIVATE = "private"  # type of an error whose input may be a secret, and is not quoted


class FrozenModel(BaseModel):
    """Base of every configuration model: immutable, and an unknown key is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=False)


class ServerTls(FrozenModel):
    """Certificate files of a server; they are read again at each handshake once they change, so rotation needs no restart."""

    cert: Path = Field(description="PEM certificate chain of this server")
    key: Path = Field(description="PEM private key of the certificate")
    client_ca: Path | None = Field(default=None, description="PEM roots that client certificates must chain to; turns mutual TLS on")


class ServerConfig(FrozenModel):
    """How a service listens, what it accepts, and how it stops. Durations in seconds, sizes in bytes."""

    listen: str = Field(default="127.0.0.1:0", min_length=1, description="host:port, port 0 for any free one, or unix:/path")
    metrics_listen: str | None = Field(default=None, pattern=r"^.+:\d+$", description="host:port of the Prometheus HTTP endpoint")
    reflection: bool = Field(default=False, description="answer gRPC server reflection")
    max_message_bytes: int = Field(default=32 * 2**20, ge=1024, le=2**31 - 1, description="largest message received or sent")
    max_concurrent_calls: int = Field(default=256, ge=1, description="calls in flight before RESOURCE_EXHAUSTED")
    default_deadline_seconds: float = Field(default=120.0, gt=0, description="deadline of a call that brings none")
    max_deadline_seconds: float = Field(default=3600.0, gt=0, description="longer deadlines are capped to this")
    long_lived_methods: tuple[str, ...] = Field(
        default=(), description="full method names (/package.Service/Method) of server streams without default or maximum deadline"
    )
    drain_seconds: float = Field(default=30.0, ge=0, description="how long calls in flight may go on after SIGTERM")
    tls: ServerTls | None = Field(default=None, description="serve TLS; plain text where absent")
    announce_path: Path | None = Field(default=None, description="JSON file {address, metrics_address, pid}, written once ports are bound")
    log_level: LogLevel = Field(default="info", description="overridden by ACCORD_LOG_LEVEL")

    @model_validator(mode="after")
    def _check_deadlines(self) -> ServerConfig:
        if self.default_deadline_seconds > self.max_deadline_seconds:
            raise ValueError(
                f"default_deadline_seconds is {self.default_deadline_seconds:g}, at most max_deadline_seconds "
                f"({self.max_deadline_seconds:g}) is allowed"
            )
        return self


def load_config(path: str | Path, model_class: type[ModelT]) -> ModelT:
    """The YAML file at `path` as a `model_class`.

    Args:
        path: a YAML file that holds one mapping.
        model_class: a pydantic model with ``extra="forbid"``.

    Raises:
        InvalidArgumentError: the file is missing, unreadable, empty, no mapping, no YAML, or breaks the model. One line names the file,
            each dotted field path (the first is in ``field`` too), what was given, what is allowed, and the nearest key to a misspelt one.
    """
    path = Path(path)
    return parse_config(_read_mapping(path), model_class, source=str(path))


def parse_config(values: Mapping[str, object], model_class: type[ModelT], *, source: str) -> ModelT:
    """`values` as a `model_class`; an error is an `InvalidArgumentError` that begins with `source`, as in `load_config`."""
    try:
        return model_class.model_validate(dict(values))
    except ValidationError as error:
        problems = [_describe(dict(problem), model_class) for problem in error.errors(include_url=False)]
    shown = "; ".join(text for _, text in problems[:_ERRORS_SHOWN])
    more = f"; and {len(problems) - _ERRORS_SHOWN} more" if len(problems) > _ERRORS_SHOWN else ""
    raise InvalidArgumentError(f"{source}: {shown}{more}", field=problems[0][0] or None)


def checked_url(value: str) -> str:
    """A URL without a slash at its end.

    Raises:
        ValueError: it is not http(s)://host, or holds what does not belong there, such as a password.
    """
    parts = urlsplit(value)
    if parts.username or parts.password or parts.query or parts.fragment:
        text = "it must not hold a user, password, query or fragment; give a key by api_key_env or api_key_file"
        raise PydanticCustomError(_PRIVATE, text)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ValueError("it must be http://host:port or https://host:port")
    return value.rstrip("/")


def _checked_variable(value: str) -> str:
    if not value.isidentifier() or not value.isascii():
        raise PydanticCustomError(_PRIVATE, "the name of an environment variable is needed, not what it holds")
    return value


EnvironmentVariable = Annotated[str, AfterValidator(_checked_variable), Field(json_schema_extra={"pattern": "^[A-Za-z_][A-Za-z0-9_]*$"})]
"""Name of an environment variable that holds a secret; what is given in its place by mistake is not quoted."""


def _read_mapping(path: Path) -> Mapping[str, object]:
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise InvalidArgumentError(f"{path}: no such file; give the path of a YAML configuration file") from None
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
        raise InvalidArgumentError(f"{path}: cannot be read: {reason}") from None
    try:
        values = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise InvalidArgumentError(f"{path}: is not valid YAML: {_yaml_reason(error)}") from None
    if values is None:
        raise InvalidArgumentError(f"{path}: is empty; a mapping of configuration keys is needed")
    if not isinstance(values, dict):
        raise InvalidArgumentError(f"{path}: holds a {type(values).__name__}; a mapping of configuration keys is needed")
    unnamed = next((key for key in values if not isinstance(key, str)), None)
    if unnamed is not None:
        raise InvalidArgumentError(f"{path}: the key {unnamed!r} is a {type(unnamed).__name__}; keys are strings")
    return values


def _yaml_reason(error: yaml.YAMLError) -> str:
    mark = getattr(error, "problem_mark", None)
    problem = getattr(error, "problem", None) or "unreadable"
    where = f"line {mark.line + 1}, column {mark.column + 1}: " if mark is not None else ""
    return f"{where}{problem}"


def _describe(problem: dict[str, Any], model_class: type[BaseModel]) -> tuple[str, str]:
    """Dotted path and one clause for one pydantic error."""
    location: tuple[str | int, ...] = problem["loc"]
    path = _dotted(location)
    if problem["type"] == "extra_forbidden":
        return path, f"{path}: unknown key{_suggestion(str(location[-1]), _keys_at(model_class, location[:-1]))}"
    if problem["type"] == "missing":
        return path, f"{path}: is required and was not given"
    message = str(problem["msg"]).removeprefix("Value error, ")
    message = message[:1].lower() + message[1:]
    if not location or isinstance(problem["input"], dict | list) or problem["type"] == _PRIVATE:
        return path, f"{path}: {message}" if path else message
    given = repr(problem["input"])
    given = given if len(given) <= _GIVEN_CHARACTERS else given[: _GIVEN_CHARACTERS - 3] + "..."
    return path, f"{path}: {message}, got {given}"


def _dotted(location: Sequence[str | int]) -> str:
    path = ""
    for part in location:
        path += f"[{part}]" if isinstance(part, int) else f".{part}" if path else part
    return path


def _suggestion(key: str, known: Sequence[str]) -> str:
    if not known:
        return ""
    nearest = difflib.get_close_matches(key, known, n=1, cutoff=0.6)
    return f"; did you mean {nearest[0]}?" if nearest else f"; allowed are {', '.join(known)}"


def _keys_at(model_class: type[BaseModel], location: Sequence[str | int]) -> list[str]:
    """Names of the fields that the mapping at `location` may hold; empty where the model cannot tell."""
    annotations: list[Any] = [model_class]
    for part in location:
        annotations = [below for annotation in annotations for below in _below(annotation, part)]
    keys = {key: None for annotation in annotations if _is_model(annotation) for key in _field_names(annotation)}
    return list(keys)


def _below(annotation: Any, part: str | int) -> list[Any]:
    """The annotations that `part` of a pydantic error location can lead to."""
    if _is_model(annotation):
        field = next((f for name, f in annotation.model_fields.items() if part in (name, f.alias)), None)
        if field is not None:
            return _members(field.annotation)
        return [annotation] if part == annotation.__name__ or part in _tags(annotation) else []
    arguments = get_args(annotation)
    if get_origin(annotation) is not None and arguments and isinstance(get_origin(annotation), type):
        return _members(arguments[-2] if arguments[-1] is Ellipsis else arguments[-1])
    return []


def _members(annotation: Any) -> list[Any]:
    """The alternatives of a union, seen through Annotated and Optional; a plain annotation is its own only alternative."""
    if get_origin(annotation) is Annotated:
        return _members(get_args(annotation)[0])
    if get_origin(annotation) in (Union, types.UnionType):
        return [member for argument in get_args(annotation) for member in _members(argument)]
    return [annotation]


def _tags(model: type[BaseModel]) -> set[object]:
    """Values of the model's Literal fields: a discriminated union puts the tag into the error's location."""
    return {value for field in model.model_fields.values() if get_origin(field.annotation) is Literal for value in get_args(field.annotation)}


def _field_names(model: type[BaseModel]) -> list[str]:
    return [field.alias or name for name, field in model.model_fields.items()]


def _is_model(annotation: Any) -> bool:
    return isinstance(annotation, type) and issubclass(annotation, BaseModel)
