"""Every sample counts once, nothing depends on history, and damage is named."""

import errno
import gzip
import hashlib
import os
import pickle
import random
import re
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.datasets import load_digits

from spikedriven.data import (
    ArrayDataset,
    AugmentConfig,
    DataConfig,
    DataInfo,
    list_datasets,
    make_loader,
    open_data,
    read_sample,
    transforms,
)
from spikedriven.data.transforms import Augment
from spikedriven.errors import ConfigError, DataError

VARIED = AugmentConfig(horizontal_flip=0.5, crop_padding=1, rotation=10, zoom=0.1)
INFO = DataInfo(
    name="made", classes=("a", "b"), in_channels=1, image_size=8, mean=(0.0,), std=(1.0,)
)


def digits(**fields):
    return open_data(DataConfig(name="digits", augment=VARIED, **fields))


def folder(root: Path, parts=("train", "test"), classes=("cat", "dog"), count=2) -> Path:
    for part in parts:
        for label, name in enumerate(classes):
            (root / part / name).mkdir(parents=True)
            for n in range(count):
                pixels = np.full((20, 30, 3), 40 * label + n, dtype=np.uint8)
                Image.fromarray(pixels).save(root / part / name / f"{n}.png")
    return root


def spoil_an_image_of_each_part(root: Path) -> None:
    shutil.copytree(root / "test", root / "val")
    for part in ("train", "val", "test"):
        (root / part / "dog/0.png").write_bytes(b"no image")


def epoch_of(loader, epoch: int) -> list[torch.Tensor]:
    loader.sampler.set_epoch(epoch)
    return [images for images, _ in loader]


def test_the_digits_are_scikit_learns_divided_in_three():
    splits = open_data(DataConfig(name="digits", image_size=8))
    sizes = [len(part) for part in (splits.train, splits.validation, splits.test)]
    assert sizes == [1294, 143, 360]
    assert sum(sizes) == len(load_digits().target)
    parts = (splits.train, splits.validation, splits.test)
    stored = np.concatenate([part.images.numpy() for part in parts])[:, 0] / 15
    originals = {image.tobytes() for image in load_digits().images.astype(np.uint8)}
    assert {image.tobytes() for image in stored.astype(np.uint8)} == originals


def test_every_split_holds_each_class_in_proportion():
    splits = digits()
    for part in (splits.train, splits.validation, splits.test):
        shares = np.bincount(part.labels, minlength=10) / len(part)
        assert np.abs(shares - 0.1).max() < 0.012


def test_a_sample_is_never_lost_and_never_given_twice():
    dataset = digits().train
    loader = make_loader(dataset, batch_size=100, shuffle=True)
    batches = [labels for _, labels in loader]
    assert [len(labels) for labels in batches] == [100] * 12 + [94]
    assert sorted(torch.cat(batches).tolist()) == sorted(dataset.labels.tolist())
    assert sorted(index for _, index in loader.sampler) == list(range(len(dataset)))


def test_an_epoch_depends_on_neither_history_nor_workers():
    dataset = ArrayDataset(*_few(digits().train), INFO, VARIED, seed=5)

    def loader(workers):
        return make_loader(dataset, batch_size=16, shuffle=True, seed=5, num_workers=workers)

    with_history = loader(0)
    first = epoch_of(with_history, 0)
    for epoch in (1, 2):
        epoch_of(with_history, epoch)
    third = epoch_of(with_history, 3)
    for workers in (0, 2):
        fresh = epoch_of(loader(workers), 3)
        assert all(torch.equal(a, b) for a, b in zip(third, fresh, strict=True))
    assert not torch.equal(first[0], third[0])


def _few(dataset: ArrayDataset):
    return dataset.images[:40], dataset.labels[:40] % 2


def test_variation_leaves_the_global_generators_alone():
    colour = DataInfo(
        name="made", classes=("a",), in_channels=3, image_size=8, mean=(0.0,) * 3, std=(1.0,) * 3
    )
    images = torch.randint(0, 256, (2, 3, 8, 8), dtype=torch.uint8)
    augment = AugmentConfig(rand_augment="rand-m9-n1-mstd0.4-inc1", crop_padding=1)
    dataset = ArrayDataset(images, np.zeros(2, dtype=np.int64), colour, augment)
    random.seed(1)
    np.random.seed(1)  # noqa: NPY002 - the global generator is the subject
    torch.manual_seed(1)
    before = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state()  # noqa: NPY002
    varied = [dataset[0, n][0] for n in (0, 1, 0)]
    after = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state()  # noqa: NPY002
    assert before[:2] == after[:2]
    assert torch.equal(before[2], after[2])
    assert torch.equal(varied[0], varied[2])


def test_test_images_are_never_varied_and_training_images_are():
    splits = digits()
    assert torch.equal(splits.test[0][0], splits.test[0][0])
    assert splits.test.augment is None
    assert not torch.equal(splits.train[0, 1][0], splits.train[0, 2][0]) or not torch.equal(
        splits.train[1, 1][0], splits.train[1, 2][0]
    )


def test_an_image_file_is_read_as_the_test_images_are(tmp_path):
    splits = digits()
    Image.fromarray(splits.test.pixels(7)[0].numpy()).save(tmp_path / "seven.png")
    assert torch.equal(read_sample(tmp_path / "seven.png", splits.info), splits.test[7][0])


def test_an_image_file_of_another_size_is_resized_as_the_stored_images_are(tmp_path):
    small, large = (open_data(DataConfig(name="digits", image_size=n)) for n in (8, 16))
    for n in range(20):
        Image.fromarray(small.test.pixels(n)[0].numpy()).save(tmp_path / f"{n}.png")
        assert torch.equal(read_sample(tmp_path / f"{n}.png", large.info), large.test[n][0])


def test_deep_pixels_are_refused_and_not_cut_off(tmp_path):
    Image.fromarray(np.full((8, 8), 40000, dtype=np.uint16)).save(tmp_path / "deep.png")
    Image.fromarray(np.full((8, 8), np.nan, dtype=np.float32)).save(tmp_path / "nan.tiff")
    for name in ("deep.png", "nan.tiff"):
        with pytest.raises(DataError, match="8 bits a channel"):
            read_sample(tmp_path / name, INFO)


def test_a_file_that_is_no_image_is_refused(tmp_path):
    (tmp_path / "x.png").write_bytes(b"nothing")
    with pytest.raises(DataError, match="not a readable image"):
        read_sample(tmp_path / "x.png", INFO)


def test_colour_augmentation_of_grey_images_is_refused():
    config = DataConfig(name="digits", augment=AugmentConfig(rand_augment="rand-m9-n1"))
    with pytest.raises(ConfigError, match="needs colour images"):
        open_data(config)


def test_a_small_folder_keeps_images_on_either_side(tmp_path):
    root = folder(tmp_path, count=3)
    for fraction, sizes in ((0.1, (4, 2)), (0.9, (2, 4))):
        splits = open_data(DataConfig(name="image_folder", validation_fraction=fraction), root)
        assert (len(splits.train), len(splits.validation)) == sizes


def test_a_folder_of_images_is_opened_resized_and_cropped(tmp_path):
    splits = open_data(
        DataConfig(name="image_folder", image_size=16, validation_fraction=0.5),
        folder(tmp_path, count=4),
    )
    assert splits.info.classes == ("cat", "dog")
    assert [len(p) for p in (splits.train, splits.validation, splits.test)] == [4, 4, 8]
    image, label = splits.test[7]
    assert label == 1
    expected = (torch.full((3,), 43 / 255) - torch.tensor(splits.info.mean)) / torch.tensor(
        splits.info.std
    )
    assert torch.allclose(image, expected[:, None, None].expand(3, 16, 16), atol=1e-6)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (spoil_an_image_of_each_part, r"3 of 12 images cannot be used; .*train/dog/0\.png is not"),
        (lambda root: [p.unlink() for p in (root / "train/cat").iterdir()], "holds no image"),
        (lambda root: (root / "test/dog/notes.txt").write_text("x"), "no images by their names"),
        (lambda root: (root / "test/dog").rename(root / "test/fox"), "first difference"),
        (lambda root: (root / "test").rename(root / "else"), "no test folder"),
        (lambda root: (root / "train").rename(root / "else"), "no train folder"),
        (
            lambda root: [(root / f"train/{n}.png").touch() for n in (7, 8)],
            r"2 files lie in .*train beside its class folders, the first being 7\.png",
        ),
        (lambda root: (root / "test/notes.txt").touch(), "1 files lie in"),
        (
            lambda root: [(root / name / "cat").mkdir(parents=True) for name in ("val", "valid")],
            "both val and valid; it must hold one",
        ),
        (
            lambda root: (root / "test/dog/2.png").mkdir(),
            "1 of 9 images cannot be used; .* no file",
        ),
    ],
    ids=[
        "no image",
        "foreign file",
        "empty class",
        "other classes",
        "no test",
        "no train",
        "loose images",
        "loose text",
        "two validations",
        "a folder named as an image",
    ],
)
def test_a_damaged_folder_is_refused_in_words(tmp_path, damage, message):
    damage(folder(tmp_path))
    with pytest.raises(DataError, match=message):
        open_data(DataConfig(name="image_folder"), tmp_path)


def test_what_is_hidden_is_neither_class_nor_image(tmp_path):
    root = folder(tmp_path, count=3)
    (root / "train/.ipynb_checkpoints").mkdir()
    (root / "test/.DS_Store").touch()
    (root / "train/cat/._0.png").write_bytes(b"a shadow of another system")
    splits = open_data(DataConfig(name="image_folder", validation_fraction=0), root)
    assert splits.info.classes == ("cat", "dog")
    assert (len(splits.train), len(splits.test)) == (6, 6)


def test_held_out_images_are_drawn_from_each_class_and_the_same_for_every_seed(tmp_path):
    root = folder(tmp_path, count=12)
    config = DataConfig(name="image_folder", validation_fraction=0.25)
    held = [[p.name for p in open_data(config, root, seed=n).validation.images] for n in (0, 1)]
    assert held[0] == held[1]
    names = sorted(f"{n}.png" for n in range(12))
    for part in (held[0][:3], held[0][3:]):
        assert len(set(part)) == 3
        assert part not in (names[:3], names[-3:])


@pytest.mark.parametrize("kind", ["missing", "folder", "pipe"])
@pytest.mark.parametrize("name", ["x.png", "x.npz"])
def test_what_is_no_file_is_refused_unread(tmp_path, kind, name):
    path = tmp_path / name
    if kind == "folder":
        path.mkdir()
    elif kind == "pipe":
        os.mkfifo(path)  # opened for reading it would wait for a writer for ever
    info = INFO if name == "x.png" else replace(INFO, num_steps=2)
    with pytest.raises(DataError, match="missing" if kind == "missing" else "no file"):
        read_sample(path, info)


@pytest.mark.parametrize("size", [(60_000, 1), (1, 60_000), (801, 8)])
def test_an_image_much_longer_than_wide_is_refused_before_it_is_resized(tmp_path, size):
    Image.new("L", size).save(tmp_path / "long.png")
    with pytest.raises(DataError, match="must be at most 100 times the other"):
        read_sample(tmp_path / "long.png", replace(INFO, image_size=224))


def test_an_image_a_hundred_times_as_long_as_wide_is_read(tmp_path):
    Image.new("L", (800, 8), 255).save(tmp_path / "long.png")
    assert (read_sample(tmp_path / "long.png", INFO) == 1).all()


def test_a_truncated_image_is_named_when_it_is_read(tmp_path):
    root = folder(tmp_path)
    pixels = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    broken = root / "test/dog/1.png"
    Image.fromarray(pixels).save(broken)
    broken.write_bytes(broken.read_bytes()[:2000])
    splits = open_data(DataConfig(name="image_folder", image_size=8), root)
    with pytest.raises(DataError, match=r"1\.png is not a readable image"):
        splits.test[3]


@pytest.mark.parametrize(("seconds", "count"), [(60, "3"), (0, "at least 1")])
def test_the_first_damage_that_is_met_counts_all_and_names_the_first(
    tmp_path, monkeypatch, seconds, count
):
    """In the order of the files, whichever was drawn first; or as many as there was time for."""
    monkeypatch.setattr(transforms, "LOOKED", seconds)
    root = folder(tmp_path, count=4)
    broken = [root / "train/cat" / f"{n}.png" for n in (0, 2, 3)]
    for path in broken:
        photo(path)
        path.write_bytes(path.read_bytes()[:2000])
    splits = open_data(DataConfig(name="image_folder", image_size=8, validation_fraction=0), root)
    first = re.escape(str(broken[0]))
    with pytest.raises(DataError, match=f"^{count} of 8 images cannot be used; {first} is not"):
        list(make_loader(splits.train, batch_size=2, shuffle=True))


def test_a_damaged_avif_file_is_refused_as_any_other(tmp_path):
    path = tmp_path / "image.avif"
    Image.effect_noise((64, 64), 50).save(path)
    content = path.read_bytes()
    path.write_bytes(content.replace(b"av01", b"nope"))
    with pytest.raises(DataError, match=r"image\.avif is not a readable image"):
        read_sample(path, INFO)


def test_a_tiff_whose_last_tags_are_missing_is_refused(tmp_path):
    """Its tags stand behind the pixels; those that are left would do."""
    path = tmp_path / "image.tiff"
    Image.effect_noise((64, 64), 50).save(path, compression="tiff_lzw", dpi=(72, 72))
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(DataError, match="its tags are cut off"):
        read_sample(path, INFO)


def test_more_pixels_than_pillow_deems_safe_are_refused(tmp_path, monkeypatch):
    """Up to twice as many Pillow only warns of."""
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    for name, side in (("warned", 40), ("refused", 50)):
        Image.new("L", (side, side)).save(tmp_path / f"{name}.png")
        with pytest.raises(DataError, match=f"{name}.png has too many pixels; .* at most 1,000"):
            read_sample(tmp_path / f"{name}.png", INFO)


def test_a_remark_about_a_whole_image_is_neither_shown_nor_an_error(tmp_path, recwarn):
    """ImageNet has photos with damaged EXIF, and palettes may be transparent."""
    exif = Image.Exif()
    exif[0x010E] = "a description that is longer than four bytes"
    Image.new("L", (8, 8), 255).save(tmp_path / "photo.jpg", exif=exif.tobytes()[:-30])
    palette = Image.new("P", (8, 8))
    palette.putpalette([255] * 6)
    palette.save(tmp_path / "palette.png", transparency=bytes((0, 255)))
    for name in ("photo.jpg", "palette.png"):
        assert (read_sample(tmp_path / name, INFO) == 1).all()
    assert not recwarn.list


def test_missing_data_says_what_is_looked_for(tmp_path):
    with pytest.raises(DataError, match="pass --data DIR"):
        open_data(DataConfig(name="fashion_mnist"))
    with pytest.raises(DataError, match="FashionMNIST/raw/train-images-idx3-ubyte"):
        open_data(DataConfig(name="fashion_mnist"), tmp_path)
    with pytest.raises(DataError, match="cifar-10-batches-py"):
        open_data(DataConfig(name="cifar10"), tmp_path)


@pytest.mark.parametrize("name", sorted({*list_datasets()} - {"digits"}))
def test_a_folder_that_is_none_or_may_not_be_read_is_named(name, tmp_path, monkeypatch):
    def claim(root: Path) -> str:
        with pytest.raises(DataError) as refusal:
            open_data(DataConfig(name=name), root)
        return re.sub(r"that holds .*: ", "that holds ...: ", str(refusal.value))

    ending = "it must be a folder that holds ...: "
    file = tmp_path / "file"
    file.write_bytes(b"")
    assert claim(file) == f"{file} is a file; {ending}pass another --data"
    missing = tmp_path / "missing"
    assert claim(missing) == f"{missing} is missing; {ending}pass another --data"

    def refuse(path: Path):
        raise PermissionError(errno.EACCES, "Permission denied", str(path))

    monkeypatch.setattr(Path, "iterdir", refuse)  # whoever tests may be root, who may all
    assert claim(tmp_path) == (
        f"{tmp_path} may not be read; {ending}allow it or pass another --data"
    )


def test_a_part_that_may_not_be_read_is_named(tmp_path, monkeypatch):
    for part in ("train", "test"):
        (tmp_path / part / "cat").mkdir(parents=True)
    listed = Path.iterdir

    def refuse(path: Path):
        if path.name == "train":
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return listed(path)

    monkeypatch.setattr(Path, "iterdir", refuse)
    with pytest.raises(DataError, match=r"train may not be read; it must be a folder that holds"):
        open_data(DataConfig(name="image_folder"), tmp_path)


def test_damaged_idx_files_are_refused(tmp_path):
    (tmp_path / "train-images-idx3-ubyte").write_bytes(b"\0\0\x08\x03\0\0")
    with pytest.raises(DataError, match="cannot be read"):
        open_data(DataConfig(name="mnist"), tmp_path)


def test_altered_cifar_files_are_refused(tmp_path):
    (tmp_path / "cifar-10-batches-py").mkdir()
    with pytest.raises(DataError, match="incomplete or altered"):
        open_data(DataConfig(name="cifar10"), tmp_path)


@pytest.mark.parametrize(
    ("name", "layout"), [("cifar10", "cifar-10-batches-py"), ("cifar100", "x")]
)
def test_cifar_is_found_in_the_folder_that_one_stands_in(tmp_path, monkeypatch, name, layout):
    """Whatever that folder is called; by name, torchvision would look beside it."""
    from torchvision import datasets

    kind = getattr(datasets, name.upper())
    (tmp_path / layout).mkdir()
    monkeypatch.chdir(tmp_path / layout)
    content = {"labels": [0, 1], "fine_labels": [0, 1], "data": np.full((2, 3072), 7, np.uint8)}
    content |= {"label_names": ["a", "b"], "fine_label_names": ["a", "b"]}
    lists = {}
    for part in ("train_list", "test_list"):
        lists[part] = [[part, hashlib.md5(pickle.dumps(content)).hexdigest()]]
        Path(part).write_bytes(pickle.dumps(content))
    meta = kind.meta["filename"]
    Path(meta).write_bytes(pickle.dumps(content))
    lists["meta"] = kind.meta | {"md5": lists["test_list"][0][1]}
    for attribute, value in lists.items():
        monkeypatch.setattr(kind, attribute, value)
    splits = open_data(DataConfig(name=name), Path())
    assert splits.info.classes == ("a", "b")
    assert (splits.test.pixels(1) == 7).all()


def test_a_single_class_is_refused_where_the_data_are_opened(tmp_path):
    with pytest.raises(DataError, match="has 1 class; there must be at least two"):
        open_data(DataConfig(name="image_folder"), folder(tmp_path, classes=("cat",)))


@pytest.mark.parametrize(("empty", "part"), [("train", "training"), ("t10k", "test")])
def test_a_part_without_images_is_refused_before_it_is_needed(tmp_path, empty, part):
    for prefix in ("train", "t10k"):
        count = 0 if prefix == empty else 20
        images, labels = np.zeros((count, 28, 28), np.uint8), np.arange(count, dtype=np.uint8) % 10
        (tmp_path / f"{prefix}-images-idx3-ubyte").write_bytes(idx(images))
        (tmp_path / f"{prefix}-labels-idx1-ubyte").write_bytes(idx(labels))
    with pytest.raises(DataError, match=f"^mnist has no {part} image; .* {part} files again$"):
        open_data(DataConfig(name="mnist"), tmp_path)


def test_a_label_out_of_range_is_refused():
    with pytest.raises(DataError, match=r"label 2; labels must lie in \[0, 1\]"):
        ArrayDataset(torch.zeros(1, 1, 8, 8, dtype=torch.uint8), np.array([2]), INFO)


def test_a_folder_for_the_embedded_digits_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="digits are embedded"):
        open_data(DataConfig(name="digits"), tmp_path)


# MNIST's and CIFAR's are those of the released recipes and of PyTorch's examples; Fashion-MNIST's
# those of its 60,000 training images.
PUBLISHED = {
    "mnist": ((0.1307,), (0.3081,)),
    "fashion_mnist": ((0.2860,), (0.3530,)),
    "cifar10": ((0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)),
    "cifar100": ((0.5071, 0.4867, 0.4408), (0.2675, 0.2565, 0.2761)),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_pixels_are_normalised_by_the_datasets_own_mean_and_deviation(tmp_path, monkeypatch, name):
    from torchvision import datasets

    class Stored:
        """Stands for torchvision's, which reads only files of the published checksums."""

        def __init__(self, root, train):
            del root, train
            self.data = np.zeros((20, 32, 32, 3), dtype=np.uint8)
            self.targets, self.classes = [0, 1] * 10, ["a", "b"]

    for layout, kind in (("cifar-10-batches-py", "CIFAR10"), ("cifar-100-python", "CIFAR100")):
        (tmp_path / layout).mkdir()
        monkeypatch.setattr(datasets, kind, Stored)
    for prefix in ("train", "t10k"):
        images, labels = np.zeros((20, 28, 28), dtype=np.uint8), np.arange(20, dtype=np.uint8) % 10
        (tmp_path / f"{prefix}-images-idx3-ubyte").write_bytes(idx(images))
        (tmp_path / f"{prefix}-labels-idx1-ubyte").write_bytes(idx(labels))
    info = open_data(DataConfig(name=name), tmp_path).info
    assert (info.mean, info.std) == PUBLISHED[name]


def test_more_workers_than_cores_are_nobody_elses_business(monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _pid: {0})
    make_loader(digits().test, batch_size=8, num_workers=3)


def test_an_unknown_dataset_names_the_nearest():
    with pytest.raises(ConfigError, match=r"did you mean digits\?"):
        open_data(DataConfig(name="digit"))


@pytest.mark.parametrize(
    "fields",
    [
        {"validation_fraction": 1.0},
        {"batch_size": 0},
        {"image_size": 2},
        {"image_size": 4096},
        {"num_workers": -1},
        {"crop": 0.4},
        {"interpolation": "nearest"},
    ],
)
def test_a_data_setting_refuses_nonsense(fields):
    with pytest.raises(ConfigError, match=rf"^data\.{next(iter(fields))} is "):
        DataConfig(name="digits", **fields)


@pytest.mark.parametrize(
    "fields",
    [
        {"horizontal_flip": 1.5},
        {"crop_padding": -1},
        {"rotation": 200.0},
        {"rand_augment": "m9"},
        {"rand_augment": "rand-m9-foo"},
        {"rand_augment": "rand-"},
        {"crop_scale": 0.0},
    ],
)
def test_an_augmentation_refuses_nonsense(fields):
    with pytest.raises(ConfigError, match=rf"^data\.augment\.{next(iter(fields))} is "):
        AugmentConfig(**fields)


@pytest.mark.parametrize(
    ("kind", "field", "wanted"),
    [
        (DataConfig, {"batch_size": 1.5}, "a whole number"),
        (DataConfig, {"batch_size": np.int64(2)}, "a whole number"),
        (DataConfig, {"num_workers": True}, "a whole number"),
        (DataConfig, {"image_size": "16"}, "a whole number or nothing"),
        (DataConfig, {"resident": "no"}, "true or false"),
        (DataConfig, {"crop": float("nan")}, "a finite number"),
        (DataConfig, {"interpolation": None}, "text"),
        (AugmentConfig, {"rotation": "10"}, "a finite number"),
        (AugmentConfig, {"zoom": None}, "a finite number"),
        (AugmentConfig, {"roll": 1.0}, "a whole number"),
        (AugmentConfig, {"rand_augment": 9}, "text or nothing"),
    ],
    ids=lambda part: str(part) if isinstance(part, dict) else "",
)
def test_a_setting_of_another_type_is_refused_and_says_which_it_must_be(kind, field, wanted):
    section = "data" if kind is DataConfig else r"data\.augment"
    name = {"name": "digits"} if kind is DataConfig else {}
    pattern = rf"^{section}\.{next(iter(field))} is .*; it must be {wanted}: convert it$"
    with pytest.raises(ConfigError, match=pattern):
        kind(**name, **field)


def test_a_whole_number_may_stand_for_a_float():
    assert DataConfig(name="digits", crop=1, augment=AugmentConfig(rotation=10)).crop == 1


def varied(pixels: torch.Tensor, count: int, **fields) -> list[torch.Tensor]:
    augment = Augment(AugmentConfig(**fields), INFO)
    return [augment(pixels, np.random.default_rng(n)) for n in range(count)]


def test_a_mirror_image_exchanges_left_and_right():
    pixels = torch.arange(12, dtype=torch.uint8).view(1, 3, 4)
    (mirrored,) = varied(pixels, 1, horizontal_flip=1.0)
    assert mirrored.tolist() == [[row[::-1] for row in pixels[0].tolist()]]


def test_padding_shifts_by_every_distance_up_to_it_in_every_direction():
    pixels = torch.zeros(1, 7, 7, dtype=torch.uint8)
    pixels[0, 3, 3] = 1
    found = {tuple(image.nonzero()[0].tolist()) for image in varied(pixels, 300, crop_padding=2)}
    assert found == {(0, row, column) for row in range(1, 6) for column in range(1, 6)}


def test_images_are_rotated_and_scaled_both_ways_and_no_further():
    pixels = torch.zeros(1, 65, 65, dtype=torch.uint8)
    pixels[0, 8:17, 28:37] = 255  # its middle is 20 above the middle of the image
    columns = torch.arange(65) - 32

    def lean(image: torch.Tensor) -> float:
        return float((image[0] * columns).sum() / image.sum())

    leans = [lean(image.double()) for image in varied(pixels, 60, rotation=30)]
    most = 20 * np.sin(np.deg2rad(30)) + 0.2  # rounding to bytes moves the middle by less
    assert -most <= min(leans) < -0.7 * most
    assert 0.7 * most < max(leans) <= most

    middle = torch.zeros(1, 65, 65, dtype=torch.uint8)
    middle[0, 22:43, 22:43] = 255
    whole = middle.double().sum()
    areas = [float(image.double().sum() / whole) for image in varied(middle, 60, zoom=0.2)]
    assert 0.8**2 - 0.02 <= min(areas) < 0.75
    assert 1.3 < max(areas) <= 1.2**2 + 0.02


def test_rand_augment_is_set_as_timms_own_training_sets_it():
    from timm.data import create_transform

    colour = DataInfo(
        name="made",
        classes=("a",),
        in_channels=3,
        image_size=32,
        mean=(0.4914, 0.4822, 0.4465),
        std=(1.0,) * 3,
    )
    name = "rand-m9-n1-mstd0.4-inc1"
    ours = ArrayDataset(
        torch.zeros(1, 3, 32, 32, dtype=torch.uint8),
        np.zeros(1, dtype=np.int64),
        colour,
        AugmentConfig(rand_augment=name),
    ).augment.rand_augment
    released = create_transform(
        32, is_training=True, auto_augment=name, interpolation="bicubic", mean=colour.mean
    )
    theirs = next(t for t in released.transforms if type(t) is type(ours))
    assert ours.ops[0].hparams == theirs.ops[0].hparams
    assert [op.name for op in ours.ops] == [op.name for op in theirs.ops]
    assert all(a.kwargs == b.kwargs for a, b in zip(ours.ops, theirs.ops, strict=True))


def photo(path: Path, wide: int = 300, high: int = 250) -> Path:
    """A smooth coloured picture with some noise, as photographs have it."""
    rng = np.random.default_rng(3)
    coarse = rng.integers(0, 256, (8, 10, 3), dtype=np.uint8)
    smooth = Image.fromarray(coarse).resize((wide, high), Image.Resampling.BICUBIC)
    noisy = np.asarray(smooth).astype(int) + rng.integers(-8, 9, (high, wide, 3))
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(noisy.clip(0, 255).astype(np.uint8)).save(path)
    return path


@pytest.mark.parametrize(
    ("size", "crop", "interpolation"), [(224, 0.95, "bicubic"), (224, 0.9, "bilinear")]
)
def test_evaluation_reads_images_as_timm_does(tmp_path, size, crop, interpolation):
    from timm.data import create_transform

    path = photo(tmp_path / "photo.png", 300, 250)
    theirs = create_transform(
        size, is_training=False, crop_pct=crop, interpolation=interpolation, mean=0, std=1
    )(Image.open(path))
    info = DataInfo(
        name="made", classes=("a",), in_channels=3, image_size=size, mean=(0.0,) * 3,
        std=(1.0,) * 3, crop=crop, interpolation=interpolation,
    )  # fmt: skip
    # Pillow rounds between its two passes, torch once at the end: one grey level.
    assert (read_sample(path, info) - theirs).abs().max() <= 1 / 255 + 1e-6


def test_a_random_crop_is_taken_from_the_whole_file_and_is_timms(tmp_path):
    from timm.data.transforms import RandomResizedCropAndInterpolation

    from spikedriven.data.transforms import seeded_globals

    path = photo(tmp_path / "photo.png")
    info = DataInfo(
        name="made", classes=("a",), in_channels=3, image_size=64, mean=(0.0,) * 3,
        std=(1.0,) * 3, interpolation="bicubic",
    )  # fmt: skip
    dataset = ArrayDataset(
        [path], np.zeros(1, dtype=np.int64), info, AugmentConfig(crop_scale=0.2), seed=4
    )
    varied = [dataset[epoch, 0][0] for epoch in range(4)]
    assert all(image.shape == (3, 64, 64) for image in varied)
    assert torch.equal(varied[2], dataset[2, 0][0])
    assert not torch.equal(varied[0], varied[1])
    assert torch.equal(dataset[0][0], read_sample(path, info))
    rng = np.random.default_rng((2, 4, 2, 0))  # variation, seed, epoch, index
    with seeded_globals(int(rng.integers(2**32))):
        timms = RandomResizedCropAndInterpolation(64, scale=(0.2, 1.0), interpolation="bicubic")
        expected = np.asarray(timms(Image.open(path)))
    assert torch.equal((varied[2] * 255).round(), torch.tensor(expected).movedim(-1, 0).float())


def test_stored_images_are_cropped_at_random_too():
    config = DataConfig(name="digits", augment=AugmentConfig(crop_scale=0.3))
    train = open_data(config).train
    assert train[0, 5][0].shape == (1, 16, 16)
    assert not torch.equal(train[0, 5][0], train[1, 5][0])


def test_a_crop_for_evaluation_is_refused_where_there_are_no_files():
    with pytest.raises(ConfigError, match="holds no image files"):
        open_data(DataConfig(name="digits", crop=0.9))
    with pytest.raises(ConfigError, match="holds no image files"):
        open_data(DataConfig(name="digits", interpolation="bicubic"))


def idx(images: np.ndarray) -> bytes:
    header = bytes((0, 0, 8, images.ndim))
    return header + np.array(images.shape, dtype=">u4").tobytes() + images.tobytes()


@pytest.mark.parametrize("packed", [False, True])
def test_idx_files_are_read_packed_or_not(tmp_path, packed):
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (20, 28, 28), dtype=np.uint8)
    labels = np.arange(20, dtype=np.uint8) % 10
    for prefix in ("train", "t10k"):
        for name, array in (("images-idx3", images), ("labels-idx1", labels)):
            content = gzip.compress(idx(array)) if packed else idx(array)
            ending = ".gz" if packed else ""
            (tmp_path / f"{prefix}-{name}-ubyte{ending}").write_bytes(content)
    splits = open_data(DataConfig(name="mnist", validation_fraction=0), tmp_path)
    assert torch.equal(splits.test.images[:, 0], torch.from_numpy(images))
    assert splits.train.labels.tolist() == labels.tolist()


@pytest.mark.parametrize(
    "damage",
    [lambda c: c[:-1], lambda c: c + b"0", lambda c: b"\0" + c, lambda c: c[:3], lambda _: b""],
    ids=["short", "long", "shifted", "header", "empty"],
)
def test_damaged_idx_files_are_refused_in_every_way(tmp_path, damage):
    whole = idx(np.zeros((2, 28, 28), dtype=np.uint8))
    for name, content in (
        ("train-images-idx3-ubyte", damage(whole)),
        ("train-images-idx3-ubyte.gz", damage(gzip.compress(whole))),
    ):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(DataError, match="cannot be read"):
            open_data(DataConfig(name="mnist"), tmp_path)
        (tmp_path / name).unlink()
