"""Control of running statistics: while a model trains, and after it."""

from .accumulate import accumulate_statistics
from .combine import combine
from .guard import guard_statistics
from .hold import hold_statistics
from .reduce import reduce_statistics_

__all__ = ["accumulate_statistics", "combine", "guard_statistics", "hold_statistics", "reduce_statistics_"]
