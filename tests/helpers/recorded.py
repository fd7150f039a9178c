"""Records of every kind that a figure draws, small enough to check by eye."""

from typing import Any

from spikedriven.records import Record


def record(
    metric: str, value: float, subject: str, device: str = "a CPU", **context: Any
) -> Record:
    return Record(
        metric=metric, value=value, unit="1", subject=subject, count=3, command="python x.py",
        commit="abc", device=device, context=context,
    )  # fmt: skip


SETTING = "sdt_8_768 at 224, T=4, batch 1, 2 threads"
SPEED = [
    record("milliseconds", ms, f"{name}; {SETTING}", contender=name, model="sdt_8_768", batch=1,
           threads=2)
    for name, ms in (("DeiT-S OpenVINO int8", 10.0), ("engine int16", 80.0),
                     ("OpenVINO int8", 200.0), ("PyTorch float32 eager", 700.0),
                     ("engine int8", 40.0))
] + [
    record("times_slower_than_engine_int8", 17.25, f"PyTorch float32 eager; {SETTING}",
           contender="PyTorch float32 eager", model="sdt_8_768", batch=1, threads=2),
]  # fmt: skip
LAYER = "1x1, 8 to 8, 14 x 14"


def layer_time(contender: str, ms: float, **more: Any) -> Record:
    return record(
        "layer_milliseconds", ms, f"{contender}; {more}", contender=contender, layer=LAYER,
        threads=2, **more,
    )  # fmt: skip


FIRING_RATE = [
    *(layer_time("engine int8", ms, kind="independent", rate=rate)
      for rate, ms in ((0.0, 1.0), (1.0, 5.0), (0.5, 6.0))),
    *(layer_time("engine int8", ms, kind="held", rate=rate)
      for rate, ms in ((0.0, 1.0), (1.0, 3.0))),
    layer_time("OpenVINO int8", 4.0),
    layer_time("PyTorch float32", 9.0),
    record("crossover_rate", 0.3, "engine int8; independent", contender="engine int8", layer=LAYER,
           kind="independent", threads=2, until=1.0, rival="OpenVINO int8"),
]  # fmt: skip
ACCURACY = [
    record("accuracy_by_weights", 0.99, "float; net on digits", weights="float"),
    record("accuracy_by_weights", 0.98, "engine int8; net on digits", weights="int8"),
    record("agreement", 0.995, "engine int8; net on digits", weights="int8"),
    *(record("accuracy_after_steps", share, f"engine int8; net on digits; {t} steps",
             weights="int8", mean_steps=t) for t, share in ((2, 0.9), (1, 0.6))),
    *(record("accuracy_by_confidence", share, f"engine int8; net on digits; confidence {c}",
             weights="int8", confidence=c, mean_steps=steps)
      for c, steps, share in ((0.9, 1.75, 0.88), (0.5, 1.25, 0.7))),
]  # fmt: skip
ATTENTION = "engine's attention, T=4, by tokens, 768 channels"
SCALING = [
    *(record("attention_microseconds", us, f"{ATTENTION}: {n}", axis="tokens", size=n)
      for n, us in ((200, 5.0), (100, 3.0))),
    record("linear_fit_residual", 0.25, ATTENTION, axis="tokens", offset=1.0, slope=0.02),
    record("growth_exponent", 0.75, ATTENTION, axis="tokens"),
]  # fmt: skip
TRAINING = [
    *(record("validation_accuracy_at_step", share, "net on digits", step=step, epoch=0)
      for step, share in ((20, 0.75), (10, 0.5))),
    *(record("training_accuracy_at_step", share, "net on digits", step=step, epoch=0)
      for step, share in ((5, 0.25), (15, 0.625))),
    record("test_accuracy", 0.8125, "net on digits"),
]  # fmt: skip
ENERGY_CURVE = [
    record(metric, value, f"net on digits, attention, T={steps}, budget {budget}",
           curve="net on digits, attention", budget=budget, num_steps=steps)
    for steps, budget, mj, share, accuracy in (
        (4, "0.1", 0.25, 0.125, 0.75), (4, "none", 0.5, 0.25, 0.875),
        (1, "0.1", 0.125, 1 / 128, 0.5),
    )
    for metric, value in (("energy_executed", mj), ("attention_share_executed", share),
                          ("executed_share", 0.3), ("test_accuracy", accuracy))
]  # fmt: skip
STEP = "net at 8, stem 0011, batch 4, 1 threads"
TRAINING_SPEED = [
    record(metric, value, f"{who}; {STEP}", contender=who, threads=1)
    for who, figures in {
        "SpikingJelly 2": {"training_images_per_second": 40.0, "training_peak_bytes": 3 * 2**20,
                           "training_times_slower": 1.75},
        "spikedriven": {"training_images_per_second": 64.0, "training_peak_bytes": 2**20},
    }.items()
    for metric, value in figures.items()
]  # fmt: skip
FIRST_STEPS = [
    record("loss_at_step", loss, f"{who}; net on images, rate full; step {step}", contender=who,
           step=step)
    for who, course in {"spikedriven": (2.25, 2.5), "released code": (2.25, 2.0),
                        "released code, neighbouring weights 0": (2.0, 2.0)}.items()
    for step, loss in reversed(list(enumerate(course)))
]  # fmt: skip
TIME_TO_ACCURACY = [
    record("accuracy_after_epoch", share, f"{who}; net on images, 2 threads; epoch {epoch}",
           contender=who, epoch=epoch, seconds=pace * (epoch + 1))
    for who, pace, course in (("spikedriven", 10.0, (0.5, 0.875)),
                              ("SpikingJelly 2", 20.0, (0.5, 0.75)))
    for epoch, share in reversed(list(enumerate(course)))
] + [
    record("seconds_to_accuracy", 20.0, contender="spikedriven",
           subject="spikedriven; net on images, 2 threads, validation accuracy 0.8")
]  # fmt: skip
EVERYTHING = [*SPEED, *FIRING_RATE, *ACCURACY, *SCALING, *TRAINING, *ENERGY_CURVE,
              *TRAINING_SPEED, *FIRST_STEPS, *TIME_TO_ACCURACY]  # fmt: skip
