"""From a study's records to what people look at: a table, figures and a page. Reads records only."""

from __future__ import annotations

from pathlib import Path

from ..records import read, replace
from . import figure, page

PAGE, PICTURE = "report.html", "curves.png"


def write(directory: Path) -> list[Path]:
    """Draws the records in `directory` into it, and returns the files written: the page and the picture.

    Raises:
        RecordError: there are no records, they are damaged or of another version, or the folder cannot be written to.
    """
    records = read(directory)
    replace(directory / PAGE, page.render(records).encode())
    replace(directory / PICTURE, figure.draw(records))
    return [directory / PAGE, directory / PICTURE]
