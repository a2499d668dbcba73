"""combine: the networks of several parts of the data become the network of all of it."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

import steadynorm as sn

from ..support.refusals import expect_unchanged
from ..support.twins import normal

PARTS = st.lists(st.tuples(st.integers(1, 30), st.floats(-1e3, 1e3), st.integers(0, 2**31)), min_size=1, max_size=6)
"""Parts of the data: how many examples, about which mean, and a seed."""


def data_of(parts: list[tuple[int, float, int]]) -> list[Tensor]:
    return [normal(count, 3, seed=seed) + centre for count, centre, seed in parts]


def state_of(data: Tensor, batches: int | None = None) -> dict[str, Tensor]:
    """The exact statistics of the data, the variance divided by n."""
    return {
        "running_mean": data.mean(0),
        "running_var": data.var(0, correction=0),
        "num_batches_tracked": torch.tensor(len(data) if batches is None else batches),
    }


def network(seed: int, dtype: torch.dtype = torch.float32) -> nn.Sequential:
    """Random parameters and statistics, and both kinds of layers."""
    model = nn.Sequential(nn.Linear(2, 3), sn.BatchNorm1d(3), nn.Linear(3, 3), nn.BatchNorm1d(3, affine=False))
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, tensor in model.state_dict().items():
            if tensor.is_floating_point():
                tensor.uniform_(0.5, 2, generator=generator)
            else:
                assert "num_batches_tracked" in name
                tensor.fill_(seed + 1)
    return model.to(dtype)


def expect(found: Any, expected: dict[str, Tensor], rtol: float = 1e-9) -> None:
    assert list(found) == list(expected)
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=rtol, atol=rtol)


@given(PARTS)
def test_exact_statistics_of_parts_give_those_of_all_the_data(parts: list[tuple[int, float, int]]) -> None:
    data = data_of(parts)
    whole = sn.Moments.from_data(torch.cat(data))
    found = sn.combine([state_of(part) for part in data])
    expect(found, {"running_mean": whole.mean, "running_var": whole.var, "num_batches_tracked": whole.count[0].long()})
    counts = [len(part) for part in data]
    by_examples = sn.combine([state_of(part, batches=2) for part in data], weights=counts)
    expect(by_examples, {**found, "num_batches_tracked": torch.tensor(2)})


@given(PARTS, st.randoms())
def test_any_order(parts: list[tuple[int, float, int]], random: Any) -> None:
    states = [state_of(part) for part in data_of(parts)]
    shuffled = states.copy()
    random.shuffle(shuffled)
    expect(sn.combine(shuffled), sn.combine(states))


@given(PARTS.filter(lambda parts: len(parts) > 1), st.data())
def test_any_grouping(parts: list[tuple[int, float, int]], choose: Any) -> None:
    states = [state_of(part) for part in data_of(parts)]
    cut = choose.draw(st.integers(1, len(states) - 1))
    expect(sn.combine([sn.combine(states[:cut]), sn.combine(states[cut:])]), sn.combine(states))
    weights = choose.draw(st.lists(st.floats(0.01, 100), min_size=len(states), max_size=len(states)))
    groups = [sn.combine(states[part], weights=weights[part]) for part in (slice(cut), slice(cut, None))]
    sums = [sum(weights[:cut]), sum(weights[cut:])]
    by_weight = sn.combine(states, weights=weights)
    for name in ("running_mean", "running_var"):
        torch.testing.assert_close(sn.combine(groups, weights=sums)[name], by_weight[name], rtol=1e-9, atol=1e-9)


def test_clients_of_half_the_labels_each() -> None:
    """Two clients hold the digits 0-4 and 5-9; the layer's input is their label. The mean of variances is far off."""
    labels = torch.arange(10.0, dtype=torch.float64).repeat_interleave(50)[:, None]
    halves = labels[:250], labels[250:]
    clients = []
    for half in halves:
        client = nn.Sequential(sn.BatchNorm1d(1, momentum=None, dtype=torch.float64))
        for batch in half[torch.randperm(250, generator=torch.Generator().manual_seed(0))].split(125):
            client(batch)
        clients.append(client)
    found = sn.combine(clients)
    population = labels.var().item()
    plain = torch.stack([client[0].running_var for client in clients]).mean().item()  # type: ignore[arg-type]
    assert found["0.running_var"].item() == pytest.approx(population, rel=0.01)
    assert plain < population / 3
    assert found["0.running_mean"].item() == pytest.approx(4.5)


def test_a_round_of_federated_averaging() -> None:
    """Clients that start from one network and learn halves of the labels: parameters by their examples, statistics by
    total variance; loads strictly, in both kinds of layers, and evaluates as that network does."""
    torch.manual_seed(0)
    server, clients = nn.Sequential(nn.Linear(2, 8), sn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 2)).double(), []
    sizes = (60, 20)
    for label, size in enumerate(sizes):
        client = copy.deepcopy(server)
        x = normal(size, 2, seed=label) + 4 * label
        optimizer = torch.optim.SGD(client.parameters(), 0.1)
        for batch in x.split(20):
            F.cross_entropy(client(batch), torch.full((20,), label)).backward()
            optimizer.step()
        clients.append(client)
    found = sn.combine(clients, weights=sizes)
    server.load_state_dict(found, strict=True)
    one, other = (client.state_dict() for client in clients)
    for name in ("0.weight", "0.bias", "1.weight", "1.bias", "1.running_mean", "3.weight"):
        torch.testing.assert_close(found[name], 0.75 * one[name] + 0.25 * other[name])
    apart = (one["1.running_mean"] - other["1.running_mean"]).square()
    var = 0.75 * one["1.running_var"] + 0.25 * other["1.running_var"] + 0.75 * 0.25 * apart
    torch.testing.assert_close(found["1.running_var"], var)
    assert found["1.num_batches_tracked"] == 3
    assert found._metadata == one._metadata  # type: ignore[attr-defined]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("weights", [None, [1 / 3, 0.1, 7]])
def test_equal_parts_stay_bit_for_bit(dtype: torch.dtype, weights: list[float] | None) -> None:
    part = nn.Sequential(nn.Linear(5, 40), nn.BatchNorm1d(40)).to(dtype)
    part(normal(8, 5).to(dtype))
    state = part.state_dict()
    found = sn.combine([part, copy.deepcopy(part), state], weights=weights)
    for name, value in state.items():
        tracked = name.endswith("tracked") and weights is None
        assert torch.equal(found[name], value * 3 if tracked else value)
        assert found[name].dtype == value.dtype
        assert found[name].data_ptr() != value.data_ptr()


def test_same_network_with_the_statistics_of_several_domains() -> None:
    one = network(0)
    other = copy.deepcopy(one)
    other.get_buffer("1.running_mean").add_(1)
    found = sn.combine([one, other])
    torch.testing.assert_close(found["1.running_mean"], one.get_buffer("1.running_mean") + 0.5)
    torch.testing.assert_close(found["1.running_var"], one.get_buffer("1.running_var") + 0.25)
    assert torch.equal(found["0.weight"], one.get_parameter("0.weight"))


def test_arithmetic_is_rounded_once() -> None:
    """Means 1e4 apart by 1e-3, and bfloat16 entries: the float64 result, rounded to the entry's dtype."""
    generator = torch.Generator().manual_seed(0)
    for dtype in (torch.float32, torch.bfloat16):
        states = [
            {
                "running_mean": (1e4 + torch.rand(50, generator=generator) * 1e-3).to(dtype),
                "running_var": torch.rand(50, generator=generator).to(dtype),
                "weight": torch.rand(50, generator=generator).to(dtype),
            }
            for _ in range(3)
        ]
        found = sn.combine(states, weights=[1, 2, 5])
        shares = torch.tensor([1, 2, 5], dtype=torch.float64)[:, None] / 8
        mean, var, weight = (
            torch.stack([state[name].double() for state in states])
            for name in ("running_mean", "running_var", "weight")
        )
        centre = (shares * mean).sum(0)
        assert torch.equal(found["running_mean"], centre.to(dtype))
        assert torch.equal(found["running_var"], (shares * (var + (mean - centre).square())).sum(0).to(dtype))
        assert torch.equal(found["weight"], (shares * weight).sum(0).to(dtype))


def test_parts_of_weight_zero_do_not_count_whatever_they_hold() -> None:
    good, bad = network(1), network(2)
    for tensor in bad.state_dict().values():
        if tensor.is_floating_point():
            tensor.fill_(torch.nan)
    expect(sn.combine([bad, good, nn.Linear(1, 1)], weights=[0, 3, 0]), dict(good.state_dict()), rtol=0)
    untrained = copy.deepcopy(good)
    for name, tensor in untrained.state_dict().items():
        if "running" in name:
            tensor.fill_(torch.inf)
        elif "tracked" in name:
            tensor.fill_(0)
    expect(sn.combine([untrained, good]), dict(good.state_dict()), rtol=0)


def test_weights_of_any_size() -> None:
    one, other = network(0), network(1)
    expected = sn.combine([one, other], weights=[1, 1])
    for weight in (1e308, 5e-324):
        expect(sn.combine([one, other], weights=[weight, weight]), expected, rtol=1e-6)


def test_a_shared_layer_the_root_and_what_is_not_finite() -> None:
    norm = sn.BatchNorm1d(2)
    norm(normal(4, 2, dtype=torch.float32))
    found = sn.combine([nn.Sequential(norm, norm), nn.Sequential(norm, norm)])
    assert torch.equal(found["0.running_mean"], found["1.running_mean"])
    broken = copy.deepcopy(norm)
    broken.get_buffer("running_mean")[0] = torch.inf
    root = sn.combine([norm, broken])
    assert root["running_mean"][0] == torch.inf
    assert torch.equal(root["running_mean"][1], norm.get_buffer("running_mean")[1])


def test_old_checkpoints_without_counts() -> None:
    states = [{k: v for k, v in network(seed).state_dict().items() if "tracked" not in k} for seed in (0, 1)]
    found = sn.combine(states, weights=[1, 1])
    assert list(found) == list(states[0])
    with pytest.raises(ValueError, match=r"expected layers that count their batches, or '1\.num_batches_tracked', got"):
        sn.combine(states)


def untrained(mean: float) -> nn.Module:
    layer = sn.BatchNorm1d(2)
    layer.get_buffer("running_mean").fill_(mean)
    return layer


def wide(mean: float) -> nn.Module:
    """Of 16 bits, which hold the means and not the variance of both together."""
    layer = nn.BatchNorm1d(2).half()
    layer.get_buffer("running_mean").fill_(mean)
    return layer


def extra(value: Any) -> dict[str, Any]:
    return {**network(0).state_dict(), "steps": value}


@pytest.mark.parametrize(
    ("parts", "weights", "message"),
    [
        ([], None, "expected at least one part, got none"),
        (network(0), None, r"expected a list of models or state dicts, got one Sequential\. Pass them as \[one"),
        ([network(0), 3], None, "expected models or state dicts, got a int as part 1"),
        ([nn.Linear(1, 1)], None, "expected batch normalization layers with running statistics, got parts without"),
        ([sn.BatchNorm1d(3, track_running_stats=False)], None, "with running statistics, got parts without"),
        ([network(0), network(0)[:2]], None, r"expected the same names in all parts, got '2\.bias' and 4 more in some"),
        ([network(0), network(0).double()], None, r"'0\.weight' of one shape and dtype, got torch\.float32 of shape"),
        ([sn.BatchNorm1d(3), sn.BatchNorm1d(4)], None, r"'weight' of one shape .* \(3,\) and .* \(4,\)"),
        ([network(0), network(1)], None, r"got no weights, and '0\.weight' that differs\. Pass weights="),
        ([network(0), network(1)], [1], "expected 2 weights, one a part, got 1"),
        ([network(0), network(1)], ["a", "b"], r"expected weights that are numbers, got \['a', 'b'\]"),
        ([network(0), network(1)], 3, "expected weights that are numbers, got 3"),
        ([wide(-3e2), wide(3e2)], [1, 1], r"'running_var' to fit into torch\.float16, got 9e\+04\. Convert the parts"),
        ([network(0), network(1)], [1, -1], r"expected finite weights >= 0, .* got \[1, -1\]"),
        ([network(0), network(1)], [1, float("nan")], r"expected finite weights >= 0, .* got \[1, nan\]"),
        ([network(0), network(1)], [0, 0], r"one or more of them above 0, got \[0, 0\]"),
        ([untrained(0), untrained(1)], None, r"'num_batches_tracked' above 0 in a part, .* got \[0, 0\]"),
        ([sn.WhiteningBatchNorm(4)], [1], "expected running_mean and running_var, got 'running_mean' without the"),
        (
            [extra(torch.tensor(1)), extra(torch.tensor(2))],
            [1, 1],
            r"'steps' to be floating-point, .* got torch\.int64",
        ),
        ([extra("one"), extra("two")], [1, 1], "'steps' to be floating-point, .* got a str that differs"),
        ([extra(1), extra("two")], [1, 1], "'steps' of one shape and dtype, got a int and a str"),
    ],
)
def test_refusals(parts: Any, weights: list[float] | None, message: str) -> None:
    with pytest.raises(ValueError, match=message) as info:
        sn.combine(parts, weights=weights)
    assert isinstance(info.value, sn.SteadynormError)


def test_what_is_the_same_needs_no_mean() -> None:
    found: Any = sn.combine([extra(torch.tensor([True])), extra(torch.tensor([True]))])
    assert torch.equal(found["steps"], torch.tensor([True]))
    found = sn.combine([extra({"a": 1}), extra({"a": 1})], weights=[1, 1])
    assert found["steps"] == {"a": 1}
    found = sn.combine([extra(torch.tensor(torch.nan)), extra(torch.tensor(torch.nan))])
    assert found["steps"].isnan()


def test_parts_are_left_as_they_are() -> None:
    one, other = network(0), network(1)
    expect_unchanged(one, lambda: expect_unchanged(other, lambda: sn.combine([one, other], weights=[1, 1])))


def test_layers_that_count_nothing_and_are_the_same_stay() -> None:
    """Frozen ones, and those of a framework that does not count."""
    model = network(0)
    model.append(sn.FrozenBatchNorm(3).float())
    model.get_buffer("4.running_mean").fill_(3)
    for tensor in model.state_dict().values():
        if not tensor.is_floating_point():
            tensor.fill_(0)
    expect(sn.combine([model, copy.deepcopy(model)]), dict(model.state_dict()), rtol=0)


@pytest.mark.parametrize("shape", [(), (2, 3)])
def test_statistics_of_other_modules_by_their_shape(shape: tuple[int, ...]) -> None:
    """A scalar, or a matrix: the weights are the parts', whatever its size is."""
    generator = torch.Generator().manual_seed(0)
    means, variances = torch.rand(2, 2, *shape, dtype=torch.float64, generator=generator)
    states = [{"n.running_mean": mean, "n.running_var": var} for mean, var in zip(means, variances, strict=True)]
    found = sn.combine(states, weights=[1, 3])
    expected = 0.25 * variances[0] + 0.75 * variances[1] + 0.25 * 0.75 * (means[0] - means[1]).square()
    mean = 0.25 * means[0] + 0.75 * means[1]
    expect(found, {"n.running_mean": mean, "n.running_var": expected})
