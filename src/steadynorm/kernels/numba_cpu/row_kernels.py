"""The loops of `rows` as C functions of the address of a `call.ROW`; each variant is compiled when first asked for.

A variant is a dtype; an activation: "" for none, "bent" for a piecewise linear one, "smooth"; whether there are a
residual and a mask; and whether the row is of one channel. What there is not is compiled away, by being None.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
from numba import types
from numba.extending import overload

from . import rows
from .call import ROW
from .compiling import carray, entry, inner, pointer
from .elements import STORED


class Variant(NamedTuple):
    dtype: str
    activation: str
    residual: bool
    masked: bool
    one_channel: bool


def memory(address: Any, size: Any, dtype: Any) -> Any:
    """The memory at an address as an array; None for no dtype."""
    raise NotImplementedError


@overload(memory, jit_options={"forceinline": True})
def _memory(address, size, dtype):
    if dtype is types.none:
        return lambda address, size, dtype: None
    return lambda address, size, dtype: carray(pointer(address), size, dtype)


def coefficient(values: Any, row: Any, columns: Any) -> Any:
    """The values, one a column; or, for no columns, the one of the row."""
    raise NotImplementedError


@overload(coefficient, jit_options={"forceinline": True})
def _coefficient(values, row, columns):
    if columns is types.none:
        return lambda values, row, columns: values[row]
    return lambda values, row, columns: values


def part(values: Any, begin: Any, end: Any) -> Any:
    """A slice; None of None."""
    raise NotImplementedError


@overload(part, jit_options={"forceinline": True})
def _part(values, begin, end):
    if values is types.none:
        return lambda values, begin, end: None
    return lambda values, begin, end: values[begin:end]


@inner
def coefficients(row, number, columns):
    """Memory of mean, scale and shift: one value a column, or one a row."""
    size = _count(row, columns)
    return (
        memory(row.mean, size, number),
        memory(row.scale, size, number),
        memory(row.shift, size, number),
    )


@inner
def coefficients_of(every, i, columns):
    """Those of row i."""
    mean, scale, shift = every
    return (
        coefficient(mean, i, columns),
        coefficient(scale, i, columns),
        coefficient(shift, i, columns),
    )


def chosen(value: Any, dtype: Any) -> Any:
    """The value in a dtype; None for no dtype."""
    raise NotImplementedError


@overload(chosen, jit_options={"forceinline": True})
def _chosen(value, dtype):
    if dtype is types.none:
        return lambda value, dtype: None
    return lambda value, dtype: dtype(value)


def _types(variant: Variant) -> tuple[Any, ...]:
    """Types of data, numbers, residual, mask, slope and columns; None for what there is not."""
    stored = STORED[variant.dtype]
    number = np.float64 if variant.dtype == "float64" else np.float32
    return (
        stored,
        number,
        stored if variant.residual else None,
        (np.int64 if variant.dtype == "float64" else np.int32) if variant.masked else None,
        number if variant.activation == "bent" else None,
        None if variant.one_channel else np.int64,
    )


def _extent(row):
    """Values from the first row's first to the last row's last."""
    return (row.rows - 1) * row.stride + row.width


_extent = inner(_extent)


def _count(row: Any, columns: Any) -> Any:
    """How many coefficients there are."""
    raise NotImplementedError


@overload(_count, jit_options={"forceinline": True})
def _count_columns(row, columns):
    return (lambda row, columns: row.rows) if columns is types.none else (lambda row, columns: row.width)


@lru_cache
def add_values(variant: Variant) -> int:
    """row.sums += x."""
    stored, number, _, real, _, columns = _types(variant)

    @entry
    def steadynorm_add_values(address):
        row = carray(address, 1, ROW)[0]
        x = memory(row.x, _extent(row), stored)
        all_keep = memory(row.keep, (row.rows - 1) * row.keep_stride + row.width, real)
        for i in range(row.rows):
            a, b = i * row.stride, i * row.stride + row.width
            keep = part(all_keep, i * row.keep_stride, i * row.keep_stride + row.width)
            if columns is None:
                memory(row.sums, row.rows, np.float64)[i] += rows.sum_values(x[a:b], keep, number(0))
            else:
                rows.add_values(x[a:b], keep, memory(row.sums, row.width, number))

    return steadynorm_add_values.address


@lru_cache
def add_moments(variant: Variant) -> int:
    """row.sums += d, row.products += d²."""
    stored, number, _, real, _, columns = _types(variant)

    @entry
    def steadynorm_add_moments(address):
        row = carray(address, 1, ROW)[0]
        x = memory(row.x, _extent(row), stored)
        all_keep = memory(row.keep, (row.rows - 1) * row.keep_stride + row.width, real)
        all_mean = memory(row.mean, _count(row, columns), number)
        for i in range(row.rows):
            a, b = i * row.stride, i * row.stride + row.width
            keep = part(all_keep, i * row.keep_stride, i * row.keep_stride + row.width)
            if columns is None:
                total, squares = rows.sum_moments(x[a:b], keep, all_mean[i], number(0))
                memory(row.sums, row.rows, np.float64)[i] += total
                memory(row.products, row.rows, np.float64)[i] += squares
            else:
                sums, products = memory(row.sums, row.width, number), memory(row.products, row.width, number)
                rows.add_moments(x[a:b], keep, all_mean, sums, products)

    return steadynorm_add_moments.address


@lru_cache
def apply(variant: Variant) -> int:
    """row.y = y."""
    stored, number, added, real, slopes, columns = _types(variant)
    smooth = variant.activation == "smooth"

    @entry
    def steadynorm_apply(address):
        row = carray(address, 1, ROW)[0]
        all_x, all_y = memory(row.x, _extent(row), stored), memory(row.y, _extent(row), stored)
        all_residual = memory(row.residual, _extent(row), added)
        all_keep = memory(row.keep, (row.rows - 1) * row.keep_stride + row.width, real)
        given = coefficients(row, number, columns)
        slope = chosen(row.slope, slopes)
        z = memory(row.scratch, row.width, number)
        staged = memory(row.staged, row.width, stored)
        for i in range(row.rows):
            a, b = i * row.stride, i * row.stride + row.width
            keep = part(all_keep, i * row.keep_stride, i * row.keep_stride + row.width)
            mean, scale, shift = coefficients_of(given, i, columns)
            x, y = all_x[a:b], all_y[a:b]
            residual = part(all_residual, a, b)
            if smooth:
                rows.apply(x, residual, None, mean, scale, shift, None, z)
                rows.smooth(z, row.kind)
                rows.write(z, keep, staged if row.streams else y)
            else:
                rows.apply(x, residual, keep, mean, scale, shift, slope, staged if row.streams else y)
            if row.streams:
                rows.stream(staged, y)

    return steadynorm_apply.address


@lru_cache
def add_products(variant: Variant) -> int:
    """row.sums += dz, row.products += dz * d."""
    stored, number, added, real, slopes, columns = _types(variant)
    smooth, bent = variant.activation == "smooth", variant.activation == "bent"

    @entry
    def steadynorm_add_products(address):
        row = carray(address, 1, ROW)[0]
        all_dy, all_x = memory(row.dy, _extent(row), stored), memory(row.x, _extent(row), stored)
        all_residual = memory(row.residual, _extent(row), added)
        all_keep = memory(row.keep, (row.rows - 1) * row.keep_stride + row.width, real)
        given = coefficients(row, number, columns)
        slope = chosen(row.slope, slopes)
        z = memory(row.scratch, row.width, number)
        for i in range(row.rows):
            a, b = i * row.stride, i * row.stride + row.width
            keep = part(all_keep, i * row.keep_stride, i * row.keep_stride + row.width)
            mean, scale, shift = coefficients_of(given, i, columns)
            dy, x, residual = all_dy[a:b], all_x[a:b], part(all_residual, a, b)
            if smooth:
                rows.apply(x, residual, None, mean, scale, shift, None, z)
                rows.smooth_gradient(dy, keep, row.kind, number(1), z)
            if columns is None:
                if smooth:
                    total, more = rows.sum_products(z, x, keep, mean, number(0))
                elif bent:
                    total, more = rows.sum_bent_products(dy, x, residual, keep, mean, scale, shift, slope, number(0))
                else:
                    total, more = rows.sum_products(dy, x, keep, mean, number(0))
                memory(row.sums, row.rows, np.float64)[i] += total
                memory(row.products, row.rows, np.float64)[i] += more
            else:
                sums, products = memory(row.sums, row.width, number), memory(row.products, row.width, number)
                if smooth:
                    rows.add_products(z, x, keep, mean, sums, products)
                elif bent:
                    rows.add_bent_products(dy, x, residual, keep, mean, scale, shift, slope, sums, products)
                else:
                    rows.add_products(dy, x, keep, mean, sums, products)

    return steadynorm_add_products.address


@lru_cache
def input_grad(variant: Variant) -> int:
    """row.y = dx; row.dresidual = dz if there is a residual."""
    stored, number, added, real, slopes, columns = _types(variant)
    smooth = variant.activation == "smooth"

    @entry
    def steadynorm_input_grad(address):
        row = carray(address, 1, ROW)[0]
        all_dy, all_x = memory(row.dy, _extent(row), stored), memory(row.x, _extent(row), stored)
        all_dx = memory(row.y, _extent(row), stored)
        all_residual = memory(row.residual, _extent(row), added)
        all_dresidual = memory(row.dresidual, _extent(row), added)
        all_keep = memory(row.keep, (row.rows - 1) * row.keep_stride + row.width, real)
        given = coefficients(row, number, columns)
        all_pulls = memory(row.pulls, _count(row, columns), number)
        all_push = memory(row.push, _count(row, columns), number)
        slope = chosen(row.slope, slopes)
        dz = memory(row.scratch, row.width, number)
        staged = memory(row.staged, row.width, stored)
        for i in range(row.rows):
            a, b = i * row.stride, i * row.stride + row.width
            keep = part(all_keep, i * row.keep_stride, i * row.keep_stride + row.width)
            mean, scale, shift = coefficients_of(given, i, columns)
            pulls = coefficient(all_pulls, i, columns)
            push = coefficient(all_push, i, columns)
            dy, x, dx = all_dy[a:b], all_x[a:b], all_dx[a:b]
            goal = staged if row.streams else dx
            residual = part(all_residual, a, b)
            dresidual = part(all_dresidual, a, b)
            if not smooth and added is None and row.varies:
                rows.bend_and_pull(dy, x, keep, mean, scale, shift, slope, pulls, push, goal)
            else:
                if smooth:
                    rows.apply(x, residual, None, mean, scale, shift, None, dz)
                    rows.smooth_gradient(dy, keep, row.kind, number(1), dz)
                else:
                    rows.bend(dy, x, residual, keep, mean, scale, shift, slope, dz)
                if added is not None:
                    rows.write(dz, None, dresidual)
                if row.varies:
                    rows.pull(dz, x, keep, mean, scale, pulls, push, goal)
                else:
                    rows.scaled(dz, keep, scale, goal)
            if row.streams:
                rows.stream(staged, dx)

    return steadynorm_input_grad.address
