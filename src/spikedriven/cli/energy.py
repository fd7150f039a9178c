"""`spikedriven energy`: what a network computes and what that costs, by every convention."""

import csv
import math
import sys
from argparse import Namespace
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from spikedriven.cli.console import say, show_json, show_table
from spikedriven.errors import ConfigError, DataError
from spikedriven.records import Record, append_records, this_command, this_commit, this_device

if TYPE_CHECKING:
    from spikedriven.energy.account import Account, Estimate
    from spikedriven.energy.counts import Counts
    from spikedriven.energy.shape import Network

BATCH = 128
ROWS = ("part", "block", "layer")


@dataclass(frozen=True, kw_only=True)
class _Subject:
    """What is charged."""

    name: str
    source: str
    """Where spikes or rates come from."""
    counted: "Counts | Estimate"
    network: "Network"
    time_steps: int
    printed: str = ""
    """What the paper printed for this model, and beside images of which size."""


def run(options: Namespace) -> int:
    """Count or read rates, charge them, print."""
    from spikedriven.energy.account import CONVENTIONS, IMAGES, ann, attention, energy
    from spikedriven.energy.costs import TABLES, load_costs

    _check_choice("--by", options.by, ROWS)
    _check_choice("--image", options.image, IMAGES)
    if options.convention is not None:
        _check_choice("--convention", options.convention, CONVENTIONS)
    if options.csv and options.json:
        raise ConfigError("--csv and --json were both given; one is printed: leave one out")
    costs = load_costs(options.costs)
    subject = _opened(options)
    wanted = CONVENTIONS if options.convention is None else (options.convention,)
    accounts = {
        name: energy(subject.counted, name, costs=costs, image=options.image) for name in wanted
    }
    accounts["ann"] = ann(subject.counted, costs)
    if "memory" in wanted:
        accounts["ann_memory"] = ann(subject.counted, costs, memory=True)
    with_int8 = {
        "executed": energy(subject.counted, costs=TABLES["int8"], image=options.image).total_mj,
        "ann": ann(subject.counted, TABLES["int8"]).total_mj,
    }
    first_layer = {
        image: energy(subject.counted, costs=costs, image=image).total_mj
        for image in _countable_images(subject)
    }
    ratios = {
        name: attention(subject.counted, name, costs=costs) for name in ("published", "executed")
    }
    if options.records is not None:
        records = _records(subject, accounts, options.image)
        try:
            append_records(Path(options.records), records)
        except (FileExistsError, IsADirectoryError, NotADirectoryError, PermissionError) as error:
            raise ConfigError(
                f"--records is {options.records}, which cannot be written ({error.strerror}); it "
                "must be a .jsonl file, in a folder: choose another"
            ) from error
    if options.csv:
        _print_csv(accounts)
        return 0
    if options.json:
        show_json(
            {
                "model": subject.name,
                "source": subject.source,
                "image_size": [subject.network.height, subject.network.width],
                "time_steps": subject.time_steps,
                "images": accounts["ann"].images or getattr(subject.counted, "images", 0),
                "costs": asdict(costs),
                "accounts": {
                    name: {
                        "total_mj": account.total_mj,
                        "beside_mj": account.beside_mj,
                        "by_part": account.by_part(),
                        "by_block": account.by_block(),
                        "by_layer": account.by_layer(),
                    }
                    for name, account in accounts.items()
                },
                "executed_by_first_layer": first_layer,
                "additions_by_step": _by_step(subject),
                "int8": with_int8,
                "attention": {
                    name: {
                        **asdict(ratio),
                        "ratio": _finite(ratio.ratio),
                        "ratio_project": _finite(ratio.ratio_project),
                    }
                    for name, ratio in ratios.items()
                },
            }
        )
        return 0
    net = subject.network
    say(f"{subject.name}, {net.height} x {net.width} pixels, T = {subject.time_steps}")
    say(f"Spikes: {subject.source}")
    say(f"Costs: {costs.precision}, {costs.node_nm:g} nm; {costs.citation}")
    # Networks of a laptop cost microjoules.
    unit, size = ("mJ", 1.0) if accounts["ann"].total_mj >= 1 else ("uJ", 1e3)
    say(f"{unit} per image")
    say()
    _show_accounts(accounts, options.by, size)
    say()
    for image, total in first_layer.items():
        say(f"executed, first layer {_IN_WORDS[image]}: {size * total:.2f} {unit}")
    if "executed" in accounts:
        beside = accounts["executed"].beside_mj
        say(f"beside executed, not charged: neurons, pools, stream {size * beside:.2f} {unit}")
    say(
        f"in int8: executed {size * with_int8['executed']:.2f} {unit}, same-shape ANN "
        f"{size * with_int8['ann']:.2f} {unit}"
    )
    say()
    say(
        "Attention of a block, query, key and value included, against softmax attention, both in "
        f"{costs.precision}"
    )
    for name, ratio in ratios.items():
        say(
            f"{name}: E1/E2 = {ratio.ratio:.1f} ({ratio.ratio_project:.1f} with the output "
            f"projection); E1 = {ratio.e1_pj:.3g} pJ, E2 = {ratio.e2_pj:.3g} pJ"
        )
    if subject.printed:
        say()
        say(f"the paper printed {subject.printed}")
    return 0


_HEADINGS = {"ann": "same-shape ANN", "ann_memory": "ANN with memory"}
_IN_WORDS = {
    "once": "once for a static image",
    "repeated": "at each of T steps",
    "bits": "as eight planes of bits",
}


def _finite(ratio: float) -> float | None:
    """Return a ratio, or None where nothing fired: JSON has no infinity."""
    return ratio if math.isfinite(ratio) else None


def _check_choice(option: str, value: str, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise ConfigError(
            f"{option} is {value!r}; it must be one of {', '.join(choices)}: choose one"
        )


def _opened(options: Namespace) -> _Subject:
    """Open a run, or the model that stands in its place or is given with --model."""
    from spikedriven.models.registry import list_models

    if options.run in list_models() and not Path(options.run).exists():
        if options.model is not None:
            raise ConfigError(
                f"{options.run} and --model {options.model} both name a model; one is charged at a "
                "time: leave one out"
            )
        return _of_rates(Namespace(**{**vars(options), "run": None, "model": options.run}))
    return _of_rates(options) if options.run is None else _of_run(options)


def _of_run(options: Namespace) -> _Subject:
    from spikedriven.data import make_loader
    from spikedriven.energy.counts import counting
    from spikedriven.train.evaluate import open_run_data
    from spikedriven.train.run import Run

    for option in ("model", "rates", "size", "steps"):
        if getattr(options, option) is not None:
            raise ConfigError(
                f"--{option} was given beside a run; a run's spikes are counted, not estimated: "
                "leave one of them out"
            )
    if options.images is not None and options.images < 1:
        raise ConfigError(f"--images is {options.images}; it must be at least 1: leave it out")
    trained = Run.open(Path(options.run))
    model = trained.model(options.checkpoint)
    test = open_run_data(trained, model.config, Path(options.data) if options.data else None).test
    if len(test) == 0:
        raise DataError(
            f"the test split of {options.run} is empty; it must hold at least one image to be "
            "counted: choose other data"
        )
    import torch

    left = len(test) if options.images is None else min(options.images, len(test))
    with torch.inference_mode(), counting(model, mean=test.info.mean, std=test.info.std) as counts:
        for images, _ in make_loader(test, batch_size=BATCH):
            if left > 0:
                model(images[:left])
            left -= len(images)
    assert counts.network is not None
    return _Subject(
        name=options.run,
        source=f"counted on {counts.images} test images",
        counted=counts,
        network=counts.network,
        time_steps=counts.time_steps // counts.images,
    )


def _of_rates(options: Namespace) -> _Subject:
    from spikedriven.energy.account import Estimate
    from spikedriven.energy.rates import list_rates, load_rates
    from spikedriven.energy.shape import network
    from spikedriven.models.registry import find_variant
    from spikedriven.models.sdt import MOST

    if options.rates is None and options.model is not None:
        find_variant(options.model)  # a name that is none has another cure
        raise ConfigError(
            f"{options.model} is a model's name, which does not say how often its neurons fire; it "
            "must stand beside a table of firing rates, or be a run: pass --rates with a .csv file "
            f"or one of {', '.join(list_rates())}, or name the folder of a run"
        )
    if options.rates is None:
        raise ConfigError(
            "nothing was given to charge; it must be a run or a table of firing rates: pass RUN, "
            f"or --rates with a .csv file or one of {', '.join(list_rates())}"
        )
    for option in ("data", "images", "checkpoint"):
        if getattr(options, option) is not None:
            raise ConfigError(
                f"--{option} was given beside --rates; rates are charged as they stand, and no "
                "image is counted: leave one of them out"
            )
    for option, given in (("--size", options.size), ("--steps", options.steps)):
        if given is not None and not 1 <= given <= MOST:
            raise ConfigError(
                f"{option} is {given}; it must be at least 1 and at most {MOST}: leave it out"
            )
    rates = load_rates(options.rates)
    name = options.model or rates.model
    if name is None:
        raise ConfigError(
            f"{options.rates} does not say whose rates it has; the model must be known: "
            "pass --model"
        )
    variant = find_variant(name)
    for option, given, noted in (
        ("--model", options.model, rates.model),
        ("--size", options.size, rates.image_size),
        ("--steps", options.steps, rates.num_steps),
    ):
        if given is not None and noted is not None and given != noted:
            raise ConfigError(
                f"{option} is {given} and {options.rates} was measured with {noted}; the two must "
                "agree: leave the option out"
            )
    size = options.size or rates.image_size or variant.image_size
    steps = options.steps or rates.num_steps or variant.config.num_steps
    net = network(variant.config, size, size)
    energy_mj = variant.published_energy_mj
    return _Subject(
        name=name,
        source=f"firing rates of {rates.source}",
        counted=Estimate(
            network=net, rates=replace(rates, num_steps=steps), is_event=variant.is_event
        ),
        network=net,
        time_steps=steps,
        printed=(
            ""
            if energy_mj is None
            else f"{energy_mj:.2f} mJ for this model, beside its accuracy at {variant.image_size}"
        ),
    )


def _by_step(subject: _Subject) -> dict[str, list[int]] | None:
    """Return each layer's additions at each time step, over all images; None for rates."""
    from spikedriven.energy.counts import Counts

    counted = subject.counted
    if not isinstance(counted, Counts):
        return None
    return {name: counted[name].steps["additions"] for name in counted.additions}


def _countable_images(subject: _Subject) -> list[str]:
    from spikedriven.energy.counts import Counts

    counted = subject.counted
    if isinstance(counted, Counts):
        is_event = counted.frames == counted.time_steps
        knows_bits = "bit_additions" in counted["stem.image"].steps
    else:
        is_event, knows_bits = counted.is_event, False
    static = [] if is_event else ["once"]
    return [*static, "repeated", *(["bits"] if knows_bits else [])]


def _show_accounts(accounts: "dict[str, Account]", by: str, size: float) -> None:
    columns = {name: getattr(account, f"by_{by}")() for name, account in accounts.items()}
    names = list(dict.fromkeys(row for column in columns.values() for row in column))
    rows = [
        (
            row,
            *(f"{size * column[row]:.4f}" if row in column else "-" for column in columns.values()),
        )
        for row in names
    ]
    totals = ("total", *(f"{size * account.total_mj:.2f}" for account in accounts.values()))
    headings = [_HEADINGS.get(name, name) for name in columns]
    show_table([by, *headings], [*rows, totals])


def _print_csv(accounts: "dict[str, Account]") -> None:
    fields = ("convention", "layer", "part", "block", "operation", "number", "pj", "energy_pj")
    writer = csv.writer(sys.stdout, lineterminator="\n")
    writer.writerow(fields)
    for name, account in accounts.items():
        for line in account.lines:
            block = "" if line.block is None else line.block
            writer.writerow(
                (name, line.layer, line.part, block, line.operation, line.number, line.pj,
                 line.energy_pj)
            )  # fmt: skip


def _records(subject: _Subject, accounts: "dict[str, Account]", image: str) -> list[Record]:
    size = f"{subject.network.height} x {subject.network.width}"
    context: dict[str, Any] = {"first_layer": image, "time_steps": subject.time_steps}
    return [
        Record(
            metric=f"energy_{name}",
            value=account.total_mj,
            unit="mJ",
            subject=f"{subject.name} at {size}, {account.costs.name}",
            count=account.images,
            command=this_command(),
            commit=this_commit(),
            device=this_device(),
            context={**context, **{f"{part} mJ": mj for part, mj in account.by_part().items()}},
        )
        for name, account in accounts.items()
    ]
