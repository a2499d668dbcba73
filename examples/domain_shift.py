"""What do new statistics alone do for a network whose data has changed? A CNN of MNIST digits on altered digits.

    python examples/domain_shift.py --data-dir FOLDER_OF_THE_MNIST_FILES

The network is trained on clean digits and tested on digits whose contrast is inverted, that are noisy, dark, moved or
rotated: as it is, and after `adapt_` has given its batch normalization layers the statistics of some unlabelled images
of the new kind. Those images are not the tested ones; no weight changes.
"""

from __future__ import annotations

import argparse
import copy
import statistics
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import steadynorm as sn
from steadynorm.study.data import load
from steadynorm.study.data.images import Part
from steadynorm.study.models import cnn

EPOCHS, BATCH, TRAINED, TESTED = 2, 64, 12_000, 5_000


def moved(x: Tensor, chance: torch.Generator) -> Tensor:
    """Each image by up to 4 pixels in either direction."""
    steps = torch.randint(-4, 5, (len(x), 2), generator=chance) / 14
    return warped(x, torch.eye(2).expand(len(x), 2, 2), steps)


def rotated(x: Tensor, chance: torch.Generator) -> Tensor:
    """Each image by 35 degrees, one way or the other."""
    angle = torch.randint(0, 2, (len(x),), generator=chance) * 2 - 1
    angle = angle * torch.pi * 35 / 180
    turn = torch.stack([angle.cos(), -angle.sin(), angle.sin(), angle.cos()], 1).reshape(-1, 2, 2)
    return warped(x, turn, torch.zeros(len(x), 2))


def warped(x: Tensor, linear: Tensor, shift: Tensor) -> Tensor:
    grid = F.affine_grid(torch.cat([linear, shift[:, :, None]], 2), list(x.shape), align_corners=False)
    return F.grid_sample(x, grid, align_corners=False)


def noisy(x: Tensor, chance: torch.Generator) -> Tensor:
    return (x + 0.5 * torch.randn(x.shape, generator=chance)).clamp(0, 1)


DOMAINS: dict[str, Callable[[Tensor, torch.Generator], Tensor]] = {
    "clean": lambda x, _: x,
    "inverted": lambda x, _: 1 - x,
    "dark": lambda x, _: 0.2 * x,
    "noisy": noisy,
    "moved": moved,
    "rotated": rotated,
}


def images(part: Part) -> Tensor:
    return part.images.float() / 255


def train(seed: int, x: Tensor, labels: Tensor) -> nn.Module:
    torch.manual_seed(seed)
    model = cnn(1, 28, 10, batch_norm=True)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    for _ in range(EPOCHS):
        for batch in torch.randperm(len(x)).split(BATCH):
            optimizer.zero_grad()
            F.cross_entropy(model(x[batch]), labels[batch]).backward()
            optimizer.step()
    return model.eval()


@torch.no_grad()
def accuracy(model: nn.Module, x: Tensor, labels: Tensor) -> float:
    right = sum((model(x[part]).argmax(1) == labels[part]).sum() for part in torch.arange(len(x)).split(500))
    return 100 * float(right) / len(x)


def adapted(model: nn.Module, x: Tensor, mix: float = 1.0) -> nn.Module:
    model = copy.deepcopy(model)
    sn.adapt_(model, x.split(500), weight=mix, sequential=True)
    return model


def columns(labels: Tensor) -> dict[str, Callable[[nn.Module, Tensor], nn.Module]]:
    """What is done to the network before the test, with unlabelled images of the new kind."""
    few = (labels < 2).nonzero()[:200, 0]  # known here, not to the network: what if only some classes come?
    return {
        "as trained": lambda model, x: model,
        "16 images": lambda model, x: adapted(model, x[:16]),
        "16, mixed half": lambda model, x: adapted(model, x[:16], 0.5),
        "200 images": lambda model, x: adapted(model, x[:200]),
        "2,000 images": lambda model, x: adapted(model, x[:2000]),
        "200 zeros and ones": lambda model, x: adapted(model, x[few]),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-dir", type=Path, help="folder of the MNIST files; without it they are fetched")
    parser.add_argument("--seeds", type=int, default=3)
    options = parser.parse_args()
    data = load("mnist", options.data_dir)
    clean, labels = images(data.train)[:TRAINED], data.train.labels[:TRAINED]
    print(
        f"{TRAINED:,} digits learnt, {EPOCHS} epochs; test accuracy in %, {options.seeds} seeds (least to most)\n",
        flush=True,
    )
    models = [train(seed, clean, labels) for seed in range(options.seeds)]
    ways = columns(data.validation.labels)
    print(f"| digits | {' | '.join(ways)} |\n|---|{'---|' * len(ways)}")
    for domain, shift in DOMAINS.items():
        unlabelled = shift(images(data.validation), torch.Generator().manual_seed(1))
        tested = shift(images(data.test)[:TESTED], torch.Generator().manual_seed(2))  # other noise, other ways
        cells = []
        for way in ways.values():
            found = [accuracy(way(model, unlabelled), tested, data.test.labels[:TESTED]) for model in models]
            cells.append(f"{statistics.mean(found):.1f} ({min(found):.1f} to {max(found):.1f})")
        print(f"| {domain} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
