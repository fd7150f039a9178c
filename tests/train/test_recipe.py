"""A recipe is typed, complete, and refuses nonsense in one sentence."""

import pytest

from spikedriven.errors import ConfigError
from spikedriven.train.recipe import list_recipes, load_recipe


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("schedule.epoch=3", r"did you mean schedule\.epochs\?"),
        ("lr=3", r"did you mean optimizer\.lr\?"),
        ("schedule.epochs=many", "must be int"),
        ("schedule.epochs=0", "at least 1"),
        ("schedule.warmup_epochs=16", "warm-up must end"),
        ("schedule.single_step_epochs=-1", "must be at least 0"),
        ("schedule.single_step_epochs=12", "12 of 12 epochs; the last ones must train all steps"),
        ("schedule.min_lr=1", r"not be above optimizer\.lr, 0\.002"),
        ("optimizer.lr=-1", "above 0"),
        ("optimizer.lr=.inf", "finite"),
        ("optimizer.lr=nan", "above 0 and finite"),
        ("optimizer.lr=-Inf", "above 0 and finite"),
        ("optimizer.lr=high", "must be float"),
        ("seed=9223372036854775808", r"below 2\*\*63: give a smaller number"),
        ("seed=-1", "at least 0"),
        ("schedule.epochs=1", r"1 of 1 epochs.*set schedule\.warmup_epochs=0, or raise schedule"),
        ("model=sdt_tiny", r"'sdt_tiny'; it is a section .* for example model\.name$"),
        ("data.augment=", r"data\.augment is ''; it is a section"),
        ("trainer.xyz=1", r"choose one of trainer\.accelerator, trainer\.devices, "),
        ("xyz=1", "choose one of model, data, schedule, .*, seed, evaluate$"),
        ("optimizer.name=sgd", "adamw or lamb"),
        ("trainer.precision=8", "must be one of"),
        ("trainer.devices=0", "at least 1"),
        ("trainer.sync_batch_norm=true", "there is one process"),
        ("trainer.gradient_clip=0", "above 0"),
        ("trainer.checkpoint_every=0", "at least 1"),
        ("trainer.accumulate=0", "at least 1"),
        ("optimizer.ema=1", r"\(0, 1\)"),
        ("loss.mix_probability=2", r"\[0, 1\]"),
        ("loss.cutmix=-1", "at least 0"),
        ("loss.mixup_epochs=-1", "at least 0"),
        ("loss.label_smoothing=1", r"\[0, 1\)"),
        ("evaluate=test", "last or best"),
        ("model.sizes.width=8", r"did you mean model\.width\?"),
        ("nonsense", "key=value"),
    ],
)
def test_a_recipe_refuses_nonsense_and_names_the_cure(setting, message):
    with pytest.raises(ConfigError, match=message):
        load_recipe("digits", [setting])


def test_the_epochs_that_train_all_steps_may_be_those_of_the_cooldown():
    settings = ["schedule.single_step_epochs=12", "schedule.cooldown_epochs=1"]
    schedule = load_recipe("digits", settings).schedule
    assert [schedule.is_single_step(epoch) for epoch in (11, 12)] == [True, False]


def test_every_packaged_recipe_is_valid_and_survives_the_round_trip(tmp_path):
    assert {"digits", "fashion_mnist", "cifar10", "cifar100"} <= set(list_recipes())
    for name in list_recipes():
        recipe = load_recipe(name)
        (tmp_path / "copy.yaml").write_text(recipe.to_yaml())
        assert load_recipe(tmp_path / "copy.yaml") == recipe


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"\xff\xfe", "it is no text"),
        (b"model: {name: sdt_tiny", "is not YAML"),
        (b"- model", "no mapping"),
        (b"", "no mapping"),
        (b"model: {name: sdt_tiny}\ndata: {name: digits}", "required: schedule.epochs"),
        (b"seed: 1\nseed: 2", "'seed' stands twice"),
        (b"schedule: {epochs: 1}\nschedule.epochs: 3", "'schedule.epochs' stands twice"),
        (b"schedule.epochs: 3\nschedule: {epochs: 1}", "'schedule.epochs' stands twice"),
        (b"? [a, b]\n: 1", r"recipe.yaml is not YAML \(a key must be one word at line 1"),
        (b"? {a: b}\n: 1", "a key must be one word"),
        (b"loss: &a {x: *a}", "nested without end"),
        (b"[" * 20_000, "nested without end"),
        (b"seed: 1\nmodel: @", r"recipe.yaml is not YAML \(.* at line 2, column 8"),
        (b"model: sdt_tiny", "model is 'sdt_tiny'; it is a section"),
        (b"model:", "model is None; it is a section"),
        (b"seed: !!python/object/apply:pytest.fail [the recipe ran code]", "is not YAML"),
    ],
)
def test_a_file_that_is_no_recipe_is_refused(content, message, tmp_path):
    (tmp_path / "recipe.yaml").write_bytes(content)
    with pytest.raises(ConfigError, match=message) as refusal:
        load_recipe(tmp_path / "recipe.yaml")
    assert "\n" not in str(refusal.value)


def test_a_string_of_digits_stays_a_string():
    assert load_recipe("digits", ["model.stem_pool=0011"]).model.stem_pool == "0011"
    assert load_recipe("fashion_mnist").model.stem_pool == "0110"


def test_an_unknown_recipe_lists_the_known_ones():
    with pytest.raises(ConfigError, match=r"did you mean digits\?"):
        load_recipe("digit")
