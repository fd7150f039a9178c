"""Watching spikes from outside: nothing in a model's forward pass knows that it is observed."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.modules.module import _has_any_global_hook

from spikedriven.core.attention import dilate_image
from spikedriven.errors import ConfigError, DataError
from spikedriven.nn.neuron import LIF


class Tap(nn.Module):
    """Passes spikes on; a named point at which the probe can listen."""

    def forward(self, s: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
        """Return `s`."""
        return s


class Dilation(nn.Module):
    """Dilates spikes over the image, 3x3."""

    def forward(self, s: Float[Tensor, "T B C H W"]) -> Float[Tensor, "T B C H W"]:
        """Return `s`, dilated."""
        return dilate_image(s)


def is_watched(module: nn.Module) -> bool:
    """Whether someone has a hook on a module, or on every module there is."""
    hooks = (
        module._forward_hooks,
        module._forward_pre_hooks,
        module._backward_hooks,
        module._backward_pre_hooks,
    )
    return any(map(len, hooks)) or bool(_has_any_global_hook())


@dataclass(slots=True)
class SpikeCount:
    """How often a layer fired, in exact integers."""

    fired: int = 0
    sites: int = 0
    """Neurons times steps times images: how often it could have fired."""

    @property
    def rate(self) -> float:
        """Share of sites that fired, in [0, 1].

        Raises:
            DataError: Nothing was counted.
        """
        if self.sites == 0:
            raise DataError(
                "nothing was counted; a rate needs a forward pass with at least one image: "
                "run the model before asking for it"
            )
        return self.fired / self.sites


def spike_sources(model: nn.Module) -> dict[str, nn.Module]:
    """Return every module that emits spikes, by the name under which it is recorded."""
    kinds = (LIF, Tap, Dilation)
    return {
        name.removesuffix(".lif"): module
        for name, module in model.named_modules()
        if isinstance(module, kinds)
    }


def _check_neurons(model: object) -> None:
    if not isinstance(model, nn.Module) or not spike_sources(model):
        lack = " without neurons of this package" if isinstance(model, nn.Module) else ""
        raise ConfigError(
            f"the model is a {type(model).__name__}{lack}; it must be a module that holds neurons: "
            "build it with create_model or load_official"
        )


@contextmanager
def _listening(model: nn.Module, listen: Any) -> Iterator[None]:
    handles = [
        module.register_forward_hook(partial(listen, name))
        for name, module in spike_sources(model).items()
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def record_spikes(model: nn.Module) -> Iterator[dict[str, Tensor]]:
    """Record all spikes of the last forward pass made inside the block.

    Args:
        model: Any model built from this package's layers.

    Yields:
        name -> bool [T, B, ...], filled as layers fire. Names are the model's own; the released
        code's are mapped to them by `models.official.released_hooks`.

    Raises:
        ConfigError: The model is no module, or holds no neuron of this package.
    """
    _check_neurons(model)
    spikes: dict[str, Tensor] = {}

    def listen(name: str, _module: nn.Module, _inputs: Any, s: Tensor) -> None:
        spikes[name] = s.detach().bool()

    with _listening(model, listen):
        yield spikes


@contextmanager
def count_spikes(model: nn.Module) -> Iterator[dict[str, SpikeCount]]:
    """Count the spikes of every forward pass made inside the block, in constant memory.

    Args:
        model: Any model built from this package's layers.

    Yields:
        name -> SpikeCount, accumulated over calls.

    Raises:
        ConfigError: As in `record_spikes`.
    """
    _check_neurons(model)
    counts = {name: SpikeCount() for name in spike_sources(model)}

    def listen(name: str, _module: nn.Module, _inputs: Any, s: Tensor) -> None:
        counts[name].fired += int(torch.count_nonzero(s.detach()))
        counts[name].sites += s.numel()

    with _listening(model, listen):
        yield counts
