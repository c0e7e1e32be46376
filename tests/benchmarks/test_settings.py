"""benchmarks/studies/settings.py: what is changed, and that all runs see the same number of pixels."""

import argparse

import pytest
import torch

from benchmarks.studies import settings as study
from benchmarks.studies.peers import RECIPE, as_settings
from models.training.nanosr import NanoSR_train
from training.forms import trained_model
from training.log import FIELDS
from training.loop import STATE_FILE
from training.recipe import load_recipe
from training.validation import validation_psnr
from utils.data.datasets import open_dataset


@pytest.mark.parametrize("setting", study.SETTINGS, ids=lambda setting: setting.name)
def test_setting_makes_a_recipe_of_the_same_pixels(setting):
    changes = study.changes_for(setting, seed=7) | setting.last
    recipe = load_recipe(RECIPE, as_settings(changes))
    assert recipe.seed == 7
    assert recipe.steps * recipe.batch * recipe.hr_patch**2 == pytest.approx(3000 * 16 * 128**2, rel=1e-3)
    assert all(0 < milestone < recipe.steps for milestone in recipe.milestones)
    changed = {key for key in vars(recipe) if getattr(recipe, key) != getattr(study.BASE, key)}
    assert setting.changes.keys() | setting.last.keys() <= changed or setting is study.SETTINGS[0]


def test_schedules_keep_their_shape():
    main, linear, late, batch8 = (
        load_recipe(RECIPE, as_settings(study.changes_for(study.SETTINGS[number], 7))) for number in (0, 1, 2, 8)
    )
    assert main.milestones == (1500, 1950, 2325, 2625, 2805, 2910)
    assert [linear.schedule_at(step) for step in (750, 1500, 3000)] == [0.75, 0.5, 0.0]
    assert [late.schedule_at(step) for step in (1500, 2000, 2500)] == [1.0, 1.0, 0.5]
    assert (batch8.steps, batch8.warmup, batch8.milestones[0]) == (6000, 200, 3000)


def test_last_tenth_is_run_with_the_recipe_changed(tmp_path, monkeypatch):
    ran = []

    def run(changes, run_dir, _args):
        ran.append((changes["steps"], changes.get("precision")))
        run_dir.mkdir(exist_ok=True)
        torch.save({"recipe": {"steps": changes["steps"]}, "step": changes["steps"]}, run_dir / STATE_FILE)
        (run_dir / "log.csv").write_text(f"{','.join(FIELDS)}\n{changes['steps']},1,1,1,,1\n")

    monkeypatch.setattr(study, "run", run)
    args = argparse.Namespace(out=tmp_path, seeds=(1, 2))
    study.run_all(study.SETTINGS[-1:], args)
    assert ran == [(2700, None), (3000, "float32")] * 2
    study.run_all(study.SETTINGS[-1:], args)
    assert len(ran) == 4  # what is finished is left alone


def test_table_has_differences_to_the_same_seed(tmp_path, monkeypatch, capsys):
    values = {"as the recipe has it": 26.0, "batch 8": 26.25}

    def quality(setting, seed, _dataset, _out, averaged=False):
        return values[setting.name] + seed - 0.5 * averaged if seed == 1 else None

    monkeypatch.setattr(study, "quality", quality)
    monkeypatch.setattr(study, "open_dataset", lambda folder: folder)
    settings = [study.SETTINGS[0], study.SETTINGS[8]]
    study.table(settings, argparse.Namespace(out=tmp_path, seeds=(1, 2), data_dir=[tmp_path / "Set14"]))
    assert capsys.readouterr().out.splitlines()[3:] == [
        "| as the recipe has it | 27.000 |  |",
        "| its running average | -0.500 |  |",
        "| batch 8 | +0.250 |  |",
    ]


@pytest.mark.parametrize("averaged", [False, True])
def test_quality_is_of_the_weights_that_are_asked_for(tmp_path, pairs, averaged):
    run_dir = study.run_folder(study.SETTINGS[0], 1, tmp_path)
    run_dir.mkdir()
    (run_dir / "log.csv").write_text(f"{','.join(FIELDS)}\n3000,1,1,1,,1\n")
    torch.manual_seed(0)
    last, average = NanoSR_train(), NanoSR_train()
    torch.save({"params": last.state_dict(), "params_ema": average.state_dict()}, run_dir / STATE_FILE)
    dataset = open_dataset(pairs)
    entry = trained_model(7).entry
    psnr_last, psnr_average = (validation_psnr(network, entry, dataset, "cpu") for network in (last, average))
    assert abs(psnr_last - psnr_average) > 0.01
    expected = psnr_average if averaged else psnr_last
    assert study.quality(study.SETTINGS[0], 1, dataset, tmp_path, averaged) == pytest.approx(expected, abs=1e-3)
