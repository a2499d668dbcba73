"""Where a row is in memory, and which of its columns belong to which channel. `call` is a record of `call.CALL`."""

from __future__ import annotations

import numpy as np

from .compiling import carray, fetch_add, inner, pointer, summing

BLOCK = 32
"""Rows that are summed in float32 before float64 takes over."""


@inner
def locate(call, group, tile, row):
    """Offset and width of a row of a tile (of its first channel); the last of all, or of an example, may be short."""
    size = call.examples * call.channels * call.length
    if call.runs:
        example, piece = row // call.rows_per_example, row % call.rows_per_example
        start = (example * call.channels + tile * call.tile_channels) * call.length + piece * call.width
        return group * size + start, min(call.width, call.length - piece * call.width)
    start = row * call.stride + tile * call.width
    within = call.stride - tile * call.width
    return group * size + start, min(call.width, within, size - start)


@inner
def alike(call, group, tile, row, end):
    """How many rows of columns from this one on are as wide; as many as `keep` has lines where there is a mask."""
    if call.runs:
        return 1
    rows = end - row if call.mask == 0 else min(end - row, BLOCK)
    if rows > 1 and locate(call, group, tile, row + rows - 1)[1] < locate(call, group, tile, row)[1]:
        return rows - 1
    return rows


@inner
def span(call, tile):
    """First channel and number of channels of a tile."""
    first = tile * call.tile_channels
    return first, min(call.tile_channels, call.channels - first)


@inner
def keep_row(call, group, tile, row, width, channels, keep):
    """Writes which columns of a row are real, see `bits_of`; gives how many of each channel are."""
    mask = carray(pointer(call.mask), call.groups * call.examples * call.length, np.uint8)
    first = group * call.examples * call.length
    if call.runs:
        first += row // call.rows_per_example * call.length + row % call.rows_per_example * call.width
        bits_of(mask[first : first + width], keep)
        return real(mask[first : first + width])
    first += row * call.stride // call.channels
    positions = mask[first : first + width // channels]
    spread_bits(positions, call.inner, channels, keep)
    return real(positions)


@summing
def bits_of(mask, keep):
    """All bits set where an element is real, none where it is not."""
    for j in range(len(mask)):
        keep[j] = -np.int64(mask[j])


@inner
def spread_bits(mask, inner, channels, keep):
    """The same of several channels, `inner` positions of each after the other."""
    for first in range(0, len(mask), inner):
        if inner == 1:
            fill(keep[first * channels : (first + 1) * channels], mask[first])
        else:
            for place in range(first * channels, (first + inner) * channels, inner):
                bits_of(mask[first : first + inner], keep[place : place + inner])


@summing
def fill(keep, value):
    for j in range(len(keep)):
        keep[j] = -np.int64(value)


@summing
def real(mask):
    total = 0
    for j in range(len(mask)):
        total += mask[j]
    return total


@inner
def row_width(call, tile):
    """Width of a full row of a tile of several channels."""
    return min(call.width, call.stride - tile * call.width)


@inner
def spread(values, inner, columns):
    """One value a channel → one a column of a full row."""
    channels = len(values)
    for first in range(0, len(columns), inner * channels):
        for channel in range(channels):
            for j in range(first + channel * inner, first + (channel + 1) * inner):
                columns[j] = values[channel]


@summing
def gather(columns, inner, totals):
    """One value a column of a full row → their sum for each channel."""
    channels = len(totals)
    totals[:] = 0
    for first in range(0, len(columns), inner * channels):
        for channel in range(channels):
            total = 0.0
            for j in range(first + channel * inner, first + (channel + 1) * inner):
                total += columns[j]
            totals[channel] += total


@summing
def settle(block, totals):
    """Adds what a block of rows summed to the float64 totals, and clears it."""
    for j in range(len(block)):
        totals[j] += block[j]
        block[j] = 0


@inner
def take(call, counter, backwards):
    """The next item that no thread has taken, from the last to the first if so asked; -1 when there is none.

    Items taken one after the other lie far apart. In neighbouring memory, threads would wait for each other: what one
    fetches ahead is what the other writes.
    """
    lane = -(-call.items // call.threads)
    while True:
        turn = fetch_add(counter, 1)
        if turn >= lane * call.threads:
            return -1
        item = turn % call.threads * lane + turn // call.threads
        if item < call.items:
            return call.items - 1 - item if backwards else item


@inner
def share(call, item):
    """Group, tile, first and last row (exclusive) and part of an item."""
    part = item % call.parts
    tile = item // call.parts % call.tiles
    group = item // (call.parts * call.tiles)
    return group, tile, call.rows * part // call.parts, call.rows * (part + 1) // call.parts, part
