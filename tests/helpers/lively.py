"""Models whose neurons fire, and images to show them.

Weights as they are initialised leave every layer silent, and silence proves nothing.
"""

import numpy as np
import torch
from numpy.typing import NDArray

import spikedriven as sd

LEAST_RATE = 0.002
"""A layer that fires less often than this has hardly been tested."""


def lively(config: sd.SDTConfig, *, size: int = 16, seed: int = 0) -> sd.SpikeDrivenTransformer:
    """Draw a model in evaluation mode whose every layer fires: norms drawn, statistics measured."""
    torch.manual_seed(seed)
    model = sd.SpikeDrivenTransformer(config)
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.weight.data = 1.2 * torch.exp(0.3 * torch.randn_like(module.weight))
            module.bias.data = 0.5 + 0.3 * torch.randn_like(module.bias)
            module.momentum = 1.0
    for name, parameter in model.named_parameters():
        if name.endswith(".w"):  # a learned time constant
            parameter.data = 0.5 * torch.randn_like(parameter)
    x = torch.rand(8, config.in_channels, size, size)
    with torch.no_grad():
        model(x)
        model.eval()
        with sd.record_spikes(model) as spikes:
            model(x)
    for name, s in spikes.items():
        assert s.double().mean() > LEAST_RATE, f"{name} is silent"
    return model


def some_images(*shape: int, seed: int = 0) -> NDArray[np.uint8]:
    """Draw bytes."""
    return np.random.default_rng(seed).integers(0, 256, shape, np.uint8)
