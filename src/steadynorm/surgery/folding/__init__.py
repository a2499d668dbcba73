"""A model without its batch normalization, for inference, with the proof that it computes the same."""

from __future__ import annotations

import copy
import math
import warnings
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from ...errors import FoldError, InvalidArgumentError, ModelError
from .carry import Numbers, carry_out_, places
from .flow import Flow, trace
from .layers import is_norm
from .pairs import Fold, Plan, plan
from .proof import EXACT, Errors, Example, compare, record, twin
from .report import Folded, Kept, Pair
from .watch import Seen, watch

__all__ = ["Folded", "Kept", "Pair", "fold"]

_WRONG = (
    "The forward does not do what torch.fx saw, which shows it no Tensor where it asks isinstance, or this is a bug: "
    "report it."
)
_WRAPPERS = (nn.parallel.DistributedDataParallel, nn.DataParallel)


def fold(model: nn.Module, example_inputs: Any = None, *, tolerance: float | None = None) -> Folded:
    r"""A copy for inference in which every norm that can be is folded into the layers beside it, with the proof.

    .. math:: \gamma \frac{(W x + b) - \mu}{\sqrt{\sigma^2 + \epsilon}} + \beta = W' x + b'

    A norm is folded into the convolutions (1d to 3d, plain or transposed, any groups) or linear layers before it; or
    into those after it, unless they pad by zeros; or into a norm before it. torch's batch normalization is, ours,
    frozen ones and whitening, and timm's with an activation, which stays. Numbers are folded in float64 and rounded
    once. Which layer feeds which is known from tracing the forward; layers called several times, outputs used twice
    and operations in between are seen. What is not safe is kept, and listed with the reason.

    Then both models are run on the example and compared where the norms were and at the end, in float64 and in their
    own dtype. Sizes that the example has do not enter: the copy takes every shape that the model takes. What is taken
    from the example is the number of dimensions at each norm, and which arguments are given: call the copy with these.

    Args:
        model: in eval mode; it is not changed.
        example_inputs: what the model is called with: a tensor, a tuple of arguments, or a dict of keyword arguments.
        tolerance: the largest error allowed in the model's own dtype, relative to the largest value, positive; None
            for the root of its machine epsilon (3e-4 for float32: half of its digits). In float64 it is always 1e-9.

    Returns:
        `Folded`: the model and the report. The copy has the class, module tree and modes of the model, with Identity,
        or the activation, where a norm was; its state dict fits every fold of the same architecture.

    Raises:
        InvalidArgumentError (a ValueError): no module, no norm in it, no example_inputs, or the model refuses them.
        ModelError (a ValueError): the model is in train mode, wrapped, compiled, or cannot be copied.
        FoldError (a RuntimeError): the proof failed.

    Example::

        folded = sn.fold(model.eval(), torch.randn(1, 3, 224, 224))
        print(folded)
        torch.save(folded.model.state_dict(), "folded.pt")

    Reference: Jacob et al. 2018, arXiv:1712.05877, sec. 3.2; Ioffe & Szegedy 2015, arXiv:1502.03167, Alg. 2.
    """
    who = "fold"
    _check_model(who, model)
    example = _example(who, example_inputs)
    allowed = _tolerance(who, model, tolerance)
    original, folded = _copies(who, model)
    flow, seen = _observe(who, original, example)
    found = plan(original, flow, seen)
    numbers = carry_out_(folded, found)
    by_fold = {fold: places(found, fold) for fold in found.folds}
    at = [place for those in by_fold.values() for place in those]
    errors = compare(who, record(twin(original), example, at), twin(folded), example)
    exact = _in_float64(who, original, folded, numbers, example, at)
    _judge(who, errors, exact, by_fold, allowed)
    return _report(original, folded, found, by_fold, errors, exact)


def _observe(who: str, model: nn.Module, example: Example) -> tuple[Flow, Seen]:
    """Traces the model, and runs it once."""
    try:
        fixed = example.fixed(model)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # they speak of what torch.fx passes in; the run shows the model's own
            flow = trace(model, fixed)
        return flow, watch(twin(model), flow, example.run)
    except Exception as error:
        reason = " ".join(str(error).split())
        raise InvalidArgumentError(
            f"{who}: expected example_inputs that the model takes, got {_shapes(example)}, and it raised "
            f"{type(error).__name__}: {reason:.300}. Give a tensor, a tuple of arguments, or a dict of "
            "keyword arguments."
        ) from error


def _in_float64(
    who: str, original: nn.Module, folded: nn.Module, numbers: Numbers, example: Example, at: list[str]
) -> Errors | None:
    """Errors with nothing rounded to the model's dtype; None if the model cannot be run in float64."""
    try:
        theirs = record(copy.deepcopy(original).double(), example.widened(), at)
    except Exception:
        return None
    second = copy.deepcopy(folded).double()
    numbers.write_to(second, torch.float64)
    return compare(f"{who}, in float64", theirs, second, example.widened())


def _judge(who: str, errors: Errors, exact: Errors | None, by_fold: dict[Fold, list[str]], allowed: float) -> None:
    """Raises FoldError for what is above tolerance."""
    for kind, found, limit in (("in float64", exact, EXACT), ("in the model's dtype", errors, allowed)):
        if found is None or found.largest <= limit:
            continue
        worst = max(by_fold, key=lambda fold: _at(found, by_fold[fold]), default=None)
        where = "" if worst is None else f", {_at(found, by_fold[worst]):.2g} at the norm {worst.norm!r}"
        remedy = "Pass a larger tolerance if that is good enough." if found is errors else _WRONG
        raise FoldError(
            f"{who}: expected an error of at most {limit:.2g} {kind}, got {found.overall:.2g} at the output{where}. "
            f"The model is as before. {remedy}"
        )


def _at(errors: Errors, those: list[str]) -> float:
    return max(errors.at[place] for place in those)


def _report(
    original: nn.Module,
    folded: nn.Module,
    found: Plan,
    by_fold: dict[Fold, list[str]],
    errors: Errors,
    exact: Errors | None,
) -> Folded:
    def kind(fold: Fold) -> str:
        norm = type(original.get_submodule(fold.norm)).__name__
        layers = ", ".join(dict.fromkeys(type(original.get_submodule(name)).__name__ for name in fold.targets))
        return f"{layers} → {norm}" if fold.after else f"{norm} → {layers}"

    pairs = [
        Pair(fold.norm, fold.targets, kind(fold), _at(errors, those), None if exact is None else _at(exact, those))
        for fold, those in by_fold.items()
    ]
    kept = [Kept(name, reason) for name, reason in found.kept.items()]
    return Folded(folded, tuple(pairs), tuple(kept), errors.overall, None if exact is None else exact.overall)


def _check_model(who: str, model: Any) -> None:
    if isinstance(model, torch.jit.ScriptModule) or hasattr(model, "_orig_mod") or isinstance(model, _WRAPPERS):
        raise ModelError(
            f"{who}: expected a plain model, got {type(model).__name__}, which wraps or compiles one. Fold the model "
            "itself (.module of a parallel one, the one given to torch.compile), then wrap it."
        )
    if not isinstance(model, nn.Module):
        raise InvalidArgumentError(f"{who}: expected a torch.nn.Module, got {type(model).__name__}.")
    norms = {name: module for name, module in model.named_modules() if is_norm(module)}
    if not norms:
        raise InvalidArgumentError(
            f"{who}: expected a model with batch normalization layers, got a {type(model).__name__} without any. "
            "There is nothing to fold."
        )
    training = next((name for name, module in {"": model, **norms}.items() if module.training), None)
    if training is not None:
        what = repr(training) if training else "the model"
        raise ModelError(
            f"{who}: expected a model in eval mode, got {what} in train mode, where batches normalize. Call "
            "model.eval() first."
        )


def _example(who: str, given: Any) -> Example:
    if isinstance(given, Tensor):
        return Example((given,), {})
    if isinstance(given, Mapping) and given and all(isinstance(name, str) for name in given):
        return Example((), dict(given))
    if isinstance(given, (tuple, list)) and given:
        return Example(tuple(given), {})
    got = "nothing" if given is None else f"{type(given).__name__} {given!r:.60}"
    raise InvalidArgumentError(
        f"{who}: expected example_inputs, a tensor, a tuple of arguments or a dict of keyword arguments, got {got}. "
        "The proof runs both models on them: give data as the model will see them, such as torch.randn(1, 3, 224, 224)."
    )


def _tolerance(who: str, model: nn.Module, given: float | None) -> float:
    if given is None:
        dtypes = {value.dtype for value in (*model.parameters(), *model.buffers()) if value.is_floating_point()}
        return math.sqrt(max((torch.finfo(dtype).eps for dtype in dtypes), default=1e-7))
    if not (isinstance(given, (int, float)) and 0 < given < math.inf):
        raise InvalidArgumentError(f"{who}: expected a positive tolerance, got {given!r}.")
    return float(given)


def _copies(who: str, model: nn.Module) -> tuple[nn.Module, nn.Module]:
    """The model, and the one to fold."""
    try:
        return twin(model), copy.deepcopy(model)
    except Exception as error:
        reason = " ".join(str(error).split())
        raise ModelError(
            f"{who}: expected a model that copy.deepcopy can copy, got {type(model).__name__}, which raised "
            f"{type(error).__name__}: {reason:.300}."
        ) from error


def _shapes(example: Example) -> str:
    def shape(value: Any) -> str:
        return f"a tensor {tuple(value.shape)}" if isinstance(value, Tensor) else type(value).__name__

    given = [*map(shape, example.args), *(f"{name}={shape(value)}" for name, value in example.kwargs.items())]
    return ", ".join(given)
