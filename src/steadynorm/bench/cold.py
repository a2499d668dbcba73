"""Normalization as a network meets it: caches hold something else when a layer is called, so all comes from memory.

The protocol: each layer of ResNet-50 at batch 16 and 160 pixels, forward and backward timed separately, the caches
overwritten before each call, ours and torch's in turns. The best of several rounds is reported: the caches are as cold
in every round, so no round can be lucky, and what else the machine does only ever adds time.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .cases import ADD_RELU, FIRST, FORWARD, LAST, PLAIN, RELU
from .networks import norm
from .providers import OURS, TORCH
from .record import Row
from .timing import duration, plain, summed_up

BACKWARD = "backward"
LAYERS = [
    *((64, 80, RELU, 1), (64, 40, RELU, 6), (256, 40, ADD_RELU, 3), (256, 40, PLAIN, 1), (128, 40, RELU, 1)),
    *((128, 20, RELU, 7), (512, 20, ADD_RELU, 4), (512, 20, PLAIN, 1), (256, 20, RELU, 1), (256, 10, RELU, 11)),
    *((1024, 10, ADD_RELU, 6), (1024, 10, PLAIN, 1), (512, 10, RELU, 1), (512, 5, RELU, 5)),
    *((2048, 5, ADD_RELU, 3), (2048, 5, PLAIN, 1)),
]
"""Channels, side of the square, what follows, and how often: all 53 normalizations of a ResNet-50 at 160 pixels."""
BATCH = 16
FLUSHED = 24 << 20
"""Values of float32 that are overwritten before each call: 96 MiB, more than the caches hold."""
WARM, ROUNDS = 2, 7
BIG = 6.0
"""Megabytes from which on a tensor's share of the memory's speed is judged."""
ASSUMED = 40.0
"""GB/s for a floor that can be compared between machines."""


def keys(quick: bool) -> list[dict[str, Any]]:
    """What to time: layers and how often a ResNet-50 has them; `quick`: the four smallest."""
    return [
        {"shape": [BATCH, channels, side, side], "order": order, "epilogue": epilogue, "count": count}
        for order in (FIRST, LAST)
        for channels, side, epilogue, count in (LAYERS[-4:] if quick else LAYERS)
    ]


def passes(order: str, epilogue: str, mode: str) -> int:
    """Tensors that must move between memory and processor, if every cache is cold and none holds a whole tensor.

    Forward: x is read (channels last twice, once for the statistics) and y written; a residual is read. Backward: dy
    and x are read (channels last twice) and dx written; of a residual, what the ReLU needs of it is read and its
    gradient written.
    """
    twice, residual = order == LAST, epilogue == ADD_RELU
    return 2 + twice + residual if mode == FORWARD else 3 + 2 * twice + 2 * residual


def measure(shape: list[int], order: str, epilogue: str, count: int) -> list[Row]:
    """The layer's two rows, forward and backward."""
    generator = torch.Generator().manual_seed(0)
    layout = torch.channels_last if order == LAST else torch.contiguous_format

    def draw() -> Tensor:
        return torch.randn(shape, generator=generator).contiguous(memory_format=layout)

    x, dy = draw().requires_grad_(), draw()
    residual = draw().requires_grad_() if epilogue == ADD_RELU else None
    layers = {name: norm(name, shape[1], relu=epilogue != PLAIN) for name in (OURS, TORCH)}
    flushed = torch.zeros(FLUSHED)
    found = {mode: {name: [] for name in layers} for mode in (FORWARD, BACKWARD)}
    copies, starts, target, one = [], [], torch.ones_like(flushed), torch.ones(1, requires_grad=True)
    for number in range(WARM + ROUNDS):
        around = {"copy": duration(lambda: target.copy_(flushed)), "start": _backward(flushed, one.view_as(one))}
        times = {name: _call(layer, x, residual, dy, flushed) for name, layer in layers.items()}
        if number < WARM:
            continue
        copies.append(around["copy"])
        starts.append(around["start"])
        for name, (forward, backward) in times.items():
            found[FORWARD][name].append(forward)
            found[BACKWARD][name].append(backward)
    megabytes = x.numel() * 4 / 1e6
    return [
        {
            **{"shape": shape, "order": order, "epilogue": epilogue, "count": count, "mode": mode},
            **{"megabytes": megabytes, "moved_megabytes": megabytes * passes(order, epilogue, mode)},
            **{"copy_gb_s": 2 * flushed.numel() * 4 / 1e6 / min(copies), "autograd_ms": min(starts)},
            "timings": plain({name: summed_up(values) for name, values in by_name.items()}),
        }
        for mode, by_name in found.items()
    ]


def _call(
    layer: torch.nn.Module, x: Tensor, residual: Tensor | None, dy: Tensor, flushed: Tensor
) -> tuple[float, float]:
    """Milliseconds forward and backward, each on cold caches."""
    results: list[Tensor] = []
    flushed.add_(1)
    forward = duration(lambda: results.append(layer(x, residual=residual)))
    backward = _backward(flushed, results[0], dy)
    for tensor in (x, residual, *layer.parameters()):
        if tensor is not None:
            tensor.grad = None
    return forward, backward


def _backward(flushed: Tensor, y: Tensor, dy: Tensor | None = None) -> float:
    flushed.add_(1)
    return duration(lambda: y.backward(dy))


class Layer(NamedTuple):
    """A layer's two rows as one line.

    Attributes:
        times: how often the network has it.
        ours, torch: milliseconds by mode, the best rounds.
        moved: megabytes by mode.
    """

    shape: tuple[int, ...]
    order: str
    epilogue: str
    times: int
    megabytes: float
    ours: dict[str, float]
    torch: dict[str, float]
    moved: dict[str, float]

    def ratio(self, *modes: str) -> float:
        """How many times as fast as torch."""
        return sum(self.torch[mode] for mode in modes) / sum(self.ours[mode] for mode in modes)

    def share(self, speed: float) -> float:
        """Of the time that forward and backward take, what their bytes need at `speed` GB/s."""
        return sum(self.moved.values()) / speed / sum(self.ours.values())


class Sum(NamedTuple):
    """Milliseconds of all layers of the network in one order.

    Attributes:
        layers: how many, as often as the network has them.
        floor, assumed: for the bytes that must move, at the copy's speed and at `ASSUMED`.
    """

    layers: int
    ours: float
    torch: float
    floor: float
    assumed: float


def layers(rows: list[Row]) -> list[Layer]:
    """Each layer that has both rows."""
    found: dict[tuple, dict[str, Row]] = {}
    for row in rows:
        key = (tuple(row["shape"]), row["order"], row["epilogue"], row["count"])
        found.setdefault(key, {})[row["mode"]] = row
    return [_layer(by_mode) for by_mode in found.values() if by_mode.keys() == {FORWARD, BACKWARD}]


def _layer(by_mode: dict[str, Row]) -> Layer:
    row = by_mode[FORWARD]
    ours, theirs = ({mode: row["timings"][who]["best"] for mode, row in by_mode.items()} for who in (OURS, TORCH))
    moved = {mode: row["moved_megabytes"] for mode, row in by_mode.items()}
    where = tuple(row["shape"]), row["order"], row["epilogue"], row["count"]
    return Layer(*where, row["megabytes"], ours, theirs, moved)


def copy_speed(rows: list[Row]) -> float:
    """GB/s, read and written, of the fastest copy of 96 MiB in the run."""
    return max(row["copy_gb_s"] for row in rows)


def sums(rows: list[Row]) -> dict[str, dict[str, Sum]]:
    """By order and mode, and for both together by "forward+backward", the sums over the network."""
    speed = copy_speed(rows) if rows else ASSUMED
    result = {}
    for order in (FIRST, LAST):
        of_order = [layer for layer in layers(rows) if layer.order == order]
        if of_order:
            modes = {FORWARD: (FORWARD,), BACKWARD: (BACKWARD,), f"{FORWARD}+{BACKWARD}": (FORWARD, BACKWARD)}
            result[order] = {name: _sum(of_order, which, speed) for name, which in modes.items()}
    return result


def _sum(of_order: list[Layer], modes: tuple[str, ...], speed: float) -> Sum:
    def total(values: Callable[[Layer], dict[str, float]]) -> float:
        return sum(layer.times * values(layer)[mode] for layer in of_order for mode in modes)

    moved = total(lambda layer: layer.moved)
    count = sum(layer.times for layer in of_order)
    times = total(lambda layer: layer.ours), total(lambda layer: layer.torch)
    return Sum(count, *times, moved / speed, moved / ASSUMED)


SUMS_HEADER = (
    "order",
    "part",
    "torch, ms",
    "ours, ms",
    "times as fast",
    "floor, ms",
    "of the floor",
    "floor at 40 GB/s",
)


def sums_table(rows: list[Row]) -> list[tuple[str, ...]]:
    """Summed over the network, by order and part."""
    return [
        (
            *(order, mode, f"{found.torch:.1f}", f"{found.ours:.1f}", f"{found.torch / found.ours:.2f}"),
            *(f"{found.floor:.1f}", f"{found.floor / found.ours:.2f}", f"{found.assumed:.1f}"),
        )
        for order, by_mode in sums(rows).items()
        for mode, found in by_mode.items()
    ]


LAYERS_HEADER = (
    *("shape", "order", "epilogue", "times", "MB", "torch, ms", "ours, ms"),
    *("forward", "backward", "both", "of the floor"),
)


def layers_table(rows: list[Row]) -> list[tuple[str, ...]]:
    """Layer by layer: milliseconds forward + backward, times as fast as torch, and the share of the memory's speed."""
    return list(_lines(rows))


def _lines(rows: list[Row]) -> Iterator[tuple[str, ...]]:
    for layer in layers(rows):
        ours, theirs = (
            " + ".join(f"{times[m]:.2f}" for m in (FORWARD, BACKWARD)) for times in (layer.ours, layer.torch)
        )
        ratios = (layer.ratio(FORWARD), layer.ratio(BACKWARD), layer.ratio(FORWARD, BACKWARD))
        share = f"{layer.share(copy_speed(rows)):.2f}" if layer.megabytes >= BIG else ""
        sizes = str(layer.times), f"{layer.megabytes:.1f}"
        yield (
            *(str(layer.shape), layer.order, layer.epilogue, *sizes, theirs, ours),
            *(f"{ratio:.2f}" for ratio in ratios),
            share,
        )
