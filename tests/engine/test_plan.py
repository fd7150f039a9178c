"""A program in its one file: it comes back whole, or with a sentence that says why not."""

import json
from dataclasses import fields, is_dataclass, replace

import numpy as np
import pytest
import torch
from safetensors.numpy import load, save_file
from safetensors.torch import save_file as save_torch_file
from tests.helpers.lively import some_images

import spikedriven as sd
from spikedriven.engine.plan import FORMAT, Program
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
