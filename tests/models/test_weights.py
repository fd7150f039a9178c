"""A model file is whole or refused, and the old one survives a failure."""

import os

import pytest
import torch

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
    from safetensors.torch import save_file

    save_file({"x": torch.zeros(1)}, tmp_path / "m.safetensors")
    with pytest.raises(CheckpointError, match="spikedriven-1"):
        load_model(tmp_path / "m.safetensors")


def test_a_missing_folder_is_refused(model, tmp_path):
    with pytest.raises(CheckpointError, match="could not be written"):
        save_model(model, tmp_path / "none" / "m.safetensors")
