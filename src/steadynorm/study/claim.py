"""A claim about batch normalization: what is asked, how it is measured, and by which rule it is judged."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from ..errors import InvalidArgumentError
from ..records import FINISHED, Cell, Effect, Figure, Series, Setting, Table
from .results import Results
from .tools import Tools

WITHOUT, WITH = "without BN", "with BN"
"""The levels of the factor "network", in claims that have just these."""
IMAGES = 1000
"""So many of a larger data set's images are learned from in the presets that are not full; digits has fewer."""


@dataclass(frozen=True)
class Outcome:
    """What one run gives; see `records.Run`."""

    values: dict[str, float | None]
    series: dict[str, Series] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)
    status: str = FINISHED
    message: str = ""


@dataclass(frozen=True)
class Judgement:
    """What all runs of a claim show; see `records.Section`."""

    verdict: str
    finding: str
    effects: list[Effect]
    figures: list[Figure]
    tables: list[Table] = field(default_factory=list)


@dataclass(frozen=True)
class Preset:
    """How much is run.

    Attributes:
        seeds: how many seeds (0, 1, ...), at least 1; a verdict needs 2.
        grid: the values of each factor; every combination is a run of each seed.
        settings: what is held equal, as `run` reads it.
    """

    seeds: int
    grid: Mapping[str, Sequence[Setting]]
    settings: Mapping[str, Setting]


@dataclass(frozen=True)
class Claim:
    """One claim.

    Attributes:
        name: as the command line knows it.
        question: in one sentence.
        source: who says so, with section.
        factors: what varies, in words.
        equal: what is held equal, in words.
        measure: what is compared, in words.
        rule: when it is supported, contradicted, undecided.
        would_change: what could make the verdict another.
        data: names of the data sets it can be measured on, the default first; none for claims without data.
        presets: "smoke" (seconds), "quick" (a minute or two), "full" (as long as it takes).
        run: trains or computes one cell; a pure function of the cell and its data.
        judge: from all runs there are to the verdict and the figures.
        skip: combinations of factors that make no sense are left out.
    """

    name: str
    question: str
    source: str
    factors: str
    equal: str
    measure: str
    rule: str
    would_change: str
    data: tuple[str, ...]
    presets: Mapping[str, Preset]
    run: Callable[[Cell, Tools], Outcome]
    judge: Callable[[Results], Judgement]
    skip: Callable[[Mapping[str, Setting]], bool] | None = None

    def cells(self, preset: str, *, seeds: int | None = None, data: str | None = None) -> list[Cell]:
        """Every run of a preset; those of one seed follow each other.

        Args:
            preset: its name.
            seeds: how many instead of the preset's.
            data: the data set instead of the default; claims that cannot be measured on it keep theirs.

        Raises:
            InvalidArgumentError (a ValueError): there is no such preset.
        """
        if preset not in self.presets:
            raise InvalidArgumentError(f"{self.name}: expected a preset of {', '.join(self.presets)}, got {preset!r}.")
        found = self.presets[preset]
        settings = dict(found.settings)
        if self.data:
            settings.setdefault("data", self.data[0])
            if data in self.data:
                settings["data"] = data
            if preset != "full" and settings["data"] != "digits":
                settings["images"] = IMAGES
        factors = [dict(zip(found.grid, values, strict=True)) for values in itertools.product(*found.grid.values())]
        kept = [chosen for chosen in factors if self.skip is None or not self.skip(chosen)]
        return [Cell(self.name, chosen, seed, settings) for seed in range(seeds or found.seeds) for chosen in kept]
