"""Merges what the parts of a tile gave; plain loops over channels, which vectorize."""

from __future__ import annotations

import math

from .compiling import inner
from .places import take


@inner
def merge_moments(call, partial, counts, count, means, m2s):
    """Moments of each group's parts → of the group (Chan et al. 1983), in the order of the parts."""
    group = take(call)
    while group >= 0:
        mean, m2 = means[group], m2s[group]
        for channel in range(call.channels):
            mean[channel] = partial[group, 0, 0, channel]
            m2[channel] = partial[group, 0, 1, channel]
        total = counts[group, 0]
        for part in range(1, call.parts):
            more = counts[group, part]
            total += more
            share = more / max(total, 1.0)
            weight = share * (total - more)
            for channel in range(call.channels):
                distance = partial[group, part, 0, channel] - mean[channel]
                if math.isfinite(distance):
                    mean[channel] += distance * share
                else:
                    mean[channel] = mean[channel] * (1 - share) + partial[group, part, 0, channel] * share
                m2[channel] += partial[group, part, 1, channel] + distance * distance * weight
        count[group, :] = total
        group = take(call)


@inner
def merge_sums(call, partial, sum_dz, sum_dz_xhat):
    """Sums of each group's parts → of the group."""
    group = take(call)
    while group >= 0:
        sum_dz[group, :] = 0
        sum_dz_xhat[group, :] = 0
        for part in range(call.parts):
            for channel in range(call.channels):
                sum_dz[group, channel] += partial[group, part, 0, channel]
                sum_dz_xhat[group, channel] += partial[group, part, 1, channel]
        group = take(call)
