"""Is a normalized layer indifferent to the scale of its weights, and what if gradients ignore the normalization?"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ...nn import BatchNorm1d
from ...records import Cell, Figure, Panel, Run, Series, Setting, Table
from ..claim import Claim, Judgement, Outcome, Preset
from ..results import Results
from ..showing import in_words
from ..tools import Tools
from ..verdict import contrast, judged, paired_ratio

THROUGH, AROUND = "through the statistics", "around the statistics"
LEARNED = ("bias", "weight and bias")
IDENTITIES = {
    "output": "BN((aW)u) against BN(Wu)",
    "gradient of W": "a times the gradient towards aW against that towards W",
    "gradient of u": "the gradient towards u, with aW against with W",
}
TOLERANCE = 1e-10
SMALLEST = 1e-17
"""What an error of 0 counts as."""


def run(cell: Cell, tools: Tools) -> Outcome:
    size, units, batch = (int(cell.settings[name] or 0) for name in ("inputs", "units", "batch_size"))
    u = torch.randn(batch, size, dtype=torch.float64)
    weight = torch.randn(units, size, dtype=torch.float64) / math.sqrt(size)
    towards = torch.randn(batch, units, dtype=torch.float64)
    values, series = {}, {}
    if cell.factors["gradient"] == THROUGH:
        values, series = identities(u, weight, towards, int(cell.settings["decades"] or 0))
    steps, lr = int(cell.settings["steps"] or 0), float(cell.settings["lr"] or 0)
    through = cell.factors["gradient"] == THROUGH
    for learned in LEARNED:
        drift = descend(u, weight, towards, steps, lr, through=through, only_bias=learned == "bias")
        series |= {f"{name}, {learned} learned": found for name, found in drift.items()}
        values |= _ends(drift, learned)
    return Outcome(values, series)


def identities(u: Tensor, weight: Tensor, towards: Tensor, decades: int) -> tuple[dict, dict[str, Series]]:
    """Relative errors of the three identities for a = 10^-decades ... 10^decades, in float64.

    The layer's eps breaks them where a²·var is not far above it; so they are taken with an eps that vanishes beside any
    variance here, and once more with the usual one.
    """
    scales = [10.0**n for n in range(-decades, decades + 1)]
    values, series = {}, {}
    for eps, suffix in ((1e-100, ""), (1e-5, ", eps 1e-5")):
        plain = layer(u, weight, towards, eps)
        errors: dict[str, list[float]] = {name: [] for name in IDENTITIES}
        for scale in scales:
            y, to_weight, to_u = layer(u, scale * weight, towards, eps)
            for name, found, expected in zip(IDENTITIES, (y, scale * to_weight, to_u), plain, strict=True):
                errors[name].append(relative(found, expected))
        for name, found in errors.items():
            series[name + suffix] = Series(scales, [max(error, SMALLEST) for error in found])
            values[name + suffix] = max(found)
    return values, series


def layer(u: Tensor, weight: Tensor, towards: Tensor, eps: float) -> tuple[Tensor, Tensor, Tensor]:
    """BN(Wu), and the gradients of sum(towards · BN(Wu)) towards W and u."""
    u, weight = u.clone().requires_grad_(), weight.clone().requires_grad_()
    norm = BatchNorm1d(len(weight), eps=eps, affine=False, dtype=torch.float64)
    y = norm(u @ weight.t())
    to_weight, to_u = torch.autograd.grad((towards * y).sum(), (weight, u))
    return y.detach(), to_weight, to_u


def relative(found: Tensor, expected: Tensor) -> float:
    return float((found - expected).norm() / expected.norm())


def descend(
    u: Tensor, weight: Tensor, goal: Tensor, steps: int, lr: float, *, through: bool, only_bias: bool
) -> dict[str, Series]:
    """Gradient descent on the mean squared error of norm(Wu + b) against a goal whose mean is not 0.

    Args:
        through: let the gradient flow through mean and variance, as batch normalization does; else they are constants
            in each step, recomputed before the next.
        only_bias: W stays.

    Returns:
        Over steps: "bias" and "weight", norms, and "loss"; up to the first that is not finite.
    """
    goal = goal + 1.0
    weight, bias = weight.clone(), torch.zeros(len(weight), dtype=weight.dtype)
    learned = [bias] if only_bias else [weight, bias]
    kept: dict[str, list[float]] = {"bias": [], "weight": [], "loss": []}
    for _ in range(steps + 1):
        for tensor in learned:
            tensor.requires_grad_()
        loss = ((normalized(u @ weight.t() + bias, through) - goal) ** 2).mean()
        gradients = torch.autograd.grad(loss, learned)
        for name, value in zip(kept, (bias.norm(), weight.norm(), loss), strict=True):
            kept[name].append(float(value.detach()))
        if not all(map(math.isfinite, (kept["bias"][-1], kept["weight"][-1], kept["loss"][-1]))):
            break
        for tensor, gradient in zip(learned, gradients, strict=True):
            tensor.detach_().sub_(lr * gradient)
    return {name: _series(found) for name, found in kept.items()}


def normalized(x: Tensor, through: bool) -> Tensor:
    """By the batch's mean and standard deviation, which the gradient flows through or takes as constants."""
    statistics = x if through else x.detach()
    return (x - statistics.mean(0)) / (statistics.var(0, unbiased=False) + 1e-5).sqrt()


def _series(found: list[float]) -> Series:
    every = max(1, (len(found) - 1) // 50)
    steps = [*range(0, len(found) - 1, every), len(found) - 1]
    return Series(
        [float(step) for step in steps], [found[step] if math.isfinite(found[step]) else None for step in steps]
    )


def _ends(drift: dict[str, Series], learned: str) -> dict[str, float | None]:
    bias, loss = drift["bias"], drift["loss"]
    half = min(range(len(bias.x)), key=lambda at: abs(bias.x[at] - bias.x[-1] / 2))
    return {
        f"bias at half time, {learned} learned": bias.y[half],
        f"bias at the end, {learned} learned": bias.y[-1],
        f"loss at the start, {learned} learned": loss.y[0],
        f"loss at the end, {learned} learned": loss.y[-1],
    }


def judge(results: Results) -> Judgement:
    through, around = results.select(gradient=THROUGH), results.select(gradient=AROUND)
    exact = contrast(
        {run.cell.seed: min(margin(run.values[name]) for name in IDENTITIES) for run in through},
        f"identities in float64: how far the largest error is below {TOLERANCE:g}",
        "decades",
    )
    bias = "bias at {}, bias learned"
    growing = paired_ratio(
        results.by_seed(bias.format("the end"), gradient=AROUND),
        results.by_seed(bias.format("half time"), gradient=AROUND),
        "gradient around the statistics: the bias, last step ÷ half time",
    )
    still = contrast(
        {run.cell.seed: margin(change(run)) for run in around},
        f"gradient around the statistics: how far the change of the loss is below {TOLERANCE:g} of it",
        "decades",
    )
    held = contrast(
        {run.cell.seed: margin(run.values[bias.format("the end")]) for run in through},
        f"gradient through the statistics: how far the bias stays below {TOLERANCE:g}",
        "decades",
    )
    effects = [exact, growing, still, held]
    words = f"{'; '.join(map(in_words, effects))}{_largest(results)}."
    return Judgement(judged(effects), words, effects, figures(results), [table(results)])


def margin(error: float | None) -> float:
    """Decades by which an error is below the tolerance."""
    return math.log10(TOLERANCE / max(error, SMALLEST)) if error is not None else -math.inf


def change(run: Run) -> float | None:
    """Of the loss while only the bias is learned, relative."""
    first, last = (run.values[f"loss at the {when}, bias learned"] for when in ("start", "end"))
    return None if first is None or last is None else abs(last - first) / first


def _largest(results: Results) -> str:
    """In words, what eps does to the identities."""
    errors = [e for name in IDENTITIES for e in results.by_seed(f"{name}, eps 1e-5", gradient=THROUGH).values()]
    return f"; with eps 1e-5 instead, the largest error is {max(errors):.2g}" if errors else ""


def figures(results: Results) -> list[Figure]:
    axis, error = "scale a", "relative error"
    exact = [results.curve(name, name, gradient=THROUGH) for name in IDENTITIES]
    usual = [results.curve(f"{name}, eps 1e-5", name, gradient=THROUGH) for name in IDENTITIES]
    caption = (
        "; ".join(f"{name}: {meaning}" for name, meaning in IDENTITIES.items())
        + f". In float64; an error of 0 is drawn as {SMALLEST:g}. The usual eps breaks them where the variance of "
        "aWu is not far above it."
    )
    drifts = [
        Panel(
            f"{title}, {learned} learned",
            "step",
            unit,
            [results.curve(f"{name}, {learned} learned", level, gradient=level) for level in (THROUGH, AROUND)],
        )
        for learned in LEARNED
        for name, title, unit in (("bias", "Bias", "norm"), ("loss", "Loss", "mean squared error"))
    ]
    return [
        Figure(
            "The identities over scales",
            caption,
            [Panel("eps below rounding", axis, error, exact, "xy"), Panel("eps 1e-5", axis, error, usual, "xy")],
        ),
        Figure(
            "Gradient descent through and around the normalization",
            "norm(Wu + b) is fitted to a goal whose mean is not 0. Around: mean and variance are constants in each "
            "step and recomputed after it. Lines are means over seeds, bands the range.",
            drifts,
        ),
    ]


def table(results: Results) -> Table:
    shown = ("bias at half time", "bias at the end", "loss at the start", "loss at the end")
    rows: list[list[float | str | None]] = []
    for learned in LEARNED:
        for level in (THROUGH, AROUND):
            found = [results.mean(f"{name}, {learned} learned", gradient=level) for name in shown]
            rows.append([learned, level, *(None if math.isnan(value) else value for value in found)])
    return Table("Gradient descent, means over seeds", ["learned", "gradient", *shown], rows)


GRID = {"gradient": [THROUGH, AROUND]}


def _settings(steps: int, size: int) -> dict[str, Setting]:
    return {"steps": steps, "lr": 0.1, "inputs": size, "units": size, "batch_size": 4 * size, "decades": 4}


CLAIM = Claim(
    name="scale-invariance",
    question="Is a normalized layer indifferent to the scale of its weights, if gradients flow through its statistics?",
    source="Ioffe & Szegedy 2015, arXiv:1502.03167, sec. 2 (the bias that grows) and 3.3 (the identities)",
    factors="the gradient flows through the batch's mean and variance, or around them, as constants of each step",
    equal="weights, inputs and goals (random numbers, float64), learning rate, steps",
    measure=(
        "the largest relative error of BN((aW)u) = BN(Wu), of the gradient towards aW = 1/a of that towards W, and "
        "of the gradient towards u staying the same, over a = 0.0001 to 10000; growth of a bias, and change of the "
        "loss, in gradient descent on norm(Wu + b) while only b is learned"
    ),
    rule=(
        "supported if, at 95%, the errors lie below 1e-10, and around the statistics the bias still grows in the "
        "second half while the loss changes by less than 1e-10 of itself, and through them the bias stays; "
        "contradicted if none holds"
    ),
    would_change="an eps that is not far below the variance (shown), float32, weight decay on the bias",
    data=(),
    presets={
        "smoke": Preset(2, GRID, _settings(20, 8)),
        "quick": Preset(3, GRID, _settings(300, 32)),
        "full": Preset(10, GRID, _settings(5000, 64)),
    },
    run=run,
    judge=judge,
)
