"""steadynorm: batch normalization as complete, trustworthy software for PyTorch."""

from . import functional, nn, runtime, statistics
from .errors import NonFiniteStatisticsWarning, SteadynormError
from .moments import Moments
from .nn import (
    BatchNorm1d,
    BatchNorm2d,
    BatchNorm3d,
    BatchRenorm1d,
    BatchRenorm2d,
    BatchRenorm3d,
    FrozenBatchNorm,
    GhostBatchNorm1d,
    GhostBatchNorm2d,
    GhostBatchNorm3d,
    SyncBatchNorm,
    WhiteningBatchNorm,
)
from .statistics import accumulate_statistics, guard_statistics, hold_statistics, reduce_statistics_
from .surgery.fold import Folded, fold

__version__ = "0.1.0"

__all__ = [
    "BatchNorm1d",
    "BatchNorm2d",
    "BatchNorm3d",
    "BatchRenorm1d",
    "BatchRenorm2d",
    "BatchRenorm3d",
    "Folded",
    "FrozenBatchNorm",
    "GhostBatchNorm1d",
    "GhostBatchNorm2d",
    "GhostBatchNorm3d",
    "Moments",
    "NonFiniteStatisticsWarning",
    "SteadynormError",
    "SyncBatchNorm",
    "WhiteningBatchNorm",
    "__version__",
    "accumulate_statistics",
    "fold",
    "functional",
    "guard_statistics",
    "hold_statistics",
    "nn",
    "reduce_statistics_",
    "runtime",
    "statistics",
]
