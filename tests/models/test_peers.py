"""models/ of the compared systems: published complexity to the last digit, and quality with the published weights."""

import pytest
import torch

from models.pan import PAN
from models.plainusr import PlainUSR
from models.team00_EFDN import EFDN
from models.team00_SPAN import SPAN
from tests.helpers import CPU, benchmark_psnr, shipped_quality
from utils.data.datasets import open_dataset
from utils.evaluate.evaluation import evaluate
from utils.evaluate.runner import Runner
from utils.measure.complexity import measure_complexity
from utils.record import Counts, mean
from utils.zoo.checkpoints import load_state_dict, load_strictly
from utils.zoo.registry import find_entry, load_model, read_registry, with_checkpoint

PEERS = {
    EFDN: (
        "team00_EFDN.pth",
        Counts(params=276_192, flops=16_703_470_848, activations=111_116_736, convs=65),
        30.1754,
        26.7749,
    ),
    SPAN: (
        "team00_SPAN_2026.pth",
        Counts(params=150_688, flops=9_833_807_872, activations=41_680_896, convs=22),
        29.8483,
        26.5959,
    ),
    PAN: (
        "PANx4_DF2K.pth",
        Counts(params=272_419, flops=32_092_192_768, activations=270_532_608, convs=121),
        30.2183,
        26.8075,
    ),
    PlainUSR: (
        "PlainUSR_Rep_x4.pth",
        Counts(params=333_108, flops=18_743_776_256, activations=46_926_656, convs=27),
        30.1173,
        26.7326,
    ),
}
each_peer = pytest.mark.parametrize("peer", PEERS)


@pytest.mark.parametrize("peer", [pytest.param(peer, marks=[pytest.mark.slow] * (peer is PAN)) for peer in PEERS])
def test_complexity_is_the_published_one(peer):
    assert measure_complexity(peer().eval()) == PEERS[peer][1]


@each_peer
@pytest.mark.parametrize("size", [(15, 15), (17, 40)])
def test_output_is_four_times_as_large_at_odd_sizes(peer, size):
    assert peer()(torch.rand(1, 3, *size)).shape == (1, 3, 4 * size[0], 4 * size[1])


@each_peer
@pytest.mark.parametrize("benchmark", ["Set5", pytest.param("Set14", marks=pytest.mark.slow)])
def test_published_weights_reach_the_golden_psnr(shared, peer, benchmark):
    file, _, set5, set14 = PEERS[peer]
    model = peer().eval()
    path = shared / "official" / file
    load_strictly(model, load_state_dict(path), path)
    golden = set14 if benchmark == "Set14" else set5
    assert benchmark_psnr(model, shared, benchmark) == pytest.approx(golden, abs=1e-4)


@pytest.mark.parametrize("model_id", [7, 126, 0, 124, 120])
@pytest.mark.parametrize("benchmark", ["Set5", pytest.param("Set14", marks=pytest.mark.slow)])
def test_shipped_weights_reach_the_stated_psnr(shared, model_id, benchmark):
    model = load_model(find_entry(model_id, read_registry()), "cpu").model
    [stated] = [row for row in shipped_quality() if (row["model_id"], row["set"]) == (str(model_id), benchmark)]
    assert benchmark_psnr(model, shared, benchmark) == pytest.approx(float(stated["psnr_db"]), abs=0.006)


def test_efdn_clamps_its_output():
    sr = EFDN()(torch.rand(1, 3, 20, 20) * 9)
    assert sr.min() >= 0
    assert sr.max() <= 1


@pytest.mark.parametrize(
    ("benchmark", "expected"),
    [("Set5", (32.13, 0.8948)), pytest.param("Set14", (28.61, 0.7822), marks=pytest.mark.slow)],
)
def test_published_weights_of_pan_reach_its_papers_figures_on_luma(shared, benchmark, expected):
    path = shared / "official" / PEERS[PAN][0]
    entry = find_entry(120, read_registry())
    loaded = load_model(with_checkpoint(entry, path), "cpu")
    results = list(evaluate(Runner(loaded, CPU), open_dataset(shared / "benchmarks" / benchmark), with_luma=True))
    found = (mean(image.luma_psnr for image in results), mean(image.luma_ssim for image in results))
    assert (round(found[0] or 0, 2), round(found[1] or 0, 4)) == expected
