"""`recalibrate` and `fold`: a trained model's weights in, new ones out."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click
from rich.console import Console

from .. import records
from ..statistics.command import recalibrated
from ..statistics.population import ESTIMATORS
from ..surgery.folding.command import folded


@click.command()
@click.argument("factory")
@click.option("--checkpoint", type=click.Path(path_type=Path), required=True, help="The model's weights: a state dict.")
@click.option("--data", required=True, help="Batches, or a function that makes them: package.module:name.")
@click.option("--out", type=click.Path(path_type=Path), required=True, help="File of the new state dict.")
@click.option("--estimator", type=click.Choice(ESTIMATORS), default="pooled", show_default=True)
@click.option("--sequential", is_flag=True, help="Layer after layer: exact, in as many passes over the data.")
@click.option("--batches", type=click.IntRange(min=1), help="Batches to read.  [default: all]")
@click.option(
    "--unreached",
    type=click.Choice(["raise", "keep"]),
    default="raise",
    show_default=True,
    help="What to do about layers that no batch reaches: an error, or keep what they have.",
)
def recalibrate(factory: str, checkpoint: Path, data: str, out: Path, batches: int | None, **settings: Any) -> None:
    """Give the batch normalization layers of a trained model the statistics of all of the data.

    FACTORY is package.module:name of a function that makes the model. Batches are tensors, tuples whose first entry is
    the input, or mappings of keyword arguments. Only weights are read from the checkpoint, nothing else is unpickled.
    """
    console = Console()
    content, shifts = recalibrated(factory, checkpoint, data, console, batches=batches, **settings)
    console.print(str(shifts), soft_wrap=True, highlight=False, markup=False)
    records.replace(out, content)
    console.print(f"wrote {out}", soft_wrap=True, highlight=False)


@click.command()
@click.argument("factory")
@click.option("--checkpoint", type=click.Path(path_type=Path), required=True, help="The model's weights: a state dict.")
@click.option("--out", type=click.Path(path_type=Path), required=True, help="File of the folded model's state dict.")
@click.option("--example", metavar="SIZES", help="Shape of a random example, such as 1,3,224,224.")
@click.option("--example-inputs", help="Or example inputs, or what makes them: package.module:name.")
def fold(factory: str, checkpoint: Path, out: Path, example: str | None, example_inputs: str | None) -> None:
    """Fold the batch normalization of a trained model into the layers beside it, with the proof.

    FACTORY is package.module:name of a function that makes the model. Only weights are read from the checkpoint,
    nothing else is unpickled. The file fits steadynorm.fold(FACTORY().eval(), example).model.
    """
    console = Console()
    with console.status("folding"):
        content, found = folded(factory, checkpoint, example, example_inputs)
    console.print(str(found), soft_wrap=True, highlight=False, markup=False)
    records.replace(out, content)
    console.print(f"wrote {out}", soft_wrap=True, highlight=False)
