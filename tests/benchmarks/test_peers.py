"""benchmarks/studies/peers: which rates are tried, and how a network's recipe is changed."""

import argparse
import json
import math

import pytest

from benchmarks.studies import peers
from benchmarks.studies.peers import __main__ as command
from benchmarks.studies.peers import table
from training.recipe import load_recipe
from utils.errors import DivergedError, HarnessError


@pytest.mark.parametrize(
    ("losses", "expected"),
    [
        ({}, 0.5),
        ({"0.5": 3.0, "1.0": 2.0}, 2.0),
        ({"0.5": 3.0, "1.0": 2.0, "2.0": 2.5}, None),
        ({"0.5": 3.0, "1.0": 2.0, "2.0": 1.5}, 4.0),
        ({"0.5": 1.0, "1.0": 2.0, "2.0": 3.0}, 0.25),
        ({"0.5": 3.0, "1.0": 2.0, "2.0": 1.5, "4.0": math.inf}, None),
    ],
)
def test_factors_are_tried_until_the_best_has_a_worse_one_on_either_side(losses, expected):
    assert command.next_factor(losses) == expected


def test_sweep_goes_on_after_a_training_that_diverged(tmp_path, monkeypatch):
    def run(changes, run_dir, _args):
        if changes["learning_rate"] > 1.5e-3:
            raise DivergedError(f"{run_dir}: the training failed")
        run_dir.mkdir(parents=True)
        (run_dir / "loss").write_text(str(1 / changes["learning_rate"]))

    monkeypatch.setattr(command, "run", run)
    monkeypatch.setattr(command, "last_loss", lambda run_dir: float((run_dir / "loss").read_text()))
    command.sweep(peers.PEERS[:1], argparse.Namespace(out=tmp_path))
    found = json.loads((tmp_path / peers.SWEEP_FILE).read_text())
    losses = found[peers.PEERS[0].name]
    assert losses["4.0"] == math.inf
    assert command.best_factor(losses) == 2
    table.print_sweep(peers.PEERS[:1], found)


def test_rates_that_diverge_in_the_long_run_give_way_to_the_next_best(tmp_path, monkeypatch):
    peer = peers.PEERS[0]
    ran = []

    def run(changes, run_dir, _args):
        factor = changes["learning_rate"] / load_recipe(peers.RECIPE).learning_rate
        ran.append((run_dir.name, factor))
        run_dir.mkdir(exist_ok=True)
        if factor > 1:
            raise DivergedError(f"{run_dir}: the training failed")

    monkeypatch.setattr(command, "run", run)
    (tmp_path / peers.SWEEP_FILE).write_text(json.dumps({peer.name: {"0.5": 3, "1.0": 2, "2.0": 1, "4.0": 2.5}}))
    command.train([peer], argparse.Namespace(out=tmp_path, first_seed=True))
    assert ran == [(peer.name, 2), (peer.name, 1)]
    assert json.loads((tmp_path / peers.SWEEP_FILE).read_text())[peer.name]["2.0"] == math.inf
    assert {path.name for path in tmp_path.iterdir() if path.is_dir()} == {
        peer.name,
        f"{peer.name}_rates_times_2_diverged",
    }


@pytest.mark.parametrize(("status", "kind"), [(3, DivergedError), (2, HarnessError)])
def test_failed_training_is_named_by_its_kind(tmp_path, monkeypatch, status, kind):
    script = tmp_path / "train.py"
    script.write_text(f"raise SystemExit({status})")
    monkeypatch.setattr(peers, "ROOT", tmp_path)
    args = argparse.Namespace(train_dir=tmp_path, validation_dir=None, time_limit=None)
    with pytest.raises(HarnessError) as raised:
        peers.run({"model": peers.PLAIN_NANOSR, "form": "plain"}, tmp_path / "run", args)
    assert raised.type is kind


@pytest.mark.parametrize("peer", peers.PEERS, ids=lambda peer: peer.name)
def test_changes_make_a_recipe(peer):
    recipe = load_recipe(peers.RECIPE, peers.as_settings(peer.changes(2.0, 7)))
    assert (recipe.model, recipe.form, recipe.seed) == (peer.trained or peer.model, peer.form, 7)
    assert recipe.muon_learning_rate == pytest.approx(2 * load_recipe(peers.RECIPE).muon_learning_rate)


def test_peers_are_keys():
    assert len(set(peers.PEERS)) == len(peers.PEERS)
