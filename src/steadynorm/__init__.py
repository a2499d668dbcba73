"""steadynorm: batch normalization as complete, trustworthy software for PyTorch."""

from . import functional, nn, runtime
from .errors import SteadynormError
from .moments import Moments
from .nn import BatchNorm1d, BatchNorm2d, BatchNorm3d

__version__ = "0.1.0"

__all__ = [
    "BatchNorm1d",
    "BatchNorm2d",
    "BatchNorm3d",
    "Moments",
    "SteadynormError",
    "__version__",
    "functional",
    "nn",
    "runtime",
]
