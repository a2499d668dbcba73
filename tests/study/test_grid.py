"""A grid keeps each finished run at once, goes on where it stopped, and never mixes two studies."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from steadynorm import records
from steadynorm.errors import RecordError
from steadynorm.records import Records
from steadynorm.study import cnn
from steadynorm.study.training import Settings

from ..support.study import Silent, small_data

SETTINGS = Settings(1, 16, 1e-3, "adam")


def study(out: Path, watcher: Silent, settings: Settings = SETTINGS, seeds: int = 2) -> Records:
    return cnn.run(small_data(), None, settings, seeds, out, watcher)


def results(kept: Records) -> list[tuple[str, int, float | None, float]]:
    return [(run.variant, run.seed, run.epochs[-1].train_loss, run.test_accuracy) for run in kept.runs]


def test_every_variant_and_seed_runs_once(tmp_path: Path) -> None:
    watcher = Silent()
    kept = study(tmp_path, watcher)
    assert watcher.begun == [("without BN", 0), ("with BN", 0), ("without BN", 1), ("with BN", 1)]
    assert watcher.ended == kept.runs
    assert records.read(tmp_path) == kept
    assert watcher.steps == 4 * watcher.expected_steps


def test_an_interrupted_study_goes_on_to_the_same_result(tmp_path: Path) -> None:
    whole = study(tmp_path / "whole", Silent())
    with pytest.raises(KeyboardInterrupt):
        study(tmp_path / "part", Silent(interrupt_at=2))
    assert results(records.read(tmp_path / "part")) == results(whole)[:2]
    rest = Silent()
    resumed = study(tmp_path / "part", rest)
    assert rest.begun == [("without BN", 1), ("with BN", 1)]
    assert results(resumed) == results(whole)


def test_a_finished_study_trains_nothing(tmp_path: Path) -> None:
    kept = study(tmp_path, Silent(), seeds=1)
    again = Silent()
    assert study(tmp_path, again, seeds=1) == kept
    assert again.begun == []


def test_another_study_in_the_folder_is_refused_and_kept(tmp_path: Path) -> None:
    kept = study(tmp_path, Silent(), seeds=1)
    message = r"holds a study with other settings \(epochs: 1, now 2, lr: 0.001, now 0.1\)\. Choose another --out"
    with pytest.raises(RecordError, match=message):
        study(tmp_path, Silent(), replace(SETTINGS, epochs=2, lr=0.1), seeds=1)
    assert records.read(tmp_path) == kept


def test_the_command_redoes_the_study(tmp_path: Path) -> None:
    kept = study(tmp_path, Silent(), seeds=1)
    assert cnn.command(kept.spec, Path("my data"), Path("o")) == (
        "steadynorm study --data small --data-dir 'my data' "
        "--epochs 1 --batch-size 16 --lr 0.001 --optimizer adam --seeds 1 --out o"
    )


def test_runs_of_another_environment_are_not_mixed_in(tmp_path: Path) -> None:
    kept = study(tmp_path, Silent(), seeds=1)
    records.write(tmp_path, replace(kept, environment={**kept.environment, "torch": "2.0"}))
    with pytest.raises(RecordError, match=r"other settings \(torch: '2\.0', now '2\..*'\)"):
        study(tmp_path, Silent(), seeds=1)
