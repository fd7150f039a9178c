"""Run by test_compile.py in its own process: the network on Triton's kernels, one graph of them."""

import copy
import os

import torch

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
os.environ.setdefault("TRITON_INTERPRET", "0" if DEVICE == "cuda" else "1")

from tests.models.compiled import fresh  # noqa: E402 - Triton reads the variable

import spikedriven as sd  # noqa: E402
from spikedriven.nn.backend import use_backend  # noqa: E402


def main() -> None:
    torch.manual_seed(0)
    x = torch.randn(2, 3, 8, 8, dtype=torch.float64, device=DEVICE)
    eager = fresh().to(DEVICE)
    use_backend(eager, "triton")
    compiled = copy.deepcopy(eager)
    run = torch.compile(compiled, fullgraph=True, backend="aot_eager")
    with sd.record_spikes(eager) as spikes:
        expected = eager(x)
    assert all(s.any() for s in spikes.values()), "a silent network proves nothing"
    found = run(x)
    assert torch.allclose(found, expected, atol=1e-9), "logits"
    expected.square().sum().backward()
    found.square().sum().backward()
    largest = max(p.grad.abs().max() for p in eager.parameters())
    for (name, p), q in zip(eager.named_parameters(), compiled.named_parameters(), strict=True):
        assert (p.grad - q[1].grad).abs().max() <= 1e-9 * largest, name
    for (name, p), q in zip(eager.named_buffers(), compiled.buffers(), strict=True):
        assert torch.allclose(p, q, rtol=1e-10), name

    (graph,) = torch._dynamo.explain(copy.deepcopy(eager))(x).graphs
    fires = [n.args for n in graph.graph.nodes if n.target is torch.ops.spikedriven.fire]
    in_one = sum(residual is not None for _x, residual, *_ in fires)
    assert in_one == 2 * eager.config.depth, f"{in_one} of {len(fires)} neurons add to the stream"

    seen = []
    compiled.blocks[0].attention.project.register_forward_hook(lambda *_seen: seen.append(0))
    assert torch.allclose(run(x), eager(x), atol=1e-9), "watched"
    assert seen == [0], "whoever watches a compiled layer sees it"


if __name__ == "__main__":
    main()
