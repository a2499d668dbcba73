"""A claim small enough to run in milliseconds, whose runs can be made to fail."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from steadynorm.records import Cell, Series
from steadynorm.study.claim import Claim, Judgement, Outcome, Preset
from steadynorm.study.claims import find
from steadynorm.study.results import Results
from steadynorm.study.showing import means
from steadynorm.study.tools import Tools
from steadynorm.study.verdict import difference, judged


def run(cell: Cell, tools: Tools) -> Outcome:
    """A linear net fitted to noise for so many steps, keeping its state at each one."""
    kind = cell.factors["kind"]
    if kind == "raises":
        raise ArithmeticError("as asked")
    if kind == "dies":
        os._exit(9)
    model, losses, first = nn.Linear(8, 1), [], 0
    tools.keeper._interval = 0
    if (state := tools.keeper.restore()) is not None:
        model.load_state_dict(state["model"])
        torch.set_rng_state(state["random"])
        losses, first = state["losses"], len(state["losses"])
    steps = int(str(cell.settings["steps"]))
    for step in range(first, steps):
        loss = model(torch.randn(16, 8)).square().mean()
        model.zero_grad()
        loss.backward()
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.grad is not None:
                    parameter -= 0.1 * parameter.grad
        losses.append(loss.item())
        time.sleep(float(str(cell.settings["pause"])))
        tools.keeper.offer(
            step, steps, lambda: {"model": model.state_dict(), "random": torch.get_rng_state(), "losses": losses}
        )
    values: dict[str, float | None] = {"loss": losses[-1], "threads": float(torch.get_num_threads())}
    return Outcome(values, {"loss": Series(list(range(len(losses))), list(losses))}, {"all": time.perf_counter()})


def judge(results: Results) -> Judgement:
    effect = difference(results, "loss", {"kind": "plain"}, {"kind": "again"}, "loss, plain − again", "")
    return Judgement(judged([effect]), "found", [effect], [], [means(results, ["kind"], {"loss": "loss"})])


def claim(*kinds: str, seeds: int = 2, steps: int = 3, pause: float = 0) -> Claim:
    text: dict[str, Any] = dict.fromkeys("question source factors equal measure rule would_change".split(), "words")
    preset = Preset(seeds, {"kind": kinds or ("plain", "again")}, {"steps": steps, "pause": pause})
    return Claim(name="toy", **text, data=(), presets={"own": preset}, run=run, judge=judge)


def with_a_real_one(**toy: Any) -> tuple[dict[str, Claim], list[Cell]]:
    """The toy and a claim that trains networks with compiled kernels, which keeps its state at every step too."""
    real = find(["cnn"])["cnn"]
    claims = {"toy": claim(**toy), "cnn": replace(real, run=partial(_kept_always, real.run))}
    return claims, [*claims["toy"].cells("own"), *claims["cnn"].cells("smoke", seeds=1)]


def _kept_always(run: Callable[[Cell, Tools], Outcome], cell: Cell, tools: Tools) -> Outcome:
    tools.keeper._interval = 0
    return run(cell, tools)


def records_of(directory: Path) -> dict[str, bytes]:
    """The records of all runs there are, without their times."""
    from steadynorm.records import Run, read

    return {path.name: repr(read(path, Run).timeless()).encode() for path in sorted(directory.glob("runs/*/*.json"))}
