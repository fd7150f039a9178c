"""A recipe is typed, complete, and refuses nonsense in one sentence."""

from dataclasses import replace

import pytest

from spikedriven.errors import ConfigError
from spikedriven.train.config import (
    DistillConfig,
    LossConfig,
    ModelChoice,
    OptimizerConfig,
    ScheduleConfig,
    TrainerConfig,
)
from spikedriven.train.recipe import list_recipes, load_recipe, parse_recipe
from spikedriven.train.run import Run


def doubling(twice: str, first: str, start: str = "a{n}: ") -> bytes:
    """Forty lines, each of which is twice the one before: a kilobyte that means 2**40 values."""
    lines = [f"{start.format(n=0)}&a0 {first}"]
    lines += [f"{start.format(n=n)}&a{n} {twice.replace('*a', f'*a{n - 1}')}" for n in range(1, 40)]
    return "\n".join(lines).encode()


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("schedule.epoch=3", r"did you mean schedule\.epochs\?"),
        ("lr=3", r"did you mean optimizer\.lr\?"),
        ("schedule.epochs=many", r"schedule\.epochs is 'many'; it must be a whole number: "),
        ("schedule.epochs=0", "at least 1"),
        ("schedule.warmup_epochs=16", "warm-up must end"),
        ("schedule.single_step_epochs=-1", "must be at least 0"),
        ("schedule.single_step_epochs=12", "12 of 12 epochs; .* model.num_steps=1 in its place$"),
        ("schedule.min_lr=1", r"not be above optimizer\.lr, 0\.002"),
        ("optimizer.lr=-1", "above 0"),
        ("optimizer.lr=.inf", "finite"),
        ("optimizer.lr=nan", "a finite number"),
        ("optimizer.lr=-Inf", "a finite number"),
        ("optimizer.lr=high", "must be a finite number: "),
        ("trainer.compile=perhaps", "must be true or false: "),
        ("trainer.recompute=perhaps", "must be true or false: "),
        ("model.width=wide", r"model\.width is 'wide'; it must be a whole number or nothing: "),
        ("model.width=33", r"^model\.width is 33; .* choose a multiple of 8"),
        ("model.num_heads=5", r"^model\.num_heads is 5; it must divide"),
        ("model.depth=0", r"^model\.depth is 0; it must be at least 1"),
        ("model.neuron=alif", r"^model\.neuron is 'alif'; it must be one of lif, plif"),
        ("model.name=sdt_tyni", r"no model 'sdt_tyni'.* did you mean sdt_tiny\?"),
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
        ("=5", "'' is no key of a recipe"),
        ("data.batch_size=1000000000000000000000", "data.batch_size .* must lie in 1 to 1048576"),
        ("distill.weights=w.pth", r"does nothing without distill\.teacher"),
        ("distill.weight=0.9", r"does nothing without distill\.teacher"),
        ("distill.hard=true", r"does nothing without distill\.teacher"),
        ("distill.temperature=2", r"does nothing without distill\.teacher"),
        ("loss.mixup_epochs=3", r"without loss\.mixup or loss\.cutmix"),
        ("loss.mix_probability=0.5", r"without loss\.mixup or loss\.cutmix"),
        ("loss.mix_switch=0.7", r"does nothing without loss\.mixup"),
        ("loss.energy_part=attention", r"does nothing without loss\.energy_budget"),
        ("loss.energy_weight=2", r"does nothing without loss\.energy_budget"),
    ],
)
def test_a_recipe_refuses_nonsense_and_names_the_cure(setting, message):
    with pytest.raises(ConfigError, match=message):
        load_recipe("digits", [setting])


@pytest.mark.parametrize(
    ("other", "named"),
    [
        (["trainer.devices=2", "trainer.strategy=fsdp"], "trainer.strategy=fsdp"),
        (["trainer.devices=2", "trainer.sync_batch_norm=true"], "trainer.sync_batch_norm"),
        (["trainer.recompute=true"], "trainer.recompute"),
        (["trainer.accumulate=2"], "trainer.accumulate"),
        (["loss.energy_budget=0.1"], "loss.energy_budget"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_cannot_be_compiled_is_refused_beside_compile(other, named):
    load_recipe("digits", other)
    with pytest.raises(ConfigError, match=f"compile is set beside {named}, which .*: leave one"):
        load_recipe("digits", ["trainer.compile=true", *other])


def test_the_epochs_that_train_all_steps_may_be_those_of_the_cooldown():
    settings = ["schedule.single_step_epochs=12", "schedule.cooldown_epochs=1"]
    schedule = load_recipe("digits", settings).schedule
    assert [schedule.is_single_step(epoch) for epoch in (11, 12)] == [True, False]


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: ModelChoice(name=5), r"model\.name is 5, of type int; it must be text"),
        (lambda: OptimizerConfig(lr="high"), r"optimizer\.lr is 'high', of type str"),
        (lambda: ScheduleConfig(epochs=2.5), r"schedule\.epochs is 2\.5, of type float"),
        (lambda: LossConfig(mixup=None), r"loss\.mixup is None, of type NoneType"),
        (lambda: DistillConfig(hard=1), r"distill\.hard is 1, of type int; it must be true or"),
        (lambda: TrainerConfig(devices=True), r"trainer\.devices is True, of type bool"),
        (lambda: replace(load_recipe("digits"), seed="0"), "seed is '0', of type str"),
        (lambda: replace(load_recipe("digits"), model=5), "it must be ModelChoice"),
    ],
)
def test_settings_made_by_hand_have_their_types_too(build, message):
    with pytest.raises(ConfigError, match=message):
        build()


def test_a_rate_of_warm_up_without_warm_up_is_refused_and_goes_with_it_where_it_is_switched_off():
    off = ["schedule.warmup_epochs=0"]
    recipe = load_recipe("digits", off)  # which has both
    assert recipe.schedule.warmup_lr == ScheduleConfig(epochs=1).warmup_lr
    assert parse_recipe(recipe.to_yaml()) == recipe
    with pytest.raises(
        ConfigError, match=r"warmup_lr is 0\.0001 .* or leave schedule\.warmup_lr out"
    ):
        load_recipe("digits", [*off, "schedule.warmup_lr=1e-4"])


def test_what_does_nothing_is_refused_in_a_recipe_and_passed_over_in_a_run(tmp_path):
    file = tmp_path / "recipe.yaml"
    file.write_text(
        load_recipe("digits").to_yaml().replace("energy_weight: 1.0", "energy_weight: 2.0")
    )
    with pytest.raises(ConfigError, match=r"loss\.energy_weight is 2\.0 and does nothing"):
        load_recipe(file)
    assert Run(tmp_path).recipe() == load_recipe("digits")


def test_mix_switch_chooses_between_two_and_does_nothing_for_one():
    with pytest.raises(ConfigError, match=r"does nothing without loss\.cutmix"):
        load_recipe("digits", ["loss.mixup=1", "loss.mix_switch=0.7"])
    load_recipe("digits", ["loss.mixup=1", "loss.cutmix=1", "loss.mix_switch=0.7"])


def test_a_temperature_beside_a_teachers_first_choice_alone_is_refused(tmp_path):
    hard = ["distill.teacher=resnet18", "distill.hard=true"]
    with pytest.raises(
        ConfigError,
        match=r"^distill\.temperature is 2\.0 and does nothing beside distill\.hard; every setting "
        r"must do something: leave one of them out$",
    ):
        load_recipe("digits", [*hard, "distill.temperature=2"])
    file = tmp_path / "soft.yaml"
    soft = load_recipe("digits", [hard[0], "distill.temperature=2"])
    file.write_text(soft.to_yaml())
    # Who switches to the first choice need not undo the file's temperature.
    assert load_recipe(file, hard[1:]).distill == load_recipe("digits", hard).distill


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
        (b"model: {name: sdt_tiny}\ndata: {name: digits}", "schedule.epochs is missing; a recipe"),
        (b"model: {name: sdt_tiny}", r"data\.name, schedule\.epochs are missing; a recipe must"),
        (b"seed: 1\nseed: 2", "'seed' stands twice"),
        (b"schedule: {epochs: 1}\nschedule.epochs: 3", "'schedule.epochs' stands twice"),
        (b"schedule.epochs: 3\nschedule: {epochs: 1}", "'schedule.epochs' stands twice"),
        (b"? [a, b]\n: 1", r"recipe.yaml is not YAML \(a key must be one word at line 1"),
        (b"? {a: b}\n: 1", "a key must be one word"),
        (b"loss: &a {x: *a}", "'loss.x' is no key of a recipe"),
        (b"[" * 20_000, "nested without end"),
        (b"seed: 1\nmodel: @", r"recipe.yaml is not YAML \(.* at line 2, column 8"),
        (b"model: sdt_tiny", "model is 'sdt_tiny'; it is a section"),
        (b"model:", "model is None; it is a section"),
        (b"seed: [1, 2]", "seed is a list; it must be a whole number: "),
        (b"seed: {a: 1}", "seed is a mapping; it must be a whole number: "),
        (b"model: [1, 2]", "model is a list; it is a section"),
        (doubling("{x: *a, y: *a}", "{x: 1}"), "'a0' is no key of a recipe"),
        (doubling("{<<: [*a, *a]}", "{x: 1}"), "'a0' is no key of a recipe"),
        (
            b"seed:\n" + doubling("[*a, *a]", "[1]", "- "),
            "seed is a list; it must be a whole number: ",
        ),
        (b"seed: !!python/object/apply:pytest.fail [the recipe ran code]", "is not YAML"),
    ],
)
def test_a_file_that_is_no_recipe_is_refused(content, message, tmp_path):
    (tmp_path / "recipe.yaml").write_bytes(content)
    with pytest.raises(ConfigError, match=message) as refusal:
        load_recipe(tmp_path / "recipe.yaml")
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize(
    "line", ["speed: 5", "seed: fast", "seed: -1", "model: 5", "distill: {hard: true}"]
)
def test_a_mistake_is_told_with_its_file_where_it_stands_in_one(line, tmp_path):
    file = tmp_path / "recipe.yaml"
    lines = ["model: {name: sdt_tiny}", "data: {name: digits}", "schedule: {epochs: 2}"]
    file.write_text("\n".join([*(kept for kept in lines if kept[:5] != line[:5]), line]))
    with pytest.raises(ConfigError) as refusal:
        load_recipe(file)
    assert str(refusal.value).startswith(f"in {file}, ")
    file.write_text("\n".join(lines))
    for setting in ("speed=5", "seed=fast", "seed=-1", "distill.hard=true"):
        with pytest.raises(ConfigError, match=r"^(?!in )"):
            load_recipe(file, [setting])


def test_a_string_of_digits_stays_a_string():
    assert load_recipe("digits", ["model.stem_pool=0011"]).model.stem_pool == "0011"
    assert load_recipe("fashion_mnist").model.stem_pool == "0110"


def test_an_unknown_recipe_lists_the_known_ones():
    with pytest.raises(ConfigError, match=r"did you mean digits\?"):
        load_recipe("digit")
    with pytest.raises(ConfigError, match="choose one of them, or give the path") as refusal:
        load_recipe("xyz")
    assert str(refusal.value).count("imagenet_8_512") == 1
