"""An exported graph gives, bit for bit, what the model gives."""

import json
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
import torch
from tests.helpers.dyadic import bytes_over_256, dyadic

import spikedriven as sd
from spikedriven.data import DataInfo
from spikedriven.errors import ConfigError
from spikedriven.export.onnx import save_onnx

onnxruntime = pytest.importorskip("onnxruntime")

EVENTS = DataInfo(
    name="made", classes=("a", "b", "c"), in_channels=2, image_size=16, mean=(0.0,) * 2,
    std=(1 / 255,) * 2, num_steps=4,
)  # fmt: skip
CONFIGS = {
    "image": sd.SDTConfig(1, 16, 3, num_steps=2, stem_pool="0011", num_heads=2),
    "frames": sd.SDTConfig(
        1, 16, 3, in_channels=2, num_steps=4, stem_pool="0101", num_heads=2, neuron="plif",
        dvs_dilation=True,
    ),
}  # fmt: skip
INFOS = {"image": None, "frames": EVENTS}


def some(kind: str, batch: int, seed: int = 0) -> torch.Tensor:
    config = CONFIGS[kind]
    frames = (config.num_steps,) if kind == "frames" else ()
    return bytes_over_256(batch, *frames, config.in_channels, 16, 16, seed=seed)


@pytest.fixture(scope="module", params=CONFIGS)
def exported(request, tmp_path_factory) -> tuple[str, sd.SpikeDrivenTransformer, Path]:
    model = dyadic(CONFIGS[request.param], some(request.param, 4))
    path = tmp_path_factory.mktemp("onnx") / "model.onnx"
    save_onnx(model, path, 16, info=INFOS[request.param])
    return request.param, model, path


@torch.inference_mode()
def test_onnxruntime_gives_the_models_logits_for_any_batch(exported):
    kind, model, path = exported
    session = onnxruntime.InferenceSession(path)
    for batch in (1, 2, 5):
        x = some(kind, batch, seed=batch)
        logits, steps = session.run(None, {"x": x.numpy()})
        assert np.array_equal(steps, model.forward_steps(x).numpy())
        assert np.array_equal(logits, model(x).numpy())
        assert len(np.unique(steps)) > 3


def test_the_file_says_what_it_was_trained_on(exported):
    import onnx

    kind, _, path = exported
    stored = {entry.key: entry.value for entry in onnx.load(path).metadata_props}
    if INFOS[kind] is None:
        assert "data" not in stored
    else:
        assert json.loads(stored["data"]) == json.loads(json.dumps(asdict(EVENTS)))


def test_what_cannot_be_exported_is_refused(tmp_path):
    model = sd.SpikeDrivenTransformer(CONFIGS["image"])
    with pytest.raises(ConfigError, match="training mode"):
        save_onnx(model, tmp_path / "a.onnx", 16)
    with pytest.raises(ConfigError, match="float64"):
        save_onnx(model.eval().double(), tmp_path / "a.onnx", 16)
    with pytest.raises(ConfigError, match="multiple of 4"):
        save_onnx(model.float(), tmp_path / "a.onnx", 18)
    assert not list(tmp_path.iterdir())
