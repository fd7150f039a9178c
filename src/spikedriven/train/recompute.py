"""Less memory for more time: a block's activations are computed again in the backward pass."""

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from spikedriven.models.sdt import SpikeDrivenTransformer


def recompute_blocks(model: SpikeDrivenTransformer) -> None:
    """Make every block of a model keep the stream only, and compute the rest again when needed.

    Spikes, gradients and running statistics are those of a model that keeps everything.
    """
    for block in model.blocks:
        forward: Any = partial(_keeping_the_stream, block, block.forward)
        block.forward = forward


def _keeping_the_stream(
    block: nn.Module, forward: Any, u: Tensor, s: Tensor, reader: nn.Module | None
) -> Any:
    given, learns = [s], s.requires_grad

    def run(u: Tensor) -> Any:
        if given:
            return forward(u, given.pop(), reader)
        with torch.no_grad():  # its way back has been walked once already
            again = block.get_submodule("attention.fire")(u)
        return forward(u, again.requires_grad_(learns), reader)

    return checkpoint(run, u, use_reentrant=False, context_fn=partial(_contexts, block))


def _contexts(block: nn.Module) -> tuple[Any, Any]:
    return nullcontext(), _noting_nothing(block)


@contextmanager
def _noting_nothing(block: nn.Module) -> Iterator[None]:
    """Keep the batch norms of the second forward from noting the batch a second time."""
    norms = [module for module in block.modules() if isinstance(module, nn.BatchNorm2d)]
    before = [(norm.momentum, norm.num_batches_tracked) for norm in norms]
    for norm in norms:
        norm.momentum, norm.num_batches_tracked = 0.0, None
    try:
        yield
    finally:
        for norm, (momentum, tracked) in zip(norms, before, strict=True):
            norm.momentum, norm.num_batches_tracked = momentum, tracked
