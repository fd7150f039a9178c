"""How faithful the integers are: spikes that differ from the float model's, layer by layer.

    python benchmarks/parity.py                    # SDT-8-768 at the released model's rates
    python benchmarks/parity.py RUN --data DIR     # a trained run, on its own test images

Each layer of neurons, the gates of attention and the head's among them, is given the float model's
own input (`engine/parity.py`). Kept are the share over all sites (neurons x steps x images), and
that of the worst layer.
Records go to benchmarks/results/parity.jsonl.
"""

import argparse
import time
from pathlib import Path
from typing import Any

import torch
from calibrated import calibrated, natural_image

import spikedriven as sd
from engine import SHAPES
from spikedriven.engine.parity import Agreement, compare
from spikedriven.records import keep_records, measured

RESULTS = Path(__file__).parent / "results" / "parity.jsonl"


def main() -> None:
    """Compare both kinds of weights."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", nargs="?", type=Path, help="a trained run's folder")
    parser.add_argument("--data", type=Path, help="folder of its dataset")
    parser.add_argument("--model", choices=SHAPES, default="sdt_8_768")
    parser.add_argument("--images", type=int, default=1)
    options = parser.parse_args()
    subject, model, x, normalisation = trained(options) if options.run else calibrated_one(options)
    records = []
    for weights in ("int16", "int8"):
        begin = time.perf_counter()
        agreements = compare(sd.compile(model, weights, **normalisation), model, x)
        overall = Agreement(
            fired=sum(a.fired for a in agreements.values()),
            different=sum(a.different for a in agreements.values()),
            sites=sum(a.sites for a in agreements.values()),
        )
        worst = max(agreements, key=lambda name: agreements[name].mismatch)
        print(
            f"{subject}, {weights}: {overall.mismatch:.2e} of all sites, worst "
            f"{agreements[worst].mismatch:.2e} in {worst} ({time.perf_counter() - begin:.0f} s)"
        )
        about = f"engine {weights}; {subject}"
        for metric, agreement, layer in (
            ("spike_mismatch", overall, "all"),
            ("worst_layer_spike_mismatch", agreements[worst], worst),
        ):
            context = {"layer": layer, "different": agreement.different, "rate": agreement.rate}
            records.append(
                measured(
                    metric, agreement.mismatch, "1", about, agreement.sites, images=len(x),
                    weights=weights, **context,
                )
            )  # fmt: skip
    keep_records(RESULTS, records)


def calibrated_one(options: argparse.Namespace) -> tuple[str, Any, torch.Tensor, dict[str, Any]]:
    """Return random weights at the released model's rates, with photograph-like images."""
    config, size = SHAPES[options.model]
    pixels = natural_image(options.images, config.in_channels, size, 7)
    x = torch.from_numpy(pixels).float() / 255
    return f"{options.model} at {size}, released rates", calibrated(config, x[:1]), x, {}


def trained(options: argparse.Namespace) -> tuple[str, Any, torch.Tensor, dict[str, Any]]:
    """Return a run's model with its first test images, normalised."""
    from spikedriven.train.evaluate import open_run_data
    from spikedriven.train.run import Run

    run = Run.open(options.run)
    recipe, model = run.recipe(), run.model()
    test = open_run_data(run, model.config, options.data).test
    x = torch.stack([test[i][0] for i in range(min(options.images, len(test)))])
    normalisation = {"mean": test.info.mean, "std": test.info.std}
    return f"{recipe.model.name} on {recipe.data.name}", model, x, normalisation


if __name__ == "__main__":
    main()
