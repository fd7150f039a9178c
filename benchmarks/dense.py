"""What a user would run without the engine: the same network in dense PyTorch, made to be fast.

Batch norms are folded, the image's convolution runs once, tensors are channels-last, neurons are
four plain lines. The same weights as the model; the same spikes, up to rounding.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import spikedriven as sd
from spikedriven.nn.synapse import ConvNorm


def lif(i_TBCHW: Tensor, v_threshold: float = 1.0) -> Tensor:
    """Neurons with tau = 2 over all steps."""
    v = torch.zeros_like(i_TBCHW[0])
    spikes = []
    for i in i_TBCHW.unbind(0):
        v = v + (i - v) * 0.5
        s = (v >= v_threshold).to(i.dtype)
        v = v * (1 - s)
        spikes.append(s)
    return torch.stack(spikes)


class Folded(nn.Module):
    """Convolution with its batch norm inside, over [T, B, C, H, W]."""

    def __init__(self, layer: ConvNorm) -> None:
        super().__init__()
        conv, norm = layer.conv, layer.norm
        factor = norm.weight / (norm.running_var + norm.eps).sqrt()
        bias = torch.zeros_like(factor) if conv.bias is None else conv.bias
        self.weight = nn.Parameter((conv.weight * factor[:, None, None, None]).detach())
        self.bias = nn.Parameter(((bias - norm.running_mean) * factor + norm.bias).detach())
        self.padding = int(conv.padding[0])

    def forward(self, s: Tensor) -> Tensor:
        """Return the current."""
        current = F.conv2d(s.flatten(0, 1), self.weight, self.bias, padding=self.padding)
        return current.unflatten(0, s.shape[:2])


class Dense(nn.Module):
    """A `SpikeDrivenTransformer` in evaluation, without dilation."""

    def __init__(self, model: sd.SpikeDrivenTransformer) -> None:
        super().__init__()
        stem = model.stem
        self.num_steps, self.pools = model.config.num_steps, stem.pools
        self.stem = nn.ModuleList(
            Folded(layer) for layer in (stem.image, stem.second, stem.third, stem.fourth)
        )
        self.position = Folded(stem.position)
        self.blocks = nn.ModuleList(
            nn.ModuleDict(
                {
                    "q": Folded(block.attention.query),
                    "k": Folded(block.attention.key),
                    "v": Folded(block.attention.value),
                    "project": Folded(block.attention.project),
                    "expand": Folded(block.mlp.expand),
                    "contract": Folded(block.mlp.contract),
                }
            )
            for block in model.blocks
        )
        self.head = nn.Linear(model.head.in_features, model.head.out_features)
        self.head.load_state_dict(model.head.state_dict())
        self.to(memory_format=torch.channels_last)

    def forward(self, x: Tensor) -> Tensor:
        """Classify images [B, C, H, W]."""
        s = self._pooled(0, self.first_spikes(x))
        s = self._pooled(1, lif(self.stem[1](s)))
        s = self._pooled(2, lif(self.stem[2](s)))
        u = self._pooled(3, self.stem[3](s))
        u = u + self.position(lif(u))
        for block in self.blocks:
            s = lif(u)
            q, k, v = lif(block["q"](s)), lif(block["k"](s)), lif(block["v"](s))
            gate = lif((k * v).sum(dim=(-2, -1)), 0.5)
            u = u + block["project"](q * gate[..., None, None])
            u = u + block["contract"](lif(block["expand"](lif(u))))
        return self.head(lif(u.mean(dim=(-2, -1)))).mean(0)

    def first_spikes(self, x: Tensor) -> Tensor:
        """Return the spikes behind the first convolution, before pooling."""
        i = self.stem[0](x.unsqueeze(0))
        return lif(i.expand(self.num_steps, -1, -1, -1, -1))

    def _pooled(self, stage: int, x: Tensor) -> Tensor:
        if not self.pools[stage]:
            return x
        return F.max_pool2d(x.flatten(0, 1), 3, 2, 1).unflatten(0, x.shape[:2])


class FirstSpikes(nn.Module):
    """The first layer of a `Dense` alone: what can be compared before chaos sets in."""

    def __init__(self, dense: Dense) -> None:
        super().__init__()
        self.dense = dense

    def forward(self, x: Tensor) -> Tensor:
        """Return spikes [T, B, C, H, W]."""
        return self.dense.first_spikes(x)
