"""Recordings are read event by event, cut as the released code cuts them, and damage is named."""

import importlib
import math
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from tests.helpers.recordings import aedat2, aedat3, atis, drawn, gesture_folder, rows

from spikedriven.data import (
    ArrayDataset,
    AugmentConfig,
    DataConfig,
    DataInfo,
    make_loader,
    open_data,
    read_events,
    read_frames,
    read_sample,
)  # fmt: skip
from spikedriven.data.events import CIFAR10DVS_TRAIN, Events
from spikedriven.errors import ConfigError, DataError

REAL = Path(__file__).parents[2] / ".." / "shared" / "data"
WRITERS = {"a.aedat": aedat2, "b.aedat": aedat3}


def by_hand(events: dict[str, np.ndarray], num_frames: int, block: int = 1, side: int = 128):
    """Count one event after the other."""
    frames = np.zeros((num_frames, 2, side // block, side // block), int)
    per_frame = len(events["t"]) // num_frames
    for n, (_, x, y, p) in enumerate(rows(events)):
        frames[min(n // per_frame, num_frames - 1), p, y // block, x // block] += 1
    return frames


def same(events: Events, wanted: dict[str, np.ndarray]) -> bool:
    return all(np.array_equal(getattr(events, name), wanted[name]) for name in "txyp")


@pytest.mark.parametrize("name", WRITERS)
def test_an_aedat_file_gives_back_the_events_that_were_written(name, tmp_path):
    events = drawn(333)
    (tmp_path / name).write_bytes(WRITERS[name](events))
    read = read_events(tmp_path / name)
    assert same(read, events)
    assert read.side == 128


def test_a_bin_file_gives_back_the_events_that_were_written(tmp_path):
    events = drawn(333, side=34)
    (tmp_path / "a.bin").write_bytes(atis(events))
    assert same(read_events(tmp_path / "a.bin"), events)


def test_an_npz_file_gives_back_the_events_that_were_written(tmp_path):
    events = drawn(333)
    np.savez(tmp_path / "a.npz", **events)
    assert same(read_events(tmp_path / "a.npz"), events)


def test_times_beyond_31_bits_are_told_by_the_packet(tmp_path):
    content = bytearray(aedat3(drawn(3)))
    packet = len(content) - 28 - 3 * 8
    content[packet + 12] = 2  # the overflow of this packet's clock
    (tmp_path / "a.aedat").write_bytes(content)
    assert (read_events(tmp_path / "a.aedat").t == drawn(3)["t"] + (2 << 31)).all()


@pytest.mark.parametrize("num_frames", [1, 3, 10])
@pytest.mark.parametrize("block", [1, 2, 4])
def test_frames_hold_equally_many_events_and_the_last_the_rest(num_frames, block, tmp_path):
    events = drawn(1234)
    (tmp_path / "a.aedat").write_bytes(aedat3(events))
    frames = read_frames(tmp_path / "a.aedat", num_frames, 128 // block).numpy()
    assert (frames == by_hand(events, num_frames, block)).all()
    assert frames.sum(axis=(1, 2, 3)).tolist()[:-1] == [1234 // num_frames] * (num_frames - 1)


def test_a_count_beyond_a_byte_stays_at_255():
    n = np.zeros(600, np.int64)
    frames = Events(n, n, n, n, 128).frames(2, 128)
    assert frames[:, 0, 0, 0].tolist() == [255, 255]
    assert frames.sum() == 510


def test_spikingjelly_reads_and_cuts_alike(tmp_path):
    utils = pytest.importorskip("spikingjelly.datasets.utils", exc_type=ImportError)
    events = drawn(1000)
    (tmp_path / "a.aedat").write_bytes(aedat3(events))
    (tmp_path / "a.bin").write_bytes(atis(drawn(1000, side=34)))
    assert same(read_events(tmp_path / "a.aedat"), utils.load_aedat_v3(tmp_path / "a.aedat"))
    (tmp_path / "b.aedat").write_bytes(aedat2(events))
    theirs = importlib.import_module("spikingjelly.datasets.cifar10_dvs")
    assert same(read_events(tmp_path / "b.aedat"), theirs._load_origin_data(tmp_path / "b.aedat"))
    assert same(read_events(tmp_path / "a.bin"), utils.load_ATIS_bin(tmp_path / "a.bin"))
    theirs = utils.integrate_events_by_fixed_frames_number(events, "number", 16, 128, 128)
    assert (read_frames(tmp_path / "a.aedat", 16, 128).numpy() == theirs).all()


def test_half_the_size_is_the_released_bilinear_resize(tmp_path):
    (tmp_path / "a.aedat").write_bytes(aedat2(drawn(5000)))
    info = DataInfo(
        name="made", classes=("a",), in_channels=2, image_size=64, mean=(0.0,) * 2,
        std=(4 / 255,) * 2, num_steps=10,
    )  # fmt: skip
    whole = read_frames(tmp_path / "a.aedat", 10, 128).float()
    resized = torch.nn.functional.interpolate(whole, (64, 64), mode="bilinear")
    assert torch.equal(read_sample(tmp_path / "a.aedat", info), resized)


def test_a_gesture_begins_with_its_first_event_and_ends_before_its_end():
    t = np.arange(5)
    kept = Events(t, t, t, t % 2, 128).between(1, 3)
    assert kept.t.tolist() == kept.x.tolist() == kept.y.tolist() == [1, 2]
    assert kept.p.tolist() == [1, 0]


def test_the_network_is_given_whole_counts(tmp_path):
    splits = open_data(DataConfig(name="dvs128_gesture", num_frames=4), gesture_folder(tmp_path))
    frames, label = splits.test[3]
    assert frames.dtype == torch.float32
    assert frames.shape == (4, 2, 128, 128)
    assert torch.equal(frames, splits.test.images[3].float())
    assert label == 3


def test_a_recording_is_divided_into_gestures_by_its_table(tmp_path):
    splits = open_data(DataConfig(name="dvs128_gesture", num_frames=4), gesture_folder(tmp_path))
    assert len(splits.train) + len(splits.validation) == len(splits.test) == 22
    assert splits.test.labels.tolist() == [*range(11), *range(11)]
    edges = np.linspace(1000, 500_000, 23).astype(int)
    events = drawn(400 * 22, seed=2)
    kept = (events["t"] >= edges[5]) & (events["t"] < edges[6])
    gesture = {name: events[name][kept] for name in "txyp"}
    assert (splits.test.images[5].numpy() == by_hand(gesture, 4)).all()


def cifar_folder(root: Path, per_class: int = 11) -> Path:
    from spikedriven.data.events import _CIFAR10

    for k, name in enumerate(_CIFAR10):
        (root / name).mkdir(parents=True)
        for n in range(per_class):
            content = aedat2(drawn(40 + n, seed=100 * k + n))
            (root / name / f"cifar10_{name}_{n}.aedat").write_bytes(content)
    return root


def test_nine_tenths_of_each_class_train_in_the_order_of_file_names(tmp_path):
    config = DataConfig(name="cifar10dvs", image_size=64, num_frames=2, validation_fraction=0)
    splits = open_data(config, cifar_folder(tmp_path))
    share = math.ceil(CIFAR10DVS_TRAIN * 11)
    assert len(splits.train) == 10 * share
    assert splits.test.labels.tolist() == list(range(10))
    last = read_frames(tmp_path / "bird" / "cifar10_bird_9.aedat", 2, 64)  # 0, 1, 10, 2 ... 9
    assert torch.equal(splits.test.images[2], last)
    whole = read_frames(tmp_path / "bird" / "cifar10_bird_9.aedat", 2, 128).float()
    halved = torch.nn.functional.interpolate(whole, (64, 64), mode="bilinear")
    assert torch.equal(splits.test[2][0], halved)
    assert splits.info.classes[2] == "bird"


def test_spikingjellys_folder_of_gestures_is_read_too(tmp_path):
    for part in ("train", "test"):
        for k in range(11):
            (tmp_path / "events_np" / part / str(k)).mkdir(parents=True)
            np.savez(tmp_path / "events_np" / part / str(k) / "u_0.npz", **drawn(50, 30, seed=k))
    splits = open_data(
        DataConfig(name="dvs128_gesture", num_frames=2, validation_fraction=0), tmp_path
    )
    assert splits.train.labels.tolist() == list(range(11))
    assert (splits.test.images[7].numpy() == by_hand(drawn(50, 30, seed=7), 2)).all()


def nmnist_folder(root: Path) -> Path:
    for part in ("Train", "Test"):
        for k in range(10):
            (root / part / str(k)).mkdir(parents=True)
            for n in range(3):
                (root / part / str(k) / f"{n:05}.bin").write_bytes(atis(drawn(60, 34, seed=k + n)))
    return root


def test_nmnist_is_read_as_its_archives_unpack(tmp_path):
    splits = open_data(DataConfig(name="nmnist", num_frames=3), nmnist_folder(tmp_path))
    assert [len(part) for part in (splits.train, splits.validation, splits.test)] == [20, 10, 30]
    assert splits.info.image_size == 34
    assert (splits.test.images[4].numpy() == by_hand(drawn(60, 34, seed=2), 3, side=34)).all()


DAMAGES = {
    "cut off within an event": lambda content: content[:-3],
    "empty": lambda _: b"",
    "an image": lambda _: b"\x89PNG\r\n\x1a\n" + bytes(100),
    "a header alone": lambda content: content[: content.index(b"\n") - 2],
}


@pytest.mark.parametrize("name", WRITERS)
@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_aedat_file_is_named(name, damage, tmp_path):
    (tmp_path / name).write_bytes(DAMAGES[damage](WRITERS[name](drawn(100))))
    with pytest.raises(DataError, match=rf"{name} is (no whole recording|too short) \(.*\); .*: "):
        read_frames(tmp_path / name, 2, 128)


@pytest.mark.parametrize("word", [4, 16, 20])
def test_a_packet_that_lies_about_its_size_is_no_packet(word, tmp_path):
    content = bytearray(aedat3(drawn(100)))
    start = content.index(b"#!END-HEADER\r\n") + 14
    content[start + word : start + word + 4] = b"\xff\xff\xff\xff"
    (tmp_path / "a.aedat").write_bytes(content)
    with pytest.raises(DataError, match="no packet of events"):
        read_events(tmp_path / "a.aedat")


def test_an_event_outside_the_camera_is_damage(tmp_path):
    (tmp_path / "a.aedat").write_bytes(aedat3(drawn(100, side=200)))
    with pytest.raises(DataError, match="lies outside 128 x 128"):
        read_events(tmp_path / "a.aedat")
    (tmp_path / "a.bin").write_bytes(atis(drawn(101, side=128)))
    with pytest.raises(DataError, match="lies outside 34 x 34"):
        read_events(tmp_path / "a.bin")


def test_an_npz_file_that_would_run_code_is_refused(tmp_path):
    np.savez(tmp_path / "a.npz", t=np.array([{}], dtype=object), x=[0], y=[0], p=[0])
    with pytest.raises(DataError, match="no whole recording"):
        read_events(tmp_path / "a.npz")


@pytest.mark.parametrize("name", "txyp")
@pytest.mark.parametrize("wrong", [np.nan, np.inf, 0.5, 1e30, 1j, "1"], ids=str)
def test_an_npz_file_whose_events_are_no_whole_numbers_is_damaged(name, wrong, tmp_path):
    events = drawn(100)
    values = events[name].astype(np.result_type(float, type(wrong)) if wrong != "1" else "U20")
    values[3] = wrong
    np.savez(tmp_path / "a.npz", **events | {name: values})
    with pytest.raises(DataError, match=rf"\({name} holds other than whole numbers\)"):
        read_events(tmp_path / "a.npz")


def test_an_npz_file_may_hold_whole_numbers_of_any_type(tmp_path):
    events = drawn(100)
    for kind in (np.float64, np.uint64):
        np.savez(tmp_path / "a.npz", **{name: x.astype(kind) for name, x in events.items()})
        assert same(read_events(tmp_path / "a.npz"), events)


def test_all_damaged_recordings_are_counted_and_the_first_is_named(tmp_path):
    nmnist_folder(tmp_path)
    for path in ("Train/3/00001.bin", "Test/2/00000.bin"):
        (tmp_path / path).write_bytes((tmp_path / path).read_bytes()[:-1])
    (tmp_path / "Test/5/00000.bin").write_bytes(atis(drawn(2, 34)))
    (tmp_path / "Test/6/00003.aedat").write_bytes(aedat3(drawn(50)))
    with pytest.raises(DataError, match=r"^4 of 61 recordings of nmnist are damaged, .*00001\.bin"):
        open_data(DataConfig(name="nmnist", num_frames=3), tmp_path)


def test_what_is_missing_is_named(tmp_path):
    config = DataConfig(name="dvs128_gesture")
    with pytest.raises(DataError, match="pass --data DIR"):
        open_data(config)
    with pytest.raises(DataError, match="must hold DvsGesture"):
        open_data(config, tmp_path)
    folder = gesture_folder(tmp_path) / "DvsGesture"
    (folder / "user01_lab_labels.csv").write_text("class,begin,end\n12,0,1\n")
    with pytest.raises(DataError, match=r"user01_lab_labels\.csv is no table of gestures"):
        open_data(config, tmp_path)
    (folder / "trials_to_train.txt").unlink()
    with pytest.raises(DataError, match=r"trials_to_train\.txt cannot be read"):
        open_data(config, tmp_path)
    cifar_folder(tmp_path / "cifar", per_class=2)
    (tmp_path / "cifar" / "cat" / "note.txt").write_text("hello")
    with pytest.raises(DataError, match=r"1 entries of .*cat are no recordings"):
        open_data(DataConfig(name="cifar10dvs"), tmp_path / "cifar")


def test_settings_that_do_not_fit_the_data_are_refused(tmp_path):
    with pytest.raises(ConfigError, match="must divide 34"):
        open_data(DataConfig(name="nmnist", image_size=32), nmnist_folder(tmp_path))
    with pytest.raises(ConfigError, match="digits holds images"):
        open_data(DataConfig(name="digits", num_frames=4))
    with pytest.raises(ConfigError, match="num_frames is 0"):
        DataConfig(name="nmnist", num_frames=0)
    cropped = DataConfig(name="nmnist", augment=AugmentConfig(crop_scale=0.5))
    with pytest.raises(ConfigError, match="crop_scale is set and nmnist holds recordings"):
        open_data(cropped, nmnist_folder(tmp_path / "again"))
    with pytest.raises(ConfigError, match="nmnist holds no image files"):
        open_data(DataConfig(name="nmnist", crop=0.9), nmnist_folder(tmp_path / "third"))


def varied(frames: torch.Tensor, epoch: int, **fields) -> torch.Tensor:
    info = DataInfo(
        name="made", classes=("a",), in_channels=2, image_size=frames.shape[-1], mean=(0.0,) * 2,
        std=(1 / 255,) * 2, num_steps=len(frames),
    )  # fmt: skip
    dataset = ArrayDataset(
        frames[None], np.zeros(1, np.int64), info, AugmentConfig(**fields), seed=0
    )
    return dataset[epoch, 0][0]


@pytest.mark.parametrize(
    "fields",
    [{"horizontal_flip": 1.0}, {"roll": 5}, {"cutout": 4}, {"crop_padding": 2}, {"rotation": 20.0}],
    ids=lambda fields: next(iter(fields)),
)
def test_all_frames_of_a_recording_are_varied_alike(fields):
    frame = torch.randint(0, 9, (1, 2, 16, 16), dtype=torch.uint8)
    result = varied(frame.expand(5, -1, -1, -1).contiguous(), 3, **fields)
    assert result.shape == (5, 2, 16, 16)
    assert not torch.equal(result[0], frame[0].float())
    assert all(torch.equal(result[0], other) for other in result)


def test_rolling_moves_events_and_loses_none():
    frames = torch.randint(0, 9, (3, 2, 16, 16), dtype=torch.uint8)
    moved = set()
    for epoch in range(40):
        result = varied(frames, epoch, roll=2)
        (shift,) = (
            (down, right)
            for down in range(-2, 3)
            for right in range(-2, 3)
            if torch.equal(result, frames.float().roll((down, right), (-2, -1)))
        )
        moved.add(shift)
    assert {axis for shift in moved for axis in shift} == {-2, -1, 0, 1, 2}


def test_cutout_empties_one_square_and_nothing_else():
    frames = torch.ones(2, 2, 16, 16, dtype=torch.uint8)
    sizes = set()
    for epoch in range(60):
        empty = varied(frames, epoch, cutout=4)[0, 0] == 0
        down, across = empty.any(1).nonzero().flatten(), empty.any(0).nonzero().flatten()
        assert empty.sum() == len(down) * len(across) > 0
        assert max(down) - min(down) == len(down) - 1
        sizes.add(len(down))
    assert sizes == {2, 3, 4}  # a border leaves a part of it


def test_a_loader_gives_out_frames_batch_first(tmp_path):
    splits = open_data(DataConfig(name="nmnist", num_frames=3), nmnist_folder(tmp_path))
    frames, labels = next(iter(make_loader(splits.test, batch_size=7)))
    assert frames.shape == (7, 3, 2, 34, 34)
    assert labels.tolist() == [0, 0, 0, 1, 1, 1, 2]


@pytest.mark.skipif(not (REAL / "event_fixtures.zip").exists(), reason="no real recordings here")
def test_real_recordings_are_read_whole(tmp_path):
    with zipfile.ZipFile(REAL / "event_fixtures.zip") as archive:
        archive.extractall(tmp_path)
        listed = archive.read("SOURCES.tsv").decode()
    assert "4325 ev" in listed
    assert "3136 ev" in listed
    (sample,) = tmp_path.glob("*/sample_nmnist.bin")
    events = read_events(sample)
    assert len(events.t) == 4325
    assert (np.diff(events.t) >= 0).all()
    assert max(events.x.max(), events.y.max()) == 33
    (card,) = tmp_path.glob("*/cl_60.aedat")
    events = read_events(card)
    assert len(events.t) == 3136
    assert 0.022e6 < events.t[-1] - events.t[0] < 0.024e6
    assert read_frames(card, 16, 64).sum() == 3136
