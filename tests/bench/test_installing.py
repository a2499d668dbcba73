"""How long an installation takes: of a tiny package, and what is said where there is none."""

from __future__ import annotations

from pathlib import Path

import pytest

from steadynorm.bench import installing
from steadynorm.bench.processes import NotMeasuredError

PYPROJECT = """
[build-system]
requires = ["setuptools"]
build-backend = "setuptools.build_meta"

[project]
name = "tiny"
version = "1"
"""


def test_the_source_is_left_as_it_was(tmp_path: Path) -> None:
    (tmp_path / "pyproject.toml").write_text(PYPROJECT)
    (tmp_path / "tiny.py").write_text("")
    (row,) = installing.measure(tmp_path)
    assert row["seconds"] > 0
    assert {path.name for path in tmp_path.iterdir()} == {"pyproject.toml", "tiny.py"}


def test_what_cannot_be_built_is_said(tmp_path: Path) -> None:
    (tmp_path / "pyproject.toml").write_text(PYPROJECT.replace("setuptools.build_meta", "no_such_backend"))
    with pytest.raises(NotMeasuredError, match=r"pip install .* was not timed: .*setuptools must be installed here"):
        installing.measure(tmp_path)


def test_nothing_is_installed_unless_asked() -> None:
    assert installing.keys(None) == []
    assert installing.keys(Path())
