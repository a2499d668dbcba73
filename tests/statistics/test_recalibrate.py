"""recalibrate_: the statistics of all data, whatever the batches, for every kind of layer."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.optim.swa_utils import update_bn

import steadynorm as sn
from steadynorm import reference

from ..support import tolerance
from ..support.refusals import expect_unchanged
from ..support.twins import agree, normal

Batches = list[Tensor]


def running(layer: Any) -> tuple[Tensor, Tensor]:
    return layer.running_mean, layer.running_var


def of_all(x: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and unbiased variance of each channel, in float64."""
    values = x.double().movedim(1, 0).flatten(1)
    return values.mean(1), values.var(1)


def uneven() -> Batches:
    """64 values of mean 0 and variance 0.78, and two around 10.82."""
    many = normal(64, 1)
    many = (many - many.mean()) / many.std() * 0.7818**0.5
    return [many, torch.tensor([[10.82], [10.82]], dtype=torch.float64) + torch.tensor([[1.0], [-1.0]]) * 0.299**0.5]


@pytest.mark.parametrize("kind", [nn.BatchNorm1d, sn.BatchNorm1d])
def test_batches_count_by_their_values(kind: type) -> None:
    """Where torch averages two batches as if they were of one size, and forgets how far apart they are."""
    ours, theirs = (nn.Sequential(kind(1)).double() for _ in range(2))
    update_bn(uneven(), theirs)
    assert theirs[0].running_mean.item() == pytest.approx(5.41, abs=0.005)  # type: ignore[union-attr,operator]
    assert theirs[0].running_var.item() == pytest.approx(0.69, abs=0.005)  # type: ignore[union-attr,operator]
    found = sn.recalibrate_(ours, uneven())
    assert ours[0].running_mean.item() == pytest.approx(0.33, abs=0.005)  # type: ignore[union-attr,operator]
    assert ours[0].running_var.item() == pytest.approx(4.26, abs=0.005)  # type: ignore[union-attr,operator]
    agree(running(ours[0]), of_all(torch.cat(uneven())))
    assert ours[0].num_batches_tracked == theirs[0].num_batches_tracked == 2
    assert found["0"].count.tolist() == [66]


def test_papers_estimator() -> None:
    """Batches of one size: Alg. 2 to the letter. Of several: the variance within batches, by degrees of freedom."""
    layer = sn.BatchNorm1d(3).double()
    batches = list((normal(40, 3) + torch.arange(40)[:, None]).split(10))
    sn.recalibrate_(layer, batches, estimator="paper")
    m2 = torch.stack([batch.var(0, correction=0) for batch in batches])
    agree(running(layer), (torch.stack([b.mean(0) for b in batches]).mean(0), 10 / 9 * m2.mean(0)))
    sn.recalibrate_(layer, [*batches, batches[0][:1]], estimator="paper")
    agree(running(layer), (torch.cat([*batches, batches[0][:1]]).mean(0), 10 / 9 * m2.mean(0)))
    sn.recalibrate_(layer, batches)
    assert (layer.running_var > 5 * m2.mean(0)).all()  # type: ignore[operator]


def test_everything_else_is_in_eval_mode() -> None:
    """Dropout in front of a layer: update_bn measures what it does, which is not there in eval mode."""

    def build() -> nn.Sequential:
        return nn.Sequential(nn.Dropout(0.5), sn.BatchNorm1d(2)).double()

    x = normal(4096, 2) * 1e-3 + 2
    ours, theirs = build(), build()
    update_bn([x], theirs)
    sn.recalibrate_(ours, [x])
    agree(running(ours[1]), of_all(x))
    assert (theirs[1].running_var > 1).all()  # type: ignore[operator]
    assert (ours[1].running_var < 1e-4).all()  # type: ignore[operator]
    assert all(module.training for module in ours.modules())


def test_a_mean_far_from_0() -> None:
    """1000 with a deviation of 0.1 in float32, where a mean of squares less the square of a mean is nonsense."""
    x = normal(8192, 4, dtype=torch.float32) / 30 + 1000
    layer = sn.BatchNorm1d(4)
    sn.recalibrate_(layer, x.split(100))
    mean, var = of_all(x)
    tolerance.check(layer.running_mean, mean)  # type: ignore[arg-type]
    tolerance.check(layer.running_var, var, terms=8192)  # type: ignore[arg-type]


@settings(max_examples=30)
@given(st.lists(st.integers(1, 9), min_size=1, max_size=8), st.sampled_from([torch.float32, torch.float64]))
def test_any_split_of_the_data(sizes: list[int], dtype: torch.dtype) -> None:
    """A first layer's statistics are those of the data, one example or nine at a time."""
    x = normal(sum(sizes) + 1, 3, 2, dtype=dtype)
    layer = sn.BatchNorm1d(3).to(dtype)
    sn.recalibrate_(layer, x.split([*sizes, 1]))
    mean, var = of_all(x)
    tolerance.check(layer.running_mean, mean)  # type: ignore[arg-type]
    tolerance.check(layer.running_var, var, terms=x.numel())  # type: ignore[arg-type]


KINDS = {
    "torch's": lambda: nn.BatchNorm2d(4),
    "torch's, synced": lambda: nn.SyncBatchNorm(4),
    "ours, with relu": lambda: sn.BatchNorm2d(4, activation="relu"),
    "synced": lambda: sn.SyncBatchNorm(4),
    "ghost": lambda: sn.GhostBatchNorm2d(4, 2),
    "renorm": lambda: sn.BatchRenorm2d(4, rmax=3, dmax=5),
    "held": lambda: sn.BatchNorm2d(4),
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("order", [torch.contiguous_format, torch.channels_last])
def test_kinds_of_layers(kind: str, order: torch.memory_format) -> None:
    """Each normalizes by its batch meanwhile, so that the layer behind it sees what training shows it."""
    model: Any = nn.Sequential(KINDS[kind](), nn.BatchNorm2d(4)).double()
    batches = [x.contiguous(memory_format=order) for x in normal(10, 4, 3, 3).split(4)]
    if kind == "held":
        with sn.hold_statistics(model):
            sn.recalibrate_(model, batches)
    else:
        sn.recalibrate_(model, batches)
    agree(running(model[0]), of_all(torch.cat(batches)))
    applied = reference.Settings(activation="relu" if "relu" in kind else None)
    behind = torch.cat([torch.tensor(reference.forward(x, applied)[0]) for x in batches])
    agree(running(model[1]), of_all(behind), rtol=1e-9)
    assert model[0].num_batches_tracked == (0 if kind == "renorm" else 3)
    assert model[0].track_running_stats


def test_whitening_keeps_a_population_s_covariance() -> None:
    layer = sn.WhiteningBatchNorm(6, 3).double()
    x = torch.randn(50, 6, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    x[:, 1] += 2 * x[:, 0] + 5
    mask = torch.rand(50, 4, generator=torch.Generator().manual_seed(4)) < 0.7
    sizes = [20, 3, 1, 26]
    batches = list(zip(x.split(sizes), mask.split(sizes), strict=True))
    found = sn.recalibrate_(layer, batches, call=lambda model, batch: model(batch[0], mask=batch[1]))
    real = x.movedim(1, 0).flatten(1)[:, mask.flatten()]
    agree(layer.running_mean, real.mean(1))
    agree(layer.running_covariance, torch.stack([real[:3].cov(), real[3:].cov()]))
    agree(found[""].var, real.var(1))
    sn.recalibrate_(layer, batches, call=lambda model, batch: model(batch[0], mask=batch[1]), estimator="paper")
    within = sum((len(v.T) - 1) * v[:3].cov() for xs, m in batches if (v := _real(xs, m)).shape[1] > 1)
    degrees = sum(int(m.sum()) - 1 for _, m in batches)
    agree(layer.running_covariance[0], within / degrees)  # type: ignore[index]


def _real(x: Tensor, mask: Tensor) -> Tensor:
    return x.movedim(1, 0).flatten(1)[:, mask.flatten()]


def test_layers_without_statistics_and_frozen_ones_stay() -> None:
    plain, frozen = sn.BatchNorm1d(3, track_running_stats=False), sn.FrozenBatchNorm(3)
    model = nn.Sequential(plain, frozen, sn.BatchNorm1d(3), nn.BatchNorm1d(0)).double()
    model[3].forward = lambda x: x  # type: ignore[method-assign]

    def call() -> None:
        assert list(sn.recalibrate_(model, normal(20, 3).split(7))) == ["2"]

    expect_unchanged(frozen, call)


def test_a_reused_layer_is_measured_over_its_calls() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm = sn.BatchNorm1d(3, affine=False)
            self.again = self.norm

        def forward(self, x: Tensor) -> Tensor:
            return self.again(3 * self.norm(x) + 1)

    model, x = Twice().double(), normal(30, 3)
    found = sn.recalibrate_(model, x.split(10))
    seen = [x, *(3 * torch.tensor(reference.forward(part)[0]) + 1 for part in x.split(10))]
    agree(running(model.norm), of_all(torch.cat(seen)))
    assert list(found) == ["norm"]
    assert model.norm.num_batches_tracked == 6


def test_masks_dicts_and_empty_batches() -> None:
    class Padded(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm = sn.BatchNorm1d(3)

        def forward(self, sequence: Tensor, lengths: Tensor) -> Tensor:
            return self.norm(input=sequence, mask=lengths)

    model, x = Padded().double(), normal(6, 3, 5)
    lengths = torch.tensor([5, 1, 0, 3, 2, 4])
    parts = [slice(0, 2), slice(2, 3), slice(3, 3), slice(3, 6)]
    found = sn.recalibrate_(model, [{"sequence": x[part], "lengths": lengths[part]} for part in parts])
    real = x.movedim(1, 0)[:, torch.arange(5) < lengths[:, None]]
    agree(running(model.norm), (real.mean(1), real.var(1)))
    assert found["norm"].count.tolist() == [15] * 3


@pytest.mark.parametrize("wrap", [lambda x: (x, "label"), lambda x: [x], lambda x: {"input": x}])
def test_batches_as_loaders_give_them(wrap: Any) -> None:
    layer, x = sn.BatchNorm1d(3).double(), normal(20, 3)
    sn.recalibrate_(layer, [wrap(part) for part in x.split(8)])
    agree(running(layer), of_all(x))


def test_only_so_many_batches_are_read() -> None:
    layer, x = sn.BatchNorm1d(3).double(), normal(20, 3)
    data = iter(x.split(4))
    assert sn.recalibrate_(layer, data, batches=2).batches == 2
    agree(running(layer), of_all(x[:8]))
    assert len(list(data)) == 3


def test_a_batch_of_one_value_goes_by_what_was_measured_so_far() -> None:
    """Not by the old statistics, which may be another network's; they are looked at where there is nothing else."""
    model: Any = nn.Sequential(sn.BatchNorm1d(3), sn.BatchNorm1d(3)).double()
    x = normal(5, 3)
    model[0].running_var.fill_(torch.nan)
    sn.recalibrate_(model, x.split([4, 1]))
    alone = (x[4:] - x.mean(0)) / (x.var(0, correction=0) + 1e-5).sqrt()
    agree(running(model[1]), of_all(torch.cat([torch.tensor(reference.forward(x[:4])[0]), alone])))
    model[0].running_mean.fill_(7)
    model[0].running_var.fill_(4)
    sn.recalibrate_(model, x.split([1, 4]))
    alone = (x[:1] - 7) / (4 + 1e-5) ** 0.5
    agree(running(model[1]), of_all(torch.cat([alone, torch.tensor(reference.forward(x[1:])[0])])))


def test_one_example_in_65_does_not_spoil_deeper_layers() -> None:
    x, found = normal(65, 3), []
    for sizes in ([64, 1], [65]):
        torch.manual_seed(0)
        model: Any = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 4), nn.BatchNorm1d(4)).double()
        model[1].running_mean.fill_(1e3)  # another network's
        sn.recalibrate_(model, x.split(sizes))
        found.append(model[3].running_var)
    agree(*found, rtol=0.05)


def test_a_whitening_batch_that_is_too_small_goes_by_what_was_measured_so_far() -> None:
    model: Any = nn.Sequential(sn.WhiteningBatchNorm(3, method="zca"), sn.BatchNorm1d(3)).double()
    model[0].running_covariance.fill_(torch.nan)
    x = normal(13, 3)
    sn.recalibrate_(model, x.split([10, 3]))
    layer: Any = copy.deepcopy(model[0]).eval()
    behind = []
    for part, of in ((x[:10], x[:10]), (x[10:], x)):
        layer.running_mean.copy_(of.mean(0))
        layer.running_covariance.copy_(of.T.cov(correction=0))
        behind.append(layer(part).detach())
    agree(running(model[1]), of_all(torch.cat(behind)), rtol=1e-9)


def test_measured_exactly_under_autocast() -> None:
    """Whose 16 bits are for the network's products, not for a covariance."""
    layer, x = sn.WhiteningBatchNorm(4, 2), normal(200, 4, dtype=torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        sn.recalibrate_(layer, x.split(50))
    expected = torch.stack([x[:, :2].double().T.cov(), x[:, 2:].double().T.cov()])
    torch.testing.assert_close(layer.running_covariance, expected.float(), rtol=1e-5, atol=1e-4)


def test_says_how_far_statistics_went() -> None:
    model: Any = nn.Sequential(nn.BatchNorm1d(2), nn.Identity()).double()
    with torch.no_grad():
        model[0].running_mean.copy_(torch.tensor([1.0, 2.0]))
        model[0].running_var.copy_(torch.tensor([4.0, 0.25]))
    x = normal(50, 2)
    mean, var = of_all(x)
    found = sn.recalibrate_(model, [x])
    shift = found["0"]
    agree((shift.old_mean, shift.old_var), (torch.tensor([1.0, 2.0]).double(), torch.tensor([4.0, 0.25]).double()))
    agree((shift.mean, shift.var, shift.shift), (mean, var, (mean - shift.old_mean) / (shift.old_var + 1e-5).sqrt()))
    largest = shift.shift[shift.shift.abs().argmax()]
    low, high = sorted((var / shift.old_var).tolist())
    head, row, last = str(found).splitlines()
    assert head.split("  ")[0] == "layer"
    assert row.split() == ["0", "50", f"{largest:+.3f}", f"{low:.3g}", "to", f"{high:.3g}"]
    assert last == "1 batch"
    assert (found.converged, shift.change) == (None, None)


def test_stops_when_more_data_change_nothing() -> None:
    layer = sn.BatchNorm1d(2).double()
    batches = normal(6400, 2).split(50)
    found = sn.recalibrate_(layer, batches, tolerance=0.05)
    assert found.converged
    assert found.batches in (8, 16, 32, 64)
    agree(running(layer), of_all(torch.cat(batches[: found.batches])))
    (mean, var), (half_mean, half_var) = (of_all(torch.cat(batches[: found.batches // k])) for k in (1, 2))
    sd, half_sd = (var + 1e-5).sqrt(), (half_var + 1e-5).sqrt()
    change = max(((mean - half_mean) / sd).abs().max().item(), (sd / half_sd).log().abs().max().item())
    assert found[""].change == pytest.approx(change, rel=1e-9)
    assert change < 0.05
    assert str(found).endswith(f"{found.batches} batches, converged")
    drifting = [batch + 10 * number for number, batch in enumerate(batches)]
    found = sn.recalibrate_(layer, drifting, tolerance=0.05)
    assert (found.converged, found.batches) == (False, 128)
    assert "128 batches, not converged" in str(found)
    assert sn.recalibrate_(layer, batches[:2], tolerance=10).converged is False  # two batches settle nothing


def test_compiled_models_are_seen_through() -> None:
    plain = nn.Sequential(nn.Linear(3, 4), sn.BatchNorm1d(4), nn.BatchNorm1d(4)).double()
    x, expected = normal(20, 3), copy.deepcopy(plain)
    sn.recalibrate_(expected, x.split(8))
    compiled = torch.compile(plain.eval(), backend="eager")
    compiled(x)  # compiled before the hooks are there
    assert list(sn.recalibrate_(compiled, x.split(8))) == ["_orig_mod.1", "_orig_mod.2"]  # type: ignore[arg-type]
    for name, value in expected.state_dict().items():
        agree(plain.state_dict()[name], value)


def test_wrapped_models_are_looked_through() -> None:
    layer, x = sn.BatchNorm1d(3).double(), normal(20, 3)
    assert list(sn.recalibrate_(nn.DataParallel(nn.Sequential(layer)), x.split(8))) == ["0"]
    agree(running(layer), of_all(x))


def test_a_model_that_takes_gradients_in_its_forward() -> None:
    """An energy's gradient: statistics get no history."""
    model = nn.Sequential(nn.Linear(3, 3), sn.BatchNorm1d(3), sn.WhiteningBatchNorm(3)).double()
    x = normal(20, 3)

    def call(model: nn.Module, batch: Tensor) -> None:
        with torch.enable_grad():
            inner = batch.clone().requires_grad_()
            torch.autograd.grad(model(inner).square().sum(), inner)

    sn.recalibrate_(model, x.split(8), call=call)
    agree(running(model[1]), of_all(model[0](x).detach()))
    assert not any(buffer.requires_grad for buffer in model.buffers())


def test_sixteen_bits() -> None:
    """Statistics of 16-bit data are float32, and exact to that."""
    layer = sn.BatchNorm1d(3).half()
    x = normal(500, 3, dtype=torch.float16)
    sn.recalibrate_(layer, x.split(60))
    mean, var = of_all(x)
    tolerance.check(layer.running_mean, mean)  # type: ignore[arg-type]
    tolerance.check(layer.running_var, var, terms=500)  # type: ignore[arg-type]
