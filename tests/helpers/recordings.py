"""Recordings as cameras write them, written byte by byte from the formats' descriptions."""

import struct
from pathlib import Path

import numpy as np

GESTURES = 11


def drawn(count: int, side: int = 128, seed: int = 0) -> dict[str, np.ndarray]:
    """Draw events in the order of time."""
    rng = np.random.default_rng(seed)
    t = np.sort(rng.integers(1000, 500_000, count))
    return {
        "t": t, "x": rng.integers(0, side, count), "y": rng.integers(0, side, count),
        "p": rng.integers(0, 2, count),
    }  # fmt: skip


def rows(events: dict[str, np.ndarray]):
    return zip(*(events[name].tolist() for name in "txyp"), strict=True)


def aedat2(events: dict[str, np.ndarray]) -> bytes:
    header = b"#!AER-DAT2.0\r\n# This is a raw AE data file - do not edit\r\n"
    words = [((127 - x) << 8 | (127 - y) << 1 | 1 - p, t) for t, x, y, p in rows(events)]
    return header + b"".join(struct.pack(">II", *pair) for pair in words)


def aedat3(events: dict[str, np.ndarray], per_packet: int = 50) -> bytes:
    """Pack polarity events, with a packet of another kind in front."""
    content = b"#!AER-DAT3.1\r\n#Format: RAW\r\n#!END-HEADER\r\n"
    content += struct.pack("<hhiiiiii", 0, 1, 8, 4, 0, 1, 1, 1) + bytes(8)
    listed = list(rows(events))
    for first in range(0, len(listed), per_packet):
        part = listed[first : first + per_packet]
        content += struct.pack("<hhiiiiii", 1, 1, 8, 4, 0, len(part), len(part), len(part))
        words = [(x << 17 | y << 2 | p << 1 | 1, t) for t, x, y, p in part]
        content += b"".join(struct.pack("<II", *pair) for pair in words)
    return content


def atis(events: dict[str, np.ndarray]) -> bytes:
    return b"".join(
        bytes([x, y, p << 7 | t >> 16, t >> 8 & 255, t & 255]) for t, x, y, p in rows(events)
    )


def gesture_folder(root: Path, per_class: int = 2, count: int = 400) -> Path:
    """Write DVS128 Gesture as published: one recording for each part, with its table."""
    folder = root / "DvsGesture"
    folder.mkdir(parents=True)
    for part, seed in (("train", 1), ("test", 2)):
        name = f"user{seed:02}_lab"
        events = drawn(count * GESTURES * per_class, seed=seed)
        edges = np.linspace(1000, 500_000, GESTURES * per_class + 1).astype(int)
        table = ["class,startTime_usec,endTime_usec"]
        table += [f"{k % GESTURES + 1},{edges[k]},{edges[k + 1]}" for k in range(len(edges) - 1)]
        (folder / f"{name}.aedat").write_bytes(aedat3(events))
        (folder / f"{name}_labels.csv").write_text("\n".join(table) + "\n")
        (folder / f"trials_to_{part}.txt").write_text(f"{name}.aedat\n\n")
    return root
