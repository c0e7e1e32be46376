"""Choose model, number type, kernels and optimizers for a recipe on this machine, once before training."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal, cast

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from kernels import convolution
from kernels.convolution import Name
from training.forms import TrainedModel, build, forms_of, trained_model
from training.kernels import with_kernel
from training.optim.muon import Muon, hidden_weights
from training.recipe import Form, Precision, Recipe
from utils.errors import HarnessError
from utils.measure.precision import fast_precision
from utils.protocol import SCALE

Chosen = Name | Literal["torch"]  # kernels
RGB_MEAN = (0.4488, 0.4371, 0.4040)  # of DIV2K, in [0, 1]


@dataclass
class Setup:
    """The parts that a Trainer works with.

    In `recipe`, "auto" is replaced by the chosen values. `forward` is the model, or the module that runs instead of it.
    `layout` is the memory layout of images. `notes` are lines for the user.
    """

    recipe: Recipe
    device: torch.device
    trained: TrainedModel
    model: nn.Module
    forward: Callable[[Tensor], Tensor]
    optimizers: list[Optimizer]
    layout: torch.memory_format
    notes: list[str]


def set_up(recipe: Recipe, device: torch.device | str, saved: Recipe | None = None) -> Setup:
    """Build a recipe's training on a device; `saved` is the recipe of the run to resume, None for a new run.

    Raise HarnessError if this machine cannot run the model as the recipe asks.
    """
    device = torch.device(device)
    recipe = with_precision(recipe, device, saved)
    trained = trained_model(recipe.model)
    torch.manual_seed(recipe.seed)
    layout = torch.channels_last if recipe.channels_last else torch.contiguous_format
    model = build(trained, recipe.form)
    if recipe.form == "auto":
        recipe = replace(recipe, form=cast(Form, forms_of(model)[0]))
    if not any(weight.requires_grad for weight in model.parameters()):
        raise HarnessError(f"{trained.entry.file}: the network has no weights to train")
    if recipe.output_init:
        start_near_mean(model, recipe.output_init, trained.entry.data_range)
    kernels, notes = chosen_kernels(recipe, device, saved)
    # Weights would be copied from another layout in every step.
    in_kernels = convolution.KERNELS[kernels].layout if kernels != "torch" and recipe.form == "plain" else layout
    in_memory(model, device, in_kernels)
    optimizers = make_optimizers(recipe, model, device)
    if recipe.muon_learning_rate and len(optimizers) == 1:
        notes.append("muon_learning_rate is not used: no convolution lies between the network's first and last part")
    forward: Callable[[Tensor], Tensor] = model
    if kernels != "torch":
        tried = with_kernel(model, trial(recipe.hr_patch // SCALE, trained.entry.data_range, layout), kernels)
        if tried is None:
            why = f"{trained.entry.file}: torch.fx or the kernels cannot take its convolutions"
            if recipe.kernels != "auto":
                raise HarnessError(f'{why}; set kernels = "torch"')
            kernels, forward = "torch", in_memory(model, device, layout)
            notes.append(f"{why}, so they are PyTorch's")
        else:
            forward = tried
    if recipe.compile and device.type == "cuda":
        forward = torch.compile(forward)
    return Setup(replace(recipe, kernels=kernels), device, trained, model, forward, optimizers, layout, notes)


def with_precision(recipe: Recipe, device: torch.device, saved: Recipe | None = None) -> Recipe:
    """Return the recipe with a precision in place of "auto": that of the resumed run, else the device's."""
    if recipe.precision != "auto":
        return recipe
    precision: Precision = saved.precision if saved else fast_precision(device)
    return replace(recipe, precision=precision)


def in_memory(model: nn.Module, device: torch.device, layout: torch.memory_format) -> nn.Module:
    """Return the model itself, moved to a device, its weights in a layout."""
    return model.to(device, memory_format=layout)  # type: ignore[call-overload]  # PyTorch declares it for tensors


def chosen_kernels(recipe: Recipe, device: torch.device, saved: Recipe | None = None) -> tuple[Chosen, list[str]]:
    """Return the name of the kernels that a training uses, and notes on the choice.

    "auto" takes those of the resumed run, if they work here, else the fastest, else PyTorch's. Raise HarnessError
    if the recipe names kernels that cannot be used.
    """
    fits = device.type == "cpu" and recipe.precision == "bfloat16" and recipe.form != "branches"
    if recipe.kernels == "torch":
        return "torch", []
    named = recipe.kernels
    if named != "auto":
        if not fits:
            raise HarnessError(
                f'kernels = "{recipe.kernels}": are for bfloat16 on a CPU, in another form than branches; set "torch"'
            )
        if not convolution.works(named):
            raise HarnessError(
                f'kernels = "{recipe.kernels}": the processor or the C compiler of this machine lacks them; set "auto"'
            )
        return named, []
    fastest: Chosen = (convolution.fastest() or "torch") if fits else "torch"
    before = saved.kernels if saved else "auto"
    if before in ("auto", fastest):
        return fastest, []
    if before == "torch" or (fits and before != "auto" and convolution.works(before)):
        return before, []
    return fastest, [f"the run so far had other kernels ({before}); from here on, the last bits differ"]


def make_optimizers(recipe: Recipe, model: nn.Module, device: torch.device) -> list[Optimizer]:
    """Return AdamW, and Muon for the kernels between hidden features if the recipe gives it a learning rate."""
    hidden = hidden_weights(model) if recipe.muon_learning_rate else []
    others = [weight for weight in model.parameters() if not any(weight is other for other in hidden)]
    # Learning rates are tensors: a CUDA graph reads them in each step.
    adamw = torch.optim.AdamW(
        others,
        lr=torch.tensor(recipe.learning_rate, device=device),
        betas=recipe.betas,
        eps=recipe.eps,
        weight_decay=recipe.weight_decay,
        fused=True,
        capturable=device.type == "cuda",
    )
    if not hidden:
        return [adamw]
    return [adamw, Muon(hidden, torch.tensor(recipe.muon_learning_rate, device=device), recipe.weight_decay)]


def trial(side: int, data_range: float, layout: torch.memory_format) -> Tensor:
    """Return LR patches of random pixels, 2 x 3 x side x side in [0, data_range], to try a network on."""
    pixels = torch.rand(2, 3, side, side, generator=torch.Generator().manual_seed(0))
    return (data_range * pixels).to(memory_format=layout)


@torch.no_grad()
def start_near_mean(model: nn.Module, factor: float, data_range: float = 1.0) -> None:
    """Shrink the last convolution's weights by `factor` and set its bias to the RGB mean of the training data.

    This is for networks whose last convolution gives the whole image, not a residual to an upscaled one. If features
    are on the scale of grey levels and the output is in [0, 1], PyTorch's initial weights make the first output tens of
    times too large, and the first thousand steps only shrink it. Raise HarnessError if there is no such layer.
    """
    last = next((module for module in reversed(list(model.modules())) if isinstance(module, nn.Conv2d)), None)
    if last is None or last.out_channels % len(RGB_MEAN):
        found = f"{last.out_channels} channels in the last convolution" if last else "no convolution"
        raise HarnessError(f"output_init = {factor}: the network has {found}, which makes no image; set it to 0.0")
    last.weight.mul_(factor)
    if last.bias is not None:
        last.bias.copy_((torch.tensor(RGB_MEAN) * data_range).repeat_interleave(last.out_channels // len(RGB_MEAN)))
