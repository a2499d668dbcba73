"""Everything the benchmark measures, as jobs that are done one by one and need not be done twice."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from . import cold, exactness, folding, fresh, installing, networks, peers, relatives, small, studies
from .cases import FIRST, FORWARD, INFERENCE, LAST, RELU, RESNET50, TRAINING, Case, grid
from .errors import largest
from .processes import NotMeasuredError
from .providers import inputs, steps
from .record import Benchmark, Row
from .timing import copy_step, in_turns, plain, steadier, summed_up

COPY = "copy"
CNN_WITH, CNN_WITHOUT = "CNN with BN", "CNN without BN"
"""Modes of the peers that are a training step of `studies.CNN`."""


class PeerError(NotMeasuredError):
    """Another framework could not be timed."""


class Job(NamedTuple):
    """Something to measure.

    Attributes:
        name: for a person to read.
        rows: the list of a benchmark that it adds to.
        key: values that its rows have, and no other job's.
        measure: gives its rows.
    """

    name: str
    rows: list[Row]
    key: dict[str, Any]
    measure: Callable[[], list[Row]]

    @property
    def done(self) -> bool:
        """Whether the benchmark has its rows."""
        return any(self.key.items() <= row.items() for row in self.rows)

    def run(self) -> None:
        """Adds its rows to the benchmark.

        Raises:
            NotMeasuredError: it could not be measured, as another framework is not installed; nothing is added.
        """
        self.rows.extend(self.measure())


def jobs(
    benchmark: Benchmark, quick: bool, with_networks: bool, peers_python: str | None, source: Path | None = None
) -> list[Job]:
    """All that is wanted of `benchmark`, also what it has already; what matters most comes first."""
    return [
        *_layers(benchmark, quick),
        *_processes(benchmark, quick, with_networks),
        *_comparisons(benchmark, quick, with_networks),
        *_environments(benchmark, quick, peers_python, source),
    ]


def _layers(benchmark: Benchmark, quick: bool) -> Iterator[Job]:
    """Single layers, on cold caches, in batches of calls, and on warm caches."""
    for key in cold.keys(quick):
        name = f"{tuple(key['shape'])}, {key['order']}, {key['epilogue']}, cold"
        yield Job(name, benchmark.cold, key, partial(cold.measure, **key))
    for key in small.keys(quick):
        name = f"{tuple(key['shape'])}, {key['epilogue']}, {key['mode']}, in batches of calls"
        yield Job(name, benchmark.small, key, partial(small.measure, **key))
    for case in grid(quick):
        name = f"{case.shape}, {case.order}, {case.dtype}, {case.epilogue}, {case.mode}"
        key = {**case._asdict(), "shape": list(case.shape)}
        yield Job(name, benchmark.cases, key, partial(_case, case))


def _processes(benchmark: Benchmark, quick: bool, with_networks: bool) -> Iterator[Job]:
    """Fresh processes, and whole steps."""
    for key in fresh.keys(quick):
        yield Job(f"{key['what']} of fresh processes", benchmark.fresh, key, partial(fresh.measure, **key))
    for key in _networks(quick) if with_networks else ():
        name = f"ResNet-{key['depth']}, {key['order']}, {key['mode']}"
        yield Job(name, benchmark.networks, key, partial(_network, key))


def _comparisons(benchmark: Benchmark, quick: bool, with_networks: bool) -> Iterator[Job]:
    """Errors, relatives, folded networks, and the studies."""
    for key in exactness.keys(quick):
        name = f"{tuple(key['shape'])}, {key['order']}, errors at mean {key['mean']:g}"
        yield Job(name, benchmark.exactness, key, partial(exactness.measure, **key))
    for key in relatives.keys(quick):
        measure = partial(_relatives, key)
        yield Job(f"{tuple(key['shape'])}, {key['order']}, relatives", benchmark.relatives, key, measure)
    for key in folding.keys(quick) if with_networks else ():
        measure = partial(_folding, key, not quick)
        yield Job(f"{key['network']}, {key['order']}, folded", benchmark.folding, key, measure)
    for key in studies.keys(quick) if with_networks else ():
        yield Job(f"{key['what']}, {key['size']}", benchmark.studies, key, partial(_studies, key))


def _environments(benchmark: Benchmark, quick: bool, peers_python: str | None, source: Path | None) -> Iterator[Job]:
    """Installing, and other frameworks."""
    for key in installing.keys(source):
        yield Job(key["what"], benchmark.install, key, partial(installing.measure, Path(str(source))))
    for framework in ("jax", "tensorflow") if peers_python else ():
        measure = partial(_peer, benchmark.environment, framework, str(peers_python), quick)
        yield Job(framework, benchmark.peers, {"framework": framework}, measure)


def _case(case: Case) -> list[Row]:
    given = inputs(case)
    compiles = case.dtype == "float32" and case.epilogue == RELU and case.mode != FORWARD and case.shape in RESNET50
    providers = steps(case, given, compiles)
    timings = steadier(lambda: in_turns({COPY: copy_step(given.x), **providers}))
    floor = timings[COPY].median / 2 * case.passes
    row = {**case._asdict(), "shape": list(case.shape), "megabytes": case.megabytes, "floor_ms": floor}
    row["timings"] = plain(timings)
    row["errors"] = largest(case, given, providers) if case.epilogue == RELU else {}
    return [row]


def _relatives(key: Row) -> list[Row]:
    timings = in_turns(relatives.steps(**key), seconds=0.5)
    return [{**key, "timings": plain(timings)}]


def _networks(quick: bool) -> list[Row]:
    settings = [(18, 8, 96)] if quick else [(18, 16, 160), (50, 16, 160)]
    return [
        {"depth": depth, "batch": batch, "pixels": pixels, "order": order, "mode": mode}
        for depth, batch, pixels in settings
        for order in (FIRST, LAST)
        for mode in ("training", INFERENCE)
    ]


def _network(key: Row) -> list[Row]:
    timings = in_turns(networks.steps(**key), seconds=4.0)
    row = {**key, "timings": plain(timings)}
    if key["mode"] == "training" and key["order"] == FIRST:
        sizes = key["depth"], key["batch"], key["pixels"]
        row["peak_megabytes"] = {name: networks.peak_megabytes(name, *sizes) for name in timings}
    return [row]


def _folding(key: Row, compiles: bool) -> list[Row]:
    timings = in_turns(folding.steps(**key, compiles=compiles), seconds=4.0)
    return [{**key, "timings": plain(timings)}]


def _studies(key: Row) -> list[Row]:
    if key["what"] == studies.GRID:
        once = {name: summed_up([found]) for name, found in studies.grids(key["size"]).items()}
        return [{**key, "timings": plain(once)}]
    timings = in_turns(studies.steps(key["size"]), seconds=2.0)
    return [{**key, "timings": plain(timings)}]


def _peer(environment: dict[str, str], framework: str, python: str, quick: bool) -> list[Row]:
    """BN + ReLU, float32, channels last, as both frameworks have it, and a step of the studies' CNN, which JAX has not.

    Its version goes into `environment`.
    """
    shapes = [(32, 64, 56, 56)] if quick else RESNET50
    asked = [((n, h, w, c), mode) for n, c, h, w in shapes for mode in (FORWARD, TRAINING, INFERENCE)]
    asked += [((64, 28, 28, 1), mode) for mode in (CNN_WITH, CNN_WITHOUT)]
    answer = _answer(framework, python, json.dumps(asked))
    environment[framework] = answer["version"]
    return [
        {"framework": framework, "shape": [n, c, h, w], "mode": mode, "median": median}
        for ((n, h, w, c), mode), median in zip(asked, answer["medians"], strict=True)
    ]


def _answer(framework: str, python: str, asked: str) -> dict[str, Any]:
    command = [python, peers.__file__, framework]
    try:
        done = subprocess.run(command, input=asked, capture_output=True, text=True, check=True)
        return json.loads(done.stdout.splitlines()[-1])
    except subprocess.CalledProcessError as error:
        reason = [f"exit code {error.returncode}", *error.stderr.strip().splitlines()][-1]
    except OSError as error:
        reason = str(error.strerror)
    except (ValueError, IndexError):
        reason = "it printed no figures"
    raise PeerError(
        f"{framework} was not timed by {python}: {reason}. Mend that, and the same command times what is missing."
    )
