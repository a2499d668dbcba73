"""A study on the user's own networks and data: trained side by side under the same rules, judged pair by pair."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from torch import nn

from ..errors import InvalidArgumentError
from ..records import Cell, Data, Effect, Evidence, Study
from ..surgery import convert_
from .claim import Claim, Judgement, Outcome, Preset
from .claims import find
from .results import Results
from .runner import Engine
from .showing import in_words, means, training_figure
from .sources import Loaders
from .study import run
from .tools import Tools
from .training import OPTIMIZERS, Recipe, fit
from .verdict import difference, judged_best

Factory = Callable[[], nn.Module]
NAME = "compare"


def compare(
    variants: Mapping[str, Factory],
    data: Callable[[], Iterable[Any]],
    *,
    epochs: int = 10,
    lr: float = 1e-3,
    optimizer: str = "adam",
    weight_decay: float = 0.0,
    seeds: int = 3,
    out: str | Path = "runs/compare",
    engine: Engine | None = None,
    command: str = "steadynorm.compare(...)",
    watch: Callable[[float], None] = lambda done: None,
) -> Evidence:
    """Trains variants of a classifier side by side on the same data, and judges whether the first one is the best.

    Every variant is trained with each seed: `torch.manual_seed(seed)`, then its factory is called, so variants built in
    the same order have the same initial weights; batches come in the same order. Runs are kept in `out` as they finish,
    those in progress every 15 seconds; calling it again goes on. `steadynorm report OUT` draws the page.

    Args:
        variants: at least two factories, by name; each makes a network from inputs to (N, classes) logits.
        data: makes the loaders, for training, validation and perhaps testing, each of batches (input, labels (N,)).
        epochs: passes over the training data, at least 1.
        lr: learning rate, positive.
        optimizer: "adam", "adamw", "sgd", or "momentum" (SGD with momentum 0.9).
        weight_decay: as the optimizer's, at least 0.
        seeds: how many, at least 2 for a verdict.
        out: folder of the results.
        engine: where runs are computed; by default in as many processes as there are processors, so factories and data
            must be picklable (by cloudpickle, which takes functions of a script and of a notebook too).
        command: what redoes the study, for the report.
        watch: is told, about once a second, how many runs are done.

    Returns:
        The evidence: one section, whose verdict is "supported" where the first variant's test accuracy is above every
        other's, by the 95% interval over paired seeds; "contradicted" where another's is above it; else "undecided".

    Raises:
        InvalidArgumentError (a ValueError): fewer than two variants, or a setting out of range.
        RecordError: `out` holds another study, or cannot be written to.

    Example::

        sn.compare({"batch": build, "none": build_plain}, loaders, epochs=5)
    """
    _check(variants, epochs, lr, optimizer, seeds)
    settings = {"epochs": epochs, "lr": lr, "optimizer": optimizer, "weight_decay": weight_decay, "data": NAME}
    claim = _claim(dict(variants), data, Preset(seeds, {"network": list(variants)}, settings))
    described = {NAME: Data("the user's own", "", {})}
    return run(
        {NAME: claim},
        claim.cells("own"),
        Path(out),
        preset="own",
        command=command,
        data=described,
        engine=engine,
        watch=watch,
    )


def normalized(factory: Factory, norms: Iterable[str]) -> dict[str, Factory]:
    """The network of a factory with its batch normalization converted to each of `norms`; "batch" leaves it.

    Args:
        factory: makes a network with batch normalization.
        norms: as `convert_` names them: "batch", "group", "layer", "instance", "none", "ghost", ...
    """
    return {norm: factory if norm == "batch" else partial(_converted, factory, norm) for norm in norms}


def _converted(factory: Factory, norm: str) -> nn.Module:
    model = factory()
    convert_(model, to=norm)
    return model


def judge(names: list[str], results: Results) -> Judgement:
    """Whether the first variant is better than every other."""
    first, *others = ({"network": name} for name in names)
    effects: list[Effect] = [
        difference(
            results,
            "test accuracy",
            first,
            other,
            f"test accuracy, {first['network']} − {other['network']}",
            "points",
            scale=100,
        )
        for other in others
    ]
    measures = ("test accuracy", "best validation accuracy", "test loss")
    return Judgement(
        judged_best(effects),
        "; ".join(map(in_words, effects)) + ".",
        effects,
        [training_figure(results, "network")],
        [means(results, ["network"], {name: name for name in measures})],
    )


def claims_of(study: Study) -> dict[str, Claim]:
    """The claims of a kept study; those of the user's own networks can be judged, not run."""
    if study.claims != [NAME]:
        return find(study.claims)
    names = list(dict.fromkeys(str(cell.factors["network"]) for cell in study.cells))
    return {NAME: _claim(dict.fromkeys(names, nn.Identity), tuple, Preset(1, {"network": names}, {}))}


def _claim(variants: Mapping[str, Factory], data: Callable[[], Iterable[Any]], preset: Preset) -> Claim:
    names = list(variants)
    return Claim(
        name=NAME,
        question=f"Is {names[0]} better than {' and '.join(names[1:])}?",
        source="the user's own networks",
        factors=f"the network: {', '.join(names)}",
        equal="seed, data and its order, optimizer, learning rate, epochs",
        measure="test accuracy after the last epoch",
        rule=f"supported if {names[0]} is above every other, contradicted if another is above it, by the 95% interval "
        "of the difference over paired seeds",
        would_change="a learning rate tuned for each network, more seeds, longer training",
        data=(),
        presets={"own": preset},
        run=partial(_run, dict(variants), data),
        judge=partial(judge, names),
    )


def _run(variants: Mapping[str, Factory], data: Callable[[], Iterable[Any]], cell: Cell, tools: Tools) -> Outcome:
    model = variants[str(cell.factors["network"])]()
    return fit(model, Recipe.of(cell), Loaders(data(), cell.seed), tools.keeper)


def _check(variants: Mapping[str, Factory], epochs: int, lr: float, optimizer: str, seeds: int) -> None:
    if len(variants) < 2 or not all(callable(make) and not isinstance(make, nn.Module) for make in variants.values()):
        raise InvalidArgumentError(
            f"compare: expected at least two factories by name, got {dict(variants)!r:.200}. Pass functions that build "
            'a network, such as {"batch": build, "none": build_plain}.'
        )
    if epochs < 1 or seeds < 1 or not 0 < lr < float("inf"):
        raise InvalidArgumentError(
            f"compare: expected epochs >= 1, seeds >= 1 and lr > 0, got epochs={epochs}, seeds={seeds}, lr={lr}."
        )
    if optimizer not in OPTIMIZERS:
        raise InvalidArgumentError(f"compare: expected an optimizer of {', '.join(OPTIMIZERS)}, got {optimizer!r}.")
