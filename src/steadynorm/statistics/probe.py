"""Whether a layer with a forward of its own normalizes what it is given, channel by channel of dimension 1."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from ..nn import GhostBatchNorm2d, SyncBatchNorm, WhiteningBatchNorm
from ..nn.batchnorm import _BatchNorm
from ..nn.convertible import has_known_forward
from ..nn.renorm import _BatchRenorm
from .sites import Site

STEPS = (
    _BatchNorm._step,
    SyncBatchNorm._step,
    GhostBatchNorm2d._step,
    _BatchRenorm._step,
    WhiteningBatchNorm._step,
)


def is_known(layer: nn.modules.batchnorm._BatchNorm) -> bool:
    """Whether its forward is torch's or ours, which normalize what they are given."""
    return has_known_forward(layer, STEPS)


@torch.no_grad()
def normalizes_its_input(site: Site, x: Tensor, args: tuple, kwargs: dict[str, Any]) -> bool:
    """Whether the layer's output stays when its input and its running statistics move together.

    x → 2 x + c with mean → c and var + eps → 4 (var + eps), another c for each channel: only a layer that normalizes
    x itself, over dimension 1, cannot tell. Of one that transposes x, shifts or scales it first, the statistics are not
    those of x.

    Args:
        site: of the layer, in eval mode.
        x: an input of the layer, (N, C, *), of which only the form matters.
        args: its other positional arguments.
        kwargs: its keyword arguments, without the input.
    """
    probe = torch.arange(x.numel(), device=x.device).sin().reshape(x.shape).to(x.dtype)
    centre = torch.arange(x.shape[1], device=x.device) % 5 - 1.5
    mean, unit = site.unit()
    kept = site.mean.clone(), site.spread.clone()
    site.write(mean, unit)
    y = site.layer.forward(probe, *args, **kwargs)
    site.write(centre.to(mean), unit + 3 * (1 + site.layer.eps) * unit)
    moved = 2 * probe + centre.to(x.dtype).reshape(1, -1, *[1] * (x.dim() - 2))
    again = site.layer.forward(moved, *args, **kwargs)
    site.write(*kept)
    if not isinstance(y, Tensor) or not isinstance(again, Tensor) or y.shape != again.shape:
        return False
    if y.numel() == 0:
        return True
    return float((again - y).abs().max()) <= 16 * torch.finfo(y.dtype).eps * (1 + float(y.abs().max()))
