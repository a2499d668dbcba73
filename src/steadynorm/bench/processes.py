"""Fresh processes that are asked to do one thing and say what it took."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from ..errors import SteadynormError

_CHILD = Path(__file__).with_name("child.py")


class NotMeasuredError(SteadynormError, RuntimeError):
    """Something could not be measured; the rest can."""


def ask(request: dict[str, Any]) -> dict[str, Any]:
    """What a fresh process, see `child`, says to a request.

    Raises:
        NotMeasuredError: it fails or says nothing.
    """
    command = [sys.executable, str(_CHILD), json.dumps(request)]
    done = subprocess.run(command, capture_output=True, text=True)
    try:
        if done.returncode == 0:
            return json.loads(done.stdout.splitlines()[-1])
        reason = [f"exit code {done.returncode}", *done.stderr.strip().splitlines()][-1]
    except (ValueError, IndexError):
        reason = "it printed no figures"
    what = f"{request['what']} of {request.get('variant')}"
    raise NotMeasuredError(
        f"{what} was not measured in a fresh process of {sys.executable}: {reason}. "
        "Mend that, and the same command measures what is missing."
    )
