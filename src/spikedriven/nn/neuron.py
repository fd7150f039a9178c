"""Neurons as layers: the constants and the one learnable number around `core.lif`."""

import torch
from jaxtyping import Float
from torch import Tensor, nn

from spikedriven.core.lif import Norm, lif, norm_lif
from spikedriven.core.norm import synced_batch_norm

TAU = 2.0


class LIF(nn.Module):
    """Leaky integrate-and-fire neurons with tau = 2; they hold no parameter and no state.

    Args:
        v_threshold: Firing threshold; a tie fires.
    """

    def __init__(self, v_threshold: float = 1.0) -> None:
        super().__init__()
        self.v_threshold = v_threshold
        self.backend = "auto"

    @property
    def decay(self) -> Tensor | float:
        """1/tau: the share of the gap to the input that one step closes."""
        return 1 / TAU

    def forward(
        self,
        i: Float[Tensor, " S *shape"],
        norm: nn.BatchNorm2d | None = None,
        num_steps: int | None = None,
        fired: Float[Tensor, " T *shape"] | None = None,
    ) -> Float[Tensor, " T *shape"]:
        """Fire on a current, or on a raw current that `norm` normalises in the same pass.

        Args:
            i: Current, [T, *shape]; with `norm` [S, B, C, H, W], where S = 1 stands for a current
                that is the same at all `num_steps` steps.
            norm: Batch normalisation to apply first; its running statistics are updated.
            num_steps: T, needed only where S = 1.
            fired: What these neurons answer to `i`, where the operator that made it found that too
                (`nn.synapse.add_and_fire`): it is returned, seen by whoever watches this layer.

        Returns:
            Spikes, exactly 0 or 1.
        """
        if fired is not None:
            return fired
        if norm is None:
            return lif(i, self.decay, self.v_threshold, backend=self.backend)
        if isinstance(norm, SyncedNorm):
            currents = i.expand(num_steps or len(i), *i.shape[1:])
            normed = norm(currents.flatten(0, 1).to(norm.weight.dtype))
            currents = normed.unflatten(0, currents.shape[:2])
            return lif(currents, self.decay, self.v_threshold, backend=self.backend)
        return norm_lif(
            i,
            observed(norm),
            num_steps or len(i),
            self.decay,
            self.v_threshold,
            backend=self.backend,
        )

    def extra_repr(self) -> str:
        """Show the threshold in the model's printout."""
        return f"v_threshold={self.v_threshold}"


class PLIF(LIF):
    """LIF whose time constant is learned: 1/tau = sigmoid(w), one number for the whole layer.

    Source: Fang et al., ICCV 2021; the released code's `spike_mode="plif"`, starting at tau = 2.
    """

    def __init__(self, v_threshold: float = 1.0) -> None:
        super().__init__(v_threshold)
        self.w = nn.Parameter(torch.zeros(()))  # sigmoid(0) = 1/2

    @property
    def decay(self) -> Tensor:
        """1/tau, learned."""
        return self.w.sigmoid()


NEURONS: dict[str, type[LIF]] = {"lif": LIF, "plif": PLIF}


class SyncedNorm(nn.BatchNorm2d):
    """Batch norm whose statistics, while training, are those of all processes together."""

    def forward(self, x: Float[Tensor, "N C H W"]) -> Float[Tensor, "N C H W"]:
        """Normalise `x`."""
        if not self.training:
            return super().forward(x)
        return synced_batch_norm(x, observed(self))


def observed(norm: nn.BatchNorm2d) -> Norm:
    """Return what the equation needs of a norm layer, and note the batch if it is training."""
    assert norm.running_mean is not None
    assert norm.running_var is not None
    assert norm.momentum is not None
    if norm.training and norm.num_batches_tracked is not None:
        norm.num_batches_tracked.add_(1)
    return Norm(
        weight=norm.weight,
        bias=norm.bias,
        running_mean=norm.running_mean,
        running_var=norm.running_var,
        training=norm.training,
        momentum=norm.momentum,
        eps=norm.eps,
    )
