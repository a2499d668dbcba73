"""Inputs of the kernels, on canonical (G, N, C, L), and what the reference makes of them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import ModuleType
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from steadynorm import kernels, reference
from steadynorm.kernels import Apply, Gradients
from steadynorm.kernels import eager as plain_torch
from steadynorm.moments import Moments

from .tolerance import as_array, check

DOUBLE = torch.float64
EPS = 1e-3


@dataclass(frozen=True)
class Setup:
    """What surrounds the normalized value; `affine` is "shared" (C,), "own" (G, C) or None."""

    name: str
    activation: str | None = None
    affine: str | None = "shared"
    masked: bool = False
    residual: bool = False
    channels_last: bool = False
    dtype: torch.dtype = torch.float32
    mean: float = 0.0
    shape: tuple[int, int, int, int] = (3, 4, 5, 6)


SETUPS = [
    Setup("plain", affine=None),
    Setup("affine", affine="own", channels_last=True),
    Setup("mask", masked=True, residual=True, affine=None),
    Setup("mask, channels last", masked=True, channels_last=True, residual=True, activation="relu"),
    Setup("relu", "relu", residual=True),
    Setup("relu, own", "relu", affine="own"),
    Setup("leaky_relu", "leaky_relu", residual=True, masked=True),
    Setup("relu6", "relu6", residual=True),
    Setup("silu", "silu", affine="own", residual=True),
    Setup("hardswish", "hardswish", residual=True, affine="own"),
    Setup("gelu", "gelu", masked=True, residual=True, affine="own", channels_last=True),
    Setup("sigmoid", "sigmoid", affine="own", residual=True),
    Setup("tanh", "tanh", residual=True, masked=True, affine="own"),
    Setup("float64", "silu", affine="own", residual=True, dtype=DOUBLE),
    Setup("float64, channels last", "gelu", residual=True, channels_last=True, dtype=DOUBLE),
    Setup("bfloat16", "relu", residual=True, dtype=torch.bfloat16),
    Setup("float16", "tanh", affine="own", channels_last=True, dtype=torch.float16),
    Setup("large mean", "relu", mean=1e4, masked=True, residual=True, affine="own"),
]

WALKS = [
    Setup("runs, several channels a tile", "relu", affine="own", residual=True, masked=True, shape=(2, 3, 41, 131)),
    Setup("runs, short", "relu6", residual=True, shape=(2, 5, 67, 17)),
    Setup("runs, in pieces", "relu", shape=(1, 2, 3, 9001)),
    Setup("runs, in pieces, parts", "leaky_relu", residual=True, masked=True, shape=(1, 3, 2, 50021)),
    Setup("runs, parts", "relu", mean=1e3, shape=(1, 67, 3, 1009)),
    Setup("runs, masked", "relu", masked=True, shape=(1, 5, 3, 121)),
    Setup("runs, smooth", "silu", residual=True, shape=(2, 19, 5, 103)),
    Setup("runs, float64", masked=True, dtype=DOUBLE, shape=(2, 3, 5, 101)),
    Setup("runs, bfloat16", "relu", residual=True, dtype=torch.bfloat16, shape=(1, 5, 7, 1003)),
    Setup("columns, narrower than a vector", "relu", residual=True, masked=True, shape=(2, 2, 1, 3)),
    Setup("columns, short period", "relu", shape=(1, 51, 5, 7)),
    Setup("columns, short period, masked", "relu", residual=True, masked=True, shape=(2, 51, 5, 7)),
    Setup("columns, short period, channels last", "relu", channels_last=True, shape=(2, 5, 37, 29)),
    Setup("columns, short period, channels last, masked", masked=True, channels_last=True, shape=(2, 67, 5, 29)),
    Setup("columns, short period, parts", "relu", residual=True, channels_last=True, shape=(1, 9, 29, 773)),
    Setup("columns, one channel", "relu", shape=(2, 37, 1, 13)),
    Setup("columns, one position", "relu", affine="own", shape=(2, 19, 1031, 1)),
    Setup("columns, one position, masked", "relu", masked=True, residual=True, shape=(1, 67, 103, 1)),
    Setup("columns, tiles", "hardswish", affine="own", residual=True, masked=True, shape=(2, 19, 141, 11)),
    Setup("columns, tiles, parts", "relu", mean=1e3, shape=(1, 450, 141, 11)),
    Setup(
        "columns, tiles, channels last", "relu", masked=True, residual=True, channels_last=True, shape=(2, 7, 1027, 3)
    ),
    Setup("columns, tiles, last, parts", "relu", affine="own", channels_last=True, shape=(1, 2, 1030, 167)),
    Setup("columns, float16", "relu", channels_last=True, dtype=torch.float16, shape=(1, 3, 100, 59)),
]
"""Shapes that reach every way to walk over memory which kernels/cpu/core/plan.c knows."""


class Canonical:
    """A backend's six functions on canonical tensors: it sees them as (groups * N, C, L)."""

    def __init__(self, backend: ModuleType) -> None:
        self._backend = backend

    def __getattr__(self, name: str) -> Callable[..., Any]:
        function = getattr(self._backend, name)

        def on_canonical(*arguments: Any) -> Any:
            """The first tensor of four dimensions, x or dy, has the groups; so have all others of four."""
            groups = arguments[0].shape[0]
            result = function(*(self._flat(argument) for argument in arguments), groups=groups)
            return self._grouped(result, groups)

        return on_canonical

    def _flat(self, argument: Any) -> Any:
        if isinstance(argument, Apply):
            return argument._replace(residual=self._flat(argument.residual), mask=self._flat(argument.mask))
        return argument.flatten(0, 1) if isinstance(argument, Tensor) and argument.dim() == 4 else argument

    def _grouped(self, result: Any, groups: int) -> Any:
        if isinstance(result, Tensor):
            return result.unflatten(0, (groups, result.shape[0] // groups)) if result.dim() == 3 else result
        if isinstance(result, Gradients):
            return Gradients(*(self._grouped(part, groups) for part in result))
        return tuple(self._grouped(part, groups) for part in result) if isinstance(result, tuple) else result


core = kernels.compiled()
assert core is not None, "there is no compiled core to test"
core: Any = kernels.compiled()
"""The compiled core's module, which tests of the kernels need."""
eager, cpu = Canonical(plain_torch), Canonical(core)


class Inputs(NamedTuple):
    x: Tensor
    dy: Tensor
    apply: Apply
    mean: Tensor
    var: Tensor


def draw(setup: Setup) -> Inputs:
    """Tensors of a setup; `mean` and `var` are statistics that are not the data's own."""
    generator = torch.Generator().manual_seed(0)
    groups, examples, channels, positions = setup.shape

    def normal(*shape: int, dtype: torch.dtype = setup.dtype) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=DOUBLE).to(dtype)

    def data(offset: float = 0.0) -> Tensor:
        values = (normal(*setup.shape, dtype=DOUBLE) + offset).to(setup.dtype)
        return in_order(values, setup.channels_last)

    parameter = torch.float32 if setup.dtype.itemsize < 4 else setup.dtype
    own = (groups, channels) if setup.affine == "own" else (channels,)
    weight, bias = (normal(*own, dtype=parameter) if setup.affine else None for _ in range(2))
    mask = normal(groups, examples, 1, positions) < 0.4 if setup.masked else None
    residual = data() if setup.residual else None
    apply = Apply(weight, bias, EPS, residual, mask, setup.activation, 0.2)
    mean = normal(groups, channels, dtype=DOUBLE) + setup.mean
    return Inputs(data(setup.mean), data(), apply, mean, normal(groups, channels, dtype=DOUBLE).square() + 0.1)


def in_order(values: Tensor, channels_last: bool) -> Tensor:
    """The same values, dense, in one memory order or the other."""
    return values.transpose(2, 3).contiguous().transpose(2, 3) if channels_last else values.contiguous()


@contextmanager
def instructions(name: str) -> Iterator[None]:
    """The core by one instruction set."""
    before = core.instruction_set()
    core.use_instruction_set(name)
    try:
        yield
    finally:
        core.use_instruction_set(before)


@contextmanager
def threads(number: int) -> Iterator[None]:
    """torch, and with it the kernels, on so many threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(number)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def both_passes(backend: Canonical, x: Tensor, dy: Tensor, apply: Apply) -> list[Tensor | None]:
    """Everything that training makes: y, the moments, and the gradients."""
    y, moments = backend.forward(x, apply)
    grads = backend.backward(dy, x, moments.mean, moments.var, apply, moments.count)
    return [y, moments.count, moments.mean, moments.m2, *grads]


def same_bits(ours: list[Tensor | None], theirs: list[Tensor | None]) -> bool:
    """Whether all are equal in dtype, shape and bits, of nan too."""
    return all(_same_bits(a, b) for a, b in zip(ours, theirs, strict=True))


def _same_bits(a: Tensor | None, b: Tensor | None) -> bool:
    if a is None or b is None:
        return a is b
    integer = {2: torch.int16, 4: torch.int32, 8: torch.int64}[a.dtype.itemsize]
    return a.dtype == b.dtype and torch.equal(a.view(integer), b.view(integer))


def settings_of(apply: Apply, group: int) -> reference.Settings:
    """The reference's settings for one group."""

    def own(values: Tensor | None) -> NDArray[np.float64] | None:
        return None if values is None else as_array(values if values.dim() == 1 else values[group])

    residual = None if apply.residual is None else as_array(apply.residual[group])
    mask = None if apply.mask is None else apply.mask[group].numpy()
    return reference.Settings(
        own(apply.weight), own(apply.bias), apply.eps, residual, mask, apply.activation, apply.negative_slope
    )


def own_statistics(x: Tensor, mask: Tensor | None) -> Moments:
    """The reference's statistics of each group, as the tensors a kernel takes."""
    masks = [None] * len(x) if mask is None else [m.numpy() for m in mask]
    found = [reference.statistics(as_array(group), m) for group, m in zip(x, masks, strict=True)]
    count, mean, var = (torch.from_numpy(np.stack([getattr(f, k) for f in found])) for k in ("count", "mean", "var"))
    return Moments(count, mean, var * count)


def reference_forward(x: Tensor, apply: Apply) -> NDArray[np.float64]:
    """y of all groups."""
    return np.stack([reference.forward(as_array(x[g]), settings_of(apply, g))[0] for g in range(len(x))])


def reference_backward(dy: Tensor, x: Tensor, apply: Apply) -> list[reference.Gradients]:
    """The gradients of each group."""
    return [reference.backward(as_array(dy[g]), as_array(x[g]), settings_of(apply, g)) for g in range(len(x))]


def working_dtype(x: Tensor) -> torch.dtype:
    return torch.float32 if x.dtype.itemsize < 4 else x.dtype


def check_gradients(grads: Gradients, expected: list[reference.Gradients], x: Tensor, apply: Apply) -> None:
    """dx, dweight, dbias, dresidual of all groups; sums over a channel are taken in x's working dtype."""
    assert (grads.residual is None) == (apply.residual is None)
    summed = x.shape[1] * x.shape[3]
    for grad, values, terms in zip(grads, zip(*expected, strict=True), (1, summed, summed, 1), strict=True):
        if grad is not None:
            check(grad, np.stack(values), terms=terms, working=working_dtype(x))
