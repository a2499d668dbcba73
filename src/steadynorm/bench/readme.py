"""What the README says of a benchmark, in full sentences for a stranger; what was not measured is left out."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator

from . import cold, exactness, fresh, small, summary
from .cases import FIRST, FORWARD, INFERENCE, LAST, PLAIN, RELU, RESNET50, TRAINING
from .networks import NONE
from .providers import IN_PLACE, OURS, TORCH
from .record import Benchmark

_BOTH = f"{FORWARD}+{cold.BACKWARD}"


def exactness_in_a_sentence(benchmark: Benchmark) -> str:
    """Largest errors at a large mean, channels last."""
    found = exactness.largest_errors(benchmark.exactness, LAST)
    if found is None:
        return "**Exact.** On data far from 0 these layers lose no accuracy, in either memory order."
    (row,) = [row for row in benchmark.exactness if row["order"] == LAST]
    theirs, ours = found
    return wrapped(
        f"**Exact.** On standard normal data around a mean of {row['mean']:,.0f}, {tuple(row['shape'])} {LAST}, the "
        f"largest error of torch's layer in training is {theirs:.1f}, where the largest true value is "
        f"{row['largest']['y']:.1f}. The largest error of this layer is {_power(ours)}. Errors are measured against "
        "the equations in float64 (`make bench`)."
    )


def wrapped(text: str, indent: str = "") -> str:
    """A paragraph in lines of a document; none begins with a plus, which would make it a list."""
    kept = text.replace(" + ", "\N{NO-BREAK SPACE}+ ")
    lines = textwrap.fill(kept, 118, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False)
    return lines.replace("\N{NO-BREAK SPACE}", " ")


def _power(value: float) -> str:
    """8e-07 as 8·10⁻⁷."""
    digits, exponent = f"{value:.0e}".split("e")
    return f"{digits}·10{str(int(exponent)).translate(str.maketrans('-0123456789', '⁻⁰¹²³⁴⁵⁶⁷⁸⁹'))}"


def speed(benchmark: Benchmark) -> str:
    """A list, what matters most first."""
    said = benchmark.environment
    where = f"{said.get('threads', '?')} threads of {said.get('processor', '?')}, torch {said.get('torch', '?')}"
    first = wrapped(
        f"Measured beside torch's own layers by `make bench` on {where}. [All tables](docs/benchmarks.md), with every "
        "case where torch is faster."
    )
    parts = [
        _cold(benchmark),
        _warm(benchmark),
        _worst(benchmark),
        _small(benchmark),
        _step(benchmark),
        _fresh(benchmark),
    ]
    return "\n".join(
        [first, "", *(wrapped("- " + " ".join(sentences), "  ") for part in parts if (sentences := list(part)))]
    )


def _cold(benchmark: Benchmark) -> Iterator[str]:
    sums, layers = cold.sums(benchmark.cold), cold.layers(benchmark.cold)
    for order, by_mode in sums.items():
        found = by_mode[_BOTH]
        if order == FIRST:
            yield (
                f"**In a network**, where caches hold something else when a layer is called: the {found.layers} "
                f"normalizations of a ResNet-50 with their ReLUs and additions (batch {cold.BATCH}, 160 pixels) take, "
                "forward and backward,"
            )
        end = ", and" if order == FIRST and LAST in sums else "."
        yield (
            f"{found.ours:.0f} ms where torch's layers with ReLU in place take {found.torch:.0f} ms {order} "
            f"({found.torch / found.ours:.2f} times as fast){end}"
        )
    if layers:
        worst = min(layers, key=lambda layer: layer.ratio(FORWARD, cold.BACKWARD))
        yield (
            f"The slowest of these layers beside torch's is {worst.shape} {worst.order}, {worst.epilogue}: "
            f"{worst.ratio(FORWARD, cold.BACKWARD):.2f} times as fast."
        )


def _warm(benchmark: Benchmark) -> Iterator[str]:
    """Geometric means and worst cases of BN + ReLU beside torch's layer and ReLU."""
    found = summary.grouped(benchmark, RESNET50)

    def beside(order: str, dtype: str, mode: str) -> str:
        values = found[order, dtype, RELU, mode, TORCH]
        return f"{summary.geometric_mean(values):.2f} times as fast {order} (worst shape {min(values):.2f})"

    kinds = {
        ("float32", TRAINING): "Forward and backward in float32",
        ("bfloat16", TRAINING): "Forward and backward in bfloat16",
        ("float32", INFERENCE): "Inference in float32",
    }
    known = {
        said: " and ".join(beside(order, dtype, mode) for order in (FIRST, LAST))
        for (dtype, mode), said in kinds.items()
        if all((order, dtype, RELU, mode, TORCH) in found for order in (FIRST, LAST))
    }
    if known:
        yield (
            "**One layer alone**, called again and again: BN + ReLU beside torch's layer and ReLU, as geometric means "
            f"over ResNet-50's {len(RESNET50)} shapes at batch 32."
        )
    yield from (f"{said}: {ratios}." for said, ratios in known.items())


def _worst(benchmark: Benchmark) -> Iterator[str]:
    every = [each for each in summary.comparisons(benchmark) if each.peer in (TORCH, IN_PLACE)]
    if not every:
        return
    slower, worst = [each for each in summary.slower(benchmark) if each in every], min(every)
    where = f"{worst.shape} {worst.order}, {worst.dtype}, {worst.epilogue}, {worst.mode}"
    yield (
        f"**The worst case**: of {len(every)} comparisons with torch's layer, with and without ReLU in place, "
        f"{len(slower)} are below {summary.AS_FAST} times as fast. The slowest, {where}, is {worst.ratio:.2f} times as "
        "fast."
    )


def _small(benchmark: Benchmark) -> Iterator[str]:
    for shape in small.SHAPES:
        found = [small.ratio(benchmark.small, shape, epilogue, TRAINING) for epilogue in (PLAIN, RELU)]
        if found[0] and found[1]:
            first = "**Small tensors**: " if shape == small.SHAPES[0] else ""
            yield (
                f"{first}{shape} forward and backward is {found[0]:.2f} times as fast as torch's layer, and with ReLU "
                f"{found[1]:.2f} times."
            )


def _step(benchmark: Benchmark) -> Iterator[str]:
    for row in benchmark.networks:
        if (row["depth"], row["mode"]) == (50, "training"):
            none, ours, theirs = (row["timings"][name]["median"] for name in (NONE, OURS, TORCH))
            first = "**A whole ResNet-50 training step** takes" if row["order"] == FIRST else "It takes"
            yield (
                f"{first} {ours / none - 1:.0%} longer than without any normalization {row['order']}, with torch's "
                f"layers {theirs / none - 1:.0%} longer."
            )


def _fresh(benchmark: Benchmark) -> Iterator[str]:
    found = fresh.beyond(benchmark.fresh)
    if found is None:
        return
    seconds, megabytes = found
    memory = "" if megabytes is None else f" and {megabytes:.1f} MB of memory"
    yield (
        f"**A fresh process** needs {seconds:.2f} s{memory} more than with torch's layer, for the import and the first "
        "training step."
    )
