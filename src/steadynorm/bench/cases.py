"""What is timed."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

RESNET50 = [
    *((32, 64, 112, 112), (32, 64, 56, 56), (32, 256, 56, 56), (32, 128, 56, 56), (32, 128, 28, 28), (32, 512, 28, 28)),
    *((32, 256, 28, 28), (32, 256, 14, 14), (32, 1024, 14, 14), (32, 512, 14, 14), (32, 512, 7, 7), (32, 2048, 7, 7)),
]
"""Every distinct input of a batch normalization in ResNet-50, batch 32, 224 pixels."""
OTHERS = [(60, 100), (128, 1024), (4096, 512), (16, 128, 2048), (4, 32, 16, 56, 56)]
FIRST, LAST = "channels first", "channels last"
FORWARD, TRAINING, INFERENCE = "forward", "forward+backward", "inference"
PLAIN, RELU, ADD_RELU = "plain", "relu", "add+relu"


class Case(NamedTuple):
    """One thing to time.

    Attributes:
        shape: (N, C, *).
        order: of memory; "channels first" also for (N, C).
        dtype: "float32" or "bfloat16".
        epilogue: what follows the normalization: "plain", "relu" or "add+relu".
        mode: "forward" and "forward+backward" in training, or "inference".
    """

    shape: tuple[int, ...]
    order: str
    dtype: str
    epilogue: str
    mode: str

    @property
    def values(self) -> int:
        count = 1
        for size in self.shape:
            count *= size
        return count

    @property
    def megabytes(self) -> float:
        return self.values * (4 if self.dtype == "float32" else 2) / 1e6

    @property
    def passes(self) -> int:
        """Tensors that must move between memory and processor, for tensors that no cache holds.

        Channels first, a channel is still in cache when it is read again: read x and write y; read dy and x and write
        dx. Channels last, everything is read twice. A residual is read once more in each direction, and its gradient
        written.
        """
        forward = 2 if self.mode == INFERENCE or self.order == FIRST else 3
        backward = 0 if self.mode != TRAINING else 3 if self.order == FIRST else 5
        extra = 0 if self.epilogue != ADD_RELU else 1 if not backward else 3 if self.order == FIRST else 4
        return forward + backward + extra


def grid(quick: bool) -> Iterator[Case]:
    """All cases, bfloat16 with ReLU only; `quick`: few shapes, float32 with ReLU only."""
    shapes = [(32, 64, 56, 56), (32, 256, 14, 14), (60, 100)] if quick else [*RESNET50, *OTHERS]
    kinds = [("float32", RELU)] if quick else [("float32", PLAIN), ("float32", RELU), ("float32", ADD_RELU)]
    kinds += [] if quick else [("bfloat16", RELU)]
    for shape in shapes:
        for order in (FIRST, LAST) if len(shape) > 2 else (FIRST,):
            for dtype, epilogue in kinds:
                for mode in (FORWARD, TRAINING, INFERENCE):
                    yield Case(shape, order, dtype, epilogue, mode)
