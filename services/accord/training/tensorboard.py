"""TensorBoard's event files, written without TensorBoard: length, CRC and a small protobuf message for each step.

The format is TFRecord framing (tensorflow/core/lib/io/record_writer.h) around `tensorflow.Event` (tensorflow/core/util/event.proto), of which
we need five fields; the packages that write it bring a web server or a copy of TensorFlow's protos. What does not belong here: which metrics go
where (`accord.training.tracking`).
"""

from __future__ import annotations

import math
import struct
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

_VERSION = b"brain.Event:2"
_POLYNOMIAL = 0x82F63B78  # Castagnoli, reflected
_MASK_DELTA = 0xA282EAD8


class EventFile:
    """One event file of a folder, continued where there is one already; what a kill cut short at its end is dropped.

    Args:
        folder: of the event file; made where it is not there.

    Raises:
        OSError: it cannot be written.
    """

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        found = sorted(folder.glob("events.out.tfevents.*"))
        self.path = found[0] if found else folder / f"events.out.tfevents.{int(time.time())}.accord"
        self.last_step = -1
        whole = 0
        if found:
            for end, payload in records(self.path.read_bytes()):
                whole, self.last_step = end, max(self.last_step, _step(payload))
        self._file = self.path.open("r+b" if found else "w+b")
        self._file.truncate(whole)
        self._file.seek(whole)
        if whole == 0:
            self._append(_double(1, time.time()) + _bytes(3, _VERSION))

    def add(self, step: int, values: Mapping[str, float], *, at: float) -> None:
        """Appends the scalars of a step with their wall time in Unix seconds."""
        parts = (_bytes(1, _bytes(1, name.encode()) + _float(2, value)) for name, value in sorted(values.items()))
        self._append(_double(1, at) + _varint_field(2, step) + _bytes(5, b"".join(parts)))

    def close(self) -> None:
        """Closes the file."""
        self._file.close()

    def _append(self, payload: bytes) -> None:
        length = struct.pack("<Q", len(payload))
        self._file.write(length + _masked(length) + payload + _masked(payload))
        self._file.flush()


def records(content: bytes) -> Iterator[tuple[int, bytes]]:
    """Whole records of an event file: the byte after each, and its message; ends at the first one that is cut short or damaged."""
    start = 0
    while len(content) >= start + 12:
        head = content[start : start + 8]
        size: int = struct.unpack("<Q", head)[0]
        end = start + 16 + size
        payload = content[start + 12 : end - 4]
        if end > len(content) or content[start + 8 : start + 12] != _masked(head) or content[end - 4 : end] != _masked(payload):
            return
        yield end, payload
        start = end


def crc32c(content: bytes) -> int:
    """CRC-32C of some bytes (RFC 3720, appendix B.4): 0xE3069283 for ``123456789``."""
    value = 0xFFFFFFFF
    for byte in content:
        value = _TABLE[(value ^ byte) & 0xFF] ^ (value >> 8)
    return value ^ 0xFFFFFFFF


def _table() -> tuple[int, ...]:
    entries = []
    for entry in range(256):
        for _ in range(8):
            entry = (entry >> 1) ^ (_POLYNOMIAL if entry & 1 else 0)  # noqa: PLW2901 - the shift register itself
        entries.append(entry)
    return tuple(entries)


_TABLE = _table()


def _masked(content: bytes) -> bytes:
    value = crc32c(content)
    return struct.pack("<I", (((value >> 15) | (value << 17)) + _MASK_DELTA) & 0xFFFFFFFF)


def _step(payload: bytes) -> int:
    """The step of a message that this module wrote: a double, then the step; -1 where there is none."""
    if len(payload) < 10 or payload[9] != 2 << 3:
        return -1
    value = shift = 0
    for byte in payload[10:]:
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            break
        shift += 7
    return value


def _varint(value: int) -> bytes:
    parts = bytearray()
    while value >= 0x80:
        parts.append(value & 0x7F | 0x80)
        value >>= 7
    parts.append(value)
    return bytes(parts)


def _varint_field(number: int, value: int) -> bytes:
    return _varint(number << 3) + _varint(value)


def _bytes(number: int, value: bytes) -> bytes:
    return _varint(number << 3 | 2) + _varint(len(value)) + value


def _double(number: int, value: float) -> bytes:
    return _varint(number << 3 | 1) + struct.pack("<d", value)


def _float(number: int, value: float) -> bytes:
    try:
        packed = struct.pack("<f", value)
    except OverflowError:  # a finite number beyond 32 bits, which rounding makes infinite
        packed = struct.pack("<f", math.copysign(math.inf, value))
    return _varint(number << 3 | 5) + packed
