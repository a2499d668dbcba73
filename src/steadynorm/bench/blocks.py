"""What documents say of a benchmark: tables, and sentences with figures, each a function of the record."""

from __future__ import annotations

from collections.abc import Callable

from . import cold, exactness, fresh, goals, readme, small, summary
from .cases import FIRST, LAST, RESNET50
from .providers import COMPILED, IN_PLACE, TORCH
from .readme import wrapped
from .record import Benchmark

NOTHING = "*Not in this record.*"


def markdown(header: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    """A table; a sentence where there is nothing to show."""
    if not rows:
        return NOTHING
    lines = [header, ("---",) * len(header), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def machine(benchmark: Benchmark) -> str:
    said = benchmark.environment
    known = [f"{name} {said[name]}" for name in ("torch", "jax", "tensorflow", "python", "system") if name in said]
    where = f"{said.get('threads', '?')} threads on {said.get('processor', 'an unknown processor')}, {', '.join(known)}"
    allocator = "freed memory kept" if said.get("memory") == "kept" else "the default allocator"
    return wrapped(f"The record: {where}, {allocator}.")


def one_layer(benchmark: Benchmark) -> str:
    """ResNet-50's shapes: geometric mean and worst, a row a kind, a column a peer."""
    return _by_peer(benchmark, (TORCH, IN_PLACE, COMPILED))


def frameworks(benchmark: Benchmark) -> str:
    return _by_peer(benchmark, ("jax", "tensorflow"))


def _by_peer(benchmark: Benchmark, peers: tuple[str, ...]) -> str:
    rows: dict[tuple[str, ...], dict[str, str]] = {}
    for (order, dtype, epilogue, mode, peer), values in summary.grouped(benchmark, RESNET50).items():
        if peer in peers:
            said = f"{summary.geometric_mean(values):.2f} ({min(values):.2f})"
            rows.setdefault((dtype, epilogue, mode, order), {})[peer] = said
    lines = [(*key, *(found.get(peer, "") for peer in peers)) for key, found in rows.items()]
    return markdown(("dtype", "epilogue", "mode", "order", *peers), lines)


def memory(benchmark: Benchmark) -> str:
    shares = summary.shares_of_memory_speed(benchmark)
    if not shares:
        return NOTHING
    ranges = []
    for order in (FIRST, LAST):
        found = [share for where, share in shares if order in where]
        if found:
            ranges.append(f"{min(found):.2f} to {max(found):.2f} {order}")
    return wrapped(
        "Of the time that a copy's speed allows for the bytes that must move, for tensors of "
        f"{summary.BIG:g} MB and more, BN + ReLU with float32 in training reaches {' and '.join(ranges)}."
    )


def slower(benchmark: Benchmark) -> str:
    """How many comparisons are below `summary.AS_FAST`, by peer, and each of them."""
    every, found = summary.comparisons(benchmark), summary.slower(benchmark)
    if not every:
        return NOTHING
    counts = [
        f"{sum(each.peer == peer for each in found)} of {sum(each.peer == peer for each in every)} beside {peer}"
        for peer in dict.fromkeys(each.peer for each in every)
    ]
    said = f"Below {summary.AS_FAST} times as fast are {len(found)} of {len(every)} comparisons: {', '.join(counts)}."
    said = wrapped(said)
    if not found:
        return said
    header = ("times as fast as", "ratio", "shape", "order", "dtype", "epilogue", "mode")
    rows = [(each.peer, f"{each.ratio:.2f}", str(each.shape), *each[2:6]) for each in found]
    listed = f"<details><summary>All of them, the slowest first</summary>\n\n{markdown(header, rows)}\n\n</details>"
    return f"{said}\n\n{listed}"


def errors(benchmark: Benchmark) -> str:
    found = summary.errors(benchmark)
    if not found:
        return NOTHING
    worse = summary.worse_errors(benchmark)
    said = f"Our largest error is above torch's in {len(worse)} of {len(found)} cases of the grid"
    return f"{said}." if not worse else f"{said}:\n\n" + "\n".join(f"- {line}" for line in worse)


def disturbed(benchmark: Benchmark) -> str:
    found = summary.unsteady(benchmark)
    if not found:
        return "No timing of the grid was disturbed so much that its quartiles are half the median apart."
    said = f"Something else on the machine disturbed {len(found)} timings: quartiles half the median apart or more"
    listed = "\n".join(f"- {line}" for line in found)
    return f"{said}, also in a second measurement.\n\n<details><summary>Which</summary>\n\n{listed}\n\n</details>"


def copy(benchmark: Benchmark) -> str:
    """Sentences on the memory's speed and on what is in each backward."""
    rows = benchmark.cold
    if not rows:
        return NOTHING
    starts = sorted(row["autograd_ms"] for row in rows)
    rounds = min(timing["rounds"] for row in rows for timing in row["timings"].values())
    return wrapped(
        f"Times are the best of {rounds} rounds. "
        f"The floor is what the bytes that must move take at {cold.copy_speed(rows):.1f} GB/s, the speed of the "
        f"fastest copy of 96 MiB in the same run (and at {cold.ASSUMED:g} GB/s, for other machines). Each backward "
        f"contains autograd's start, {starts[len(starts) // 2]:.2f} ms on cold caches (a graph that does nothing; the "
        "median over the layers), the same for all; nothing is subtracted."
    )


def installed(benchmark: Benchmark) -> str:
    if not benchmark.install:
        return NOTHING
    return f"`pip install .`, beyond its dependencies, takes {benchmark.install[0]['seconds']:.0f} s."


BLOCKS: dict[str, Callable[[Benchmark], str]] = {
    "machine": machine,
    "cold": lambda benchmark: markdown(cold.SUMS_HEADER, cold.sums_table(benchmark.cold)),
    "cold-layers": lambda benchmark: markdown(cold.LAYERS_HEADER, cold.layers_table(benchmark.cold)),
    "copy": copy,
    "one-layer": one_layer,
    "frameworks": frameworks,
    "memory": memory,
    "slower": slower,
    "disturbed": disturbed,
    "small": lambda benchmark: markdown(small.HEADER, small.table(benchmark.small)),
    "exactness": lambda benchmark: markdown(exactness.HEADER, exactness.table(benchmark.exactness)),
    "errors": errors,
    "fresh": lambda benchmark: markdown(fresh.HEADER, fresh.table(benchmark.fresh)),
    "install": installed,
    "relatives": lambda benchmark: markdown(*summary.relatives(benchmark)),
    "networks": lambda benchmark: markdown(summary.NETWORK_HEADER, summary.networks(benchmark)),
    "folding": lambda benchmark: markdown(*summary.folding(benchmark)),
    "studies": lambda benchmark: markdown(*summary.studies(benchmark)),
    "goals": lambda benchmark: markdown(goals.HEADER, goals.table(benchmark)),
    "readme-exactness": readme.exactness_in_a_sentence,
    "readme-speed": readme.speed,
}
"""By the name that a document gives in its mark."""
