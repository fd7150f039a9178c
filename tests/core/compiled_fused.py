"""Run by test_triton.py in its own process: the shape checks of the test session break graphs."""

import os

import torch

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
os.environ.setdefault("TRITON_INTERPRET", "0" if DEVICE == "cuda" else "1")

from spikedriven.core import attention, lif, synapse  # noqa: E402 - Triton reads the variable


def network(x, u, weight, norm, gamma, w):  # type: ignore[no-untyped-def]
    """Every operator once, in the order of a block."""
    norm = lif.Norm(weight=gamma, training=True, **norm)
    s = lif.norm_lif(x, norm, 4, w.sigmoid(), backend="triton")
    s = synapse.spike_pool(s.flatten(0, 1), backend="triton").unflatten(0, s.shape[:2])
    raw = synapse.spike_conv2d(s.flatten(0, 1), weight, None, 1, backend="triton")
    u, s = lif.norm_add_lif(raw.unflatten(0, s.shape[:2]), norm, u, backend="triton")
    gate = lif.lif(attention.agreement(s, s, "triton"), v_threshold=0.5, backend="triton")
    return u.square().sum() + (attention.mask(s, gate, "triton") * u.detach()).sum()


def inputs():  # type: ignore[no-untyped-def]
    generator = torch.Generator().manual_seed(0)

    def some(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, dtype=torch.float64, generator=generator).to(DEVICE)

    leaves = [some(4, 2, 8, 6, 6) * 2 + 0.5, some(4, 2, 8, 3, 3), some(8, 8, 3, 3)]
    gamma, w = some(8).abs() + 1, some(1)[0]
    norm = {"bias": some(8), "running_mean": some(8), "running_var": some(8).abs() + 1}
    for leaf in (*leaves, gamma, w):
        leaf.requires_grad_()
    return leaves, norm, gamma, w


def main() -> None:
    sides = []
    compiled = torch.compile(network, fullgraph=True, backend="aot_eager")
    for run in (network, compiled):
        leaves, norm, gamma, w = inputs()
        loss = run(*leaves, norm, gamma, w)
        loss.backward()
        grads = [leaf.grad for leaf in (*leaves, gamma, w)]
        sides.append([loss.detach(), *grads, norm["running_mean"], norm["running_var"]])
    assert all(found.abs().max() > 0 for found in sides[0]), "silence proves nothing"
    for expected, found in zip(*sides, strict=True):
        assert torch.allclose(found, expected, rtol=1e-9, atol=1e-12)


if __name__ == "__main__":
    main()
