"""Control of running statistics: while a model trains, and after it."""

from .accumulate import accumulate_statistics
from .adapt import adapt_
from .combine import combine
from .guard import guard_statistics
from .hold import hold_statistics
from .recalibrate import recalibrate_
from .reduce import reduce_statistics_
from .shifts import Shift, Shifts
from .weigh import weigh_examples

__all__ = [
    "Shift",
    "Shifts",
    "accumulate_statistics",
    "adapt_",
    "combine",
    "guard_statistics",
    "hold_statistics",
    "recalibrate_",
    "reduce_statistics_",
    "weigh_examples",
]
