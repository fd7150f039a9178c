"""Event cameras: recordings of (time, column, row, polarity) become frames that count events.

Frames are made as the released code has them made: a recording of N events is cut into T runs of
N // T events (the last takes what is left over), and each pixel of a frame counts the events of one
polarity. A smaller image averages whole blocks of pixels; the released bilinear `Resize` from 128
to 64 is exactly that. What is stored is the block's sum, a byte, and `DataInfo.std` divides by the
block's size, so that the network sees the average. A sum above 255 is kept as 255.

Letters: T frames, C = 2 polarities, H x W pixels.
"""

import io
import math
import zipfile
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from spikedriven.data.config import DataConfig, DataInfo
from spikedriven.data.folder import locate
from spikedriven.errors import ConfigError, DataError

NUM_FRAMES = 16
"""T where a recipe names none: the paper's."""
POLARITIES = 2
CIFAR10DVS_TRAIN = 0.9
"""Share of each class, in the order of file names, that trains; the released split."""
MOST = 255

Integers = NDArray[np.int64]
Part = tuple[Tensor, Integers]
Opened = tuple[DataInfo, Part, None, Part]


class _DamageError(Exception):
    """A file is no whole recording; the message says why."""


@dataclass(frozen=True, slots=True)
class Events:
    """One recording, in the order in which its camera sent it."""

    t: Integers
    """Microseconds, [N]."""
    x: Integers
    """Column, [N], from the left."""
    y: Integers
    """Row, [N], from the top."""
    p: Integers
    """Polarity, [N]: 0 or 1."""
    side: int
    """Pixels along each side of the camera."""

    def between(self, begin: int, end: int) -> "Events":
        """Return the events with begin <= t < end."""
        kept = (self.t >= begin) & (self.t < end)
        return Events(self.t[kept], self.x[kept], self.y[kept], self.p[kept], self.side)

    def frames(self, num_frames: int, size: int) -> NDArray[np.uint8]:
        """Count the events of `num_frames` runs of equally many events.

        Args:
            num_frames: T.
            size: Side of a frame, a divisor of the camera's; each of its pixels sums a block.

        Returns:
            uint8 [T, 2, size, size]; a count above 255 is 255.

        Source: split by number, as in SpikingJelly's `integrate_events_by_fixed_frames_number`.
        """
        block = self.side // size
        per_frame = len(self.t) // num_frames
        frame = np.minimum(np.arange(len(self.t)) // per_frame, num_frames - 1)
        cell = ((frame * POLARITIES + self.p) * size + self.y // block) * size + self.x // block
        shape = (num_frames, POLARITIES, size, size)
        counts = np.bincount(cell, minlength=math.prod(shape)).reshape(shape)
        return np.minimum(counts, MOST).astype(np.uint8)


def read_events(path: Path) -> Events:
    """Read a recording: `.aedat` (2.0 of CIFAR10-DVS, 3.1 of DVS128 Gesture), `.bin`, `.npz`.

    Args:
        path: An .aedat file, told apart by its first line; a .bin file of N-MNIST; or an .npz file
            with t, x, y and p, as SpikingJelly leaves in `events_np` (128 x 128 pixels, or 34 x 34
            where no event lies beyond).

    Raises:
        DataError: The file is missing, truncated, or of another kind.
    """
    try:
        return _read(path)
    except _DamageError as damage:
        raise DataError(
            f"{path} is no whole recording ({damage}); it must be an .aedat, .bin or .npz file of "
            "events: copy it again or remove it"
        ) from damage


def read_frames(path: Path, num_frames: int, size: int) -> Tensor:
    """Read a recording as frames, uint8 [T, 2, size, size]: `Events.frames` of the whole file.

    Raises:
        DataError: As in `read_events`; or the recording is too short, or `size` does not divide
            the side of its camera.
    """
    events = read_events(path)
    if events.side % size:
        raise DataError(
            f"{path} was recorded with {events.side} x {events.side} pixels and {size} x {size} "
            f"are needed; they must divide {events.side}: use the camera of the training data"
        )
    try:
        return torch.from_numpy(_framed(events, num_frames, size))
    except _DamageError as damage:
        raise DataError(
            f"{path} is too short ({damage}); every frame must count at least one event: "
            "choose a longer recording"
        ) from damage


def is_recording(path: Path) -> bool:
    """Return whether a file's name is that of events, not of an image."""
    return path.suffix.lower() in _READERS


def _framed(events: Events, num_frames: int, size: int) -> NDArray[np.uint8]:
    if len(events.t) < num_frames:
        raise _DamageError(f"{len(events.t)} events for {num_frames} frames")
    return events.frames(num_frames, size)


# ------------------------------------------------------------------ file formats


def _read(path: Path) -> Events:
    reader = _READERS.get(path.suffix.lower())
    if reader is None:
        raise _DamageError(f"{path.suffix or 'no suffix'} is not known")
    try:
        if not path.is_file():  # of anything else reading might never end
            raise _DamageError("no file" if path.exists() else "missing")
        content = path.read_bytes()
    except OSError as error:
        raise _DamageError(error.strerror or "it cannot be read") from error
    events = reader(content)
    for name, values, most in (("x", events.x, events.side), ("y", events.y, events.side)):
        if len(values) and not 0 <= values.min() <= values.max() < most:
            wrong = int(values.max() if values.max() >= most else values.min())
            raise _DamageError(f"{name} = {wrong} lies outside {most} x {most} pixels")
    return events


def _read_aedat(content: bytes) -> Events:
    if content.startswith(b"#!AER-DAT2"):
        return _read_aedat2(content)
    if content.startswith(b"#!AER-DAT3"):
        return _read_aedat3(content)
    raise _DamageError(f"it begins with {content[:12]!r}, not with #!AER-DAT2 or #!AER-DAT3")


def _header_end(content: bytes) -> int:
    """Return where the lines that begin with # end."""
    position = 0
    while content[position : position + 1] == b"#":
        newline = content.find(b"\n", position)
        if newline < 0:
            raise _DamageError("it ends within its header")
        position = newline + 1
        if content[:position].endswith(b"#!END-HEADER\r\n"):
            break
    return position


def _read_aedat2(content: bytes) -> Events:
    """jAER, DVS128: big-endian pairs of address and microseconds.

    Address bits: 0 polarity (1 is OFF), 1-7 and 8-14 the pixel, turned as CIFAR10-DVS's authors do.
    """
    body = content[_header_end(content) :]
    if len(body) % 8:
        raise _DamageError(f"{len(body) % 8} bytes follow its last whole event")
    address, t = np.frombuffer(body, ">u4").astype(np.int64).reshape(-1, 2).T
    return Events(t, 127 - (address >> 8 & 127), 127 - (address >> 1 & 127), 1 - (address & 1), 128)


_PACKET = np.dtype(
    [("type", "<i2"), ("source", "<i2"), ("size", "<i4"), ("offset", "<i4"), ("overflow", "<i4"),
     ("capacity", "<i4"), ("number", "<i4"), ("valid", "<i4")]
)  # fmt: skip
_POLARITY_EVENT, _POLARITY_BYTES = 1, 8


def _read_aedat3(content: bytes) -> Events:
    """cAER: packets of little-endian events; data bits 1 polarity, 2-16 row, 17-31 column."""
    position = _header_end(content)
    parts = []
    while position < len(content):
        if position + _PACKET.itemsize > len(content):
            raise _DamageError("it ends within the header of a packet")
        packet = np.frombuffer(content, _PACKET, 1, position)[0]
        size, room = int(packet["size"]), int(packet["capacity"])
        position += _PACKET.itemsize
        if size < 1 or room < 1 or not 0 <= packet["number"] <= room:
            raise _DamageError(f"byte {position} is no packet of events")
        if position + size * room > len(content):
            raise _DamageError("it ends within a packet")
        if packet["type"] == _POLARITY_EVENT:
            if size != _POLARITY_BYTES:
                raise _DamageError(f"its events have {size} bytes, not {_POLARITY_BYTES}")
            words = np.frombuffer(content, "<u4", 2 * int(packet["number"]), position)
            data, t = words.astype(np.int64).reshape(-1, 2).T
            parts.append((t | int(packet["overflow"]) << 31, data))
        position += size * room
    if not parts:
        raise _DamageError("it holds no event of a pixel")
    t, data = (np.concatenate(arrays) for arrays in zip(*parts, strict=True))
    return Events(t, data >> 17 & 0x7FFF, data >> 2 & 0x7FFF, data >> 1 & 1, 128)


def _read_bin(content: bytes) -> Events:
    """ATIS, N-MNIST: 40 bits an event, column, row, polarity and 23 bits of microseconds."""
    if len(content) % 5:
        raise _DamageError(f"{len(content) % 5} bytes follow its last whole event")
    rows = np.frombuffer(content, np.uint8).astype(np.int64).reshape(-1, 5)
    x, y, high, middle, low = rows.T
    return Events((high & 127) << 16 | middle << 8 | low, x, y, high >> 7, 34)


def _read_npz(content: bytes) -> Events:
    try:
        with np.load(io.BytesIO(content), allow_pickle=False) as stored:
            t, x, y, p = (_whole(name, stored[name]) for name in "txyp")
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise _DamageError(f"not t, x, y and p as NumPy saves them: {error}") from error
    if not t.ndim == 1 or not t.shape == x.shape == y.shape == p.shape:
        raise _DamageError("t, x, y and p differ in length")
    if len(p) and not 0 <= p.min() <= p.max() <= 1:
        raise _DamageError("p is not 0 or 1")
    farthest = max(x.max(), y.max()) if len(t) else 0
    return Events(t, x, y, p, 34 if farthest < 34 else 128)


def _whole(name: str, values: NDArray[Any]) -> Integers:
    """Return the values as integers; NaN and fractions would become some number, too."""
    if values.dtype.kind in "biuf":
        with np.errstate(invalid="ignore"):  # judged below
            whole = values.astype(np.int64)
        if np.array_equal(whole, values):
            return whole
    raise _DamageError(f"{name} holds other than whole numbers")


_READERS: dict[str, Callable[[bytes], Events]] = {
    ".aedat": _read_aedat,
    ".bin": _read_bin,
    ".npz": _read_npz,
}


# ------------------------------------------------------------------ datasets


def open_cifar10dvs(config: DataConfig, root: Path | None) -> Opened:
    """Open CIFAR10-DVS: DIR/CLASS/*.aedat as its archives unpack, or SpikingJelly's events_np.

    It has no split of its own; the first nine tenths of each class, by file name, train.
    """
    base = locate(config.name, root, ("airplane", "extract/airplane", "events_np/airplane")).parent
    info = _info(config, _CIFAR10, side=128)
    train: list[tuple[Path, int]] = []
    test: list[tuple[Path, int]] = []
    for label, name in enumerate(_CIFAR10):
        files = _recordings(base / name)
        first_test = math.ceil(CIFAR10DVS_TRAIN * len(files))
        train += [(path, label) for path in files[:first_test]]
        test += [(path, label) for path in files[first_test:]]
    return _framed_parts(info, _each_whole(train, 128), _each_whole(test, 128))


def open_dvs128_gesture(config: DataConfig, root: Path | None) -> Opened:
    """Open DVS128 Gesture: DIR/DvsGesture as published, or SpikingJelly's events_np.

    A published recording holds many gestures; its table says from when to when each lasted.
    """
    layouts = ("DvsGesture", "extract/DvsGesture", "events_np", "trials_to_train.txt")
    base = locate(config.name, root, layouts)
    info = _info(config, _GESTURES, side=128)
    if base.name == "events_np":
        parts = [_by_label(base / part, len(_GESTURES), 128) for part in ("train", "test")]
        return _framed_parts(info, *parts)
    folder = base.parent if base.name == "trials_to_train.txt" else base
    return _framed_parts(info, _gestures(folder, "train"), _gestures(folder, "test"))


def open_nmnist(config: DataConfig, root: Path | None) -> Opened:
    """Open N-MNIST: DIR/Train/0/*.bin ... DIR/Test/9/*.bin as its archives unpack."""
    base = locate(config.name, root, ("Train", "extract/Train")).parent
    info = _info(config, tuple("0123456789"), side=34)
    parts = [_by_label(base / part, 10, 34) for part in ("Train", "Test")]
    return _framed_parts(info, *parts)


Samples = Iterator[tuple[Path, int, Callable[[], Events]]]
"""File, label, and the reading of it, which may find it damaged."""


def _by_label(folder: Path, classes: int, side: int) -> Samples:
    labelled = [(path, k) for k in range(classes) for path in _recordings(folder / str(k))]
    return _each_whole(labelled, side)


def _each_whole(files: list[tuple[Path, int]], side: int) -> Samples:
    return ((path, label, partial(_read_for, path, side)) for path, label in files)


def _read_for(path: Path, side: int) -> Events:
    events = _read(path)
    if events.side > side:
        raise _DamageError(f"it was recorded with {events.side} x {events.side} pixels, not {side}")
    return replace(events, side=side)  # an .npz file does not tell


def _gestures(folder: Path, part: str) -> Samples:
    """Give out the gestures of every recording that the published list of a part names."""
    trials = folder / f"trials_to_{part}.txt"
    try:
        names = trials.read_text(encoding="utf-8").split()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(
            f"{trials} cannot be read; it must list the recordings of this part, one a line: "
            "unpack the archive again"
        ) from error
    for name in names:
        path = folder / name
        whole = cache(partial(_read, path))  # for all gestures of one recording
        for kind, begin, end in _gesture_table(path.with_name(f"{path.stem}_labels.csv")):
            yield path, kind - 1, partial(_cut, whole, begin, end)


def _cut(whole: Callable[[], Events], begin: int, end: int) -> Events:
    return whole().between(begin, end)


def _gesture_table(path: Path) -> list[tuple[int, int, int]]:
    """Read class (from 1), begin and end in microseconds of each gesture."""
    try:
        lines = path.read_text(encoding="utf-8").split()[1:]
        rows = [tuple(map(int, line.split(","))) for line in lines]
        if not rows or any(len(row) != 3 or not 1 <= row[0] <= len(_GESTURES) for row in rows):
            raise ValueError
    except (OSError, ValueError) as error:
        raise DataError(
            f"{path} is no table of gestures; it must begin with class,startTime_usec,endTime_usec "
            f"and hold classes 1 to {len(_GESTURES)}: unpack the archive again"
        ) from error
    return rows  # type: ignore[return-value]


def _framed_parts(info: DataInfo, train: Samples, test: Samples) -> Opened:
    """Read every recording of both parts; all that are damaged are counted, the first is named."""
    assert info.num_steps is not None
    parts: list[Part] = []
    damaged: list[str] = []
    asked = 0
    for samples in (train, test):
        frames: list[NDArray[np.uint8]] = []
        labels: list[int] = []
        for path, label, read in samples:
            asked += 1
            try:
                frames.append(_framed(read(), info.num_steps, info.image_size))
                labels.append(label)
            except _DamageError as damage:
                damaged.append(f"{path} ({damage})")
        shape = (len(frames), info.num_steps, POLARITIES, info.image_size, info.image_size)
        stacked = np.concatenate(frames).reshape(shape) if frames else np.zeros(shape, np.uint8)
        parts.append((torch.from_numpy(stacked), np.array(labels, dtype=np.int64)))
    if damaged:
        raise DataError(
            f"{len(damaged)} of {asked} recordings of {info.name} are damaged, the first being "
            f"{damaged[0]}; every one must be whole: copy them again or remove them"
        )
    return info, parts[0], None, parts[1]


def _info(config: DataConfig, classes: tuple[str, ...], side: int) -> DataInfo:
    size = config.image_size or side
    if side % size:
        raise ConfigError(
            f"data.image_size is {size}; of {config.name} it must divide {side}, the side of the "
            f"camera: use {side} or {side // 2}"
        )
    block = side // size
    return DataInfo(
        name=config.name,
        classes=classes,
        in_channels=POLARITIES,
        image_size=size,
        mean=(0.0,) * POLARITIES,
        std=(block * block / 255,) * POLARITIES,
        num_steps=config.num_frames or NUM_FRAMES,
    )


def _recordings(folder: Path) -> list[Path]:
    """Return the files of a class in the order of their names; there must be some, of one kind."""
    if not folder.is_dir():
        raise DataError(
            f"{folder} is missing; there must be one folder of recordings for each class: "
            "unpack the archive again"
        )
    files = sorted(path for path in folder.iterdir() if not path.name.startswith("."))
    foreign = [path for path in files if not is_recording(path)]
    if foreign:
        raise DataError(
            f"{len(foreign)} entries of {folder} are no recordings by their names, the first being "
            f"{foreign[0].name}; a class folder must hold .aedat, .bin or .npz files: remove them"
        )
    if not files:
        raise DataError(
            f"{folder} holds no recording; every class must have at least one: "
            "unpack the archive again"
        )
    return files


_CIFAR10 = (
    "airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck",
)  # fmt: skip
_GESTURES = (
    "hand clapping", "right hand wave", "left hand wave", "right arm clockwise",
    "right arm counter clockwise", "left arm clockwise", "left arm counter clockwise", "arm roll",
    "air drums", "air guitar", "other gestures",
)  # fmt: skip
