"""What a recipe can say, typed; every value that cannot work is refused with its cure."""

import dataclasses
import math
from typing import Any

import yaml

from spikedriven.data import DataConfig
from spikedriven.errors import ConfigError, check_types
from spikedriven.models.registry import find_variant


def _require(holds: bool, key: str, value: object, must: str, cure: str) -> None:
    if not holds:
        raise ConfigError(f"{key} is {value!r}; it must be {must}: {cure}")


@dataclasses.dataclass(frozen=True, kw_only=True)
class ModelChoice:
    """A named variant, and the fields of its config that differ."""

    name: str
    """One of `spikedriven.list_models()`."""
    depth: int | None = None
    width: int | None = None
    num_steps: int | None = None
    """Of event data, the data's number of frames; where it is given, the data must agree."""
    mlp_ratio: float | None = None
    num_heads: int | None = None
    stem_pool: str | None = None
    neuron: str | None = None
    dvs_dilation: bool | None = None
    num_classes: int | None = None
    """The data's; where it is given, the data must agree."""
    in_channels: int | None = None
    """The data's; where it is given, the data must agree."""
    weights: str | None = None
    """A run, or a file that `save_model` wrote, from whose weights training begins; it may have
    another number of steps. None begins at random."""

    def __post_init__(self) -> None:
        check_types(self, "model.")
        published = find_variant(self.name).config
        try:
            dataclasses.replace(published, **self.overrides())
        except ConfigError as error:  # which begins with the field's name
            raise ConfigError(f"model.{error}") from error

    def overrides(self) -> dict[str, Any]:
        """Return the fields of the config that were set."""
        given = dataclasses.asdict(self)
        del given["name"], given["weights"]
        return {key: value for key, value in given.items() if value is not None}


@dataclasses.dataclass(frozen=True, kw_only=True)
class OptimizerConfig:
    """How weights move."""

    name: str = "adamw"
    """`adamw`, or timm's `lamb`."""
    lr: float = 1e-3
    """Learning rate after warm-up."""
    weight_decay: float = 0.05
    """Applied to weights, never to biases and other vectors."""
    ema: float | None = None
    """Decay, per step, of an average of the weights, which is then what is validated, kept and
    tested. None keeps none."""

    def __post_init__(self) -> None:
        check_types(self, "optimizer.")
        _require(
            self.name in ("adamw", "lamb"),
            "optimizer.name",
            self.name,
            "adamw or lamb",
            "choose one",
        )
        _require(
            0 < self.lr < math.inf, "optimizer.lr", self.lr, "above 0 and finite", "1e-3 is usual"
        )
        _require(
            0 <= self.weight_decay < math.inf,
            "optimizer.weight_decay",
            self.weight_decay,
            "at least 0 and finite",
            "use 0 for none",
        )
        _require(
            self.ema is None or 0 < self.ema < 1,
            "optimizer.ema",
            self.ema,
            "in (0, 1)",
            "0.999 is usual, leave it out for none",
        )


@dataclasses.dataclass(frozen=True, kw_only=True)
class ScheduleConfig:
    """The learning rate over epochs: linear warm-up, cosine, then flat; set once an epoch."""

    epochs: int
    """Epochs of warm-up and cosine together."""
    warmup_epochs: int = 0
    warmup_lr: float = 1e-6
    """Rate of the first warm-up epoch."""
    min_lr: float = 1e-5
    """Where the cosine ends."""
    cooldown_epochs: int = 0
    """Further epochs at `min_lr`."""
    single_step_epochs: int = 0
    """First epochs that show an image at one time step, not at T: one T-th of the work each. The
    model is trained at all its steps in the rest, and only weights of the rest can be the best."""

    def __post_init__(self) -> None:
        check_types(self, "schedule.")
        _require(
            self.epochs >= 1, "schedule.epochs", self.epochs, "at least 1", "give a whole number"
        )
        for name in (
            "warmup_epochs",
            "warmup_lr",
            "min_lr",
            "cooldown_epochs",
            "single_step_epochs",
        ):
            value = getattr(self, name)
            _require(
                0 <= value < math.inf,
                f"schedule.{name}",
                value,
                "at least 0 and finite",
                "use 0 for none",
            )
        if self.warmup_epochs >= self.epochs:
            raise ConfigError(
                f"schedule.warmup_epochs is {self.warmup_epochs} of {self.epochs} epochs; warm-up "
                f"must end before they do: set schedule.warmup_epochs={self.epochs - 1}, or raise "
                "schedule.epochs"
            )
        if self.single_step_epochs >= self.total_epochs:
            raise ConfigError(
                f"schedule.single_step_epochs is {self.single_step_epochs} of {self.total_epochs} "
                "epochs; the last ones must train all steps: lower it, or set model.num_steps=1 in "
                "its place"
            )

    @property
    def total_epochs(self) -> int:
        """Epochs that are trained."""
        return self.epochs + self.cooldown_epochs

    def is_single_step(self, epoch: int) -> bool:
        """Return whether an epoch, counted from 0, shows its images at one step."""
        return epoch < self.single_step_epochs

    def work(self, epochs: float, num_steps: int) -> float:
        """Return the time steps that the first `epochs` show of every image, of T = `num_steps`."""
        single = min(epochs, self.single_step_epochs)
        return single + (epochs - single) * num_steps


@dataclasses.dataclass(frozen=True, kw_only=True)
class LossConfig:
    """What is minimised."""

    label_smoothing: float = 0.0
    """Share of the target spread over all classes."""
    mixup: float = 0.0
    """Alpha of mixup; 0 is off."""
    cutmix: float = 0.0
    """Alpha of CutMix; 0 is off."""
    mix_probability: float = 1.0
    """Share of the batches that are mixed, by either."""
    mix_switch: float = 0.5
    """Share of these that take CutMix, where both are on."""
    mixup_epochs: int | None = None
    """Epochs with mixup or CutMix, from the first; None means all."""
    tet_weight: float | None = None
    """Temporal efficient training: cross-entropy at every step, with this weight on a pull of all
    logits towards 1. None takes the cross-entropy of the mean over steps."""
    energy_budget: float | None = None
    """Share of the synaptic additions, had every neuron fired, that an image may execute; what lies
    above is penalised (`train/budget.py`). None does not look."""
    energy_part: str = "all"
    """Which additions: `all`, or those into query, key and value alone (`attention`)."""
    energy_weight: float = 1.0
    """Weight of the penalty, the logarithm of how many times the budget is exceeded."""

    def __post_init__(self) -> None:
        check_types(self, "loss.")
        for name in ("label_smoothing", "tet_weight"):
            share = getattr(self, name)
            _require(
                share is None or 0 <= share < 1,
                f"loss.{name}",
                share,
                "in [0, 1)",
                "use 0 for none",
            )
        _require(
            self.energy_budget is None or 0 < self.energy_budget <= 1,
            "loss.energy_budget",
            self.energy_budget,
            "in (0, 1]",
            "leave it out for none",
        )
        _require(
            self.energy_part in ("all", "attention"),
            "loss.energy_part",
            self.energy_part,
            "all or attention",
            "choose one",
        )
        for name in ("mix_probability", "mix_switch"):
            share = getattr(self, name)
            _require(0 <= share <= 1, f"loss.{name}", share, "in [0, 1]", "0.5 is every other")
        for name in ("mixup", "cutmix", "mixup_epochs", "energy_weight"):
            value = getattr(self, name)
            _require(
                value is None or 0 <= value < math.inf,
                f"loss.{name}",
                value,
                "at least 0 and finite",
                "use 0 for none",
            )


@dataclasses.dataclass(frozen=True, kw_only=True)
class DistillConfig:
    """A teacher whose answers are learned beside the labels."""

    teacher: str | None = None
    """A network of timm's, trained on the same classes; None learns from labels alone."""
    weights: str | None = None
    """File of its weights; None takes those that timm downloads."""
    weight: float = 0.5
    """Share of the loss that is the teacher's; the rest is the labels'."""
    hard: bool = False
    """Follow the teacher's first choice alone, not its probabilities."""
    temperature: float = 1.0
    """Of the probabilities: above 1 the smaller ones count more. Beside `hard` there are none."""

    def __post_init__(self) -> None:
        check_types(self, "distill.")
        _require(0 < self.weight <= 1, "distill.weight", self.weight, "in (0, 1]", "0.5 is usual")
        _require(
            0 < self.temperature < math.inf,
            "distill.temperature",
            self.temperature,
            "above 0 and finite",
            "1 to 4 are usual",
        )


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainerConfig:
    """Where and how precisely: passed to Lightning's Trainer."""

    accelerator: str = "auto"
    """`auto`, `cpu` or `gpu`."""
    devices: int = 1
    """Processes on each machine, each with a device of its own and a part of every batch: with
    several, `data.batch_size` is that of one of them."""
    nodes: int = 1
    """Machines."""
    strategy: str = "ddp"
    """How several processes hold the model: `ddp`, each all of it, or `fsdp`, each a part of every
    weight, gradient and moment of the optimiser."""
    sync_batch_norm: bool = False
    """Let batch norm see the batches of all processes together; else each sees its own."""
    precision: str = "32-true"
    """`32-true`, `64-true`, `bf16-mixed` or `16-mixed`."""
    gradient_clip: float | None = None
    """Largest norm of the gradient; None does not clip."""
    accumulate: int = 1
    """Batches whose gradients, each divided by this number, are added before the optimiser steps:
    their average, but for the last step of an epoch, whose batches may be fewer."""
    recompute: bool = False
    """Compute each block's activations again in the backward pass instead of keeping them."""
    compile: bool = False
    """Let `torch.compile` make one graph of the forward and the backward pass; a GPU replays it as
    one launch (`reduce-overhead`). Batches of full size take it, while no hook watches the model:
    each 20th step, whose spikes are counted, and validation run as they are. On a CPU it compiles
    the definitions, which is slower than the package's own kernels."""
    checkpoint_every: int | None = None
    """Optimiser steps between two checkpoints inside an epoch; None writes them at epochs' ends."""

    def __post_init__(self) -> None:
        check_types(self, "trainer.")
        for name, choices in (
            ("accelerator", ("auto", "cpu", "gpu")),
            ("precision", ("32-true", "64-true", "bf16-mixed", "16-mixed")),
            ("strategy", ("ddp", "fsdp")),
        ):
            value = getattr(self, name)
            _require(
                value in choices,
                f"trainer.{name}",
                value,
                f"one of {', '.join(choices)}",
                "choose one",
            )
        for name in ("devices", "nodes"):
            number = getattr(self, name)
            _require(number >= 1, f"trainer.{name}", number, "at least 1", "1 is usual")
        if self.sync_batch_norm and self.processes == 1:
            raise ConfigError(
                "trainer.sync_batch_norm is set and there is one process; there must be several "
                "to take statistics from: raise trainer.devices or leave it out"
            )
        if self.strategy == "fsdp" and self.processes == 1:
            raise ConfigError(
                "trainer.strategy is fsdp and there is one process; there must be several to "
                "divide the model among: raise trainer.devices or leave it out"
            )
        if self.strategy == "fsdp" and self.precision == "16-mixed":
            raise ConfigError(
                "trainer.precision is 16-mixed and trainer.strategy is fsdp, which does not scale "
                "losses; it must need no scaling: set trainer.precision=bf16-mixed"
            )
        _require(
            self.accumulate >= 1, "trainer.accumulate", self.accumulate, "at least 1", "1 is usual"
        )
        _require(
            self.checkpoint_every is None or self.checkpoint_every >= 1,
            "trainer.checkpoint_every",
            self.checkpoint_every,
            "at least 1",
            "leave it out for none",
        )
        for key, is_set, why in (
            ("strategy=fsdp", self.strategy == "fsdp", "gathers weights between its layers"),
            ("sync_batch_norm", self.sync_batch_norm, "waits for other processes inside of it"),
            ("recompute", self.recompute, "runs parts of it a second time"),
            ("accumulate", self.accumulate > 1, "keeps gradients that the next replay overwrites"),
        ):
            if self.compile and is_set:
                raise ConfigError(
                    f"trainer.compile is set beside trainer.{key}, which {why}; the compiled graph "
                    "must be one and be replayed alone: leave one of them out"
                )
        clip = self.gradient_clip
        _require(
            clip is None or 0 < clip < math.inf,
            "trainer.gradient_clip",
            clip,
            "above 0 and finite",
            "leave it out for none",
        )

    @property
    def processes(self) -> int:
        """Processes on all machines together."""
        return self.devices * self.nodes


@dataclasses.dataclass(frozen=True, kw_only=True)
class Recipe:
    """Everything about a training run."""

    model: ModelChoice
    data: DataConfig
    schedule: ScheduleConfig
    optimizer: OptimizerConfig = dataclasses.field(default_factory=OptimizerConfig)
    loss: LossConfig = dataclasses.field(default_factory=LossConfig)
    distill: DistillConfig = dataclasses.field(default_factory=DistillConfig)
    trainer: TrainerConfig = dataclasses.field(default_factory=TrainerConfig)
    seed: int = 0
    """Seed of the weights, of the order of the data and of its variation."""
    evaluate: str = "last"
    """Weights whose test accuracy is the run's: `last`, or `best` on the validation split."""

    def __post_init__(self) -> None:
        check_types(self)
        _require(
            0 <= self.seed < 2**63,
            "seed",
            self.seed,
            "at least 0 and below 2**63",
            "give a smaller number" if self.seed > 0 else "give a whole number",
        )
        _require(
            self.evaluate in ("last", "best"),
            "evaluate",
            self.evaluate,
            "last or best",
            "choose one",
        )
        if self.schedule.min_lr > self.optimizer.lr:
            raise ConfigError(
                f"schedule.min_lr is {self.schedule.min_lr}; it must not be above optimizer.lr, "
                f"{self.optimizer.lr}: lower it"
            )
        if self.trainer.recompute and self.loss.energy_budget is not None:
            raise ConfigError(
                "trainer.recompute is set beside loss.energy_budget, which must see each spike of "
                "one forward pass: leave one of them out"
            )
        if self.trainer.compile and self.loss.energy_budget is not None:
            raise ConfigError(
                "trainer.compile is set beside loss.energy_budget, which watches every step; a "
                "watched step is not compiled, and none would be: leave one of them out"
            )
        if self.evaluate == "best" and self.data.validation_fraction == 0:
            raise ConfigError(
                "evaluate is best without a validation split to choose by; the test split never "
                "chooses: raise data.validation_fraction"
            )

    def to_yaml(self) -> str:
        """Return the recipe, complete, as `load_recipe` reads it."""
        return yaml.safe_dump(dataclasses.asdict(self), sort_keys=False)
