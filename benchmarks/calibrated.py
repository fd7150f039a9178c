"""Random weights that fire as the released model does.

Time depends on firing rates, not on what a network has learnt. `calibrated` draws random weights
and then moves each layer's bias until its neurons fire at the rate that the released SDT-8-768
shows on ImageNet (the packaged table `released_sdt_8_768_224`, measured on its published weights).
"""

import numpy as np
import torch
from torch import Tensor, nn

import spikedriven as sd
from spikedriven.energy.rates import load_rates
from spikedriven.nn.synapse import ConvNorm

RATES = "released_sdt_8_768_224"
# Spread of a batch norm's gains and biases over channels.
SPREAD = 0.3
# Standard deviation of what a layer adds to the membrane stream.
BRANCH_GAIN = 0.5


def natural_image(count: int, channels: int, size: int, seed: int) -> np.ndarray:
    """Return uint8 [count, channels, size, size] with the 1/f spectrum of photographs."""
    rng = np.random.default_rng(seed)
    frequency = np.fft.fftfreq(size)
    radius = np.maximum(np.hypot(frequency[:, None], frequency), 1 / size)

    def noise() -> np.ndarray:
        return np.fft.ifft2(np.fft.fft2(rng.normal(size=(size, size))) / radius).real

    images = np.stack(
        [np.stack([shared + 0.3 * noise() for _ in range(channels)])
         for shared in (noise() for _ in range(count))]
    )  # fmt: skip
    images -= images.mean(axis=(2, 3), keepdims=True)
    images /= images.std(axis=(2, 3), keepdims=True)
    return np.clip(np.rint(images * 48 + 118), 0, 255).astype(np.uint8)


def released_rates(depth: int) -> dict[str, float]:
    """Return our layer names -> firing rates, spread over `depth` blocks."""
    table = load_rates(RATES)
    rates = {name: table.mean(name) for name in table.layers if not name.endswith("agreement")}
    released_depth = 1 + max(int(name.split(".")[1]) for name in rates if "blocks." in name)
    spread = {name: rate for name, rate in rates.items() if not name.startswith("blocks.")}
    for b in range(depth):
        like = f"blocks.{b * released_depth // depth}."
        for name, rate in rates.items():
            if name.startswith(like):
                spread[f"blocks.{b}." + name.removeprefix(like)] = rate
    return spread


@torch.no_grad()
def calibrated(
    config: sd.SDTConfig, image: Tensor, *, seed: int = 0, rates: dict[str, float] | None = None
) -> sd.SpikeDrivenTransformer:
    """Return a model in evaluation mode that fires on `image` at the wanted rates.

    Args:
        config: Its shape.
        image: Normalised images [B, C, H, W].
        seed: Of the weights.
        rates: Layer -> rate; by default the released model's.
    """
    torch.manual_seed(seed)
    model = sd.SpikeDrivenTransformer(config).eval()
    rates = released_rates(config.depth) if rates is None else rates
    stem, T = model.stem, config.num_steps
    s = stem._pooled(0, _tuned(stem.image, image.unsqueeze(0), rates["stem.image"], T))
    s = stem._pooled(1, _tuned(stem.second, s, rates["stem.second"], T))
    s = stem._pooled(2, _tuned(stem.third, s, rates["stem.third"], T))
    u = _normed(stem.fourth, s)
    if stem.pools[3]:
        u = nn.functional.max_pool2d(u.flatten(0, 1), 3, 2, 1).unflatten(0, u.shape[:2])
    shift = _shift(stem.fourth_lif, u, rates["stem.fourth_lif"])
    stem.fourth.norm.bias += shift
    u = u + shift
    s = stem.fourth_lif(u)
    u = _branch(
        stem.position, s, u, model.blocks[0].attention.fire, rates, "blocks.0.attention.fire"
    )
    for b, block in enumerate(model.blocks):
        attention, mlp, name = block.attention, block.mlp, f"blocks.{b}"
        s = attention.fire(u)
        for part in ("query", "key", "value"):
            _tuned(getattr(attention, part), s, rates[f"{name}.attention.{part}"], T)
        masked = sd_attention(attention, s)
        u = _branch(attention.project, masked, u, mlp.fire, rates, f"{name}.mlp.fire")
        s = _tuned(mlp.expand, mlp.fire(u), rates[f"{name}.mlp.expand"], T)
        last = b + 1 == len(model.blocks)
        lif = model.head_lif if last else model.blocks[b + 1].attention.fire
        target = f"blocks.{b}.mlp.fire" if last else f"blocks.{b + 1}.attention.fire"
        u = _branch(mlp.contract, s, u, lif, rates, target)
    return model


def sd_attention(attention: nn.Module, s: Tensor) -> Tensor:
    """Return what reaches the projection."""
    from spikedriven.core.attention import spike_driven_attention

    q, k, v = attention.query(s), attention.key(s), attention.value(s)
    return spike_driven_attention(q, k, v, attention.gate)


def _normed(layer: ConvNorm, s: Tensor, gain: float = 1.0) -> Tensor:
    raw = layer.raw(s)
    flat = raw.flatten(0, 1).transpose(0, 1).flatten(1)
    norm = layer.norm
    norm.running_mean.copy_(flat.mean(1))
    norm.running_var.copy_(flat.var(1).clamp_min(1e-6))
    norm.weight.copy_(gain * torch.exp(SPREAD * torch.randn_like(norm.weight)))
    norm.bias.copy_(gain * SPREAD * torch.randn_like(norm.bias))
    return norm(raw.flatten(0, 1)).unflatten(0, raw.shape[:2])


def _shift(lif: nn.Module, u: Tensor, rate: float) -> float:
    low, high = -12.0, 12.0
    sample = u[..., :: max(1, u.shape[-1] // 56)]
    for _ in range(16):
        middle = (low + high) / 2
        if float(lif(sample + middle).mean()) < rate:
            low = middle
        else:
            high = middle
    return (low + high) / 2


def _tuned(layer: nn.Module, s: Tensor, rate: float, num_steps: int) -> Tensor:
    i = _normed(layer, s)
    i = i.expand(num_steps, *i.shape[1:])
    shift = _shift(layer.lif, i, rate)
    layer.norm.bias += shift
    return layer.lif((i + shift).contiguous())


def _branch(
    layer: ConvNorm, s: Tensor, u: Tensor, lif: nn.Module, rates: dict[str, float], name: str
) -> Tensor:
    u = u + _normed(layer, s, BRANCH_GAIN)
    shift = _shift(lif, u, rates[name])
    layer.norm.bias += shift
    return u + shift
