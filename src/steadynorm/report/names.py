"""What a section's files and its place on the page are called."""

from __future__ import annotations

import re

from ..records import Evidence


def stems(evidence: Evidence) -> list[str]:
    """A name for each section, unique and safe as a file's and an anchor's: the claim's, if it is."""
    found: list[str] = []
    for section in evidence.sections:
        stem = re.sub(r"[^A-Za-z0-9_]+", "-", section.claim).strip("-")[:60] or "claim"
        again = sum(other == stem or other.startswith(f"{stem}.") for other in found)
        found.append(f"{stem}.{again + 1}" if again else stem)
    return found
