"""The table a study prints at its end."""

from __future__ import annotations

from rich.table import Table
from rich.text import Text

from ..records import Records
from .summary import Cell, finished, plural, rows


def table(records: Records) -> Table:
    """Measures down, variants across."""
    result = Table(title=f"{records.spec.data_title}, {plural(records.spec.epochs, 'epoch')}", title_justify="left")
    result.add_column("")
    for variant in records.spec.variants:
        if runs := finished(records, variant):
            result.add_column(f"{variant}\n{plural(len(runs), 'seed')}", justify="right")
    for row in rows(records):
        result.add_row(row.name, *map(_text, row.cells))
    return result


def _text(cell: Cell) -> Text:
    return Text(cell.text).append(f"\n{cell.remark}", "dim") if cell.remark else Text(cell.text)
