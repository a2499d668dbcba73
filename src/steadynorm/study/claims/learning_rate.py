"""Does batch normalization allow much larger learning rates, and is it better when both rates are tuned?"""

from __future__ import annotations

import itertools

from ...records import Cell, Effect, Figure, Table, finite
from ..claim import WITH, WITHOUT, Claim, Judgement, Outcome, Preset
from ..dense import initialize, network
from ..results import Results
from ..showing import in_words, sweep
from ..sources import Images, standardized
from ..sweeps import SHARE, Sweep, accuracy, by_level, trained
from ..tools import Tools
from ..training import Recipe, fit
from ..tuning import best_rates
from ..verdict import difference, judged, no_finer, paired_ratio, speedup

CLAIMED = 10.0
"""Times: the lower end of "10 to 100 times larger"."""


def run(cell: Cell, tools: Tools) -> Outcome:
    data = tools.data()
    model = network(cell, data, batch_norm=cell.factors["network"] == WITH)
    initialize(model)
    recipe = Recipe.of(cell)
    source = Images(data, recipe.batch_size, cell.seed, prepare=standardized(data))
    return fit(model, recipe, source, tools.keeper)


def judge(results: Results) -> Judgement:
    sweeps = {name: by_level(results, "lr", network=name) for name in (WITHOUT, WITH)}
    largest = {
        name: {seed: max(rates) for seed, rates in found.items() if rates} for name, found in trained(sweeps).items()
    }
    larger = paired_ratio(
        largest[WITH], largest[WITHOUT], "largest rate that trains, with BN ÷ without", neutral=CLAIMED
    )
    larger = no_finer(larger, _step(results))
    rates = best_rates(results.complete(), "network")
    effects, without, with_ = [larger], rates.get(WITHOUT), rates.get(WITH)
    words = f"{in_words(larger)}, where {CLAIMED:g}× or more is claimed{_bound(results, largest)}"
    if without is not None and with_ is not None:
        effects += comparisons(results, without, with_)
        words += f"; each at its own best rate ({without:g} without, {with_:g} with): {in_words(effects[1])}"
    return Judgement(judged(effects), f"{words}.", effects, [figure(results)], [table(results, sweeps)])


def comparisons(results: Results, without: float, with_: float) -> list[Effect]:
    """Both at their own best rates, and both at the rate that is best without."""
    tuned, matched = {"network": WITH, "lr": with_}, {"network": WITH, "lr": without}
    other = {"network": WITHOUT, "lr": without}
    return [
        difference(
            results,
            "test accuracy",
            tuned,
            other,
            "test accuracy, both tuned, with BN − without",
            "points",
            scale=100,
            decides=False,
        ),
        speedup(
            results,
            tuned,
            other,
            "steps to the best validation accuracy without BN, both tuned, without ÷ with",
            decides=False,
        ),
        difference(
            results,
            "test accuracy",
            matched,
            other,
            f"test accuracy at the rate best without BN ({without:g}), with − without",
            "points",
            scale=100,
            decides=False,
        ),
    ]


def _step(results: Results) -> float:
    """The largest factor from one rate to the next; 1 for a single rate."""
    rates = sorted(results.levels("lr"))
    return max((after / before for before, after in itertools.pairwise(rates)), default=1.0)


def _bound(results: Results, largest: dict[str, dict[int, float]]) -> str:
    """Says so where the grid ended before a network did."""
    top = max(results.levels("lr"), default=None)
    ended = [name for name, rates in largest.items() if top in rates.values()]
    return f" ({' and '.join(ended)} still trained at the largest rate tried, {top:g})" if ended else ""


def figure(results: Results) -> Figure:
    caption = (
        f"After the last step, for each learning rate. A network counts as trained from {SHARE:.0%} of the best "
        "accuracy of the seed. Lines are means over seeds, bands the range; a run that diverged guesses one class."
    )
    axis = "learning rate"
    panel = sweep(results, accuracy, "lr", "network", "Test accuracy by learning rate", "accuracy", x=axis, log="x")
    losses = sweep(results, "test loss", "lr", "network", "Test loss by learning rate", "nats", x=axis, log="xy")
    return Figure("Accuracy over a grid of learning rates", caption, [panel, losses])


def table(results: Results, sweeps: dict[str, Sweep]) -> Table:
    """The matched comparison at every rate."""
    reached = trained(sweeps)
    rows: list[list[float | str | None]] = []
    for rate in results.levels("lr"):
        one, other = {"network": WITH, "lr": rate}, {"network": WITHOUT, "lr": rate}
        gain = difference(results, accuracy, one, other, "", "points", scale=100)
        found = [finite(results.mean(accuracy, **chosen)) for chosen in (other, one)]
        counts = [sum(rate in rates for rates in reached[name].values()) for name in (WITHOUT, WITH)]
        rows.append([f"{rate:g}", *found, gain.estimate, gain.low, gain.high, *counts])
    columns = ["rate", WITHOUT, WITH, "with − without, points", "from", "to", f"seeds trained {WITHOUT}", f"… {WITH}"]
    return Table("Test accuracy at every rate", columns, rows)


def powers(first: int, last: int) -> list[float]:
    """Of 2."""
    return [2.0**n for n in range(first, last + 1)]


GRID = {"network": [WITHOUT, WITH], "lr": powers(-7, 5)}
TRAINING = {"batch_size": 60, "optimizer": "sgd"}
SETTINGS = {"architecture": "dense", "width": 100, "depth": 5, **TRAINING}

CLAIM = Claim(
    name="learning-rate",
    question="Does batch normalization let a network train at learning rates ten or more times larger?",
    source="Ioffe & Szegedy 2015, arXiv:1502.03167, sec. 3.3 and 4.2; tutorials name 10 to 100 times",
    factors="batch normalization before each ReLU, or none; the learning rate, a factor of 2 from one to the next",
    equal="initial weights (He's), data and its order, steps, batch size, plain SGD at a constant rate",
    measure=(
        "the largest rate at which a network is trained, that is, ends with at least nine tenths of the best test "
        "accuracy of either network at any rate; accuracy with each rate tuned on validation images, and at equal rates"
    ),
    rule="supported if the 95% interval of the ratio of largest rates, taken to be no narrower than a step of the grid "
    "to either side, lies above 10; contradicted if it lies below",
    would_change="a deeper network, initial weights scaled less well, momentum, a rate that warms up or decays",
    data=("digits", "mnist", "fashion-mnist", "cifar10"),
    presets={
        "smoke": Preset(2, {**GRID, "lr": [0.1, 1.0]}, {**SETTINGS, "width": 32, "depth": 1, "steps": 30}),
        "quick": Preset(3, GRID, {**SETTINGS, "steps": 200}),
        "full": Preset(
            5, {**GRID, "lr": powers(-10, 8)}, {"architecture": "cnn", **TRAINING, "epochs": 2, "data": "mnist"}
        ),
    },
    run=run,
    judge=judge,
)
