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

from spikedriven.engine.bits import Spikes
from spikedriven.engine.ops.attend.reference import open_gate
from spikedriven.engine.ops.image.reference import image_current
from spikedriven.engine.ops.neuron.reference import Integers, fire
from spikedriven.engine.ops.pool.reference import pool
from spikedriven.engine.ops.readout.reference import readout
from spikedriven.engine.ops.synapse.reference import fire_current, stream_current
from spikedriven.engine.pixels import read_pixels
from spikedriven.engine.plan import (
    FRACTION,
    AttendStep,
    FireStep,
    ImageStep,
    PoolStep,
    Program,
    ReadoutStep,
    StreamStep,
)
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
    """Compare every layer of neurons, the gates of attention and the head's among them.

    Each is given what the float model's layer was given.

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
    spikes = {name: _channels_last(s) if s.ndim == 5 else s.numpy() for name, s in recorded.items()}
    streams = {
        name: np.rint(_channels_last(u) * 2.0**FRACTION).astype(np.int64)
        for name, u in recorded_streams.items()
    }
    pixels = read_pixels(program.input, x.numpy()).transpose(0, 1, 3, 4, 2)
    agreements = {}
    for step in program.steps:
        if isinstance(step, PoolStep):
            spikes[step.name] = pool(spikes[step.source])
        elif not isinstance(step, StreamStep) or step.neuron is not None:
            name, got = _answer(step, spikes, streams, pixels, steps)
            wanted = spikes[name]
            agreements[name] = Agreement(
                fired=int(wanted.sum()), different=int((got != wanted).sum()), sites=wanted.size
            )
    return agreements


def _answer(
    step: ImageStep | FireStep | StreamStep | AttendStep | ReadoutStep,
    spikes: dict[str, Spikes],
    streams: dict[str, Integers],
    pixels: NDArray[np.uint8],
    num_steps: int,
) -> tuple[str, Spikes]:
    """Return the name of a step's neurons and their spikes, from what the float model's were given.

    Args:
        step: Of the program.
        spikes: The float model's, by name, [T, B, H, W, C] or [T, B, C].
        streams: Its membrane stream in front of the steps that add to it or read it.
        pixels: [S, B, H, W, c].
        num_steps: T.
    """
    match step:
        case ImageStep():
            i = image_current(pixels, step)
            i = np.broadcast_to(i, (num_steps, *i.shape[1:]))
            return step.name, fire(i, _at_rest(i), step.neuron)[0]
        case FireStep():
            i = fire_current(spikes[step.source], step)
            return step.name, fire(i, _at_rest(i), step.neuron)[0]
        case StreamStep():
            assert step.neuron is not None
            i = stream_current(spikes[step.source], step)
            i = pool(i) if step.pool else i
            u = i if step.begins else i + streams[step.name]
            return step.emits, fire(u, _at_rest(u), step.neuron)[0]
        case AttendStep():
            k, v = spikes[step.key], spikes[step.value]
            gate, _ = open_gate(k, v, step, np.zeros((k.shape[1], k.shape[-1]), np.int64))
            return f"{step.name.removesuffix('masked')}gate", gate
        case ReadoutStep():
            u = streams[step.name]
            return step.name, readout(u, step, np.zeros((u.shape[1], u.shape[-1]), np.int64))[1]


def _at_rest(i: Integers) -> Integers:
    return np.zeros_like(i[0])


def _channels_last(x_TBCHW: Tensor) -> NDArray[Any]:
    array: NDArray[Any] = x_TBCHW.numpy()
    return np.moveaxis(array, 2, -1)


@contextmanager
def _record_streams(model: SpikeDrivenTransformer) -> Iterator[dict[str, Tensor]]:
    """Record the membrane stream in front of each layer that adds to it, and of the head."""
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

    def after(_module: nn.Module, _inputs: object, u_and_s: tuple[Tensor, None]) -> None:
        streams["head_lif"] = u_and_s[0].detach()

    handles.append(model.blocks[-1].register_forward_hook(after))
    try:
        yield streams
    finally:
        for handle in handles:
            handle.remove()
