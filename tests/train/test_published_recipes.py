"""Every published recipe starts, trains, saves, resumes and is evaluated, on data of its shape.

Depth, width and batch are smaller than published, where a step would take minutes; all other keys
are the recipe's own.
"""

import numpy as np
import pytest
import torch
from PIL import Image

from spikedriven.data import sources
from spikedriven.data.config import DataInfo
from spikedriven.errors import ConfigError
from spikedriven.models.sdt import SpikeDrivenTransformer
from spikedriven.train import fit as fit_module
from spikedriven.train.evaluate import evaluate
from spikedriven.train.fit import fit, resume
from spikedriven.train.module import Training
from spikedriven.train.recipe import list_recipes, load_recipe
from spikedriven.train.run import Run

SMALL = [
    "model.depth=1", "model.width=32", "data.batch_size=2", "data.num_workers=0",
    "schedule.epochs=1", "schedule.warmup_epochs=0", "schedule.cooldown_epochs=0",
    "schedule.single_step_epochs=0", "trainer.checkpoint_every=1", "trainer.accelerator=cpu",
]  # fmt: skip
# Of four images none can be held out and two steps be trained.
TWO_CLASSES = ([], ["model.num_classes=2", "data.validation_fraction=0"])
OURS = {"digits", "fashion_mnist"}
EVENTS = {"cifar10dvs", "dvs128_gesture"}
STATIC = sorted(set(list_recipes()) - OURS - EVENTS)


@pytest.fixture
def data(tmp_path, monkeypatch):
    """Two classes of files as ImageNet has them, and arrays as CIFAR has them."""
    rng = np.random.default_rng(0)
    for part in ("train", "val"):
        for name in ("n01", "n02"):
            folder = tmp_path / "images" / part / name
            folder.mkdir(parents=True)
            for n in range(2):
                pixels = rng.integers(0, 256, (260, 300, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(folder / f"{n}.png")

    def cifar(config, _root):
        pixels = torch.from_numpy(rng.integers(0, 256, (5, 3, 32, 32), dtype=np.uint8))
        part = pixels, np.array([0, 1, 2, 3, 4])
        classes = tuple(map(str, range(100 if config.name == "cifar100" else 10)))
        info = DataInfo(
            name=config.name, classes=classes, in_channels=3, image_size=32,
            mean=(0.5,) * 3, std=(0.25,) * 3,
        )  # fmt: skip
        return info, part, None, part

    for name in ("cifar10", "cifar100"):
        monkeypatch.setitem(sources._SOURCES, name, cifar)
    monkeypatch.setattr(fit_module, "LOG_EVERY", 1)
    return tmp_path / "images"


@pytest.mark.parametrize("name", STATIC)
def test_a_published_recipe_trains_two_steps_with_a_stop_between_them(name, data, tmp_path):
    settings = [*SMALL, *TWO_CLASSES[data_is(name)]]
    if name == "cifar10_fast":  # its float16 is for a GPU
        settings.append("trainer.precision=bf16-mixed")
    recipe = load_recipe(name, settings)
    original, steps = Training.training_step, []

    def stop_at_the_second(self, batch, batch_index):
        steps.append(batch_index)
        if steps == [0, 1]:
            raise KeyboardInterrupt
        return original(self, batch, batch_index)

    folder = tmp_path / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Training, "training_step", stop_at_the_second)
        with pytest.raises(KeyboardInterrupt):
            fit(recipe, run_dir=folder, data_root=data)
        result = resume(folder, data_root=data)
    assert steps[:3] == [0, 1, 1]
    model = Run.open(folder).model()
    assert result["test_count"] == evaluate(folder, data_root=data).count == (5, 4)[data_is(name)]
    assert all(bool(tensor.isfinite().all()) for tensor in model.state_dict().values())
    assert load_recipe(folder / "recipe.yaml") == recipe


def data_is(name: str) -> int:
    """Whether a recipe reads image files."""
    return int(name.startswith("imagenet"))


def test_imagenets_recipe_refuses_a_folder_of_other_classes(data, tmp_path):
    with pytest.raises(ConfigError, match="num_classes is 1000; it must be 2, as images has it"):
        fit(load_recipe("imagenet_8_384", SMALL), run_dir=tmp_path / "run", data_root=data)
    assert not (tmp_path / "run").exists()


def test_the_published_evaluation_at_288_needs_no_other_run(data, tmp_path, monkeypatch):
    fit(
        load_recipe("imagenet_8_768", [*SMALL, *TWO_CLASSES[1]]),
        run_dir=tmp_path / "run",
        data_root=data,
    )
    shapes, original = [], SpikeDrivenTransformer.forward_steps

    def watched(self, x):
        shapes.append(tuple(x.shape))
        return original(self, x)

    monkeypatch.setattr(SpikeDrivenTransformer, "forward_steps", watched)
    at_288 = ["data.image_size=288", "data.crop=0.9", "data.interpolation=bilinear"]
    assert evaluate(tmp_path / "run", data_root=data, settings=at_288).count == 4
    assert shapes == [(4, 3, 288, 288)]
    with pytest.raises(ConfigError, match="only how images are read"):
        evaluate(tmp_path / "run", data_root=data, settings=["data.name=digits"])


@pytest.mark.parametrize(
    "name", sorted(set(STATIC) - {"cifar10_fast", "cifar10_cpu", "imagenette"})
)
def test_a_published_recipe_has_the_size_and_the_schedule_of_its_source(name):
    """The reference sheet's table of released configurations, row by row."""
    recipe = load_recipe(name)
    if data_is(name):
        assert recipe.model.name == name.replace("imagenet", "sdt")
        assert (recipe.optimizer.name, recipe.optimizer.weight_decay) == ("lamb", 0.01)
        assert (recipe.schedule.warmup_epochs, recipe.schedule.warmup_lr) == (20, 1e-5)
        lr, floor, batch, least, probability = {
            "8_384": (1.5e-3, 1.5e-5, 48, 0.2, 0.6),
            "6_512": (1e-3, 2e-5, 48, 0.08, 0.6),
            "8_512": (1.5e-3, 1.5e-5, 48, 0.2, 0.6),
            "10_512": (1e-3, 2e-5, 36, 0.2, 0.75),
            "8_768": (1e-3, 2e-5, 36, 0.08, 1.0),
        }[name.removeprefix("imagenet_")]
        assert (recipe.optimizer.lr, recipe.schedule.min_lr) == (lr, floor)
        assert (recipe.data.batch_size, recipe.data.augment.crop_scale) == (batch, least)
        loss = recipe.loss
        assert (loss.mixup, loss.cutmix, loss.mix_probability) == (0.2, 1.0, probability)
        assert (recipe.data.image_size, recipe.data.crop) == (224, 0.95)
    else:
        assert (recipe.optimizer.name, recipe.optimizer.lr) == ("adamw", 3e-4)
        assert (recipe.loss.mixup, recipe.loss.mixup_epochs) == (0.5, 200)
        assert recipe.data.batch_size == 64
    assert (recipe.schedule.epochs, recipe.schedule.total_epochs) == (300, 310)
    assert recipe.loss.label_smoothing == 0.1
