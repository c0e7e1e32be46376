"""utils/evaluate/measurement.py: a measurement that was stopped goes on, and never mixes circumstances."""

from copy import deepcopy

import pytest
import torch

from tests.helpers import CPU, Enlarge, write_pairs
from utils.data.datasets import open_dataset
from utils.evaluate.measurement import MeasurementPlan, PostponedError, measure
from utils.evaluate.runner import Runner
from utils.measure.runtime import Pass
from utils.record import Isolation, Status, WeightsInfo
from utils.zoo.registry import LoadedModel, find_entry, read_registry

WEIGHTS = WeightsInfo(sha256="sha", provenance="a test's")


class Killed(BaseException):
    """Stands in for SIGKILL: nothing may catch it."""


@pytest.fixture
def dataset(tmp_path):
    return open_dataset(write_pairs(tmp_path / "data", list("abcd"), size=(48, 64)))


@pytest.fixture
def loaded():
    """A quick network under the registry's name; counting it is not what is tested here."""
    network = Enlarge()
    network.weight = torch.nn.Parameter(torch.ones(1))
    return Runner(LoadedModel(network, find_entry(7, read_registry()), WEIGHTS), CPU)


def stopped_after(loaded, dataset, passes, **arguments):
    """The record as it was stored when the measurement was killed after so many passes."""
    stored = []

    def store(record):
        stored.append(deepcopy(record))
        if len(stored) == passes:
            raise Killed

    with pytest.raises(Killed):
        measure(loaded, dataset, MeasurementPlan(2, 1, 1), on_progress=store, **arguments)
    return stored[passes - 1]


def test_slow_model_is_postponed_after_a_pass_with_its_static_figures_and_goes_on(loaded, dataset, monkeypatch):
    monkeypatch.setattr(loaded, "forward", lambda lr: Pass(loaded.model(lr), 60_000.0, None))
    stored = []
    with pytest.raises(PostponedError) as caught:
        measure(loaded, dataset, MeasurementPlan(2, 1, 1), on_progress=stored.append, patience_s=599.0)
    assert caught.value.seconds == 600.0  # ten passes
    record = stored[-1]
    assert (record.status, record.reason) == (
        Status.STOPPED,
        "postponed until the others are measured; it takes about 10 min",
    )
    assert record.complexity is not None
    assert record.runtime.runs == [[60_000.0]]
    assert measure(loaded, dataset, MeasurementPlan(2, 1, 1), earlier=record).is_complete
    assert measure(loaded, dataset, MeasurementPlan(2, 1, 1), patience_s=600.0).is_complete


@pytest.mark.parametrize("passes", [1, 3, 4, 6, 8])
def test_going_on_gives_the_record_of_an_unbroken_measurement(loaded, dataset, passes):
    whole = measure(loaded, dataset, MeasurementPlan(2, 1, 1))
    earlier = stopped_after(loaded, dataset, passes)
    assert earlier.status == Status.RUNNING
    timed = []
    resumed = measure(loaded, dataset, MeasurementPlan(2, 1, 1), earlier=earlier, on_progress=lambda r: timed.append(1))
    assert len(timed) == 8 - passes + 1
    assert resumed.runtime.parts == 2
    assert resumed.runtime.runs[0][:passes] == earlier.runtime.runs[0]
    assert [len(run) for run in resumed.runtime.runs] == [4, 4]
    for key in ("model", "dataset", "images", "memory", "complexity", "status"):
        assert getattr(resumed, key) == getattr(whole, key), key


def test_image_whose_entry_was_interrupted_is_scored_again(loaded, dataset):
    whole = measure(loaded, dataset, MeasurementPlan(2, 1, 1))
    earlier = stopped_after(loaded, dataset, 2)
    earlier.images.name.append(whole.images.name[2])  # and Ctrl-C came before the other columns
    assert measure(loaded, dataset, MeasurementPlan(2, 1, 1), earlier=earlier).images == whole.images


def test_interrupted_measurement_is_handed_on_as_it_is(loaded, dataset):
    handed, passes = [], iter(range(5))

    def interrupt():
        if next(passes) == 4:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        measure(
            loaded,
            dataset,
            MeasurementPlan(2, 1, 1),
            on_pass=interrupt,
            on_progress=lambda r: handed.append(deepcopy(r)),
        )
    assert handed[-1].reason == "interrupted"
    assert [len(run) for run in handed[-1].runtime.runs] == [4, 1]


def test_fewer_runs_than_were_begun_are_enough(loaded, dataset):
    earlier = stopped_after(loaded, dataset, 6)
    record = measure(loaded, dataset, MeasurementPlan(1, 1, 1), earlier=earlier)
    assert [len(run) for run in record.runtime.runs] == [4]


def other_model(record):
    record.model.sha256 = "another"


def other_code(record):
    record.model.file_sha256 = "another"


def other_data(record):
    record.dataset.folder = "elsewhere"


def other_images(record):
    record.dataset.sha256 = "another"


def other_process(record):
    record.environment.isolation = Isolation.SANDBOX


def other_machine(record):
    record.environment.cpu = "another"


def other_torch(record):
    record.environment.libraries["torch"] = "1.0"


def other_method(record):
    record.runtime.busy_cpu = True


CHANGES = [other_model, other_code, other_data, other_images, other_process, other_machine, other_torch, other_method]


@pytest.mark.parametrize("change", CHANGES)
def test_other_circumstances_start_anew(loaded, dataset, change):
    earlier = stopped_after(loaded, dataset, 3)
    change(earlier)
    assert measure(loaded, dataset, MeasurementPlan(2, 1, 1), earlier=earlier).runtime.parts == 1


def test_images_scored_by_other_metrics_start_anew(loaded, dataset):
    earlier = stopped_after(loaded, dataset, 3)
    on_luma = MeasurementPlan(2, 1, 1, luma=True)
    record = measure(loaded, dataset, on_luma, earlier=earlier)
    assert record.runtime.parts == 1
    assert record.luma_psnr_db is not None
    assert on_luma.is_done_by(record)
    assert not MeasurementPlan(2, 1, 1).is_done_by(record)


def test_record_of_a_version_without_luma_goes_on(loaded, dataset):
    earlier = stopped_after(loaded, dataset, 3)
    earlier.images.luma_psnr = earlier.images.luma_ssim = []
    record = measure(loaded, dataset, MeasurementPlan(2, 1, 1), earlier=earlier)
    assert record.runtime.parts == 2
    assert record.images.luma_psnr == [None] * 4


def test_missing_restored_images_start_anew(loaded, dataset, tmp_path):
    earlier = stopped_after(loaded, dataset, 3, save_dir=tmp_path / "images")
    again = measure(loaded, dataset, MeasurementPlan(2, 1, 1), tmp_path / "images", earlier=deepcopy(earlier))
    assert again.runtime.parts == 2
    (tmp_path / "images" / "a.png").unlink()
    again = measure(loaded, dataset, MeasurementPlan(2, 1, 1), tmp_path / "images", earlier=deepcopy(earlier))
    assert again.runtime.parts == 1


def test_tiles_are_recorded_and_leave_no_steady_time(loaded, dataset):
    class Hungry(Enlarge):
        def forward(self, x):
            if x.shape[2:] == (120, 160):  # the whole image, and its tiles of 128 with what surrounds them
                raise torch.OutOfMemoryError("CUDA out of memory")
            return super().forward(x)

    hungry = Runner(LoadedModel(Hungry(), loaded.entry, WEIGHTS), CPU)
    hungry.model.weight = torch.nn.Parameter(torch.ones(1))
    large = open_dataset(write_pairs(dataset.folder.parent / "large", ["big"], size=(480, 640)))
    record = measure(hungry, large, MeasurementPlan(1, 1, 1))
    assert record.images.tile == [64]
    assert record.runtime.steady is None
    mixed = write_pairs(dataset.folder, ["big"], size=(480, 640))
    record = measure(hungry, open_dataset(mixed), MeasurementPlan(1, 1, 1))
    assert record.images.tile == [None, None, 64, None, None]
    assert record.runtime.steady.lr_height == 12
