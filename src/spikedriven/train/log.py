"""The logs of a run: written as it goes, continued where it stopped, and Lightning kept quiet."""

import csv
import io
import logging
import os
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers import Logger, TensorBoardLogger
from lightning.pytorch.utilities import rank_zero_only

from spikedriven.records import write_whole
from spikedriven.train.run import Run

Row = Mapping[str, float | int | str]

# Rows between two writings of the table; a checkpoint and an epoch's end write it too.
ROWS_AT_ONCE = 100


class Table(Logger):
    """`metrics.csv`: what was logged, row by row.

    It is written whole when a session begins and when a column is new; in between, rows are
    appended. A process that is killed meanwhile may leave a part of a row, which lies behind all
    that a state knows of and goes when the run continues.

    Args:
        path: The file.
        kept: How many of its rows stay; those behind them were logged after the state that
            training continues from.
    """

    def __init__(self, path: Path, kept: int = 0) -> None:
        super().__init__()
        self.path = path
        self.rows: list[Row] = _rows(path)[:kept]
        self.columns: list[str] = []
        self.on_disk = 0
        """How many of the rows are known to lie in the file, under these columns."""

    @property
    def name(self) -> str:
        """Name of the logger."""
        return "table"

    @property
    def version(self) -> str:
        """There is one table in a run."""
        return ""

    def log_hyperparams(self, *_args: Any, **_kwargs: Any) -> None:
        """Leave the recipe to `recipe.yaml`."""

    @rank_zero_only
    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        """Add a row."""
        assert step is not None
        self.rows.append({**metrics, "step": step})
        if len(self.rows) - self.on_disk >= ROWS_AT_ONCE:
            self.save()

    @rank_zero_only
    def save(self) -> None:
        """Bring all rows onto the disk."""
        new = self.rows[self.on_disk :]
        columns = sorted({*self.columns, *(name for row in new for name in row)})
        if self.on_disk and columns == self.columns:
            self.on_disk = 0  # until it is done: after a failure half-way, all are written again
            with self.path.open("ab") as file:
                file.write(_csv(columns, new))
                file.flush()
                os.fsync(file.fileno())
        else:
            self.on_disk = 0
            write_whole(self.path, _csv(columns, self.rows, header=True))
        self.columns, self.on_disk = columns, len(self.rows)

    @rank_zero_only
    def finalize(self, status: str) -> None:
        """Write what is left."""
        del status
        if self.on_disk < len(self.rows):
            self.save()


def _csv(columns: Sequence[str], rows: Iterable[Row], *, header: bool = False) -> bytes:
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, columns)
    if header:
        writer.writeheader()
    writer.writerows(rows)
    return text.getvalue().encode()


def _rows(path: Path) -> list[Row]:
    if not path.exists():
        return []
    with path.open(newline="", encoding="utf-8", errors="replace") as file:
        # Another program may have cut the last row short: it lacks cells, and is not kept.
        whole = [row for row in csv.DictReader(file) if None not in row.values()]
    return [{name: cell for name, cell in row.items() if cell} for row in whole]


def open_board(run: Run, steps_done: int) -> Logger:
    """Return TensorBoard's logger; what it logged after `steps_done` training steps goes."""
    return TensorBoardLogger(run.folder, name="tensorboard", version="", purge_step=steps_done)


def line_writer(run: Run, say: Callable[[str], None] | None) -> Callable[[str], None]:
    """Return a function that puts a line into `train.log`, with its time, and passes it on."""

    @rank_zero_only
    def write(line: str) -> None:
        with run.log_file.open("a", encoding="utf-8") as file:
            file.write(f"{time.strftime('%Y-%m-%d %H:%M:%S')}  {line}\n")
        if say is not None:
            say(line)

    return write


@contextmanager
def quiet_lightning() -> Iterator[None]:
    """Keep Lightning's advertisements and hints, and timm's on short schedules, off the screen."""
    noisy = ("lightning.pytorch", "lightning.fabric", "timm.scheduler")
    loggers = [logging.getLogger(name) for name in noisy]
    levels = [logger.level for logger in loggers]
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module=r"lightning\b")
        # A divided model's logits are a view; nothing here writes into them.
        warnings.filterwarnings("ignore", message="FSDP2-wrapped module .* returned a view tensor")
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        try:
            yield
        finally:
            for logger, level in zip(loggers, levels, strict=True):
                logger.setLevel(level)
