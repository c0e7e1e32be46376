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
        return self.logs / f"{entry.full_name}.log"


@contextmanager
def opened_runner(entry, device, rules, checkpoint=None):
    """Give the Runner of an entry: a Contestant if there are `rules` for strangers, this process if they are None."""
    if rules is None:
        yield Runner(load_model(entry, device, checkpoint), device)
        return
    how = (rules.limits, rules.sandbox, checkpoint, rules.repository)
    with Contestant(entry, device, rules.log_of(entry), *how) as contestant:
        yield contestant


class Row:
    """One model's row in a results file. A repository's model may say its `name` only once it is built."""

    def __init__(self, entry, checkpoint, results, fresh=False):
        self.entry, self.checkpoint, self.results, self.fresh = entry, checkpoint, results, fresh
        self.name, self.begun = entry.name, {}
        self.next_store_s = 0.0  # of the monotonic clock

    def measure(self, rules, device, dataset, plan, shard, **options):
        """Measure the model; return None, or the reason, in a line, why there is no complete record.

        `rules` and `device` are those of `opened_runner`, `options` those of `measure`. An incomplete record of an
        earlier run is gone on with, unless the row is to be `fresh`.
        """
        store = self.store if shard.is_first else lambda record: None
        try:
            with opened_runner(self.entry, device, rules, self.checkpoint) as runner:
                self.name = runner.entry.name
                earlier = None if self.fresh else read_incomplete(self.results).get(self.name)
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
        expected = self._empty(rules, device, dataset, plan)
        place = str(Path(self.entry.file).parent), self.entry.id
        for name, record in read_results(self.results).items():
            known = record.get("repository")
            if not known or (known["folder"], known["model_id"]) != place:
                continue
            same = plan.is_done_by(record) and same_circumstances(record, expected, save_dir)
            if same and fingerprint(self.entry, known["files"]) == known:
                return name
        return None

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
        store_record(self.results, self.name, record)
        end = time.monotonic()
        self.next_store_s = end + (end - start) / STORING_SHARE
