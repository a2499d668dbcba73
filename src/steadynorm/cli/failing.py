"""How the command line says that something is wrong."""

from __future__ import annotations

import sys
from typing import NoReturn


def fail(message: str, code: int) -> NoReturn:
    """One line on stderr, and the exit code."""
    print(f"steadynorm: {' '.join(message.split())}", file=sys.stderr)
    sys.exit(code)
