"""The documents: links lead somewhere, and the examples run."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from torch import nn

import steadynorm as sn

ROOT = Path(__file__).parents[1]
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")])


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    links = re.findall(r"\]\(([^)#\s]+)", page.read_text(encoding="utf-8"))
    missing = [link for link in links if "://" not in link and not (page.parent / link).exists()]
    assert missing == []


def test_readme_examples_show_what_they_say() -> None:
    """One after the other, as a reader would type them, with data and a plain network of their own."""
    loader = [torch.randn(size, 10) for size in (16, 3)]
    plain = nn.Sequential(nn.Linear(10, 8), nn.ReLU(), nn.Linear(8, 1))
    names: dict = {"loader": loader, "target_loader": loader, "plain": plain, "x": torch.randn(8, 10), "n1": 3, "n2": 5}
    names["clients"] = [nn.Sequential(sn.BatchNorm1d(10), nn.Linear(10, 1)) for _ in range(2)]
    for example in re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(encoding="utf-8"), re.DOTALL):
        exec(example, names)
    assert names["z"].shape == (8, 16, 32, 32)
    assert not names["y"][1, :, 12:].any()
    assert names["guard"].kept_out == {}
    assert isinstance(plain[0], nn.Sequential)
    torch.testing.assert_close(names["folded"].model(names["x"]), names["model"](names["x"]))


def test_the_study_of_own_networks_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    names: dict = {}
    (example,) = re.findall(r"```python\n(.*?)```", (ROOT / "docs/study.md").read_text(encoding="utf-8"), re.DOTALL)
    exec(example, names)
    assert "validation accuracy, last step, batch − none" in names["evidence"].sections[0].finding
    assert (tmp_path / "runs" / "mine" / "evidence.json").exists()
