"""Train NanoSR by a recipe: python train.py RECIPE.toml --data DIR, or torchrun --nproc_per_node N train.py …"""

import argparse
import os
from pathlib import Path

import torch
from tqdm import tqdm

from training.feed import Plan, make_feed
from training.log import TrainingLog
from training.loop import STATE_FILE, Trainer, train, validation_psnr
from training.recipe import load_recipe
from training.subimages import SubImages
from utils.datasets import open_dataset
from utils.environment import choose_device
from utils.errors import HarnessError, exit_on_harness_error
from utils.sample import ensure_sample


def main():
    args = parse()
    recipe = load_recipe(args.recipe)
    rank, world = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
    device = choose_device(args.device, int(os.environ.get("LOCAL_RANK", 0)))
    if world > 1:
        torch.distributed.init_process_group("nccl" if device.type == "cuda" else "gloo")
    run_dir = args.run_dir or Path("runs") / args.recipe.stem
    if (run_dir / STATE_FILE).exists() and not args.resume:
        raise HarnessError(f"{run_dir}: holds a run already; go on with --resume or choose another --run_dir")
    run_dir.mkdir(parents=True, exist_ok=True)
    trainer = Trainer(recipe, device, rank, world)
    if args.resume and (run_dir / STATE_FILE).exists():
        trainer.load(run_dir)
    subimages = SubImages(args.data)
    plan = Plan(subimages.shapes, recipe.seed, recipe.batch, recipe.hr_patch, rank, world)
    feed = make_feed(subimages, plan, device, args.workers, args.feed)
    validation = open_dataset(args.validation or ensure_sample())
    finished = run(trainer, feed, validation, run_dir, args.minutes)
    if rank == 0:
        state = "finished" if finished else f"stopped at step {trainer.step} of {recipe.steps}; go on with --resume"
        print(f"{state}; {trainer.seconds / 60:.1f} minutes of training in all; weights and curves in {run_dir}")
    if world > 1:
        torch.distributed.destroy_process_group()


def parse():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("recipe", type=Path)
    parser.add_argument("--data", type=Path, default=Path("data/train"), help="folder that training.prepare made")
    parser.add_argument("--validation", type=Path, help="data folder with HR and LR (default: the built-in sample)")
    parser.add_argument("--run_dir", type=Path, help="default: runs/NAME of the recipe")
    parser.add_argument("--resume", action="store_true", help="go on from the run's last checkpoint, if it has one")
    parser.add_argument("--minutes", type=float, help="stop at a checkpoint after so many minutes")
    parser.add_argument("--device", default="auto", choices=("auto", "cpu", "cuda"))
    parser.add_argument("--feed", default="auto", choices=("auto", "resident", "mapped"))
    parser.add_argument("--workers", type=int, default=2, help="processes that cut patches with --feed mapped")
    return parser.parse_args()


def run(trainer, feed, validation, run_dir, minutes):
    """Train with a progress bar, a log, validation and checkpoints; return whether the recipe is finished."""
    recipe, first = trainer.recipe, trainer.rank == 0
    log = TrainingLog(run_dir, trainer.step) if first else None
    bar = tqdm(total=recipe.steps, initial=trainer.step, unit="step", disable=not first)
    losses, norms = [], []

    def on_step(loss, norm):
        losses.append(loss)
        norms.append(norm)
        bar.update()
        step = trainer.step
        last = step == recipe.steps
        if not first:
            return
        if step % recipe.log_every == 0 or last:
            validate = step % recipe.validate_every == 0 or last
            quality = validation_psnr(trainer.weights, validation, trainer.device) if validate else None
            loss, norm = (torch.stack(values).mean().item() for values in (losses, norms))
            losses.clear()
            norms.clear()
            log.write(step, loss, norm, recipe.learning_rate_at(step - 1), trainer.seconds, quality)
            bar.set_postfix_str(f"loss {loss:.4f}" + (f", {quality:.3f} dB" if validate else ""))
        if step % recipe.checkpoint_every == 0:
            trainer.save(run_dir)

    try:
        finished = train(trainer, feed, recipe.steps, on_step, minutes)
        if first:
            trainer.save(run_dir)
            trainer.export(run_dir)
    finally:
        bar.close()
        if first:
            log.close()
    return finished


if __name__ == "__main__":
    exit_on_harness_error(main)
