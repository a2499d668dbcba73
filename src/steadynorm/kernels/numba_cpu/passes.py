"""The two passes over a tensor: each thread takes items, walks over their rows, and has row kernels do the arithmetic.

Where tiles have one part, an item is measured and normalized while it is in cache. Else all items are measured, whoever
finishes last merges what they found, and then all are normalized.

What belongs to the channels of a tile is float64. `numbers` and `wide` are scratch, lines as wide as a row, of the
numbers that row kernels compute with and of float64; `keep` is a block of lines of the mask.
"""

from __future__ import annotations

import math

from . import merging
from .coefficients import put, read_statistics, scales
from .compiling import call_kernel, fetch_add, give_way, inner, read
from .places import BLOCK, alike, gather, keep_row, locate, row_width, settle, share, span, spread, take

SPINS = 4096
"""Looks at what is waited for before another thread may have the processor: some microseconds."""


@inner
def walk(call, row, kernel, group, tile, begin, end, keep):
    """Calls a row kernel for all rows; gives how many values of a channel are real."""
    channels, count = span(call, tile)[1], 0
    place = begin
    while place < end:
        start, width = locate(call, group, tile, place)
        rows = alike(call, group, tile, place, end)
        if call.mask == 0:
            count += rows * (width if call.runs else width // channels)
        else:
            for line in range(rows):
                count += keep_row(call, group, tile, place + line, width, channels, keep[line])
        offset = start * call.itemsize
        row[0].x = call.x + offset
        row[0].dy = call.dy + offset
        row[0].y = call.y + offset
        row[0].residual = call.residual + offset
        row[0].dresidual = call.dresidual + offset
        row[0].width = width
        row[0].rows = channels if call.runs else rows
        call_kernel(kernel, row.ctypes.data)
        place += rows
    return count


@inner
def summed(call, row, kernel, group, tile, begin, end, numbers, wide, keep, sums, products):
    """Writes what a row kernel sums over the rows, a value a channel; gives how many of its values are real."""
    if call.runs:
        sums[:], products[:] = 0, 0
        row[0].sums, row[0].products = sums.ctypes.data, products.ctypes.data
        return walk(call, row, kernel, group, tile, begin, end, keep)
    full, count = row_width(call, tile), 0
    block_sums, block_products, total, total_products = (
        numbers[6, :full],
        numbers[7, :full],
        wide[8, :full],
        wide[9, :full],
    )
    block_sums[:] = 0
    block_products[:] = 0
    total[:] = 0
    total_products[:] = 0
    row[0].sums, row[0].products = block_sums.ctypes.data, block_products.ctypes.data
    for first in range(begin, end, BLOCK):
        count += walk(call, row, kernel, group, tile, first, min(first + BLOCK, end), keep)
        settle(block_sums, total)
        settle(block_products, total_products)
    gather(total, call.inner, sums)
    gather(total_products, call.inner, products)
    return count


@inner
def spread_all(call, tile, values, row_of_numbers):
    if call.runs:
        for channel in range(len(values)):
            row_of_numbers[channel] = values[channel]
    else:
        spread(values, call.inner, row_of_numbers[: row_width(call, tile)])


@inner
def counters(address):
    """Addresses of the counters of a call, which are its first fields."""
    return address, address + 8, address + 16, address + 24, address + 32


@inner
def is_last(call, finished, own):
    """Whether this thread, which finished `own` items, is the one that finished the last of all."""
    return own > 0 and fetch_add(finished, own) + own == call.items


@inner
def wait(ready):
    """Until the thread that finished last has merged what all found; lets others run if that takes long."""
    turns = 0
    while read(ready) == 0:
        turns += 1
        if turns % SPINS == 0:
            give_way()


@inner
def forward(address, call, statistics, row, numbers, wide, keep):
    """Moments, output, or both."""
    taken, finished, ready, taken_again, poisoned = counters(address)
    count, means, m2s, variance, partial, counts = statistics
    at_once = call.parts == 1 or not call.measures
    own = 0
    item = take(call, taken, call.reversed and not call.measures)
    while item >= 0:
        group, tile, begin, end, part = share(call, item)
        first, channels = span(call, tile)
        mean, var = wide[0, :channels], wide[1, :channels]
        if call.measures:
            found = measure(call, row, group, tile, begin, end, numbers, wide, keep, mean, var)
            if call.parts > 1:
                counts[group, part] = found
            for channel in range(channels):
                if call.parts > 1:
                    partial[group, part, 0, first + channel] = mean[channel]
                    partial[group, part, 1, first + channel] = var[channel]
                else:
                    count[group, first + channel] = found
                    means[group, first + channel] = mean[channel]
                    m2s[group, first + channel] = var[channel]
                var[channel] /= max(found, 1)
        else:
            read_statistics(call, group, first, mean, var)
        if call.applies and at_once:
            prepare(call, row, group, tile, numbers, wide)
            walk(call, row, call.apply, group, tile, begin, end, keep)
        own += 1
        item = take(call, taken, call.reversed and not call.measures)
    if not call.measures:
        return
    if is_last(call, finished, own):
        if call.parts > 1:
            merging.merge_moments(call, partial, counts, count, means, m2s)
        if call.variance != 0:
            for channel in range(call.channels):
                variance[0, channel] = m2s[0, channel] / max(count[0, channel], 1.0)
        if call.running_mean != 0:
            finite = merging.all_finite(means[0], m2s[0])
            if finite or not call.guarded:
                merging.update_running(call, count[0], means[0], m2s[0])
            if not finite:
                fetch_add(poisoned, 1)
        fetch_add(ready, 1)
    if at_once or not call.applies:
        return
    wait(ready)
    item = take(call, taken_again, call.reversed)
    while item >= 0:
        group, tile, begin, end, part = share(call, item)
        first, channels = span(call, tile)
        mean, var = wide[0, :channels], wide[1, :channels]
        for channel in range(channels):
            mean[channel] = means[group, first + channel]
            var[channel] = m2s[group, first + channel] / max(count[group, first + channel], 1.0)
        prepare(call, row, group, tile, numbers, wide)
        walk(call, row, call.apply, group, tile, begin, end, keep)
        item = take(call, taken_again, call.reversed)


@inner
def measure(call, row, group, tile, begin, end, numbers, wide, keep, mean, m2):
    """Writes mean and m2 of a tile's rows; gives their count.

    Sums are taken of distances from a value near the mean, so that nothing cancels: from the mean of the first block,
    or, where that proves to be far from the mean of all, once more from that.
    """
    channels = len(mean)
    near, sums, squares = wide[5, :channels], wide[6, :channels], wide[7, :channels]
    block = min(begin + max(4, min(BLOCK, (end - begin) // 8)), end)
    count = summed(call, row, call.add_values, group, tile, begin, block, numbers, wide, keep, sums, squares)
    for channel in range(channels):
        mean[channel] = sums[channel] / max(count, 1)
    for _ in range(2):
        for channel in range(channels):
            numbers[0, 0] = mean[channel] if math.isfinite(mean[channel]) else 0.0
            near[channel] = numbers[0, 0]
        spread_all(call, tile, near, numbers[0])
        row[0].mean = numbers[0].ctypes.data
        count = summed(call, row, call.add_moments, group, tile, begin, end, numbers, wide, keep, sums, squares)
        far = False
        for channel in range(channels):
            distance = sums[channel] / max(count, 1)
            around = squares[channel] - sums[channel] * distance
            mean[channel] = near[channel] + distance
            m2[channel] = 0.0 if around < 0 else around
            far |= distance * distance * count > m2[channel]
        if not far:
            break
    return count


@inner
def prepare(call, row, group, tile, numbers, wide):
    """Tells row kernels what to normalize a tile with; what that is made of stays in `wide`."""
    first, channels = span(call, tile)
    mean, var, rest = wide[0, :channels], wide[1, :channels], wide[2, :channels]
    invstd, scale, shift = wide[3, :channels], wide[4, :channels], wide[5, :channels]
    scales(call, group, first, mean, var, numbers[0], rest, invstd, scale, shift)
    origin = wide[8, :channels]
    for channel in range(channels):
        origin[channel] = mean[channel] - rest[channel]
    spread_all(call, tile, origin, numbers[0])
    spread_all(call, tile, scale, numbers[1])
    spread_all(call, tile, shift, numbers[2])
    row[0].mean, row[0].scale, row[0].shift = numbers[0].ctypes.data, numbers[1].ctypes.data, numbers[2].ctypes.data


@inner
def backward(address, call, statistics, row, numbers, wide, keep):
    """The sums over gradients, dx, or both."""
    taken, finished, ready, taken_again, _ = counters(address)
    count, sums, products, _, partial, _ = statistics
    at_once = call.parts == 1 or not call.measures
    own = 0
    item = take(call, taken, call.reversed and not call.measures)
    while item >= 0:
        group, tile, begin, end, part = share(call, item)
        first, channels = span(call, tile)
        prepare_given(call, row, group, tile, numbers, wide)
        rest, invstd = wide[2, :channels], wide[3, :channels]
        sum_dz, sum_dz_xhat = wide[6, :channels], wide[7, :channels]
        if call.measures:
            summed(call, row, call.add_products, group, tile, begin, end, numbers, wide, keep, sum_dz, sum_dz_xhat)
            for channel in range(channels):
                sum_dz_xhat[channel] = (sum_dz_xhat[channel] - rest[channel] * sum_dz[channel]) * invstd[channel]
                if call.parts > 1:
                    partial[group, part, 0, first + channel] = sum_dz[channel]
                    partial[group, part, 1, first + channel] = sum_dz_xhat[channel]
                else:
                    sums[group, first + channel] = sum_dz[channel]
                    products[group, first + channel] = sum_dz_xhat[channel]
        if call.applies and at_once:
            prepare_pull(call, row, group, tile, count, sums, products, numbers, wide)
            walk(call, row, call.input_grad, group, tile, begin, end, keep)
        own += 1
        item = take(call, taken, call.reversed and not call.measures)
    if not call.measures:
        return
    if is_last(call, finished, own):
        if call.parts > 1:
            merging.merge_sums(call, partial, sums, products)
        for channel in range(call.channels):
            if call.dweight != 0:
                put(call.dweight, call.dweight_code, channel, products[0, channel])
            if call.dbias != 0:
                put(call.dbias, call.dbias_code, channel, sums[0, channel])
        fetch_add(ready, 1)
    if at_once or not call.applies:
        return
    wait(ready)
    item = take(call, taken_again, call.reversed)
    while item >= 0:
        group, tile, begin, end, part = share(call, item)
        prepare_given(call, row, group, tile, numbers, wide)
        prepare_pull(call, row, group, tile, count, sums, products, numbers, wide)
        walk(call, row, call.input_grad, group, tile, begin, end, keep)
        item = take(call, taken_again, call.reversed)


@inner
def prepare_given(call, row, group, tile, numbers, wide):
    """`prepare` with given statistics."""
    first, channels = span(call, tile)
    read_statistics(call, group, first, wide[0, :channels], wide[1, :channels])
    prepare(call, row, group, tile, numbers, wide)


@inner
def prepare_pull(call, row, group, tile, count, sums, products, numbers, wide):
    """Tells row kernels how the statistics pull at the gradient: dx = dz * scale + d * pull + push."""
    first, channels = span(call, tile)
    rest, invstd, scale = wide[2, :channels], wide[3, :channels], wide[4, :channels]
    pulls, push = wide[8, :channels], wide[9, :channels]
    row[0].pulls, row[0].push = numbers[3].ctypes.data, numbers[4].ctypes.data
    if not call.varies:
        return
    for channel in range(channels):
        number = max(count[group, first + channel], 1.0)
        tilt = products[group, first + channel] / number * invstd[channel]
        pulls[channel] = -tilt * scale[channel]
        push[channel] = (tilt * rest[channel] - sums[group, first + channel] / number) * scale[channel]
    spread_all(call, tile, pulls, numbers[3])
    spread_all(call, tile, push, numbers[4])
