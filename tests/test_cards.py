"""The method cards: their code runs, and each says what it must."""

from __future__ import annotations

import re
import warnings
from pathlib import Path

import pytest
import torch

import steadynorm as sn

CARDS = sorted((Path(__file__).parents[1] / "docs" / "cards").glob("*.md"))
EACH = pytest.mark.parametrize("card", CARDS, ids=lambda card: card.stem)


@EACH
def test_code_runs(card: Path) -> None:
    """One block after the other, as a reader would type them."""
    blocks = re.findall(r"```python\n(.*?)```", card.read_text(encoding="utf-8"), re.DOTALL)
    assert blocks
    torch.manual_seed(0)
    names: dict = {}
    with warnings.catch_warnings():
        warnings.simplefilter("default", sn.NonFiniteStatisticsWarning)  # which a card shows, and records
        for block in blocks:
            exec(block, names)


@EACH
@pytest.mark.parametrize("part", ["What", "When to use", "When not", "Cost", "Source"])
def test_parts(card: Path, part: str) -> None:
    assert f"**{part}.**" in card.read_text(encoding="utf-8")
