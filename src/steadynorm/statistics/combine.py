"""Networks of several clients, domains or checkpoints become one: statistics by total variance, parameters averaged."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NoReturn

import torch
from torch import Tensor, nn

from ..errors import InvalidArgumentError
from ..moments import average, pool, statistics_dtype

WHO = "combine"
MEAN, VAR, TRACKED = "running_mean", "running_var", "num_batches_tracked"
State = Mapping[str, Tensor]


@torch.no_grad()
def combine(parts: Iterable[nn.Module | State], *, weights: Sequence[float] | None = None) -> OrderedDict[str, Tensor]:
    r"""One state dict for networks that were trained, or measured, on different parts of the data.

    .. math:: \mu = \sum_k w_k \mu_k, \quad \sigma^2 = \sum_k w_k \bigl(\sigma_k^2 + (\mu_k - \mu)^2\bigr)

    Running statistics become those of all parts together; a plain mean of variances would forget how far the means are
    apart. Every other floating-point entry becomes the weighted mean, as in federated averaging, and stays bit for bit
    what it is where it is the same in all parts. Nothing of the parts is changed or shared.

    running_var is divided by n - 1 in each part: an estimate of the population's variance, as is the result. Fed
    variances that are divided by n, with the counts as weights, the result is exactly that of all the data.

    Args:
        parts: models, or their state dicts, at least one; of the same names, shapes and dtypes.
        weights: one a part, finite and at least 0, such as the number of its examples; divided by their sum here. A
            part of weight 0 does not count, whatever it holds. By default each layer's num_batches_tracked is its
            weight, and everything but statistics has to be the same in all parts: the same network with the statistics
            of several domains or ranks. A layer whose counts are all 0 has to be the same too.

    Returns:
        A state dict that loads strictly into such a model, on the device of the first part that counts.
        num_batches_tracked is the
        largest of the parts that count, as clients of a federation start each round from a common count; without
        weights it is the sum, so that results combine further.

    Raises:
        InvalidArgumentError (a ValueError): no part, parts that differ in names, shapes or dtypes, no running
            statistics, weights that are not one a part, negative, not finite or all 0, or entries that differ and have
            no mean, or statistics beyond their dtype.

    Example::

        model.load_state_dict(sn.combine(clients, weights=[len(data) for data in datasets]))

    Reference: Chan, Golub & LeVeque 1983; the law of total variance. McMahan et al. 2017, arXiv:1602.05629, for the
    averaging of parameters.
    """
    states = _states(parts)
    shares = None if weights is None else _checked(weights, len(states))
    if shares is not None:
        states = [state for state, share in zip(states, shares, strict=True) if share > 0]
        shares = [share for share in shares if share > 0]
    _check_alike(states)
    first = states[0]
    result: OrderedDict[str, Any] = OrderedDict()
    layers = [name.removesuffix(MEAN) for name in first if _is_last(name, MEAN)]
    if not layers:
        _refuse("batch normalization layers with running statistics", "parts without any", "Pass the models of them.")
    merged = {name: value for layer in layers for name, value in _merge(layer, states, shares).items()}
    for name in first:
        result[name] = merged[name] if name in merged else _mean(name, [state[name] for state in states], shares)
    metadata = getattr(first, "_metadata", None)
    if metadata is not None:
        result._metadata = OrderedDict(metadata)  # type: ignore[attr-defined]
    return result


def _merge(layer: str, states: list[State], shares: list[float] | None) -> dict[str, Tensor]:
    """A layer's running statistics; `layer` ends with a dot, or is empty."""
    mean, tracked = states[0][layer + MEAN], [state.get(layer + TRACKED) for state in states]
    if layer + VAR not in states[0]:
        _refuse(
            f"{MEAN} and {VAR}",
            f"{layer + MEAN!r} without the latter, as a whitening layer has it",
            "A covariance is not merged: leave the layer's entries out of the state dicts, and load with strict=False.",
        )
    counts = [int(count) for count in tracked if count is not None]
    if shares is None and len(counts) < len(states):
        _refuse(f"layers that count their batches, or {layer + TRACKED!r}", "neither", "Pass weights=.")
    own = counts if shares is None else shares
    if shares is None and not any(own) and all(_agree(layer + name, states) for name in (MEAN, VAR)):
        own = [1] * len(own)  # frozen, or from a framework that does not count, and the same
    if min(own) < 0 or max(own) == 0:
        _refuse(f"{layer + TRACKED!r} above 0 in a part, and below in none", f"{own}", "Train first, or pass weights=.")
    wide = statistics_dtype(mean.device)
    weights = torch.tensor(own, dtype=wide, device=mean.device).reshape(-1, *[1] * mean.dim())
    means, variances = (
        torch.stack([state[layer + name].to(mean.device, wide) for state in states]) for name in (MEAN, VAR)
    )
    pooled = dict(zip((MEAN, VAR), pool(weights, means, variances), strict=True))
    result = {
        layer + name: _narrowed(layer + name, value, states[0][layer + name].dtype) for name, value in pooled.items()
    }
    if counts:
        count = sum(counts) if shares is None else max(counts)
        result[layer + TRACKED] = states[0][layer + TRACKED].clone().fill_(count)
    return result


def _mean(name: str, values: list[Any], shares: list[float] | None) -> Any:
    """An entry that is no running statistic."""
    first = values[0]
    if all(_same(first, value) for value in values):
        return first.detach().clone() if isinstance(first, Tensor) else first
    if not isinstance(first, Tensor) or not first.is_floating_point():
        kind = f"{first.dtype} that differs" if isinstance(first, Tensor) else f"a {type(first).__name__} that differs"
        _refuse(f"{name!r} to be floating-point, or the same in all parts", kind, "Leave it out of the state dicts.")
    if shares is None:
        _refuse(
            "weights, or everything but running statistics to be the same in all parts",
            f"no weights, and {name!r} that differs",
            "Pass weights=, one a part, such as the number of its examples.",
        )
    wide = statistics_dtype(first.device)
    stacked = torch.stack([value.to(first.device, wide) for value in values])
    weights = torch.tensor(shares, dtype=wide, device=first.device)
    return average(weights.reshape(-1, *[1] * first.dim()), stacked).to(first.dtype)


def _narrowed(name: str, value: Tensor, dtype: torch.dtype) -> Tensor:
    """A pooled statistic in its dtype, if that holds it: a variance may be beyond those of the parts."""
    narrow = value.to(dtype)
    if (value.isfinite() & ~narrow.isfinite()).any():
        _refuse(
            f"{name!r} to fit into {narrow.dtype}",
            f"{value.abs().nan_to_num(0, 0, 0).max():.3g}",
            "Convert the parts, as by model.float(), first.",
        )
    return narrow


def _agree(name: str, states: list[State]) -> bool:
    return all(_same(states[0][name], state[name]) for state in states)


def _same(one: Any, other: Any) -> bool:
    """Whether two entries are equal, nan included."""
    if not isinstance(one, Tensor):
        return type(one) is type(other) and bool(one == other)
    other = other.to(one.device)
    return bool(((one == other) | ((one != one) & (other != other))).all())


def _states(parts: Any) -> list[State]:
    if isinstance(parts, nn.Module | Mapping):
        _refuse("a list of models or state dicts", f"one {type(parts).__name__}", "Pass them as [one, another].")
    states: list[Any] = [part.state_dict() if isinstance(part, nn.Module) else part for part in parts]
    if not states:
        _refuse("at least one part", "none", "Pass a list of models or state dicts.")
    for index, state in enumerate(states):
        if not isinstance(state, Mapping):
            _refuse("models or state dicts", f"a {type(state).__name__} as part {index}", "Pass its state_dict().")
    return states


def _checked(weights: Sequence[float], parts: int) -> list[float]:
    try:
        shares = [float(weight) for weight in weights]
    except (TypeError, ValueError):
        _refuse("weights that are numbers", f"{weights!r}", "They are the parts' shares of the data.")
    if len(shares) != parts:
        _refuse(f"{parts} weights, one a part", f"{len(shares)}", "A part that should not count has weight 0.")
    if not all(0 <= share < float("inf") for share in shares) or not any(shares):
        _refuse(
            "finite weights >= 0, one or more of them above 0",
            f"{list(weights)}",
            "They are the parts' shares of the data.",
        )
    return shares


def _check_alike(states: list[State]) -> None:
    """Raises InvalidArgumentError for state dicts that are not of one model."""
    first = states[0]
    for other in states[1:]:
        if odd := sorted(first.keys() ^ other.keys()):
            more = f" and {len(odd) - 1} more" if len(odd) > 1 else ""
            _refuse("the same names in all parts", f"{odd[0]!r}{more} in some only", "Pass parts of one model.")
        for name, value in first.items():
            one, another = _form(value), _form(other[name])
            if one != another:
                _refuse(f"{name!r} of one shape and dtype", f"{one} and {another}", "Pass parts of one model.")


def _form(value: Any) -> str:
    return f"{value.dtype} of shape {tuple(value.shape)}" if isinstance(value, Tensor) else f"a {type(value).__name__}"


def _is_last(name: str, entry: str) -> bool:
    return name.rpartition(".")[2] == entry


def _refuse(expected: str, got: str, remedy: str) -> NoReturn:
    raise InvalidArgumentError(f"{WHO}: expected {expected}, got {got}. {remedy}")
