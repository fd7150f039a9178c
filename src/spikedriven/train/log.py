"""The logs of a run: written as it goes, continued where it stopped, and Lightning kept quiet."""

import csv
import logging
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger

from spikedriven.train.run import Run


def open_loggers(run: Run, steps_done: int) -> list[CSVLogger | TensorBoardLogger]:
    """Return the loggers of a run; what was logged before `steps_done` stays, the rest goes.

    Args:
        run: Where to log.
        steps_done: Training steps of the whole epochs so far; 0 begins anew.
    """
    earlier = _rows_before(run, steps_done)
    table = CSVLogger(run.folder, name="", version="")
    # The logger removes an older file when it opens: its rows are handed over and written at once.
    table.experiment.metrics.extend(earlier)
    table.save()
    board = TensorBoardLogger(run.folder, name="tensorboard", version="", purge_step=steps_done)
    return [table, board]


def _rows_before(run: Run, steps_done: int) -> list[dict[str, str]]:
    if not run.table_file.exists():
        return []
    with run.table_file.open(newline="", encoding="utf-8", errors="replace") as file:
        # A full disk may have cut the last row short: it lacks cells, and is not kept.
        whole = [row for row in csv.DictReader(file) if None not in row.values()]
    return [
        {name: cell for name, cell in row.items() if cell}
        for row in whole
        if row["step"].isdecimal() and int(row["step"]) < steps_done
    ]


def line_writer(run: Run, say: Callable[[str], None] | None) -> Callable[[str], None]:
    """Return a function that puts a line into `train.log`, with its time, and passes it on."""

    def write(line: str) -> None:
        with run.log_file.open("a", encoding="utf-8") as file:
            file.write(f"{time.strftime('%Y-%m-%d %H:%M:%S')}  {line}\n")
        if say is not None:
            say(line)

    return write


@contextmanager
def quiet_lightning() -> Iterator[None]:
    """Keep Lightning's advertisements and hints off the screen."""
    loggers = [logging.getLogger(f"lightning.{part}") for part in ("pytorch", "fabric")]
    levels = [logger.level for logger in loggers]
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module=r"lightning\b")
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        try:
            yield
        finally:
            for logger, level in zip(loggers, levels, strict=True):
                logger.setLevel(level)
