"""One model divided among the processes of a run (FSDP): each keeps a part of every weight.

Lightning's `FSDPStrategy` is not used. It refuses the CPU, where the tests of this room run, and
clipping by the gradient's norm, which recipes ask for; and it reads checkpoints without looking
for damage. Its successor, `ModelParallelStrategy`, leaves the dividing to PyTorch's `fully_shard`,
which does all that on every device. What is written, here too, is whole: the weights and the state
that a process alone would write, by `checkpoint.WholeFileIO`.
"""

from collections.abc import Mapping
from typing import Any

import torch
import torch.distributed as dist
from lightning.pytorch.strategies import ModelParallelStrategy
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import fully_shard, register_fsdp_forward_method
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.optim import Optimizer
from torch.utils._pytree import tree_map

from spikedriven.errors import ConfigError
from spikedriven.models.sdt import SpikeDrivenTransformer


class ShardedStrategy(ModelParallelStrategy):
    """Every process holds its part of weights, gradients and the optimiser's moments.

    Args:
        processes: How many share the run.
    """

    def __init__(self, processes: int) -> None:
        super().__init__(
            data_parallel_size=processes,
            tensor_parallel_size=1,
            save_distributed_checkpoint=False,
        )

    @property
    def lightning_restore_optimizer(self) -> bool:
        """Let Lightning hand over the optimiser's state from what `load_checkpoint` returned."""
        return True

    def lightning_module_state_dict(self) -> dict[str, Any]:
        """Return the whole state on the first process, nothing on the others."""
        assert self.lightning_module is not None
        return gathered(self.lightning_module.state_dict())

    def optimizer_state(self, optimizer: Optimizer) -> dict[str, Any]:
        """Return the whole state on the first process, nothing on the others."""
        return gathered(optimizer.state_dict())

    def load_checkpoint(
        self, checkpoint_path: Any, weights_only: bool | None = None
    ) -> dict[str, Any]:
        """Read the whole state, which every process does for itself."""
        return self.checkpoint_io.load_checkpoint(checkpoint_path, weights_only=weights_only)

    def load_model_state_dict(self, checkpoint: Mapping[str, Any], strict: bool = True) -> None:
        """Take this process's part of every weight."""
        assert self.lightning_module is not None
        own = self.lightning_module.state_dict()
        stored = checkpoint["state_dict"]
        parts = {name: _part_of(tensor, own.get(name)) for name, tensor in stored.items()}
        self.lightning_module.load_state_dict(parts, strict=strict)

    def load_optimizer_state_dict(self, checkpoint: Mapping[str, Any]) -> None:
        """Take this process's part of every moment."""
        for optimizer, stored in zip(self.optimizers, checkpoint["optimizer_states"], strict=True):
            weights = [weight for group in optimizer.param_groups for weight in group["params"]]
            parts = {
                number: {name: _part_of(value, weights[number]) for name, value in values.items()}
                for number, values in stored["state"].items()
            }
            optimizer.load_state_dict({**stored, "state": parts})


def check_divisible(model: nn.Module) -> None:
    """Check that every weight can be divided.

    Raises:
        ConfigError: One is a single number, as `plif` learns for each layer.
    """
    for name, weight in model.named_parameters():
        if weight.ndim == 0:
            raise ConfigError(
                f"trainer.strategy is fsdp and {name} is a single number; every weight must have "
                "parts to give to each process: set model.neuron=lif or trainer.strategy=ddp"
            )


def divide(model: SpikeDrivenTransformer, mesh: DeviceMesh) -> None:
    """Keep of every weight this process's part only, whole just while its layer computes.

    Stem and blocks are gathered one by one, the head with what remains.
    """
    # Parts are runs of rows in memory, so weights cannot lie channels-last meanwhile.
    model.to(memory_format=torch.contiguous_format)
    for part in (model.stem, *model.blocks):
        fully_shard(part, mesh=mesh)
    fully_shard(model, mesh=mesh)
    register_fsdp_forward_method(model, "forward_steps")  # training enters the model here


def own_part(tensor: Tensor) -> Tensor:
    """Return what this process holds of a tensor, divided or not."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def gathered(state: Mapping[str, Any]) -> dict[str, Any]:
    """Put all divided tensors of a state together on the first process; others get nothing.

    Every process must call it, in the same order.
    """
    first = dist.get_rank() == 0

    def whole(value: Any) -> Any:
        if not isinstance(value, DTensor):
            return value
        tensor = value.full_tensor()  # by all, but not kept by all
        return tensor.cpu() if first else None

    found: dict[str, Any] = tree_map(whole, dict(state))
    return found if first else {}


def whole_model(model: SpikeDrivenTransformer) -> SpikeDrivenTransformer | None:
    """Return a model as one process has it: itself, or of a divided one a copy on the first.

    Every process must call it; of a divided model, all but the first get None.
    """
    if not any(isinstance(weight, DTensor) for weight in model.parameters()):
        return model
    state = gathered(model.state_dict())
    if not state:
        return None
    with torch.device("meta"):
        copy = SpikeDrivenTransformer(model.config)
    copy.load_state_dict(state, assign=True)
    return copy


def share_buffers(model: nn.Module) -> None:
    """Give every process the first one's running statistics, before it validates.

    Without `sync_batch_norm` each has its own, and no checkpoint could hold them all.
    """
    for buffer in model.buffers():
        dist.broadcast(buffer, src=0)


def _part_of(value: Any, like: Any) -> Any:
    if not isinstance(like, DTensor) or not isinstance(value, Tensor) or value.ndim == 0:
        return value
    whole = value.to(like.device)
    # Each process has read the same file: nothing needs to be sent.
    return distribute_tensor(whole, like.device_mesh, like.placements, src_data_rank=None)
