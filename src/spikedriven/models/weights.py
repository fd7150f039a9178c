"""A model as one safetensors file: its weights, and its config in the header."""

import json
from collections.abc import Mapping
from dataclasses import asdict, replace
from functools import reduce
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from spikedriven.errors import CheckpointError, ConfigError
from spikedriven.models.sdt import SDTConfig, SpikeDrivenTransformer
from spikedriven.records import write_whole

FORMAT = "spikedriven-1"

_FLOATS = (torch.float64, torch.float32, torch.bfloat16, torch.float16)


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
        CheckpointError: The file is missing, damaged, of another kind or a newer format, or a
            weight is not finite.
    """
    metadata, tensors = read_safetensors(Path(path))
    if metadata.get("format") != FORMAT:
        raise CheckpointError(
            f"{path} is marked {metadata.get('format', 'without a format')}; this version reads "
            f"{FORMAT}: save it with save_model, or read released files with load_official"
        )
    try:
        config = SDTConfig(**json.loads(metadata["config"]))
    except (KeyError, TypeError, ValueError, RecursionError, ConfigError) as error:
        raise CheckpointError(
            f"{path} has no usable config in its header ({error}); it must be the one that "
            "save_model wrote: save it again"
        ) from error
    return build(config, tensors, str(path)).eval()


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


def build(config: SDTConfig, tensors: Mapping[str, Tensor], source: str) -> SpikeDrivenTransformer:
    """Return the model that holds `tensors`, in their dtype; memory is taken once all of them fit.

    Raises:
        CheckpointError: As in `fill`.
    """
    _check_shapes({"head.weight": torch.Size((config.num_classes, config.width))}, tensors, source)
    if config.depth > len(tensors):
        raise CheckpointError(
            f"{source} holds {len(tensors)} tensors; a model of depth {config.depth}, as it says "
            "it is, has more: choose a file that save_model wrote"
        )
    with torch.device("meta"):
        one = SpikeDrivenTransformer(replace(config, depth=1)).state_dict()
    wanted = {  # All blocks are alike: one tells, at no cost, what each must hold.
        name.replace("blocks.0.", f"blocks.{n}.", 1): tensor.shape
        for name, tensor in one.items()
        for n in range(config.depth if name.startswith("blocks.") else 1)
    }
    _check(wanted, tensors, source)
    with torch.device("meta"):
        model = SpikeDrivenTransformer(config)
    model.to(_dtype(tensors)).to_empty(device="cpu").load_state_dict(tensors)
    return model


def fill(model: SpikeDrivenTransformer, tensors: Mapping[str, Tensor], source: str) -> None:
    """Put `tensors` into `model`, which takes their dtype; every key and shape must fit.

    Raises:
        CheckpointError: A key is missing or foreign, a shape differs, or a tensor holds other than
            finite numbers; `source` is named.
    """
    _check({name: own.shape for name, own in model.state_dict().items()}, tensors, source)
    model.to(_dtype(tensors))
    model.load_state_dict(tensors)


def check_dense(name: str, tensor: Tensor, source: str) -> None:
    """Refuse a tensor whose shape cannot be taken at its word.

    Raises:
        CheckpointError: It is sparse, nested, quantised, without content, or a view of fewer
            numbers than it claims.
    """
    if not _is_whole(tensor):
        raise CheckpointError(
            f"{source} holds {name!r} as {tensor.layout} on {tensor.device.type}, not every "
            "number by itself; tensors must be dense: save it with its to_dense().clone()"
        )


def _check(wanted: Mapping[str, torch.Size], tensors: Mapping[str, Tensor], source: str) -> None:
    _check_shapes(wanted, tensors, source)
    if foreign := sorted(tensors.keys() - wanted.keys()):
        raise CheckpointError(
            f"{source} has the foreign key {foreign[0]!r} ({len(foreign)} such); it must hold "
            "exactly this model's tensors: choose the file that belongs to it"
        )
    for name, tensor in tensors.items():
        is_counter = name.endswith("num_batches_tracked")
        if tensor.dtype not in _FLOATS and not (is_counter and tensor.dtype == torch.int64):
            raise CheckpointError(
                f"{source} holds {name!r} as {tensor.dtype}; weights must be real numbers of 16 "
                "bits or more: convert them"
            )
    endless = sorted(name for name, tensor in tensors.items() if not tensor.isfinite().all())
    if endless:
        raise CheckpointError(
            f"{source} holds NaN or infinity in {endless[0]!r} ({len(endless)} such); every weight "
            "must be finite: choose a file from before the training failed"
        )


def _check_shapes(
    wanted: Mapping[str, torch.Size], tensors: Mapping[str, Tensor], source: str
) -> None:
    if lacking := sorted(wanted.keys() - tensors.keys()):
        raise CheckpointError(
            f"{source} lacks {lacking[0]!r} ({len(lacking)} such); it must hold exactly this "
            "model's tensors: choose the file that belongs to it"
        )
    for name, shape in wanted.items():
        tensor = tensors[name]
        if tensor.shape != shape:
            raise CheckpointError(
                f"{source} holds {name!r} as {list(tensor.shape)}; this model has "
                f"{list(shape)}: choose the file that belongs to it"
            )
        check_dense(name, tensor, source)


def _is_whole(tensor: Tensor) -> bool:
    """Whether every number has a place of its own: a view of one number may claim any size."""
    if tensor.layout != torch.strided or tensor.device.type == "meta":
        return False
    if tensor.is_quantized or tensor.is_nested:
        return False
    return tensor.untyped_storage().nbytes() >= tensor.numel() * tensor.element_size()


def _dtype(tensors: Mapping[str, Tensor]) -> torch.dtype:
    """Return the narrowest dtype that loses nothing of any weight."""
    floats = (tensor.dtype for tensor in tensors.values() if tensor.is_floating_point())
    return reduce(torch.promote_types, floats)


def _plain(tensor: Tensor) -> Tensor:
    return tensor.detach().cpu().contiguous(memory_format=torch.contiguous_format).clone()
