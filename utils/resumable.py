"""Measure one model into a results file, here or in a worker. Resume after a stop, and record why it failed."""

import math
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch

from utils.data.datasets import Dataset
from utils.errors import ForeignError, HarnessError, PassLimitError, in_one_line
from utils.evaluate.distributed import World
from utils.evaluate.measurement import MeasurementPlan, PostponedError, measure, same_circumstances, start_record
from utils.evaluate.runner import ModelRunner, Runner
from utils.files import file_sha256
from utils.isolation.host import IsolatedRunner
from utils.isolation.process import Limits
from utils.isolation.repository import fingerprint
from utils.isolation.sandbox import choose_sandbox
from utils.record import Isolation, Record, Status, read_file, read_incomplete, store_record
from utils.zoo.registry import ModelEntry, Origin, load_model

STORING_SHARE = 0.05  # of the time, at most, for storing partial results


@dataclass(frozen=True)
class Rules:
    """The rules for running untrusted models: log folder, limits, sandbox, and the repository they come from.

    With `keeps_complete`, a complete record is not measured again while model, data and machine are the same.
    """

    logs: Path
    limits: Limits = field(default_factory=Limits)
    sandbox: str = "auto"
    repository: Path | None = None
    keeps_complete: bool = False

    def log_of(self, entry: ModelEntry) -> Path:
        """Return the file that holds what a model prints."""
        return self.logs / f"{entry.slug}.log"


@contextmanager
def opened_runner(entry: ModelEntry, device: torch.device, rules: Rules | None) -> Iterator[ModelRunner]:
    """Yield the runner of an entry: a worker process with `rules`, this process if they are None."""
    if rules is None:
        yield Runner(load_model(entry, device), device)
        return
    log = rules.log_of(entry)
    with IsolatedRunner(entry, device, log, rules.limits, rules.sandbox, rules.repository) as runner:
        yield runner


class ResumableMeasurement:
    """One model's record in a results file. A repository's model may say its `name` only once it is built."""

    def __init__(
        self,
        entry: ModelEntry,
        results: Path,
        rules: Rules | None,
        device: torch.device,
        dataset: Dataset,
        plan: MeasurementPlan,
        save_dir: Path | None = None,
        fresh: bool = False,
    ):
        self.entry, self.results, self.rules, self.device = entry, results, rules, device
        self.dataset, self.plan, self.save_dir, self.fresh = dataset, plan, save_dir, fresh
        self.name = entry.name
        self.begun: Record | None = None
        self.next_store_s = 0.0  # of the monotonic clock

    def measure(
        self, world: World, on_pass: Callable[[], object] = lambda: None, patience_s: float | None = None
    ) -> str | None:
        """Measure the model. Return None, or one line on why there is no complete record.

        Resume an incomplete record of an earlier run, unless `fresh` is set. Raise PostponedError if the measurement
        would take longer than `patience_s`.
        """
        store = self.store if world.is_first else lambda record: None
        rules, hurried = self.rules, False
        if rules and patience_s is not None and patience_s < (rules.limits.pass_seconds or math.inf):
            hurried = True  # even the first pass may take forever
            rules = replace(rules, limits=replace(rules.limits, pass_seconds=patience_s))
        try:
            with opened_runner(self.entry, self.device, rules) as runner:
                self.name = runner.entry.name
                earlier = None if self.fresh else read_incomplete(self.results).get(self.entry.key)
                measure(runner, self.dataset, self.plan, self.save_dir, on_pass, store, world, earlier, patience_s)
        except PostponedError:
            raise
        except (HarnessError, ForeignError) as error:
            if hurried and isinstance(error, PassLimitError):
                raise PostponedError(math.inf) from error
            reason = str(error)
        except Exception as error:
            if self.rules is None:
                raise
            # A bug in this project that untrusted code triggered. It must not cost the other models their results.
            with open(self.rules.log_of(self.entry), "a", encoding="utf-8") as log:
                traceback.print_exc(file=log)
            reason = f"the host failed ({in_one_line(error)})"
        else:
            return None
        record = self.begun or self._empty()  # a record of an earlier run is not a result of this one
        record.status, record.reason = Status.STOPPED, reason
        store(record)
        return reason

    def measured_before(self) -> str | None:
        """Return the name of a complete record that `measure` would only repeat, else None.

        The rules must keep complete records. The record must match the entry's code and weights, the data, the machine,
        the sandbox and the plan, and its restored images must still exist.
        """
        if self.fresh or not (self.rules and self.rules.keeps_complete):
            return None
        results = read_file(self.results)
        record = results.models.get(self.entry.key)
        if not record or self.entry.key in results.incomplete or not self.plan.is_done_by(record):
            return None
        empty = self._empty()
        same = same_circumstances(record, empty, self.save_dir) and self._is_of_this_model(record, empty)
        return record.model.name if same else None

    def _is_of_this_model(self, record: Record, empty: Record) -> bool:
        if record.repository or self.entry.origin == Origin.REPOSITORY:
            known = record.repository
            return known is not None and fingerprint(self.entry, known.files) == known
        path = self.entry.checkpoint_path
        weights = file_sha256(path) if path.is_file() else None
        return (record.model.file_sha256, record.model.sha256) == (empty.model.file_sha256, weights)

    def _empty(self) -> Record:
        isolation = choose_sandbox(self.rules.sandbox).isolation if self.rules else Isolation.NONE
        return start_record(self.entry, self.dataset, self.plan, self.device, isolation)

    def store(self, record: Record) -> None:
        """Store a record. While it still grows, spend at most `STORING_SHARE` of the time on storing it.

        A killed run resumes from the stored record, but writing a file of sixty models takes as long as some passes.
        """
        self.begun = record
        start = time.monotonic()
        if record.status == Status.RUNNING and start < self.next_store_s:
            return
        store_record(self.results, self.entry.key, record)
        end = time.monotonic()
        self.next_store_s = end + (end - start) / STORING_SHARE
