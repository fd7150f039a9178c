"""FILE.spk and the files that are shown to it: what `run` and `stream` have in common."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from spikedriven.errors import ConfigError, DataError

if TYPE_CHECKING:
    from spikedriven.engine.plan import Input, Program


def open_program(path: str) -> "Program":
    """Load a program that can be shown files.

    Raises:
        CheckpointError: The file is damaged.
        ConfigError: The program takes images of any size.
    """
    from spikedriven.engine.plan import Program

    program = Program.load(path)
    if program.input.size is None:
        raise ConfigError(
            f"{path} takes images of any size; to read files it must be bound to one: "
            "compile it with image_size"
        )
    return program


def read_shown(path: str, wanted: "Input") -> NDArray[np.uint8]:
    """Read an image as [c, H, W], a recording of events as frames [T, c, H, W].

    Raises:
        DataError: The file is damaged, or an image where the program takes recordings or the
            reverse.
    """
    from spikedriven.data.events import POLARITIES, is_recording, read_frames
    from spikedriven.data.transforms import decode

    assert wanted.size is not None
    recorded, file = wanted.channels == POLARITIES, Path(path)
    if recorded != is_recording(file):
        raise DataError(
            f"{path} is {'an image' if recorded else 'a recording'} by its name; this program of "
            f"{wanted.channels} channels takes {'recordings of events' if recorded else 'images'}: "
            "choose another file"
        )
    if recorded:
        return read_frames(file, wanted.num_steps, wanted.size).numpy()
    return decode(file, wanted.channels, wanted.size).numpy()


def answer(program: "Program", logits: NDArray[np.float32], top: int) -> dict[str, Any]:
    """Return the `top` classes of one answer, logits [K], and their softmax shares."""
    names = program.classes or tuple(map(str, range(program.num_classes)))
    shares = np.exp(logits - logits.max())
    shares /= shares.sum()
    best = np.argsort(-shares, kind="stable")[:top]
    return {
        "classes": tuple(names[k] for k in best),
        "probabilities": tuple(float(shares[k]) for k in best),
    }


def check_top(top: int) -> None:
    """Refuse to name no class.

    Raises:
        ConfigError: `top` is below 1.
    """
    if top < 1:
        raise ConfigError(f"--top is {top}; it must be at least 1: 5 is usual")
