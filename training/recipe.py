"""Recipes: every hyper-parameter of a training run, read from one TOML file."""

import dataclasses
import math
import pickle
import re
import tomllib
import types
from dataclasses import dataclass
from pathlib import Path

import torch

from kernels.convolution import KERNELS
from training.forms import FORMS
from training.optim.losses import LOSSES
from utils.errors import HarnessError

PRECISIONS = ("auto", "float32", "bfloat16")
KERNEL_NAMES = ("auto", "torch", *KERNELS)
# Keys that may change in a run that goes on, where nothing that was done would differ.
SCHEDULE = ("steps", "milestones", "gamma", "warmup", "cooldown", "log_every", "validate_every", "checkpoint_every")
AT_LEAST_ONE = ("batch", "candidates", "steps", "log_every", "validate_every", "checkpoint_every")
POSITIVE = ("learning_rate", "gamma", "eps")
NOT_NEGATIVE = ("output_init", "muon_learning_rate", "warmup", "weight_decay", "clip_norm")


@dataclass(frozen=True)
class Recipe:
    """One training run. `lr` and `hr` in names mean low and high resolution, except `learning_rate`."""

    # model: an id of the registry, or a table of file, class, arguments and data_range as there
    model: int | dict
    # data
    batch: int  # patches per step, over all processes
    hr_patch: int  # side of an HR patch [pixels], a multiple of 4
    candidates: int  # drawn for each patch; one is kept, the likelier the more detail it has; 1 takes all as they come
    seed: int  # of the initial weights and of every batch
    output_init: float  # factor on the last convolution's initial weights; its bias is the RGB mean; 0: PyTorch's
    # optimisation: AdamW, or AdamW beside Muon
    loss: str  # "l1", "l2", "charbonnier" or "l1+frequency"
    steps: int
    learning_rate: float  # of AdamW
    muon_learning_rate: float  # of Muon, for the kernels between hidden features; 0 leaves them to AdamW too
    warmup: int  # steps over which the learning rates rise linearly from 0
    milestones: tuple[int, ...]  # steps at which the learning rates are multiplied by `gamma`
    gamma: float
    cooldown: int  # last steps, over which the learning rates fall linearly to 0, beside what milestones do
    betas: tuple[float, float]
    eps: float
    weight_decay: float
    clip_norm: float  # largest gradient norm; 0 leaves gradients as they are
    ema_decay: float  # of the weights' running average, which is validated and exported, from some steps on; 0: none
    # how the step runs
    form: str  # "plain", or of a training form "collapsed" or "branches"
    channels_last: bool
    compile: bool  # on a GPU, let torch.compile fuse what is between convolutions; the first step takes a minute then
    cuda_graph: bool  # with one GPU, replay the whole step as one CUDA graph
    # how often
    log_every: int
    validate_every: int
    checkpoint_every: int
    precision: str = "auto"  # "float32", "bfloat16" (autocast), or "auto": bfloat16 where the device has it
    # 3x3 convolutions in bfloat16 on a CPU: "torch" (oneDNN's), "amx", "winograd", or "auto": the fastest that works
    kernels: str = "auto"

    def schedule_at(self, step):
        """Factor on the learning rates in the update that follows `step` finished ones."""
        factor = self.gamma ** sum(step >= milestone for milestone in self.milestones)
        if self.warmup:
            factor *= min(1.0, (step + 1) / self.warmup)
        return factor * min(1.0, (self.steps - step) / self.cooldown) if self.cooldown else factor

    def goes_on_from(self, saved: "Recipe", step: int) -> list[str]:
        """Return the keys of another recipe by which its first `step` steps, or what follows, would not fit this one.

        A schedule that is longer, or falls elsewhere, fits if it is the same until there.
        """
        values = dataclasses.asdict(saved)
        changed = [key for key, value in values.items() if value != getattr(self, key) and key != "kernels"]
        if not changed:
            return []  # the schedules of half a million steps need not be compared
        if any(saved.schedule_at(done) != self.schedule_at(done) for done in range(step)) or self.steps < step:
            return changed
        return [key for key in changed if key not in SCHEDULE]

    def ema_decay_at(self, step):
        """`ema_decay` in the update that follows `step` finished ones: less at first, so that the start is forgotten.

        The average then spans about a ninth of the steps so far; else 5 % of it would be the initial weights after 3000
        steps at 0.999. The formula is that of TensorFlow's ExponentialMovingAverage.
        """
        return min(self.ema_decay, (1 + step) / (10 + step))


def load_recipe(path, changes=()):
    """Read a recipe; each of the `changes`, "KEY=VALUE" with a TOML value, replaces one of its values.

    Raises HarnessError naming the file and the key for anything missing, unknown or out of range.
    """
    path = Path(path)
    try:
        values = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise HarnessError(f"{path}: cannot be read ({error.strerror}); recipes lie in training/recipes/") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise HarnessError(f"{path}: not valid TOML ({error})") from error
    for change in changes:
        values |= _changed(change)
    return recipe_from(values, path)


def _changed(change):
    """The {key: value} of a KEY=VALUE; a bare word is a text."""
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


MODEL_KEYS = {"file": str, "class": str, "arguments": list | dict, "data_range": int | float}


def check_model(value, source):
    """Return a recipe's `model` if it is an id or a table with the right keys. Raises HarnessError."""
    if isinstance(value, dict):
        if not {"file", "class"} <= value.keys() <= MODEL_KEYS.keys():
            raise HarnessError(f"{source}: model = {value!r}; a table holds file and class, and may hold arguments")
        for key, kind in MODEL_KEYS.items():
            if key in value and not isinstance(value[key], kind):
                raise HarnessError(f"{source}: model.{key} is {value[key]!r}, which the registry does not take")
    elif type(value) is not int:
        raise HarnessError(f"{source}: model is {value!r}, expected an id of the registry or a table")
    return value


def typed(value, kind):
    """Return a TOML value as a field's type: a whole number as a float, a list as a tuple. Raises TypeError."""
    if isinstance(kind, types.GenericAlias):  # tuple[int, ...] or tuple[float, float]
        if not isinstance(value, list | tuple):
            raise TypeError
        return tuple(typed(item, kind.__args__[0]) for item in value)
    if kind is float and type(value) is int:
        value = float(value)
    if type(value) is not kind or (kind is float and not math.isfinite(value)):
        raise TypeError
    return value


def recipe_from(values, source):
    """Check a mapping of recipe values; `source` names it in errors. Raises HarnessError as `load_recipe` does."""
    fields = {field.name: field.type for field in dataclasses.fields(Recipe)}
    needed = {field.name for field in dataclasses.fields(Recipe) if field.default is dataclasses.MISSING}
    for problem, keys in (("unknown", values.keys() - fields.keys()), ("missing", needed - values.keys())):
        if keys:
            raise HarnessError(
                f"{source}: {problem} key {', '.join(sorted(keys))}; see training/recipe.py for the list"
            )
    checked = {"model": check_model(values["model"], source)}
    for key, value in values.items():
        if key == "model":
            continue
        try:
            checked[key] = typed(value, fields[key])
        except TypeError:
            kind = getattr(fields[key], "__name__", fields[key])
            expected = "a list of numbers" if kind == "tuple" else kind
            raise HarnessError(f"{source}: {key} is {value!r}, expected {expected}") from None
    recipe = Recipe(**checked)
    requirements = {
        "hr_patch": recipe.hr_patch >= 16 and recipe.hr_patch % 4 == 0,
        "seed": 0 <= recipe.seed < 1 << 63,
        "loss": recipe.loss in LOSSES,
        "cooldown": 0 <= recipe.cooldown <= recipe.steps,
        "milestones": all(milestone >= 0 for milestone in recipe.milestones),
        "form": recipe.form in FORMS,
        "precision": recipe.precision in PRECISIONS,
        "kernels": recipe.kernels in KERNEL_NAMES,
        "ema_decay": 0 <= recipe.ema_decay < 1,
        "betas": len(recipe.betas) == 2 and all(0 <= beta < 1 for beta in recipe.betas),
        **{key: getattr(recipe, key) >= 1 for key in AT_LEAST_ONE},
        **{key: getattr(recipe, key) > 0 for key in POSITIVE},
        **{key: getattr(recipe, key) >= 0 for key in NOT_NEGATIVE},
    }
    for key, holds in requirements.items():
        if not holds:
            raise HarnessError(f"{source}: {key} = {getattr(recipe, key)!r} is out of range; see training/recipe.py")
    return recipe


def recipe_of_state(path: Path) -> Recipe:
    """Return the recipe in a run's state. Raises HarnessError if it cannot be read."""
    try:
        return recipe_from(torch.load(path, map_location="cpu", weights_only=True)["recipe"], path)
    except (OSError, RuntimeError, KeyError, pickle.UnpicklingError) as error:
        raise HarnessError(f"{path}: not a readable training state") from error
