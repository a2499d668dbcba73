"""Records survive a round trip and a failed write, and damaged ones are refused by name."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from steadynorm import records
from steadynorm.errors import RecordError

from .support.study import a_run, full_records, some_records


def test_round_trip(tmp_path: Path) -> None:
    kept = full_records()
    records.write(tmp_path / "new" / "folder", kept)
    assert records.read(tmp_path / "new" / "folder") == kept


def test_a_loss_that_is_not_finite_is_kept_as_null(tmp_path: Path) -> None:
    assert (records.finite(float("inf")), records.finite(float("nan")), records.finite(0.5)) == (None, None, 0.5)
    records.write(tmp_path, some_records([a_run("with BN", 0, [0.1], [None])]))
    assert json.loads((tmp_path / "records.json").read_text())["runs"][0]["epochs"][0]["validation_loss"] is None


def test_a_failed_write_leaves_the_old_records_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    old = some_records([])
    records.write(tmp_path, old)

    def full_disk(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full_disk)
    with pytest.raises(RecordError, match=r"cannot write to .*: No space left on device\. Choose another --out"):
        records.write(tmp_path, full_records())
    assert records.read(tmp_path) == old
    assert [path.name for path in tmp_path.iterdir()] == ["records.json"]


def test_a_file_in_the_way_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(RecordError, match=r"cannot write to .*file"):
        records.write(tmp_path / "file" / "out", full_records())


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "cannot read"),
        ("[]", "is not a steadynorm study"),
        ('{"format": "other"}', "is not a steadynorm study: expected format 'steadynorm-study'"),
        ('{"format": "steadynorm-study", "version": 99}', "has version 99, this steadynorm reads version 1"),
        ('{"format": "steadynorm-study", "version": 1}', "is damaged"),
    ],
)
def test_what_is_no_record_is_refused(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "records.json").write_text(text)
    with pytest.raises(RecordError, match=message):
        records.read(tmp_path)


def test_no_records(tmp_path: Path) -> None:
    assert not records.exist(tmp_path)
    with pytest.raises(RecordError, match=r"no records\.json in .* Run `steadynorm study"):
        records.read(tmp_path)


@pytest.mark.parametrize(
    ("place", "value", "message"),
    [
        (("runs", 0, "test_accuracy"), None, "expected <class 'float'>, got None"),
        (("runs", 0, "epochs"), [], "expected 4 epochs in each run"),
        (("runs", 0, "epochs", 1, "seconds"), "1", "expected <class 'float'>, got '1'"),
        (("runs", 0, "seed"), True, "expected <class 'int'>, got True"),
        (("runs", 0, "variant"), "other", "are not runs of"),
        (("runs", 1, "variant"), "without BN", "once each"),
        (("runs", 0), {}, "expected variant, seed, .* for Run, got {}"),
        (("spec", "epochs"), "4", "expected <class 'int'>, got '4'"),
        (("spec", "data_sha256"), 5, "expected <class 'str'>, got 5"),
        (("environment",), None, "got None"),
        (("environment", "torch"), 2, "expected <class 'str'>, got 2"),
    ],
    ids=str,
)
def test_damage_is_named(tmp_path: Path, place: tuple[str | int, ...], value: object, message: str) -> None:
    records.write(tmp_path, full_records())
    document = json.loads((tmp_path / "records.json").read_text())
    *way, last = place
    inner = document
    for step in way:
        inner = inner[step]
    inner[last] = value
    (tmp_path / "records.json").write_text(json.dumps(document))
    with pytest.raises(RecordError, match=f"is damaged: .*{message}"):
        records.read(tmp_path)
