"""Run by test_counts_of_processes.py in processes of its own: one of two that share a dataset.

python counted_apart.py RANK FOLDER
"""

import pickle
import sys
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist

import spikedriven as sd
from spikedriven.data import PartSampler, Place
from spikedriven.energy.counts import Counts, counting

RANKS, BATCH = 2, 3
PATIENCE = timedelta(seconds=60)
"""How long a process waits for the other before it gives up."""
LENGTHS = (7, 1)
"""Images in the dataset: 4 and 3 of 7, in partial batches; of one image, one and none."""


def counted(model: sd.SpikeDrivenTransformer, images: torch.Tensor, place: Place) -> Counts:
    """Count a process's own part, in batches, the last of them partial."""
    sampler = PartSampler(len(images), place)
    own = images[list(sampler)[: sampler.own]]
    with counting(model) as counts, torch.inference_mode():
        for batch in own.split(BATCH) if len(own) else ():
            model(batch)
    return counts


def main() -> None:
    """Count this process's part of each dataset; keep its counts and those of both."""
    rank, folder = int(sys.argv[1]), Path(sys.argv[2])
    dist.init_process_group(
        "gloo", init_method=f"file://{folder / 'meeting'}", rank=rank, world_size=RANKS,
        timeout=PATIENCE,
    )  # fmt: skip
    model, images = torch.load(folder / "subject.pt", weights_only=False)
    found = []
    for length in LENGTHS:
        counts = counted(model, images[:length], Place(rank, RANKS))
        found.append((counts, counts.gathered()))
    (folder / f"{rank}.pickle").write_bytes(pickle.dumps(found))
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
