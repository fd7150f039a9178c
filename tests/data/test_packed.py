"""Images inside larger files: they are those of a folder of files, and none is lost in silence."""

import gc
import io
import json
import shutil
import struct
import sys
import tarfile
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from spikedriven.cli.main import main
from spikedriven.data import (
    AugmentConfig,
    DataConfig,
    Place,
    Splits,
    hugging_face,
    make_loader,
    open_data,
)
from spikedriven.errors import DataError

CLASSES = ("cat", "dog", "eel")
VARIED = AugmentConfig(horizontal_flip=0.5, crop_scale=0.3)


def folder(root: Path, count: int = 4) -> Path:
    rng = np.random.default_rng(0)
    for part in ("train", "val", "test"):
        for name in CLASSES:
            (root / part / name).mkdir(parents=True)
            for n in range(count):
                pixels = rng.integers(0, 256, (20, 30, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(root / part / name / f"{n}.png")
    return root


def files_of(root: Path, part: str) -> list[tuple[bytes, int]]:
    return [
        (path.read_bytes(), label)
        for label, name in enumerate(CLASSES)
        for path in sorted((root / part / name).iterdir())
    ]


def write_shard(path: Path, members: dict[str, bytes]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for name, content in members.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return path


def in_shards(root: Path, source: Path, size: int = 5) -> Path:
    for part in ("train", "val", "test"):
        files = files_of(source, part)
        for first in range(0, len(files), size):
            members = {"README": b"not a sample", "__meta__": b""}
            for n, (image, label) in enumerate(files[first : first + size], first):
                members |= {f"{n:04}.cls": f"{label}\n".encode(), f"{n:04}.png": image}
            write_shard(root / f"made-{part}-{first:03}.tar", members)
    (root / "classnames.txt").write_text("\n".join(CLASSES))
    return root


def in_tables(root: Path, source: Path) -> Path:
    datasets = pytest.importorskip("datasets", reason="the extra huggingface is not installed")
    features = datasets.Features(
        {"image": datasets.Image(), "label": datasets.ClassLabel(names=list(CLASSES))}
    )
    datasets.disable_progress_bars()
    datasets.DatasetDict(
        {
            name: datasets.Dataset.from_dict(
                {
                    "image": [{"bytes": image, "path": None} for image, _ in files],
                    "label": [label for _, label in files],
                },
                features=features,
            )
            for name, part in (("train", "train"), ("validation", "val"), ("test", "test"))
            for files in [files_of(source, part)]
        }
    ).save_to_disk(str(root))
    return root


PACKED = {"webdataset": in_shards, "hugging_face": in_tables}


def opened(name: str, root: Path, **fields) -> Splits:
    return open_data(DataConfig(name=name, image_size=16, **fields), root, seed=3)


def batches(dataset, **keywords) -> list[torch.Tensor]:
    loader = make_loader(dataset, batch_size=5, seed=3, **keywords)
    return [tensor for batch in loader for tensor in batch]


@pytest.mark.parametrize("name", PACKED)
def test_packed_images_are_those_of_a_folder(tmp_path, name):
    """In every part, order and variation, with a worker too, and for each of two processes."""
    source = folder(tmp_path / "files")
    files = opened("image_folder", source, augment=VARIED)
    packed = opened(name, PACKED[name](tmp_path / "packed", source), augment=VARIED)
    assert packed.info.classes == files.info.classes == CLASSES
    for part in ("train", "validation", "test"):
        ours, theirs = getattr(packed, part), getattr(files, part)
        assert len(ours) == len(theirs) == 12
        for place in (Place(), Place(0, 2), Place(1, 2)):
            for shuffle in (False, part == "train"):
                settings = {"shuffle": shuffle, "place": place}
                expected = batches(theirs, **settings)
                assert all(map(torch.equal, batches(ours, **settings), expected))
    shuffled = batches(files.train, shuffle=True)
    assert all(map(torch.equal, batches(packed.train, shuffle=True, num_workers=1), shuffled))


@pytest.mark.parametrize("name", PACKED)
def test_an_image_that_is_cut_is_named_when_it_is_read(tmp_path, name):
    source = folder(tmp_path / "files", count=1)
    cut = source / "train/dog/0.png"
    cut.write_bytes(cut.read_bytes()[:-60])  # its header is whole
    train = opened(name, PACKED[name](tmp_path / "packed", source)).train
    named = {"webdataset": r"made-train-000\.tar:0001\.png", "hugging_face": r"row 1 of .*/train"}
    with pytest.raises(DataError, match=named[name] + " is not a readable image"):
        train[1]
    assert train[0][1] == 0


@pytest.mark.filterwarnings("ignore:unclosed file:ResourceWarning")  # the library leaves them
def test_shards_are_read_as_webdataset_reads_them(tmp_path):
    wds = pytest.importorskip("webdataset", reason="the extra dev is not installed")
    source = folder(tmp_path / "files")
    for part in ("train", "test"):
        pattern = str(tmp_path / f"{part}-%04d.tar")
        with wds.ShardWriter(pattern, maxcount=5, verbose=0) as writer:
            for n, (image, label) in enumerate(files_of(source, part)):
                writer.write({"__key__": f"{n % 2}/sample{n // 2:03}", "png": image, "cls": label})
    splits = opened("webdataset", tmp_path, validation_fraction=0)
    assert splits.info.classes == ("0", "1", "2")
    for part in ("train", "test"):
        shards = sorted(map(str, tmp_path.glob(f"{part}-*.tar")))
        theirs = list(wds.WebDataset(shards, shardshuffle=False))
        gc.collect()
        ours = getattr(splits, part)
        assert len(shards) == 3
        assert [int(sample["cls"]) for sample in theirs] == ours.labels.tolist()
        assert [sample["png"] for sample in theirs] == [x.read_bytes() for x in ours.images]


def sample(n: int, image: bytes | None = None) -> dict[str, bytes]:
    picture = io.BytesIO()
    Image.new("RGB", (8, 8), (n, n, n)).save(picture, "png")
    return {f"{n}.png": picture.getvalue() if image is None else image, f"{n}.cls": b"%d" % (n % 2)}


def test_a_shard_that_is_cut_anywhere_or_damaged_is_refused(tmp_path):
    """Python's tarfile takes a shard that ends between two members for a whole one."""
    write_shard(tmp_path / "test.tar", sample(0))
    shard = write_shard(tmp_path / "train.tar", sample(0) | sample(1) | sample(2))
    whole = shard.read_bytes()
    assert len(opened("webdataset", tmp_path, validation_fraction=0).train) == 3
    with tarfile.open(shard) as tar:
        headers = [member.offset for member in tar]
        end = tar.offset
    for length in range(0, end + tarfile.BLOCKSIZE, tarfile.BLOCKSIZE // 2):
        shard.write_bytes(whole[:length])
        with pytest.raises(DataError, match=r"train\.tar (is cut|cannot be read)"):
            opened("webdataset", tmp_path)
    for place in headers:
        shard.write_bytes(whole[:place] + b"\xff" + whole[place + 1 :])
        with pytest.raises(DataError, match=r"train\.tar (is cut|cannot be read)"):
            opened("webdataset", tmp_path)


def png(mode: str, width: int = 4, height: int = 4) -> bytes:
    content = io.BytesIO()
    Image.new(mode, (width, height)).save(content, "png")
    return content.getvalue()


def bomb() -> bytes:
    """A header of 20,000 x 20,000 pixels, which Pillow will not unpack."""
    whole = png("L")
    header = b"IHDR" + struct.pack(">II", 20_000, 20_000) + whole[24:29]
    return whole[:12] + header + struct.pack(">I", zlib.crc32(header)) + whole[33:]


@pytest.mark.parametrize(
    ("members", "problem"),
    [
        ({"1.png": b"no image", "1.cls": b"0"}, "1.png is not a readable image"),
        ({"1.png": png("I;16"), "1.cls": b"0"}, "1.png has pixels of mode I;16"),
        ({"1.png": png("L", 1, 101), "1.cls": b"0"}, "1.png is 101 x 1 pixels"),
        ({"1.png": bomb(), "1.cls": b"0"}, "1.png has too many pixels"),
        ({"1.cls": b"0"}, "no image"),
        (sample(1) | {"1.jpg": b""}, "two images"),
        ({"1.png": sample(1)["1.png"]}, "no .cls"),
        (sample(1) | {"1.cls": b"cat"}, "its label is 'cat', no number"),
        (sample(1) | {"1.cls": b"-1"}, "its label is '-1', no number"),
        (sample(1) | {"1.cls": b"1" * 30}, "its label is '11111111111111111111', no number"),
    ],
)
def test_samples_that_cannot_be_used_are_counted_and_the_first_is_named(tmp_path, members, problem):
    write_shard(tmp_path / "test.tar", sample(0))
    write_shard(tmp_path / "train-0.tar", sample(0) | members)
    write_shard(tmp_path / "train-1.tar", sample(0) | {"2.cls": b"0"})
    with pytest.raises(DataError) as error:
        opened("webdataset", tmp_path)
    assert "2 of 4 samples cannot be used, the first being" in str(error.value)
    found = str(error.value).partition("train-0.tar:1 (")[2]
    assert found.removeprefix(f"{tmp_path}/train-0.tar:").startswith(problem)


def test_shards_are_told_apart_by_the_words_of_their_names(tmp_path):
    names = ("train/0.tar", "imagenet1k-train-0001.tar", "imagenet1k-validation-00.tar")
    for n, name in enumerate(names):
        write_shard(tmp_path / name, sample(n))
    splits = opened("webdataset", tmp_path, validation_fraction=0)
    assert (len(splits.train), len(splits.validation), len(splits.test)) == (2, 0, 1)
    for name, sentence in (
        ("more.tar", "belongs to no part"),
        ("train/test.tar", "belongs to train and test"),
        ("test-0.tar", "holds no sample"),
    ):
        path = write_shard(tmp_path / name, {})
        with pytest.raises(DataError, match=sentence):
            opened("webdataset", tmp_path)
        path.unlink()
    write_shard(tmp_path / "train/2.tar", sample(3) | {"3.cls": b"3"})
    with pytest.raises(DataError, match="labels up to 3 and none of its train shards has 2"):
        opened("webdataset", tmp_path)
    (tmp_path / "classnames.txt").write_text("ape\nbee\ncow\n")
    with pytest.raises(DataError, match="label 3"):
        opened("webdataset", tmp_path)
    (tmp_path / "classnames.txt").write_text("ape\nbee\ncow\ndoe\n")
    assert opened("webdataset", tmp_path).info.classes == ("ape", "bee", "cow", "doe")
    shutil.rmtree(tmp_path / "train")
    (tmp_path / "imagenet1k-train-0001.tar").unlink()
    with pytest.raises(DataError, match="has no train shards"):
        opened("webdataset", tmp_path)


def test_a_shard_that_is_listed_must_be_there_with_all_its_samples(tmp_path):
    write_shard(tmp_path / "train-0.tar", sample(0) | sample(1))
    write_shard(tmp_path / "test-0.tar", sample(0))

    def listing(**train):
        absent = {"filenames": ["val-0.tar"], "shard_lengths": [7]}
        test = {"filenames": ["test-0.tar"], "shard_lengths": [1]}
        splits = {"train": train, "validation": absent, "test": test}
        (tmp_path / "_info.json").write_text(json.dumps({"splits": splits}))

    listing(filenames=["train-0.tar"], shard_lengths=[2])
    assert len(opened("webdataset", tmp_path, validation_fraction=0).train) == 2
    listing(filenames=["train-0.tar"], shard_lengths=[3])
    with pytest.raises(DataError, match=r"train-0\.tar has 2 of the 3 samples"):
        opened("webdataset", tmp_path)
    listing(filenames=["train-0.tar", "train-1.tar"], shard_lengths=[2, 3])
    with pytest.raises(DataError, match=r"train-1\.tar has 0 of the 3 samples"):
        opened("webdataset", tmp_path)
    listing(filenames=["train-0.tar"])
    with pytest.raises(DataError, match=r"_info\.json cannot be understood"):
        opened("webdataset", tmp_path)
    (tmp_path / "_info.json").write_text("[" * 100_000)
    with pytest.raises(DataError, match=r"_info\.json cannot be understood"):
        opened("webdataset", tmp_path)


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (b"ape\n\xff\n", "it is no UTF-8 text"),
        (b"ape\nbee\n\n", "line 3 is empty"),
        (b"ape\nape\n", "'ape' stands twice"),
    ],
)
def test_names_of_classes_that_are_none_are_refused(tmp_path, content, problem):
    for part in ("train", "test"):
        write_shard(tmp_path / f"{part}.tar", sample(0) | sample(1))
    (tmp_path / "classnames.txt").write_bytes(content)
    with pytest.raises(DataError, match=rf"classnames\.txt cannot be used \({problem}\); it must"):
        opened("webdataset", tmp_path)


def test_unreadable_rows_are_counted_and_hidden_labels_passed_over(tmp_path, monkeypatch):
    """Rows are looked at five by five: the first that cannot be read is in the second five."""
    monkeypatch.setattr(hugging_face, "_ROWS", 5)
    datasets = pytest.importorskip("datasets", reason="the extra huggingface is not installed")
    source = in_tables(tmp_path / "whole", folder(tmp_path / "files"))
    saved = datasets.load_from_disk(str(source))
    saved["test"] = saved["test"].map(lambda row: {**row, "label": -1})
    saved.save_to_disk(str(tmp_path / "hidden"))
    splits = opened("hugging_face", tmp_path / "hidden", validation_fraction=0)
    assert (len(splits.train), len(splits.validation), len(splits.test)) == (12, 0, 12)
    saved["validation"] = saved["validation"].map(
        lambda row, n: {**row, "label": row["label"] if n else -1}, with_indices=True
    )
    saved.save_to_disk(str(tmp_path / "in part"))
    with pytest.raises(DataError, match=r"has the label -1; labels must lie in \[0, 2\]"):
        opened("hugging_face", tmp_path / "in part")
    plain = saved["train"].cast_column("image", datasets.Image(decode=False))
    spoilt = {7: {"bytes": b"no image", "path": None}, 9: None}
    broken = plain.map(lambda row, n: {"image": spoilt.get(n, row["image"])}, with_indices=True)
    saved["train"] = broken.cast_column("image", datasets.Image())
    saved.save_to_disk(str(tmp_path / "broken"))
    with pytest.raises(DataError, match=r"2 of 12 images cannot be used; row 7 of .*/train is not"):
        opened("hugging_face", tmp_path / "broken")


def test_two_validation_splits_are_refused(tmp_path):
    datasets = pytest.importorskip("datasets", reason="the extra huggingface is not installed")
    source = in_tables(tmp_path / "whole", folder(tmp_path / "files"))
    saved = datasets.load_from_disk(str(source))
    assert "validation" in saved
    saved["val"] = saved["test"]
    saved.save_to_disk(str(tmp_path / "two"))
    with pytest.raises(DataError, match="both validation and val"):
        opened("hugging_face", tmp_path / "two")


def test_what_is_no_saved_dataset_is_refused(tmp_path):
    datasets = pytest.importorskip("datasets", reason="the extra huggingface is not installed")
    source = in_tables(tmp_path / "whole", folder(tmp_path / "files", count=1))
    with pytest.raises(DataError, match="is no saved dataset"):
        opened("hugging_face", tmp_path)
    saved = datasets.load_from_disk(str(source))
    saved["train"].save_to_disk(str(tmp_path / "single"))
    with pytest.raises(DataError, match="holds a single split"):
        opened("hugging_face", tmp_path / "single")
    datasets.DatasetDict({"train": saved["train"]}).save_to_disk(str(tmp_path / "alone"))
    with pytest.raises(DataError, match="has no test split with labels, only train"):
        opened("hugging_face", tmp_path / "alone")
    saved.remove_columns("label").save_to_disk(str(tmp_path / "bare"))
    with pytest.raises(DataError, match="train has 0 columns of ClassLabel"):
        opened("hugging_face", tmp_path / "bare")
    for damaged in ("dataset_dict.json", "train/dataset_info.json"):
        shutil.copytree(source, tmp_path / damaged)
        (tmp_path / damaged / damaged).write_text('{"splits": 5, "features": 5}')
        with pytest.raises(DataError, match="is no saved dataset"):
            opened("hugging_face", tmp_path / damaged)


def test_without_the_library_a_sentence_says_how_to_get_it(monkeypatch, capsys, tmp_path):
    monkeypatch.setitem(sys.modules, "datasets", None)
    words = ["train", "digits", "data.name=hugging_face", "--data", str(tmp_path)]
    assert main([*words, "--run", str(tmp_path / "run")]) == 2
    said = capsys.readouterr().err.splitlines()
    assert len(said) == 1
    assert 'pip install "spikedriven[huggingface]"' in said[0]
