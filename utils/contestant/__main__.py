"""The contestant's process: python -m utils.contestant SOCKET LR SR, three inherited file descriptors.

It answers the judge's requests in turn until the socket closes. A request is {"do": NAME, "number": N, …}; the answer
carries the number, and either "answer" or "error", a line, with "mendable" if it is a HarnessError's.
"""

import os
import sys
import traceback

import torch

from utils.contestant import state
from utils.contestant.channel import Channel
from utils.contestant.selection import load_from_repository
from utils.errors import HarnessError, in_one_line
from utils.measure.allocator import give_back_freed_memory, keep_freed_memory
from utils.measure.complexity import INPUT_SHAPE, measure_complexity
from utils.measure.counting import watched_pass
from utils.measure.memory import gpu_peak_mib, peak_rss_bytes, reset_peak
from utils.measure.runtime import check_output, timed_forward
from utils.measure.tiles import forward_within_memory, reach
from utils.processes import end_with_parent
from utils.zoo.registry import ModelEntry, import_model, load_model


class Contestant:
    """The methods are the requests; their arguments and answers are JSON."""

    def __init__(self, channel):
        self.channel = channel
        self.device, self.model, self.name = torch.device("cpu"), None, ""
        self.before, self.blank, self.drawn = None, None, []

    def prepare(self, threads, device, for_memory):
        """Set up this process, before any of the stranger's code is here; `for_memory`: to look at its memory alone."""
        torch.set_num_threads(threads)
        if for_memory:
            give_back_freed_memory()
        self.device = torch.device(device)
        if self.device.type == "cuda":
            torch.cuda.set_device(self.device)
            torch.zeros(1, device=self.device)
        # What counting sets up in torch once is not the stranger's doing.
        tiny = torch.nn.Conv2d(3, 3, 3).to(self.device)
        measure_complexity(tiny, (1, 3, 8, 8))
        watched_pass(tiny, torch.zeros(1, 3, 8, 8, device=self.device))
        self.before = state.snapshot()

    def echo(self, height, width):
        """Do to the images what a pass does, but for the network: the judge takes the time of the transfers."""
        self._take(height, width)
        sr = self.channel.sr(height, width)
        if self.blank is None or self.blank.shape != sr.shape:
            self.blank = torch.zeros(sr.shape, device=self.device)
        sr.copy_(self.blank)

    def load(self, entry):
        """Build the network of a ModelEntry and load its weights; what importing it draws at random is noted."""
        entry, self.blank = ModelEntry(**entry), None
        before = state.random_states()
        import_model_quietly(entry)
        self.drawn = state.changes(before, state.random_states())
        loaded = load_model(entry, self.device)
        self.model, self.name = loaded.model, entry.file
        return {
            "sha256": loaded.sha256,
            "provenance": loaded.provenance,
            "missing_weights": loaded.missing_weights,
            "ignored": loaded.ignored,
            "notes": list(loaded.notes),
        }

    def load_from_repository(self, folder, model_id, trust):
        """Call the `select_model` of an organizers' repository; see `utils/contestant/selection.py`."""
        self.model, answer = load_from_repository(folder, model_id, self.device, trust)
        self.name = f"{folder}, --model_id {model_id}"
        self.before = state.snapshot()  # what their repository sets up is theirs to change, what the passes do is not
        return answer

    @torch.no_grad()
    def forward(self, height, width):
        """Restore the shared LR image; the output is in the shared SR image when the answer goes."""
        output, runtime_ms, tile = forward_within_memory(self.model, self._take(height, width))
        check_output(output, (height, width), self.name)
        self.channel.sr(height, width).copy_(output)
        return {"runtime_ms": runtime_ms, "tile": tile, "gpu_peak_mib": gpu_peak_mib(self.device)}

    def reach(self, data_range):
        """Return how far the network looks [LR pixels]."""
        return reach(self.model, self.device, data_range)

    def count(self):
        """Return the protocol's counts."""
        counts = measure_complexity(self.model)
        return {key: getattr(counts, key) for key in ("params", "flops", "activations", "convs")}

    @torch.no_grad()
    def watch(self, height=INPUT_SHAPE[2], width=INPUT_SHAPE[3]):
        """Return what torch's dispatcher sees of a pass over random values, beside the time of a plain one.

        Freed memory is kept from here on: giving it back, no operator's time, took a fifth of a pass of attention.
        """
        keep_freed_memory()
        lr = torch.rand(1, 3, height, width, device=self.device)
        plain_ms = min(timed_forward(self.model, lr)[1] for _ in range(2))
        return {**watched_pass(self.model, lr), "plain_ms": plain_ms}

    def changed(self):
        """Return the names of what the stranger's code has changed in this process."""
        return [*self.drawn, *state.changes(self.before, state.snapshot())]

    def reset_peak(self):
        """Start a new peak of memory on a GPU."""
        reset_peak(self.device)

    def peak(self):
        """Return the peak of this process's resident memory [bytes]."""
        return peak_rss_bytes()

    def _take(self, height, width):
        lr = self.channel.lr(height, width)
        return lr.to(self.device) if self.device.type == "cuda" else lr.clone()  # a network may write into its input


def import_model_quietly(entry):
    """Run a model file; what it raises is told when it is built."""
    try:
        import_model(entry)
    except Exception:
        return


def main():
    end_with_parent()  # a pass without end would take a core for ever; in a sandbox bubblewrap sees to it
    channel = Channel(*map(int, sys.argv[1:]))
    del sys.argv[1:]  # not for a model file that reads its command line
    contestant = Contestant(channel)
    while True:
        try:
            request = channel.receive()
        except (EOFError, OSError):
            os._exit(0)  # the judge is done; threads and exit handlers of the network do not matter
        do, number = request.pop("do"), request.pop("number")
        try:
            answer = {"answer": getattr(contestant, do)(**request)}
        except HarnessError as error:
            answer = {"error": str(error), "mendable": True}
        except Exception as error:  # a stranger's code may raise anything
            traceback.print_exc()  # into the log, for the author
            answer = {"error": in_one_line(error, file=contestant.name), "mendable": False}
        channel.send({"number": number, **answer})


if __name__ == "__main__":
    main()
