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
        ("steps = 6\n", "", "missing key steps"),
        ("batch = 2\n", "batch = 2.5\n", "batch: expected int, got float"),
        ('loss = "l1"', 'loss = "l3"', "loss: invalid enum value 'l3'"),
        ("cooldown = 0", "cooldown = 7", "cooldown: is longer than steps"),
        ("hr_patch = 32", "hr_patch = 30", "hr_patch: expected int that's a multiple of 4"),
        ("candidates = 1", "candidates = 0", "candidates: expected int >= 1"),
        ('"collapsed"', '"fused"', "form: invalid enum value 'fused'"),
        ("model = 7", 'model = "seven"', "model: expected int . object, got str"),
        ("model = 7", "model = { class = 'SPAN' }", "model: missing key file"),
        ("channels_last = true", "channels_last = 1", "channels_last: expected bool, got int"),
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
        ("form=plane", "form: invalid enum value 'plane'"),
        ("batches=3", "unknown key batches"),
        ("batch=0", "batch: expected int >= 1"),
        ("milestones=5", "milestones: expected array, got int"),
        ('milestones=["x"]', "milestones.*: expected int, got str"),
        ("milestones=[1.5]", "milestones.*: expected int, got float"),
        ("betas=0.9", "betas: expected array, got float"),
        ("betas=[0.9]", "betas: expected array of length 2, got 1"),
        ("learning_rate=inf", "learning_rate: expected float <= "),
        ("gamma=nan", "gamma: expected float"),
        ("gamma=0", "gamma: expected float > 0.0"),
        ("seed=-1", "seed: expected int >= 0"),
        ("warmup=-1", "warmup: expected int >= 0"),
        ("clip_norm=-1", "clip_norm: expected float >= 0.0"),
        ("model={file=3, class='X'}", "model.file: expected str, got int"),
        (
            "model={file='models/pan.py', class='PAN', arguments=5}",
            "model.arguments: expected (array . object|object . array), got int",
        ),
        ("model={file='models/pan.py', class='PAN', data_range='a'}", "model.data_range: expected float, got str"),
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
