"""Train a model by a recipe: python train.py RECIPE.toml --train_dir DIR, or torchrun --nproc_per_node N train.py …"""

import argparse
import os
import sys
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import msgspec
import tomli_w
import torch
from torch import Tensor

from training.data.feed import THREADS, Feed, PatchSampler, make_feed
from training.data.subimages import SubImages
from training.forms import load_weights, trained_model
from training.log import TrainingLog
from training.loop import STATE_FILE, Trainer, read_state, train, unreached_kernels
from training.recipe import SCHEDULE, Recipe, load_recipe, recipe_from
from training.setup import Setup, set_up
from training.validation import validation_psnr
from utils.data.datasets import Dataset, open_dataset, read_fitting_hr
from utils.data.sample import ensure_sample
from utils.errors import DivergedError, HarnessError, exit_on_harness_error, in_one_line, line_of
from utils.evaluate.distributed import process_group
from utils.files import RECIPE_FILE, held, write_text, writing
from utils.measure.allocator import keep_freed_memory
from utils.measure.environment import choose_device
from utils.measure.precision import cost_line
from utils.options import add_device, command_line, duration, natural, parse, refuse
from utils.progress import progress

LEAP = 10  # times the initial loss; a run whose loss jumps this far does not recover


def main() -> None:
    args = arguments()
    if args.feed == "resident":
        refuse(("--feed_threads",), "is for --feed mapped; leave it out")
    recipe = load_recipe(args.recipe, args.set)
    rank, world = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
    device = choose_device(args.device, int(os.environ.get("LOCAL_RANK", 0)))
    subimages = SubImages(args.train_dir)
    if device.type == "cpu":
        keep_freed_memory()
    sampler = PatchSampler(
        subimages.shapes,
        recipe.seed,
        recipe.batch,
        recipe.hr_patch,
        recipe.candidates,
        rank,
        world,
        recipe.shifts,
        recipe.negatives,
        recipe.colour_swaps,
    )
    validation = open_validation(args.validation_dir) if rank == 0 else None
    run_dir = args.run_dir or Path("runs") / args.recipe.stem
    state = state_to_go_on_from(run_dir, args.resume, args.init, device)
    try:
        alone = held(run_dir, "choose another --run_dir") if rank == 0 else nullcontext()
        with alone, process_group("nccl" if device.type == "cuda" else "gloo", world):
            setup = set_up(recipe, device, recipe_from(state["recipe"], run_dir / STATE_FILE) if state else None)
            recipe = setup.recipe
            if rank == 0:
                announce(setup)
            trainer = Trainer(setup, rank, world, subimages.sha256)
            if state and rank == 0:
                announce_changes(recipe, recipe_from(state["recipe"], run_dir / STATE_FILE))
            start(trainer, run_dir, state, args.init)
            if rank == 0:
                # With all defaults: the run tells by it, years later, what it did.
                write_text(run_dir / RECIPE_FILE, tomli_w.dumps(msgspec.to_builtins(recipe)))
            feed = make_feed(subimages, sampler, device, args.feed_threads, args.feed)
            finished = run(trainer, feed, validation, run_dir, args.time_limit)
    except HarnessError:
        raise
    except Exception as error:  # a network's code may raise anything
        if reason := how_to_fix(error, args.recipe, recipe):
            raise HarnessError(reason) from error
        raise
    if rank == 0:
        ended = "finished" if finished else f"stopped at step {trainer.step} of {recipe.steps}; go on with --resume"
        print(f"{ended}; {trainer.seconds / 60:.1f} minutes of training in all; weights and curves in {run_dir}")


def announce(setup: Setup) -> None:
    """Print the chosen precision and kernels, the precision's cost, and the setup's notes."""
    print(f"precision: {setup.recipe.precision}; kernels: {setup.recipe.kernels}")
    for line in filter(None, [cost_line(setup.device, setup.recipe.precision), *setup.notes]):
        print(line)


def announce_changes(recipe: Recipe, saved: Recipe) -> None:
    """Print the schedule keys that differ from the run so far, for example after a `--set` that was not repeated."""
    for key in SCHEDULE:
        before, now = getattr(saved, key), getattr(recipe, key)
        if before != now:
            print(f"{key}: {before} so far, {now} from here on")


def how_to_fix(error: BaseException, path: Path, recipe: Recipe) -> str | None:
    """Return a one-line message with a remedy; None if the cause is neither lack of memory nor the network's code."""
    # torch and the project's own convolutions raise these when memory runs out.
    if isinstance(error, MemoryError | torch.OutOfMemoryError) or "allocate memory" in str(error):
        tried = f"batch = {recipe.batch} at hr_patch = {recipe.hr_patch} ({in_one_line(error)})"
        return f"{path}: no memory for {tried}; lower one of them, or take --feed mapped"
    file = trained_model(recipe.model).entry.file
    if recipe.cuda_graph and "captur" in str(error):
        return f"{path}: no CUDA graph of a step ({in_one_line(error, file=file)}); set cuda_graph = false"
    if line_of(error, file):
        return f"{file}: fails in training ({in_one_line(error, file=file)})"
    return None


def arguments() -> argparse.Namespace:
    parser = command_line(
        "train.py",
        "Train a model by a recipe. With several GPUs: torchrun --nproc_per_node N train.py …",
        "training/recipes/cpu_sample.toml --train_dir data/train",
        "net.toml --resume --set steps=2000",
    )
    parser.add_argument(
        "recipe", type=Path, metavar="RECIPE.toml", help="a TOML file, such as those in training/recipes/"
    )
    parser.add_argument("--set", nargs="+", default=[], metavar="KEY=VALUE", help="replace values of the recipe")
    parser.add_argument(
        "--train_dir",
        type=Path,
        default=Path("data/train"),
        help="folder made by training.prepare (default: data/train)",
    )
    parser.add_argument("--validation_dir", type=Path, help="data folder with HR images (default: the sample)")
    parser.add_argument("--run_dir", type=Path, help="default: runs/NAME of the recipe")
    parser.add_argument(
        "--resume", action="store_true", help="continue from the run's last checkpoint, if there is one"
    )
    parser.add_argument("--init", type=Path, metavar="CKPT", help="start a new run from these weights")
    parser.add_argument(
        "--time_limit", type=duration, metavar="MINUTES", help="stop at a checkpoint after so many minutes"
    )
    add_device(parser)
    parser.add_argument(
        "--feed",
        default="auto",
        choices=("auto", "resident", "mapped"),
        help="training set in memory, or memory-mapped",
    )
    parser.add_argument(
        "--feed_threads", type=natural, default=THREADS, help="threads that read patches with --feed mapped"
    )
    return parse(parser, {"--workers": "--feed_threads"})


def open_validation(folder: Path | None) -> Dataset:
    """Open the validation data (default: the built-in sample) and read all of it, so that errors show at once."""
    dataset = open_dataset(folder or ensure_sample())
    if not dataset.has_hr:
        raise HarnessError(f"{folder}: validation needs HR images; add them or name another folder")
    for note in dataset.notes:
        print(f"validation: {note}")
    for pair in dataset.pairs:
        read_fitting_hr(pair, pair.read_lr())
    return dataset


def state_to_go_on_from(run_dir: Path, resume: bool, init: Path | None, device: torch.device) -> dict[str, Any] | None:
    """Return the checkpoint of the run in `run_dir`; None if a new run starts there."""
    path = run_dir / STATE_FILE
    if not path.exists():
        if resume and int(os.environ.get("RANK", 0)) == 0:
            print(f"{run_dir}: holds no checkpoint; a new run begins there", file=sys.stderr)
        return None
    if not resume:
        raise HarnessError(f"{run_dir}: holds a run already; go on with --resume or choose another --run_dir")
    if init:
        raise HarnessError(f"--init {init}: a resumed run has its weights; leave out --init or --resume")
    return read_state(path, device)


def start(trainer: Trainer, run_dir: Path, state: dict[str, Any] | None, init: Path | None) -> None:
    """Resume from the run's checkpoint, or start a new run in `run_dir`."""
    if state:
        trainer.load(state, run_dir / STATE_FILE)
        return
    if init:
        trainer.weights.load_state_dict(load_weights(trainer.model, init))
    with writing(run_dir, "choose another --run_dir"):
        run_dir.mkdir(parents=True, exist_ok=True)


def run(trainer: Trainer, feed: Feed, validation: Dataset | None, run_dir: Path, minutes: float | None) -> bool:
    """Train with a progress bar, a log, validation and checkpoints; return whether the recipe is finished."""
    if validation is None:  # only the first process validates, logs and saves
        return train(trainer, feed, lambda loss, norm: None, minutes)
    recipe = trainer.recipe
    log = TrainingLog(run_dir, trainer.step, recipe.precision, recipe.kernels)
    bar = progress(total=recipe.steps, initial=trainer.step, unit="step")
    since_last_row: list[Tensor] = []
    dead: list[str] = []
    saved = trainer.step  # of the last checkpoint

    def on_step(loss: Tensor, norm: Tensor) -> None:
        nonlocal saved
        bar.update()
        since_last_row.append(torch.stack([loss, norm]))
        step = trainer.step
        if log.first_loss is None:
            log.first_loss = loss.item()
        last = step == recipe.steps
        if step % recipe.log_every == 0 or last:
            mean_loss, mean_norm = torch.stack(since_last_row).mean(dim=0).tolist()
            since_last_row.clear()
            due = step % recipe.validate_every == 0 or last
            entry = trainer.trained.entry
            quality = validation_psnr(trainer.weights, entry, validation, trainer.device) if due else None
            log.write(
                step,
                mean_loss,
                mean_norm,
                recipe.learning_rate * recipe.schedule_at(step - 1),
                trainer.seconds,
                quality,
            )
            if mean_loss > LEAP * log.first_loss:
                raise DivergedError(
                    f"step {step}: the loss, {mean_loss:.3g}, is more than {LEAP} times what it was at first; "
                    "start again in another --run_dir, with a lower learning_rate or a longer warmup"
                )
            if not dead and step > recipe.warmup and (unreached := unreached_kernels(trainer.model)):
                dead.extend(unreached)
                bar.write(
                    f"warning: step {step}: {len(dead)} kernels (first: {dead[0]}) receive no gradient, so "
                    "this block will not train. Try another seed, a longer warm-up or a lower learning rate",
                    file=sys.stderr,
                )
            bar.set_postfix_str(
                f"loss {mean_loss:.4f}" + (f", {quality:.3f} dB" if quality is not None else ""), refresh=False
            )
        if step % recipe.checkpoint_every == 0 and not last:
            trainer.save(run_dir)
            saved = step

    try:
        finished = train(trainer, feed, on_step, minutes)
        trainer.save(run_dir)
        trainer.export(run_dir)
    except KeyboardInterrupt:
        kept = f"the checkpoint is of step {saved}" if saved else "there is no checkpoint yet"
        bar.write(f"stopped in step {trainer.step + 1}; {kept}", file=sys.stderr)
        raise
    finally:
        bar.close()
        log.close()
    return finished


if __name__ == "__main__":
    exit_on_harness_error(main)
