"""Time of the whole network against the size of the image: linear in tokens?

    python benchmarks/scaling.py --model sdt_8_768 --threads 1

Larger images are tiles of one, so that firing rates stay what they are; what is left of a change is
in the kept additions. Time is fitted against tokens as a + b n; kept are the largest relative
residual of that line and the exponent of a power law. Beside it OpenVINO runs DeiT-S, whose softmax
attention grows with the square, on the same images. `attention.py` has the operator alone.
Records go to benchmarks/results/scaling.jsonl.
"""

import argparse
import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from calibrated import calibrated, natural_image
from fit import line, power
from rivals import by_openvino, has_openvino, versions
from turns import in_turns

import spikedriven as sd
from engine import SHAPES
from spikedriven.records import keep_records, measured

RESULTS = Path(__file__).parent / "results" / "scaling.jsonl"
TILE = 64
SIDES = (64, 128, 192, 256, 320, 384, 448)
PATCH = 16


def main() -> None:
    """Measure one network."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", choices=("sdt_8_768", "sdt_8_512"), default="sdt_8_768")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    config, _ = SHAPES[options.model]
    tile = natural_image(1, config.in_channels, TILE, 7)
    images = {side: np.tile(tile, (1, 1, side // TILE, side // TILE)) for side in SIDES}
    model = calibrated(config, torch.from_numpy(images[3 * TILE]).float() / 255)
    runs: dict[tuple[str, int], Callable[[], Any]] = {}
    additions: dict[tuple[str, int], int] = {}
    for weights in ("int8", "int16"):
        for side, pixels in images.items():
            program = sd.compile(model, weights)  # one for each size: buffers are of one size
            name = f"engine {weights}"
            additions[name, side] = program.run(pixels)[1].total.additions
            runs[name, side] = lambda program=program, pixels=pixels: program.run(
                pixels, threads=options.threads
            )
    if has_openvino():
        runs |= {("DeiT-S OpenVINO int8", s): deit(images[s], options.threads) for s in SIDES}
    for run in runs.values():
        run()
    seconds = in_turns(runs, options.rounds)
    records = []
    for name in dict.fromkeys(name for name, _ in runs):
        subject = f"{name}; {options.model} by tokens, T=4, {options.threads} threads"
        tokens = [(side // PATCH) ** 2 for side in SIDES]
        times = [statistics.median(seconds[name, side]) * 1e3 for side in SIDES]
        context = {"contender": name, "model": options.model, "threads": options.threads}
        for side, n, time in zip(SIDES, tokens, times, strict=True):
            more: dict[str, Any] = {"side": side, "tokens": n, **context, **versions()}
            if (name, side) in additions:
                more["additions_per_token"] = additions[name, side] / n
            records.append(
                measured("milliseconds", time, "ms", f"{subject}: {n}", options.rounds, **more)
            )
        offset, slope, residual = line(tokens, times)
        exponent = power(tokens, times)
        print(
            f"{subject}: {offset:.2f} + {slope:.4f} ms each, off by at most {residual:.1%}; grows "
            f"with the power {exponent:.3f} ({', '.join(f'{time:.1f}' for time in times)} ms)"
        )
        context |= {"offset": offset, "slope": slope, "axis": "tokens"}
        records.append(
            measured("linear_fit_residual", residual, "1", subject, len(SIDES), **context)
        )
        records.append(measured("growth_exponent", exponent, "1", subject, len(SIDES), **context))
    setting = {"model": options.model, "threads": options.threads}
    keep_records(RESULTS, records, instead_of=lambda r: setting.items() <= r.context.items())


def deit(pixels: np.ndarray, threads: int) -> Callable[[], Any]:
    """Return a call of DeiT-S for this size of image."""
    import timm

    network = timm.create_model("deit_small_patch16_224", img_size=pixels.shape[-1]).eval()
    return by_openvino(network, torch.from_numpy(pixels).float() / 255, threads)["int8"]


if __name__ == "__main__":
    main()
