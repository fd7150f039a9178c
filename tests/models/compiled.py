"""Run by test_compile.py in its own process: the shape checks of the test session break graphs."""

import torch

import spikedriven as sd

CONFIG = sd.SDTConfig(1, 16, 5, stem_pool="0011", num_heads=2, neuron="plif")


def fresh() -> sd.SpikeDrivenTransformer:
    torch.manual_seed(1)
    model = sd.SpikeDrivenTransformer(CONFIG).double()
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            torch.nn.init.uniform_(module.bias, 0.5, 1.5)
    return model


def main() -> None:
    torch.manual_seed(0)
    x = torch.randn(2, 3, 8, 8, dtype=torch.float64)
    assert torch._dynamo.explain(fresh())(x).graph_break_count == 0, "graph breaks"

    eager, compiled = fresh(), fresh()
    expected = eager(x)
    found = torch.compile(compiled, fullgraph=True, backend="aot_eager")(x)
    assert expected.std() > 1e-3, "a silent network proves nothing"
    assert torch.allclose(found, expected, atol=1e-9), "logits"
    expected.square().sum().backward()
    found.square().sum().backward()
    largest = max(p.grad.abs().max() for p in eager.parameters())
    for (name, p), q in zip(eager.named_parameters(), compiled.parameters(), strict=True):
        assert torch.allclose(p.grad, q.grad, rtol=1e-7, atol=1e-10 * largest), name
    for (name, p), q in zip(eager.named_buffers(), compiled.buffers(), strict=True):
        assert torch.allclose(p, q, rtol=1e-10), name


if __name__ == "__main__":
    main()
