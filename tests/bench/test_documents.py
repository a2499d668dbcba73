"""Documents filled in from a record: what is marked is written, the rest stays, and the committed ones are in step."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from steadynorm.bench import blocks
from steadynorm.bench.documents import DocumentError, fill, outside
from steadynorm.bench.record import Benchmark, read

from ..support.command import steadynorm
from .rows import full

ROOT = Path(__file__).parents[2]
COMMITTED = ROOT / "benchmarks" / "results" / "benchmark.json"
PAGES = [ROOT / "README.md", ROOT / "docs" / "benchmarks.md"]
PAGE = pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)


@pytest.mark.parametrize("name", blocks.BLOCKS)
def test_every_block_says_something(name: str) -> None:
    """Of a full record figures; of an empty one that there are none, or nothing false."""
    block = blocks.BLOCKS[name]
    said = block(full())
    assert blocks.NOTHING not in said
    assert re.search(r"\d", said) or name == "disturbed"  # nothing was
    assert max(map(len, said.splitlines())) <= 120 or "|" in said
    assert block(Benchmark({}))


@pytest.mark.parametrize("name", [name for name in blocks.BLOCKS if name != "frameworks"])
def test_no_line_of_a_paragraph_is_taken_for_a_list(name: str) -> None:
    lines = blocks.BLOCKS[name](full()).splitlines()
    assert [line for line in lines if re.match(r" *([+*]|\d+[.)]) ", line)] == []


def test_the_readme_says_it_in_sentences() -> None:
    speed = " ".join(blocks.BLOCKS["readme-speed"](full()).split())
    for said in (
        "the 1 normalizations of a ResNet-50 with their ReLUs and additions (batch 16, 160 pixels) take",
        "3 ms where torch's layers with ReLU in place take 8 ms channels first (2.50 times as fast), and 3 ms where",
        "The slowest of these layers beside torch's is (16, 64, 80, 80) channels last, relu: 1.50 times as fast.",
        "as geometric means over ResNet-50's 12 shapes at batch 32. Forward and backward in float32: 2.50 times",
        "of 24 comparisons with torch's layer, with and without ReLU in place, 0 are below 0.95 times as fast.",
        "(60, 100) forward and backward is 1.50 times as fast as torch's layer, and with ReLU 1.50 times.",
        "takes 12% longer than without any normalization channels first, with torch's layers 20% longer.",
        "needs 0.20 s and 8.0 MB of memory more than with torch's layer",
    ):
        assert said in speed
    exact = " ".join(blocks.BLOCKS["readme-exactness"](full()).split())
    assert "around a mean of 10,000, (32, 64, 112, 112) channels last, the largest error of torch's layer" in exact
    assert "is 3.9, where the largest true value is 5.3. The largest error of this layer is 8·10⁻⁷." in exact


def test_only_what_is_marked_is_written() -> None:
    text = (
        "# T\n\n<!-- bench: install -->\nold 1.5\n<!-- /bench -->\n\nmine\n<!-- bench: fresh --> <!-- /bench -->\nend\n"
    )
    filled = fill("a.md", text, full())
    assert filled.startswith("# T\n\n<!-- bench: install -->\n`pip install .`") and "old 1.5" not in filled
    assert "<!-- /bench -->\n\nmine\n<!-- bench: fresh -->\n| fresh process |" in filled and filled.endswith("\nend\n")
    assert fill("a.md", filled, full()) == filled
    assert outside(filled) == outside(text) == "# T\n\n\n\nmine\n\nend\n"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("nothing", "a.md has no `<!-- bench: NAME -->`: expected a document that says where figures go"),
        (
            "<!-- bench: cald --> <!-- /bench -->",
            r"a.md: expected one of machine, cold, .* in <!-- bench: NAME -->, got 'cald'",
        ),
        ("<!-- bench: cold -->", "a.md: expected <!-- /bench --> after <!-- bench: cold -->, got none"),
        (
            "<!-- bench: cold --><!-- bench: cold --><!-- /bench -->",
            "expected <!-- /bench --> after <!-- bench: cold -->",
        ),
        ("<!-- /bench -->", "expected one of .* got '/bench'"),
    ],
)
def test_wrong_marks_are_refused(text: str, message: str) -> None:
    with pytest.raises(DocumentError, match=message):
        fill("a.md", text, full())


class Documents:
    """A record and a document in a folder, and the command that fills it in."""

    def __init__(self, folder: Path, patch: pytest.MonkeyPatch) -> None:
        self.record, self.page, self.patch = folder / "benchmark.json", folder / "page.md", patch
        self.page.write_text("<!-- bench: install -->\n<!-- /bench -->\n")
        self.record.write_bytes(full().encode())

    def __call__(self, *more: str) -> int | str | None:
        out = str(self.record.parent)
        return steadynorm(
            self.patch, "bench", "--out", out, "--markdown", str(self.page), "--figures", f"{out}/p", *more
        )


@pytest.fixture
def documents(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Documents:
    return Documents(tmp_path, monkeypatch)


def test_the_command_measures_nothing(documents: Documents, capsys: pytest.CaptureFixture[str]) -> None:
    before = documents.record.read_bytes()
    assert documents() == 0
    picture = documents.record.parent / "p" / "benchmark.png"
    assert f"wrote {documents.page}, {picture}" in capsys.readouterr().out
    assert "takes 4 s" in documents.page.read_text() and picture.read_bytes().startswith(b"\x89PNG")
    assert documents.record.read_bytes() == before


def test_one_wrong_document_and_none_is_written(documents: Documents, capsys: pytest.CaptureFixture[str]) -> None:
    other = documents.page.with_name("other.md")
    other.write_text("no marks")
    before = documents.page.read_text()
    assert documents("--markdown", str(other)) == 2
    assert f"{other} has no `<!-- bench: NAME -->`" in capsys.readouterr().err
    assert documents.page.read_text() == before and not (documents.record.parent / "p").exists()


@pytest.mark.parametrize(
    ("gone", "message"),
    [
        ("record", "no benchmark.json in {folder}. Run `steadynorm bench --out {folder}` first."),
        ("page", "cannot read {folder}"),
    ],
)
def test_what_is_missing_is_said(
    documents: Documents, capsys: pytest.CaptureFixture[str], gone: str, message: str
) -> None:
    getattr(documents, gone).unlink()
    assert documents() == 2
    assert message.format(folder=documents.record.parent) in capsys.readouterr().err


def test_figures_without_a_document(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert steadynorm(monkeypatch, "bench", "--figures", "f") == 2
    assert "expected --markdown DOCUMENT with --figures, got none" in capsys.readouterr().err


@PAGE
def test_the_committed_documents_are_in_step_with_the_record(page: Path) -> None:
    """`make docs` would change nothing."""
    found, text = read(COMMITTED), page.read_text(encoding="utf-8")
    assert found is not None
    assert fill(page.name, text, found) == text


@PAGE
def test_figures_come_from_the_record_only(page: Path) -> None:
    """What the page says itself about speed has no ratio, percentage or time: only `make docs` writes those."""
    text = outside(page.read_text(encoding="utf-8"))
    if page.name == "README.md":
        text = text[text.index("## Speed") : text.index("## Install")]
    assert re.findall(r"\d+\.\d+|\d+ ?%|\d+ (?:times|ms|µs|seconds|MB)\b", text.replace("6 MB or more", "")) == []
