"""Models whose every number is a small multiple of a power of two.

In single precision all of their sums are then exact in any order, so that another implementation
must give every spike and every logit alike, and no tolerance is needed.
"""

import torch

import spikedriven as sd

LEAST_RATE = 0.01


def dyadic(config: sd.SDTConfig, x: torch.Tensor, seed: int = 0) -> sd.SpikeDrivenTransformer:
    """Draw a model in evaluation mode that fires everywhere on `x`, but not always."""
    generator = torch.Generator().manual_seed(seed)

    def drawn(like: torch.Tensor, low: int, high: int, places: int) -> torch.Tensor:
        whole = torch.randint(low, high + 1, like.shape, generator=generator)
        return (whole / 2**places).to(like.dtype)

    model = sd.SpikeDrivenTransformer(config).eval()
    for name, module in model.named_modules():
        if isinstance(module, torch.nn.Conv2d | torch.nn.Linear):
            module.weight.data = drawn(module.weight, -3, 4, 3)
            if module.bias is not None:
                module.bias.data = drawn(module.bias, -2, 2, 3)
        elif isinstance(module, torch.nn.BatchNorm2d):
            module.eps = 0.0
            module.weight.data = 2.0 ** -drawn(module.weight, 0, 1, 0)
            into_stream = name.removesuffix(".norm").endswith(
                ("fourth", "position", "project", "contract")
            )
            module.bias.data = drawn(module.bias, *((-3, 8) if into_stream else (3, 16)), 3)
            module.running_mean = drawn(module.running_mean, -1, 1, 2)
    with sd.record_spikes(model) as spikes, torch.no_grad():
        steps = model.forward_steps(x)
    for name, s in spikes.items():
        rate = s.double().mean()
        assert LEAST_RATE < rate < 1, f"{name} fires at a rate of {rate}"
    assert torch.equal(steps, model.double().forward_steps(x.double()).float())
    return model.float()


def bytes_over_256(*shape: int, seed: int = 0) -> torch.Tensor:
    """Draw real pixels that are whole multiples of 1/256."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, shape, generator=generator) / 256
