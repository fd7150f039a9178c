"""Who else computes this network: SpikingJelly 2's model and the released code, with our weights.

The two need different versions of one package, so each has an environment of its own:

    python -m venv .sj2 && .sj2/bin/pip install -e ".[train]" spikingjelly==2.0.0
    python -m venv .released && .released/bin/pip install -e ".[train]"
    .released/bin/pip install --no-deps spikingjelly==0.0.0.0.12
    git clone https://github.com/BICLab/Spike-Driven-Transformer DIR
"""

import sys
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from torch import Tensor, nn

import spikedriven as sd

SPIKINGJELLY = "SpikingJelly 2"
RELEASED = "released code"


def spikingjelly(model: sd.SpikeDrivenTransformer) -> nn.Module:
    """Return SpikingJelly 2's model with our weights; on a GPU its neurons run by Triton.

    Raises:
        ImportError: SpikingJelly 2 is not installed.
    """
    from spikingjelly.activation_based import functional
    from spikingjelly.activation_based.model import SpikeDrivenTransformer

    config = model.config
    theirs: nn.Module = SpikeDrivenTransformer(
        T=config.num_steps,
        in_channels=config.in_channels,
        num_classes=config.num_classes,
        embed_dims=config.width,
        num_heads=config.num_heads,
        depths=config.depth,
        pooling_stat=config.stem_pool,
        detach_reset=True,  # as published; its default is another gradient
    )
    theirs.to(model.head.weight)  # its device and type, before weights are rounded to another
    _copy_in_order(model, theirs)
    if model.head.weight.is_cuda:
        functional.set_backend(theirs, "triton")
    return theirs


def _copy_in_order(ours: sd.SpikeDrivenTransformer, theirs: nn.Module) -> None:
    """Copy weights in order of use; the stem's biases, which only SpikingJelly has, become zero."""
    for kind in (nn.Conv2d, nn.BatchNorm2d):
        pairs = zip(_all(ours, kind), _all(theirs, kind), strict=True)
        for mine, other in pairs:
            state = mine.state_dict()
            extra = other.state_dict().keys() - state.keys()
            assert extra <= {"bias"}, extra
            other.load_state_dict(state | {name: torch.zeros_like(other.bias) for name in extra})
    theirs.head.load_state_dict(ours.head.state_dict())  # type: ignore[union-attr]


def _all(model: nn.Module, kind: type[nn.Module]) -> list[Any]:
    return [module for module in model.modules() if isinstance(module, kind)]


def released(model: sd.SpikeDrivenTransformer, folder: Path, size: int) -> nn.Module:
    """Return the released code's model with our weights, its neurons by PyTorch.

    Args:
        model: Ours.
        folder: A checkout of the released code.
        size: Height and width of the images.

    Raises:
        ImportError: The folder is not one, or its version of SpikingJelly is not installed.
    """
    if str(folder) not in sys.path:
        sys.path.insert(0, str(folder))
    from model.spikeformer import SpikeDrivenTransformer
    from spikingjelly.clock_driven import neuron

    config = model.config
    # It asks for CuPy by name; where CuPy is not installed its neurons cannot even be made.
    with mock.patch.object(neuron, "check_backend", return_value=None):
        theirs: nn.Module = SpikeDrivenTransformer(
            img_size_h=size, img_size_w=size, in_channels=config.in_channels,
            num_classes=config.num_classes, embed_dims=config.width, num_heads=config.num_heads,
            mlp_ratios=config.mlp_ratio, depths=config.depth, T=config.num_steps,
            pooling_stat=config.stem_pool, spike_mode=config.neuron, dvs_mode=config.dvs_dilation,
        )  # fmt: skip
    theirs.to(model.head.weight)  # its device and type, before weights are rounded to another
    theirs.load_state_dict(sd.to_official_state_dict(model))
    set_released_backend(theirs, "torch")
    return theirs


def set_released_backend(model: nn.Module, backend: str) -> None:
    """Choose how the released code's neurons run: `torch` or, in float32 and float16, `cupy`."""
    for module in model.modules():
        if isinstance(getattr(module, "backend", None), str):
            module.backend = backend


def forget(model: nn.Module) -> None:
    """Reset the neurons of a rival; ours keep nothing."""
    for module in model.modules():
        if callable(getattr(module, "reset", None)):
            module.reset()


def logits_of(model: nn.Module, images: Tensor) -> Tensor:
    """Return anybody's logits; the released code returns more than them."""
    found = model(images)
    logits: Tensor = found[0] if isinstance(found, tuple) else found
    return logits
