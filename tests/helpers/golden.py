"""The released code's figures: five small networks, every spike and every gradient, float64."""

import ast
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import torch

import spikedriven as sd

FOLDER = Path(__file__).parents[1] / "golden"
NAMES = ["cifar_tiny", "imagenet_tiny", "gesture_tiny", "plif_tiny", "dvs_tiny"]


@dataclass(frozen=True)
class Golden:
    """One file of figures."""

    name: str

    @cached_property
    def file(self):
        return np.load(FOLDER / f"{self.name}.npz")

    @cached_property
    def config(self) -> dict:
        return ast.literal_eval(str(self.file["config"]))

    def tensors(self, prefix: str) -> dict[str, torch.Tensor]:
        return {
            key.removeprefix(prefix): torch.from_numpy(self.file[key])
            for key in self.file.files
            if key.startswith(prefix)
        }

    def __getitem__(self, key: str) -> torch.Tensor:
        return torch.from_numpy(self.file[key])

    def spikes(self, hook: str) -> torch.Tensor:
        shape = self.file[f"eval/shape/{hook}"]
        bits = np.unpackbits(self.file[f"eval/spikes/{hook}"])[: shape.prod()]
        return torch.from_numpy(bits.reshape(shape).astype(bool))

    def model(self) -> sd.SpikeDrivenTransformer:
        return sd.load_official(self.tensors("param/"), **self.hidden_arguments)

    @property
    def hidden_arguments(self) -> dict:
        """Return what no tensor shows."""
        return {
            "num_steps": self.config["T"],
            "stem_pool": self.config["pooling_stat"],
            "num_heads": self.config["num_heads"],
            "dvs_dilation": self.config["dvs_mode"],
        }

    def logits(self, model: sd.SpikeDrivenTransformer) -> torch.Tensor:
        ask = model.forward_steps if self.config["TET"] else model
        return ask(self["input"])
