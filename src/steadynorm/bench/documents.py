"""Documents whose figures come from a benchmark's record: what stands between two marks is written anew.

A mark is `<!-- bench: NAME -->`, and `<!-- /bench -->` ends what it names; `blocks.BLOCKS` are the names.
"""

from __future__ import annotations

import re
from pathlib import Path

from ..errors import RecordError, SteadynormError
from .blocks import BLOCKS
from .record import Benchmark, read
from .show import draw

PICTURE = "benchmark.png"
_MARK = re.compile(r"<!-- (bench: [^\n]*?|/bench) -->")


class DocumentError(SteadynormError, ValueError):
    """A document that cannot be filled in; it is left as it is."""


def written(source: Path, files: list[Path], figures: Path) -> dict[Path, bytes]:
    """The documents with the figures of a record, and its picture; nothing is written yet.

    Args:
        source: the record, a file.
        files: documents with marks.
        figures: folder of the picture.

    Returns:
        By path, what belongs there.

    Raises:
        RecordError: there is no such record, or it is damaged.
        DocumentError: a document cannot be read or its marks are wrong.
    """
    benchmark = read(source)
    if benchmark is None:
        raise RecordError(f"no {source.name} in {source.parent}. Run `steadynorm bench --out {source.parent}` first.")
    content = {file: fill(str(file), _text(file), benchmark).encode() for file in files}
    return {**content, figures / PICTURE: draw(benchmark)}


def fill(name: str, text: str, benchmark: Benchmark) -> str:
    """The text of a document, with the figures of `benchmark`.

    Raises:
        DocumentError: a mark has another name, is not ended, or nothing is marked.
    """
    parts, end = [], 0
    marks = list(_MARK.finditer(text))
    if not marks:
        raise DocumentError(f"{name} has no `<!-- bench: NAME -->`: expected a document that says where figures go.")
    for begins, ends in zip(marks[::2], [*marks[1::2], None], strict=False):
        block = begins[1].removeprefix("bench: ")
        if block not in BLOCKS:
            known = ", ".join(BLOCKS)
            raise DocumentError(f"{name}: expected one of {known} in <!-- bench: NAME -->, got {block!r}.")
        if ends is None or ends[1] != "/bench":
            raise DocumentError(f"{name}: expected <!-- /bench --> after <!-- bench: {block} -->, got none.")
        parts += [text[end : begins.end()], "\n", BLOCKS[block](benchmark), "\n", ends[0]]
        end = ends.end()
    return "".join([*parts, text[end:]])


def outside(text: str) -> str:
    """What a document says by itself, without what is filled in."""
    parts, end = [], 0
    marks = list(_MARK.finditer(text))
    for begins, ends in zip(marks[::2], marks[1::2], strict=False):
        parts.append(text[end : begins.start()])
        end = ends.end()
    return "".join([*parts, text[end:]])


def _text(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        raise DocumentError(
            f"cannot read {file}: {error}. Name a document with `<!-- bench: NAME -->` marks."
        ) from error
