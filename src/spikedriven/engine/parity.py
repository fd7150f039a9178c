"""How faithful a program is: layer by layer, on the float model's own spikes.

A deep spiking network is chaotic: one different spike becomes many. So each layer of the program is
given exactly what the float model's layer was given, and only its own spikes are compared.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from spikedriven.engine.ops.image.reference import image_current
from spikedriven.engine.ops.neuron.reference import fire
from spikedriven.engine.ops.pool.reference import pool
from spikedriven.engine.ops.synapse.reference import fire_current, stream_current
from spikedriven.engine.pixels import read_pixels
from spikedriven.engine.plan import FRACTION, FireStep, ImageStep, PoolStep, Program, StreamStep
from spikedriven.errors import ShapeError
from spikedriven.models.sdt import Block, SpikeDrivenTransformer
from spikedriven.nn.probe import record_spikes


@dataclass(frozen=True, slots=True, kw_only=True)
class Agreement:
    """How the neurons of one layer answer the same input in integers and in floats."""

    fired: int
    """Spikes of the float layer."""
    different: int
    """Sites at which the two disagree."""
    sites: int
    """Neurons times steps times images."""

    @property
    def rate(self) -> float:
        """Share of sites at which the float layer fired."""
        return self.fired / self.sites

    @property
    def mismatch(self) -> float:
        """Share of sites at which the two disagree."""
        return self.different / self.sites


@torch.inference_mode()
def compare(program: Program, model: SpikeDrivenTransformer, x: Tensor) -> dict[str, Agreement]:
    """Compare every layer of neurons that follows weights, on forced inputs.

    Args:
        program: Compiled from `model`.
        model: The float model, in evaluation mode.
        x: Images [B, C, H, W] or frames [B, T, C, H, W], normalised as the model takes them, whose
            pixels are bytes.

    Returns:
        Name of the neurons -> agreement, in the order of the network.

    Raises:
        ShapeError: The input does not fit the program.
    """
    steps = model.config.num_steps if x.ndim == 4 else x.shape[1]
    if steps != program.input.num_steps:
        raise ShapeError(
            f"the model runs {steps} steps and the program {program.input.num_steps}; they must "
            "be the same to be compared: compile the program with the model's num_steps"
        )
    with record_spikes(model) as recorded, _record_streams(model) as recorded_streams:
        model(x)
    spikes = {name: _channels_last(s) for name, s in recorded.items() if s.ndim == 5}
    pixels = read_pixels(program.input, x.numpy()).transpose(0, 1, 3, 4, 2)
    agreements = {}
    for step in program.steps:
        name = step.name
        if isinstance(step, ImageStep):
            i = image_current(pixels, step)
            i = np.broadcast_to(i, (program.input.num_steps, *i.shape[1:]))
        elif isinstance(step, PoolStep):
            spikes[name] = pool(spikes[step.source])
            continue
        elif isinstance(step, FireStep):
            i = fire_current(spikes[step.source], step)
        elif isinstance(step, StreamStep) and step.neuron is not None:
            name = step.emits
            i = stream_current(spikes[step.source], step)
            i = pool(i) if step.pool else i
            if not step.begins:
                before = _channels_last(recorded_streams[step.name])
                i = i + np.rint(before * 2.0**FRACTION).astype(np.int64)
        else:
            continue
        assert step.neuron is not None
        got, _ = fire(i, np.zeros_like(i[0]), step.neuron)
        wanted = spikes[name]
        agreements[name] = Agreement(
            fired=int(wanted.sum()), different=int((got != wanted).sum()), sites=wanted.size
        )
    return agreements


def _channels_last(x_TBCHW: Tensor) -> NDArray[Any]:
    array: NDArray[Any] = x_TBCHW.numpy()
    return np.moveaxis(array, 2, -1)


@contextmanager
def _record_streams(model: SpikeDrivenTransformer) -> Iterator[dict[str, Tensor]]:
    """Record the membrane stream as it is before each layer that adds to it."""
    streams: dict[str, Tensor] = {}
    handles = []

    def listen(module: nn.Module, name: str) -> None:
        def before(_module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            streams[name] = inputs[0].detach()

        handles.append(module.register_forward_pre_hook(before))

    listen(model.stem.fourth_lif, "stem.position")
    for b, block in enumerate(model.blocks):
        assert isinstance(block, Block)
        listen(block.attention, f"blocks.{b}.attention.project")
        listen(block.mlp, f"blocks.{b}.mlp.contract")
    try:
        yield streams
    finally:
        for handle in handles:
            handle.remove()
