"""The two passes over a tensor: each thread takes items, walks over their rows, and has row kernels do the arithmetic.

What belongs to the channels of a tile is float64. `numbers` and `wide` are scratch, lines as wide as a row, of the
numbers that row kernels compute with and of float64; `keep` is one line of the mask.
"""

from __future__ import annotations

import math

from .coefficients import read_statistics, scales
from .compiling import call_kernel, inner
from .places import BLOCK, alike, gather, keep_row, locate, row_width, settle, share, span, spread, take


@inner
def walk(call, row, kernel, group, tile, begin, end, keep):
    """Calls a row kernel for all rows; gives how many values of a channel are real."""
    channels, count = span(call, tile)[1], 0
    place = begin
    while place < end:
        start, width = locate(call, group, tile, place)
        rows = alike(call, group, tile, place, end)
        count += rows * keep_row(call, group, tile, place, width, channels, keep)
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
def forward_items(call, counted, means, m2s, partial, counts, row, numbers, wide, keep):
    """Takes items until none is left: their moments, their output, or both while they are in cache."""
    item = take(call)
    while item >= 0:
        group, tile, begin, end, part = share(call, item)
        first, channels = span(call, tile)
        mean, var = wide[0, :channels], wide[1, :channels]
        if call.measures:
            count = measure(call, row, group, tile, begin, end, numbers, wide, keep, mean, var)
            if call.parts > 1:
                counts[group, part] = count
            for channel in range(channels):
                if call.parts > 1:
                    partial[group, part, 0, first + channel] = mean[channel]
                    partial[group, part, 1, first + channel] = var[channel]
                else:
                    counted[group, first + channel] = count
                    means[group, first + channel] = mean[channel]
                    m2s[group, first + channel] = var[channel]
                var[channel] /= max(count, 1)
        else:
            read_statistics(call, group, first, mean, var)
        if call.applies:
            prepare(call, row, group, tile, numbers, wide)
            walk(call, row, call.apply, group, tile, begin, end, keep)
        item = take(call)


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
    spread_all(call, tile, mean, numbers[0])
    spread_all(call, tile, scale, numbers[1])
    spread_all(call, tile, shift, numbers[2])
    row[0].mean, row[0].scale, row[0].shift = numbers[0].ctypes.data, numbers[1].ctypes.data, numbers[2].ctypes.data


@inner
def backward_items(call, count, sums, products, partial, row, numbers, wide, keep):
    """Takes items until none is left: the sums over their gradients, dx, or both while they are in cache."""
    item = take(call)
    while item >= 0:
        group, tile, begin, end, part = share(call, item)
        first, channels = span(call, tile)
        mean, var, rest, invstd = wide[0, :channels], wide[1, :channels], wide[2, :channels], wide[3, :channels]
        sum_dz, sum_dz_xhat = wide[6, :channels], wide[7, :channels]
        read_statistics(call, group, first, mean, var)
        prepare(call, row, group, tile, numbers, wide)
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
        elif call.varies:
            for channel in range(channels):
                sum_dz[channel] = sums[group, first + channel]
                sum_dz_xhat[channel] = products[group, first + channel]
        if call.applies:
            prepare_pull(call, row, group, tile, count, numbers, wide)
            walk(call, row, call.input_grad, group, tile, begin, end, keep)
        item = take(call)


@inner
def prepare_pull(call, row, group, tile, count, numbers, wide):
    """Tells row kernels how the statistics pull at the gradient: dx = dz * scale + d * pull + push."""
    first, channels = span(call, tile)
    rest, invstd, scale = wide[2, :channels], wide[3, :channels], wide[4, :channels]
    sum_dz, sum_dz_xhat, pulls, push = wide[6, :channels], wide[7, :channels], wide[8, :channels], wide[9, :channels]
    row[0].pulls, row[0].push = numbers[3].ctypes.data, numbers[4].ctypes.data
    if not call.varies:
        return
    for channel in range(channels):
        number = max(count[group, first + channel], 1.0)
        tilt = sum_dz_xhat[channel] / number * invstd[channel]
        pulls[channel] = -tilt * scale[channel]
        push[channel] = (tilt * rest[channel] - sum_dz[channel] / number) * scale[channel]
    spread_all(call, tile, pulls, numbers[3])
    spread_all(call, tile, push, numbers[4])
