"""A run's series as event files that TensorBoard shows."""

from __future__ import annotations

from pathlib import Path

from ..errors import MissingExtraError
from ..records import Run


def log(directory: Path, run: Run) -> None:
    """Writes every series over whole numbers, and every value, of a run under `directory`/CLAIM/RUN.

    Raises:
        MissingExtraError: TensorBoard is not installed.
    """
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise MissingExtraError("--tensorboard", "tensorboard") from error
    with SummaryWriter(str(directory / run.cell.claim / run.cell.key)) as writer:
        for name, series in run.series.items():
            if any(x != int(x) for x in series.x):  # over scales, say; TensorBoard knows steps
                continue
            for x, y in zip(series.x, series.y, strict=True):
                if y is not None:
                    writer.add_scalar(name, y, int(x))
        for name, value in run.values.items():
            if value is not None:
                writer.add_scalar(f"final/{name}", value)
