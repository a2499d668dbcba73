"""How a tensor is cut into items that threads take, and items into rows.

A group's memory is (N, C, L) or, channels last, (N, L, C). Two ways to walk over it:

- runs: each row is of one channel, in one example (channels first, long enough L); a tile is a few channels that lie
  one after the other, so that memory is read in order
- columns: each row is of several channels, a column always of the same one: a row is a whole number of periods (C
  values channels last, C * L channels first), or, for a long period, a tile's part of one

An item is a tile's share (`part`) of the rows. Where a tile has one part, it can be measured and normalized while it is
in cache. Everything depends on the shape alone, so results do not depend on the number of threads.
"""

from __future__ import annotations

from typing import NamedTuple

RUN_LENGTH, READ_ONCE_LENGTH = 40, 32
"""Positions from which on a row of one channel is long enough: in general, and where each value is read once."""
RUN_WIDTH = 4096
"""Values in a row of one channel at most, which are summed in float32 before float64 takes over."""
RUN_VALUES = 1 << 12, 1 << 15
"""Values of an example in a tile of runs, at least and at most: memory is read faster in long pieces, but tiles that
are to be measured and normalized while in cache are to be many and small."""
TILES = 16
"""Tiles wanted, if that leaves them the least they need."""
WIDTH = 256
"""Columns of a row at least, if the tensor has them: enough to keep the vector units busy."""
WIDEST = 1024
"""Columns of a row at most: what goes with them stays in the first cache."""
PART = 1 << 16
"""Values that are worth an item of their own."""
ITEMS = 32
"""Items wanted of a tensor that is large enough."""


class Tiling(NamedTuple):
    """How every group is cut."""

    runs: bool
    groups: int
    examples: int
    channels: int
    length: int
    inner: int  # consecutive values of one channel: L, or 1 where channels are last
    stride: int  # values from one row to the next; for runs, of a channel to the next
    width: int  # values of a row
    rows: int  # rows of a tile; for runs, of each of its channels
    rows_per_example: int
    tile_channels: int
    tiles: int
    parts: int

    @property
    def items(self) -> int:
        return self.groups * self.tiles * self.parts


def tiling(groups: int, examples: int, channels: int, length: int, channels_last: bool, fused: bool = True) -> Tiling:
    """The cut of a tensor; not `fused` where each value is read once, and tiles may be as large as they like."""
    inner = 1 if channels_last else length
    period, size = channels * inner, examples * channels * length
    runs = not channels_last and length >= (RUN_LENGTH if fused else READ_ONCE_LENGTH)
    rows_per_example, tile_channels = 1, channels
    if runs:
        stride, width = length, min(length, RUN_WIDTH)
        rows_per_example = -(-length // width)
        least, most = (max(1, values // length) for values in RUN_VALUES)
        tile_channels = min(channels, most, max(least, channels // TILES) if fused else most)
        rows = examples * rows_per_example
    elif period <= WIDEST:
        stride = width = period * max(1, -(-min(WIDTH, size) // max(period, 1)))
        rows = -(-size // max(stride, 1))
    else:
        tile_channels = max(1, WIDEST // inner)
        stride, width, rows = period, tile_channels * inner, size // period
    tiles = -(-channels // max(tile_channels, 1))
    values = rows * width * (tile_channels if runs else 1)
    wanted = -(-2 * ITEMS // max(groups * tiles, 1)) if groups * tiles * 2 < ITEMS else 1
    parts = max(1, min(wanted, values // PART, rows))
    return Tiling(
        runs,
        groups,
        examples,
        channels,
        length,
        inner,
        stride,
        width,
        rows,
        rows_per_example,
        tile_channels,
        tiles,
        parts,
    )
