"""Spike-driven self-attention: query, key and value meet by mask and addition only.

`reference` is the definition; on a GPU `triton` does the same in one walk over the keys and values
and one over the queries, with the gate's neurons, which are few and can be watched, in between.
"""

from collections.abc import Callable

from jaxtyping import Float
from torch import Tensor

from spikedriven.core.attention import reference
from spikedriven.core.attention.reference import dilate_image, dilate_tokens
from spikedriven.core.backend import choose

__all__ = [
    "GATE_THRESHOLD",
    "agreement",
    "dilate_image",
    "dilate_tokens",
    "mask",
    "spike_driven_attention",
]

# Half of the other neurons': a single agreement of key and value (membrane 0.5) opens the gate.
GATE_THRESHOLD = 0.5

Gate = Callable[[Tensor], Tensor]
"""Counts [T, B, C] to spikes [T, B, C]: a function or a layer of neurons."""


def agreement(k: Tensor, v: Tensor, backend: str = "auto") -> Tensor:
    """Count agreements: as `reference.agreement`; half precision is counted in float32 by Triton.

    `backend` as in `core.backend.choose`; without Triton the reference runs.
    """
    if choose(k, 1, backend) == "triton":
        from spikedriven.core.attention import triton

        return triton.agreement(k, v)
    return reference.agreement(k, v)


def mask(q: Tensor, gate: Tensor, backend: str = "auto") -> Tensor:
    """Mask the query: as `reference.mask`, in the dtype of `q` by Triton."""
    if choose(q, 1, backend) == "triton":
        from spikedriven.core.attention import triton

        return triton.mask(q, gate)
    return reference.mask(q, gate)


def spike_driven_attention(
    q: Float[Tensor, "T B C H W"],
    k: Float[Tensor, "T B C H W"],
    v: Float[Tensor, "T B C H W"],
    gate: Gate,
    backend: str = "auto",
) -> Float[Tensor, "T B C H W"]:
    """Gate each channel of the query by whether key and value agree anywhere: q * gate(sum k v).

    Args:
        q: Query spikes, 0 or 1.
        k: Key spikes, 0 or 1.
        v: Value spikes, 0 or 1.
        gate: The neurons that fire on the agreement, with threshold `GATE_THRESHOLD`.
        backend: As in `core.backend.choose`.

    Returns:
        Spikes, a subset of `q`.

    Numerics: the counts are whole numbers, so with tau = 2 the gate is exactly OR over tokens of
        (k AND v), and forward it remembers nothing; backward it does, over silent steps.
    Cost: T B C N masks and additions, with N = H W: linear in tokens and in channels. Heads would
        change nothing: the sum runs over tokens, within one channel.
    Source: Yao et al., NeurIPS 2023, eq. 14 (version 2), as released. The paper's tables call this
        q V_S, and k and v Q_S and K_S.
    """
    return mask(q, gate(agreement(k, v, backend)), backend)
