r"""Training beside SpikingJelly 2 and the released code: speed, memory, time to accuracy.

    python benchmarks/train.py --rival spikingjelly --rival official --official-path DIR \
        --spikingjelly-python .sj2/bin/python --official-python .released/bin/python

contenders.py says how the environments are made; each contender is a process of its own. All get
the same weights and the same batch, and must give the same logits and the same gradient in float64
(the gate) before one is timed. Then they take turns, a step each, while the others wait: a ratio is
the median over rounds, each with its neighbour. A step is forward, loss, backward and AdamW. Peak
memory is what two steps add to what a process held before the first whole step, on Linux.
`--epochs N` trains recipe `digits` on all sides, too, an epoch in turn, with the same batches.
Records go to benchmarks/results/train.jsonl; `spikedriven report` draws them.
"""

import argparse
import copy
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import contenders
import torch
import torch.nn.functional as F
from contenders import RELEASED, SPIKINGJELLY, forget, logits_of
from torch import Tensor, nn
from turns import LOUD, Bystanders, ratio

import spikedriven as sd
from spikedriven.records import Record, keep_records, measured

RESULTS = Path(__file__).parent / "results" / "train.jsonl"
OURS = "spikedriven"
RIVALS = {"spikingjelly": SPIKINGJELLY, "official": RELEASED}
# In float64: in float32 a rounding difference becomes a spike, and spikes spread.
LOGIT_BAND, GRADIENT_BAND = 1e-9, 1e-8
GATE_IMAGES = 2


@dataclass(frozen=True)
class Workload:
    """A shape to train: two blocks, four steps, ten classes."""

    width: int
    stem_pool: str
    size: int
    batch: int

    @property
    def name(self) -> str:
        """How records call it."""
        return f"sdt_2_{self.width} at {self.size}, stem {self.stem_pool}"

    @property
    def config(self) -> sd.SDTConfig:
        """Its model."""
        return sd.SDTConfig(2, self.width, 10, stem_pool=self.stem_pool)


WORKLOADS = [
    Workload(128, "0011", 32, 32),
    Workload(256, "0011", 32, 32),
    Workload(384, "1111", 64, 32),
]
TINY = [Workload(32, "0011", 8, 4)]


# ------------------------------------------------------------------ inside a contender's process


class Server:
    """One contender, doing what it is asked."""

    def __init__(self, who: str, official_path: Path | None) -> None:
        self.who = who
        self.official_path = official_path

    def contender(self, model: sd.SpikeDrivenTransformer, size: int) -> nn.Module:
        """Return this contender's model with the weights of ours."""
        if self.who == SPIKINGJELLY:
            return contenders.spikingjelly(model)
        if self.who == RELEASED:
            assert self.official_path is not None
            return contenders.released(model, self.official_path, size)
        return model

    def prepare(self, file: str, width: int, stem_pool: str, size: int, batch: int) -> None:
        """Take the weights and the batch of a workload."""
        load = Workload(width, stem_pool, size, batch)
        given = torch.load(file, weights_only=True)
        model = sd.SpikeDrivenTransformer(load.config)
        model.load_state_dict(given["weights"])
        self.model = self.contender(model, size).train()
        self.images, self.labels = given["images"], given["labels"]

    def memory(self) -> int:
        """Return how many bytes two steps add to this process's peak; asked first of all."""
        model = copy.deepcopy(self.model)
        step_of(model, self.images[:2], self.labels[:2])()  # libraries, kernels and threads
        before = high_water()
        step = step_of(model, self.images, self.labels)
        step()
        step()
        return high_water() - before

    def gate(self, file: str) -> None:
        """Write logits and the first convolution's gradient in float64."""
        model = copy.deepcopy(self.model).double()
        logits = logits_of(model, self.images[:GATE_IMAGES].double())
        F.cross_entropy(logits, self.labels[:GATE_IMAGES]).backward()
        first = next(m for m in model.modules() if isinstance(m, nn.Conv2d))
        torch.save({"logits": logits.detach(), "gradient": first.weight.grad}, file)

    def warm(self) -> None:
        """Take the first step, which is not timed."""
        self.step = step_of(self.model, self.images, self.labels)
        self.step()

    def turn(self) -> tuple[float, float]:
        """Return the seconds of a step: on the clock, and of processors."""
        begin, worked = time.perf_counter(), time.process_time()
        self.step()
        return time.perf_counter() - begin, time.process_time() - worked

    def begin_learning(self) -> None:
        """Start recipe `digits` from its seed's weights."""
        from spikedriven.data.loaders import make_loader
        from spikedriven.data.sources import open_data
        from spikedriven.train.module import build_optimizer
        from spikedriven.train.recipe import load_recipe

        self.recipe = load_recipe("digits")
        splits = open_data(self.recipe.data, seed=self.recipe.seed)
        torch.manual_seed(self.recipe.seed)
        info = splits.info
        ours = sd.create_model(
            self.recipe.model.name,
            **self.recipe.model.overrides(),
            num_classes=len(info.classes),
            in_channels=info.in_channels,
        )
        self.model = self.contender(ours, info.image_size)
        data, seed = self.recipe.data, self.recipe.seed
        self.loader = make_loader(splits.train, batch_size=data.batch_size, shuffle=True, seed=seed)
        self.validation = make_loader(splits.validation, batch_size=data.batch_size)
        self.optimizer = build_optimizer(self.model, self.recipe.optimizer)  # type: ignore[arg-type]

    def epoch(self, number: int) -> dict[str, float]:
        """Train an epoch; return its seconds and the validation accuracy after it."""
        from spikedriven.train.module import set_rate

        begin = time.perf_counter()
        self.model.train()
        set_rate(self.optimizer, self.recipe.schedule, number)
        self.loader.sampler.set_epoch(number)  # type: ignore[attr-defined]
        for images, labels in self.loader:
            self.optimizer.zero_grad(set_to_none=True)
            smoothing = self.recipe.loss.label_smoothing
            logits = logits_of(self.model, images)
            F.cross_entropy(logits, labels, label_smoothing=smoothing).backward()
            self.optimizer.step()
            forget(self.model)
        seconds = time.perf_counter() - begin
        self.model.eval()
        hits = count = 0
        for images, labels in self.validation:
            with torch.no_grad():
                hits += int((logits_of(self.model, images).argmax(-1) == labels).sum())
            forget(self.model)
            count += len(labels)
        return {"seconds": seconds, "accuracy": hits / count, "images": count}

    def serve(self) -> None:
        """Answer requests, one a line, until there are no more."""
        answers, sys.stdout = sys.stdout, sys.stderr  # libraries may print
        for line in sys.stdin:
            request = json.loads(line)
            try:
                answer = {"value": getattr(self, request["do"])(**request["arguments"])}
            except ImportError as error:
                answer = {"error": str(error)}
            print(json.dumps(answer), file=answers, flush=True)


def step_of(model: nn.Module, images: Tensor, labels: Tensor) -> Callable[[], None]:
    """Return one training step."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        F.cross_entropy(logits_of(model, images), labels).backward()
        optimizer.step()
        forget(model)

    return step


def high_water() -> int:
    """Return the largest resident size of this process so far, in bytes.

    Not getrusage's: that one counts the parent's size at the fork.
    """
    status = Path("/proc/self/status").read_text()
    line = next(line for line in status.splitlines() if line.startswith("VmHWM:"))
    return int(line.split()[1]) * 1024


# ------------------------------------------------------------------ outside


class Contender:
    """A contender's process, which works only while it is asked."""

    def __init__(self, who: str, python: str, options: argparse.Namespace) -> None:
        self.who = who
        command = [python, __file__, "--serve", who, "--threads", str(options.threads)]
        if options.official_path is not None:
            command += ["--official-path", str(options.official_path)]
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def ask(self, what: str, **arguments: Any) -> Any:
        """Have a method of its `Server` called, and return the answer."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps({"do": what, "arguments": arguments}) + "\n")
        self._process.stdin.flush()
        line = self._process.stdout.readline()
        if not line:
            raise SystemExit(f"{self.who}: its process ended at {what}; its reason stands above")
        answer = json.loads(line)
        if "error" in answer:
            raise SystemExit(f"{self.who} cannot be measured: {answer['error']}")
        return answer["value"]

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        _kind: type[BaseException] | None,
        _error: BaseException | None,
        _trace: TracebackType | None,
    ) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()


def gated(everybody: list[Contender], folder: Path) -> dict[str, float]:
    """Return how far each rival's float64 logits and gradient are from ours, relative to these.

    Raises:
        SystemExit: Too far; nothing is timed.
    """
    found = {}
    for contender in everybody:
        file = folder / "gate.pt"
        contender.ask("gate", file=str(file))
        found[contender.who] = torch.load(file, weights_only=True)
    mine, apart = found.pop(OURS), {}
    for who, other in found.items():
        logits = float((mine["logits"] - other["logits"]).abs().max())
        scale = float(mine["gradient"].abs().max())
        gradient = float((mine["gradient"] - other["gradient"]).abs().max()) / scale
        if not (logits <= LOGIT_BAND and gradient <= GRADIENT_BAND):
            raise SystemExit(
                f"{who}: logits differ by {logits:.1e} and the first gradient by {gradient:.1e} of "
                "itself; another network is not timed"
            )
        apart[who] = max(logits, gradient)
    return apart


def compare(load: Workload, options: argparse.Namespace) -> list[Record]:
    """Measure one workload on all sides."""
    torch.manual_seed(0)
    model = sd.SpikeDrivenTransformer(load.config)
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        images = torch.randn(load.batch, 3, load.size, load.size)
        labels = torch.randint(0, 10, (load.batch,))
        given = folder / "given.pt"
        torch.save({"weights": model.state_dict(), "images": images, "labels": labels}, given)
        everybody = [stack.enter_context(c) for c in started(options)]
        memory = {}
        for contender in everybody:
            contender.ask("prepare", file=str(given), **vars(load))
            memory[contender.who] = contender.ask("memory")
        apart = gated(everybody, folder)
        for contender in everybody:
            contender.ask("warm")
        watch = Bystanders()
        seconds: dict[str, list[tuple[float, float]]] = {c.who: [] for c in everybody}
        for _ in range(options.rounds):
            for contender in everybody:
                seconds[contender.who].append(contender.ask("turn"))
        others = watch.share(sum(work for pairs in seconds.values() for _, work in pairs))
    return figures(load, options, seconds, memory, apart, others)


def figures(
    load: Workload,
    options: argparse.Namespace,
    seconds: dict[str, list[tuple[float, float]]],
    memory: dict[str, int],
    apart: dict[str, float],
    others: float,
) -> list[Record]:
    """Return the records of one workload.

    The ratio of processor time stands beside that of the clock: others disturb it less.
    """
    setting = f"{load.name}, batch {load.batch}, {options.threads} threads"
    records = []
    own, own_work = zip(*seconds[OURS], strict=True)
    for who, pairs in seconds.items():
        times, work = zip(*pairs, strict=True)
        context = {
            "contender": who, "workload": load.name, "batch": load.batch,
            "threads": options.threads, "torch": torch.__version__, "others": others,
        }  # fmt: skip
        subject = f"{who}; {setting}"
        rate = load.batch / statistics.median(times)
        records += [
            measured("training_images_per_second", rate, "1/s", subject, len(times), **context),
            measured("training_peak_bytes", memory[who], "B", subject, 2, **context,
                     of_ours=memory[who] / memory[OURS]),
        ]  # fmt: skip
        if who != OURS:
            each = [a / b for a, b in zip(times, own, strict=True)]
            low, _, high = statistics.quantiles(each, n=4)
            records.append(
                measured("training_times_slower", ratio(times, own), "1", subject, len(times),
                         **context, low=low, high=high, difference=apart[who],
                         of_processor_time=ratio(work, own_work))
            )  # fmt: skip
    if others > LOUD:
        print(f"other processes took {others:.0%} of the processor: only the ratios hold")
    return records


def learn(options: argparse.Namespace) -> list[Record]:
    """Train recipe `digits` on all sides, an epoch in turn."""
    about = f"sdt_tiny on digits, {options.threads} threads"
    with ExitStack() as stack:
        everybody = [stack.enter_context(c) for c in started(options)]
        for contender in everybody:
            contender.ask("begin_learning")
        spent: dict[str, float] = {c.who: 0.0 for c in everybody}
        records, reached = [], set()
        for epoch in range(options.epochs):
            for contender in everybody:
                who, found = contender.who, contender.ask("epoch", number=epoch)
                spent[who] += found["seconds"]
                accuracy, count = found["accuracy"], int(found["images"])
                print(f"{who}: epoch {epoch}, {spent[who]:.1f} s, {accuracy:.4f}", flush=True)
                context = {
                    "contender": who, "epoch": epoch, "threads": options.threads,
                    "seconds": spent[who], "torch": torch.__version__,
                }  # fmt: skip
                subject = f"{who}; {about}; epoch {epoch}"
                records.append(
                    measured("accuracy_after_epoch", accuracy, "1", subject, count, **context)
                )
                if accuracy >= options.accuracy and who not in reached:
                    reached.add(who)
                    print(f"{who}: {options.accuracy} after {spent[who]:.1f} s", flush=True)
                    goal = f"{who}; {about}, validation accuracy {options.accuracy}"
                    records.append(
                        measured("seconds_to_accuracy", spent[who], "s", goal, count, **context)
                    )
    for who in (who for who in spent if who not in reached):
        print(f"{who}: {options.accuracy} was not reached in {options.epochs} epochs")
    return records


def started(options: argparse.Namespace) -> list[Contender]:
    """Return the contenders' processes, ours first."""
    pythons = {SPIKINGJELLY: options.spikingjelly_python, RELEASED: options.official_python}
    everybody = [Contender(OURS, sys.executable, options)]
    for rival in dict.fromkeys(options.rival):
        everybody.append(Contender(RIVALS[rival], pythons[RIVALS[rival]], options))
    return everybody


def main() -> None:
    """Compare on every workload, print and keep the records."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rival", action="append", choices=RIVALS, default=[])
    parser.add_argument("--official-path", type=Path, help="a checkout of the released code")
    parser.add_argument("--spikingjelly-python", default=sys.executable, metavar="PYTHON")
    parser.add_argument("--official-python", default=sys.executable, metavar="PYTHON")
    parser.add_argument("--rounds", type=int, default=9, help="steps of each, at least two")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--workload", type=int, choices=range(len(WORKLOADS)), action="append")
    parser.add_argument("--epochs", type=int, default=0, help="epochs of digits, on all sides")
    parser.add_argument("--accuracy", type=float, default=0.95, help="up to which time is taken")
    parser.add_argument("--tiny", action="store_true", help="a small network; keeps no record")
    parser.add_argument("--serve", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if "official" in options.rival and options.official_path is None:
        parser.error("the released code's folder is not given: --official-path DIR")
    if options.rounds < 2:
        parser.error("of one round there is no spread: --rounds 2")
    torch.set_num_threads(options.threads)
    if options.serve:
        Server(options.serve, options.official_path).serve()
        return
    chosen = range(len(WORKLOADS)) if options.workload is None else options.workload
    records = []
    for load in TINY if options.tiny else [WORKLOADS[n] for n in chosen]:
        found = compare(load, options)
        for record in found:
            print(f"{record.subject}: {record.metric} {record.value:.4g} {record.unit}", flush=True)
        records += found
    if options.epochs:
        records += learn(options)
    if not options.tiny:  # last: a changed file would make the commit look altered
        keep_records(RESULTS, records)


if __name__ == "__main__":
    main()
