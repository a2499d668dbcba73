"""Every claim says what it must, runs, keeps its runs apart, and judges what there is, whatever is missing."""

from __future__ import annotations

import importlib
import json
from pathlib import Path

import pytest

from steadynorm.errors import InvalidArgumentError
from steadynorm.records import CRASHED, SUPPORTED, UNDECIDED, Run, place, read
from steadynorm.study import claims, study
from steadynorm.study.claim import Claim
from steadynorm.study.results import Results
from steadynorm.study.runner import Engine

FOLDER = Path(claims.__file__).parent
ALL = claims.find(["all"])
EACH = pytest.mark.parametrize("claim", ALL.values(), ids=list(ALL))


def test_every_file_is_a_claim_of_its_name() -> None:
    files = {path.stem.replace("_", "-") for path in FOLDER.glob("[a-z]*.py")}
    assert files == set(claims.NAMES) == set(ALL)
    assert [claim.name for claim in ALL.values()] == list(claims.NAMES)


@EACH
def test_it_says_what_it_must(claim: Claim) -> None:
    for field in ("question", "source", "factors", "equal", "measure", "rule", "would_change"):
        assert len(getattr(claim, field)) > 8, field
    assert claim.question.endswith("?")
    assert set(claim.presets) == {"smoke", "quick", "full"}
    assert claim.presets["quick"].seeds >= 3
    assert claim.presets["full"].seeds >= 3


@EACH
@pytest.mark.parametrize("preset", ["smoke", "quick", "full"])
def test_its_runs_are_apart(claim: Claim, preset: str) -> None:
    cells = claim.cells(preset)
    assert len({cell.key for cell in cells}) == len(cells) > 0
    assert all(json.loads(json.dumps(cell.factors)) == cell.factors for cell in cells)
    assert {cell.claim for cell in cells} == {claim.name}
    if claim.data:
        assert {cell.settings["data"] for cell in cells} <= set(claim.data)
        chosen = claim.data[-1]
        assert {cell.settings["data"] for cell in claim.cells(preset, data=chosen)} == {chosen}
    assert len(claim.cells(preset, seeds=1)) * claim.presets[preset].seeds == len(cells)


@EACH
def test_the_quick_preset_downloads_nothing(claim: Claim) -> None:
    for preset in ("smoke", "quick"):
        assert {cell.settings.get("data", "digits") for cell in claim.cells(preset)} == {"digits"}


@EACH
def test_only_full_presets_learn_from_all_of_a_larger_data_set(claim: Claim) -> None:
    for preset, images in {"smoke": {1000}, "quick": {1000}, "full": {None}}.items():
        for data in {"mnist", "cifar10"} & set(claim.data):
            assert {cell.settings.get("images") for cell in claim.cells(preset, data=data)} == images
        assert {cell.settings.get("images") for cell in claim.cells(preset, data="digits")} == {None}


@EACH
def test_a_smoke_run(claim: Claim, tmp_path: Path) -> None:
    """All of it, through the runner, to evidence that can be kept; no run crashes; one seed supports nothing."""
    cells = claim.cells("smoke")
    where = {"preset": "smoke", "command": "c", "engine": Engine(jobs=1)}
    section = study.run({claim.name: claim}, cells, tmp_path, **where).sections[0]  # type: ignore[arg-type]
    runs = [read(place(tmp_path, cell), Run) for cell in cells]
    assert [(run.cell.label, run.message) for run in runs if run.status == CRASHED] == []
    assert section.runs["missing"] == 0
    assert section.effects
    assert any(effect.decides and effect.estimate is not None for effect in section.effects)
    assert section.figures
    assert all(line.x for figure in section.figures for panel in figure.panels for line in panel.lines)
    alone = claim.judge(Results([run for run in runs if run.cell.seed == 0]))
    assert alone.verdict != SUPPORTED
    again = study.run({claim.name: claim}, cells[:1], tmp_path / "again", **where)  # type: ignore[arg-type]
    assert again.sections[0].seeds == 1
    assert read(place(tmp_path / "again", cells[0]), Run).timeless() == runs[0].timeless()


@EACH
def test_no_verdict_without_runs_or_from_crashes(claim: Claim) -> None:
    cells = claim.cells("quick")
    for runs in ([], [Run(cell, CRASHED, "for want of memory") for cell in cells]):
        judgement = claim.judge(Results(runs))
        assert judgement.verdict == UNDECIDED
        assert all(effect.estimate is None for effect in judgement.effects)


def test_names_that_are_none() -> None:
    with pytest.raises(InvalidArgumentError, match=r"expected claims of cnn, .* or all, got 'magic'"):
        claims.find(["cnn", "magic"])
    with pytest.raises(InvalidArgumentError, match="cnn: expected a preset of smoke, quick, full, got 'own'"):
        ALL["cnn"].cells("own")
    assert list(claims.find(["norms", "cnn", "norms"])) == ["norms", "cnn"]


def test_claims_are_found_when_asked_for() -> None:
    """One claim does not import the others."""
    assert importlib.import_module("steadynorm.study.claims.cnn").CLAIM is ALL["cnn"]
