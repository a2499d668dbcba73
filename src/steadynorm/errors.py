"""Every exception steadynorm raises on purpose, and its warning.

Each exception derives from the built-in that torch raises in the same situation, so ``except ValueError`` around a
torch layer keeps working around ours; all share `SteadynormError`. Messages say who, expected, got and what to do.
"""


class SteadynormError(Exception):
    """Base of every exception raised by steadynorm."""


class InvalidInputError(SteadynormError, ValueError):
    """An input whose number of dimensions or values per channel cannot be normalized."""


class InvalidArgumentError(SteadynormError, ValueError):
    """A setting outside its range, such as a negative eps."""


class ChannelMismatchError(SteadynormError, RuntimeError):
    """A negative channel count, or a tensor whose channel count, shape or dtype does not fit the layer."""


class UnsupportedDtypeError(SteadynormError, NotImplementedError):
    """An input dtype that has no normalization, such as an integer one."""


class BatchedStatisticsError(SteadynormError, RuntimeError):
    """Running statistics shared by the examples of a ``vmap`` cannot be updated."""


class SynchronizationError(SteadynormError, RuntimeError):
    """Ranks could not exchange their statistics."""


class NonFiniteStatisticsWarning(UserWarning):
    """A batch with an infinite or nan mean or variance reached a layer that keeps running statistics."""


class RecordError(SteadynormError, ValueError):
    """Records of a study or a benchmark that are missing, damaged, of another version, or of other settings."""


class DataError(SteadynormError, ValueError):
    """A data set that is missing, truncated or not what its name says."""


class CheckpointError(SteadynormError, ValueError):
    """A file of weights that is missing, damaged, not weights, or another model's."""


class ModelError(SteadynormError, ValueError):
    """A model that cannot be changed or measured as asked; it is as before."""


class FoldError(SteadynormError, RuntimeError):
    """A folded model could not be proven to compute what the original does; the original is as before."""


class MissingExtraError(SteadynormError, ImportError):
    """An optional dependency is not installed; the message names the extra that brings it."""

    def __init__(self, what: str, extra: str) -> None:
        super().__init__(f"{what} needs optional packages: pip install 'steadynorm[{extra}]'")
