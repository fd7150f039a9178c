"""Images on the device: every one once, varied as Pillow would, the same on every device."""

import numpy as np
import pytest
import torch
from PIL import Image, ImageEnhance, ImageOps

from spikedriven.data import (
    ArrayDataset,
    AugmentConfig,
    DataInfo,
    Place,
    ResidentLoader,
    make_loader,
)
from spikedriven.data.resident import COLOURS, MOVES, moved, recoloured, shifted, uniform
from spikedriven.errors import ConfigError

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
# Pillow computes in whole numbers or doubles; a float32 may fall on the other side of a whole one.
ONE_LEVEL = 1.0


def dataset(augment: AugmentConfig | None = None, **info) -> ArrayDataset:
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (23, 3, 8, 8), generator=generator, dtype=torch.uint8)
    given = DataInfo(
        name="drawn", classes=tuple("abc"), in_channels=3, image_size=8,
        mean=(0.4, 0.5, 0.6), std=(0.2, 0.3, 0.25), **info,
    )  # fmt: skip
    return ArrayDataset(images, np.arange(23) % 3, given, augment, seed=5)


def test_without_variation_it_gives_out_what_the_loader_on_a_cpu_does():
    resident = ResidentLoader(dataset(AugmentConfig()), batch_size=5, device=DEVICE, seed=3)
    plain = make_loader(dataset(AugmentConfig()), batch_size=5, shuffle=True, seed=3)
    assert len(resident) == len(plain) == 5
    for epoch in (0, 1):
        for loader in (resident, plain):
            loader.sampler.set_epoch(epoch)
        for (x, labels), (wanted, wanted_labels) in zip(resident, plain, strict=True):
            assert torch.allclose(x.cpu(), wanted, atol=1e-6)
            assert torch.equal(labels.cpu(), wanted_labels)


def test_variation_depends_on_seed_epoch_and_image_alone():
    everything = AugmentConfig(
        horizontal_flip=0.5, crop_padding=2, rand_augment="rand-m9-n2-mstd0.4-inc1"
    )
    found = {}
    for batch_size in (4, 23):
        loader = ResidentLoader(dataset(everything), batch_size=batch_size, device=DEVICE, seed=3)
        for epoch in (0, 1):
            loader.sampler.set_epoch(epoch)
            found[batch_size, epoch] = torch.cat([x for x, _ in loader])
    assert torch.allclose(found[4, 0], found[23, 0], atol=1e-5)
    assert torch.allclose(found[4, 1], found[23, 1], atol=1e-5)
    order = [index for _, index in ResidentLoader(dataset(), batch_size=1, device="cpu").sampler]
    assert sorted(order) == list(range(23))
    index = torch.arange(23, device=DEVICE)
    for other in ((4, 0), (3, 1)):
        assert not torch.equal(uniform(3, 0, index, 4), uniform(*other, index, 4))


def test_draws_are_uniform_and_those_of_one_image_are_apart():
    draws = uniform(1, 2, torch.arange(20000), 6).double()
    assert draws.min() >= 0
    assert draws.max() < 1
    assert (draws.mean(0) - 0.5).abs().max() < 5 * (1 / 12 / 20000) ** 0.5  # five deviations
    assert (torch.corrcoef(draws.T) - torch.eye(6)).abs().max() < 5 / 20000**0.5


def by_pillow(name: str, image: Image.Image, strength: float, sign: float) -> Image.Image:
    factor = max(0.1, 1 + sign * 0.9 * strength)
    enhancers = {
        "colour": ImageEnhance.Color, "contrast": ImageEnhance.Contrast,
        "brightness": ImageEnhance.Brightness, "sharpness": ImageEnhance.Sharpness,
    }  # fmt: skip
    if name in enhancers:
        return enhancers[name](image).enhance(factor)
    if name == "posterize":
        return image.point(lambda level: level & (0xFF << (4 + int(4 * strength))) & 0xFF)
    if name == "solarize":
        return ImageOps.solarize(image, 256 - int(256 * strength))
    if name == "solarize_add":
        added = int(110 * strength)
        return image.point([min(255, i + added) if i < 128 else i for i in range(256)] * 3)
    return {"invert": ImageOps.invert, "autocontrast": ImageOps.autocontrast}[name](image)


@pytest.mark.parametrize("sign", [1.0, -1.0])
@pytest.mark.parametrize("name", COLOURS)
def test_colours_change_as_pillow_changes_them(name, sign):
    generator = torch.Generator().manual_seed(1)
    x = torch.randint(20, 230, (2, 3, 9, 9), generator=generator).float()
    chosen = torch.tensor([list(COLOURS).index(name), -1])
    strengths = torch.full((2, 1, 1, 1), 0.6)
    found = recoloured(x, chosen, strengths, torch.full((2, 1, 1, 1), sign))
    assert torch.equal(found[1], x[1])  # the other image is not its business
    image = Image.fromarray(x[0].byte().movedim(0, -1).numpy())
    wanted = torch.from_numpy(np.array(by_pillow(name, image, 0.6, sign))).movedim(-1, 0)
    assert not torch.equal(wanted, x[0].byte())
    assert (found[0] - wanted).abs().max() <= ONE_LEVEL


def smooth(size: int) -> torch.Tensor:
    y, x = torch.meshgrid(torch.arange(size), torch.arange(size), indexing="ij")
    return torch.stack([4 * x + 2 * y, 5 * y + 30, 200 - 3 * x]).float()[None]


@pytest.mark.parametrize("name", MOVES)
def test_images_move_as_pillow_moves_them(name):
    size, strength = 21, 2 / 3
    x, fill = smooth(size), torch.tensor([9.0, 99.0, 199.0])
    one = torch.ones(1, 1, 1, 1)
    found = moved(x, torch.tensor([MOVES.index(name)]), strength * one, one, fill)[0]
    angle, middle = strength * 30, (size - 1) / 2
    cos, sin = np.cos(np.deg2rad(angle)), np.sin(np.deg2rad(angle))
    shear, shift = 0.3 * strength, 0.45 * strength * size
    # where each pixel comes from, by hand: (a, b, c, d) about the middle, and a shift
    a, b, c, d, right, down = {
        "rotate": (cos, sin, -sin, cos, 0, 0),
        "shear_x": (1, shear, 0, 1, 0, 0),
        "shear_y": (1, 0, shear, 1, 0, 0),
        "translate_x": (1, 0, 0, 1, shift, 0),
        "translate_y": (1, 0, 0, 1, 0, shift),
    }[name]
    seen = 0
    for row in range(size):
        for column in range(size):
            v, w = column - middle, row - middle
            source = (a * v + b * w + right + middle, c * v + d * w + down + middle)
            if all(0 <= place <= size - 1 for place in source):  # a plane is its own interpolation
                p, q = source
                wanted = torch.tensor([4 * p + 2 * q, 5 * q + 30, 200 - 3 * p])
                assert (found[:, row, column] - wanted).abs().max() <= ONE_LEVEL
                seen += 1
            elif any(place < -1 or place > size for place in source):
                assert torch.equal(found[:, row, column], fill)
    assert 100 < seen < size**2 + 1


def test_a_crop_is_cut_out_of_a_black_border():
    x = torch.arange(1.0, 33).view(2, 1, 4, 4)
    found = shifted(x, torch.tensor([0, 3]), torch.tensor([2, 1]), 2)
    assert found[0, 0].tolist() == [[0] * 4, [0] * 4, [1, 2, 3, 4], [5, 6, 7, 8]]
    assert found[1, 0].tolist()[3] == [0, 0, 0, 0]
    assert found[1, 0].tolist()[0] == [0, 21, 22, 23]


def test_what_the_device_cannot_vary_is_refused():
    for drawn in ({"rotation": 5}, {"zoom": 0.1}, {"roll": 1}, {"cutout": 2}, {"crop_scale": 0.5}):
        with pytest.raises(ConfigError, match=f"with {next(iter(drawn))}, which is drawn on a CPU"):
            ResidentLoader(dataset(AugmentConfig(**drawn)), batch_size=2, device=DEVICE)
    for notation in ("rand-m5-inc0", "rand-m5", "rand-m5-inc1-mmax20"):
        with pytest.raises(ConfigError, match="must increase"):
            ResidentLoader(
                dataset(AugmentConfig(rand_augment=notation)), batch_size=2, device=DEVICE
            )
    files = dataset()
    files.images = []
    with pytest.raises(ConfigError, match="are files"):
        ResidentLoader(files, batch_size=2, device=DEVICE)
    with pytest.raises(ConfigError, match="recordings of events"):
        ResidentLoader(dataset(num_steps=4), batch_size=2, device=DEVICE)


def loader(rank: int = 0, ranks: int = 1) -> ResidentLoader:
    place = Place(rank, ranks)
    varied = AugmentConfig(horizontal_flip=0.5, crop_padding=2)
    return ResidentLoader(dataset(varied), batch_size=5, device=DEVICE, seed=3, place=place)


@pytest.mark.parametrize("given", [1, 3, 5])
def test_an_epoch_continues_after_the_batches_that_were_given_out(given):
    whole, first, second = loader(), loader(), loader()
    for one in (whole, first, second):
        one.sampler.set_epoch(2)
    batches = iter(first)
    seen = [next(batches)[0] for _ in range(given)]
    assert first.state_dict() == {"epoch": 2, "batch": given}
    second.load_state_dict(first.state_dict())
    wanted = [x for x, _ in whole]
    found = seen + [x for x, _ in second]
    assert len(found) == len(wanted) == 5
    assert all(torch.equal(a, b) for a, b in zip(found, wanted, strict=True))
    assert second.state_dict() == {"epoch": 2, "batch": 5}
    second.sampler.set_epoch(3)
    assert len(list(second)) == 5


def test_processes_divide_every_batch_and_lose_no_image():
    common = make_loader(dataset(), batch_size=10, shuffle=True, seed=3)
    parts = [loader(rank, 2) for rank in (0, 1)]
    for both, (_, labels) in zip(zip(*parts, strict=True), common, strict=True):
        assert torch.equal(torch.cat([own.cpu() for _, own in both]), labels)
    assert [len(part) for part in parts] == [3, 3]
