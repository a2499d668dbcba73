"""Folded networks in the benchmark: what is timed beside what, and the ratios."""

from __future__ import annotations

from typing import Any

import pytest
from rich.console import Console
from torch import nn

from steadynorm.bench import folding, jobs, summary
from steadynorm.bench.cases import FIRST, LAST
from steadynorm.bench.networks import NONE
from steadynorm.bench.providers import TORCH
from steadynorm.bench.record import Benchmark
from steadynorm.bench.show import show
from steadynorm.bench.timing import Timing


@pytest.mark.parametrize("network", ["ResNet-18", "ResNet-50", "MobileNet"])
def test_folded_is_what_torch_computes(network: str) -> None:
    """Ours and torch.fx's; without norms it is another function."""
    results = {name: step() for name, step in folding.steps(network, 1, 32, LAST, compiles=False).items()}
    assert list(results) == [folding.FOLDED, TORCH, NONE, folding.FUSED]
    for name in (folding.FOLDED, folding.FUSED):
        assert error(results[name], results[TORCH]) < 1e-5
    assert error(results[NONE], results[TORCH]) > 1e-2


def error(result: Any, expected: Any) -> float:
    return float((result - expected).abs().max() / expected.abs().max())


def test_networks_differ_in_norms_only() -> None:
    with_norms, without = (folding.MobileNet(variant) for variant in (TORCH, NONE))
    norms = [name for name, layer in with_norms.named_modules() if isinstance(layer, nn.BatchNorm2d)]
    assert len(norms) == 52
    assert all(type(without.get_submodule(name)) is nn.Identity for name in norms)


def test_measured_and_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    key = {"network": "ResNet-18", "batch": 1, "pixels": 32, "order": FIRST}
    monkeypatch.setattr(jobs, "in_turns", lambda steps, seconds: {name: timing(step) for name, step in steps.items()})
    monkeypatch.setattr(folding, "keys", lambda quick: [key])
    benchmark = Benchmark({})
    (job,) = [job for job in jobs.jobs(benchmark, True, True, None) if job.rows is benchmark.folding]
    job.run()
    assert job.done
    console = Console(record=True, width=160)
    show(console, benchmark)
    assert "torch.fx fuse" in console.export_text()


def timing(step: folding.Step) -> Timing:
    step()
    return Timing(1.0, 1.0, 1.0, 1.0, 1)


def test_ratios() -> None:
    timings = {folding.FOLDED: {"median": 2.0}, TORCH: {"median": 3.0}, NONE: {"median": 2.0}}
    row = {"network": "ResNet-50", "batch": 16, "pixels": 160, "order": FIRST, "timings": timings}
    header, rows = summary.folding(Benchmark({}, folding=[row]))
    assert header == ("network", "order", "torch, ms", folding.FOLDED, NONE)
    assert rows == [("ResNet-50", FIRST, "3", "1.50", "1.50")]
    assert len(folding.keys(quick=False)) == 4
