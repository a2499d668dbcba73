"""A study on the user's own networks and data: trained side by side under the same rules, judged pair by pair."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ..errors import InvalidArgumentError
from ..records import Cell, Effect, Evidence, Study
from ..surgery import convert_
from ..surgery.targets import TARGETS
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

    Every variant is trained with each seed: torch, NumPy and random are seeded, then its factory is called, so variants
    built in the same order have the same initial weights; data is made anew from the same seed, and batches come in the
    same order. Runs are kept in `out` as they finish, those in progress every 15 seconds; calling it again goes on.
    `steadynorm report OUT` draws the page.

    Args:
        variants: at least two factories, by name; each makes a network from inputs to (N, classes) logits.
        data: makes the loaders, for training, validation and perhaps testing, each of batches (input, labels (N,)).
            Without one for testing, the validation data is also what verdicts rest on.
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
        InvalidArgumentError (a ValueError): fewer than two variants, or a setting or loaders that cannot be.
        RecordError: `out` holds another study, of other networks or data too as far as their shapes tell, or cannot be
            written to.

    Example::

        sn.compare({"batch": build, "none": build_plain}, loaders, epochs=5)
    """
    _check(variants, epochs, lr, optimizer, weight_decay, seeds)
    settings = {"epochs": epochs, "lr": lr, "optimizer": optimizer, "weight_decay": weight_decay, "data": NAME}
    described = Loaders(data, 0).describe()
    preset = Preset(seeds, {"network": list(variants)}, {**settings, "networks": _fingerprint(variants)})
    claim = _claim(dict(variants), data, preset, tested="test" in described.examples)
    return run(
        {NAME: claim},
        claim.cells("own"),
        Path(out),
        preset="own",
        command=command,
        data={NAME: described},
        engine=engine,
        watch=watch,
    )


def normalized(factory: Factory, norms: Iterable[str]) -> dict[str, Factory]:
    """The network of a factory with its batch normalization converted to each of `norms`; "batch" leaves it.

    Args:
        factory: makes a network with batch normalization.
        norms: as `convert_` names them: "batch", "group", "layer", "instance", "none", "ghost", ...

    Raises:
        InvalidArgumentError (a ValueError): another name.
    """
    wanted = [norm.strip() for norm in norms]
    if unknown := [norm for norm in wanted if norm not in ("batch", *TARGETS)]:
        raise InvalidArgumentError(f"compare: expected norms of batch, {', '.join(TARGETS)}, got {unknown[0]!r}.")
    return {norm: factory if norm == "batch" else partial(_converted, factory, norm) for norm in wanted}


def _converted(factory: Factory, norm: str) -> nn.Module:
    model = factory()
    convert_(model, to=norm)
    return model


def _fingerprint(variants: Mapping[str, Factory]) -> str:
    """Of what the factories make: modules, settings, shapes. One that raises is left to be recorded as crashed."""
    digest = hashlib.sha256()
    for name, make in variants.items():
        with torch.random.fork_rng(devices=[]):
            try:
                model = make()
                shapes = [(key, tuple(getattr(value, "shape", ()))) for key, value in model.state_dict().items()]
                made = f"{re.sub(' at 0x[0-9a-f]+', '', repr(model))} {shapes}"
            except Exception as error:
                made = type(error).__name__
        digest.update(f"{name}: {made}\n".encode())
    return digest.hexdigest()[:12]


def judge(names: list[str], results: Results, *, tested: bool = True) -> Judgement:
    """Whether the first variant is better than every other, on test data or, without, on validation data."""
    accuracy = _judged_by(tested)
    first, *others = ({"network": name} for name in names)
    effects: list[Effect] = [
        difference(
            results,
            "test accuracy",
            first,
            other,
            f"{accuracy}, {first['network']} − {other['network']}",
            "points",
            scale=100,
        )
        for other in others
    ]
    measures = {
        accuracy: "test accuracy",
        "best validation accuracy": "best validation accuracy",
        accuracy.replace("accuracy", "loss"): "test loss",
    }
    return Judgement(
        judged_best(effects),
        "; ".join(map(in_words, effects)) + ".",
        effects,
        [training_figure(results, "network")],
        [means(results, ["network"], measures)],
    )


def _judged_by(tested: bool) -> str:
    return "test accuracy" if tested else "validation accuracy, last step"


def claims_of(study: Study) -> dict[str, Claim]:
    """The claims of a kept study; those of the user's own networks can be judged, not run."""
    if study.claims != [NAME]:
        return find(study.claims)
    names = list(dict.fromkeys(str(cell.factors["network"]) for cell in study.cells))
    preset = Preset(1, {"network": names}, {})
    return {NAME: _claim(dict.fromkeys(names, nn.Identity), tuple, preset, tested="test" in study.data[NAME].examples)}


def _claim(
    variants: Mapping[str, Factory], data: Callable[[], Iterable[Any]], preset: Preset, *, tested: bool
) -> Claim:
    names = list(variants)
    return Claim(
        name=NAME,
        question=f"Is {names[0]} better than {' and '.join(names[1:])}?",
        source="the user's own networks",
        factors=f"the network: {', '.join(names)}",
        equal="seed, data and its order, optimizer, learning rate, epochs",
        measure=_judged_by(tested) + ("" if tested else ", as there is no loader for testing"),
        rule=f"supported if {names[0]} is above every other, contradicted if another is above it, by the 95% interval "
        "of the difference over paired seeds",
        would_change="a learning rate tuned for each network, more seeds, longer training",
        data=(),
        presets={"own": preset},
        run=partial(_run, dict(variants), data),
        judge=partial(judge, names, tested=tested),
    )


def _run(variants: Mapping[str, Factory], data: Callable[[], Iterable[Any]], cell: Cell, tools: Tools) -> Outcome:
    model = variants[str(cell.factors["network"])]()
    return fit(model, Recipe.of(cell), Loaders(data, cell.seed), tools.keeper)


def _check(
    variants: Mapping[str, Factory], epochs: int, lr: float, optimizer: str, weight_decay: float, seeds: int
) -> None:
    if len(variants) < 2 or not all(callable(make) and not isinstance(make, nn.Module) for make in variants.values()):
        raise InvalidArgumentError(
            f"compare: expected at least two factories by name, got {dict(variants)!r:.200}. Pass functions that build "
            'a network, such as {"batch": build, "none": build_plain}.'
        )
    if epochs < 1 or seeds < 1 or not 0 < lr < float("inf") or not 0 <= weight_decay < float("inf"):
        raise InvalidArgumentError(
            f"compare: expected epochs >= 1, seeds >= 1, lr > 0 and weight_decay >= 0, got epochs={epochs}, "
            f"seeds={seeds}, lr={lr}, weight_decay={weight_decay}."
        )
    if optimizer not in OPTIMIZERS:
        raise InvalidArgumentError(f"compare: expected an optimizer of {', '.join(OPTIMIZERS)}, got {optimizer!r}.")
