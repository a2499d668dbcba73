"""Random small networks with batch normalization, drawn by hypothesis: nested, shared, residual, a norm alone."""

from __future__ import annotations

from types import ModuleType
from typing import Any, NamedTuple

import torch
from hypothesis import strategies as st
from torch import Tensor, nn

import steadynorm as sn

WIDTHS = (2, 4, 6)
ACTIVATIONS = (nn.ReLU, nn.LeakyReLU, nn.SiLU, nn.GELU, nn.Tanh, nn.Identity)


class Network(NamedTuple):
    """A float64 model in train mode with randomised running statistics and affine parameters, and an input for it."""

    model: nn.Module
    example: Tensor


class Chain(nn.Module):
    """Modules in a list, called in order by its own forward; a functional ReLU at the end, or not."""

    def __init__(self, parts: list[nn.Module], relu: bool) -> None:
        super().__init__()
        self.parts = nn.ModuleList(parts)
        self.relu = relu

    def forward(self, x: Tensor) -> Tensor:
        for part in self.parts:
            x = part(x)
        return nn.functional.relu(x) if self.relu else x


class Residual(nn.Module):
    """x + body(x): the input is used twice."""

    def __init__(self, body: nn.Module) -> None:
        super().__init__()
        self.body = body

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(x + self.body(x))


class Twice(nn.Module):
    """One block called twice, under two names."""

    def __init__(self, block: nn.Module) -> None:
        super().__init__()
        self.first = block
        self.second = block

    def forward(self, x: Tensor) -> Tensor:
        return self.second(self.first(x))


class Head(nn.Module):
    """The mean over positions, then the rest."""

    def __init__(self, rest: nn.Module) -> None:
        super().__init__()
        self.rest = rest

    def forward(self, x: Tensor) -> Tensor:
        return self.rest(x.flatten(2).mean(2))


class Stash(nn.Module):
    """Keeps the norm's output on itself, and adds it at the end."""

    def __init__(self, norm: nn.Module, act: nn.Module) -> None:
        super().__init__()
        self.norm, self.act = norm, act

    def forward(self, x: Tensor) -> Tensor:
        self.kept = self.norm(x)
        y = self.act(self.kept)
        return self.add(y)

    def add(self, y: Tensor) -> Tensor:
        return y + self.kept


class Hoard(nn.Module):
    """Keeps the norm's outputs in a list, of which a later call uses the earlier one."""

    def __init__(self, norm: nn.Module, act: nn.Module) -> None:
        super().__init__()
        self.norm, self.act = norm, act
        self.kept: list[Tensor] = []

    def forward(self, x: Tensor) -> Tensor:
        before = self.kept[-1].detach().mean() if self.kept else 0
        self.kept.append(self.norm(x))
        return self.act(self.kept[-1]) + before


class Skip(nn.Module):
    """The norm's output is added too where no other is given."""

    def __init__(self, norm: nn.Module, act: nn.Module) -> None:
        super().__init__()
        self.norm, self.act = norm, act

    def forward(self, x: Tensor, skip: Tensor | None = None) -> Tensor:
        y = self.norm(x)
        z = self.act(y)
        if skip is None:
            skip = y
        return z + skip


class Asks(nn.Module):
    """The norm's output is added too where it is a tensor."""

    def __init__(self, norm: nn.Module, act: nn.Module) -> None:
        super().__init__()
        self.norm, self.act = norm, act

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(x)
        z = self.act(y)
        return z + y if isinstance(x, torch.Tensor) else z


class Listed(nn.Module):
    """Calls its modules from a plain list beside the tree."""

    def __init__(self, norm: nn.Module, act: nn.Module) -> None:
        super().__init__()
        self.norm, self.act = norm, act
        self.parts = [norm, act]

    def forward(self, x: Tensor) -> Tensor:
        for part in self.parts:
            x = part(x)
        return x


HOSTILE = (Stash, Hoard, Skip, Asks, Listed)
"""Forwards of a norm and an activation that torch.fx alone does not show as they are."""


class KeepsLinear(nn.Module):
    """Keeps the linear layer's output as an attribute, of which torch.fx sees nothing."""

    def __init__(self, linear: nn.Module, norm: nn.Module) -> None:
        super().__init__()
        self.linear, self.norm = linear, norm

    def forward(self, x: Tensor, skip: Tensor | None = None) -> Tensor:
        y = self.linear(x) if skip is None else self.linear(x + skip)
        if isinstance(y, Tensor):
            self.kept = y
        return self.norm(y)


class TakesOut(nn.Module):
    """Cannot be traced, gives its child no second argument, and takes what it kept; adds it, or not."""

    def __init__(self, inner: KeepsLinear, adds: bool) -> None:
        super().__init__()
        self.inner, self.adds = inner, adds

    def forward(self, x: Tensor) -> Tensor:
        z = self.inner(x) if bool(x.isfinite().all()) else x
        kept = self.inner.kept
        del self.inner.kept
        return z + kept if self.adds else z


class AsksLinear(nn.Module):
    """Adds the linear layer's output again, where torch.fx does not look."""

    def __init__(self, linear: nn.Module, norm: nn.Module) -> None:
        super().__init__()
        self.linear, self.norm = linear, norm

    def forward(self, x: Tensor) -> Tensor:
        y = self.linear(x)
        z = self.norm(y)
        return z + y if isinstance(x, Tensor) else z


class Collects(nn.Module):
    """Sums the outputs of a list of layers, each of which is given the one before."""

    def __init__(self, *layers: nn.Module) -> None:
        super().__init__()
        self.layers = nn.ModuleList(layers)

    def forward(self, x: Tensor) -> Tensor:
        found = [x]
        for layer in self.layers:
            found.append(layer(found[-1]))
        return torch.stack(found[1:]).sum(0)


class _Builder:
    """Draws parts for inputs of so many spatial dimensions; remembers norms, to share them."""

    def __init__(self, draw: Any, dims: int, libraries: tuple[ModuleType, ...], odd: bool = False) -> None:
        self.draw = draw
        self.odd = odd
        self.dims = dims
        self.libraries = libraries
        self.norms: dict[tuple[int, int], list[nn.Module]] = {}

    def pick(self, values: Any) -> Any:
        return self.draw(st.sampled_from(values))

    def flag(self) -> bool:
        return self.draw(st.booleans())

    def norm(self, width: int) -> nn.Module:
        known = self.norms.setdefault((self.dims, width), [])
        if known and self.pick((False, False, True)):
            return self.pick(known)
        kind = getattr(self.pick(self.libraries), f"BatchNorm{max(self.dims, 1)}d")
        known.append(kind(width, eps=self.pick((1e-5, 1e-2)), momentum=self.pick((0.1, None)), affine=self.flag()))
        return known[-1]

    def linear(self, width: int, wide: int) -> nn.Module:
        """A linear layer or a convolution, transposed or not, in groups or not; the output is as large as the input."""
        if self.dims == 0:
            return nn.Linear(width, wide, bias=self.flag())
        size, groups, bias = self.pick((1, 3)), self.pick((1, 1, 2)), self.flag()
        if self.pick((False, False, True)):
            transposed = getattr(nn, f"ConvTranspose{self.dims}d")
            return transposed(width, wide, size, padding=size // 2, groups=groups, bias=bias)
        padding = self.pick((size // 2, "same"))
        return getattr(nn, f"Conv{self.dims}d")(width, wide, size, padding=padding, groups=groups, bias=bias)

    def block(self, width: int, depth: int, keep: bool) -> tuple[nn.Module, int]:
        """Some parts one after the other, and the width of what comes out; that of what went in if `keep`."""
        parts: list[nn.Module] = []
        kinds = ("ccnnadrts" if depth else "ccnnad") + ("kil" if self.odd else "")
        for kind in self.draw(st.lists(st.sampled_from(kinds), min_size=1, max_size=4)):
            part, width = self.part(kind, width, depth, keep)
            parts += part
        return (nn.Sequential(*parts) if self.flag() else Chain(parts, self.flag())), width

    def part(self, kind: str, width: int, depth: int, keep: bool) -> tuple[list[nn.Module], int]:
        if kind == "c":  # linear or convolution, often with its norm and activation
            wide = width if keep else self.pick(WIDTHS)
            tail = [self.norm(wide), nn.ReLU(inplace=self.flag())] if self.flag() else []
            return [self.linear(width, wide), *tail], wide
        if kind == "n":
            return [self.norm(width)], width
        if kind == "a":
            return [self.pick(ACTIVATIONS)()], width
        if kind == "d":
            return [nn.Dropout(0.3)], width
        if kind in "kil":
            pair = self.linear(width, width), self.norm(width)
            if kind == "k":
                return [TakesOut(KeepsLinear(*pair), self.flag())], width
            return [AsksLinear(*pair) if kind == "i" else Collects(*pair)], width
        if kind == "s":
            block, wide = self.block(width, depth - 1, keep)
            return [block], wide
        block, _ = self.block(width, depth - 1, keep=True)
        return [Residual(block) if kind == "r" else Twice(block)], width


def randomise(model: nn.Module) -> nn.Module:
    """Moves the running statistics and affine parameters of every batch normalization away from where they start."""
    with torch.no_grad():
        for layer in model.modules():
            if not isinstance(layer, nn.modules.batchnorm._BatchNorm):
                continue
            for name, low, high in (("weight", 0.5, 1.5), ("bias", -1, 1), ("running_mean", -1, 1)):
                if getattr(layer, name) is not None:
                    getattr(layer, name).uniform_(low, high)
            if layer.running_var is not None:
                layer.running_var.uniform_(0.5, 2)
            if layer.num_batches_tracked is not None:
                layer.num_batches_tracked.fill_(7)
    return model


@st.composite
def networks(draw: Any, libraries: tuple[ModuleType, ...] = (nn, sn), odd: bool = False) -> Network:
    """Networks of up to three levels; each has a batch normalization, which now and then is the whole model.

    Args:
        draw: given by hypothesis.
        libraries: whose layers, `torch.nn`'s and `steadynorm`'s.
        odd: with forwards that torch.fx cannot trace, or traces otherwise than they go.
    """
    builder = _Builder(draw, draw(st.integers(0, 3)), libraries, odd)
    torch.manual_seed(draw(st.integers(0, 1000)))
    width = builder.pick(WIDTHS)
    example = torch.randn(draw(st.integers(2, 4)), width, *[4] * builder.dims, dtype=torch.float64)
    if builder.pick((False,) * 7 + (True,)):
        return Network(randomise(builder.norm(width)).double(), example)
    parts = []
    for _ in range(draw(st.integers(1, 3))):
        part, width = builder.block(width, depth=2, keep=False)
        parts.append(part)
    parts.append(builder.norm(width))
    if builder.dims and builder.flag():
        builder.dims = 0
        rest, _ = builder.block(width, depth=1, keep=False)
        parts.append(Head(rest))
    return Network(randomise(nn.Sequential(*parts)).double(), example)
