"""What the loader and RandAugment once did wrong."""

import random

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps

from spikedriven.data import ArrayDataset, AugmentConfig, DataInfo, make_loader
from spikedriven.data.transforms import _posterize
from spikedriven.errors import DataError

INFO = DataInfo(
    name="made", classes=("a",), in_channels=3, image_size=8, mean=(0.0,) * 3, std=(1.0,) * 3
)


def coloured(augment: AugmentConfig | None, count: int = 40) -> ArrayDataset:
    images = torch.randint(0, 256, (count, 3, 8, 8), dtype=torch.uint8)
    return ArrayDataset(images, np.zeros(count, dtype=np.int64), INFO, augment)


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize("shuffle", [False, True])
def test_loading_leaves_every_global_generator_alone(workers, shuffle):
    dataset = coloured(AugmentConfig(rand_augment="rand-m9-n1"))

    def state():
        numpy_state = np.random.get_state()[1].tolist()  # noqa: NPY002 - the subject
        return random.getstate(), numpy_state, torch.get_rng_state().tolist()

    before = state()
    list(make_loader(dataset, batch_size=8, shuffle=shuffle, num_workers=workers))
    assert state() == before


@pytest.mark.parametrize("workers", [0, 1])
def test_a_damaged_file_is_one_sentence_also_from_a_worker(tmp_path, workers):
    path = tmp_path / "image.png"
    Image.effect_noise((64, 64), 50).save(path)
    path.write_bytes(path.read_bytes()[:1000])
    dataset = ArrayDataset([path], np.zeros(1, dtype=np.int64), INFO)
    with pytest.raises(DataError) as caught:
        list(make_loader(dataset, batch_size=1, num_workers=workers))
    start = f"1 of 1 images cannot be used; {path} is not a readable image ("
    assert str(caught.value).startswith(start)
    assert "\n" not in str(caught.value)


def test_rand_augment_at_full_magnitude_never_fails():
    dataset = coloured(AugmentConfig(rand_augment="rand-m10-n2-inc1"), 300)
    assert len([dataset[0, n] for n in range(300)]) == 300


@pytest.mark.parametrize("bits", range(1, 9))
def test_posterizing_is_pillows(bits):
    image = Image.effect_noise((16, 16), 100).convert("RGB")
    assert _posterize(image, bits).tobytes() == ImageOps.posterize(image, bits).tobytes()
