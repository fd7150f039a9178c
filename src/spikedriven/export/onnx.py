"""The network as an ONNX graph: evaluation mode, every time step unrolled."""

import json
from dataclasses import asdict
from pathlib import Path

import torch
from torch import Tensor, nn

from spikedriven.data import DataInfo
from spikedriven.errors import ConfigError
from spikedriven.models.sdt import SpikeDrivenTransformer
from spikedriven.records import write_whole

OPSET = 20


class _Outputs(nn.Module):
    """Both answers of one pass."""

    def __init__(self, model: SpikeDrivenTransformer) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        steps = self.model.forward_steps(x)
        return steps.mean(0), steps


def save_onnx(
    model: SpikeDrivenTransformer,
    path: str | Path,
    image_size: int,
    *,
    info: DataInfo | None = None,
) -> None:
    """Write a model as one ONNX file.

    The graph takes `x`, float32 [B, C, H, W], or [B, T, C, H, W] where `info` is of event data, as
    the model takes it: normalised. It gives `logits` [B, K], the mean over time, and `steps`
    [T, B, K]. B is free; T, H and W are fixed. Spikes are floats that are 0 or 1: the file is for
    exchange, and a runtime multiplies where the engine adds.

    Args:
        model: Model in evaluation mode, in float32.
        path: File to write, by custom `*.onnx`.
        image_size: H = W, a multiple of the model's stride.
        info: The data it was trained on; kept as JSON in the file's metadata under `data`.

    Raises:
        ConfigError: The model is in training mode, of another precision, or `image_size` does not
            fit it.
        CheckpointError: The file cannot be written.
    """
    config = model.config
    dtype = next(model.parameters()).dtype
    if model.training or dtype != torch.float32:
        raise ConfigError(
            f"the model is {dtype} and in {'training' if model.training else 'evaluation'} mode; "
            "ONNX takes float32 in evaluation mode: call .float().eval() first"
        )
    if image_size < 1 or image_size % config.stride:
        raise ConfigError(
            f"image_size is {image_size}; it must be a multiple of {config.stride}, the pixels of "
            "a token: choose another"
        )
    is_event = info is not None and info.num_steps is not None
    frames = (config.num_steps,) if is_event else ()
    # Two samples, for a batch of one would be taken for fixed.
    x = torch.zeros(2, *frames, config.in_channels, image_size, image_size)
    exported = torch.onnx.export(
        _Outputs(model).eval(),
        (x,),
        dynamo=True,
        verbose=False,
        opset_version=OPSET,
        input_names=["x"],
        output_names=["logits", "steps"],
        dynamic_shapes=({0: torch.export.Dim("B")},),
    )
    assert exported is not None
    written = exported.model_proto
    written.producer_name = "spikedriven"
    if info is not None:
        entry = written.metadata_props.add()
        entry.key, entry.value = "data", json.dumps(asdict(info))
    write_whole(Path(path), written.SerializeToString())
