"""Distorted images against the same distortion written for one image at a time."""

from __future__ import annotations

import pytest
import torch

from steadynorm.study.distortion import centred, distort

from ..support.images import small_data


def test_centred_by_hand() -> None:
    x = centred(torch.tensor([0, 255, 51], dtype=torch.uint8).reshape(1, 1, 1, 3))
    assert x.flatten().tolist() == pytest.approx([-2.0, 2.0, -1.2])


@pytest.mark.parametrize("mirror", [False, True])
def test_each_image_is_moved_mirrored_and_lit_by_what_was_drawn(mirror: bool) -> None:
    x = centred(small_data(16).train.images).repeat(1, 3, 1, 1)
    found = distort(x, torch.Generator().manual_seed(5), pixels=2, light=0.4, mirror=mirror)
    generator = torch.Generator().manual_seed(5)
    moves = torch.randint(5, (2, 16, 1, 1), generator=generator).reshape(2, 16)
    swapped = torch.rand(16, generator=generator) < 0.5 if mirror else torch.zeros(16, dtype=torch.bool)
    light = 0.4 * (2 * torch.rand(2, 16, generator=generator) - 1)
    for i in range(16):
        canvas = torch.zeros(3, 32, 32)
        canvas[:, 2:30, 2:30] = x[i]
        down, right = int(moves[0, i]), int(moves[1, i])
        image = canvas[:, down : down + 28, right : right + 28]
        image = torch.flip(image, [2]) if swapped[i] else image
        torch.testing.assert_close(found[i], image * (1 + light[0, i]) + light[1, i])
    assert moves.unique().tolist() == [0, 1, 2, 3, 4]


def test_nothing_asked_for_changes_nothing() -> None:
    x = centred(small_data(4).train.images)
    assert torch.equal(distort(x, torch.Generator(), pixels=0, light=0.0, mirror=False), x)
