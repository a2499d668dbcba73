"""Numbers in words, the same in findings, on the terminal and on the page."""

from __future__ import annotations

from .evidence import Effect, Section

NONE = "–"


def number(value: float | str | None) -> str:
    """To four significant digits, from a thousand to a million to the whole number; text as it is."""
    if value is None:
        return NONE
    if isinstance(value, str):
        return value
    size = abs(value)
    if (value == int(value) and size < 1e9) or 1e3 <= size < 1e6:
        return _minus(f"{value:,.0f}")
    return _minus(_plain(f"{value:.4g}") if 1e-3 <= size < 1e3 else _plain(f"{value:.2e}"))


def estimate(effect: Effect) -> str:
    """Such as "+3.2 points" or "2.1×"."""
    if effect.estimate is None:
        return "not measured"
    value = _form(effect, effect.estimate)
    return value if effect.unit in ("", "×") else f"{value} {effect.unit}"


def interval(effect: Effect) -> str:
    """Such as "+1.1 to +5.3"; a dash where there is none."""
    if effect.low is None or effect.high is None:
        return NONE
    return f"{_form(effect, effect.low)} to {_form(effect, effect.high)}"


def leading(section: Section) -> Effect | None:
    """The effect a ledger shows: the first that decides, or else the first."""
    return next((effect for effect in section.effects if effect.decides), next(iter(section.effects), None))


def runs(section: Section) -> str:
    """Such as "5 finished, 1 diverged, 2 missing, over 3 seeds"."""
    counts = [f"{count} {status}" for status, count in section.runs.items() if count]
    return f"{', '.join(counts) or 'none'}, over {plural(section.seeds, 'seed')}"


def gaps(section: Section) -> str:
    """What a ledger must not hide: such as "2 crashed, 1 missing"; nothing where every run ended by itself."""
    return ", ".join(f"{section.runs[name]} {name}" for name in ("crashed", "missing") if section.runs.get(name))


def plural(count: int, noun: str) -> str:
    """The count and its noun: 1 seed, 3 seeds."""
    return f"{count:,} {noun}{'s' if count != 1 else ''}"


def is_number(column: list[float | str | None]) -> bool:
    """Whether a table's column is set as numbers: nothing but numbers and gaps."""
    return all(not isinstance(value, str) for value in column)


def _form(effect: Effect, value: float) -> str:
    if effect.unit == "×":
        return f"{_plain(f'{value:.3g}')}×"
    return _minus(_plain(f"{value:+.3g}" if effect.neutral == 0 else f"{value:.3g}"))


def _plain(text: str) -> str:
    """1.5e-05 as 1.5e-5, 1e+06 as 1e6."""
    mantissa, e, exponent = text.partition("e")
    return f"{mantissa}e{int(exponent)}" if e else text


def _minus(text: str) -> str:
    return text.replace("-", "−")
