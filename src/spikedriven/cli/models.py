"""`spikedriven models`: the published sizes."""

from argparse import Namespace

from spikedriven.cli.console import say, show_json, show_table


def run(options: Namespace) -> int:
    """List every variant with its exact number of parameters."""
    import torch

    from spikedriven.models.registry import create_model
    from spikedriven.models.variants import VARIANTS

    rows = []
    for name, variant in VARIANTS.items():
        with torch.device("meta"):
            model = create_model(name)
        rows.append(
            {
                "name": name,
                "task": variant.task,
                "parameters": sum(p.numel() for p in model.parameters()),
                "time_steps": variant.config.num_steps,
                "image_size": variant.image_size,
                "published_accuracy": variant.published_accuracy,
                "published_energy_mj": variant.published_energy_mj,
            }
        )
    if options.json:
        show_json(rows)
        return 0
    show_table(
        ["model", "task", "parameters", "T", "pixels", "paper %", "paper mJ"],
        [
            (
                row["name"],
                row["task"],
                f"{row['parameters']:,}",
                row["time_steps"],
                row["image_size"],
                row["published_accuracy"] or "-",
                row["published_energy_mj"] or "-",
            )
            for row in rows
        ],
    )
    say()
    say("paper: top-1 and energy per image as printed there (Tables 3 and 5); - where it has none.")
    return 0
