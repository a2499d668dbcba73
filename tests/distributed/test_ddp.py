"""DistributedDataParallel on two ranks: two forwards before a backward, and training as one process would."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

import steadynorm as sn
from steadynorm.study.data import digits
from steadynorm.study.models import cnn

from ..support.launch import launch
from ..support.twins import agree, normal

STEPS, BATCH = 12, 64
NORMS = {"BatchNorm1d": sn.BatchNorm1d, "SyncBatchNorm": sn.SyncBatchNorm}


def model_of(norm: str) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 4), NORMS[norm](4)).double()


def two_forwards(model: nn.Module, training: bool, *ranks: int) -> list[Tensor]:
    """A discriminator's step on the data of these ranks: a forward on real data, one on made ones, a backward."""
    model.train(training)
    real, made = (model(torch.cat([normal(4, 3, seed=10 * rank + kind) for rank in ranks])) for kind in (1, 2))
    model.zero_grad()
    (real.square().sum() - made.pow(3).sum()).backward()
    return [parameter.grad.clone() for parameter in model.parameters() if parameter.grad is not None]


def in_parallel(rank: int) -> dict[str, list[list[Tensor]]]:
    """For each layer, a step in train and one in eval mode."""
    models = {name: DistributedDataParallel(model_of(name)) for name in NORMS}
    return {name: [two_forwards(model, training, rank) for training in (True, False)] for name, model in models.items()}


@pytest.fixture(scope="module")
def found() -> list[dict[str, list[list[Tensor]]]]:
    return launch(in_parallel, 2)


def test_two_forwards_before_a_backward(found: list[dict[str, list[list[Tensor]]]]) -> None:
    """pytorch#73332: before each forward, DDP writes rank 0's buffers to all ranks, into what a backward may need.

    The gradients are the mean of what each rank has alone; in eval mode, by rank 0's statistics.
    """
    models = [model_of("BatchNorm1d") for _ in range(2)]
    train = [two_forwards(model, True, rank) for rank, model in enumerate(models)]
    evaluated = [two_forwards(models[0], False, rank) for rank in range(2)]
    for of_rank in found:
        for ours, (first, second) in zip(of_rank["BatchNorm1d"], (train, evaluated), strict=True):
            agree(ours, [(a + b) / 2 for a, b in zip(first, second, strict=True)])


def test_two_synchronized_forwards_before_a_backward(found: list[dict[str, list[list[Tensor]]]]) -> None:
    """The gradients are those of one process on all data, divided by the two ranks, as DDP does."""
    model = model_of("BatchNorm1d")
    together = [[gradient / 2 for gradient in two_forwards(model, training, 0, 1)] for training in (True, False)]
    for of_rank in found:
        agree(of_rank["SyncBatchNorm"], together)


# ---- the study's network ----


def network() -> nn.Module:
    torch.manual_seed(0)
    return cnn(1, 28, 10, batch_norm=True).double()


def trained(model: nn.Module, part: slice) -> dict[str, Tensor]:
    """Its state after STEPS steps of SGD on this part of each batch of the digits."""
    data, _ = digits.load()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    shuffle = torch.randperm(len(data.labels), generator=torch.Generator().manual_seed(0))
    for index in shuffle.split(BATCH)[:STEPS]:
        images, labels = data.images[index][part].double() / 255, data.labels[index][part]
        optimizer.zero_grad()
        F.cross_entropy(model(images), labels).backward()
        optimizer.step()
    return dict(model.state_dict())


def trained_in_parallel(rank: int) -> dict[str, Tensor]:
    half = BATCH // 2
    model = sn.SyncBatchNorm.convert_sync_batchnorm(network())
    trained(DistributedDataParallel(model), slice(rank * half, (rank + 1) * half))
    return dict(model.state_dict())


def test_same_weights_as_one_process() -> None:
    """The study's CNN on digits: each rank has half of each batch, and all end where one process ends.

    In float64, 1e-12 relative to the largest value of each tensor. The ranks add the same numbers in another order,
    which makes 1e-16 in each step; 1e-15 is what is found, and the rest allows for a step that multiplies it. SGD, as
    Adam divides a gradient by its own size, and that of a bias before a normalization is nothing but rounding.
    """
    initial, together = dict(network().state_dict()), trained(network(), slice(0, BATCH))
    for of_rank in launch(trained_in_parallel, 2):
        assert list(of_rank) == list(together)
        for name, expected in together.items():
            largest = float(expected.double().abs().max())
            agree(of_rank[name], expected, rtol=0, atol=1e-12 * largest)
            moved = float((expected - initial[name]).double().abs().max())
            assert moved > 1e-2 * largest or name.endswith(".bias"), name
