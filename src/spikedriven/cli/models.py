"""`spikedriven models`: the published sizes."""

from argparse import Namespace
from typing import TYPE_CHECKING, Any

from spikedriven.cli.console import say, show_json, show_table

if TYPE_CHECKING:
    from spikedriven.models.sdt import SDTConfig
    from spikedriven.models.variants import Variant


def run(options: Namespace) -> int:
    """List every variant: exact sizes, what was published, and what measured rates cost."""
    from spikedriven.models.variants import VARIANTS

    rows: list[dict[str, Any]] = []
    for name, variant in VARIANTS.items():
        parameters, operations = _size(name, variant.config, variant.image_size)
        rows.append(
            {
                "name": name,
                "task": variant.task,
                "parameters": parameters,
                "dense_synaptic_operations": operations,
                "time_steps": variant.config.num_steps,
                "image_size": variant.image_size,
                "published_accuracy": variant.published_accuracy,
                "published_energy_mj": variant.published_energy_mj,
                "energy_by_measured_rates_mj": _by_measured_rates(name, variant),
            }
        )
    if options.json:
        show_json(rows)
        return 0
    show_table(
        ["model", "task", "parameters", "dense G", "T", "px", "top-1", "mJ"],
        [
            (
                row["name"],
                row["task"],
                f"{row['parameters']:,}",
                f"{row['dense_synaptic_operations'] / 1e9:.2f}",
                row["time_steps"],
                row["image_size"],
                row["published_accuracy"] or "-",
                f"{energy:.2f}" if (energy := row["published_energy_mj"]) else "-",
            )
            for row in rows
        ],
    )
    say()
    say("dense G: 1e9 synaptic operations per image if every neuron fired at all T steps")
    say("top-1 (%), mJ per image: as the paper printed them (Tables 3, 5); - where not")
    for row in rows:
        if measured := row["energy_by_measured_rates_mj"]:
            say(f"{row['name']}: {measured:.2f} mJ executed, by firing rates that were measured")
    return 0


def _by_measured_rates(name: str, variant: "Variant") -> float | None:
    """Return the energy of one image by a packaged table of firing rates, where there is one.

    What is executed is charged, with the first layer computed once, as `spikedriven energy` does.
    """
    from spikedriven.energy.account import Estimate, energy
    from spikedriven.energy.rates import list_rates, load_rates
    from spikedriven.energy.shape import network

    size = variant.image_size
    for table in list_rates():
        rates = load_rates(table)
        if (rates.model, rates.image_size) == (name, size):
            net = network(variant.config, size, size)
            return energy(Estimate(network=net, rates=rates), "executed").total_mj
    return None


def _size(name: str, config: "SDTConfig", image_size: int) -> tuple[int, int]:
    """Return the exact number of parameters, and of synaptic operations if all neurons fired.

    The second is what the literature counts: outputs times weights per output, padding included,
    at every time step. Tensors on torch's meta device have shapes and no content.
    """
    import torch
    from torch import Tensor, nn

    from spikedriven.models.registry import create_model

    operations = 0

    def add(layer: nn.Module, _inputs: object, output: Tensor) -> None:
        nonlocal operations
        assert isinstance(layer.weight, Tensor)
        operations += output.numel() * layer.weight[0].numel()

    with torch.device("meta"), torch.no_grad():
        model = create_model(name).eval()
        one_frame = torch.zeros(1, 1, config.in_channels, image_size, image_size)
        for layer in model.modules():
            if isinstance(layer, nn.Conv2d | nn.Linear):
                layer.register_forward_hook(add)
        model(one_frame)
    return sum(p.numel() for p in model.parameters()), operations * config.num_steps
