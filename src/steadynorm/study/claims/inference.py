"""Is batch normalization's inference wrong where data are no longer those of training, and do new statistics help?"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import steadynorm as sn

from ...nn import BatchNorm2d
from ...records import Cell, Effect, Figure, Line, Panel, Run, Table, finite
from ..claim import Claim, Judgement, Outcome, Preset
from ..data import ImageData
from ..models.frozen import FrozenFrom
from ..models.systems import he
from ..results import Results
from ..showing import in_words, training_figure
from ..sources import Images, mixed, pictures
from ..tools import Tools
from ..training import Recipe, evaluate, fit
from ..verdict import contrast, difference, judged

BN, PLAIN, FROZEN = "with BN", "without BN", "frozen from 3/4"
SHIFTS: dict[str, Callable[[Tensor, torch.Generator], Tensor]] = {
    "inverted": lambda x, generator: 1 - x,
    "dark": lambda x, generator: 0.3 * x,
    "noisy": lambda x, generator: x + 0.3 * torch.randn(x.shape, generator=generator),
    "moved": lambda x, generator: F.pad(x, (4, 0, 4, 0))[..., :-4, :-4],
}
"""What is done to test images, in [0, 1]."""
SIZES = (0.75, 1.5)
BATCHES = (4, 32, 128)
Batches = list[tuple[Tensor, Tensor]]


def network(channels: int, classes: int, *, batch_norm: bool) -> nn.Sequential:
    """Three convolutions of 16, 32 and 32 channels; averages over positions, so that images of any size go through."""

    def block(inputs: int, outputs: int) -> list[nn.Module]:
        norm = [BatchNorm2d(outputs)] if batch_norm else []
        return [nn.Conv2d(inputs, outputs, 3, padding=1), *norm, nn.ReLU()]

    layers = [*block(channels, 16), nn.MaxPool2d(2), *block(16, 32), nn.MaxPool2d(2), *block(32, 32)]
    return he(nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, classes)))


def run(cell: Cell, tools: Tools) -> Outcome:
    data, recipe, kind = tools.data(), Recipe.of(cell), cell.factors["network"]
    source = Images(data, recipe.batch_size, cell.seed)
    model = network(data.train.images.shape[1], data.classes, batch_norm=kind != PLAIN)
    if kind == FROZEN:
        model = FrozenFrom(model, recipe.epochs * source.steps_in_epoch * 3 // 4)
    few = Images(data, recipe.batch_size, 1000 * (cell.seed + 1))
    batches = [few.batch(step)[0] for step in range(min(10, few.steps_in_epoch))]

    def probe(model: nn.Module, step: int) -> dict[str, float]:
        other = copy.deepcopy(model)
        sn.recalibrate_(other, batches)
        return {"validation accuracy, population": evaluate(other, source.part("validation"))[1]}

    outcome = fit(model, recipe, source, tools.keeper, probe if kind == BN else None)
    test = list(source.part("test"))
    outcome.values.update(shifted(model, test, cell.seed, adapted=kind != PLAIN))
    if kind == BN:
        outcome.values.update(by_batches(model, test, cell.seed))
        outcome.values.update(by_population(model, data, test))
        outcome.values.update(folded(model, test))
    return outcome


def shifted(model: nn.Module, test: Batches, seed: int, *, adapted: bool) -> dict[str, float | None]:
    """Accuracy on each kind of changed test images; and with statistics of those images, without their labels."""
    values: dict[str, float | None] = {}
    for name, change in SHIFTS.items():
        generator = torch.Generator().manual_seed(mixed(seed, 7))
        changed = [(change(x, generator), labels) for x, labels in test]
        values[f"{name}"] = evaluate(model, changed)[1]
        if adapted:
            other = copy.deepcopy(model)
            sn.adapt_(other, [x for x, _ in changed])
            values[f"{name}, adapted"] = evaluate(other, changed)[1]
    return values


def by_batches(model: nn.Module, test: Batches, seed: int) -> dict[str, float | None]:
    """Test accuracy where each batch is normalized by itself: of mixed classes, and of one class each."""
    x, labels = (torch.cat(parts) for parts in zip(*test, strict=True))
    mix = torch.randperm(len(labels), generator=torch.Generator().manual_seed(mixed(seed, 8)))
    sort = labels.argsort(stable=True)
    values: dict[str, float | None] = {}
    for name, order in (("mixed", mix), ("sorted by class", sort)):
        for size in BATCHES:
            parts = [part for part in order.split(size) if len(part) > 1]
            with sn.hold_statistics(model.train()), torch.no_grad():
                right = sum(int((model(x[part]).argmax(1) == labels[part]).sum()) for part in parts)
            values[f"batches of {size}, {name}"] = right / sum(map(len, parts))
    model.eval()
    return values


def by_population(model: nn.Module, data: ImageData, test: Batches) -> dict[str, float | None]:
    """Test accuracy by the statistics of training images instead of running ones, at their size and at others."""
    images = [pictures(part) for part in data.train.images[:1000].split(250)]
    other = copy.deepcopy(model)
    sn.recalibrate_(other, images)
    values: dict[str, float | None] = {"population statistics": evaluate(other, test)[1]}
    for scale in SIZES:
        large = [(resized(x, scale), labels) for x, labels in test]
        other = copy.deepcopy(model)
        sn.recalibrate_(other, [resized(x, scale) for x in images])
        values[f"size × {scale}"] = evaluate(model, large)[1]
        values[f"size × {scale}, recalibrated"] = evaluate(other, large)[1]
    return values


def resized(x: Tensor, scale: float) -> Tensor:
    return F.interpolate(x, scale_factor=scale, mode="bilinear", antialias=True)


def folded(model: nn.Module, test: Batches) -> dict[str, float | None]:
    """How far the folded network's outputs are from the network's, and how many predictions differ."""
    result = sn.fold(model.eval(), test[0][0][:8])
    pairs = _outputs(model, result.model, test)
    error = max(float((one - other).abs().max() / one.abs().max()) for one, other in pairs)
    return {
        "norms folded": float(len(result.pairs)),
        "largest error of folding": error,
        "predictions changed by folding": float(sum(int((a.argmax(1) != b.argmax(1)).sum()) for a, b in pairs)),
    }


@torch.no_grad()
def _outputs(one: nn.Module, other: nn.Module, test: Iterable[tuple[Tensor, Tensor]]) -> list[tuple[Tensor, Tensor]]:
    return [(one(x), other(x)) for x, _ in test]


def judge(results: Results) -> Judgement:
    lost = difference(
        results,
        lambda run: unadapted(run) - run.values["test accuracy"],  # type: ignore[operator]
        {"network": PLAIN},
        {"network": BN},
        "accuracy lost under the shifts, with BN − without",
        "points",
        scale=100,
        decides=False,
    )
    repaired = gain(results, lambda run: adapted(run) - unadapted(run), "accuracy under the shifts, adapted − running")
    each = [repair(results, name) for name in SHIFTS]
    others = [
        minus(results, "population statistics", "test accuracy", "test accuracy, population − running statistics"),
        minus(results, "batches of 128, mixed", "test accuracy", "test accuracy, batches of 128 mixed − running"),
        minus(results, "batches of 128, sorted by class", "test accuracy", "test accuracy, of one class − running"),
        *(
            minus(results, f"size × {s}, recalibrated", f"size × {s}", f"size × {s}, recalibrated − running")
            for s in SIZES
        ),
        difference(
            results,
            "test accuracy",
            {"network": FROZEN},
            {"network": BN},
            "test accuracy, statistics frozen for the last quarter − not",
            "points",
            scale=100,
            decides=False,
        ),
    ]
    errors, changed = (
        results.by_seed(f"{what} folding", network=BN) for what in ("largest error of", "predictions changed by")
    )
    folding = (
        f"; folding changes outputs by {max(errors.values()):.1g} at most, and {sum(changed.values()):g} predictions"
        if errors
        else ""
    )
    return Judgement(
        judged([repaired]),
        f"{in_words(repaired)}; {in_words(lost)}{folding}.",
        [repaired, lost, *each, *others],
        figures(results),
        [table(results)],
    )


def unadapted(run: Run) -> float:
    return _mean(run, "")


def adapted(run: Run) -> float:
    return _mean(run, ", adapted")


def _mean(run: Run, ending: str) -> float:
    found = [run.values.get(name + ending) for name in SHIFTS]
    return sum(value if value is not None else float("nan") for value in found) / len(found)


def gain(results: Results, measure: Callable[[Run], float], label: str, *, decides: bool = True) -> Effect:
    return contrast(results.by_seed(measure, network=BN), label, "points", scale=100, decides=decides)


def minus(results: Results, one: str, other: str, label: str) -> Effect:
    return gain(results, lambda run: value(run, one) - value(run, other), label, decides=False)


def repair(results: Results, name: str) -> Effect:
    return minus(results, f"{name}, adapted", name, f"accuracy on {name} images, adapted − running")


def value(run: Run, name: str) -> float:
    found = run.values.get(name)
    return float("nan") if found is None else found


def table(results: Results) -> Table:
    """A row a measure, a column a network."""
    names = dict.fromkeys(name for run in results.runs for name in run.values)
    networks = results.levels("network")
    rows: list[list[float | str | None]] = [
        [name, *(finite(results.mean(name, network=network)) for network in networks)] for name in names
    ]
    return Table("Means over seeds", ["test images and statistics", *networks], rows)


def figures(results: Results) -> list[Figure]:
    shifts = [
        across(results, list(SHIFTS), BN, "", "with BN, running statistics"),
        across(results, list(SHIFTS), BN, ", adapted", "with BN, adapted"),
        across(results, list(SHIFTS), FROZEN, "", "frozen from 3/4, running statistics"),
        across(results, list(SHIFTS), PLAIN, "", "without BN"),
    ]
    sizes = [f"batches of {size}" for size in BATCHES]
    batches = [across(results, sizes, BN, f", {name}", f"{name}") for name in ("mixed", "sorted by class")]
    running = results.curve("validation accuracy", "running statistics", network=BN)
    population = results.curve("validation accuracy, population", "population statistics", network=BN)
    return [
        Figure(
            "Changed test images",
            "Accuracy where test images are inverted, darkened, noisy or moved by 4 pixels; adapted: statistics of "
            "these images, without labels. Means over seeds, and their range.",
            [Panel("Test accuracy", "test images", "accuracy", shifts, bars=True)],
        ),
        Figure(
            "Normalized by batches",
            "Test accuracy where a batch of test images is normalized by its own statistics: batches of all classes, "
            "and of one class after the other.",
            [Panel("Test accuracy", "batch", "accuracy", batches, bars=True)],
        ),
        Figure(
            "Running and population statistics during training",
            "Validation accuracy of the same weights: by running averages, and by statistics of ten batches.",
            [Panel("Validation accuracy", "step", "accuracy", [running, population])],
        ),
        training_figure(results, "network"),
    ]


def across(results: Results, names: list[str], network: str, ending: str, title: str) -> Line:
    """One bar a measure."""
    columns = [[v for v in results.values(name + ending, network=network) if v == v] for name in names]

    def each(reduce: Callable[[list[float]], float]) -> list[float | None]:
        return [float(reduce(column)) if column else None for column in columns]

    return Line(title, list(names), each(lambda c: sum(c) / len(c)), each(min), each(max))


GRID = {"network": [BN, FROZEN, PLAIN]}
SETTINGS = {"batch_size": 64, "optimizer": "adam", "lr": 3e-3}
CLAIM = Claim(
    name="inference",
    question="Is batch normalization's inference worse than it need be where data differ from training's, and do "
    "statistics of the new data repair it?",
    source="Ioffe & Szegedy 2015, arXiv:1502.03167, sec. 3.1; Wu & Johnson 2021, arXiv:2105.07576, sec. 3 and 5; Li et "
    "al. 2016, arXiv:1603.04779",
    factors="a CNN with BN, with BN whose statistics are frozen for the last quarter of the steps, and without; the "
    "statistics it infers by; test images as they are, inverted, dark, noisy, moved, of other sizes",
    equal="initial weights (He et al. 2015), data and its order, optimizer, rate, epochs; one trained network serves "
    "all comparisons of statistics",
    measure="test accuracy on the four kinds of changed images, on average, by statistics of those images (adapt_) "
    "minus by the running ones",
    rule="supported if its 95% interval over seeds lies above 0; contradicted if below",
    would_change="other changes of the images: statistics repair contrast, and cannot repair what moves; few test "
    "images or a skewed mix of classes, whose statistics mislead; training on distorted images",
    data=("digits", "mnist", "fashion-mnist", "cifar10"),
    presets={
        "smoke": Preset(1, GRID, {**SETTINGS, "epochs": 1}),
        "quick": Preset(3, GRID, {**SETTINGS, "epochs": 6}),
        "full": Preset(5, GRID, {**SETTINGS, "epochs": 10, "data": "mnist"}),
    },
    run=run,
    judge=judge,
)
