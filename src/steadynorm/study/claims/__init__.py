"""The claims, one file each."""

from __future__ import annotations

from collections.abc import Iterable
from importlib import import_module

from ...errors import InvalidArgumentError
from ..claim import Claim

NAMES = (
    "cnn",
    "placement",
    "conv1d",
    "conv2d",
    "activations",
    "learning-rate",
    "initialization",
    "gradient-flow",
    "scale-invariance",
    "regularization",
    "batch-size",
    "inception",
    "sequence",
    "inference",
    "norms",
    "small-clients",
    "whitening",
    "landscape",
)
"""In the order of the report."""


def find(names: Iterable[str]) -> dict[str, Claim]:
    """The claims of these names; "all" for every one.

    Raises:
        InvalidArgumentError (a ValueError): there is none of that name.
    """
    wanted = list(names)
    if "all" in wanted:
        wanted = list(NAMES)
    for name in wanted:
        if name not in NAMES:
            raise InvalidArgumentError(f"study: expected claims of {', '.join(NAMES)} or all, got {name!r}.")
    return {name: import_module(f".{name.replace('-', '_')}", __name__).CLAIM for name in dict.fromkeys(wanted)}
