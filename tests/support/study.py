"""A study, its evidence and its data made by hand, small enough to check by eye."""

from __future__ import annotations

from dataclasses import replace

from steadynorm.records import (
    CONTRADICTED,
    SUPPORTED,
    UNDECIDED,
    Cell,
    Data,
    Effect,
    Evidence,
    Figure,
    Line,
    Panel,
    Run,
    Section,
    Series,
    Study,
    Table,
)

EVIL = "</script><script>alert(1)</script>"


def a_cell(network: str = "with BN", seed: int = 0, **settings: int) -> Cell:
    return Cell("cnn", {"network": network}, seed, {"steps": 4, **settings})


def a_run(cell: Cell) -> Run:
    """A finished run whose loss was not finite once."""
    series = {"validation loss": Series([1.0, 2.0, 4.0], [0.5, None, 0.25])}
    return Run(cell, "finished", "", {"test accuracy": 0.9}, series, {"training": 1.5})


def a_study(*cells: Cell) -> Study:
    data = {"digits": Data("digits", "0" * 64, {"train": 10, "test": 3})}
    return Study("smoke", list(cells), data, "steadynorm study cnn", {"torch": "2.13.0"})


def training() -> Figure:
    """Two curves in two panels; with BN the loss is not finite at step 200, and the range is wide at step 300."""
    steps: list[float | str] = [100, 200, 300, 400]
    accuracy = [
        Line("without BN", steps, [0.5, 0.6, 0.7, 0.75], [0.4, 0.5, 0.6, 0.7], [0.6, 0.7, 0.8, 0.8]),
        Line("with BN", steps, [0.7, 0.85, 0.9, 0.93], [0.7, 0.8, 0.9, 0.92], [0.7, 0.9, 0.9, 0.94]),
    ]
    loss = [
        Line("without BN", steps, [1.2, 1.0, 0.9, 0.8], [1.1, 0.9, 0.8, 0.7], [1.3, 1.1, 1.0, 0.9]),
        Line("with BN", steps, [0.9, None, 0.5, 0.4], [0.8, None, 0.4, 0.3], [1.0, None, 0.9, 0.5]),
    ]
    panels = [Panel("Accuracy", "step", "accuracy", accuracy), Panel("Loss", "step", "nats", loss, "y")]
    return Figure("Training", "Lines are means over seeds.", panels)


def rates() -> Figure:
    """A sweep over a logarithmic axis whose first rate, 0, cannot be drawn on it, and one over words."""
    xs: list[float | str] = [0.0, 0.001, 0.01, 0.1, 1.0]
    curves = [
        Line("without BN", xs, [0.1, 0.6, 0.8, 0.4, None], [0.1, 0.5, 0.7, 0.1, None], [0.1, 0.7, 0.9, 0.8, None]),
        Line("with BN", xs, [0.1, 0.5, 0.8, 0.9, 0.85], [0.1, 0.5, 0.8, 0.9, 0.8], [0.1, 0.5, 0.8, 0.9, 0.9]),
    ]
    words = [Line("with BN", ["none", "ghost 4", 32], [0.2, 0.5, 0.6], [0.1, 0.4, 0.5], [0.3, 0.6, 0.7])]
    panels = [
        Panel("Accuracy by rate", "learning rate", "accuracy", curves, "x"),
        Panel("By group", "group", "accuracy", words),
    ]
    return Figure("Rates", "Each rate trained anew.", panels)


def many() -> Figure:
    """Eight series, two rows of bars side by side, and a single row of bars named as series are."""
    names = ["batch", "ghost", "renorm", "group", "layer", "instance", "whitening", "none"]
    depths: list[float | str] = [1, 2, 3, 4, 5]
    curves = [Line(n, depths, [10.0 ** -(d * (i + 1) / 4) for d in range(5)]) for i, n in enumerate(names)]
    pair = [Line(n, ["digits", "mnist"], [0.9, 0.8], [0.8, 0.7], [0.95, 0.9]) for n in names[:2]]
    row: list[float | str] = ["batch", "ghost", "someone else's"]
    solo = [Line("Test accuracy", row, [0.95, 0.9, 0.8], [0.9, 0.9, 0.7], [0.97, 0.9, 0.9])]
    panels = [
        Panel("Gradient norm", "depth", "norm", curves, "y"),
        Panel("On two data sets", "data", "accuracy", pair, bars=True),
        Panel("Test accuracy", "norm", "accuracy", solo, bars=True),
    ]
    return Figure("Norms", "Eight of them.", panels)


def a_section(claim: str = "cnn", verdict: str = SUPPORTED, **changes: object) -> Section:
    """Two seeds of two networks, one of which diverged."""
    plain = Section(
        claim=claim,
        question=f"Does {claim} learn faster and better?",
        source="Ioffe & Szegedy 2015, sec. 4.2",
        factors="batch normalization, or none",
        equal="initial weights, data and its order",
        measure="test accuracy after the last step",
        rule="supported if the interval lies above 0",
        would_change="harder data",
        data="digits",
        settings="steps 400, batch size 64",
        verdict=verdict,
        finding=f"The network of {claim} is better by 18 points.",
        effects=[
            Effect("roughness", "nats", None, None, None, 0.0, 0, decides=False),
            Effect("test accuracy, with BN − without", "points", 18.0, 5.5, 30.5, 0.0, 2),
            Effect("steps, without ÷ with", "×", 2.31, 1.5, 3.56, 1.0, 2),
        ],
        figures=[training(), rates()],
        tables=[
            Table(
                "Means over seeds",
                ["network", "test accuracy", "loss", "steps"],
                [["without BN", 0.75, 0.000123456, 1234567.0], ["with BN", 0.93, None, 12.0]],
            )
        ],
        runs={"finished": 3, "diverged": 1, "crashed": 0, "missing": 0},
        seeds=2,
    )
    return replace(plain, **changes)  # type: ignore[arg-type]


def one_claim() -> Evidence:
    section = a_section()
    return Evidence(section.question, "quick", "steadynorm study cnn --preset quick", {"torch": "2.13.0"}, [section])


def three_claims() -> Evidence:
    """One of each verdict."""
    against = Effect("accuracy, renorm − batch", "points", -0.4, -0.6, -0.2, 0.0, 3)
    lonely = Effect("largest rate, with ÷ without", "×", 4.0, None, None, 1.0, 1)
    sections = [
        a_section(),
        a_section("norms", CONTRADICTED, effects=[against], figures=[many()], source="Wu & He 2018"),
        a_section("learning-rate", UNDECIDED, effects=[lonely], runs={"finished": 2, "missing": 6}, seeds=1),
    ]
    command = "steadynorm study all --preset quick"
    return Evidence("What batch normalization does", "quick", command, {"torch": "2.13.0", "threads": "1"}, sections)


def evil_evidence() -> Evidence:
    """Two sections whose every text is a script."""
    xs: list[float | str] = [EVIL, f"{EVIL} $x^$ again"]
    panels = [
        Panel(EVIL, EVIL, EVIL, [Line(EVIL, xs, [1.0, 2.0]), Line("_hidden", xs, [2.0, 3.0])]),
        Panel(EVIL, EVIL, EVIL, [Line(EVIL, xs, [1.0, 2.0])], bars=True),
        Panel("网络", EVIL, EVIL, [Line("网络", [1.0, 2.0], [1.0, 2.0])]),
    ]
    texts = "claim question source factors equal measure rule would_change data settings verdict finding".split()
    section = Section(
        **dict.fromkeys(texts, EVIL),
        effects=[Effect(EVIL, EVIL, 1.0, 0.5, 2.0, 0.0, 2)],
        figures=[Figure(EVIL, EVIL, panels)],
        tables=[Table(EVIL, [EVIL], [[EVIL]])],
        runs={EVIL: 1},
        seeds=1,
    )
    return Evidence(EVIL, EVIL, EVIL, {EVIL: EVIL}, [section, section])
