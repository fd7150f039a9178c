"""A program in its one file: it comes back whole, or with a sentence that says why not."""

import copy
import json
import pickle
from dataclasses import fields, is_dataclass, replace

import numpy as np
import pytest
import torch
from safetensors.numpy import load, save_file
from safetensors.torch import save_file as save_torch_file
from tests.helpers.lively import some_images

import spikedriven as sd
from spikedriven.engine import plan as plan_module
from spikedriven.engine.plan import FORMAT, FireStep, PoolStep, Program, StreamStep
from spikedriven.errors import CheckpointError, ConfigError

TINY = sd.SDTConfig(1, 16, 3, in_channels=1, stem_pool="0011", num_heads=2)
MODELS = {
    "int8": (TINY, "int8"),
    "int16": (TINY, "int16"),
    "plif": (replace(TINY, neuron="plif", dvs_dilation=True), "int8"),
}


def program_of(name="int8", **settings):
    torch.manual_seed(0)
    config, weights = MODELS[name]
    model = sd.SpikeDrivenTransformer(config).eval()
    for key, parameter in model.named_parameters():
        if key.endswith(".w"):  # some gates below one half, with neurons of their own
            parameter.data = torch.tensor(-0.3)
    return sd.compile(model, weights, **settings)


def differences(a, b, name="program"):
    """List every place at which two values differ: in type, in kind of number, in a number."""
    if type(a) is not type(b):
        return [f"{name}: {type(a)} is not {type(b)}"]
    if isinstance(a, np.ndarray):
        same = a.dtype == b.dtype and np.array_equal(a, b)
        return [] if same else [f"{name}: other numbers"]
    if is_dataclass(a):
        pairs = [(f.name, getattr(a, f.name), getattr(b, f.name)) for f in fields(a)]
    elif isinstance(a, tuple):
        pairs = [(len(a), len(a), len(b))] if len(a) != len(b) else []
        pairs += [(n, x, y) for n, (x, y) in enumerate(zip(a, b, strict=False))]
    else:
        return [] if a == b else [f"{name}: {a} is not {b}"]
    return [place for part, x, y in pairs for place in differences(x, y, f"{name}/{part}")]


def refusal(path):
    """Return the sentence with which a file is refused."""
    with pytest.raises(CheckpointError) as raised:
        Program.load(path)
    sentence = str(raised.value)
    assert str(path) in sentence
    assert "\n" not in sentence
    return sentence


@pytest.fixture
def saved(tmp_path):
    path = tmp_path / "net.spk"
    program_of().save(path)
    return path


# ------------------------------------------------------------------ there and back


@pytest.mark.parametrize("name", MODELS)
def test_a_program_comes_back_as_it_was(name, tmp_path):
    settings = {"mean": (0.2,), "std": (0.7,), "image_size": 16, "classes": ("a", "b", "ü")}
    program = program_of(name, **settings)
    program.save(tmp_path / "net.spk")
    assert differences(Program.load(tmp_path / "net.spk"), program) == []


def test_the_comparison_of_programs_can_fail():
    program = program_of()
    image = program.steps[0]
    weight = image.weight.copy()
    weight[0, 0, 0, 0] += 1
    for other in (
        replace(program, weights="int16"),
        replace(program, steps=program.steps[:-1]),
        replace(program, steps=(replace(image, weight=weight), *program.steps[1:])),
        replace(program, steps=(replace(image, bias=image.bias.astype(float)), *program.steps[1:])),
    ):
        assert len(differences(other, program)) == 1


def test_a_loaded_program_computes_the_same_logits(saved):
    x = some_images(3, 1, 16, 16)
    (a, _), (b, _) = program_of().run(x), Program.load(saved).run(x)
    assert np.array_equal(a, b)


def test_a_new_program_replaces_the_old(saved):
    program_of("int16").save(saved)
    assert Program.load(saved).weights == "int16"
    assert [path.name for path in saved.parent.iterdir()] == [saved.name]


# ------------------------------------------------------------------ files that are none


def test_a_file_of_weights_in_a_type_that_numpy_lacks_is_no_program(tmp_path):
    path = tmp_path / "weights.safetensors"
    save_torch_file({"weight": torch.zeros(2, dtype=torch.bfloat16)}, path)
    assert "is no compiled program" in refusal(path)


def test_every_altered_byte_is_found_out(saved):
    content = saved.read_bytes()
    header = 8 + int.from_bytes(content[:8], "little")
    for at in [*range(0, header, 5), *range(header, len(content), 50)]:
        altered = bytearray(content)
        altered[at] ^= 0x20
        saved.write_bytes(altered)
        refusal(saved)


def test_an_altered_weight_is_called_altered(saved):
    content = bytearray(saved.read_bytes())
    content[-1] ^= 1
    saved.write_bytes(content)
    assert "was altered after it was written" in refusal(saved)


def test_every_cut_file_is_refused(saved):
    content = saved.read_bytes()
    for length in [0, 1, 7, 8, 9, *range(10, len(content), 101), len(content) - 1]:
        saved.write_bytes(content[:length])
        assert "it must be a whole compiled program" in refusal(saved)


def test_a_file_with_something_behind_it_is_refused(saved):
    saved.write_bytes(saved.read_bytes() + b"\0")
    refusal(saved)


def rewritten(path, **changes):
    """Write the same tensors with other words in front of them."""
    content = path.read_bytes()
    header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
    meta = {key: text for key, text in {**header["__metadata__"], **changes}.items() if text}
    save_file(load(content), path, meta)


def test_a_newer_format_says_what_to_upgrade(saved):
    rewritten(saved, spikedriven_program=str(FORMAT + 1))
    assert f"has format {FORMAT + 1}; this spikedriven reads" in refusal(saved)


def test_a_format_that_never_was_is_refused(saved):
    rewritten(saved, spikedriven_program="0")
    refusal(saved)


@pytest.mark.parametrize("missing", ["spikedriven_program", "plan"])
def test_other_safetensors_are_no_program(saved, missing):
    rewritten(saved, **{missing: ""})
    assert "is no compiled program" in refusal(saved)


def test_a_program_without_its_hash_is_refused(saved):
    rewritten(saved, sha256="")
    assert "was altered" in refusal(saved)


def test_rewriting_nothing_is_no_alteration(saved):
    rewritten(saved)
    assert differences(Program.load(saved), program_of()) == []


@pytest.mark.parametrize("name", ["missing.spk", "."])
def test_what_is_no_file_is_refused(tmp_path, name):
    assert "is not a file" in refusal(tmp_path / name)


# ------------------------------------------------------------------ plans that do not fit


def forged(path, plan):
    """Write a plan of one's own, hashed as if it were ours."""
    content = path.read_bytes()
    rewritten(path, plan=plan, sha256=plan_module._hash(str(FORMAT), plan, load(content)))


def changed(whole, path, change):
    """Return a dataclass with another value in a field, or in a field of a field."""
    name, _, rest = path.partition("/")
    value = getattr(whole, name)
    return replace(whole, **{name: changed(value, rest, change) if rest else change(value)})


def edited(program, step, path, change):
    """Return a program with another value in a step, or in itself."""
    if not step:
        return changed(program, path, change)
    assert step in [s.name for s in program.steps]
    steps = [changed(s, path, change) if s.name == step else s for s in program.steps]
    return replace(program, steps=tuple(steps))


def const(value):
    return lambda _: value


def twice(axis):
    return lambda x: np.concatenate([x, x], axis)


def pooled_before(steps, name):
    """Give a step spikes of half the size."""
    for place, step in enumerate(steps):
        if step.name == name:
            pool = PoolStep(name="pooled", source=step.source)
            return (*steps[:place], pool, replace(step, source="pooled"), *steps[place + 1 :])
    raise AssertionError(name)


# step, field, change
EDITS = [
    ("", "weights", const("int16")),
    ("", "weights", const("int4")),
    ("", "input", const(None)),
    ("", "input/channels", const("1")),
    ("", "input/channels", const(True)),
    ("", "input/num_steps", const(0)),
    ("", "input/stride", const(2)),
    ("", "input/size", const(-16)),
    ("", "input/mean", const((0.0,) * 3)),
    ("", "input/std", const((0.0,))),
    ("", "input/std", const(("1",))),
    ("", "steps", const(())),
    ("", "steps", lambda steps: steps[1:]),
    ("", "steps", lambda steps: steps[:-1]),
    ("", "steps", lambda steps: (steps[0], *steps)),
    ("", "steps", lambda steps: (steps[0], steps[-1])),
    ("", "steps", lambda steps: (*steps[:-1], steps[1], steps[-1])),
    ("", "steps", lambda steps: pooled_before(steps, "blocks.0.attention.project")),
    ("", "classes", const(("a",) * 4)),
    ("", "classes", const((1, 2, 3))),
    ("stem.fourth", "name", const("")),
    ("stem.image", "weight", twice(2)),
    ("stem.image", "bias", lambda x: x[:15]),
    ("stem.second", "weight", lambda x: x[:, :, :-1]),
    ("stem.second", "source", const("head_lif")),
    ("stem.third", "name", const("stem.second")),
    ("stem.third", "weight", lambda x: x[:2, :2]),
    ("stem.third", "weight", lambda x: x.astype(np.float32)),
    ("stem.third", "weight", lambda x: x[..., :0]),
    ("stem.third", "weight", const(3)),
    ("stem.third", "neuron", const(None)),
    ("stem.third", "neuron/theta", twice(0)),
    ("stem.third", "neuron/leak", const(())),
    ("stem.third", "neuron/leak", const((32,))),
    ("stem.third", "up", const(32)),
    ("stem.fourth", "bias", lambda x: x[:-1]),
    ("stem.fourth", "gain", lambda x: x * 0 + 9),
    ("stem.fourth", "down", const(1.0)),
    ("stem.fourth", "begins", const(False)),
    ("stem.fourth", "neuron", const(None)),
    ("stem.position", "begins", const(True)),
    ("stem.position", "pool", const(True)),
    ("stem.position", "pool", const(0)),
    ("stem.position", "source", const("stem.third")),
    ("stem.position", "weight", lambda x: x[..., :-1]),
    ("stem.position", "emits", const("")),
    ("blocks.0.mlp.contract", "emits", const("more")),
    ("blocks.0.attention.masked", "key", const("stem.third")),
    ("blocks.0.attention.masked", "key", const("blocks.0.attention.query")),
    ("blocks.0.attention.project", "source", const("blocks.0.attention.query")),
    ("blocks.0.attention.masked", "channels", const(99)),
    ("blocks.0.attention.masked", "dilation_heads", const(3)),
    ("head_lif", "weight", twice(0)),
    ("head_lif", "bias", lambda x: x[:-1]),
    ("head_lif", "scale", const(float("inf"))),
    ("head_lif", "scale", const(np.ones((90, 3)))),
]


@pytest.mark.parametrize(("step", "path", "change"), EDITS)
def test_a_plan_whose_parts_do_not_fit_is_refused_however_it_is_hashed(
    step, path, change, tmp_path
):
    program = program_of()
    wrong = edited(program, step, path, change)
    assert differences(wrong, program)
    wrong.save(tmp_path / "net.spk")
    sentence = refusal(tmp_path / "net.spk")
    assert "holds a plan that cannot be run" in sentence
    assert "it must be" in sentence


def test_weights_of_neither_width_are_refused(tmp_path):
    program = replace(program_of(), weights="int32")
    for step in program.steps:
        if isinstance(step, FireStep | StreamStep):
            program = edited(program, step.name, "weight", lambda x: x.astype(np.int32))
    program.save(tmp_path / "net.spk")
    assert "weights is int32; it must be int8 or int16" in refusal(tmp_path / "net.spk")


def test_a_layer_of_more_rows_than_an_event_can_name_is_refused(tmp_path):
    program = edited(program_of(), "stem.image", "weight", lambda x: np.resize(x, (3, 3, 1, 8200)))
    program = edited(program, "stem.image", "bias", lambda x: np.resize(x, (16, 8200)))
    program = edited(program, "stem.image", "neuron/theta", lambda x: np.resize(x, 8200))
    program = edited(program, "stem.second", "weight", lambda x: np.resize(x, (3, 3, 8200, 4)))
    program.save(tmp_path / "net.spk")
    assert "stem.second.weight is 8256 rows a tap; it must be at most 8191" in refusal(
        tmp_path / "net.spk"
    )


@pytest.mark.parametrize(
    "plan", ["", "[]", "{}", "3", '{"kind": "Program"}', '{"kind": "Nothing"}', '{"tensor": "no"}']
)
def test_a_plan_of_other_words_is_refused_however_it_is_hashed(plan, saved):
    if not plan:
        plan = json.dumps({"kind": "Program", "weights": "int8"})
    forged(saved, plan)
    assert "holds a plan" in refusal(saved)


# ------------------------------------------------------------------ equal programs


@pytest.mark.parametrize("name", MODELS)
def test_programs_of_the_same_numbers_are_equal(name):
    a, b = program_of(name), program_of(name)
    assert a == b
    assert len({a, b}) == 1
    assert a != replace(b, classes=("a", "b", "c"))
    assert a != edited(b, "head_lif", "bias", lambda x: x + 1)
    assert a != "a program"


@pytest.mark.parametrize(
    "through", [copy.deepcopy, lambda p: pickle.loads(pickle.dumps(p))], ids=["copied", "pickled"]
)
def test_a_program_that_has_run_is_still_plain_data(through):
    program = program_of()
    x = some_images(2, 1, 16, 16)
    wanted, _ = program.run(x)
    same = through(program)
    assert same == program
    assert np.array_equal(same.run(x)[0], wanted)


# ------------------------------------------------------------------ places that cannot be written


def test_a_missing_folder_is_refused(tmp_path):
    with pytest.raises(CheckpointError, match="could not be written") as raised:
        program_of().save(tmp_path / "none" / "net.spk")
    assert "\n" not in str(raised.value)
    assert list(tmp_path.iterdir()) == []


def test_a_disk_that_is_full_leaves_the_old_program_whole(saved, monkeypatch):
    before = saved.read_bytes()

    def full(_handle):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(CheckpointError, match="No space left on device"):
        program_of("int16").save(saved)
    assert saved.read_bytes() == before
    assert [path.name for path in saved.parent.iterdir()] == [saved.name]


def test_a_folder_in_the_files_place_stays(tmp_path):
    place = tmp_path / "net.spk"
    place.mkdir()
    with pytest.raises(CheckpointError, match="could not be written"):
        program_of().save(place)
    assert [path.name for path in tmp_path.iterdir()] == ["net.spk"]


def test_an_unknown_kind_of_weights_is_refused():
    with pytest.raises(ConfigError, match=r"weights is 'int4'; it must be int16 .* or int8"):
        sd.compile(sd.SpikeDrivenTransformer(TINY).eval(), "int4")
