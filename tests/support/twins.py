"""The same layer twice: torch's and ours, with equal state."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

import steadynorm as sn
from steadynorm.nn.batchnorm import _BatchNorm

SHAPES = {
    "BatchNorm1d": [(6, 3), (5, 3, 7)],
    "BatchNorm2d": [(4, 3, 5, 6)],
    "BatchNorm3d": [(2, 3, 4, 3, 2)],
}
"""Inputs of each layer, three channels."""


def twins(
    kind: str = "BatchNorm2d", features: int = 3, *, dtype: torch.dtype = torch.float64, **settings: Any
) -> tuple[torch.nn.modules.batchnorm._BatchNorm, _BatchNorm]:
    """torch's layer with random parameters and running statistics, and ours with its state.

    float64 unless asked otherwise: both are then exact to about 1e-15, and any other difference is a difference of
    behaviour.
    """
    theirs = getattr(torch.nn, kind)(features, dtype=dtype, **settings)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for tensor in (*theirs.parameters(), *theirs.buffers()):
            if tensor.is_floating_point():
                tensor.uniform_(0.5, 2, generator=generator)
    ours = getattr(sn, kind)(features, dtype=dtype, **settings)
    ours.load_state_dict(theirs.state_dict(), strict=True)
    return theirs, ours


def normal(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    """Channels of mean 2 and standard deviation 3, so that batch and running statistics differ."""
    return (torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) * 3 + 2).to(dtype)


def step(layer: torch.nn.Module, x: Tensor, dy: Tensor | None = None) -> list[Tensor]:
    """Output and gradients of x and of every parameter, for `dy` or a random one."""
    x = x.detach().requires_grad_()
    y = layer(x)
    dy = normal(*y.shape, seed=9, dtype=y.dtype) if dy is None else dy
    return [y, *torch.autograd.grad(y, (x, *layer.parameters()), dy)]


def agree(ours: Any, theirs: Any, rtol: float = 1e-12, atol: float = 1e-13) -> None:
    """Tensors or collections of them, to float64 rounding."""
    torch.testing.assert_close(ours, theirs, rtol=rtol, atol=atol)


def agree_in_state(ours: torch.nn.Module, theirs: torch.nn.Module, rtol: float = 1e-12, atol: float = 1e-13) -> None:
    """The same state dict: names in the same order, dtypes, values."""
    assert list(ours.state_dict()) == list(theirs.state_dict())
    agree(dict(ours.state_dict()), dict(theirs.state_dict()), rtol, atol)
