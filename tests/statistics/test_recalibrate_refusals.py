"""recalibrate_ changes everything or nothing, and says what is wrong."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import steadynorm as sn

from ..support.refusals import expect_unchanged
from ..support.twins import normal

VERBS = pytest.mark.parametrize("verb", [sn.recalibrate_, sn.adapt_], ids=lambda verb: verb.__name__)
WAYS = pytest.mark.parametrize("sequential", [False, True], ids=["at once", "sequential"])


def build() -> nn.Sequential:
    """Layers of both kinds, some in eval mode, that have seen a batch."""
    model = nn.Sequential(
        nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Dropout(), sn.BatchNorm1d(4), sn.WhiteningBatchNorm(4, 2)
    ).double()
    model(normal(8, 3, seed=5))
    model[2].eval()
    model[3].eval()
    return model


def hooks_of(model: nn.Module) -> list[Any]:
    return [
        [list(value) for name, value in sorted(vars(module).items()) if "hooks" in name] for module in model.modules()
    ]


def refused(kind: type[BaseException], message: str, model: nn.Module, call: Callable[[], Any]) -> None:
    """It raises that, and the model is as before: state bit by bit, modes, hooks."""
    hooks = hooks_of(model)

    def check() -> None:
        with pytest.raises(kind, match=message) as info:
            call()
        assert issubclass(kind, (KeyboardInterrupt, ZeroDivisionError)) or isinstance(info.value, sn.SteadynormError)

    expect_unchanged(model, check)
    assert hooks_of(model) == hooks


def breaking(batches: list[Tensor], at: int, error: BaseException) -> Any:
    """Data that raise the `at`-th time a batch is read, over all passes."""
    left = [at]

    class Data:
        def __iter__(self) -> Iterator[Tensor]:
            for batch in batches:
                left[0] -= 1
                if left[0] == 0:
                    raise error
                yield batch

    return Data()


@VERBS
@WAYS
@pytest.mark.parametrize(
    "error", [ZeroDivisionError("theirs"), KeyboardInterrupt("theirs")], ids=lambda e: type(e).__name__
)
@pytest.mark.parametrize("at", [1, 3, 7])
def test_an_error_in_the_middle(verb: Any, sequential: bool, error: BaseException, at: int) -> None:
    if at == 7 and not sequential:
        at = 2  # there is but one pass
    model = build()
    data = breaking(list(normal(9, 3).split(3)), at, error)
    refused(type(error), "theirs", model, lambda: verb(model, data, sequential=sequential))


@WAYS
def test_an_error_in_the_model(sequential: bool) -> None:
    model, calls = build(), [0]

    def fail(*_: object) -> None:
        calls[0] += 1
        if calls[0] == 2:
            raise ZeroDivisionError("theirs")

    hook = model[4].register_forward_hook(fail)
    refused(ZeroDivisionError, "theirs", model, lambda: sn.recalibrate_(model, normal(9, 3).split(3)))
    hook.remove()

    def call(model: nn.Module, batch: Tensor) -> None:
        model(batch)
        raise ZeroDivisionError("theirs")

    data = normal(9, 3).split(3)
    refused(ZeroDivisionError, "theirs", model, lambda: sn.recalibrate_(model, data, call=call, sequential=sequential))


@WAYS
def test_poisoned_statistics_are_kept_bit_by_bit(sequential: bool) -> None:
    """Also where they are nan, and a success mends them."""
    model = build()
    model.get_buffer("1.running_var").fill_(torch.nan)
    data = breaking(list(normal(9, 3).split(3)), 3, ZeroDivisionError("theirs"))
    refused(ZeroDivisionError, "theirs", model, lambda: sn.recalibrate_(model, data, sequential=sequential))
    found = sn.recalibrate_(model, normal(9, 3).split(3), sequential=sequential)
    assert all(value.isfinite().all() for value in model.state_dict().values())
    assert "nan" in str(found)


X = normal(9, 3)
LATE = [X, torch.where(torch.arange(9)[:, None] == 4, torch.inf, X)]


@VERBS
@pytest.mark.parametrize(
    ("data", "settings", "message"),
    [
        ([], {}, "expected data with at least one batch, got none"),
        ([], {"sequential": True}, "expected data with at least one batch, got none"),
        (X, {}, r"expected data that gives batches one by one.* got Tensor.*list: \[batch\]"),
        ({"input": X}, {}, "got dict"),
        (3, {}, "got int"),
        (iter([X]), {"sequential": True}, "again and again with sequential=True, got the iterator list_iterator"),
        ([X], {"batches": 0}, "expected batches >= 1, or None for all, got 0"),
        ([X], {"batches": 2.5}, r"expected batches >= 1, or None for all, got 2\.5"),
        ([X], {"batches": "a"}, "expected batches >= 1, or None for all, got 'a'"),
        ([X], {"unreached": "skip"}, "expected unreached 'raise' or 'keep', got 'skip'"),
        ([3], {}, "expected batches that are tensors, tuples .* got int. Pass call="),
        ([()], {}, "got tuple"),
        ([X[:1]], {}, "expected at least two values a channel at '1'. Pass more data"),
        ([X[:0], X[:0]], {}, "expected at least two values a channel at '1'"),
        (LATE, {}, r"expected finite data, got a mean or variance at '1' that is inf or nan in torch\.float64"),
        (LATE, {"sequential": True}, "expected finite data, got a mean or variance at '1'"),
    ],
    ids=lambda value: str(value)[:40] if isinstance(value, str) else "",
)
def test_refusals(verb: Any, data: Any, settings: dict, message: str) -> None:
    model = build()
    refused(ValueError, f"{verb.__name__}: .*{message}", model, lambda: verb(model, data, **settings))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"estimator": "mean"}, "recalibrate_: expected estimator 'pooled' or 'paper', got 'mean'"),
        ({"tolerance": 0.0}, r"expected a tolerance > 0 in standard deviations, such as 0\.01, got 0\.0"),
        ({"tolerance": float("nan")}, "got nan"),
    ],
)
def test_refusals_of_recalibrate(settings: dict, message: str) -> None:
    model = build()
    refused(ValueError, message, model, lambda: sn.recalibrate_(model, [X], **settings))


def test_ones_alone_have_no_variance_within() -> None:
    model = nn.Sequential(sn.BatchNorm1d(3)).double()
    refused(
        ValueError,
        "expected at least two values a channel in a batch at '0'",
        model,
        lambda: sn.recalibrate_(model, X.split(1), estimator="paper"),
    )


@VERBS
def test_models_that_have_nothing_to_set(verb: Any) -> None:
    plain = nn.Sequential(nn.Linear(3, 3)).double()
    refused(ValueError, f"{verb.__name__}: expected a model with batch normalization", plain, lambda: verb(plain, [X]))
    without = nn.Sequential(sn.BatchNorm1d(3, track_running_stats=False))
    refused(
        ValueError, "expected layers that keep running statistics, got '0' without", without, lambda: verb(without, [X])
    )
    lazy = nn.Sequential(nn.LazyLinear(3), nn.BatchNorm1d(3))
    with pytest.raises(ValueError, match=r"expected a model that knows its shapes, got '0\.weight' not initialized"):
        verb(lazy, [X])


class Heads(nn.Module):
    """An auxiliary head that is used in training only, as Inception's."""

    def __init__(self) -> None:
        super().__init__()
        self.trunk = sn.BatchNorm1d(3)
        self.head = nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2))

    def forward(self, x: Tensor) -> Any:
        x = self.trunk(x)
        return (x, self.head(x)) if self.training else x


@VERBS
@WAYS
def test_data_that_never_reach_a_layer(verb: Any, sequential: bool) -> None:
    model = Heads().double()
    refused(
        ValueError,
        f"{verb.__name__}: the data never reached 'head.1'.*unreached=\"keep\"",
        model,
        lambda: verb(model, [X], sequential=sequential),
    )
    expect_unchanged(model.head, lambda: verb(model, [X], sequential=sequential, unreached="keep"))
    assert model.trunk.num_batches_tracked == 1
    refused(
        ValueError,
        "the data never reached 'trunk', 'head.1'",
        model,
        lambda: verb(model, [X], call=lambda model, batch: None, unreached="keep"),
    )


def test_data_that_are_others_the_second_time() -> None:
    batches = [X]

    class Once:
        def __iter__(self) -> Iterator[Tensor]:
            while batches:
                yield batches.pop()

    model = build()
    refused(
        ValueError,
        "expected the same batches in each pass with sequential=True, got 1 in the first and 0 in a later one",
        model,
        lambda: sn.recalibrate_(model, Once(), sequential=True),
    )


def test_what_a_dtype_cannot_hold() -> None:
    """A variance of 1e6 in torch's layer of float16."""
    model = nn.Sequential(nn.BatchNorm1d(3)).half()
    x = (X * 300).half()
    refused(ValueError, r"at '0' that is inf or nan in torch\.float16", model, lambda: sn.recalibrate_(model, [x]))


def test_the_model_itself_has_no_name() -> None:
    layer = sn.BatchNorm1d(3).double()
    refused(ValueError, "two values a channel at the model itself", layer, lambda: sn.recalibrate_(layer, [X[:1]]))


def test_a_process_group_without_any() -> None:
    model = build()
    refused(
        RuntimeError,
        "recalibrate_: got a process_group, but torch.distributed is not initialized",
        model,
        lambda: sn.recalibrate_(model, [X], process_group=object()),  # type: ignore[arg-type]
    )


def test_a_layer_refuses_its_input_itself() -> None:
    model = nn.Sequential(sn.BatchNorm2d(3)).double()
    refused(ValueError, r"expected a 4-D input", model, lambda: sn.recalibrate_(model, [X]))
    with pytest.raises(RuntimeError, match="running_mean"):
        sn.recalibrate_(nn.Sequential(nn.BatchNorm1d(4)).double(), [X])
