"""The command line in this process."""

from __future__ import annotations

import sys

import pytest

from steadynorm import cli


def steadynorm(patch: pytest.MonkeyPatch, *arguments: str) -> int | str | None:
    """The exit code of that command."""
    patch.setattr(sys, "argv", ["steadynorm", *arguments])
    try:
        cli.main()
    except SystemExit as stop:
        return stop.code
    return 0
