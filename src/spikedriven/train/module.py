"""One training step, one validation step, the optimiser and its schedule, as Lightning asks."""

from collections.abc import Callable
from typing import Any

import lightning
import torch
import torch.nn.functional as F
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from timm.optim import Lamb
from timm.scheduler import CosineLRScheduler
from timm.utils import ModelEmaV3
from torch import Tensor
from torchmetrics import MeanMetric
from torchmetrics.classification import MulticlassAccuracy

from spikedriven.errors import BackendError, CheckpointError, ConfigError
from spikedriven.models.sdt import SpikeDrivenTransformer
from spikedriven.nn.probe import count_spikes, is_watched
from spikedriven.train.budget import executed_share, over_budget
from spikedriven.train.config import OptimizerConfig, Recipe, ScheduleConfig
from spikedriven.train.distill import Teacher, distillation_loss
from spikedriven.train.losses import loss_of_steps
from spikedriven.train.mix import mixed
from spikedriven.train.recipe import parse_recipe
from spikedriven.train.recompute import recompute_blocks
from spikedriven.train.shard import divide, share_buffers

# Counting every spike costs a pass over each layer; one step in so many is enough to watch.
RATE_EVERY = 20


class Training(lightning.LightningModule):
    """The model under training.

    Args:
        model: The model; it is trained in place.
        recipe: What to do with it.
        teacher: Whose answers it learns beside the labels, if the recipe names one.
    """

    def __init__(
        self, model: SpikeDrivenTransformer, recipe: Recipe, teacher: Teacher | None = None
    ) -> None:
        super().__init__()
        self.teacher = teacher
        self.model = model
        self.recipe = recipe
        decay = recipe.optimizer.ema
        # All weights in one call, where none are divided: statistics never are, and cannot mix.
        together = recipe.trainer.strategy != "fsdp"
        self.average = None if decay is None else ModelEmaV3(model, decay=decay, foreach=together)
        if self.average is not None:
            self.average.requires_grad_(False)  # or DDP waits for gradients of it
        if recipe.trainer.recompute:
            recompute_blocks(model)
        self._compiled: Callable[[Tensor], Tensor] | None = None
        num_classes = model.config.num_classes
        self.validation_accuracy = MulticlassAccuracy(num_classes, average="micro")
        self.validation_loss = MeanMetric()
        self.row: dict[str, Tensor] = {}
        """What the last step logged; a firing rate stands until the next is counted. To read a
        value waits for the device, so no step does."""

    @property
    def logged(self) -> dict[str, float]:
        """What the last step logged, as numbers."""
        return {name: value.item() for name, value in self.row.items()}

    @property
    def kept(self) -> SpikeDrivenTransformer:
        """The model that is validated, kept and tested: the averaged one where there is one."""
        if self.average is None:
            return self.model
        averaged: SpikeDrivenTransformer = self.average.module
        return averaged

    def configure_model(self) -> None:
        """Divide the model among the processes, which have met by now, where the recipe says so."""
        if self.recipe.trainer.strategy == "fsdp":
            assert self.device_mesh is not None
            mesh = self.device_mesh["data_parallel"]
            divide(self.model, mesh)
            if self.average is not None:
                divide(self.kept, mesh)

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """Build the optimiser; its rate is set at the start of every epoch."""
        return build_optimizer(self.model, self.recipe.optimizer)

    def on_train_epoch_start(self) -> None:
        """Set this epoch's rate, a function of the epoch alone."""
        set_rate(self._optimizer(), self.recipe.schedule, self.current_epoch)

    def optimizer_step(self, *arguments: Any, **keywords: Any) -> None:
        """Let the average follow every step of the optimiser."""
        super().optimizer_step(*arguments, **keywords)
        if self.average is not None:
            self.average.update(self.model)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Put the recipe beside the state, and what the last step logged."""
        checkpoint["recipe"] = self.recipe.to_yaml()
        checkpoint["row"] = self.logged

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Check that the state is this recipe's.

        Raises:
            CheckpointError: It belongs to another recipe or model.
        """
        own, stored = self.state_dict(), checkpoint["state_dict"]
        fits = own.keys() == stored.keys() and all(own[k].shape == stored[k].shape for k in own)
        try:
            # As recipes, not as texts: an older version's text lacks the keys that came later.
            fits = fits and parse_recipe(checkpoint["recipe"]) == self.recipe
        except ConfigError:
            fits = False
        if not fits:
            raise CheckpointError(
                "the training state belongs to another recipe than the recipe.yaml beside it; a "
                "run can only continue as it was started: undo the change, or start another run"
            )
        self.row = {name: torch.tensor(value) for name, value in checkpoint["row"].items()}

    def on_train_start(self) -> None:
        """Check that the optimiser's moments, where it has stepped, are its weights'.

        Raises:
            CheckpointError: The training state that they were read from lacks some, or is another
                model's.
        """
        state = self._optimizer().state
        found = [
            (weight.shape, getattr(kept.get(name), "shape", None))
            for weight, kept in state.items()
            for name in ("exp_avg", "exp_avg_sq")
        ]
        if (self.trainer.global_step and not state) or any(a != b for a, b in found):
            raise CheckpointError(
                "the training state lacks the optimiser's moments, or has another model's; each "
                "weight must have its own: start the run anew"
            )

    def training_step(self, batch: tuple[Tensor, Tensor], batch_index: int) -> Tensor:
        """Return the loss of one batch."""
        images, labels = batch
        target: Tensor = labels
        if self._mixes():
            part = batch_index * self.trainer.world_size + self.global_rank
            seed = (self.recipe.seed, self.current_epoch, part)
            num_classes = self.model.config.num_classes
            images, target = mixed(images, labels, num_classes, self.recipe.loss, seed)
        rate: Tensor | float | None = self.row.get("firing_rate")
        if batch_index % RATE_EVERY == 0 or rate is None:
            with count_spikes(self.model) as counts:
                steps, penalty = self._forward(images)
            fired = sum(count.fired for count in counts.values())
            rate = fired / sum(count.sites for count in counts.values())
        else:
            steps, penalty = self._forward(images)
        self._note("firing_rate", rate)
        self._note("lr", self._optimizer().param_groups[0]["lr"], on_bar=False)
        loss = loss_of_steps(steps, target, self.recipe.loss)
        if self.teacher is not None:
            distill = self.recipe.distill
            followed = distillation_loss(steps.mean(0), self.teacher(images), distill)
            loss = (1 - distill.weight) * loss + distill.weight * followed
        loss = loss + penalty
        hits = (steps.detach().mean(0).argmax(-1) == labels).float().mean()
        self._note("loss", loss.detach())
        self._note("accuracy", hits)
        loader: Any = self.trainer.train_dataloader
        weight: float = loader.sampler.weight(batch_index)
        return loss * weight

    def on_validation_start(self) -> None:
        """See to it that all processes validate the same model."""
        if self.trainer.world_size > 1:
            share_buffers(self.kept)

    def validation_step(self, batch: tuple[Tensor, Tensor], batch_index: int) -> None:
        """Count the hits of one batch, among those that are this process's to count."""
        images, labels = batch
        loader: Any = self.trainer.val_dataloaders
        own = max(0, loader.sampler.own - batch_index * loader.batch_size)
        logits, labels = self.kept(self._shown(images))[:own], labels[:own]
        if own:
            self.validation_accuracy.update(logits, labels)
            self.validation_loss.update(F.cross_entropy(logits, labels, reduction="none"))
        self.log("validation_accuracy", self.validation_accuracy, prog_bar=True)
        self.log("validation_loss", self.validation_loss)

    def _shown(self, images: Tensor) -> Tensor:
        """Return what the model sees in this epoch: images [B, C, H, W], or one frame of each."""
        single = self.recipe.schedule.is_single_step(self.current_epoch)
        return images.unsqueeze(1) if single else images

    def _forward(self, images: Tensor) -> tuple[Tensor, Tensor | float]:
        """Return the logits of every step, and what exceeds the budget of additions."""
        config = self.recipe.loss
        images = self._shown(images)
        if config.energy_budget is None:
            return self._steps(images), 0.0
        with executed_share(self.model, config.energy_part) as share:
            steps = self._steps(images)
        self._note("executed_share", share.value.detach())
        return steps, config.energy_weight * over_budget(share.value, config.energy_budget)

    def _steps(self, images: Tensor) -> Tensor:
        """Return the logits of every step, by the compiled graph where it says the same.

        A graph knows no hooks, and is made for one size of a batch: the epoch's last goes without.

        Raises:
            BackendError: No compiler works.
        """
        is_whole = len(images) == self.recipe.data.batch_size
        if not (self.recipe.trainer.compile and is_whole) or self._is_watched():
            return self.model.forward_steps(images)
        if self._compiled is None:  # of the model's method: its state keeps its names
            mode = "reduce-overhead" if images.is_cuda else None
            self._compiled = torch.compile(
                self.model.forward_steps, fullgraph=True, dynamic=False, mode=mode
            )
        from torch._dynamo.exc import BackendCompilerFailed  # which takes a second

        torch.compiler.cudagraph_mark_step_begin()  # what the last step returned may be overwritten
        try:
            return self._compiled(images)
        except BackendCompilerFailed as error:
            cause = error.inner_exception
            reason = next(iter(str(cause).splitlines()), type(cause).__name__)
            raise BackendError(
                f"trainer.compile is set and torch.compile failed ({reason}); it must find a "
                "compiler that works: install one, or leave trainer.compile out"
            ) from error

    def _is_watched(self) -> bool:
        return any(is_watched(module) for module in self.model.modules())

    def _note(self, name: str, value: Any, *, on_bar: bool = True) -> None:
        single = torch.as_tensor(value, dtype=torch.float32)  # as the table has it
        self.row[name] = single
        self.log(name, single, prog_bar=on_bar)

    def _optimizer(self) -> torch.optim.Optimizer:
        wrapped = self.optimizers()
        assert isinstance(wrapped, lightning.pytorch.core.optimizer.LightningOptimizer)
        return wrapped.optimizer

    def _mixes(self) -> bool:
        loss = self.recipe.loss
        until = (
            self.recipe.schedule.total_epochs if loss.mixup_epochs is None else loss.mixup_epochs
        )
        return (loss.mixup > 0 or loss.cutmix > 0) and self.current_epoch < until


def build_optimizer(
    model: SpikeDrivenTransformer, config: OptimizerConfig
) -> torch.optim.Optimizer:
    """Return the optimiser; biases, norms and other vectors are not decayed."""
    parameters = list(model.parameters())
    groups: list[dict[str, Any]] = [
        {"params": [p for p in parameters if p.ndim > 1], "weight_decay": config.weight_decay},
        {"params": [p for p in parameters if p.ndim <= 1], "weight_decay": 0.0},
    ]
    if config.name == "lamb":
        lamb: torch.optim.Optimizer = Lamb(groups, lr=config.lr)
        return lamb
    return torch.optim.AdamW(groups, lr=config.lr)


def set_rate(optimizer: torch.optim.Optimizer, config: ScheduleConfig, epoch: int) -> None:
    """Set the learning rate of an epoch, by timm's cosine schedule as the released code uses it."""
    for group in optimizer.param_groups:
        group.setdefault("initial_lr", group["lr"])
        group["lr"] = group["initial_lr"]
    schedule = CosineLRScheduler(
        optimizer,
        t_initial=config.epochs,
        lr_min=config.min_lr,
        warmup_t=config.warmup_epochs,
        warmup_lr_init=config.warmup_lr,
        initialize=False,
    )
    schedule.step(epoch)
