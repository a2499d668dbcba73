"""What the core reads of tensors: it computes with what fits, and refuses the rest with nothing written."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

import steadynorm as sn
from steadynorm.kernels import Apply
from steadynorm.kernels.running import Running

cpu = pytest.importorskip("steadynorm.kernels.cpu")
_core = cpu._core


def zeros_without_memory(*shape: int) -> Tensor:
    return torch._efficientzerotensor(shape)  # pyright: ignore[reportPrivateImportUsage]


ROOM = torch.zeros(4, 3, 2, 6)
LAST = torch.zeros(4, 5, 6, 3).movedim(-1, 1)
THREE = torch.zeros(3)

TAKEN: dict[str, tuple] = {
    "a matrix": (torch.zeros(4, 3), None, None, None, None, None),
    "channels first": (torch.zeros(4, 3, 5), torch.zeros(4, 3, 5), THREE, THREE, THREE, THREE),
    "channels last": (LAST, torch.zeros_like(LAST), THREE, None, None, None),
    "one channel, in any order": (torch.zeros(4, 5, 1).movedim(-1, 1), torch.zeros(4, 1, 5), None, None, None, None),
    "parameters": (torch.zeros(4, 3), None, torch.nn.Parameter(torch.ones(3)), None, None, None),
    "with a gradient": (torch.zeros(4, 3, requires_grad=True), None, None, None, None, None),
    "float32 beside 16 bits": (torch.zeros(4, 3).bfloat16(), None, THREE, THREE.bfloat16(), THREE, THREE),
    "float64": (torch.zeros(4, 3).double(), None, THREE.double(), None, None, None),
}
NOT_TAKEN: dict[str, tuple] = {
    "gaps": (ROOM[:, :, 0], None, None, None, None, None),
    "broadcast": (torch.zeros(4, 1, 5).expand(4, 3, 5), None, None, None, None, None),
    "no values": (torch.zeros(0, 3), None, None, None, None, None),
    "one dimension": (THREE, None, None, None, None, None),
    "whole numbers": (torch.zeros(4, 3, dtype=torch.int32), None, None, None, None, None),
    "complex numbers": (torch.zeros(4, 3, dtype=torch.complex64), None, None, None, None, None),
    "another device": (torch.zeros(4, 3, device="meta"), None, None, None, None, None),
    "no tensor": (None, None, None, None, None, None),
    "a list": ([[0.0, 1.0]], None, None, None, None, None),
    "sparse": (torch.eye(3).to_sparse(), None, None, None, None, None),
    "residual in another order": (LAST, LAST.contiguous(), None, None, None, None),
    "residual of another dtype": (torch.zeros(4, 3), torch.zeros(4, 3).double(), None, None, None, None),
    "residual of another shape": (torch.zeros(4, 3), torch.zeros(3, 4), None, None, None, None),
    "weight of another size": (torch.zeros(4, 3), None, torch.zeros(4), None, None, None),
    "weight of two dimensions": (torch.zeros(4, 3), None, torch.zeros(1, 3), None, None, None),
    "wider weight": (torch.zeros(4, 3), None, THREE.double(), None, None, None),
    "narrower weight": (torch.zeros(4, 3), None, THREE.bfloat16(), None, None, None),
    "bias elsewhere": (torch.zeros(4, 3), None, None, THREE.to("meta"), None, None),
    "statistics that share a place": (torch.zeros(4, 3), None, None, None, None, torch.zeros(1).expand(3)),
    "vector with gaps": (torch.zeros(4, 3), None, torch.zeros(6)[::2], None, None, None),
    "negative bit": (torch.zeros(4, 3), None, torch.zeros(3, dtype=torch.complex64).conj().imag, None, None, None),
    "one value with a negative bit": (
        torch.zeros(1, 1, dtype=torch.complex64).conj().imag,
        None,
        None,
        None,
        None,
        None,
    ),
    "zeros without memory": (torch.zeros(4, 3), zeros_without_memory(4, 3), None, None, None, None),
    "a tensor of a class of its own": (torch.zeros(4, 3).as_subclass(torch.nn.Buffer), None, None, None, None, None),
}


@pytest.mark.parametrize("case", TAKEN.values(), ids=TAKEN)
def test_taken(case: tuple) -> None:
    assert cpu.takes(*case)


@pytest.mark.parametrize("case", NOT_TAKEN.values(), ids=NOT_TAKEN)
def test_not_taken(case: tuple) -> None:
    assert not cpu.takes(*case)


def test_tensors_of_a_transformation() -> None:
    """They have no memory, which is no error."""
    found: list[bool] = []

    def note(x: Tensor) -> Tensor:
        found.append(cpu.takes(x, None, None, None, None, None))
        return x

    torch.vmap(note)(torch.zeros(2, 4, 3))
    assert found == [False]


def test_alike() -> None:
    x = torch.zeros(4, 3, 5)
    assert _core.alike(x, None, torch.ones(4, 3, 5))
    assert not _core.alike(x, None, x.movedim(1, -1).contiguous().movedim(-1, 1))
    assert not _core.alike(x, x.double())
    assert not _core.alike(x[:, :2], x[:, :2])
    assert not _core.alike(x, zeros_without_memory(4, 3, 5))


def example() -> dict[str, Any]:
    """Arguments of `_core.train`, by name, in order."""
    x = torch.arange(24.0).reshape(4, 3, 2)
    named = {"x": x, "residual": None, "mask": None, "y": torch.full_like(x, 7), "signs": None}
    named |= {"weight": torch.ones(3), "bias": None, "running_mean": torch.zeros(3), "running_var": torch.ones(3)}
    named |= {"batches": torch.tensor(5), "momentum": 0.25, "guarded": False}
    return named | {"activation": 0, "slope": 0.0, "eps": 1e-5, "threads": 1}


WRONG: dict[str, Callable[[dict[str, Any]], Any]] = {
    "x": lambda given: given["x"].int(),
    "residual": lambda given: given["x"].double(),
    "mask": lambda given: torch.ones(4, 1, 2),
    "mask of another size": lambda given: torch.ones(4, 1, 3, dtype=torch.bool),
    "signs": lambda given: torch.zeros(1, dtype=torch.uint8),
    "y": lambda given: given["y"].transpose(0, 2),
    "no y": lambda given: None,
    "elsewhere": lambda given: given["weight"].to("meta"),
    "weight": lambda given: torch.ones(4),
    "running_mean": lambda given: torch.zeros(1).expand(3),
    "running_var": lambda given: torch.ones(3, dtype=torch.int64),
}


@pytest.mark.parametrize("name", WRONG)
def test_refused_with_nothing_written(name: str) -> None:
    given = example()
    kept = {key: value.clone() for key, value in given.items() if isinstance(value, Tensor)}
    argument = {"mask of another size": "mask", "no y": "y", "elsewhere": "weight"}.get(name, name)
    changed = given | {argument: WRONG[name](given)}
    with pytest.raises((ValueError, RuntimeError), match=f"train: expected {argument} |meta"):
        _core.train(*changed.values())
    for key, value in kept.items():
        assert torch.equal(given[key], value), key
    assert _core.train(*given.values())[0] == 3
    assert given["batches"] == 6


def test_wrong_numbers_of_arguments_and_types() -> None:
    given = example()
    with pytest.raises(TypeError, match="train: expected 16 arguments, got 2"):
        _core.train(given["x"], None)
    with pytest.raises(TypeError):
        _core.train(*(given | {"momentum": "much"}).values())
    x, (_, kept) = given["x"], _core.train(*given.values())
    rest = (torch.empty_like(x), None, kept[:-8], None, None, None, None, 0, 0.0, 1e-5, 1)
    with pytest.raises(ValueError, match="train_backward: expected kept "):
        _core.train_backward(x, x, None, None, None, *rest)


@pytest.mark.parametrize("count", [torch.tensor(5, dtype=torch.int32), torch.tensor([5])], ids=["int32", "(1,)"])
def test_a_count_of_another_kind_is_left_to_the_layer(count: Tensor) -> None:
    x, running = torch.arange(12.0).reshape(4, 3), Running(torch.zeros(3), torch.ones(3), batches=count)
    *_, outcome = cpu.train(x, Apply(None, None, 1e-5), running)
    assert not outcome.counted and count == 5
    layer = sn.BatchNorm1d(3)
    layer.num_batches_tracked = count.clone()
    layer(x)
    assert layer.num_batches_tracked == 6


def test_autograd_knows_of_what_the_core_writes() -> None:
    layer = sn.BatchNorm1d(3)
    before = [tensor._version for tensor in layer.buffers()]
    layer(torch.arange(12.0).reshape(4, 3))
    assert [tensor._version for tensor in layer.buffers()] == [version + 1 for version in before]
    assert layer.num_batches_tracked == 1


def test_vectors_with_gaps_and_negative_bits() -> None:
    """Read and written where they lie, with their signs, and nothing between."""
    x = torch.arange(24.0).reshape(4, 3, 2).sin()
    room = torch.full((6,), 9.0)
    mean, var, weight = torch.zeros(3), torch.ones(3), torch.tensor([1.0, -2.0, 3.0])
    negative = torch.complex(torch.zeros(3), -weight).conj().imag
    assert negative.is_neg()
    y = sn.functional.batch_norm(x, room[1::2].zero_(), var.clone(), negative, negative, training=True)
    assert torch.equal(y, sn.functional.batch_norm(x, mean, var, weight, weight, training=True))
    assert torch.equal(room[1::2], mean) and (room[::2] == 9).all()
    y = sn.functional.batch_norm(x, negative, var)
    assert torch.equal(y, sn.functional.batch_norm(x, weight, var))
    running = torch.zeros(3, dtype=torch.complex64).conj().imag
    sn.functional.batch_norm(x, running, torch.ones(3), training=True)
    assert torch.equal(running.resolve_neg(), mean)


def test_one_value_with_a_negative_bit() -> None:
    x = torch.complex(torch.zeros(1, 1), torch.full((1, 1), 3.0)).conj().imag
    assert x.is_neg()
    assert sn.functional.batch_norm(x, torch.zeros(1), torch.ones(1), eps=0.0).item() == -3


def test_a_gradient_of_zeros_without_memory() -> None:
    x = torch.arange(24.0).reshape(8, 3).requires_grad_()
    y = sn.BatchNorm1d(3, activation="relu")(x)
    (dx,) = torch.autograd.grad(y, x, zeros_without_memory(8, 3))
    assert torch.equal(dx, torch.zeros(8, 3))


def test_another_default_device() -> None:
    """What the core writes to is where its data are."""
    x, layer = torch.arange(24.0).reshape(8, 3), sn.BatchNorm1d(3, activation="relu")
    expected = layer(x, residual=x)
    with torch.device("meta"):
        assert torch.equal(layer(x, residual=x), expected)
        assert sn.functional.batch_norm(x[:, :, None].expand(8, 3, 2), None, None, training=True).is_cpu
