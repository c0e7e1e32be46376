"""The host's side of a worker: it has the methods of `Runner` and measures time itself."""

import hashlib
import os
import socket
import sys
import threading
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import psutil
import torch
from torch import Tensor, nn

from utils.data.datasets import Dataset
from utils.data.images import to_tensor
from utils.errors import ForeignError, HarnessError, KilledError, PassLimitError, one_line
from utils.evaluate.runner import computed, counted_network
from utils.files import ROOT
from utils.isolation.answers import WatchAnswer, checked
from utils.isolation.audit import Auditor, Timing
from utils.isolation.process import Limits, WatchedProcess
from utils.isolation.repository import described
from utils.isolation.sandbox import choose_sandbox, sandboxed, with_what_is_hidden
from utils.measure.architecture import Architecture, traced_architecture
from utils.measure.complexity import INPUT_SHAPE, measure_complexity
from utils.measure.memory import high_water_bytes, reset_high_water
from utils.measure.runtime import Pass
from utils.measure.waiting import CoreUse, core_use, used_s, waited_s
from utils.record import Audit as AuditResult
from utils.record import Computed, Counts, Record, Repository, Waiting, WeightsInfo
from utils.worker.channel import Channel, shared_memory_fds
from utils.zoo.registry import ModelEntry, source_files

ECHO_SIDES = (64, 128, 256, 384, 512)  # of the images by which transfers are timed [LR pixels]
ECHOES = 5
ERROR_LENGTH = 1000  # of an error message, at most
LOOKS, LOOK = 128, 4096  # parts of an output that are checked again, and their size
SAMPLES, SAME_GREY_LEVELS = 1024, 1.0  # values of an output, and their tolerance when the image comes again
PAUSE_S = 0.005  # after which an output must still be unchanged
PASSED_ON = ("PATH", "LANG", "LD_LIBRARY_PATH", "CC", "HIP_VISIBLE_DEVICES")  # of the environment, then prefixes
PASSED_ON_PREFIXES = ("OMP_", "MKL_", "KMP_", "CUDA", "NVIDIA", "TORCH", "PYTORCH", "MALLOC_", "DNNL_", "ONEDNN_")
PYTHON = {"PYTHONUNBUFFERED": "1", "PYTHONDONTWRITEBYTECODE": "1"}  # after a crash, the log has all output


class IsolatedRunner:
    """A ModelRunner that runs and times a model in a worker process. As a context manager, it also calls `load`.

    With `for_memory`, the process keeps no freed memory, and transfers count as part of passes, because the images for
    timing them would set the peak of the process's memory. Raise HarnessError with a one-line reason whenever the
    process fails, breaks its limits, or sends an invalid reply.
    """

    def __init__(
        self,
        entry: ModelEntry,
        device: torch.device | str,
        log_path: Path | str,
        limits: Limits | None = None,
        sandbox: str = "auto",
        repository: Path | str | None = None,
        for_memory: bool = False,
        threads: int | None = None,
    ):
        self.entry, self.device, self.log_path = entry, torch.device(device), Path(log_path)
        self.limits, self.sandbox_mode = limits or Limits(), sandbox
        self.folder = Path(repository).resolve() if repository else None
        self.weights = WeightsInfo(sha256=None, provenance=entry.provenance)
        self.repository: Repository | None = None
        self.notes: list[str] = []
        self.timings: list[Timing] = []
        self.findings: list[str] = []
        self.samples: dict[bytes, tuple[Tensor, Tensor]] = {}
        self.numbers = iter(range(1, 1 << 62))
        self.taken: list[Tensor | None] = [None, None]
        # The last output as it was taken, its LR size, and the time.
        self.last: tuple[Tensor, tuple[int, int], float] | None = None
        # Sizes [LR pixels], and the time that a pass on them takes outside the network [s].
        self.transfers: tuple[Sequence[int], Sequence[float]] = (1,), (0.0,)
        self.peak_mib: float | None = None
        self.loaded = False
        self.waited_s, self.asked_s = 0.0, 0.0  # in requests that run the network
        self.ended_s = 0.0  # core time of the processes for memory
        self.sandbox = choose_sandbox(sandbox)
        self.isolation = self.sandbox.isolation
        self.own_threads = torch.get_num_threads()
        self.threads = threads or self.own_threads  # of the network
        self._start()
        if self.device.type == "cpu":  # idle OpenMP threads spin for some milliseconds on cores that a pass needs
            torch.set_num_threads(1)
        try:
            self._prepare(for_memory)
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> "IsolatedRunner":
        try:
            self.load()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def close(self) -> None:
        """End the process, and everything that it has started."""
        torch.set_num_threads(self.own_threads)
        self.watched.close()

    def _start(self) -> None:
        ours, theirs = socket.socketpair()
        memory = shared_memory_fds()
        command = [sys.executable, "-m", "utils.worker", str(theirs.fileno()), *map(str, memory)]
        folder = "/tmp" if self.sandbox.works else str(ROOT)
        if self.sandbox.works:
            command = sandboxed(command, self._readable(), self.device.type == "cuda", folder)
        environment = {
            key: value for key, value in os.environ.items() if key in PASSED_ON or key.startswith(PASSED_ON_PREFIXES)
        }
        environment |= {"PYTHONPATH": str(ROOT), "HOME": folder} | PYTHON
        self.watched = WatchedProcess(
            command, self.log_path, self.limits, pass_fds=(theirs.fileno(), *memory), env=environment, cwd=folder
        )
        theirs.close()
        self.channel = Channel(ours.detach(), *memory)
        for fd in memory:
            os.close(fd)

    def _readable(self) -> list[Path]:
        if self.folder:
            return [self.folder]
        return [*source_files(self.entry), self.entry.checkpoint_path]

    def _prepare(self, for_memory: bool) -> None:
        """Set up the process and time the transfers before any untrusted code is loaded."""
        self.ask("prepare", threads=self.threads, device=str(self.device), for_memory=for_memory)
        if not for_memory:
            self.transfers = self._time_transfers()
        family = [*self.watched.descendants()]
        self.pid = family[-1].pid if family else self.watched.process.pid  # bubblewrap's last child is ours
        self.own_family = set(self.watched.family)

    def _time_transfers(self) -> tuple[list[int], list[float]]:
        pixels: list[int] = []
        seconds: list[float] = []
        for side in reversed(ECHO_SIDES):  # the largest first, because it touches new memory
            times = [self._timed_ask("echo", height=side, width=side)[1] for _ in range(1 + ECHOES)]
            pixels.append(side * side)
            seconds.append(min(times[1:]))  # subtracting a busy moment's delay would hide as much of a pass
        return pixels[::-1], seconds[::-1]

    def load(self) -> None:
        """Build the model in the process, which contains untrusted code from here on."""
        self.used_before = self._core_use()
        if self.folder:
            entry, folder = self.entry, str(self.folder)
            answer = self.ask("load_from_repository", folder=folder, model_id=entry.id, trust=entry.trust_checkpoint)
            self.entry, self.repository, self.notes = described(entry, answer)
        else:
            answer = self.ask("load", entry=asdict(self.entry))
            self.weights = WeightsInfo(**msgspec.structs.asdict(answer))
        self.loaded = True

    def ask(self, do: str, **arguments: Any) -> Any:
        """Return the worker's answer to a request."""
        return self._timed_ask(do, **arguments)[0]

    def _watched_ask(self, do: str, **arguments: Any) -> tuple[Any, float]:
        """Send a request that runs the network, and note how long it waited for a core meanwhile."""
        before, start = self._waited_s(), time.perf_counter()
        reply = self._timed_ask(do, **arguments)
        self.asked_s += time.perf_counter() - start
        self.waited_s += max(self._waited_s() - before, 0.0)
        return reply

    def _waited_s(self) -> float:
        """Return how long the process and this thread, which receives the answer, have waited for a core [s]."""
        return waited_s(self.pid) + waited_s(thread=threading.get_native_id())

    def _core_use(self) -> CoreUse:
        return core_use(self.watched.processes(), self.ended_s)

    def waiting(self) -> Waiting:
        """Return how much the network had to share the cores with other processes since it was loaded."""
        share = min(self.waited_s / self.asked_s, 1.0) if self.asked_s else 0.0  # several threads may wait at once
        return Waiting(share, self._core_use().others_since(self.used_before))

    def watch(self, height: int = INPUT_SHAPE[2], width: int = INPUT_SHAPE[3], shared: bool = False) -> WatchAnswer:
        """Return what torch's dispatcher sees in a pass over random values of this size, or over the shared image."""
        return self._watched_ask("watch", height=height, width=width, shared=shared)[0]

    def _timed_ask(self, do: str, **arguments: Any) -> tuple[Any, float]:
        number = next(self.numbers)
        try:
            with self.watched.task(*self._waited_for(do, arguments)):
                start = time.perf_counter()
                self.channel.send({"do": do, "number": number, **arguments})
                reply = self.channel.receive()
                seconds = time.perf_counter() - start
        except (EOFError, OSError) as error:
            self.watched.end_by_itself()
            kind = PassLimitError if self.watched.too_slow else KilledError
            raise kind(self.watched.reason() or "ended its process without a result") from error
        except ValueError as error:
            raise HarnessError("its process sent an invalid reply") from error
        if reply.get("number") != number:
            raise HarnessError("its process sent a reply to another request")
        if "error" in reply:
            message = one_line(str(reply["error"]), ERROR_LENGTH)
            if self.sandbox.works and not self.folder:
                message = with_what_is_hidden(message, Path(self.entry.file).parent)
            if reply.get("fixable") is True:
                raise HarnessError(message)
            raise ForeignError(message)
        return checked(do, reply.get("answer"), self.device.type == "cuda"), seconds

    def _waited_for(self, do: str, arguments: dict[str, Any]) -> tuple[str, float | None]:
        """Return in words what a request waits for, and its time limit [s], or None for the overall limit."""
        if do == "forward":
            return f"for a pass on {arguments['width']} x {arguments['height']}", self.limits.pass_seconds
        return f"for the answer to {do!r}", None

    def forward(self, lr: Tensor) -> Pass:
        """Run a pass as `Runner.forward` does.

        The runtime is reported by the worker; `timings` has the host's beside it. The pass after the next one reuses
        the output's memory.
        """
        self.check_last()
        height, width = lr.shape[2:]
        self.channel.lr(height, width).copy_(lr)
        answer, seconds = self._watched_ask("forward", height=height, width=width)
        output = self._taken(self.channel.sr(height, width))  # at once: later changes do not count
        self.peak_mib = answer.gpu_peak_mib
        self.timings.append(Timing(answer.runtime_ms, 1000 * max(seconds - self.transfer_s(height, width), 0.0)))
        self._compare_with_before(lr, output)
        self.last = output, (height, width), time.perf_counter()
        return Pass(output, answer.runtime_ms, answer.tile)

    def _taken(self, output: Tensor) -> Tensor:
        """Copy a shared image into one of two reused arrays, because new memory would cost as much as the copy."""
        self.taken.reverse()
        kept = self.taken[0]
        if kept is None or kept.numel() < output.numel():
            kept = self.taken[0] = torch.empty(output.numel())
        return kept[: output.numel()].view(output.shape).copy_(output)

    def _compare_with_before(self, lr: Tensor, output: Tensor) -> None:
        """Add a finding if an image is restored differently than before, comparing values at drawn places."""
        key = hashlib.sha256(lr.numpy().data).digest()
        places = torch.randint(output.numel(), (SAMPLES,)) if key not in self.samples else self.samples[key][0]
        values = output.view(-1)[places]
        before = self.samples.setdefault(key, (places, values))[1]
        if not are_the_same(values, before, SAME_GREY_LEVELS * self.entry.data_range / 255):
            self.findings.append("gives another output for an image that it has restored before")

    def transfer_s(self, height: int, width: int) -> float:
        """Return the time that a pass over an image of this size takes outside the network, from the echoes [s].

        Interpolate linearly between two of their sizes. One line through all sizes would be governed by images that
        exceed the processor's cache, and would subtract milliseconds too many from those that fit.
        """
        pixels, seconds = self.transfers
        return float(np.interp(height * width, pixels, seconds)) * max(1.0, height * width / pixels[-1])

    def other_processes(self) -> int:
        """Return how many processes the worker has started, as far as they were seen."""
        self.watched.descendants()
        return len(self.watched.family.keys() - self.own_family)

    def check_last(self) -> None:
        """Add a finding if the last output has changed since it was handed over."""
        if self.last is None:
            return
        output, size, since = self.last
        time.sleep(max(PAUSE_S - (time.perf_counter() - since), 0))
        before, now = output.view(-1), self.channel.sr(*size).view(-1)
        starts: Sequence[int] = range(0, before.numel(), LOOK)
        if len(starts) > LOOKS:
            starts = torch.randint(before.numel() - LOOK, (LOOKS,)).tolist()
        for start in starts:
            if not torch.equal(*(values[start : start + LOOK].view(torch.int32) for values in (before, now))):
                self.findings.append("an output changed after it had been handed over")
                break
        self.last = None

    def count(self) -> Counts:
        """Return the network's Counts from the worker; count a variant as `Runner` does."""
        if self.entry.variant:  # the registry's, whose code is trusted
            return measure_complexity(counted_network(self.entry, nn.Identity(), self.device))
        return Counts(**msgspec.structs.asdict(self.ask("count")))

    def architecture(self) -> Architecture:
        """Return the network's blocks; a variant's are those of `Runner`."""
        if self.entry.variant:  # the registry's, whose code is trusted
            network = counted_network(self.entry, nn.Identity(), self.device)
            return traced_architecture(network, self.device, self.entry.data_range)
        return self.ask("architecture", data_range=self.entry.data_range)

    def reach(self) -> int:
        """Return the network's reach [LR pixels]; see `utils.measure.tiles.reach`."""
        return self.ask("reach", data_range=self.entry.data_range)

    def computed(self, photograph: np.ndarray) -> Computed | None:
        """Return what torch's dispatcher sees of passes, one over H x W x 3 uint8, or None for a variant."""
        if self.entry.variant:
            return None
        height, width = photograph.shape[:2]
        traced = self.ask("traced")
        seen = self._watch_as_ever(torch.rand(1, 3, height, width) * self.entry.data_range)
        shown = self._watch_as_ever(to_tensor(photograph, self.entry.data_range))
        return computed(seen, shown.macs, traced.macs, traced.values)

    def _watch_as_ever(self, lr: Tensor) -> WatchAnswer:
        """Return what torch's dispatcher sees in a pass over an image. Its output must equal an unwatched pass's."""
        height, width = lr.shape[2:]
        self.forward(lr)
        self.timings.pop()  # which are for the measurement's passes only
        self.check_last()
        self.channel.lr(height, width).copy_(lr)
        answer = self.watch(height, width, shared=True)
        self._compare_with_before(lr, self.channel.sr(height, width))
        return answer

    def reset_peak(self) -> None:
        """Start a new peak of memory on a GPU."""
        self.ask("reset_peak")

    def gpu_peak_mib(self) -> float | None:
        """Return the peak GPU memory [MiB] since `reset_peak`; None on a CPU."""
        return self.peak_mib

    def cpu_peak_mib(self, lr_shape: tuple[int, ...]) -> float:
        """Return the peak resident growth [MiB] of a fresh worker in a pass over 1 x 3 x H x W, as the host sees it."""
        log = self.log_path.with_suffix(".memory.log")
        how = self.limits, self.sandbox_mode, self.folder
        with IsolatedRunner(self.entry, self.device, log, *how, for_memory=True, threads=self.threads) as fresh:
            fresh.ask("echo", height=lr_shape[2], width=lr_shape[3])  # the shared images do not belong to the network
            fresh.forward(torch.rand(1, 3, 64, 64) * self.entry.data_range)
            reset_high_water(fresh.pid)
            before = psutil.Process(fresh.pid).memory_info().rss
            fresh.forward(torch.rand(lr_shape) * self.entry.data_range)
            peak = high_water_bytes(fresh.pid) or fresh.ask("peak")
            self.ended_s += sum(map(used_s, fresh.watched.processes()))
        return max(peak - before, 0) / 2**20

    def audit(self, record: Record, dataset: Dataset) -> AuditResult:
        """Check whether the record's figures are true; see `utils/isolation/audit.py`."""
        return Auditor(self, record, dataset).result()


def are_the_same(values: Tensor, others: Tensor, most: float) -> bool:
    """Return whether values lie at most `most` apart; NaN and infinities are the same as themselves."""
    near = (values - others).abs() <= most
    return bool((near | (values == others) | (values.isnan() & others.isnan())).all())
