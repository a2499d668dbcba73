"""The 2-D network without pooling and its three-channel pictures; the verdict is tested with conv1d."""

from __future__ import annotations

import torch

from steadynorm.study.claims.conv2d import colour
from steadynorm.study.models.systems import conv2d_net


def test_grey_is_repeated() -> None:
    image = torch.randint(256, (2, 1, 28, 28), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    found = colour(image)
    assert found.shape == (2, 3, 28, 28)
    assert all(torch.equal(found[:, channel], image[:, 0].float() / 255) for channel in range(3))


def test_colour_is_cut_to_its_middle() -> None:
    image = torch.randint(256, (2, 3, 32, 32), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    before = image.clone()
    assert torch.equal(colour(image), image[:, :, 2:30, 2:30].float() / 255)
    assert torch.equal(image, before)


def test_the_network_is_the_one_described() -> None:
    """3·16·9+16 and 16·32·9+32 of the convolutions, 25,088·10+10 of the linear layer, 96 of the normalizations."""
    plain, normalized = conv2d_net(batch_norm=False), conv2d_net(batch_norm=True)
    assert sum(p.numel() for p in plain.parameters()) == 448 + 4640 + 250_890
    assert sum(p.numel() for p in normalized.parameters()) == 448 + 4640 + 250_890 + 96
    names = ["Conv2d", "BatchNorm2d", "Conv2d", "BatchNorm2d", "Flatten", "Linear"]
    assert [type(m).__name__ for m in normalized] == names
    assert plain(torch.zeros(2, 3, 28, 28)).shape == (2, 10)
