"""The training loop: one Trainer holds everything that a checkpoint saves and restores."""

import math
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import msgspec
import torch
import torch.distributed as dist
from torch import Tensor, nn

from training.data.feed import Feed
from training.forms import fused
from training.graph import GraphedUpdate
from training.optim.averages import average_over_processes, running_average
from training.optim.losses import LOSSES
from training.optim.muon import lain_as
from training.recipe import recipe_from
from training.setup import Setup
from utils.errors import DivergedError, HarnessError
from utils.measure.runtime import check_output
from utils.zoo.checkpoints import differences, save_atomically

STATE_FILE = "state.pt"  # in the run's folder, beside the weights, which have their names from the registry
UNREACHED = 1e-9  # of the whole gradient's norm; the first steps of a healthy network give 5e-8, dead blocks 1e-10 to 0


class Trainer:
    """Trains a model by a recipe. `step` counts finished updates; randomness depends only on the seed and `step`."""

    def __init__(self, setup: Setup, rank: int = 0, world: int = 1, data_sha256: str | None = None):
        self.recipe, self.device, self.trained, self.layout = setup.recipe, setup.device, setup.trained, setup.layout
        self.model, self.forward, self.optimizers = setup.model, setup.forward, setup.optimizers
        self.rank, self.world = rank, world
        self.data_range = setup.trained.entry.data_range
        self.data_sha256 = data_sha256  # of the training set, which the checkpoint keeps
        self.average = running_average(self.model, self._share) if setup.recipe.ema_decay else None
        self.step = 0
        self.seconds = 0.0  # spent in training, over all runs

    def _share(self) -> float:
        """Return the current weights' share in their running average, in the update that follows."""
        return 1 - self.recipe.ema_decay_at(self.step)

    @property
    def weights(self) -> nn.Module:
        """The network to validate and export: the running average if the recipe keeps one."""
        return self.average.module if self.average else self.model

    def set_learning_rates(self) -> None:
        """Set the optimizers' learning rates to the schedule's for the coming update."""
        rates = self.recipe.learning_rate, self.recipe.muon_learning_rate
        for optimizer, rate in zip(self.optimizers, rates, strict=False):
            for group in optimizer.param_groups:
                group["lr"].fill_(rate * self.recipe.schedule_at(self.step))

    def gradients(self, lr: Tensor, hr: Tensor) -> tuple[Tensor, Tensor]:
        """Run forward and backward on uint8 batches; return the loss, over all processes, and the gradient's norm."""
        lr, hr = (x.to(torch.float32, memory_format=self.layout) / 255 for x in (lr, hr))
        with self._autocast():
            sr = self.forward(lr if self.data_range == 1 else lr * self.data_range)
        check_trainable(sr, lr, self.trained.entry.file)
        loss = LOSSES[self.recipe.loss](sr.float() if self.data_range == 1 else sr.float() / self.data_range, hr)
        self.model.zero_grad(set_to_none=True)
        loss.backward()
        loss = loss.detach()
        if self.world > 1:
            average_over_processes([loss, *self._gradients()])
        return loss, self._clip()

    def _gradients(self) -> list[Tensor]:
        return [weight.grad for weight in self.model.parameters() if weight.grad is not None]

    def _clip(self) -> Tensor:
        """Scale the gradients down to the recipe's norm if theirs is larger; return their norm before that."""
        norm = torch.nn.utils.get_total_norm(self._gradients())
        most = self.recipe.clip_norm or math.inf
        if self.device.type == "cuda" or norm > most:  # a GPU always scales, if only by 1: comparing would wait
            torch.nn.utils.clip_grads_with_norm_(self.model.parameters(), most, norm)
        return norm

    def apply(self) -> None:
        """Update the weights from the gradients."""
        for optimizer in self.optimizers:
            optimizer.step()

    def advance(self) -> None:
        """Update the running average with the new weights, and count the step."""
        if self.average:
            self.average.update_parameters(self.model)
        self.step += 1

    def update(self, lr: Tensor, hr: Tensor) -> tuple[Tensor, Tensor]:
        """Do one step on uint8 batches; return the loss and the gradient's norm as tensors on the device.

        Raises FloatingPointError, before any weight is touched, if either is not finite.
        """
        self.set_learning_rates()
        loss, norm = self.gradients(lr, hr)
        check_finite(loss, norm)
        self.apply()
        self.advance()
        return loss, norm

    def _autocast(self) -> AbstractContextManager[object]:
        if self.recipe.precision == "float32":
            return nullcontext()
        return torch.autocast(self.device.type, torch.bfloat16)

    def export(self, folder: Path) -> None:
        """Write `weights` and the fused weights under the registry's names, each atomically."""
        files = [(fused(self.weights), self.trained.plain_file)]
        if self.trained.train_file:
            files.append((self.weights, self.trained.train_file))
        for model, name in files:
            state = {key: value.detach().cpu().contiguous() for key, value in model.state_dict().items()}
            save_atomically(state, Path(folder) / name)

    def save(self, folder: Path) -> None:
        """Write the checkpoint atomically: a crash or a full disk leaves the previous one as it was."""
        state = {
            "recipe": msgspec.to_builtins(self.recipe),
            "step": self.step,
            "seconds": self.seconds,
            "params": self.model.state_dict(),
            "optimizers": [optimizer.state_dict() for optimizer in self.optimizers],
            "params_ema": self.weights.state_dict() if self.average else None,
            "rng": torch.get_rng_state(),
            "data_sha256": self.data_sha256,
        }
        save_atomically(state, Path(folder) / STATE_FILE)

    def load(self, state: dict[str, Any], path: Path) -> None:
        """Resume from a checkpoint that `read_state` read from `path`.

        Raise HarnessError if the recipe, the training set or the network has changed.
        """
        saved = recipe_from(state["recipe"], path)
        if self.recipe.steps < state["step"]:
            raise HarnessError(
                f"{path}: the run is at step {state['step']} already, and the recipe ends at {self.recipe.steps}; "
                "leave out --resume's --set steps, or take the weights as they are"
            )
        changed = self.recipe.goes_on_from(saved, state["step"])
        if changed:
            was = ", ".join(f"{key} was {getattr(saved, key)}" for key in changed)
            raise HarnessError(
                f"{path}: the recipe has changed ({was}); restore it or start again in another --run_dir"
            )
        if self.data_sha256 and state.get("data_sha256") not in (None, self.data_sha256):
            raise HarnessError(
                f"{path}: the training set has changed since; restore it, or take the weights by --init {path} in "
                "another --run_dir"
            )
        if problems := differences(self.model.state_dict(), state["params"]):
            raise HarnessError(
                f"{path}: the network has changed since ({problems}); restore {self.trained.entry.file}, or start "
                "again in another --run_dir"
            )
        self.model.load_state_dict(state["params"])
        for optimizer, saved_state in zip(self.optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(saved_state)
            fit_to_machine(optimizer, self.device)
        if self.average:
            self.weights.load_state_dict(state["params_ema"])
        torch.set_rng_state(state["rng"].cpu())
        self.step, self.seconds = state["step"], state["seconds"]


def fit_to_machine(optimizer: torch.optim.Optimizer, device: torch.device) -> None:
    """Adapt a loaded optimizer state: the run so far may have had other kernels, or another device.

    Fused AdamW reads memory in order, so its moments must lie as their weights do.
    """
    for group in optimizer.param_groups:
        if "capturable" in group:
            group["capturable"] = device.type == "cuda"
    for weight, values in optimizer.state.items():
        for name, value in values.items():
            if isinstance(value, Tensor) and value.shape == weight.shape:
                values[name] = lain_as(value, weight)


def read_state(path: Path, device: torch.device) -> dict[str, Any]:
    """Return a run's checkpoint with its tensors on `device`. Raise HarnessError if the file is not a checkpoint."""
    try:
        state = torch.load(path, map_location=device, weights_only=True)
    except Exception as error:  # torch raises many kinds for a broken file
        raise HarnessError(f"{path}: not a readable training state; start again in another --run_dir") from error
    if not isinstance(state, dict) or not {"recipe", "step", "optimizers"} <= state.keys():
        raise HarnessError(f"{path}: weights, not a training state; take them by --init {path} in another --run_dir")
    return state


def check_trainable(sr: Tensor, lr: Tensor, file: str) -> None:
    """Raise HarnessError unless a network's output is valid for the loss and carries a gradient."""
    check_output(sr, lr.shape[2:], file, len(lr))
    if not sr.requires_grad:
        raise HarnessError(f"{file}: no gradient comes back from its output; is it computed under torch.no_grad()?")


def check_finite(loss: Tensor, norm: Tensor) -> None:
    """Raise FloatingPointError unless both are finite."""
    if not (torch.isfinite(loss) and torch.isfinite(norm)):
        raise FloatingPointError(f"loss {loss.item()}, gradient norm {norm.item()}")


def unreached_kernels(model: nn.Module) -> list[str]:
    """Return the names of the kernels that received no gradient in the last step, those of a dead block.

    If the inputs of an activation are far below zero at every pixel, its outputs are zero and no gradient flows back,
    so the block stays dead (docs/lab/training.md).
    """
    weights = ((name, weight) for name, weight in model.named_parameters() if weight.ndim == 4)
    kernels = {name: weight.grad for name, weight in weights if weight.grad is not None}
    if not kernels:
        return []
    norms = torch.stack(torch._foreach_norm(list(kernels.values())))
    unreached = (norms <= UNREACHED * norms.norm()).tolist()
    return [name for name, is_unreached in zip(kernels, unreached, strict=True) if is_unreached]


def train(
    trainer: Trainer,
    feed: Feed,
    on_step: Callable[[Tensor, Tensor], None],
    minutes: float | None = None,
) -> bool:
    """Run steps until the recipe is finished or `minutes` have passed; call `on_step(loss, norm)` after each.

    Returns True when the recipe is finished. Raises DivergedError, naming the step and the batch's seed, when the loss
    or a gradient is not finite.
    """
    recipe = trainer.recipe
    graphable = recipe.cuda_graph and trainer.device.type == "cuda" and trainer.world == 1
    graphed = GraphedUpdate(trainer) if graphable else None
    update = graphed or trainer.update
    started = before = time.monotonic()
    try:
        for lr, hr in feed.batches(trainer.step, recipe.steps):
            loss, norm = update(lr, hr)
            now = time.monotonic()
            trainer.seconds += now - before
            before = now
            if graphed and trainer.step % recipe.checkpoint_every == 0:
                graphed.check()  # non-finite values must not reach a checkpoint
            on_step(loss, norm)
            if minutes is not None and _agreed(now - started >= 60 * minutes, trainer):
                break
        if graphed:
            graphed.check()
    except FloatingPointError as error:
        raise DivergedError(
            f"step {trainer.step}: {error}; its batch is seed {recipe.seed}, step {trainer.step}; "
            "begin a new run by --run_dir NEW --set learning_rate=… with a lower one; --init RUN_DIR/state.pt takes "
            "the last checkpoint's weights, if there is one"
        ) from error
    return trainer.step >= recipe.steps


def _agreed(stop: bool, trainer: Trainer) -> bool:
    """Return whether any process wants to stop: their clocks differ, and all must leave at the same step."""
    if trainer.world == 1:
        return stop
    vote = torch.tensor(float(stop), device=trainer.device)
    dist.all_reduce(vote, dist.ReduceOp.MAX)
    return bool(vote)
