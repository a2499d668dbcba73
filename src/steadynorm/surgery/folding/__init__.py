"""A model without its batch normalization, for inference, with the proof that it computes the same."""

from __future__ import annotations

import copy
import warnings
from typing import Any, NamedTuple

import torch
from torch import nn

from ...errors import FoldError, InvalidArgumentError
from ..example import Example, example_of
from .carry import Numbers, carry_out_, places
from .flow import Flow, trace
from .given import check_model, copies, shapes, tolerance_of
from .pairs import Fold, Plan, plan
from .proof import EXACT, Errors, arguments, compare, record, twin
from .report import Folded, Kept, Pair
from .watch import Seen, watch

__all__ = ["Folded", "Kept", "Pair", "fold"]

RETRIES = 4
"""How many norms may stay because the proof fails with them, before it fails as a whole."""
_PARTIAL = "inside a forward that is not traced: proven on the example's branch only"
_WRONG = (
    "The forward does not do what torch.fx saw, which shows it no Tensor where it asks isinstance, or this is a bug: "
    "report it."
)


def fold(model: nn.Module, example_inputs: Any = None, *, tolerance: float | None = None) -> Folded:
    r"""A copy for inference in which every norm that can be is folded into the layers beside it, with the proof.

    .. math:: \gamma \frac{(W x + b) - \mu}{\sqrt{\sigma^2 + \epsilon}} + \beta = W' x + b'

    A norm is folded into the convolutions (1d to 3d, plain or transposed, any groups) or linear layers before it; or
    into those after it, unless they pad by zeros; or into a norm before it. torch's batch normalization is, ours,
    frozen ones and whitening, and timm's with an activation, which stays. Numbers are folded in float64 and rounded
    once. Which layer feeds which is known from tracing the forward, which a run on the example must confirm; layers
    called several times, outputs used twice or kept, and operations in between are seen. What is not safe is kept, and
    listed with the reason.

    Then both models are run on the example and compared where the norms were and at the end, in float64 and in their
    own dtype; a norm with which that fails is kept, too. Sizes that the example has do not enter: the copy takes every
    shape that the model takes. What is taken from the example is the number of dimensions at each norm, and which
    arguments are given: call the copy with these.

    Args:
        model: in eval mode; it is not changed.
        example_inputs: what the model is called with: a tensor, a tuple of arguments, or a dict of keyword arguments.
        tolerance: the largest error allowed in the model's own dtype, relative to the largest value, positive; None
            for the root of its machine epsilon (3e-4 for float32: half of its digits). In float64 it is always 1e-9.

    Returns:
        `Folded`: the model and the report. The copy has the class, module tree and modes of the model, with Identity,
        or the activation, where a norm was; its state dict fits every fold of the same architecture of which the same
        norms are gone.

    Raises:
        InvalidArgumentError (a ValueError): no module, no norm in it, no example_inputs, or the model refuses them.
        ModelError (a ValueError): the model is in train mode, wrapped, compiled, on the meta device, or cannot be
            copied.
        FoldError (a RuntimeError): the proof failed, also without the norms at which it did; or the example cannot
            prove anything: values that are not finite, or none.

    Example::

        folded = sn.fold(model.eval(), torch.randn(1, 3, 224, 224))
        print(folded)
        torch.save(folded.model.state_dict(), "folded.pt")

    Reference: Jacob et al. 2018, arXiv:1712.05877, sec. 3.2; Ioffe & Szegedy 2015, arXiv:1502.03167, Alg. 2.
    """
    who = "fold"
    with torch.inference_mode(False):  # which hides changes in place
        check_model(who, model)
        given = example_of(who, example_inputs)
        allowed = tolerance_of(who, model, tolerance)
        return _proven(who, model, given, allowed)


def _proven(who: str, model: nn.Module, example: Example, allowed: float) -> Folded:
    """Folds; a norm with which the proof fails stays, if the proof of the others does not fail."""
    original, _ = copies(who, model)
    flow, seen = _observe(who, original, example)
    kept: dict[str, str] = {}
    failures: list[_Failure] = []
    while True:
        _, folded = copies(who, model)
        found = plan(original, flow, seen, kept)
        if failures and not found.folds:
            raise failures[0].error
        report, failure = _attempt(who, original, folded, example, found, (allowed, list(seen.dims)))
        if failure is None:
            return report
        failures.append(failure)
        if failure.norm is None or len(failures) > RETRIES:
            raise failures[0].error
        kept[failure.norm] = failure.reason
        flow = _trace(original, example)  # whose graphs a plan takes norms out of


class _Failure(NamedTuple):
    """Of a proof: the error to raise, and the first norm where it showed, if at one."""

    error: FoldError
    norm: str | None
    reason: str


def _attempt(
    who: str, original: nn.Module, folded: nn.Module, example: Example, found: Plan, limits: tuple[float, list[str]]
) -> tuple[Folded, _Failure | None]:
    """Carries a plan out on `folded`, and proves it."""
    allowed, order = limits
    numbers = carry_out_(folded, found)
    by_fold = {fold: places(found, fold) for fold in sorted(found.folds, key=lambda fold: order.index(fold.norm))}
    at = [place for those in by_fold.values() for place in those]
    errors = compare(who, record(twin(original), example, at), twin(folded), example)
    exact = _in_float64(who, original, folded, numbers, example, at)
    failure = _judge(who, errors, exact, by_fold, allowed)
    return _report(original, folded, found, by_fold, errors, exact), failure


def _trace(model: nn.Module, example: Example) -> Flow:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # they speak of what torch.fx passes in; the run shows the model's own
        fixed = example.fixed(model)
        flow = trace(model, fixed)
        return trace(model, fixed, arguments(twin(model), example)) if flow.untraced else flow


def _observe(who: str, model: nn.Module, example: Example) -> tuple[Flow, Seen]:
    """Traces the model, and runs it once."""
    try:
        flow = _trace(model, example)
        return flow, watch(twin(model), flow, example.run)
    except Exception as error:
        raise InvalidArgumentError(
            f"{who}: expected example_inputs that the model takes, got {shapes(example)}, and it raised "
            f"{_what(error)}. Give a tensor, a tuple of arguments, or a dict of keyword arguments."
        ) from error


def _in_float64(
    who: str, original: nn.Module, folded: nn.Module, numbers: Numbers, example: Example, at: list[str]
) -> Errors | str:
    """Errors with nothing rounded to the model's dtype; or why the model cannot be run in float64."""
    try:
        theirs = record(copy.deepcopy(original).double(), example.widened(), at)
    except Exception as error:
        return f"the model raised {_what(error)}"
    second = copy.deepcopy(folded).double()
    numbers.write_to(second, torch.float64)
    return compare(f"{who}, in float64", theirs, second, example.widened(), by_channel=True)


def _what(error: Exception) -> str:
    reason = " ".join(str(error).split())
    return f"{type(error).__name__}: {reason:.300}"


def _judge(
    who: str, errors: Errors, exact: Errors | str, by_fold: dict[Fold, list[str]], allowed: float
) -> _Failure | None:
    """What is above tolerance."""
    for kind, found, limit in (("in float64", exact, EXACT), ("in the model's dtype", errors, allowed)):
        if isinstance(found, str) or found.largest <= limit:
            continue
        first = next((fold for fold, those in by_fold.items() if not _at(found, those) <= limit), None)
        at = 0.0 if first is None else _at(found, by_fold[first])
        where = "" if first is None else f", {at:.2g} at the norm {first.norm!r}"
        remedy = "Pass a larger tolerance if that is good enough." if found is errors else _WRONG
        error = FoldError(
            f"{who}: expected an error of at most {limit:.2g} {kind}, got {found.overall:.2g} at the output{where}. "
            f"The model is as before. {remedy}"
        )
        reason = f"the proof failed with it: an error of {at:.2g} {kind}, of {limit:.2g} allowed"
        return _Failure(error, None if first is None else first.norm, reason)
    return None


def _at(errors: Errors, those: list[str]) -> float:
    return max(errors.at[place] for place in those)


def _report(
    original: nn.Module,
    folded: nn.Module,
    found: Plan,
    by_fold: dict[Fold, list[str]],
    errors: Errors,
    exact: Errors | str,
) -> Folded:
    def kind(fold: Fold) -> str:
        norm = type(original.get_submodule(fold.norm)).__name__
        layers = ", ".join(dict.fromkeys(type(original.get_submodule(name)).__name__ for name in fold.targets))
        return f"{layers} → {norm}" if fold.after else f"{norm} → {layers}"

    def exactly(those: list[str]) -> float | None:
        return None if isinstance(exact, str) else _at(exact, those)

    def note(fold: Fold) -> str:
        return _PARTIAL if fold.norm in found.partial else ""

    pairs = [
        Pair(fold.norm, fold.targets, kind(fold), _at(errors, those), exactly(those), note(fold))
        for fold, those in by_fold.items()
    ]
    kept = [Kept(name, reason) for name, reason in found.kept.items()]
    overall, why = (None, exact) if isinstance(exact, str) else (exact.overall, "")
    return Folded(folded, tuple(pairs), tuple(kept), errors.overall, overall, why)
