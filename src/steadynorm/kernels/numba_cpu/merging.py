"""What is done with a tensor's statistics: those of parts merged, running ones moved."""

from __future__ import annotations

import math

from .coefficients import put, value
from .compiling import inner

TINY = 1e-18
"""1 / standard deviation below which float32 does not hold the variance."""
FAR = 8
"""Standard deviations from 0 at which a mean begins to cost float32 accuracy that matters."""


@inner
def merge_moments(call, partial, counts, count, means, m2s):
    """Moments of each group's parts → of the group (Chan et al. 1983), in the order of the parts."""
    for group in range(call.groups):
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


@inner
def merge_sums(call, partial, sum_dz, sum_dz_xhat):
    """Sums of each group's parts → of the group."""
    for group in range(call.groups):
        sum_dz[group, :] = 0
        sum_dz_xhat[group, :] = 0
        for part in range(call.parts):
            for channel in range(call.channels):
                sum_dz[group, channel] += partial[group, part, 0, channel]
                sum_dz_xhat[group, channel] += partial[group, part, 1, channel]


@inner
def all_finite(mean, m2):
    for channel in range(len(mean)):
        if not (math.isfinite(mean[channel]) and math.isfinite(m2[channel])):
            return False
    return True


@inner
def update_running(call, count, mean, m2):
    """Moves running statistics towards a batch's, the variance divided by n - 1; rounded once.

    A channel of fewer than two values keeps its own.
    """
    for channel in range(call.channels):
        spare = count[channel] - 1
        if spare > 0:
            old_mean = value(call.running_mean, call.running_code, channel, 0.0)
            old_var = value(call.running_var, call.running_code, channel, 1.0)
            new_mean = old_mean * (1 - call.momentum) + mean[channel] * call.momentum
            new_var = old_var * (1 - call.momentum) + m2[channel] / spare * call.momentum
            put(call.running_mean, call.running_code, channel, new_mean)
            put(call.running_var, call.running_code, channel, new_var)


@inner
def harmless(mean, invstd, eps):
    """Whether no mean is far above its standard deviation, and no variance far below eps or beyond float32.

    Then x * scale + (bias - mean * scale) in float32 is as exact as (x - mean) * scale + bias, and 1 / invstd² - eps as
    the variance.
    """
    for channel in range(len(mean)):
        small = TINY < invstd[channel] and invstd[channel] * invstd[channel] * eps <= 0.5
        if not (small and abs(mean[channel]) * invstd[channel] <= FAR):
            return False
    return True


@inner
def harmless_running(mean, var, eps):
    """The same of running statistics, whose variance is known."""
    for channel in range(len(mean)):
        if not mean[channel] * mean[channel] <= FAR * FAR * (var[channel] + eps):
            return False
    return True


@inner
def update_by_invstd(running_mean, running_var, mean, invstd, count, eps, momentum):
    """As `update_running`, from what torch keeps of a batch."""
    for channel in range(len(mean)):
        deviation = 1 / float(invstd[channel])
        var = (deviation * deviation - eps) * count / (count - 1)
        running_mean[channel] = running_mean[channel] * (1 - momentum) + mean[channel] * momentum
        running_var[channel] = running_var[channel] * (1 - momentum) + var * momentum
