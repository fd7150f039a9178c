"""A model as one safetensors file: its weights, and its config in the header."""

import json
from dataclasses import asdict
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from spikedriven.errors import CheckpointError, ConfigError
from spikedriven.models.sdt import SDTConfig, SpikeDrivenTransformer
from spikedriven.records import write_whole

FORMAT = "spikedriven-1"


def save_model(model: SpikeDrivenTransformer, path: str | Path) -> None:
    """Save weights and config; a failure leaves an older file at `path` whole.

    Args:
        model: Model to save.
        path: File to write, by custom `*.safetensors`.

    Raises:
        CheckpointError: The file cannot be written.
    """
    tensors = {name: _plain(tensor) for name, tensor in model.state_dict().items()}
    metadata = {"format": FORMAT, "config": json.dumps(asdict(model.config))}
    write_whole(Path(path), save(tensors, metadata))


def load_model(path: str | Path) -> SpikeDrivenTransformer:
    """Load a model that `save_model` wrote, in evaluation mode and in the file's dtype.

    Args:
        path: File to read. Reading runs no code from it.

    Returns:
        The model, on the CPU.

    Raises:
        CheckpointError: The file is missing, damaged, of another kind or a newer format.
    """
    metadata, tensors = read_safetensors(Path(path))
    if metadata.get("format") != FORMAT:
        raise CheckpointError(
            f"{path} is marked {metadata.get('format', 'without a format')}; this version reads "
            f"{FORMAT}: save it with save_model, or read released files with load_official"
        )
    try:
        config = SDTConfig(**json.loads(metadata["config"]))
    except (KeyError, TypeError, ValueError, ConfigError) as error:
        raise CheckpointError(
            f"{path} has no usable config in its header ({error}); it must be the one that "
            "save_model wrote: save it again"
        ) from error
    model = SpikeDrivenTransformer(config)
    fill(model, tensors, str(path))
    return model.eval()


def read_safetensors(path: Path) -> tuple[dict[str, str], dict[str, Tensor]]:
    """Return header and tensors of a safetensors file.

    Raises:
        CheckpointError: The file is missing or damaged.
    """
    try:
        with safe_open(path, framework="pt") as file:
            return file.metadata() or {}, {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - no mapping
    except (OSError, SafetensorError) as error:
        raise CheckpointError(
            f"{path} cannot be read as safetensors ({error}); it must be a whole file: "
            "copy it again or choose another"
        ) from error


def fill(model: SpikeDrivenTransformer, tensors: dict[str, Tensor], source: str) -> None:
    """Put `tensors` into `model`, which takes their dtype; every key and shape must fit.

    Raises:
        CheckpointError: A key is missing or foreign, or a shape differs; `source` is named.
    """
    own = model.state_dict()
    for problem, names in (
        ("lacks", sorted(own.keys() - tensors.keys())),
        ("has the foreign key", sorted(tensors.keys() - own.keys())),
    ):
        if names:
            raise CheckpointError(
                f"{source} {problem} {names[0]!r} ({len(names)} such); it must hold exactly this "
                "model's tensors: choose the file that belongs to it"
            )
    for name, tensor in tensors.items():
        if tensor.shape != own[name].shape:
            raise CheckpointError(
                f"{source} holds {name!r} as {list(tensor.shape)}; this model has "
                f"{list(own[name].shape)}: choose the file that belongs to it"
            )
    model.to(next(t.dtype for t in tensors.values() if t.is_floating_point()))
    model.load_state_dict(tensors)


def _plain(tensor: Tensor) -> Tensor:
    return tensor.detach().cpu().contiguous(memory_format=torch.contiguous_format).clone()
