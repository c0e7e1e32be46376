"""One model, one row: who runs it, this process or a contestant, and what is left of it when it fails."""

import time
import traceback
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from utils.errors import ForeignError, HarnessError, in_one_line
from utils.evaluate.measurement import RUNNING, empty_record, measure, same_circumstances
from utils.evaluate.runner import Runner
from utils.referee.judge import Contestant
from utils.referee.process import Limits
from utils.referee.repository import fingerprint
from utils.referee.sandbox import choose_sandbox
from utils.results.record import read_incomplete, read_results, store_record
from utils.zoo.registry import load_model

STORING_SHARE = 0.05  # of the time that may go into storing what is there so far


@dataclass(frozen=True)
class Rules:
    """How strangers' models are run: their logs' folder, limits, sandbox, and the repository that they come from."""

    logs: Path
    limits: Limits = field(default_factory=Limits)
    sandbox: str = "auto"
    repository: Path | None = None

    def log_of(self, entry):
        """The file that holds what a model prints."""
        return self.logs / f"{entry.slug}.log"


@contextmanager
def opened_runner(entry, device, rules):
    """Give the Runner of an entry: a Contestant if there are `rules` for strangers, this process if they are None."""
    if rules is None:
        yield Runner(load_model(entry, device), device)
        return
    log = rules.log_of(entry)
    with Contestant(entry, device, log, rules.limits, rules.sandbox, rules.repository) as contestant:
        yield contestant


class Row:
    """One model's row in a results file. A repository's model may say its `name` only once it is built."""

    def __init__(self, entry, results, fresh=False):
        self.entry, self.results, self.fresh = entry, results, fresh
        self.name, self.begun = entry.name, {}
        self.next_store_s = 0.0  # of the monotonic clock

    def measure(self, rules, device, dataset, plan, shard, **options):
        """Measure the model; return None, or the reason, in a line, why there is no complete record.

        `rules` and `device` are those of `opened_runner`, `options` those of `measure`. An incomplete record of an
        earlier run is gone on with, unless the row is to be `fresh`.
        """
        store = self.store if shard.is_first else lambda record: None
        try:
            with opened_runner(self.entry, device, rules) as runner:
                self.name = runner.entry.name
                earlier = None if self.fresh else read_incomplete(self.results).get(self.entry.key)
                measure(runner, dataset, plan, on_progress=store, earlier=earlier, shard=shard, **options)
        except (HarnessError, ForeignError) as error:
            reason = str(error)
        except Exception as error:
            if rules is None:
                raise
            # A mistake of this project's, which a stranger's code came upon; it shall not cost the others their rows.
            with open(rules.log_of(self.entry), "a", encoding="utf-8") as log:
                traceback.print_exc(file=log)
            reason = f"the judge failed ({in_one_line(error)})"
        else:
            return None
        empty = self._empty(rules, device, dataset, plan)  # a record of an earlier run is no result of this one
        store(empty | self.begun | {"status": f"incomplete: {reason}"})
        return reason

    def measured_before(self, rules, device, dataset, plan, save_dir):
        """Return the name of a complete record of a repository's entry that `measure` would only repeat, else None.

        The entry's code and weights, the data, the machine, the sandbox and the plan are the record's, and its restored
        images are still there.
        """
        if self.fresh or not (rules and rules.repository):
            return None
        record = read_results(self.results).get(self.entry.key)
        if not record or not plan.is_done_by(record):
            return None
        known, expected = record["repository"], self._empty(rules, device, dataset, plan)
        same = same_circumstances(record, expected, save_dir) and fingerprint(self.entry, known["files"]) == known
        return record["model"]["name"] if same else None

    def _empty(self, rules, device, dataset, plan):
        process = choose_sandbox(rules.sandbox)[1] if rules else Runner.process
        return empty_record(self.entry, dataset, device, plan, process)

    def store(self, record):
        """Store a record; one that still grows, only as often as takes `STORING_SHARE` of the time.

        It is needed if this process is killed, and a file of sixty models takes as long to write as some passes.
        """
        self.begun = record
        start = time.monotonic()
        if record["status"] == RUNNING and start < self.next_store_s:
            return
        store_record(self.results, self.entry.key, record)
        end = time.monotonic()
        self.next_store_s = end + (end - start) / STORING_SHARE
