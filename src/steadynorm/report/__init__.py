"""From a study's evidence to what people look at: a ledger, a page, pictures and CSV. Reads records only."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import MissingExtraError
from ..records import EVIDENCE, Evidence, read, replace

if TYPE_CHECKING:
    from rich.console import RenderableType

PAGE = "report.html"


def write(directory: Path) -> list[Path]:
    """Draws the evidence in `directory` into it.

    Writes report.html, and beside it figures/CLAIM-N.png and .svg for each figure, data/CLAIM-N.csv for its numbers and
    data/CLAIM-table-N.csv for each table.

    Args:
        directory: a study's folder, with evidence.json.

    Returns:
        The files written, the page first.

    Raises:
        RecordError: there is no evidence, it is damaged or of another version, or the folder cannot be written to.
        MissingExtraError: the `study` extra is not installed.
    """
    try:
        from . import figure, numbers, page
    except ImportError as error:
        raise MissingExtraError("the report", "study") from error
    evidence = read(directory / EVIDENCE, Evidence)
    written = []
    for drawn in ({PAGE: page.render(evidence)}, figure.files(evidence), numbers.files(evidence)):
        for name, content in drawn.items():
            replace(directory / name, content)
            written.append(directory / name)
    return written


def document(directory: Path, file: Path, figures: Path) -> list[Path]:
    """Writes the evidence in `directory` as a Markdown file, and its pictures into the folder `figures`.

    Returns:
        The files written, the document first.

    Raises:
        RecordError, MissingExtraError: as `write`.
    """
    try:
        from . import figure, markdown
    except ImportError as error:
        raise MissingExtraError("the report", "study") from error
    evidence = read(directory / EVIDENCE, Evidence)
    beside, source = (os.path.relpath(path, file.parent) for path in (figures, directory / EVIDENCE))
    drawn = {figures / Path(name).name: content for name, content in figure.files(evidence).items()}
    drawn = {path: content for path, content in drawn.items() if path.suffix == ".png"}
    text = markdown.render(evidence, Path(beside).as_posix(), Path(source).as_posix())
    for path, content in {file: text.encode(), **drawn}.items():
        replace(path, content)
    return [file, *drawn]


def ledger(directory: Path) -> RenderableType:
    """The evidence in `directory` for a terminal: one claim in full, or a line for each of several.

    Raises:
        RecordError: there is no evidence, or it is damaged or of another version.
        MissingExtraError: the `study` extra is not installed.
    """
    try:
        from .terminal import show
    except ImportError as error:
        raise MissingExtraError("the report", "study") from error
    return show(read(directory / EVIDENCE, Evidence))
