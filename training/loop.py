"""The training loop: one Trainer holds everything that a checkpoint saves and restores."""

import math
import os
import time
from contextlib import nullcontext
from dataclasses import asdict
from pathlib import Path

import torch
import torch.nn.functional as F
from torch.nn.parallel import DistributedDataParallel
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from models.nanosr_train import NanoSR_train
from training.recipe import recipe_from
from utils.errors import HarnessError
from utils.images import crop_to_multiple, read_rgb, to_image, to_tensor
from utils.metrics import psnr

STATE_FILE, TRAIN_FILE, FUSED_FILE = "state.pt", "nanosr_train.pth", "team07_NanoSR.pth"  # in the run's folder


class Trainer:
    """Trains NanoSR by a recipe. `step` counts finished updates; all randomness hangs on the seed and `step`."""

    def __init__(self, recipe, device, rank=0, world=1):
        self.recipe, self.device, self.rank = recipe, torch.device(device), rank
        torch.manual_seed(recipe.seed)
        self.layout = torch.channels_last if recipe.channels_last else torch.contiguous_format
        self.model = NanoSR_train(form=recipe.form)
        if recipe.output_init:
            start_near_mean(self.model, recipe.output_init)
        self.model.to(self.device, memory_format=self.layout)
        self.optimizer = torch.optim.AdamW(
            self.model.parameters(),
            lr=recipe.learning_rate,
            betas=recipe.betas,
            eps=recipe.eps,
            weight_decay=recipe.weight_decay,
            fused=True,
        )
        self.average = None
        if recipe.ema_decay:
            self.average = AveragedModel(self.model, multi_avg_fn=get_ema_multi_avg_fn(recipe.ema_decay))
        self.forward = DistributedDataParallel(self.model) if world > 1 else self.model
        self.step = 0
        self.seconds = 0.0  # spent in training, over all sittings

    @property
    def weights(self):
        """The network to validate and export: the running average if the recipe keeps one."""
        return self.average.module if self.average else self.model

    def update(self, lr, hr):
        """Do one step on uint8 batches; return the loss and the gradient's norm as tensors on the device.

        Raises FloatingPointError, before any weight is touched, if either is not finite.
        """
        for group in self.optimizer.param_groups:
            group["lr"] = self.recipe.learning_rate_at(self.step)
        lr, hr = (x.to(torch.float32, memory_format=self.layout) / 255 for x in (lr, hr))
        with self._autocast():
            sr = self.forward(lr)
        loss = F.l1_loss(sr.float(), hr)
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(self.model.parameters(), self.recipe.clip_norm or math.inf)
        if not torch.isfinite(loss) or not torch.isfinite(norm):
            raise FloatingPointError(f"loss {loss.item()}, gradient norm {norm.item()}")
        self.optimizer.step()
        if self.average:
            self.average.update_parameters(self.model)
        self.step += 1
        return loss.detach(), norm

    def _autocast(self):
        if self.recipe.precision == "float32":
            return nullcontext()
        return torch.autocast(self.device.type, torch.bfloat16)

    def export(self, folder):
        """Write `weights` in both forms, `nanosr_train.pth` and the fused `team07_NanoSR.pth`, each atomically."""
        for model, name in ((self.weights, TRAIN_FILE), (self.weights.fuse(), FUSED_FILE)):
            state = {key: value.detach().cpu().contiguous() for key, value in model.state_dict().items()}
            save_atomically(state, Path(folder) / name)

    def save(self, folder):
        """Write the checkpoint atomically: a crash or a full disk leaves the previous one as it was."""
        state = {
            "recipe": asdict(self.recipe),
            "step": self.step,
            "seconds": self.seconds,
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "average": self.average.state_dict() if self.average else None,
            "rng": torch.get_rng_state(),
        }
        save_atomically(state, Path(folder) / STATE_FILE)

    def load(self, folder):
        """Go on from a checkpoint. Raises HarnessError if it is unreadable or was made by another recipe."""
        path = Path(folder) / STATE_FILE
        try:
            state = torch.load(path, map_location=self.device, weights_only=True)
        except Exception as error:  # torch raises many kinds for a broken file
            raise HarnessError(f"{path}: not a readable training state; start anew in another --run_dir") from error
        saved = recipe_from(state["recipe"], path)
        changed = [key for key, value in asdict(saved).items() if value != getattr(self.recipe, key)]
        if changed:
            was = ", ".join(f"{key} was {getattr(saved, key)}" for key in changed)
            raise HarnessError(f"{path}: the recipe has changed ({was}); restore it or start anew in another --run_dir")
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        if self.average:
            self.average.load_state_dict(state["average"])
        torch.set_rng_state(state["rng"].cpu())
        self.step, self.seconds = state["step"], state["seconds"]


@torch.no_grad()
def start_near_mean(model, factor):
    """Shrink the last convolution's weights by `factor` and set its bias to the RGB mean of the training data.

    Features live on the scale of grey levels, the output in [0, 1]: with PyTorch's initial weights the first output is
    tens of times too large, and the first thousand steps do nothing but shrink it.
    """
    last = model.upsampler[0]
    last.weight.mul_(factor)
    last.bias.copy_(model.mean.flatten().repeat_interleave(last.out_channels // model.mean.numel()))


@torch.no_grad()
def validation_psnr(model, dataset, device):
    """Mean PSNR [dB] of a training-form network on a dataset, fused, in float32."""
    fused = model.fuse().eval()
    results = []
    for pair in dataset.pairs:
        sr = fused(to_tensor(read_rgb(pair.lr)).to(device))
        results.append(psnr(to_image(sr), crop_to_multiple(read_rgb(pair.hr))))
    return sum(results) / len(results)


def save_atomically(values, path):
    """torch.save to `path` so that the file is always whole. Raises HarnessError if it cannot be written."""
    partial = path.with_name(path.name + ".partial")
    try:
        with open(partial, "wb") as file:
            torch.save(values, file)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    except (OSError, RuntimeError) as error:
        partial.unlink(missing_ok=True)
        raise HarnessError(f"{path}: cannot be written ({error}); make room and run again with --resume") from error


def train(trainer, feed, until, on_step, minutes=None):
    """Run steps until `until` steps are done or `minutes` have passed; call `on_step(loss, norm)` after each.

    Returns True when the recipe is finished. Raises HarnessError, naming the step and the batch's seed, when the loss
    or a gradient is not finite.
    """
    started = before = time.monotonic()
    for lr, hr in feed.batches(trainer.step, until):
        try:
            loss, norm = trainer.update(lr, hr)
        except FloatingPointError as error:
            raise HarnessError(
                f"step {trainer.step}: {error}; its batch is seed {trainer.recipe.seed}, step {trainer.step}; "
                "lower learning_rate or clip_norm"
            ) from error
        now = time.monotonic()
        trainer.seconds += now - before
        before = now
        on_step(loss, norm)
        if minutes is not None and now - started > 60 * minutes:
            break
    return trainer.step >= until
