"""steadynorm: batch normalization as complete, trustworthy software for PyTorch."""

from typing import TYPE_CHECKING, Any

from . import functional, nn, runtime, statistics, surgery
from .conventions import from_flax, from_keras, to_flax, to_keras
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
from .statistics import (
    accumulate_statistics,
    adapt_,
    combine,
    guard_statistics,
    hold_statistics,
    recalibrate_,
    reduce_statistics_,
    weigh_examples,
)
from .surgery import convert_, fold, freeze_, fuse_activations_, insert_, unfreeze_

if TYPE_CHECKING:
    from .study.compare import compare

__version__ = "0.1.0"

__all__ = [
    "BatchNorm1d",
    "BatchNorm2d",
    "BatchNorm3d",
    "BatchRenorm1d",
    "BatchRenorm2d",
    "BatchRenorm3d",
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
    "adapt_",
    "combine",
    "compare",
    "convert_",
    "fold",
    "freeze_",
    "from_flax",
    "from_keras",
    "functional",
    "fuse_activations_",
    "guard_statistics",
    "hold_statistics",
    "insert_",
    "nn",
    "recalibrate_",
    "reduce_statistics_",
    "runtime",
    "statistics",
    "surgery",
    "to_flax",
    "to_keras",
    "unfreeze_",
    "weigh_examples",
]


def __getattr__(name: str) -> Any:
    """`compare` comes when it is asked for: studies are a fifth of the import."""
    if name == "compare":
        from .study.compare import compare

        return compare
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
