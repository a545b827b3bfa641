"""What lies between the linear layers of a decoder of the Llama shape, compiled for this CPU by numba.

Each kernel is one call where PyTorch takes five to fifteen, which at few rows cost as much as the products themselves. They run on the OpenMP
threads that PyTorch uses. All arrays are C-contiguous float32. What does not belong here: whether the kernels can be used, and plans of passes
(`accord.models.fused`).
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, cast

import numba
import numpy as np
import torch
from llvmlite import ir
from numba import prange, types
from numba.extending import intrinsic

_config, carray = cast(Any, numba.config), cast(Any, numba).carray
_config.THREADING_LAYER = "omp"  # another pool of threads would fight with PyTorch's for the cores

# Columns of a table of tokens: row of the pass; addresses of its slot in layer 0, bytes to the next layer; the slot's places, and the token's.
ROW, KEYS, VALUES, STRIDE, PLACES, PLACE = range(6)

_FAST = {"reassoc", "contract", "nsz", "arcp"}  # sums may be regrouped; NaN and infinity keep their meaning
_BLOCK = 32  # keys of one head that stay in the first-level cache between the query heads that share them
_F = np.float32
_LOG2_E, _LN2_HIGH, _LN2_LOW = _F(1.4426950408889634), _F(0.693359375), _F(-2.12194440e-4)


def use_threads() -> None:
    """Gives the calling thread's kernels as many threads as PyTorch has."""
    numba.set_num_threads(min(torch.get_num_threads(), _config.NUMBA_NUM_THREADS))


def _compiled(function: Callable[..., Any], *, parallel: bool = False) -> Any:
    options: dict[str, Any] = {"fastmath": _FAST, "error_model": "numpy", "parallel": parallel, "nogil": True}
    try:
        return numba.njit(cache=True, **options)(function)
    except RuntimeError:  # no folder to keep machine code in: a read-only container
        return numba.njit(**options)(function)


def _as_pointer(_context: Any, _address: Any) -> Any:
    def generate(_context: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
        return builder.inttoptr(arguments[0], ir.FloatType().as_pointer())

    return types.CPointer(types.float32)(types.int64), generate


_pointer: Any = intrinsic(_as_pointer)


def _exp_of_negative(x: Any) -> Any:
    """e^x for x <= 0, relative error under 1e-7: the polynomial of Cephes (Moshier), which vectorises where a call of libm does not."""
    x = max(x, _F(-87.0))
    n = np.floor(x * _LOG2_E + _F(0.5))
    r = x - n * _LN2_HIGH - n * _LN2_LOW
    y = _F(1.9875691500e-4)
    y = y * r + _F(1.3981999507e-3)
    y = y * r + _F(8.3334519073e-3)
    y = y * r + _F(4.1665795894e-2)
    y = y * r + _F(1.6666665459e-1)
    y = y * r + _F(5.0000001201e-1)
    y = y * r * r + r + _F(1.0)
    return y * np.int32((np.int32(n) + np.int32(127)) << np.int32(23)).view(np.float32)


_exp = _compiled(_exp_of_negative)


def _norm(rows: Any, weight: Any, epsilon: Any, out: Any) -> None:
    """Root mean square norm (Zhang and Sennrich 2019, arXiv:1910.07467) of rows (T, width)."""
    width = rows.shape[1]
    for row in prange(rows.shape[0]):
        squares = _F(0)
        for column in range(width):
            squares += rows[row, column] * rows[row, column]
        scale = _F(1) / np.sqrt(squares / _F(width) + epsilon)
        for column in range(width):
            out[row, column] = rows[row, column] * scale * weight[column]


def _gate(both: Any, out: Any) -> None:
    """SiLU(both[:, :n]) * both[:, n:] of (T, 2 n) into out (T, n)."""
    width = out.shape[1]
    for row in prange(out.shape[0]):
        for column in range(width):
            x = both[row, column]
            small = _exp(-abs(x))
            sigmoid = (_F(1) if x >= 0 else small) / (_F(1) + small)
            out[row, column] = x * sigmoid * both[row, width + column]


norm = _compiled(_norm, parallel=True)
gate = _compiled(_gate, parallel=True)


def _softmax_weights(scores: Any, count: Any) -> Any:
    """Makes the first scores their weights before normalisation; returns their sum."""
    highest = _F(-np.inf)
    for place in range(count):
        highest = max(highest, scores[place])
    total = _F(0)
    for place in range(count):
        weight = _exp(scores[place] - highest)
        scores[place] = weight
        total += weight
    return total


_softmax = _compiled(_softmax_weights)


def _fill_with(numbers: Any, value: Any) -> None:
    for index in range(numbers.shape[0]):
        numbers[index] = value


def _scale_by(numbers: Any, factor: Any) -> None:
    for index in range(numbers.shape[0]):
        numbers[index] *= factor


_fill, _scale = _compiled(_fill_with), _compiled(_scale_by)


def _slot_part(address: Any, kv_heads: Any, places: Any, size: Any) -> Any:
    """Keys or values of a slot in one layer."""
    return carray(_pointer(address), (kv_heads, places, size))


_part = _compiled(_slot_part)


@functools.cache
def _turn(size: int) -> Any:
    """Rotates a head by the angles (size / 2 cosines, then sines) into `out`, times `factor`."""
    half = size // 2

    def kernel(head: Any, angles: Any, factor: Any, out: Any) -> None:
        for d in range(half):
            left, right = head[d] * factor, head[d + half] * factor
            out[d] = left * angles[d] - right * angles[d + half]
            out[d + half] = right * angles[d] + left * angles[d + half]

    return _compiled(kernel)


@functools.cache
def _products(size: int) -> Any:
    """Products of a query with the keys from `start` to `end`."""

    def kernel(query: Any, keys: Any, start: Any, end: Any, out: Any) -> None:
        for key in range(start, end):
            product = _F(0)
            for d in range(size):
                product += query[d] * keys[key, d]
            out[key] = product

    return _compiled(kernel)


@functools.cache
def _add_weighted(size: int) -> Any:
    """Adds the weighted values from `start` to `end` to the sums; four at a time, so that the sums are read and written a quarter as often."""

    def kernel(weights: Any, values: Any, start: Any, end: Any, sums: Any) -> None:
        key = start
        while key + 4 <= end:
            a, b, c, e = weights[key], weights[key + 1], weights[key + 2], weights[key + 3]
            for d in range(size):
                sums[d] += a * values[key, d] + b * values[key + 1, d] + c * values[key + 2, d] + e * values[key + 3, d]
            key += 4
        while key < end:
            for d in range(size):
                sums[d] += weights[key] * values[key, d]
            key += 1

    return _compiled(kernel)


@functools.cache
def _enter(group: int, size: int) -> Any:
    """Rotates one token's key head and the query heads that share it, and stores key and value at `place`."""
    turn = _turn(size)

    def kernel(token: Any, angles: Any, scaling: Any, head: Any, keys: Any, values: Any, place: Any) -> None:
        kv_heads = token.shape[0] // (group + 2)
        turn(token[kv_heads * group + head], angles, _F(1), keys[place])
        for d in range(size):
            values[place, d] = token[kv_heads * (group + 1) + head, d]
        for member in range(group):
            turn(token[head * group + member], angles, scaling, token[head * group + member])

    return _compiled(kernel)


@functools.cache
def turn_and_store(size: int) -> Any:
    """The kernel for heads of `size`: (qkv, angles, table, layer, heads, kv_heads).

    For each token of the table it rotates the query and key heads (Su et al. 2021, arXiv:2104.09864) in qkv (T, heads + 2 kv_heads, size), by the
    angles (T, size): half cosines, half sines; and stores key and value at the token's place.
    """
    turn = _turn(size)

    def kernel(qkv: Any, angles: Any, table: Any, layer: Any, heads: Any, kv_heads: Any) -> None:
        for index in prange(table.shape[0]):
            row, place = table[index, ROW], table[index, PLACE]
            offset = layer * table[index, STRIDE]
            keys = _part(table[index, KEYS] + offset, kv_heads, table[index, PLACES], size)
            values = _part(table[index, VALUES] + offset, kv_heads, table[index, PLACES], size)
            for head in range(heads):
                turn(qkv[row, head], angles[row], _F(1), qkv[row, head])
            for head in range(kv_heads):
                turn(qkv[row, heads + head], angles[row], _F(1), keys[head, place])
                for d in range(size):
                    values[head, place, d] = qkv[row, heads + kv_heads + head, d]

    return _compiled(kernel, parallel=True)


@functools.cache
def attend(group: int, size: int) -> Any:
    """The kernel for `group` query heads a key head and heads of `size`: (qkv, angles, table, layer, kv_heads, scaling, scores, out).

    Each token of the table, no two of one slot, is rotated and stored as by `turn_and_store`; then its queries attend to all places of its slot up
    to its own, into out (T, kv_heads * group, size). `scores` is scratch of (tokens * kv_heads, group, at least places + 1).
    """
    enter, products, add_weighted = _enter(group, size), _products(size), _add_weighted(size)

    def kernel(qkv: Any, angles: Any, table: Any, layer: Any, kv_heads: Any, scaling: Any, scores: Any, out: Any) -> None:
        for item in prange(table.shape[0] * kv_heads):
            index, head = item // kv_heads, item % kv_heads
            row, count = table[index, ROW], table[index, PLACE] + 1
            offset, first = layer * table[index, STRIDE], head * group
            keys = _part(table[index, KEYS] + offset, kv_heads, table[index, PLACES], size)[head]
            values = _part(table[index, VALUES] + offset, kv_heads, table[index, PLACES], size)[head]
            enter(qkv[row], angles[row], scaling, head, keys, values, count - 1)
            for start in range(0, count, _BLOCK):
                for member in range(group):
                    products(qkv[row, first + member], keys, start, min(start + _BLOCK, count), scores[item, member])
            for member in range(group):
                scores[item, member, count] = _F(1) / _softmax(scores[item, member], count)
                _fill(out[row, first + member], _F(0))
            for start in range(0, count, _BLOCK):
                for member in range(group):
                    add_weighted(scores[item, member], values, start, min(start + _BLOCK, count), out[row, first + member])
            for member in range(group):
                _scale(out[row, first + member], scores[item, member, count])

    return _compiled(kernel, parallel=True)
