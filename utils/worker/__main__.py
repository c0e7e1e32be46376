"""The worker's process: python -m utils.worker SOCKET LR SR, three inherited file descriptors.

It answers the host's requests in turn until the socket closes. A request is {"do": NAME, "number": N, …}. The answer
has the number and either "answer" or a one-line "error", whose "fixable" says whether it is a HarnessError.
"""

import contextlib
import os
import sys
import traceback
from typing import Any

import msgspec
import torch
from torch import Tensor, nn

from utils.errors import HarnessError, in_one_line
from utils.measure.allocator import give_back_freed_memory, keep_freed_memory
from utils.measure.architecture import traced_architecture
from utils.measure.complexity import INPUT_SHAPE, measure_complexity, traced_macs
from utils.measure.counting import stored_values, watched_pass
from utils.measure.memory import gpu_peak_mib, peak_rss_bytes, reset_peak
from utils.measure.runtime import check_output, timed_forward
from utils.measure.tiles import forward_within_memory, reach
from utils.processes import end_with_parent
from utils.worker import state
from utils.worker.channel import Channel
from utils.worker.selection import load_from_repository
from utils.zoo.registry import ModelEntry, import_model, load_model


class Worker:
    """The methods are the requests; their arguments and answers are JSON."""

    model: nn.Module

    def __init__(self, channel: Channel):
        self.channel = channel
        self.device, self.name = torch.device("cpu"), ""
        self.blank: Tensor | None = None
        self.before: dict[str, Any] = {}
        self.drawn: list[str] = []

    def prepare(self, threads: int, device: str, for_memory: bool) -> None:
        """Set up this process before any untrusted code is loaded. With `for_memory`, only its memory is measured."""
        torch.set_num_threads(threads)
        if for_memory:
            give_back_freed_memory()
        self.device = torch.device(device)
        if self.device.type == "cuda":
            torch.cuda.set_device(self.device)
            torch.zeros(1, device=self.device)
        # Count once now, because the untrusted code must not be blamed for what counting sets up in torch.
        tiny = torch.nn.Conv2d(3, 3, 3).to(self.device)
        measure_complexity(tiny, (1, 3, 8, 8))
        watched_pass(tiny, torch.zeros(1, 3, 8, 8, device=self.device))
        self.before = state.snapshot()

    def echo(self, height: int, width: int) -> None:
        """Transfer the images as a pass does, without the network, so that the host can time the transfers."""
        self._take(height, width)
        sr = self.channel.sr(height, width)
        if self.blank is None or self.blank.shape != sr.shape:
            self.blank = torch.zeros(sr.shape, device=self.device)
        sr.copy_(self.blank)

    def load(self, entry: dict[str, Any]) -> dict[str, Any]:
        """Build the network of a ModelEntry and load its weights; note whether importing it draws random numbers."""
        model_entry, self.blank = msgspec.convert(entry, ModelEntry), None
        before = state.random_states()
        with contextlib.suppress(Exception):  # building the model reports it
            import_model(model_entry)
        self.drawn = state.changes(before, state.random_states())
        loaded = load_model(model_entry, self.device)
        self.model, self.name = loaded.model, model_entry.file
        return msgspec.structs.asdict(loaded.weights)

    def load_from_repository(self, folder: str, model_id: int, trust: bool) -> dict[str, Any]:
        """Call the `select_model` of an organizers' repository; see `utils/worker/selection.py`."""
        self.model, answer = load_from_repository(folder, model_id, self.device, trust)
        self.name = f"{folder}, --model_id {model_id}"
        self.before = state.snapshot()  # a repository may change settings while it loads, but not in passes
        return answer

    @torch.no_grad()
    def forward(self, height: int, width: int) -> dict[str, Any]:
        """Restore the shared LR image into the shared SR image before answering."""
        output, runtime_ms, tile = forward_within_memory(self.model, self._take(height, width))
        check_output(output, (height, width), self.name)
        self.channel.sr(height, width).copy_(output)
        return {"runtime_ms": runtime_ms, "tile": tile, "gpu_peak_mib": gpu_peak_mib(self.device)}

    def reach(self, data_range: float) -> int:
        """Return the network's reach [LR pixels]; see `utils.measure.tiles.reach`."""
        return reach(self.model, self.device, data_range)

    def architecture(self, data_range: float) -> dict[str, Any]:
        """Return the network's Architecture."""
        return msgspec.to_builtins(traced_architecture(self.model, self.device, data_range))

    def count(self) -> dict[str, int]:
        """Return the protocol's counts."""
        return msgspec.structs.asdict(measure_complexity(self.model))

    def traced(self) -> dict[str, int]:
        """Return the multiply-accumulates of a trace, and how many numbers the parameters hold."""
        lr = torch.rand(INPUT_SHAPE, device=self.device)
        return {"macs": traced_macs(self.model, lr), "values": stored_values(self.model)}

    @torch.no_grad()
    def watch(self, height: int = INPUT_SHAPE[2], width: int = INPUT_SHAPE[3], shared: bool = False) -> dict[str, Any]:
        """Return what torch's dispatcher sees of a pass, and the time of an unwatched one.

        With `shared`, the pass restores the shared LR image into the shared SR image. Otherwise it takes random values.

        Freed memory is kept from here on. Giving it back took a fifth of a pass of attention, and counts as no
        operator's time.
        """
        keep_freed_memory()
        lr = self._take(height, width) if shared else torch.rand(1, 3, height, width, device=self.device)
        plain_ms = min(timed_forward(self.model, lr).runtime_ms for _ in range(2))
        seen, output = watched_pass(self.model, lr)
        if shared:
            check_output(output, (height, width), self.name)
            self.channel.sr(height, width).copy_(output)
        return {**msgspec.to_builtins(seen), "plain_ms": plain_ms}

    def changed(self) -> list[str]:
        """Return the names of what the untrusted code has changed in this process."""
        return [*self.drawn, *state.changes(self.before, state.snapshot())]

    def reset_peak(self) -> None:
        """Start a new peak of memory on a GPU."""
        reset_peak(self.device)

    def peak(self) -> int:
        """Return the peak of this process's resident memory [bytes]."""
        return peak_rss_bytes()

    def _take(self, height: int, width: int) -> Tensor:
        lr = self.channel.lr(height, width)
        return lr.to(self.device) if self.device.type == "cuda" else lr.clone()  # a network may write into its input


def main() -> None:
    end_with_parent()  # an endless pass would occupy a core forever; in a sandbox, bubblewrap ends it
    channel = Channel(*map(int, sys.argv[1:]))
    del sys.argv[1:]  # a model file that reads its command line must not see them
    worker = Worker(channel)
    while True:
        try:
            request = channel.receive()
        except (EOFError, OSError):
            os._exit(0)  # the host is done; threads and exit handlers of the network do not matter
        do, number = request.pop("do"), request.pop("number")
        try:
            answer = {"answer": getattr(worker, do)(**request)}
        except HarnessError as error:
            answer = {"error": str(error), "fixable": True}
        except Exception as error:  # untrusted code may raise anything
            traceback.print_exc()  # into the log, for the author
            answer = {"error": in_one_line(error, file=worker.name), "fixable": False}
        channel.send({"number": number, **answer})


if __name__ == "__main__":
    main()
