"""An effect and its interval as a small drawing: no effect in the middle, the claimed direction to the right."""

from __future__ import annotations

import math
from dataclasses import dataclass

from ..records import Effect

WIDTH = 120


@dataclass(frozen=True)
class Forest:
    """Places from 0 to `WIDTH`, no effect at the middle.

    Attributes:
        low, high: the ends of the interval; None where there is none.
        estimate: the mark.
        side: "for" where the whole interval is right of no effect, "against" where it is left of it, else "open"; an
            effect that does not decide has no direction that would be for the claim.
    """

    low: float | None
    high: float | None
    estimate: float
    side: str


def forest(effect: Effect) -> Forest | None:
    """Of an effect that was measured, on its own scale: logarithmic for ratios."""
    if effect.estimate is None:
        return None
    known = [effect.estimate, *(v for v in (effect.low, effect.high) if v is not None)]
    logs = effect.unit == "×" and min(*known, effect.neutral) > 0
    distances = [_distance(value, effect.neutral, logs) for value in known]
    widest = max(map(abs, distances)) or 1
    estimate, *ends = (round(WIDTH / 2 * (1 + 0.88 * distance / widest), 1) for distance in distances)
    if effect.low is None or effect.high is None:
        return Forest(None, None, estimate, "open")
    low, high = ends
    return Forest(low, high, estimate, _side(effect.low, effect.high, effect.neutral) if effect.decides else "open")


def _side(low: float, high: float, neutral: float) -> str:
    return "for" if low > neutral else "against" if high < neutral else "open"


def _distance(value: float, neutral: float, logs: bool) -> float:
    return math.log(value / neutral) if logs else value - neutral
