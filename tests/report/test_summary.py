"""The measures, against values worked out by hand."""

from __future__ import annotations

import numpy as np
import pytest

from steadynorm.report.summary import Cell, epochs_to_other, roughness, rows, verdict

from ..support.study import a_run, full_records, some_records


def test_measures_by_hand() -> None:
    found = {row.name: row.cells for row in rows(full_records())}
    assert found["test accuracy"] == [Cell("75.00%", "70.00% to 80.00%"), Cell("93.00%", "92.00% to 94.00%")]
    assert found["best validation accuracy"] == [Cell("75.00%", "70.00% to 80.00%"), Cell("92.50%", "90.00% to 95.00%")]
    assert found["to the other's best"] == [Cell("not reached"), Cell("1.5 epochs", "30 steps")]
    assert found["seconds per epoch"] == [Cell("1.5"), Cell("1.5")]


def test_roughness_by_hand() -> None:
    """Second differences of 1, 0.8, 0.7, 0.5 are 0.1 and -0.1."""
    assert roughness(a_run("v", 0, [0.0] * 4, [1.0, 0.8, 0.7, 0.5])) == pytest.approx(0.1)
    assert roughness(a_run("v", 0, [0.0] * 4, [1.0, 0.8, 0.6, 0.4])) == pytest.approx(0)
    assert np.isnan(roughness(a_run("v", 0, [0.0] * 2, [1.0, 0.8])))
    assert np.isnan(roughness(a_run("v", 0, [0.0] * 3, [1.0, None, 0.8])))


def test_epochs_to_other() -> None:
    slow, fast = full_records().runs[:2]
    assert (epochs_to_other(fast, slow), epochs_to_other(slow, fast)) == (2, None)


def test_verdict_says_what_was_measured() -> None:
    assert verdict(full_records()) == (
        "Test accuracy is 93.00% with BN and 75.00% without BN, over 2 seeds. The network with BN reaches the best "
        "validation accuracy of the network without BN after 1.5 of 4 epochs."
    )


def test_verdict_when_batch_normalization_does_not_help() -> None:
    records = some_records(
        [a_run("without BN", 0, [0.9], [0.1], 0.9), a_run("with BN", 0, [0.2], [2.0], 0.2)], epochs=1
    )
    assert verdict(records) == (
        "Test accuracy is 20.00% with BN and 90.00% without BN, over one seed. The network with BN never reaches the "
        "best validation accuracy of the network without BN."
    )


def test_unfinished_studies_are_not_judged() -> None:
    assert verdict(some_records([])) == "No seed has been trained with both networks yet."
    assert rows(some_records([]))[0].cells == []
    one = some_records([a_run("with BN", 0, [0.9], [0.1])])
    assert [row.cells for row in rows(one)][2] == [Cell("–")]


def test_seeds_that_diverged_are_counted() -> None:
    runs = [a_run("with BN", 0, [0.5] * 4, [1.0, 0.8, 0.7, 0.5]), a_run("with BN", 1, [0.1] * 4, [None] * 4)]
    cells = {row.name: row.cells for row in rows(some_records(runs))}
    assert cells["validation-loss roughness"] == [Cell("0.1", "1 of 2 seeds, the others are not finite")]


def test_verdict_of_an_unfinished_study_says_so() -> None:
    records = some_records(full_records().runs[:3])
    assert "Test accuracy is 92.00% with BN and 80.00% without BN, over one seed that both have finished." in verdict(
        records
    )
