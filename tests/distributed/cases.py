"""What ranks are given, and what the reference makes of all of it together."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

import steadynorm as sn
from steadynorm import reference

from ..support.peers import torch_batch_norm
from ..support.tolerance import as_array

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Case:
    """An input for each rank, and one layer for all.

    `means` are of the ranks' data; `masks` says for each rank whether it has one: "some", "none", or "" for no mask.
    """

    name: str
    shapes: tuple[tuple[int, ...], ...]
    dtype: torch.dtype = torch.float32
    activation: str | None = None
    residual: bool = False
    affine: bool = True
    channels_last: bool = False
    means: tuple[float, ...] = (0.0, 1.0, 3.0)
    std: float = 1.0
    masks: tuple[str, ...] = ("", "", "")

    @property
    def parameters(self) -> torch.dtype:
        return torch.float32 if self.dtype.itemsize < 4 else self.dtype


TWO = [
    Case("dense", ((6, 5), (6, 5))),
    Case("one value a channel on each", ((1, 5), (1, 5))),
    Case("unequal batches", ((2, 5, 7), (9, 5, 7)), activation="relu"),
    Case("different sizes", ((3, 4, 5, 6), (2, 4, 8, 3)), activation="silu", residual=True),
    Case("channels last", ((3, 4, 5, 6), (4, 4, 5, 6)), activation="relu", residual=True, channels_last=True),
    Case("an empty rank", ((0, 4, 5, 5), (6, 4, 5, 5)), activation="gelu", residual=True),
    Case("all empty", ((0, 4, 5), (0, 4, 5))),
    Case("volume", ((2, 3, 2, 3, 4), (1, 3, 4, 4, 4)), activation="leaky_relu"),
    Case("masks", ((4, 6, 9), (5, 6, 7)), masks=("some", "some"), activation="tanh", residual=True),
    Case("a mask on one rank", ((4, 6, 5, 5), (5, 6, 5, 5)), masks=("", "some"), activation="relu"),
    Case("all padding on one rank", ((4, 6, 9), (5, 6, 7)), masks=("none", "some"), residual=True),
    Case("all padding", ((4, 6, 9), (5, 6, 7)), masks=("none", "none")),
    Case("bfloat16", ((4, 5, 7, 7), (6, 5, 7, 7)), torch.bfloat16, "relu", residual=True),
    Case("bfloat16, an empty rank", ((4, 5, 7), (0, 5, 7)), torch.bfloat16, masks=("some", "")),
    Case("float16", ((4, 5, 7, 7), (3, 5, 7, 7)), torch.float16, "sigmoid", channels_last=True),
    Case("float64", ((9, 4), (5, 4)), torch.float64, "gelu", residual=True),
    Case("large means, far apart", ((8, 4, 6, 6), (5, 4, 6, 6)), means=(1e4, 1.01e4)),
    Case("large mean, small spread", ((8, 4, 6, 6), (5, 4, 6, 6)), means=(1e4, 1e4), std=1e-1, activation="relu"),
    Case("not affine", ((8, 4, 3, 3), (5, 4, 3, 3)), affine=False, residual=True),
    Case("many values", ((4, 16, 56, 56), (2, 16, 56, 56)), activation="relu"),
]
THREE = [
    Case("unequal batches, one empty", ((2, 5, 7), (0, 5, 7), (7, 5, 7)), activation="relu", residual=True),
    Case("different sizes, masks", ((3, 4, 5, 6), (2, 4, 8, 3), (1, 4, 1, 1)), masks=("some", "", "some")),
    Case("bfloat16, three", ((4, 5, 6), (1, 5, 9), (2, 5, 6)), torch.bfloat16, "silu"),
    Case("one value a channel on one", ((0, 5), (1, 5), (4, 5)), torch.float64),
]


class Data(NamedTuple):
    """A rank's tensors: x, dy and residual of its shape, weight and bias (C,), mask (N, *)."""

    x: Tensor
    dy: Tensor
    residual: Tensor | None
    weight: Tensor | None
    bias: Tensor | None
    mask: Tensor | None


def data_of(case: Case, rank: int) -> Data:
    """The same in every process; weight and bias on all ranks."""
    shape, channels = case.shapes[rank], case.shapes[rank][1]

    def draw(seed: int, *size: int, mean: float = 0.0, std: float = 1.0) -> Tensor:
        generator = torch.Generator().manual_seed(seed)
        return torch.randn(size, generator=generator, dtype=torch.float64) * std + mean

    def data(seed: int, mean: float = 0.0, std: float = 1.0) -> Tensor:
        values = draw(10 * rank + seed, *shape, mean=mean, std=std).to(case.dtype)
        return values.movedim(1, -1).contiguous().movedim(-1, 1) if case.channels_last else values

    parameters = [draw(seed, channels).to(case.parameters) if case.affine else None for seed in (101, 102)]
    residual = data(3) if case.residual else None
    mask = None
    if case.masks[rank]:
        mask = draw(10 * rank + 4, shape[0], *shape[2:]) < (0.3 if case.masks[rank] == "some" else -torch.inf)
    return Data(data(1, case.means[rank], case.std), data(2), residual, parameters[0], parameters[1], mask)


def layer_of(case: Case, data: Data) -> sn.SyncBatchNorm:
    layer = sn.SyncBatchNorm(case.shapes[0][1], affine=case.affine, activation=case.activation, dtype=case.parameters)
    if data.weight is not None and data.bias is not None:
        layer.load_state_dict({**layer.state_dict(), "weight": data.weight, "bias": data.bias})
    return layer


def on_rank(rank: int, cases: list[Case]) -> list[dict[str, Any]]:
    """What a rank makes of each case: output, gradients, and state."""
    return [_step(case, data_of(case, rank)) for case in cases]


def _step(case: Case, data: Data) -> dict[str, Any]:
    layer = layer_of(case, data)
    inputs = {"x": data.x.requires_grad_()}
    if data.residual is not None:
        inputs["residual"] = data.residual.requires_grad_()
    y = layer(data.x, mask=data.mask, residual=data.residual)
    inputs.update(layer.named_parameters())
    found = torch.autograd.grad(y, list(inputs.values()), data.dy)
    assert (y.dtype, y.stride()) == (data.x.dtype, data.x.stride())
    return {
        "y": y.detach(),
        **{f"d{name}": gradient for name, gradient in zip(inputs, found, strict=True)},
        **{name: buffer.detach() for name, buffer in layer.named_buffers()},
    }


# ---- the oracle: all ranks' data as one batch, (1, C, values) ----


def joined(parts: list[Tensor]) -> Array:
    """(N, C, *) of all ranks → (1, C, values)."""
    return np.concatenate([np.moveaxis(as_array(p), 1, 0).reshape(p.shape[1], -1) for p in parts], axis=1)[None]


def parted(values: Array, like: list[Tensor]) -> list[Array]:
    """`joined`, undone."""
    ends = np.cumsum([part.numel() // part.shape[1] for part in like])[:-1]
    shaped = []
    for piece, part in zip(np.split(values[0], ends, axis=1), like, strict=True):
        rows = piece.reshape(part.shape[1], part.shape[0], *part.shape[2:])
        shaped.append(np.moveaxis(rows, 0, 1))
    return shaped


def expected(case: Case) -> list[dict[str, Array]]:
    """What the reference makes of all ranks' data together, for each rank."""
    ranks = [data_of(case, rank) for rank in range(len(case.shapes))]
    xs = [data.x for data in ranks]
    x, dy = joined(xs), joined([data.dy for data in ranks])
    masks = [torch.ones_like(d.x[:, :1], dtype=torch.bool) if d.mask is None else d.mask.unsqueeze(1) for d in ranks]
    mask = joined(masks) > 0
    residuals = [data.residual for data in ranks if data.residual is not None]
    settings = reference.Settings(
        weight=None if ranks[0].weight is None else as_array(ranks[0].weight),
        bias=None if ranks[0].bias is None else as_array(ranks[0].bias),
        residual=joined(residuals) if residuals else None,
        mask=mask,
        activation=case.activation,
    )
    y, batch = reference.forward(x, settings)
    grads = reference.backward(dy, x, settings)
    channels = case.shapes[0][1]
    moved = reference.update_running(np.zeros(channels), np.ones(channels), batch, 0.1)
    whole = {"y": y, "dx": grads.x, "dresidual": grads.residual}
    pieces = {name: parted(values, xs) for name, values in whole.items()}
    found = []
    for rank, data in enumerate(ranks):
        residual = None if data.residual is None else as_array(data.residual)
        own = settings._replace(residual=residual, mask=as_array(masks[rank]) > 0)
        sums = reference.inference_backward(as_array(data.dy), as_array(data.x), batch.mean, batch.var, own)
        of_rank = {"dweight": sums.weight, "dbias": sums.bias, "running_mean": moved[0], "running_var": moved[1]}
        found.append({**of_rank, **{name: parts[rank] for name, parts in pieces.items()}})
    return found


def peers(case: Case) -> list[dict[str, Tensor]]:
    """What torch's own layer in one process makes of all data without masks: y and dx, for each rank."""
    ranks = [data_of(case, rank) for rank in range(len(case.shapes))]
    xs = [data.x for data in ranks]
    residuals = [data.residual for data in ranks if data.residual is not None]
    if any(case.masks) or case.dtype.itemsize < 4 or not sum(x.numel() for x in xs):
        return [{} for _ in xs]

    def whole(parts: list[Tensor]) -> Tensor:
        return torch.from_numpy(joined(parts)).to(case.dtype)

    x, residual = whole(xs).requires_grad_(), whole(residuals) if residuals else None
    y = torch_batch_norm(x, None, None, ranks[0].weight, ranks[0].bias, True, residual, case.activation)
    (dx,) = torch.autograd.grad(y, x, whole([data.dy for data in ranks]))
    pieces = {"y": parted(as_array(y), xs), "dx": parted(as_array(dx), xs)}
    return [{name: torch.from_numpy(parts[rank]) for name, parts in pieces.items()} for rank in range(len(xs))]
