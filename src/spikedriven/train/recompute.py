"""Less memory for more time: a block's activations are computed again in the backward pass."""

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from functools import partial
from typing import Any

from torch import nn
from torch.utils.checkpoint import checkpoint

from spikedriven.models.sdt import SpikeDrivenTransformer


def recompute_blocks(model: SpikeDrivenTransformer) -> None:
    """Make every block of a model keep its input only, and compute the rest again when needed.

    Spikes, gradients and running statistics are those of a model that keeps everything.
    """
    for block in model.blocks:
        again = partial(_contexts, block)
        forward: Any = partial(checkpoint, block.forward, use_reentrant=False, context_fn=again)
        block.forward = forward


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
