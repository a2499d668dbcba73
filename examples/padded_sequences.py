"""Does it matter that padding stays out of batch normalization? A 1-D CNN on MNIST digits, read column by column.

    python examples/padded_sequences.py --data-dir FOLDER_OF_THE_MNIST_FILES

Each digit is cropped to its ink: 2 to 20 columns of 28 pixels, padded to 28, 56 or 112 columns, as a batch
with one long sequence in it would be. The same network is trained from the same weights on the same batches, with and
without a mask in its batch normalization layers; everything else, also the pooling over real columns, is equal.
"""

from __future__ import annotations

import argparse
import statistics
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import steadynorm as sn
from steadynorm.study.data import load
from steadynorm.study.data.images import Part

LENGTHS = (28, 56, 112)
EPOCHS, BATCH, TRAINED = 3, 64, 12_000


class Network(nn.Module):
    def __init__(self, masks: bool) -> None:
        super().__init__()
        self.masks = masks
        self.convs = nn.ModuleList([nn.Conv1d(28, 32, 3, padding=1), nn.Conv1d(32, 64, 3, padding=1)])
        self.norms = nn.ModuleList([sn.BatchNorm1d(32, activation="relu"), sn.BatchNorm1d(64, activation="relu")])
        self.head = nn.Linear(64, 10)

    def forward(self, x: Tensor, lengths: Tensor) -> Tensor:
        for conv, norm in zip(self.convs, self.norms, strict=True):
            x = norm(conv(x), mask=lengths if self.masks else None)
        real = (torch.arange(x.shape[2]) < lengths[:, None])[:, None]
        return self.head((x * real).sum(2) / lengths[:, None])


def columns(part: Part) -> tuple[Tensor, Tensor]:
    """Digits cropped to their ink: (N, 28, 28), the columns of each at the left, and how many there are."""
    images = part.images[:, 0].float() / 255
    ink = images.sum(1) > 0
    first = ink.int().argmax(1)
    lengths = (28 - ink.flip(1).int().argmax(1)) - first
    shifted = (torch.arange(28)[None] + first[:, None]).clamp(max=27)
    cropped = images.gather(2, shifted[:, None].expand(-1, 28, -1))
    return cropped * (torch.arange(28) < lengths[:, None])[:, None], lengths


def train(masks: bool, seed: int, x: Tensor, lengths: Tensor, labels: Tensor) -> Network:
    torch.manual_seed(seed)
    network = Network(masks)
    optimizer = torch.optim.Adam(network.parameters(), lr=1e-3)
    for _ in range(EPOCHS):
        for batch in torch.randperm(len(x)).split(BATCH):
            optimizer.zero_grad()
            F.cross_entropy(network(x[batch], lengths[batch]), labels[batch]).backward()
            optimizer.step()
    return network.eval()


@torch.no_grad()
def accuracy(network: Network, x: Tensor, lengths: Tensor, labels: Tensor) -> float:
    right = [
        (network(x[part], lengths[part]).argmax(1) == labels[part]).sum() for part in torch.arange(len(x)).split(500)
    ]
    return 100 * float(torch.stack(right).sum()) / len(x)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-dir", type=Path, help="folder of the MNIST files; without it they are fetched")
    parser.add_argument("--seeds", type=int, default=3)
    options = parser.parse_args()
    data = load("mnist", options.data_dir)
    x, lengths = columns(data.train)
    x, lengths, labels = x[:TRAINED], lengths[:TRAINED], data.train.labels[:TRAINED]
    test_x, test_lengths = columns(data.test)
    print(f"{len(x)} digits of {lengths.min()} to {lengths.max()} columns; test accuracy in %, {options.seeds} seeds")
    print("padded to " + "".join(f"{length:>26}" for length in LENGTHS))
    for masks in (True, False):
        cells = []
        for length in LENGTHS:
            given, tested = (F.pad(t, (0, length - 28)) for t in (x, test_x))
            found = [
                accuracy(train(masks, seed, given, lengths, labels), tested, test_lengths, data.test.labels)
                for seed in range(options.seeds)
            ]
            cells.append(f"{statistics.mean(found):.2f} ({min(found):.2f} to {max(found):.2f})")
        print(f"{'with' if masks else 'no'} mask".ljust(10) + "".join(cell.rjust(26) for cell in cells), flush=True)


if __name__ == "__main__":
    main()
