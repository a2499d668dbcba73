"""accumulate_statistics: running statistics of k micro-batches are those of the joint batch."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

import steadynorm as sn
from steadynorm import reference

from ..support.tolerance import as_array, check
from ..support.twins import agree, normal


@pytest.mark.parametrize("momentum", [0.1, 0.3, None])
@pytest.mark.parametrize("sizes", [(4, 4, 4, 4), (2, 7, 3, 4)], ids=["equal", "unequal"])
def test_one_move_by_the_joint_batch(momentum: float | None, sizes: tuple[int, ...]) -> None:
    layer, joint = (sn.BatchNorm2d(3, momentum=momentum, dtype=torch.float64) for _ in range(2))
    layer(normal(4, 3, 5, 6, seed=9)), joint(normal(4, 3, 5, 6, seed=9))
    parts = [normal(size, 3, 5, 6, seed=seed) + seed for seed, size in enumerate(sizes)]
    with sn.accumulate_statistics(layer, 5):  # one more than there are: they move when the context ends
        for part in parts:
            layer(part)
            assert layer.num_batches_tracked == 1
        layer.eval()
    assert layer.num_batches_tracked == 2
    joint(torch.cat(parts))
    agree(dict(layer.named_buffers()), dict(joint.named_buffers()))


def test_two_steps_and_a_rest() -> None:
    """5 micro-batches by 2: three moves, the last by one; against the reference."""
    layer = sn.BatchNorm1d(3, momentum=0.25, dtype=torch.float64)
    parts = [normal(4, 3, seed=seed) for seed in range(5)]
    with sn.accumulate_statistics(layer, 2):
        for part in parts:
            layer(part)
    mean, var = as_array([0.0] * 3), as_array([1.0] * 3)
    for first in (0, 2, 4):
        batch = reference.statistics(as_array(torch.cat(parts[first : first + 2])))
        mean, var = reference.update_running(mean, var, batch, 0.25)
    assert layer.running_mean is not None and layer.running_var is not None
    check(layer.running_mean, mean)
    check(layer.running_var, var)
    assert layer.num_batches_tracked == 3


def test_normalization_is_each_micro_batch_s_own() -> None:
    layer, plain = (sn.BatchNorm1d(3, activation="relu", dtype=torch.float64) for _ in range(2))
    x = normal(4, 3)
    with sn.accumulate_statistics(layer, 4):
        agree(layer(x), plain(x))


def test_masks_count_what_is_real() -> None:
    layer, joint = (sn.BatchNorm1d(3, dtype=torch.float64) for _ in range(2))
    x, lengths = normal(4, 3, 9), torch.tensor([9, 2, 0, 5])
    with sn.accumulate_statistics(layer, 2):
        layer(x[:2], mask=lengths[:2])
        layer(x[2:], mask=lengths[2:])
    joint(x, mask=lengths)
    agree(dict(layer.named_buffers()), dict(joint.named_buffers()))


def test_guard_and_accumulation() -> None:
    """A micro-batch that is not finite stays out of the joint batch."""
    layer, joint = (sn.BatchNorm1d(3, dtype=torch.float64) for _ in range(2))
    bad = normal(4, 3)
    bad[0, 0] = torch.nan
    with sn.guard_statistics(layer) as guard, sn.accumulate_statistics(layer, 2):
        layer(normal(4, 3))
        with pytest.warns(sn.NonFiniteStatisticsWarning, match="guard_statistics: a batch at ''"):
            layer(bad)
    assert guard.kept_out == {"": 1}
    joint(normal(4, 3))
    agree(dict(layer.named_buffers()), dict(joint.named_buffers()))


@pytest.mark.parametrize("reentrant", [True, False])
def test_checkpointing(reentrant: bool) -> None:
    """A forward that is repeated goes the same way as the first, and its moments do not count."""
    layer, joint = (sn.BatchNorm2d(3, dtype=torch.float64) for _ in range(2))
    x = normal(32, 3, 40, 41).requires_grad_()
    with sn.accumulate_statistics(layer, 2):
        for part in x.split(16):
            checkpoint(layer, part, use_reentrant=reentrant).sum().backward()
    joint(x)
    agree(dict(layer.named_buffers()), dict(joint.named_buffers()))


def test_copies_leave_the_contexts() -> None:
    layer = sn.BatchNorm1d(3)
    with sn.accumulate_statistics(layer, 2), sn.guard_statistics(layer):
        copied = copy.deepcopy(layer)
        converted = sn.SyncBatchNorm.convert_sync_batchnorm(layer)
    for other in (copied, converted):
        other(normal(4, 3, dtype=torch.float32))
        assert other.num_batches_tracked == 1


def test_exception_drops_what_waits() -> None:
    layer = sn.BatchNorm1d(3)
    with pytest.raises(KeyError), sn.accumulate_statistics(layer, 2):
        layer(normal(4, 3, dtype=torch.float32))
        raise KeyError
    assert layer.num_batches_tracked == 0
    assert layer._collector is None
    layer(normal(4, 3, dtype=torch.float32))
    assert layer.num_batches_tracked == 1


def test_refusals() -> None:
    layer = sn.BatchNorm1d(3)
    with pytest.raises(ValueError, match=r"accumulate_statistics: expected k >= 1 .*, a whole number, got 0"):
        sn.accumulate_statistics(layer, 0).__enter__()
    with sn.accumulate_statistics(layer, 2), pytest.raises(ValueError, match="accumulates already"):
        sn.accumulate_statistics(layer, 2).__enter__()
    with pytest.raises(ValueError, match=r"expected layers of steadynorm, got torch\S+BatchNorm1d at '1'"):
        sn.accumulate_statistics(nn.Sequential(layer, nn.BatchNorm1d(3)), 2).__enter__()
