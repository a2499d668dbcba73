"""What is written: pictures looked at, numbers read back, nothing in the evidence run, and what goes wrong named."""

from __future__ import annotations

import csv
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from steadynorm import records, report
from steadynorm.errors import RecordError
from steadynorm.records import EVIDENCE, Evidence
from steadynorm.report.styles import COLOURS

from ..support.study import EVIL, evil_evidence, one_claim, three_claims


def written(directory: Path, evidence: Evidence) -> list[Path]:
    records.write(directory / EVIDENCE, evidence)
    return report.write(directory)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("three")
    written(directory, three_claims())
    return directory


def pixels(path: Path, colour: str) -> int:
    """How many pixels of a picture have this colour."""
    from matplotlib.image import imread

    rgb = [int(colour[i : i + 2], 16) for i in (1, 3, 5)]
    found = (imread(path)[..., :3] * 255).round().astype(int)
    return int((np.abs(found - rgb).max(-1) <= 2).sum())


def rows(path: Path) -> list[list[str]]:
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.reader(file))


def test_every_figure_and_table_is_written_and_the_page_comes_first(folder: Path, tmp_path: Path) -> None:
    """Of one of the folder's claims, whose files are the same bytes again."""
    files = [path.relative_to(tmp_path).as_posix() for path in written(tmp_path, one_claim())]
    assert files == [
        "report.html",
        *("figures/cnn-1.png", "figures/cnn-1.svg", "figures/cnn-2.png", "figures/cnn-2.svg"),
        *("data/cnn-1.csv", "data/cnn-2.csv", "data/cnn-table-1.csv"),
    ]
    for file in files[1:]:
        assert (tmp_path / file).read_bytes() == (folder / file).read_bytes()


def test_pictures_show_every_series(folder: Path) -> None:
    for colour in COLOURS[:2]:
        assert pixels(folder / "figures/cnn-1.png", colour) > 500
        assert pixels(folder / "figures/cnn-2.png", colour) > 300
    for colour in COLOURS:
        assert pixels(folder / "figures/norms-1.png", colour) > 100


def test_bars_named_as_series_have_their_colours(folder: Path) -> None:
    """Two rows of two bars, and one of three: the last, of no series, is grey."""
    batch, ghost, grey = (pixels(folder / "figures/norms-1.png", c) for c in (*COLOURS[:2], "#5f7488"))
    assert min(batch, ghost) > 2 * grey > 10_000


def test_csv_holds_every_number(folder: Path) -> None:
    found = rows(folder / "data/cnn-1.csv")
    assert found[0] == ["panel", "series", "x", "mean", "low", "high"]
    assert len(found) == 1 + 16
    assert found[1] == ["Accuracy", "without BN", "100", "0.5", "0.4", "0.6"]
    assert ["Loss", "with BN", "200", "", "", ""] in found
    assert ["By group", "with BN", "ghost 4", "0.5", "0.4", "0.6"] in rows(folder / "data/cnn-2.csv")
    assert rows(folder / "data/norms-1.csv")[2] == ["Gradient norm", "batch", "2", *3 * ["0.5623413251903491"]]
    assert rows(folder / "data/cnn-table-1.csv")[1:] == [
        ["without BN", "0.75", "0.000123456", "1234567.0"],
        ["with BN", "0.93", "", "12.0"],
    ]


def test_nothing_in_the_evidence_is_run(tmp_path: Path) -> None:
    page, *others = written(tmp_path, evil_evidence())
    text = page.read_text()
    assert EVIL not in text
    assert text.count("&lt;script&gt;alert(1)") > 30
    assert len(set(others)) == len(others) == 2 * (2 + 2)
    assert {path.parent.parent for path in others} == {tmp_path}


def test_no_evidence_is_an_error_that_writes_nothing(tmp_path: Path) -> None:
    for draw in (report.write, report.ledger):
        with pytest.raises(RecordError, match=r"no evidence\.json"):
            draw(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_unwritable_page(tmp_path: Path) -> None:
    (tmp_path / "report.html").mkdir()
    with pytest.raises(RecordError, match="cannot write to"):
        written(tmp_path, one_claim())


WITHOUT = """
import sys
from pathlib import Path
sys.modules.update(dict.fromkeys(["matplotlib", "plotly", "jinja2", "rich"]))
from steadynorm import report
from steadynorm.errors import MissingExtraError
for draw in (report.write, report.ledger):
    try:
        draw(Path("nowhere"))
    except MissingExtraError as error:
        print(error)
"""


def test_without_the_extra_it_is_named() -> None:
    process = subprocess.run([sys.executable, "-c", WITHOUT], capture_output=True, text=True, check=True)
    assert process.stdout.splitlines() == 2 * ["the report needs optional packages: pip install 'steadynorm[study]'"]
