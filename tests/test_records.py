"""Records survive a round trip and a failed write, damaged ones are refused by name, and runs are found by cell."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from steadynorm import records
from steadynorm.errors import RecordError
from steadynorm.records import EVIDENCE, STUDY, Cell, Evidence, Run, Study

from .support.study import a_cell, a_run, a_section, a_study, one_claim, three_claims


@pytest.mark.parametrize("record", [three_claims(), a_study(a_cell(), a_cell(seed=1)), a_run(a_cell())], ids=type)
def test_round_trip(tmp_path: Path, record: Any) -> None:
    path = tmp_path / "new" / "folder" / "record.json"
    records.write(path, record)
    assert records.read(path, type(record)) == record


def test_what_is_not_finite_is_kept_as_null(tmp_path: Path) -> None:
    assert (records.finite(float("inf")), records.finite(float("nan")), records.finite(0.5)) == (None, None, 0.5)
    records.write(tmp_path / "run.json", a_run(a_cell()))
    document = json.loads((tmp_path / "run.json").read_text())
    assert document["series"]["validation loss"]["y"] == [0.5, None, 0.25]
    infinite = Run(a_cell(), "finished", "", {"test loss": float("inf")})
    with pytest.raises(ValueError, match="not JSON compliant"):
        records.write(tmp_path / "run.json", infinite)
    assert json.loads((tmp_path / "run.json").read_text()) == document


def test_joined_evidence_says_what_each_part_is_of() -> None:
    other = Evidence("One", "full", "second", {"torch": "2.14.0", "gpu": "none"}, [a_section(data="CIFAR-10 (JPEG)")])
    found = records.joined([three_claims(), other, three_claims()], "third")
    first = three_claims()
    assert found.title == "What batch normalization does"
    assert records.joined([one_claim()], "c").title == one_claim().title
    assert found.preset == "quick, full"
    assert found.command == f"{first.command}\nsecond\n{first.command}\nthird"
    assert found.environment == {"torch": "2.13.0 / 2.14.0", "threads": "1", "gpu": "none"}
    of_cnn = ["cnn", "cnn, CIFAR-10", "cnn, digits"]
    others = ["norms", "norms, digits", "learning-rate", "learning-rate, digits"]
    assert [s.claim for s in found.sections] == [*of_cnn, *others]
    assert found.sections[1].effects == other.sections[0].effects


def test_settings_keep_their_types(tmp_path: Path) -> None:
    """1, 1.0, True, "1" and None are different settings."""
    cell = Cell("cnn", {"a": 1, "b": 1.0, "c": True}, 0, {"d": "1", "e": None})
    records.write(tmp_path / "run.json", Run(cell, "finished"))
    found = records.read(tmp_path / "run.json", Run).cell
    assert [type(value) for value in (*found.factors.values(), *found.settings.values())] == [
        *(int, float, bool, str, type(None))
    ]


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    old = a_study(a_cell())
    records.write(tmp_path / STUDY, old)

    def full_disk(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full_disk)
    with pytest.raises(RecordError, match=r"cannot write to .*: No space left on device\. Choose another --out"):
        records.write(tmp_path / STUDY, a_study())
    assert records.read(tmp_path / STUDY, Study) == old
    assert [path.name for path in tmp_path.iterdir()] == [STUDY]


def test_a_file_in_the_way_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(RecordError, match=r"cannot write to .*file"):
        records.write(tmp_path / "file" / "out" / STUDY, a_study())
    assert not records.exists(tmp_path / "file" / "out" / STUDY)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "cannot read"),
        ("\udcff", "cannot read"),
        ("[]", "is not what its name says: expected format 'steadynorm-evidence'"),
        ('{"format": "steadynorm-study", "version": 2}', "expected format 'steadynorm-evidence'"),
        ('{"format": "steadynorm-evidence", "version": 1}', "has version 1, this steadynorm reads version 2"),
        ('{"format": "steadynorm-evidence"}', "has version None"),
        ('{"format": "steadynorm-evidence", "version": 2}', "is damaged: expected title, preset, .* for Evidence"),
    ],
)
def test_what_is_no_record_is_refused(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / EVIDENCE).write_text(text, errors="surrogateescape")
    with pytest.raises(RecordError, match=message):
        records.read(tmp_path / EVIDENCE, Evidence)


def test_no_record(tmp_path: Path) -> None:
    assert not records.exists(tmp_path / STUDY)
    with pytest.raises(RecordError, match=r"no study\.json in .* Run `steadynorm study --out"):
        records.read(tmp_path / STUDY, Study)


@pytest.mark.parametrize(
    ("place", "value", "message"),
    [
        (("sections", 0, "verdict"), None, "expected str, got None"),
        (("sections", 0, "seeds"), True, "expected int, got True"),
        (("sections", 0, "seeds"), 1.5, "expected int, got 1.5"),
        (("sections", 0, "effects"), {}, "expected list.*, got {}"),
        (("sections", 0, "effects", 0), {}, "expected label, unit, .* for Effect, got {}"),
        (("sections", 0, "effects", 1, "low"), "1", "expected float or NoneType, got '1'"),
        (("sections", 0, "figures", 0, "panels", 0, "lines", 0, "x", 0), None, "expected float or str, got None"),
        (("sections", 0, "tables", 0, "rows", 0, 0), True, "expected float or str or NoneType, got True"),
        (("sections", 0, "runs", "finished"), "3", "expected int, got '3'"),
        (("environment",), None, "got None"),
        (("environment", "torch"), 2, "expected str, got 2"),
        (("more",), 1, "for Evidence"),
    ],
    ids=str,
)
def test_damage_is_named(tmp_path: Path, place: tuple[str | int, ...], value: object, message: str) -> None:
    path = tmp_path / EVIDENCE
    records.write(path, one_claim())
    document = json.loads(path.read_text())
    *way, last = place
    inner = document
    for step in way:
        inner = inner[step]
    inner[last] = value
    path.write_text(json.dumps(document))
    with pytest.raises(RecordError, match=f"is damaged: .*{message}"):
        records.read(path, Evidence)


def test_a_cell_has_a_name_and_a_file_of_its_own() -> None:
    cell = Cell("learning-rate", {"network": "with BN / ReLU", "lr": 0.1, "noise": None}, 3, {"steps": 10})
    assert cell.label == "learning-rate: with BN / ReLU, lr 0.1, seed 3"
    assert cell.key.startswith("with-BN-ReLU-lr-0.1-seed-3-")
    others = [a_cell(), a_cell("without BN"), a_cell(seed=1), a_cell(steps=5), Cell("norms", *_rest(a_cell()))]
    assert len({other.key for other in others}) == len(others)
    assert a_cell().key == a_cell().key
    assert len(Cell("cnn", {"network": 200 * "long"}, 0, {}).key) < 100


def _rest(cell: Cell) -> tuple[Any, int, Any]:
    return cell.factors, cell.seed, cell.settings


def test_a_run_is_kept_by_its_claim_and_its_cell(tmp_path: Path) -> None:
    cell = a_cell()
    assert records.place(tmp_path, cell) == tmp_path / "runs" / "cnn" / f"{cell.key}.json"
    assert records.place(tmp_path, cell, "pt").name == f"{cell.key}.pt"


def test_runs_are_found_in_the_order_of_the_cells(tmp_path: Path) -> None:
    cells = [a_cell(network, seed) for seed in (0, 1) for network in ("without BN", "with BN")]
    study = a_study(*cells)
    assert records.finished(tmp_path, study) == []
    for cell in (cells[3], cells[0], a_cell(seed=7)):
        records.write(records.place(tmp_path, cell), a_run(cell))
    assert records.finished(tmp_path, study) == [a_run(cells[0]), a_run(cells[3])]


def test_a_run_in_another_s_place_is_refused(tmp_path: Path) -> None:
    path = records.place(tmp_path, a_cell())
    records.write(path, a_run(a_cell(seed=1)))
    with pytest.raises(RecordError, match=r"is of another run: cnn: with BN, seed 1\. Remove it\."):
        records.finished(tmp_path, a_study(a_cell()))
    path.write_text("{")
    with pytest.raises(RecordError, match="cannot read"):
        records.finished(tmp_path, a_study(a_cell()))


def test_equal_runs_are_equal_but_for_their_times() -> None:
    run = a_run(a_cell())
    assert run.timeless().seconds == {}
    assert run.timeless() == Run(run.cell, run.status, run.message, run.values, run.series)


def test_a_study_knows_its_claims() -> None:
    assert a_study(a_cell(), Cell("norms", {}, 0, {}), a_cell(seed=1)).claims == ["cnn", "norms"]
    assert records.settings_in_words({"batch_size": 64, "lr": 0.1}) == "batch size 64, lr 0.1"
