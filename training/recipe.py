"""Recipes: every hyper-parameter of a training run, read from one TOML file."""

import dataclasses
import re
import tomllib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from msgspec import Meta

from utils.errors import HarnessError
from utils.files import read_toml
from utils.typed import converted
from utils.zoo.registry import ModelTable

# Keys that a resumed run may change, as long as its finished steps would have been the same.
OF_THE_MACHINE = ("kernels", "compile", "cuda_graph")  # keys that say how a step runs, not what it computes
SCHEDULE = ("steps", "milestones", "gamma", "warmup", "cooldown", "log_every", "validate_every", "checkpoint_every")
LARGEST = 1e15  # infinity and NaN are not values
Positive = Annotated[int, Meta(ge=1)]
Natural = Annotated[int, Meta(ge=0)]
Amount = Annotated[float, Meta(gt=0, le=LARGEST)]
NotNegative = Annotated[float, Meta(ge=0, le=LARGEST)]
Precision = Literal["auto", "float32", "bfloat16"]
Form = Literal["auto", "plain", "collapsed", "branches"]  # the last two are of a training form
Kernels = Literal["auto", "torch", "amx", "winograd"]
Share = Annotated[float, Meta(ge=0, lt=1)]


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """One training run. `lr` and `hr` in names mean low and high resolution, except `learning_rate`.

    A recipe file names only what differs from the defaults, which are those of the CPU recipes.
    """

    # model: an id in the registry, or a table of file, class, arguments and data_range as in the registry
    model: int | ModelTable
    # data
    batch: Positive = 16  # patches per step, over all processes
    hr_patch: Annotated[int, Meta(ge=16, multiple_of=4)] = 128  # side of an HR patch [pixels]
    candidates: Positive = 1  # drawn for each patch; one is kept, with a probability that grows with its detail
    shifts: bool = False  # cut HR patches at any pixel, not only at multiples of 4, and make their LR patches
    negatives: Share = 0.0  # of the patches that have 255 - x for each value x
    colour_swaps: Share = 0.0  # of the patches whose red, green and blue are put into a random order
    seed: Annotated[int, Meta(ge=0, le=(1 << 63) - 1)] = 2026  # of the initial weights and of every batch
    output_init: NotNegative = 0.0  # factor on the last convolution's initial weights; its bias is the RGB mean; 0: off
    # optimization: AdamW, or AdamW beside Muon
    loss: Literal["l1", "l2", "rmse", "charbonnier", "l1+frequency"] = "l1"
    steps: Positive
    learning_rate: Amount  # of AdamW
    muon_learning_rate: NotNegative = 0.0  # of Muon, for the kernels between hidden features; 0: AdamW has them, too
    warmup: Natural = 0  # steps over which the learning rates rise linearly from 0
    milestones: tuple[Natural, ...] = ()  # steps at which the learning rates are multiplied by `gamma`
    gamma: Amount = 0.5
    cooldown: Natural = 0  # last steps, over which the learning rates fall linearly to 0, besides what milestones do
    betas: tuple[Share, Share] = (0.9, 0.99)
    eps: Amount = 1e-8
    weight_decay: NotNegative = 0.0
    clip_norm: NotNegative = 1.0  # largest gradient norm; 0 leaves gradients as they are
    ema_decay: Share = 0.999  # of the weights' running average, which is validated and exported; 0: none
    # how the step runs
    form: Form = "auto"  # auto: collapsed, if the network has branches
    channels_last: bool = True
    compile: bool = False  # on a GPU, let torch.compile fuse what is between convolutions; it takes a minute at first
    cuda_graph: bool = False  # with one GPU, replay the whole step as one CUDA graph
    precision: Precision = "auto"  # bfloat16 by autocast; auto: where the device has it
    # 3x3 convolutions in bfloat16 on a CPU: "torch" (oneDNN's), or one of `kernels/`; auto: the fastest that works
    kernels: Kernels = "auto"
    # how often
    log_every: Positive = 100
    validate_every: Positive = 1000
    checkpoint_every: Positive = 500

    def schedule_at(self, step: int) -> float:
        """Return the factor on the learning rates in the update that follows `step` finished ones."""
        factor = self.gamma ** sum(step >= milestone for milestone in self.milestones)
        if self.warmup:
            factor *= min(1.0, (step + 1) / self.warmup)
        return factor * min(1.0, (self.steps - step) / self.cooldown) if self.cooldown else factor

    def goes_on_from(self, saved: "Recipe", step: int) -> list[str]:
        """Return the changed keys that forbid resuming a run of the recipe `saved` at `step` with this recipe.

        A schedule may change if it is the same for the first `step` steps; how a step runs may change, too.
        """
        names = [field.name for field in dataclasses.fields(self) if field.name not in OF_THE_MACHINE]
        changed = [name for name in names if getattr(saved, name) != getattr(self, name)]
        if not changed:
            return []  # the schedules of half a million steps need not be compared
        if any(saved.schedule_at(done) != self.schedule_at(done) for done in range(step)) or self.steps < step:
            return changed
        return [key for key in changed if key not in SCHEDULE]

    def ema_decay_at(self, step: int) -> float:
        """Return the decay for the update after `step` finished ones: smaller at first, to forget the initial weights.

        At first, the average spans about a ninth of the steps so far. Otherwise, the initial weights would still be 5 %
        of it after 3000 steps at 0.999. The formula is that of TensorFlow's ExponentialMovingAverage.
        """
        return min(self.ema_decay, (1 + step) / (10 + step))


def load_recipe(path: Path | str, changes: Iterable[str] = ()) -> Recipe:
    """Read a recipe; each of the `changes`, "KEY=VALUE" with a TOML value, replaces one of its values.

    Raise HarnessError naming the file and the key for anything missing, unknown or out of range.
    """
    values = read_toml(path, "training/recipes/ holds examples")
    for change in changes:
        values |= _changed(change)
    return recipe_from(values, path)


def _changed(change: str) -> dict[str, Any]:
    """Return the {key: value} of a KEY=VALUE; a bare word is a text."""
    key, equals, value = change.partition("=")
    try:
        if (
            equals
            and re.fullmatch(r"\s*[A-Za-z_][\w+-]*\s*", value)
            and value.strip() not in ("true", "false", "inf", "nan")
        ):
            return {key.strip(): value.strip()}
        return tomllib.loads(change)
    except tomllib.TOMLDecodeError as error:
        raise HarnessError(f"--set {change}: not KEY=VALUE as a recipe has it ({error})") from error


def recipe_from(values: dict[str, Any], source: Path | str) -> Recipe:
    """Return a mapping of recipe values as a Recipe; `source` names it in errors. Raises as `load_recipe` does."""
    unknown = values.keys() - {field.name for field in dataclasses.fields(Recipe)}
    if unknown:
        raise HarnessError(f"{source}: unknown key {', '.join(sorted(unknown))}; see training/recipe.py for the list")
    recipe = converted(values, Recipe, source, "see training/recipe.py")
    if recipe.cooldown > recipe.steps:
        raise HarnessError(f"{source}: cooldown: is longer than steps; see training/recipe.py")
    return recipe
