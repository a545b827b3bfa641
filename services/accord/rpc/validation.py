"""Requests against the protovalidate rules of their fields, behind one function: the library underneath is young and may be replaced.

What does not belong here: checks that need state or a tokenizer; those are the servicers'.
"""

from __future__ import annotations

import protovalidate
from google.protobuf.message import Message

from accord.errors import InternalError, InvalidArgumentError

_VIOLATIONS_SHOWN = 5
_VALIDATOR = protovalidate.Validator()


def validate(message: Message) -> None:
    """Returns when `message` keeps the rules of its proto file.

    Raises:
        InvalidArgumentError: names the path of the first field at fault in ``field``, and in the message the first five with what is
            allowed. It never repeats a value, which may be a prompt.
        InternalError: the rules themselves are wrong.
    """
    try:
        violations = _VALIDATOR.collect_violations(message)
    except (protovalidate.CompilationError, protovalidate.EvaluationError) as error:
        raise InternalError(f"the validation rules of {message.DESCRIPTOR.full_name} are broken: {error}") from error
    if not violations:
        return
    found = [(_path(violation.proto.field), violation.proto.message or violation.proto.rule_id) for violation in violations]
    shown = "; ".join(f"{path}: {text}" if path else text for path, text in found[:_VIOLATIONS_SHOWN])
    more = f"; and {len(found) - _VIOLATIONS_SHOWN} more" if len(found) > _VIOLATIONS_SHOWN else ""
    raise InvalidArgumentError(shown + more, field=found[0][0] or None)


def _path(field: protovalidate.FieldPathPb | None) -> str:
    """A dotted path with subscripts, such as ``items[3].sampling.temperature``."""
    if field is None:
        return ""
    parts: list[str] = []
    for element in field.elements:
        subscript = element.subscript
        key = "" if subscript is None else f"[{subscript.value}]"
        parts.append(f"{element.field_name}{key}")
    return ".".join(parts)
