"""BatchRenorm as a layer: statistics under control, checkpointing, compilers, and what it refuses."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch.func import functional_call, stack_module_state, vmap
from torch.utils.checkpoint import checkpoint

import steadynorm as sn

from ..support.refusals import expect_unchanged
from ..support.twins import agree, agree_in_state, normal

DOUBLE = torch.float64
BOUNDS: dict[str, Any] = {"rmax": 3.0, "dmax": 5.0}


@pytest.fixture(autouse=True)
def fresh_compiler() -> Iterator[None]:
    torch.compiler.reset()
    yield
    torch.compiler.reset()


def renorm_layer(**settings: Any) -> Any:
    return sn.BatchRenorm2d(3, dtype=DOUBLE, **{**BOUNDS, **settings})


# ---- statistics ----


@pytest.mark.parametrize("momentum", [0.3, None])
def test_statistics_move_as_batch_norms(momentum: float | None) -> None:
    layer, plain = renorm_layer(momentum=momentum), sn.BatchNorm2d(3, momentum=momentum, dtype=DOUBLE)
    for seed, size in enumerate((12, 0, 9)):
        x = normal(size, 3, 2, 3, seed=seed)
        layer(x)
        plain(x)
        agree_in_state(layer, plain)


def test_held_guarded_and_accumulated() -> None:
    layer, plain = renorm_layer(), sn.BatchNorm2d(3, dtype=DOUBLE)
    before, x = copy.deepcopy(layer.state_dict()), normal(20, 3, 2, 3)
    with sn.hold_statistics(layer):
        held = layer(x)
    agree(dict(layer.state_dict()), dict(before), rtol=0, atol=0)
    agree(held, copy.deepcopy(layer)(x))
    poisoned = x.clone()
    poisoned[0, 0] = torch.inf
    with sn.guard_statistics(layer) as guard, pytest.warns(sn.NonFiniteStatisticsWarning, match="guard_statistics"):
        layer(poisoned)
    assert guard.kept_out == {"": 1}
    agree(dict(layer.state_dict()), dict(before), rtol=0, atol=0)
    with sn.accumulate_statistics(layer, 2):
        layer(x[:9])
        layer(x[9:])
    plain(x)
    agree_in_state(layer, plain)


def run_twice(layer: Any, x: torch.Tensor, how: str) -> list[torch.Tensor]:
    """The layer on two batches before one backward pass; gradients of x and of the parameters."""
    leaf = x.clone().requires_grad_()

    def call(part: torch.Tensor) -> torch.Tensor:
        return layer(part) if how == "plain" else checkpoint(layer, part, use_reentrant=how == "reentrant")

    loss = call(leaf).square().sum() + call(2 * leaf + 1).tanh().sum()
    loss.backward()
    assert leaf.grad is not None
    return [leaf.grad, *(p.grad for p in layer.parameters())]


@pytest.mark.parametrize("how", ["reentrant", "not reentrant"])
def test_checkpointing_repeats_the_corrections(how: str) -> None:
    """The running statistics have moved twice since the forward; its r and d, and so the gradient, are the same."""
    once, again = renorm_layer(), renorm_layer()
    x = normal(10, 3, 2, 3)
    agree(run_twice(again, x, how), run_twice(once, x, "plain"))
    agree_in_state(again, once)


@pytest.mark.parametrize("how", ["reentrant", "not reentrant"])
def test_checkpointing_the_last_step_without_corrections(how: str) -> None:
    """The count of batches has passed a step of the schedule since the forward."""
    layers = [renorm_layer(rmax=lambda step: 1 + 2 * (step > 1), dmax=0) for _ in range(2)]
    x = normal(10, 3, 2, 3)
    agree(run_twice(layers[0], x, how), run_twice(layers[1], x, "plain"))


def test_one_value() -> None:
    layer = sn.BatchRenorm1d(3, dtype=DOUBLE, single_value="running", **BOUNDS)
    x = normal(1, 3)
    agree(layer(x), copy.deepcopy(layer).eval()(x))
    assert layer.num_batches_tracked == 0


# ---- a layer among others ----


@pytest.mark.parametrize(("kind", "shape"), [("1d", (5, 3)), ("2d", (5, 3, 2, 2)), ("3d", (5, 3, 2, 2, 2))])
def test_checkpoints_both_ways(kind: str, shape: tuple[int, ...]) -> None:
    theirs = getattr(torch.nn, f"BatchNorm{kind}")(3, dtype=DOUBLE)
    layer = getattr(sn, f"BatchRenorm{kind}")(3, dtype=DOUBLE, **BOUNDS)
    theirs(normal(*shape))
    layer.load_state_dict(theirs.state_dict(), strict=True)
    agree(layer.eval()(normal(*shape)), theirs.eval()(normal(*shape)))
    layer.train()(normal(*shape, seed=1))
    theirs.load_state_dict(layer.state_dict(), strict=True)
    agree_in_state(layer, theirs)
    twin = copy.deepcopy(layer)
    assert isinstance(twin, type(theirs))
    agree(twin.train()(normal(*shape)), layer.train()(normal(*shape)))


def test_repr() -> None:
    expected = "BatchRenorm2d(3, eps=1e-05, momentum=0.1, affine=True, bias=True, track_running_stats=True"
    assert repr(sn.BatchRenorm2d(3, rmax=2, dmax=1.5)) == f"{expected}, rmax=2, dmax=1.5)"


@pytest.mark.parametrize("order", [torch.contiguous_format, torch.channels_last], ids=["first", "last"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_sixteen_bits_and_memory_order(dtype: torch.dtype, order: torch.memory_format) -> None:
    """The float32 layer's output, rounded, in the input's memory order; statistics float32."""
    x = normal(7, 3, 4, 5, dtype=dtype).to(memory_format=order).requires_grad_()
    layer, twin = sn.BatchRenorm2d(3, **BOUNDS).to(dtype), sn.BatchRenorm2d(3, **BOUNDS)
    y = layer(x)
    (dx,) = torch.autograd.grad(y, x, torch.ones_like(y))
    assert y.stride() == dx.stride() == x.stride()
    assert (y.dtype, layer.weight.dtype) == (dtype, torch.float32)
    eps = torch.finfo(dtype).eps
    torch.testing.assert_close(y.float(), twin(x.float()), rtol=eps, atol=eps)
    agree_in_state(layer, twin, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("settings", [{}, {"rmax": sn.nn.Ramp(1, 3, 0, 4)}], ids=["numbers", "ramp"])
def test_compiled(settings: dict[str, Any]) -> None:
    layer = renorm_layer(activation="relu", **settings)
    compiled: Any = torch.compile(copy.deepcopy(layer), fullgraph=True, backend="aot_eager")
    for seed in range(3):
        mask, found = torch.rand(6, 2, 3, generator=torch.Generator().manual_seed(seed)) < 0.8, []
        for call in (compiled, layer):
            x = normal(6, 3, 2, 3, seed=seed).requires_grad_()
            y = call(x, mask=mask)
            found.append([y, *torch.autograd.grad(y, x, normal(*y.shape, seed=3))])
        agree(*found, rtol=1e-6, atol=1e-6)  # a compiled ramp is float32
    agree(dict(compiled._orig_mod.state_dict()), dict(layer.state_dict()))


def test_stacked_models() -> None:
    """vmap over models gives each its output and its running statistics."""
    models = [torch.nn.Sequential(torch.nn.Conv2d(2, 3, 1), renorm_layer()).double() for _ in range(3)]
    parameters, buffers = stack_module_state(models)  # type: ignore[arg-type]
    base, x = copy.deepcopy(models[0]).to("meta"), normal(5, 2, 2, 2)
    together = vmap(lambda p, b: functional_call(base, (p, b), (x,)))(parameters, buffers)
    agree(together, torch.stack([model(x) for model in models]))
    for index, model in enumerate(models):
        agree({name: b[index] for name, b in buffers.items()}, dict(model.named_buffers()))


# ---- refusals ----


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"rmax": 0.5}, r"BatchRenorm2d: expected rmax >= 1, got 0\.5\. It bounds the correction: rmax=1, dmax=0 is"),
        ({"rmax": float("nan")}, r"expected rmax >= 1, got nan"),
        ({"rmax": "3"}, r"expected rmax >= 1, got '3'"),
        ({"rmax": sn.nn.Ramp(0, 3, 0, 10)}, r"expected rmax >= 1, got 0"),
        ({"dmax": -1}, r"expected dmax >= 0, got -1"),
        ({"dmax": sn.nn.Ramp(0, -2, 0, 10)}, r"expected dmax >= 0, got -2"),
        ({"track_running_stats": False}, r"BatchRenorm2d: expected track_running_stats=True, got False\. It corrects"),
    ],
    ids=str,
)
def test_settings_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message) as info:
        sn.BatchRenorm2d(3, **settings)
    assert isinstance(info.value, sn.SteadynormError)


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("rmax", 0.5, "expected rmax >= 1, got 0.5"),
        ("dmax", lambda step: -1.0 - step, "expected dmax >= 0, got -1.0"),
        ("running_mean", None, "expected running_mean, running_var and num_batches_tracked in training, got None"),
        ("num_batches_tracked", None, "expected running_mean, running_var and num_batches_tracked in training"),
        ("eps", 0.0, "expected eps > 0 in training"),
    ],
)
def test_settings_changed_later(name: str, value: Any, message: str) -> None:
    layer = renorm_layer()
    setattr(layer, name, value)

    def call() -> None:
        with pytest.raises(ValueError, match=rf"BatchRenorm2d\(num_features=3\): {message}"):
            layer(normal(8, 3, 2, 2))

    expect_unchanged(layer, call)


def test_input_refused_as_by_batch_norm() -> None:
    layer = sn.BatchRenorm2d(3, **BOUNDS)
    for x, message in (
        (torch.randn(6, 3, 4), "expected a 4-D input"),
        (torch.randn(6, 4, 2, 2), "for each of the 4 channels"),
        (torch.randn(1, 3, 1, 1), "expected more than 1 value per channel"),
    ):
        with pytest.raises((ValueError, RuntimeError), match=rf"BatchRenorm2d\(num_features=3\): .*{message}"):
            layer(x)
    assert layer.num_batches_tracked == 0
