"""Loops over one row of memory, in the order of memory: what a kernel spends its time in.

The values of a row belong to one channel, and what goes with a channel (`mean`, `scale`, …) is then one number; or they
belong to several, and it is an array of one number a column. `keep` is an array of integers as wide as the numbers,
with all bits set where an element is real and none where it is not, or None; `residual` and `slope` may be None. Numba
compiles a loop for each combination, without what is None.

With d = x - mean: z = d * scale + shift + residual, and y = z where z > 0, else slope * z (no slope: y = z).
"""

from __future__ import annotations

from typing import Any

from numba import types
from numba.extending import overload

from .compiling import elementwise, exact, inner, stream_line, summing
from .elements import load, masked, normal, sigmoid, store, tanh


def at(values: Any, column: Any) -> Any:
    """`values` itself where it is one number, else its element."""
    raise NotImplementedError


@overload(at, jit_options={"forceinline": True})
def _at(values, column):
    if isinstance(values, types.Array):
        return lambda values, column: values[column]
    return lambda values, column: values


def kept(value: Any, keep: Any, column: Any) -> Any:
    """`value`, or 0 where the mask is False."""
    raise NotImplementedError


@overload(kept, jit_options={"forceinline": True})
def _kept(value, keep, column):
    if keep is types.none:
        return lambda value, keep, column: value
    return lambda value, keep, column: masked(value, keep[column])


def bent(value: Any, z: Any, slope: Any) -> Any:
    """`value` where z > 0, else `value` * slope: a piecewise linear activation at z, or its gradient.

    A slope of 0 gives 0 whatever the value. nan in z lets the value pass, as in torch.
    """
    raise NotImplementedError


@overload(bent, jit_options={"forceinline": True})
def _bent(value, z, slope):
    if slope is types.none:
        return lambda value, z, slope: value
    return lambda value, z, slope: (value * slope if slope != 0 else slope) if z <= 0 else value


@exact
def affine(d, scale, shift):
    """z without the residual: the same bits in every loop, as its sign decides in both directions."""
    return d * scale + shift


# ---- sums over rows, column by column ----


@summing
def add_values(x, keep, sums):
    """sums += x."""
    for j in range(len(x)):
        sums[j] += kept(load(x[j]), keep, j)


@summing
def add_moments(x, keep, mean, sums, squares):
    """sums += d, squares += d²."""
    for j in range(len(x)):
        d = kept(load(x[j]) - mean[j], keep, j)
        sums[j] += d
        squares[j] += d * d


@summing
def add_products(dz, x, keep, mean, sums, products):
    """sums += dz, products += dz * d."""
    for j in range(len(x)):
        slope = kept(load(dz[j]), keep, j)
        sums[j] += slope
        products[j] += slope * kept(load(x[j]) - mean[j], keep, j)


@summing
def add_bent_products(dy, x, residual, keep, mean, scale, shift, slope, sums, products):
    """The same, for dz = dy through a piecewise linear activation."""
    for j in range(len(x)):
        d = kept(load(x[j]) - mean[j], keep, j)
        z = affine(d, scale[j], shift[j])
        if residual is not None:
            z += load(residual[j])
        dz = kept(bent(load(dy[j]), z, slope), keep, j)
        sums[j] += dz
        products[j] += dz * d


# ---- sums over the row of one channel; `zero` is of the type to compute with, as Python's would widen it ----


@summing
def sum_values(x, keep, zero):
    total = zero
    for j in range(len(x)):
        total += kept(load(x[j]), keep, j)
    return total


@summing
def sum_moments(x, keep, mean, zero):
    """The sums of d and of d²."""
    total, squares = zero, zero
    for j in range(len(x)):
        d = kept(load(x[j]) - mean, keep, j)
        total += d
        squares += d * d
    return total, squares


@summing
def sum_products(dz, x, keep, mean, zero):
    """The sums of dz and of dz * d."""
    total, products = zero, zero
    for j in range(len(x)):
        slope = kept(load(dz[j]), keep, j)
        total += slope
        products += slope * kept(load(x[j]) - mean, keep, j)
    return total, products


@summing
def sum_bent_products(dy, x, residual, keep, mean, scale, shift, slope, zero):
    """The same, for dz = dy through a piecewise linear activation."""
    total, products = zero, zero
    for j in range(len(x)):
        d = kept(load(x[j]) - mean, keep, j)
        z = affine(d, scale, shift)
        if residual is not None:
            z += load(residual[j])
        dz = kept(bent(load(dy[j]), z, slope), keep, j)
        total += dz
        products += dz * d
    return total, products


# ---- elementwise ----


@elementwise
def apply(x, residual, keep, mean, scale, shift, slope, y):
    """y."""
    for j in range(len(x)):
        z = affine(load(x[j]) - at(mean, j), at(scale, j), at(shift, j))
        if residual is not None:
            z += load(residual[j])
        y[j] = store(kept(bent(z, z, slope), keep, j), y[j])


@elementwise
def bend(dy, x, residual, keep, mean, scale, shift, slope, dz):
    """dz: dy through a piecewise linear activation, as a number to compute with."""
    for j in range(len(x)):
        z = affine(load(x[j]) - at(mean, j), at(scale, j), at(shift, j))
        if residual is not None:
            z += load(residual[j])
        dz[j] = kept(bent(load(dy[j]), z, slope), keep, j)


@elementwise
def pull(dz, x, keep, mean, scale, pulls, push, dx):
    """dx = dz * scale + d * pulls + push."""
    for j in range(len(x)):
        d = load(x[j]) - at(mean, j)
        value = load(dz[j]) * at(scale, j) + (d * at(pulls, j) + at(push, j))
        dx[j] = store(kept(value, keep, j), dx[j])


@elementwise
def scaled(dz, keep, scale, dx):
    """dx = dz * scale."""
    for j in range(len(dz)):
        dx[j] = store(kept(dz[j] * at(scale, j), keep, j), dx[j])


@elementwise
def bend_and_pull(dy, x, keep, mean, scale, shift, slope, pulls, push, dx):
    """`pull` of `bend` without a residual, for when dz is not wanted."""
    for j in range(len(x)):
        d = load(x[j]) - at(mean, j)
        dz = load(dy[j])
        if slope is not None:
            dz = bent(dz, affine(d, at(scale, j), at(shift, j)), slope)
        value = dz * at(scale, j) + (d * at(pulls, j) + at(push, j))
        dx[j] = store(kept(value, keep, j), dx[j])


@elementwise
def write(values, keep, y):
    """y = values, 0 where the mask is False."""
    for j in range(len(values)):
        y[j] = store(kept(values[j], keep, j), y[j])


# ---- smooth activations, in place on numbers to compute with; `kind` is a place in elements.SMOOTH ----


@elementwise
def smooth(z, kind):
    """z = activation(z)."""
    if kind == 0:
        for j in range(len(z)):
            z[j] = z[j] * sigmoid(z[j])
    elif kind == 1:
        for j in range(len(z)):
            z[j] = z[j] * normal(z[j])[0]
    elif kind == 2:
        for j in range(len(z)):
            z[j] = sigmoid(z[j])
    else:
        for j in range(len(z)):
            z[j] = tanh(z[j])


@elementwise
def smooth_gradient(dy, keep, kind, one, z):
    """z = dy * activation'(z), 0 where the mask is False."""
    if kind == 0:
        for j in range(len(z)):
            gate = sigmoid(z[j])
            z[j] = kept(load(dy[j]) * (gate * (one + z[j] * (one - gate))), keep, j)
    elif kind == 1:
        for j in range(len(z)):
            below, density = normal(z[j])
            z[j] = kept(load(dy[j]) * (below + z[j] * density), keep, j)
    elif kind == 2:
        for j in range(len(z)):
            gate = sigmoid(z[j])
            z[j] = kept(load(dy[j]) * (gate * (one - gate)), keep, j)
    else:
        for j in range(len(z)):
            y = tanh(z[j])
            z[j] = kept(load(dy[j]) * (one - y * y), keep, j)


# ---- out of the caches ----


@inner
def stream(values, y):
    """y = values, for a y that caches would not hold until it is read."""
    size = len(y) * y.itemsize
    source, target = values.ctypes.data, y.ctypes.data
    head = min(-target % 64, size)
    lines = (size - head) // 64
    first = head // y.itemsize
    for j in range(first):
        y[j] = values[j]
    for line in range(lines):
        stream_line(source + head + line * 64, target + head + line * 64)
    for j in range(first + lines * 64 // y.itemsize, len(y)):
        y[j] = values[j]
