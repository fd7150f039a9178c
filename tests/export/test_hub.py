"""A model's folder gives the model back, and whatever contradicts itself is refused."""

import json
from dataclasses import asdict

import huggingface_hub
import pytest
import torch
from huggingface_hub.errors import LocalEntryNotFoundError
from tests.helpers.lively import lively

import spikedriven as sd
from spikedriven.data import DataInfo
from spikedriven.errors import CheckpointError, ConfigError
from spikedriven.export.hub import from_pretrained, push_to_hub, save_pretrained

CONFIG = sd.SDTConfig(1, 16, 3, stem_pool="0011", num_heads=2, neuron="plif")
INFO = DataInfo(
    name="made", classes=("a", "b", "c"), in_channels=3, image_size=16, mean=(0.5,) * 3,
    std=(0.25,) * 3,
)  # fmt: skip


@pytest.fixture
def folder(tmp_path):
    save_pretrained(lively(CONFIG), tmp_path / "model", info=INFO)
    return tmp_path / "model"


def test_a_folder_gives_back_the_model(folder):
    x = torch.rand(2, 3, 16, 16)
    loaded, saved = from_pretrained(folder), lively(CONFIG)
    assert not loaded.training
    assert torch.equal(loaded(x), saved(x))
    assert saved(x).std() > 0
    stored = json.loads((folder / "config.json").read_text())
    assert stored["model"] == asdict(CONFIG)
    assert stored["data"]["classes"] == ["a", "b", "c"]


def test_a_repository_is_fetched_file_by_file(folder, monkeypatch):
    asked = []

    def fetched(name, file, revision=None):
        asked.append((name, file, revision))
        return str(folder / file)

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", fetched)
    assert from_pretrained("someone/net", revision="v1").config == CONFIG
    assert asked == [
        ("someone/net", "model.safetensors", "v1"),
        ("someone/net", "config.json", "v1"),
    ]


def test_a_repository_that_cannot_be_had_is_named(monkeypatch):
    def fetched(*_arguments, **_options):
        raise LocalEntryNotFoundError("no connection\nand more")

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", fetched)
    with pytest.raises(CheckpointError, match=r"^someone/net is no folder .*\(no connection\);"):
        from_pretrained("someone/net")
    monkeypatch.undo()
    with pytest.raises(CheckpointError, match="no/such/folder is no folder"):
        from_pretrained("no/such/folder")


def test_what_is_uploaded_is_the_folder(monkeypatch):
    seen = {}

    class Hub:
        def create_repo(self, name, private, exist_ok):
            seen.update(name=name, private=private, exist_ok=exist_ok)

        def upload_folder(self, repo_id, folder_path):
            assert repo_id == seen["name"]
            seen["config"] = from_pretrained(folder_path).config
            return "https://hub/commit"

    monkeypatch.setattr(huggingface_hub, "HfApi", Hub)
    assert push_to_hub(lively(CONFIG), "someone/net", private=True) == "https://hub/commit"
    assert seen == {"name": "someone/net", "private": True, "exist_ok": True, "config": CONFIG}


def test_a_folder_that_contradicts_itself_is_refused(folder):
    config = folder / "config.json"
    stored = json.loads(config.read_text())
    config.write_text(json.dumps({**stored, "model": {**stored["model"], "num_steps": 9}}))
    with pytest.raises(CheckpointError, match="describes another model"):
        from_pretrained(folder)
    config.write_text("{}")
    with pytest.raises(CheckpointError, match="is no config of a model"):
        from_pretrained(folder)
    config.unlink()
    with pytest.raises(CheckpointError, match="is no config of a model"):
        from_pretrained(folder)
    (folder / "model.safetensors").unlink()
    with pytest.raises(CheckpointError, match="cannot be read"):
        from_pretrained(folder)


def test_a_folder_has_no_revision_and_a_file_is_no_folder(folder):
    with pytest.raises(ConfigError, match="has no revision 'v1'"):
        from_pretrained(folder, revision="v1")
    with pytest.raises(CheckpointError, match="cannot be made"):
        save_pretrained(lively(CONFIG), folder / "config.json")
