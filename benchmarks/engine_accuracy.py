"""What a trained network loses in whole numbers, and what it may leave out in time.

    python benchmarks/engine_accuracy.py RUN --data DIR

Test accuracy of the float model and of both programs, answers that agree, time of an image by
itself with the additions that a trained network leaves out, and accuracy against steps: stopping
after a fixed step, and stopping each image as soon as its leading class is sure enough
(`Engine.decide`).
Records go to benchmarks/results/engine_accuracy.jsonl.
"""

import argparse
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

import spikedriven as sd
from spikedriven.engine.bench import compare_speed
from spikedriven.records import Record, keep_records, measured
from spikedriven.train.evaluate import open_run_data
from spikedriven.train.run import Run

RESULTS = Path(__file__).parent / "results" / "engine_accuracy.jsonl"
CONFIDENCES = (0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.85, 0.9, 0.95, 0.98, 0.99, 1.0)
BATCH = 100
# Images on which the rule is compared with `Engine.decide`, which takes them one by one.
DECIDED = 20
# Images that are timed, one by one, float model and programs in turns.
TIMED = 100


def main() -> None:
    """Measure one run."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", type=Path)
    parser.add_argument("--data", type=Path, help="folder of its dataset")
    options = parser.parse_args()
    run = Run.open(options.run)
    recipe, model = run.recipe(), run.model()
    test = open_run_data(run, model.config, options.data).test
    pixels = np.stack([test.pixels(i).numpy() for i in range(len(test))])
    subject = f"{recipe.model.name} on {recipe.data.name}"
    floats = float_logits(model, test)
    share = float((floats.argmax(-1) == test.labels).mean())
    print(f"{subject}, float: {share:.4f}")
    context: dict[str, Any] = {"seed": recipe.seed, "dataset": recipe.data.name}
    records = [
        measured("accuracy_by_weights", share, "1", f"float; {subject}", len(test), weights="float",
                 **context)
    ]  # fmt: skip
    programs = {
        weights: sd.compile(model, weights, mean=test.info.mean, std=test.info.std)
        for weights in ("int16", "int8")
    }
    for contender in compare_speed(model, programs, pixels[:TIMED]):
        time = contender.median / TIMED * 1e3
        more = dict(context)
        if contender.stats is not None:
            more["skipped"] = contender.stats.total.skipped
        print(f"{subject}, {contender.name}: {time:.3f} ms an image, alone")
        about = f"{contender.name}; {subject}, batch 1"
        records.append(
            measured(
                "milliseconds_per_image", time, "ms", about, TIMED,
                **more | {"weights": contender.name},
            )
        )  # fmt: skip
    for weights, program in programs.items():
        steps = logits_by_step(program, pixels)
        said = steps[-1].argmax(-1)
        share = float((said == test.labels).mean())
        same = float((said == floats.argmax(-1)).mean())
        print(f"{subject}, {weights}: {share:.4f}, the float model's answer on {same:.2%}")
        about = f"engine {weights}; {subject}"
        context["weights"] = weights
        records.append(measured("accuracy_by_weights", share, "1", about, len(test), **context))
        records.append(measured("agreement", same, "1", about, len(test), **context))
        records += curve(program, steps, pixels, test.labels, about, context)
    keep_records(RESULTS, records)


def float_logits(model: sd.SpikeDrivenTransformer, test: Any) -> NDArray[np.float32]:
    """Return the float model's logits, [N, K]."""
    parts = []
    with torch.inference_mode():
        for first in range(0, len(test), BATCH):
            last = min(first + BATCH, len(test))
            parts.append(model(torch.stack([test[i][0] for i in range(first, last)])).numpy())
    return np.concatenate(parts)


def logits_by_step(program: sd.Program, pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Return a stream's logits after every step, [T, N, K]."""
    parts = []
    for first in range(0, len(pixels), BATCH):
        stream = program.stream()
        part = pixels[first : first + BATCH]
        parts.append([stream.push(part) for _ in range(program.input.num_steps)])
    return np.concatenate([np.stack(part) for part in parts], axis=1)


def curve(
    program: sd.Program,
    steps: NDArray[np.float32],
    pixels: NDArray[np.uint8],
    labels: NDArray[np.int64],
    about: str,
    context: dict[str, Any],
) -> list[Record]:
    """Return accuracy against steps, fixed and by confidence."""
    records = []
    count = len(labels)
    for t, logits in enumerate(steps, start=1):
        share = float((logits.argmax(-1) == labels).mean())
        print(f"  after {t} steps: {share:.4f}")
        records.append(
            measured(
                "accuracy_after_steps", share, "1", f"{about}; {t} steps", count, mean_steps=t,
                **context,
            )
        )  # fmt: skip
    for confidence in CONFIDENCES:
        logits, used = decided(steps, confidence)
        some = program.engine.decide(pixels[:DECIDED], confidence)
        if not (
            np.array_equal(some[0], logits[:DECIDED]) and np.array_equal(some[1], used[:DECIDED])
        ):
            raise SystemExit(f"Engine.decide at {confidence} decides otherwise; nothing is kept")
        share, mean = float((logits.argmax(-1) == labels).mean()), float(used.mean())
        print(f"  confidence {confidence}: {share:.4f} after {mean:.2f} steps")
        records.append(
            measured(
                "accuracy_by_confidence", share, "1", f"{about}; confidence {confidence}", count,
                confidence=confidence, mean_steps=mean, **context,
            )
        )  # fmt: skip
    return records


def decided(
    steps: NDArray[np.float32], confidence: float
) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Return logits [N, K] and steps [N] at which `Engine.decide` stops, from all logits."""
    shares = np.exp(steps - steps.max(axis=-1, keepdims=True))
    leading = shares.max(axis=-1) / shares.sum(axis=-1)
    sure = leading >= confidence if confidence < 1 else np.zeros(leading.shape, np.bool_)
    sure[-1] = True
    at = sure.argmax(axis=0)
    return steps[at, np.arange(steps.shape[1])], at + 1


if __name__ == "__main__":
    main()
