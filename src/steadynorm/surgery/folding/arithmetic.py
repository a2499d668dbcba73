r"""Folding as arithmetic: an affine map per group of channels, taken into the weights beside it, in float64.

A norm in eval mode is :math:`x \mapsto M x + t` on the channels, with M block-diagonal: blocks of one channel for batch
normalization (:math:`M = \gamma / \sqrt{\sigma^2 + \epsilon}`), of `group_size` channels for whitening.

- after a linear operation, :math:`M (W x + b) + t = (M W) x + (M b + t)`
- before one, :math:`W (M x + t) + b = (W M) x + (W t + b)`
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class Map(NamedTuple):
    """matrix (G, d, d) of G groups of d consecutive channels, and shift (G * d,); float64."""

    matrix: Tensor
    shift: Tensor

    @property
    def size(self) -> int:
        """d, the channels of a group."""
        return self.matrix.shape[-1]


class Weights(NamedTuple):
    """A linear operation's numbers, in float64: weight (groups, out, in, K), by group, and bias (groups * out,).

    K are the positions of a kernel; of a linear layer behind a flatten, the positions that one channel had.
    """

    weight: Tensor
    bias: Tensor


def after(weights: Weights, norm: Map) -> Weights:
    """The weights of the operation with the norm after it."""
    weight, bias = weights
    groups, out = weight.shape[:2]
    rows = weight.reshape(groups * out, -1)
    return Weights(_mix(norm.matrix, rows).reshape(weight.shape), _mix(norm.matrix, bias) + norm.shift)


def before(weights: Weights, norm: Map) -> Weights:
    """The weights of the operation with the norm before it, where each output sees K values of each channel."""
    weight, bias = weights
    groups, _, into = weight.shape[:3]
    shift = torch.einsum("goik,gi->go", weight, norm.shift.reshape(groups, into)).flatten()
    by_input = weight.transpose(1, 2)
    rows = by_input.reshape(groups * into, -1)
    return Weights(_mix(norm.matrix.mT, rows).reshape(by_input.shape).transpose(1, 2), bias + shift)


def _mix(matrix: Tensor, rows: Tensor) -> Tensor:
    """matrix @ rows within each group of channels; rows is (C, ...)."""
    groups, size = matrix.shape[:2]
    return (matrix @ rows.reshape(groups, size, -1)).reshape(rows.shape)
