"""A model file is whole or refused, and the old one survives a failure."""

import json
import os

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

import spikedriven as sd
from spikedriven.errors import CheckpointError
from spikedriven.models.weights import load_model, save_model

TINY = sd.SDTConfig(1, 16, 3, num_steps=2, stem_pool="0011", neuron="plif")


@pytest.fixture
def model() -> sd.SpikeDrivenTransformer:
    return sd.SpikeDrivenTransformer(TINY).eval()


def test_saving_and_loading_gives_the_same_model(model, tmp_path):
    save_model(model, tmp_path / "m.safetensors")
    loaded = load_model(tmp_path / "m.safetensors")
    x = torch.randn(2, 3, 8, 8)
    assert loaded.config == TINY
    assert torch.equal(loaded(x), model(x))


def test_a_full_disk_leaves_the_old_file_whole(model, tmp_path, monkeypatch):
    path = tmp_path / "m.safetensors"
    save_model(model, path)
    before = path.read_bytes()

    def full(_handle):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(CheckpointError, match="No space left"):
        save_model(sd.SpikeDrivenTransformer(TINY), path)
    assert path.read_bytes() == before
    assert [entry.name for entry in tmp_path.iterdir()] == ["m.safetensors"]


def test_a_cut_file_is_refused(model, tmp_path):
    path = tmp_path / "m.safetensors"
    save_model(model, path)
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(CheckpointError, match="whole file"):
        load_model(path)


def test_a_file_without_our_mark_is_refused(tmp_path):
    save_file({"x": torch.zeros(1)}, tmp_path / "m.safetensors")
    with pytest.raises(CheckpointError, match="spikedriven-1"):
        load_model(tmp_path / "m.safetensors")


def test_a_missing_folder_is_refused(model, tmp_path):
    with pytest.raises(CheckpointError, match="could not be written"):
        save_model(model, tmp_path / "none" / "m.safetensors")


def altered(path, tensors=None, **fields) -> None:
    """Write a file over again with other tensors, or with another config in its header."""
    with safe_open(path, framework="pt") as file:
        metadata = file.metadata()
        stored = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - no mapping
    config = json.dumps(json.loads(metadata["config"]) | fields)
    merged = {name: tensor.contiguous() for name, tensor in (stored | (tensors or {})).items()}
    save_file(merged, path, metadata | {"config": config})


@pytest.mark.parametrize("poison", [float("nan"), float("inf")])
@pytest.mark.parametrize("name", ["head.bias", "blocks.0.mlp.expand.norm.running_var"])
def test_weights_that_are_not_finite_are_refused_by_name(model, tmp_path, name, poison):
    tensor = model.state_dict()[name].clone()
    tensor[-1] = poison
    save_model(model, tmp_path / "m.safetensors")
    altered(tmp_path / "m.safetensors", {name: tensor})
    with pytest.raises(CheckpointError, match=f"NaN or infinity in '{name}'"):
        load_model(tmp_path / "m.safetensors")


@pytest.mark.parametrize(
    ("field", "message"),
    [
        ({"depth": 300_000}, "a model of depth 300000, as it says it is, has more"),
        ({"depth": 2}, "lacks 'blocks.1.attention"),
        ({"width": 200_000}, r"'head.weight' as \[3, 16\]; this model has \[3, 200000\]"),
        ({"num_classes": 10**6}, "holds 'head.weight'"),
        ({"in_channels": 10**6}, "holds 'stem.image.conv.weight'"),
        ({"mlp_ratio": 6e4}, "holds 'blocks.0.mlp.expand.conv.weight'"),
        ({"num_classes": 10**12}, "num_classes is 1000000000000; it must be at most 1048576"),
    ],
)
def test_a_header_that_claims_a_giant_is_refused_before_one_is_built(
    model, tmp_path, field, message
):
    save_model(model, tmp_path / "m.safetensors")
    altered(tmp_path / "m.safetensors", **field)
    with pytest.raises(CheckpointError, match=message):
        load_model(tmp_path / "m.safetensors")


def test_a_header_nested_without_end_is_refused(tmp_path):
    path = tmp_path / "m.safetensors"
    nested = "[" * 100_000 + "]" * 100_000
    save_file({"x": torch.zeros(1)}, path, {"format": "spikedriven-1", "config": nested})
    with pytest.raises(CheckpointError, match="no usable config"):
        load_model(path)


@pytest.mark.parametrize("dtype", [torch.int64, torch.uint8, torch.complex64, torch.float8_e4m3fn])
def test_weights_of_a_type_that_no_model_has_are_refused(model, tmp_path, dtype):
    tensors = {name: tensor.to(dtype) for name, tensor in model.state_dict().items()}
    save_model(model, tmp_path / "m.safetensors")
    altered(tmp_path / "m.safetensors", tensors)
    with pytest.raises(CheckpointError, match="weights must be real numbers of 16 bits or more"):
        load_model(tmp_path / "m.safetensors")


def test_of_two_dtypes_the_model_takes_the_one_that_loses_nothing(model, tmp_path):
    model.double().head.bias.data.fill_(1 / 3)
    save_model(model, tmp_path / "m.safetensors")
    altered(tmp_path / "m.safetensors", {"blocks.0.attention.fire.w": torch.zeros(()).half()})
    assert torch.equal(load_model(tmp_path / "m.safetensors").head.bias, model.head.bias)


def test_a_loaded_model_lies_channels_last_as_a_new_one_does(model, tmp_path):
    save_model(model, tmp_path / "m.safetensors")
    loaded = load_model(tmp_path / "m.safetensors")
    strides = [{n: p.stride() for n, p in m.named_parameters()} for m in (model, loaded)]
    assert strides[0] == strides[1]
    assert all(p.requires_grad for p in loaded.parameters())
