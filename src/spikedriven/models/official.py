"""The released code's files and names: what is theirs becomes ours, exactly, and back."""

import argparse
import math
import pickle
import warnings
import zipfile
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from spikedriven.errors import CheckpointError, ConfigError
from spikedriven.models.sdt import SDTConfig, SpikeDrivenTransformer
from spikedriven.models.weights import build, check_dense, read_safetensors

_STEM = {
    "image": ("proj_conv", "proj_bn", "proj_lif"),
    "second": ("proj_conv1", "proj_bn1", "proj_lif1"),
    "third": ("proj_conv2", "proj_bn2", "proj_lif2"),
    "fourth": ("proj_conv3", "proj_bn3", None),
    "position": ("rpe_conv", "rpe_bn", None),
}
_BLOCK = {
    "attention.query": ("attn.q_conv", "attn.q_bn", "attn.q_lif"),
    "attention.key": ("attn.k_conv", "attn.k_bn", "attn.k_lif"),
    "attention.value": ("attn.v_conv", "attn.v_bn", "attn.v_lif"),
    "attention.project": ("attn.proj_conv", "attn.proj_bn", None),
    "mlp.expand": ("mlp.fc1_conv", "mlp.fc1_bn", "mlp.fc2_lif"),
    "mlp.contract": ("mlp.fc2_conv", "mlp.fc2_bn", None),
}
_BLOCK_NEURONS = {
    "attention.fire": "attn.shortcut_lif",
    "attention.gate": "attn.talking_heads_lif",
    "mlp.fire": "mlp.fc1_lif",
}
_BLOCK_UNUSED = ("attn.talking_heads.weight", "attn.attn_lif.w")
_UNUSED = ("patch_embed.rpe_lif.w",)
# As a pair: allowing it for one file, and no longer, leaves what a caller allowed as it was.
_SETTINGS = (argparse.Namespace, "argparse.Namespace")


def released_keys(config: SDTConfig) -> dict[str, str]:
    """Return our state-dict key -> the released one, for every tensor that both have."""
    layers: dict[str, list[str | None]] = {}
    for ours, theirs in _STEM.items():
        layers[f"stem.{ours}"] = [f"patch_embed.{name}" if name else None for name in theirs]
    neurons = {"stem.fourth_lif": "patch_embed.proj_lif3", "head_lif": "head_lif"}
    for n in range(config.depth):
        for ours, theirs in _BLOCK.items():
            layers[f"blocks.{n}.{ours}"] = [
                f"block.{n}.{name}" if name else None for name in theirs
            ]
        for ours, neuron in _BLOCK_NEURONS.items():
            neurons[f"blocks.{n}.{ours}"] = f"block.{n}.{neuron}"
    keys = {"head.weight": "head.weight", "head.bias": "head.bias"}
    norm_parts = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")
    for ours, (conv, norm, lif) in layers.items():
        keys[f"{ours}.conv.weight"] = f"{conv}.weight"
        if ours.endswith(("project", "expand", "contract")):
            keys[f"{ours}.conv.bias"] = f"{conv}.bias"
        keys |= {f"{ours}.norm.{part}": f"{norm}.{part}" for part in norm_parts}
        if lif:
            neurons[f"{ours}.lif"] = lif
    if config.neuron == "plif":
        keys |= {f"{ours}.w": f"{neuron}.w" for ours, neuron in neurons.items()}
    return keys


def ignored_keys(config: SDTConfig) -> dict[str, tuple[int, ...]]:
    """Return the released keys that nothing in the released forward pass reads -> their shapes."""
    keys = [*_UNUSED, *(f"block.{n}.{key}" for n in range(config.depth) for key in _BLOCK_UNUSED)]
    if config.neuron != "plif":
        keys = [key for key in keys if not key.endswith(".w")]
    heads = config.num_heads
    return {key: () if key.endswith(".w") else (heads, heads, 1) for key in keys}


def released_hooks(config: SDTConfig) -> dict[str, str]:
    """Return the released code's hook name -> the name under which `record_spikes` has it.

    The spikes are the same; the released gate is [T, B, heads, 1, C/heads] where ours is [T, B, C],
    and its masked query [T, B, heads, N, C/heads] where ours is [T, B, C, H, W].
    """
    dilated = "_dilation" if config.dvs_dilation else ""
    hooks = {
        "MS_SPS_lif": "stem.image",
        "MS_SPS_lif1": "stem.second",
        "MS_SPS_lif2": "stem.third",
        "MS_SPS_lif3": "stem.fourth_lif",
        "head_lif": "head_lif",
    }
    for n in range(config.depth):
        hooks |= {
            f"MS_SSA_Conv{n}_first_lif": f"blocks.{n}.attention.fire",
            f"MS_SSA_Conv{n}_q_lif": f"blocks.{n}.attention.query",
            f"MS_SSA_Conv{n}_k_lif": f"blocks.{n}.attention.key{dilated}",
            f"MS_SSA_Conv{n}_v_lif": f"blocks.{n}.attention.value{dilated}",
            f"MS_SSA_Conv{n}_kv": f"blocks.{n}.attention.gate",
            f"MS_SSA_Conv{n}_x_after_qkv": f"blocks.{n}.attention.masked",
            f"MS_MLP_Conv{n}_fc1_lif": f"blocks.{n}.mlp.fire",
            f"MS_MLP_Conv{n}_fc2_lif": f"blocks.{n}.mlp.expand",
        }
    return hooks


def mlp_ratio(hidden: int, width: int) -> float:
    """Return the ratio that gives `hidden` channels: their quotient, or the number above it."""
    ratio = hidden / width
    return ratio if int(width * ratio) == hidden else math.nextafter(ratio, math.inf)


def load_official(
    source: str | Path | Mapping[str, Tensor],
    *,
    num_steps: int = 4,
    stem_pool: str = "1111",
    num_heads: int | None = None,
    dvs_dilation: bool = False,
) -> SpikeDrivenTransformer:
    """Build the model that a released checkpoint belongs to, with its weights.

    Sizes and neuron are read off the tensors; the keyword arguments are what no tensor shows.

    Args:
        source: A `.pth.tar` or `.pth` file (read without running code from it), a `.safetensors`
            file, or a state dict; keys with or without `module.`, bare or under `state_dict`. The
            settings that timm saves beside it, an `argparse.Namespace`, are read and not used: the
            class has no code that making or filling one would run.
        num_steps: T.
        stem_pool: The released `pooling_stat`: "1111" ImageNet, "0011" CIFAR, "0111" Gesture.
        num_heads: Matters under `dvs_dilation` only. None takes the side of the first block's
            unused `talking_heads`, or 8 where the file has none.
        dvs_dilation: The released `dvs_mode`.

    Returns:
        The model in evaluation mode, in the weights' dtype. What was ignored: `ignored_keys`.

    Raises:
        CheckpointError: The file cannot be read safely, a key or shape is not the released one's.
        ConfigError: An argument cannot work.
    """
    if not isinstance(source, str | Path | Mapping):
        raise CheckpointError(
            f"the source is of type {type(source).__name__}; it must be the path of a file or a "
            "state dict: pass one"
        )
    name = "the state dict" if isinstance(source, Mapping) else str(source)
    tensors = _bare(source if isinstance(source, Mapping) else _read(Path(source)), name)
    try:
        sizes = SDTConfig(
            depth=len({key.split(".")[1] for key in tensors if key.startswith("block.")}),
            width=tensors["head.weight"].shape[1],
            num_classes=tensors["head.weight"].shape[0],
            in_channels=tensors["patch_embed.proj_conv.weight"].shape[1],
            mlp_ratio=mlp_ratio(
                tensors["block.0.mlp.fc1_conv.weight"].shape[0], tensors["head.weight"].shape[1]
            ),
            neuron="plif" if "head_lif.w" in tensors else "lif",
        )
    except (KeyError, ValueError, IndexError, ZeroDivisionError, ConfigError) as error:
        reason = "one has too few axes" if isinstance(error, IndexError) else error
        raise CheckpointError(
            f"{name} lacks the tensors that give a Spike-driven Transformer its size ({reason}); "
            "it must be a released checkpoint: choose another file"
        ) from error
    if num_heads is None:
        num_heads = _heads(tensors.get("block.0.attn.talking_heads.weight"), sizes)
    config = replace(
        sizes,
        num_steps=num_steps,
        num_heads=num_heads,
        stem_pool=stem_pool,
        dvs_dilation=dvs_dilation,
    )
    ours = {theirs: key for key, theirs in released_keys(config).items()}
    ignored = ignored_keys(config)
    for key, shape in ignored.items():
        if key in tensors and tensors[key].shape != shape:
            raise CheckpointError(
                f"{name} holds {key!r} as {list(tensors[key].shape)}; with num_heads={num_heads} "
                f"the released code has {list(shape)}: give the num_heads of its training, or "
                "choose another file"
            )
    kept = ((ours.get(key, key), t) for key, t in tensors.items() if key not in ignored)
    return build(config, _once(kept, name), name).eval()


def _heads(unused: Tensor | None, sizes: SDTConfig) -> int:
    # Where it has no side that heads can have, its shape is refused below.
    side = 0 if unused is None or unused.ndim == 0 else unused.shape[0]
    return side if side and sizes.width % side == 0 else sizes.num_heads


def to_official_state_dict(model: SpikeDrivenTransformer) -> dict[str, Tensor]:
    """Return the weights under the released names, as the released code loads them strictly.

    The tensors that it carries unused are there too: zeros for `talking_heads`, as many heads as
    the config has, and w = 0 for the unused parametric neurons.

    Raises:
        ConfigError: It is another model.
    """
    if not isinstance(model, SpikeDrivenTransformer):
        raise ConfigError(
            f"the model is a {type(model).__name__}; released names are of "
            "SpikeDrivenTransformer: build it with create_model or load_official"
        )
    own = model.state_dict()
    released = {theirs: own[ours] for ours, theirs in released_keys(model.config).items()}
    for key, shape in ignored_keys(model.config).items():
        released[key] = torch.zeros(shape, dtype=own["head.weight"].dtype)
    return released


def _read(path: Path) -> Mapping[str, object]:
    if path.suffix == ".safetensors":
        return read_safetensors(path)[1]
    try:
        _check_size(path)
        with warnings.catch_warnings(), torch.serialization.safe_globals([_SETTINGS]):
            # What torch thinks of a foreign pickle is said below, in one sentence.
            warnings.simplefilter("ignore")
            content = torch.load(path, map_location="cpu", weights_only=True)
    except CheckpointError:
        raise
    except pickle.UnpicklingError as error:
        raise CheckpointError(
            f"{path} is damaged or holds more than tensors, and was not run; it must be a file "
            "of weights: get it from its authors again, or save its state_dict alone"
        ) from error
    except OSError as error:
        raise CheckpointError(
            f"{path} cannot be read ({error.strerror or error}); it must be a whole PyTorch file: "
            "check the path, or copy it again"
        ) from error
    except Exception as error:  # A damaged pickle fails in any way that its instructions can.
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        if isinstance(error, LookupError):  # of an instruction that there is not
            reason = "no pickle"
        raise CheckpointError(
            f"{path} cannot be read ({reason}); it must be a whole PyTorch file: "
            "copy it again or choose another"
        ) from error
    if not isinstance(content, Mapping):
        raise CheckpointError(
            f"{path} holds a {type(content).__name__}; it must hold a dictionary of tensors: "
            "choose another file"
        )
    return content


def _check_size(path: Path) -> None:
    """Refuse a file that would unpack to more than it holds: PyTorch writes records as they are.

    Raises:
        CheckpointError: It would.
        OSError, BadZipFile: It cannot be read.
    """
    with path.open("rb") as file:
        if file.read(4) != b"PK\x03\x04":  # an older file, one pickle
            return
        with zipfile.ZipFile(file) as archive:
            unpacked = sum(record.file_size for record in archive.infolist())
    size = path.stat().st_size
    if unpacked > size:
        raise CheckpointError(
            f"{path} has {size} bytes and would unpack to {unpacked}; its records must lie in it "
            "as torch.save writes them, unpacked: save it again"
        )


def _bare(content: Mapping[str, object], name: str) -> dict[str, Tensor]:
    # By subscripts and by Tensor's own method: a pickle may put anything in place of an object's.
    inner = content["state_dict"] if "state_dict" in content else content  # noqa: SIM401
    entries: Mapping[object, object] = inner if isinstance(inner, Mapping) else {}
    bare = []
    for key in entries:
        value = entries[key]
        if not isinstance(key, str):
            raise CheckpointError(
                f"{name} has a key of type {type(key).__name__}; every key must be a tensor's "
                "name: pass its state_dict"
            )
        if not isinstance(value, Tensor):
            raise CheckpointError(
                f"{name} holds {key!r}, a {type(value).__name__}; every entry must be a tensor: "
                "pass its state_dict"
            )
        tensor = Tensor.detach(value)
        check_dense(key, tensor, name)
        bare.append((key.removeprefix("module."), tensor))
    return _once(bare, name)


def _once(named: Iterable[tuple[str, Tensor]], source: str) -> dict[str, Tensor]:
    tensors: dict[str, Tensor] = {}
    for key, tensor in named:
        if key in tensors:
            raise CheckpointError(
                f"{source} holds {key!r} under two names; it must hold each tensor once: "
                "remove one of them"
            )
        tensors[key] = tensor
    return tensors
