"""training/recipe.py: every hyper-parameter is read, checked and named."""

import pytest

from tests.helpers import RECIPE
from training.recipe import load_recipe
from utils.errors import HarnessError
from utils.files import ROOT


def test_every_recipe_of_the_project_loads():
    for path in sorted((ROOT / "training" / "recipes").glob("*.toml")):
        load_recipe(path)


def test_schedule_is_the_published_one():
    recipe = load_recipe(ROOT / "training" / "recipes" / "nanosr_500k.toml")
    at = {0: 5e-4, 249_999: 5e-4, 250_000: 2.5e-4, 400_000: 1.25e-4, 450_000: 6.25e-5, 475_000: 3.125e-5}
    assert {step: recipe.learning_rate * recipe.schedule_at(step) for step in at} == pytest.approx(at)
    assert (recipe.batch, recipe.hr_patch, recipe.betas) == (64, 128, (0.9, 0.99))


def test_warm_up_rises_linearly(recipe_path):
    recipe = load_recipe(recipe_path)
    assert [recipe.learning_rate * recipe.schedule_at(step) for step in range(5)] == pytest.approx(
        [5e-4, 1e-3, 1e-3, 1e-3, 5e-4]
    )


def test_cooldown_falls_linearly_to_rest(recipe_path):
    recipe_path.write_text(RECIPE.replace("gamma = 0.5\ncooldown = 0", "gamma = 1.0\ncooldown = 4"))
    recipe = load_recipe(recipe_path)
    assert [recipe.schedule_at(step) for step in range(6)] == [0.5, 1, 1, 0.75, 0.5, 0.25]


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("momentum = 0.9", "unknown key momentum"),
        ("batch = 2.5", "not valid TOML"),
    ],
)
def test_extra_line_is_named(recipe_path, line, reason):
    recipe_path.write_text(RECIPE + line)
    with pytest.raises(HarnessError, match=reason):
        load_recipe(recipe_path)


@pytest.mark.parametrize(
    ("old", "new", "reason"),
    [
        ("batch = 2\n", "", "missing key batch"),
        ("batch = 2\n", "batch = 2.5\n", "batch is 2.5, expected int"),
        ('loss = "l1"', 'loss = "l3"', "loss = 'l3' is out of range"),
        ("cooldown = 0", "cooldown = 7", "cooldown = 7 is out of range"),
        ("hr_patch = 32", "hr_patch = 30", "hr_patch = 30 is out of range"),
        ("candidates = 1", "candidates = 0", "candidates = 0 is out of range"),
        ('"collapsed"', '"fused"', "form = 'fused' is out of range"),
        ("model = 7", 'model = "seven"', "model is 'seven', expected an id of the registry or a table"),
        ("model = 7", "model = { class = 'SPAN' }", "a table holds file and class"),
        ("channels_last = true", "channels_last = 1", "channels_last is 1, expected bool"),
    ],
)
def test_bad_recipe_names_the_key(recipe_path, old, new, reason):
    recipe_path.write_text(RECIPE.replace(old, new))
    with pytest.raises(HarnessError, match=reason):
        load_recipe(recipe_path)


def test_set_values_replace_the_recipes(recipe_path):
    recipe = load_recipe(recipe_path, ["batch=3", 'form = "branches"', "milestones=[1, 2]"])
    assert (recipe.batch, recipe.form, recipe.milestones) == (3, "branches", (1, 2))


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ("batch", "--set batch: not KEY=VALUE"),
        ("form = plain text", "--set form = plain text: not KEY=VALUE"),
        ("form=plane", "form = 'plane' is out of range"),
        ("batches=3", "unknown key batches"),
        ("batch=0", "batch = 0 is out of range"),
        ("milestones=5", "milestones is 5, expected a list of numbers"),
        ('milestones=["x"]', "milestones is .'x'., expected a list of numbers"),
        ("milestones=[1.5]", "milestones is .1.5., expected a list of numbers"),
        ("betas=0.9", "betas is 0.9, expected a list of numbers"),
        ("betas=[0.9]", "betas = .0.9,. is out of range"),
        ("learning_rate=inf", "learning_rate is inf, expected float"),
        ("gamma=nan", "gamma is nan, expected float"),
        ("gamma=0", "gamma = 0.0 is out of range"),
        ("seed=-1", "seed = -1 is out of range"),
        ("warmup=-1", "warmup = -1 is out of range"),
        ("clip_norm=-1", "clip_norm = -1.0 is out of range"),
        ("model={file=3, class='X'}", "model.file is 3, which the registry does not take"),
        ("model={file='models/pan.py', class='PAN', arguments=5}", "model.arguments is 5, which"),
        ("model={file='models/pan.py', class='PAN', data_range='a'}", "model.data_range is 'a', which"),
    ],
)
def test_bad_set_is_named(recipe_path, change, reason):
    with pytest.raises(HarnessError, match=reason):
        load_recipe(recipe_path, [change])


@pytest.mark.parametrize("change", ["precision=bfloat16", "precision = bfloat16", 'precision="bfloat16"'])
def test_bare_word_is_a_text(recipe_path, change):
    assert load_recipe(recipe_path, [change]).precision == "bfloat16"


@pytest.mark.parametrize(
    ("changes", "step", "expected"),
    [
        (["steps=30"], 6, []),
        (["milestones=[5]"], 4, []),
        (["milestones=[3]"], 4, ["milestones"]),
        (["steps=30", "cooldown=2", "log_every=3"], 6, []),
        (["steps=5"], 6, ["steps"]),
        (["steps=30", "batch=3"], 6, ["batch"]),
        (["warmup=4"], 1, ["warmup"]),
    ],
)
def test_what_was_not_done_yet_may_change(recipe_path, changes, step, expected):
    saved, recipe = load_recipe(recipe_path), load_recipe(recipe_path, changes)
    assert sorted(set(recipe.goes_on_from(saved, step)) & set(expected)) == expected
    assert bool(recipe.goes_on_from(saved, step)) is bool(expected)
