"""The evidence as a document: a ledger that links to sections, pictures that are there, text that stays text."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from steadynorm import records, report
from steadynorm.errors import RecordError

from ..support.study import EVIL, evil_evidence, three_claims


def written(tmp_path: Path, evidence: records.Evidence) -> str:
    records.write(tmp_path / "record" / records.EVIDENCE, evidence)
    files = report.document(tmp_path / "record", tmp_path / "docs" / "evidence.md", tmp_path / "docs" / "images" / "e")
    assert files[0] == tmp_path / "docs" / "evidence.md"
    assert all(file.stat().st_size > 1000 for file in files[1:])
    return files[0].read_text(encoding="utf-8")


def test_links_and_pictures_are_there(tmp_path: Path) -> None:
    text = written(tmp_path, three_claims())
    for link in re.findall(r"\]\(([^)#]+)\)", text):
        assert (tmp_path / "docs" / link).exists(), link
    headings = {heading.replace("\\", "").lower() for heading in re.findall(r"^## (.*)$", text, re.MULTILINE)}
    assert set(re.findall(r"\]\(#([^)]+)\)", text)) == headings
    assert len(headings) == 3


def test_what_was_found_is_said(tmp_path: Path) -> None:
    evidence = three_claims()
    text = written(tmp_path, evidence).replace("\\", "")
    for section in evidence.sections:
        assert section.finding in text
        assert section.rule in text
        assert section.verdict in text.lower()
        for effect in section.effects:
            assert effect.label in text
    assert evidence.command in text


def test_text_stays_text(tmp_path: Path) -> None:
    assert EVIL not in written(tmp_path, evil_evidence()).replace(evil_evidence().command, "")


def test_without_evidence_nothing_is_written(tmp_path: Path) -> None:
    with pytest.raises(RecordError, match=r"no evidence\.json"):
        report.document(tmp_path, tmp_path / "e.md", tmp_path / "figures")
    assert list(tmp_path.iterdir()) == []
