"""Writes tests/golden/cifar_tiny_steps.npz: five training steps of the released code, float64.

In the released code's environment (see contenders.py):

    python benchmarks/golden_steps.py --official-path DIR

From the weights and the images of cifar_tiny.npz, by recipe `cifar10` at its full rate, without
mixup; optimiser, schedule and loss are timm's.
"""

import argparse
import ast
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from contenders import logits_of, released
from first_steps import theirs

import spikedriven as sd
from spikedriven.train.recipe import load_recipe

GOLDEN = Path(__file__).parents[1] / "tests" / "golden"
STEPS = 5


def main() -> None:
    """Train, and write every loss and the logits in the end."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--official-path", type=Path, required=True, help="the released code")
    options = parser.parse_args()
    start = np.load(GOLDEN / "cifar_tiny.npz")
    config = ast.literal_eval(str(start["config"]))
    weights = {
        key.removeprefix("param/"): torch.from_numpy(start[key])
        for key in start.files
        if key.startswith("param/")
    }
    images, labels = torch.from_numpy(start["input"]), torch.from_numpy(start["target"])
    ours = sd.load_official(
        weights, num_steps=config["T"], stem_pool=config["pooling_stat"],
        num_heads=config["num_heads"], dvs_dilation=config["dvs_mode"],
    )  # fmt: skip
    model = released(ours, options.official_path, images.shape[-1])
    recipe = load_recipe("cifar10", ["schedule.warmup_epochs=0"])
    target = F.one_hot(labels, ours.config.num_classes).double()
    losses = list(theirs(model, recipe, [(images, target)] * STEPS))
    with torch.no_grad():
        logits = logits_of(model.eval(), images)
    file = GOLDEN / "cifar_tiny_steps.npz"
    np.savez_compressed(file, losses=np.array(losses), logits=logits.numpy())


if __name__ == "__main__":
    main()
