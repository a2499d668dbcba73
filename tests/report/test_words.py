"""Numbers in words, the terminal's ledger, and effects as drawings, against what was worked out by hand."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console

from steadynorm import records, report
from steadynorm.records import EVIDENCE, Effect, Evidence, Line, Panel, Table, words
from steadynorm.report.drawing import alone, drawing
from steadynorm.report.forest import Forest, forest
from steadynorm.report.names import stems
from steadynorm.report.styles import numbered, style

from ..support.study import EVIL, a_section, evil_evidence, many, one_claim, rates, three_claims, training

POINTS = Effect("accuracy", "points", 18.0, 5.5, 30.5, 0.0, 2)
TIMES = Effect("steps", "×", 2.0, 0.5, 8.0, 1.0, 3)


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (None, "–"),
        ("with BN", "with BN"),
        (0.0, "0"),
        (1234567.0, "1,234,567"),
        (-12.0, "−12"),
        (0.93214567, "0.9321"),
        (-0.5, "−0.5"),
        (12345.67, "12,346"),
        (1234567.5, "1.23e6"),
        (0.000123456, "1.23e−4"),
        (1e300, "1.00e300"),
    ],
    ids=str,
)
def test_numbers(value: float | str | None, expected: str) -> None:
    assert words.number(value) == expected


def test_effects_in_words() -> None:
    assert (words.estimate(POINTS), words.interval(POINTS)) == ("+18 points", "+5.5 to +30.5")
    assert (words.estimate(TIMES), words.interval(TIMES)) == ("2×", "0.5× to 8×")
    one = replace(POINTS, estimate=-0.25, low=None, high=None)
    assert (words.estimate(one), words.interval(one)) == ("−0.25 points", "–")
    assert words.estimate(replace(one, estimate=None)) == "not measured"
    assert words.estimate(replace(POINTS, unit="", neutral=0.5)) == "18"


def test_a_ledger_does_not_hide_what_crashed_or_is_missing() -> None:
    assert (
        words.gaps(a_section(runs={"finished": 1, "diverged": 2, "crashed": 3, "missing": 4})) == "3 crashed, 4 missing"
    )
    assert words.gaps(a_section(runs={"finished": 1, "diverged": 2, "crashed": 0})) == ""


def test_the_leading_effect_is_the_first_that_decides() -> None:
    section = a_section()
    assert words.leading(section) == section.effects[1]
    assert words.leading(replace(section, effects=section.effects[:1])) == section.effects[0]
    assert words.leading(replace(section, effects=[])) is None


def test_runs_in_words() -> None:
    assert words.runs(a_section()) == "3 finished, 1 diverged, over 2 seeds"
    assert words.runs(a_section(runs={"missing": 4}, seeds=1)) == "4 missing, over 1 seed"
    assert words.runs(a_section(runs={"finished": 0})) == "none, over 2 seeds"


def test_forest_by_hand() -> None:
    """120 wide; the end that is further from no effect is at 0.88 of a half: 60 + 52.8; ratios are logarithmic."""
    assert forest(POINTS) == Forest(69.5, 112.8, 91.2, "for")
    assert forest(replace(POINTS, decides=False)) == Forest(69.5, 112.8, 91.2, "open")
    assert forest(TIMES) == Forest(42.4, 112.8, 77.6, "open")
    assert forest(replace(POINTS, estimate=-2.0, low=-3.0, high=-1.0)) == Forest(7.2, 42.4, 24.8, "against")
    assert forest(replace(TIMES, low=None, high=None)) == Forest(None, None, 112.8, "open")
    assert forest(replace(POINTS, estimate=0.0, low=None, high=None)) == Forest(None, None, 60.0, "open")
    assert forest(replace(POINTS, estimate=None)) is None


def test_series_keep_their_number_through_a_section() -> None:
    section = a_section(figures=[training(), rates()])
    assert numbered(section) == [{"without BN": 0, "with BN": 1}] * 2
    several = numbered(a_section(figures=[training(), many()]))
    assert list(several[1].values()) == list(range(8))
    looks = [(found.colour, found.symbol, found.plotly_dash) for found in map(style, range(16))]
    assert len(set(looks)) == 16
    assert len({colour for colour, *_ in looks[:8]}) == len({symbol for _, symbol, _ in looks[:8]}) == 8


def test_what_a_logarithmic_axis_cannot_show_is_left_out() -> None:
    drawn = drawing(Panel("", "", "", [Line("a", [0, 1, 10], [0.5, 0.0, 0.1], [0.4, 0.0, -1.0])], "xy"))
    assert (drawn.lines[0].y, drawn.lines[0].low, drawn.lines[0].high) == (
        [None, None, 0.1],
        [None, None, None],
        [None, None, 0.1],
    )
    assert drawn.left_out == 2


def test_points_without_a_neighbour() -> None:
    gaps = drawing(Panel("", "", "", [Line("a", [1, 2, 3, 4, 5, 6], [1, None, 1, 1, None, 1])])).lines[0]
    assert alone(gaps) == [0, 5]
    assert alone(Line("a", [1], [1.0], [0.5], [2.0])) == [0]


def test_an_axis_of_words_has_every_word_once() -> None:
    lines = [Line("a", ["none", 0.1], [1, 2]), Line("b", [0.1, "late"], [3, 4])]
    drawn = drawing(Panel("", "", "", lines, "x"))
    assert drawn.labels == ["none", "0.1", "late"]
    assert drawn.lines[0].x == ["none", "0.1"]
    assert not drawn.log_x


def test_files_of_sections_have_names_of_their_own() -> None:
    names = ["cnn", "cnn", "../../etc/passwd", "", "网络", "cnn"]
    evidence = Evidence("", "", "", {}, [a_section(name) for name in names])
    assert stems(evidence) == ["cnn", "cnn.2", "etc-passwd", "claim", "claim.2", "cnn.3"]


def shown(directory: Path, evidence: Evidence, width: int = 80) -> str:
    records.write(directory / EVIDENCE, evidence)
    console = Console(width=width, no_color=True)
    with console.capture() as capture:
        console.print(report.ledger(directory))
    lines = capture.get().splitlines()
    assert max(map(len, lines)) <= width
    return "\n".join(" ".join(line.split()) for line in lines)


def test_one_claim_is_shown_in_full(tmp_path: Path) -> None:
    text = shown(tmp_path, one_claim())
    for line in (
        "Does cnn learn faster and better?",
        "supported: The network of cnn is better by 18 points.",
        "digits; runs: 3 finished, 1 diverged, over 2 seeds",
        "test accuracy, with BN − without +18 points +5.5 to +30.5 2",
        "roughness (beside) not measured – 0",
        "network test accuracy loss steps",
        "without BN 0.75 1.23e−4 1,234,567",
        "with BN 0.93 – 12",
    ):
        assert line in text.splitlines()


def test_several_claims_have_a_line_each(tmp_path: Path) -> None:
    text = shown(tmp_path, three_claims(), 100)
    for line in (
        "cnn supported test accuracy, with BN − without +18 points +5.5 to +30.5",
        "norms contradicted accuracy, renorm − batch −0.4 points −0.6 to −0.2",
        "learning-rate undecided largest rate, with ÷ without 4× –",
    ):
        assert line in text.splitlines()


def test_long_tables_are_cut_on_a_terminal(tmp_path: Path) -> None:
    table = Table("Many", ["row"], [[float(row)] for row in range(42)])
    text = shown(tmp_path, replace(one_claim(), sections=[a_section(tables=[table])]))
    assert "and 12 more rows in the report" in text
    assert "\n29\n" in text
    assert "\n30\n" not in text


def test_text_is_no_markup(tmp_path: Path) -> None:
    section = a_section(finding="[red]not red[/red] [/]", question=EVIL, tables=[Table("[b]", ["[i]"], [["[u]"]])])
    text = shown(tmp_path, replace(one_claim(), sections=[section]))
    assert "[red]not red[/red] [/]" in text
    assert {"[b]", "[i]", "[u]"} <= set(text.splitlines())
    shown(tmp_path, evil_evidence())
