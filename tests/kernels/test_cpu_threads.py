"""The compiled kernels on several threads: the same bits as on one, from any thread, and in a forked child."""

from __future__ import annotations

import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch import Tensor

from steadynorm.kernels.cpu import _core
from steadynorm.kernels.cpu import threads as pool

from ..support.setups import WALKS, Inputs, Setup, both_passes, cpu, draw, same_bits, threads

pytestmark = pytest.mark.usefixtures("by_every_instruction_set")

VALUES_A_THREAD = 1 << 14
"""As in core/module.c."""
LARGE = [setup for setup in WALKS if torch.Size(setup.shape).numel() > 2 * VALUES_A_THREAD]
OF_A_SETUP = pytest.mark.parametrize("setup", LARGE, ids=lambda setup: setup.name)
SHAPES = [(1, 67, 3, 1009), (1, 3, 2, 50_021), (4, 9, 29, 103)]


def results_on(number: int, inputs: Inputs) -> list[Tensor | None]:
    with threads(number):
        return both_passes(cpu, inputs.x, inputs.dy, inputs.apply)


@OF_A_SETUP
def test_number_of_threads_does_not_matter(setup: Setup) -> None:
    inputs = draw(setup)
    alone = results_on(1, inputs)
    for number in (2, 2, 2, 3, 7, 1):
        assert same_bits(results_on(number, inputs), alone)


def test_alone_where_there_is_no_openmp() -> None:
    inputs = draw(LARGE[0])
    expected = results_on(2, inputs)
    _core.use_threads(0, 0)
    try:
        assert same_bits(results_on(2, inputs), expected)
    finally:
        pool.share_torchs()


def test_from_eight_python_threads_at_once() -> None:
    drawn = [
        draw(Setup("", "relu", residual=True, shape=shape, channels_last=last, mean=float(seed)))
        for seed, (shape, last) in enumerate((shape, last) for last in (False, True) for shape in SHAPES)
    ]
    drawn += drawn[:2]
    expected = [results_on(1, inputs) for inputs in drawn]
    with threads(2), ThreadPoolExecutor(8) as callers:
        for _ in range(5):
            results = list(callers.map(lambda i: both_passes(cpu, i.x, i.dy, i.apply), drawn))
            assert all(same_bits(ours, theirs) for ours, theirs in zip(results, expected, strict=True))


FORK = """
import os, warnings
import torch
from steadynorm.kernels import Apply, cpu

warnings.simplefilter("ignore")
torch.set_num_threads(2)
x = torch.randn(67, 3, 1009)
apply = Apply(None, None, 1e-5, x + 1, None, "relu")

def both():
    y, moments = cpu.forward(x, apply)
    grads = cpu.backward(x, x, moments.mean, moments.var, apply, moments.count)
    return [t.numpy().tobytes() for t in (y, moments.mean, moments.m2, *grads)]

before = both()
child = os.fork()
if child == 0:
    os._exit(7 if both() == before else 1)
assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
assert both() == before
"""

LOADER = """
import warnings
import torch
from torch.utils.data import DataLoader, Dataset
from steadynorm.functional import batch_norm

warnings.simplefilter("ignore")

class Normalized(Dataset):
    def __len__(self):
        return 6

    def __getitem__(self, index):
        x = torch.randn(8, 3, 100, 110, generator=torch.Generator().manual_seed(index))
        return batch_norm(x, None, None, training=True, activation="relu")

if __name__ == "__main__":
    torch.set_num_threads(2)
    here = torch.stack([Normalized()[i] for i in range(6)])
    loader = DataLoader(Normalized(), batch_size=3, num_workers=2, multiprocessing_context="fork")
    there = torch.cat(list(loader))
    assert here.numpy().tobytes() == there.numpy().tobytes()
"""


@pytest.mark.skipif(sys.platform == "win32", reason="no fork")
@pytest.mark.parametrize("script", [FORK, LOADER], ids=["fork", "data loader"])
def test_forked_child(script: str) -> None:
    """It computes, on one thread, what its parent computed on two; a child that waits for threads runs out of time."""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=100, check=False)
    assert done.returncode == 0, done.stderr
