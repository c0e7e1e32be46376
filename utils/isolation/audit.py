"""Audit a record: check whether the worker does for every input what its figures say. After MLPerf's audits.

A finding is a line beside the figures; it never hides them. If the machine was busy with other work, times accuse
nobody, and the record says so. The audit checks

- the worker's clock against the host's,
- cached results, by inputs that the worker has not seen,
- quality, by mirrored images,
- fvcore's counts against torch's dispatcher, at two sizes,
- the time outside of torch's operators,
- changes in the worker's process, and processes that it has started.
"""

from dataclasses import dataclass
from itertools import count
from typing import Any, Protocol

import cv2
import msgspec
import numpy as np
from torch import Tensor

from utils.data.datasets import Dataset, read_fitting_hr
from utils.data.images import to_image, to_tensor
from utils.errors import ForeignError, HarnessError
from utils.evaluate.evaluation import largest_lr
from utils.evaluate.fresh import changed
from utils.evaluate.metrics import psnr
from utils.isolation.answers import WatchAnswer
from utils.isolation.sandbox import Sandbox
from utils.measure.runtime import Pass, percentiles
from utils.protocol import SCALE
from utils.record import Audit, Complexity, Computed, Record, Waiting, WeightsInfo
from utils.zoo.registry import ModelEntry

# Tolerances for honest figures on busy machines; docs/lab/untrusted.md has the measured spread.
CLOCK_SHARE, CLOCK_MS = 0.10, 1.0  # host's clock against the worker's, of the time and per pass
MEAN_SHARE, MEAN_MS = 0.25, 4.0  # the same for the mean, which one busy moment can shift
SEEN_SHARE, SEEN_MS = 1.3, 1.0  # the fastest pass on a new input against the fastest on a seen one
ANSWER_GREY_LEVELS = 6.0  # allowed root mean square change of an output after a change of one grey level
MIRROR_DB = 1.0  # PSNR lost on a mirrored image
COUNT_SHARE = 0.05  # fvcore's count against the dispatcher's, and the latter's per pixel at two sizes
# A network of windows pads its input. Padding explains at most the work on the next multiple of WINDOWS, which any
# window divides. Not every window divides 256, so a pass on 256 x 256 may have taken a tenth more for each pixel.
WINDOWS, PADDED_SHARE = 192, 0.10
HIDDEN_VALUES, HIDDEN_SHARE = 1024, 0.02  # numbers that are not parameters; a mean, or a fixed kernel, is not a finding
STORED_SHARE = 0.01  # of parameters; a larger excess of numbers in them is a finding
PRODUCT_SHARE = 0.05  # of multiply-accumulates, in element-wise products that are summed
OUTSIDE_SHARE, OUTSIDE_MS = 0.15, 5.0  # of a pass, outside of torch's operators
SLOWER_THAN_COUNTED, SLOWER_MS = 1.6, 5.0  # a plain pass against the counted one
EXACT_DB = 60.0  # no network restores a photograph that well
EASY_DB = 40.0  # of bicubic upscaling; above it, an image has nothing to restore
LEAD = 4  # images in the protocol's order, the drawn one last
PAIRS, MORE_PAIRS = 2, 4  # passes on a seen and a new input in turn; more of them before a finding


@dataclass(frozen=True)
class Timing:
    """The time of one pass by the worker's report, and by the host's clock without transfers [ms]."""

    reported_ms: float
    host_ms: float


class AuditedRunner(Protocol):
    """The interface that an audit needs of an isolated model beyond ModelRunner."""

    entry: ModelEntry
    weights: WeightsInfo
    sandbox: Sandbox
    timings: list[Timing]
    notes: list[str]
    findings: list[str]

    def forward(self, lr: Tensor) -> Pass: ...
    def watch(self, height: int = ..., width: int = ...) -> WatchAnswer: ...
    def waiting(self) -> Waiting: ...
    def check_last(self) -> None: ...
    def other_processes(self) -> int: ...
    def ask(self, do: str, **arguments: Any) -> Any: ...


class Auditor:
    """Audits a worker whose record is otherwise complete. `result()` returns the Audit for the record."""

    def __init__(self, worker: AuditedRunner, record: Record, dataset: Dataset, rng: np.random.Generator | None = None):
        self.worker, self.record, self.dataset = worker, record, dataset
        self.rng = rng or np.random.default_rng()  # unseeded, so that nobody can predict the draws
        self.findings: list[str] = []
        self.notes: list[str] = []
        self.figures: dict[str, float] = {}

    def result(self) -> Audit:
        """Return the audit. If the worker's clock is wrong, add the host's times to the record."""
        steps = (self._clock, self._new_inputs, self._mirrored, self._counts, self._processes, self._changes)
        try:
            for step in steps:
                step()
            self.worker.check_last()
        except (HarnessError, ForeignError) as error:
            self.findings.append(f"fails in the audit ({error})")
        waiting = self.worker.waiting()
        return Audit(
            sandbox=self.worker.sandbox.line,
            notes=[*self.worker.notes, *self.notes],
            findings=list(dict.fromkeys([*self.findings, *self.worker.findings])),
            busy=waiting if waiting.is_too_much else None,
            figures={name: value if np.isfinite(value) else None for name, value in self.figures.items()},
        )

    def _is_busy(self) -> bool:
        """Return whether other processes used the cores, which by itself makes passes slower and answers late."""
        return self.worker.waiting().is_too_much

    def _clock(self) -> None:
        timings = self.worker.timings
        reported, host_ms = (np.array([getattr(t, key) for t in timings]) for key in ("reported_ms", "host_ms"))
        self.figures |= {"reported_ms": float(reported.sum()), "host_ms": float(host_ms.sum()), "passes": len(timings)}
        usual, mean = np.median(host_ms - reported), np.mean(host_ms - reported)  # too long a report is no advantage
        # Where passes are short, some that were reported as nothing stay within the tolerance. Of an earlier part of
        # the measurement, the host's times are gone.
        clear = usual <= max(CLOCK_SHARE * np.median(host_ms), CLOCK_MS) and mean <= MEAN_SHARE * np.mean(host_ms)
        fair = mean <= max(MEAN_SHARE * np.mean(host_ms), MEAN_MS)
        if fair and ((clear and self.record.runtime.parts == 1) or self._reported_is_possible()):
            return
        if self._is_busy():
            return
        self.findings.append(
            f"its clock says {np.median(reported):.2f} ms a pass, the host's, shown here, {np.median(host_ms):.2f} ms"
        )
        runtime, passes = self.record.runtime, iter(host_ms)
        runtime.host_runs = [list(run) for run in runtime.runs]
        places = [(run, index) for run in runtime.host_runs for index in range(len(run))]
        steady = runtime.steady
        extra = steady.warmup + steady.repeats if steady else 0
        for run, index in places[max(len(places) - (len(timings) - extra), 0) :]:
            run[index] = float(next(passes))
        if steady:
            times = percentiles(host_ms[len(host_ms) - steady.repeats :])
            runtime.host_steady = msgspec.structs.replace(steady, **times)

    def _reported_is_possible(self) -> bool:
        """Return whether, on a few images, the fastest passes by the host's clock take no longer than reported.

        On a busy machine any answer may come late, but hardly the fastest of several.
        """
        runs, possible, reported = self.record.runtime.runs, [], []
        for number in self.rng.permutation(len(self.dataset.pairs))[:LEAD]:
            lr = self.dataset.pairs[number].read_lr()
            times_ms: list[float] = []
            for _ in range(MORE_PAIRS):
                self._pass(changed(lr, self.rng), times_ms)
            possible.append(min(times_ms))
            reported.append(np.mean([run[number] for run in runs if len(run) > number]))
        return bool(np.mean(possible) <= np.mean(reported) + max(CLOCK_SHARE * np.mean(possible), CLOCK_MS))

    def _new_inputs(self) -> None:
        """Compare time and output of a drawn image with those of imperceptibly changed versions, in turn."""
        number = int(self.rng.integers(len(self.dataset.pairs)))
        lr = self.dataset.pairs[number].read_lr()
        seen_ms, new_ms, differences = self._in_turn(lr, PAIRS)
        if min(new_ms) > SEEN_SHARE * min(seen_ms) + SEEN_MS:  # is it the machine?
            seen_ms, new_ms, _ = self._in_turn(lr, MORE_PAIRS)
        answer = float(np.max(differences))  # NaN if an output contains NaN
        self.figures |= {"seen_ms": min(seen_ms), "new_ms": min(new_ms), "answer_grey_levels": answer}
        if min(*seen_ms, *new_ms) <= 0:
            self.notes.append("a pass took less than its transfers: times of seen and new images were not compared")
            return
        if min(new_ms) > SEEN_SHARE * min(seen_ms) + SEEN_MS and not self._is_busy():
            self.findings.append(f"takes {min(seen_ms):.2f} ms for a seen image, {min(new_ms):.2f} ms for a new one")
        self._repeated(number, min(new_ms))
        if min(differences) == 0:
            self.findings.append("its output does not follow its input: a changed image gives the same")
        elif not answer <= ANSWER_GREY_LEVELS and not self.worker.weights.missing_weights:
            self.findings.append(f"an image changed by one grey level gives an output {answer:.3g} grey levels away")

    def _repeated(self, number: int, new_ms: float) -> None:
        """Check that repeated runs were not faster than a new input. If they were, repeat their order to make sure."""
        repeated = [run[number] for run in self.record.runtime.runs[1:] if len(run) > number]
        if not repeated or new_ms <= SEEN_SHARE * float(np.median(repeated)) + SEEN_MS:
            return
        again_ms: list[float] = []
        other_ms: list[float] = []
        images = len(self.dataset.pairs)
        lead = min(LEAD, images)
        for _ in range(MORE_PAIRS):  # is it the machine?
            for step in reversed(range(lead)):
                lr = self.dataset.pairs[(number - step) % images].read_lr()
                self._pass(lr, again_ms)
            self._pass(changed(lr, self.rng), other_ms)
        if min(other_ms) > SEEN_SHARE * min(again_ms[lead - 1 :: lead]) + SEEN_MS and not self._is_busy():
            self.findings.append(
                f"repeated runs took {np.median(repeated):.2f} ms where a new input takes {min(other_ms):.2f} ms"
            )

    def _in_turn(self, lr: np.ndarray, pairs: int) -> tuple[list[float], list[float], list[float]]:
        """Return times [ms] of passes over a seen and over a new input, and how far apart their outputs are."""
        seen_ms: list[float] = []
        new_ms: list[float] = []
        differences = []
        for _ in range(pairs):
            seen = self._pass(lr, seen_ms)
            new = self._pass(changed(lr, self.rng), new_ms)
            differences.append(float((new - seen).square().mean().sqrt()) * 255 / self._range)
        return seen_ms, new_ms, differences

    def _pass(self, image: np.ndarray, times_ms: list[float]) -> Tensor:
        output = self.worker.forward(to_tensor(image, self._range)).output
        times_ms.append(self.worker.timings[-1].host_ms)
        return output

    @property
    def _range(self) -> float:
        return self.worker.entry.data_range

    def _mirrored(self) -> None:
        """Check a mirrored image: an honest network does as well on it; one that looked up the original does not."""
        quality = [value for value in self.record.images.psnr if value is not None]
        if not self.dataset.has_hr or len(quality) < len(self.record.images.psnr):
            return
        exact = sum(value > EXACT_DB and not self._is_easy(number) for number, value in enumerate(quality))
        if exact:
            self.findings.append(f"restores {exact} of {len(quality)} images as nothing can from their LR images")
        number = int(self.rng.integers(len(self.dataset.pairs)))
        pair = self.dataset.pairs[number]
        lr = pair.read_lr()
        output = self.worker.forward(to_tensor(lr[:, ::-1], self._range)).output
        mirrored = psnr(to_image(output, self._range)[:, ::-1], read_fitting_hr(pair, lr))
        self.figures["mirrored_db"] = mirrored - quality[number]
        if mirrored < quality[number] - MIRROR_DB:
            self.findings.append(f"{quality[number]:.2f} dB on {pair.name}, {mirrored:.2f} dB on the same mirrored")

    def _is_easy(self, number: int) -> bool:
        """Return whether bicubic upscaling nearly restores an image. A flat image or a ramp hides nothing."""
        pair = self.dataset.pairs[number]
        lr = pair.read_lr()
        bicubic = cv2.resize(lr, None, fx=SCALE, fy=SCALE, interpolation=cv2.INTER_CUBIC)
        return psnr(bicubic, read_fitting_hr(pair, lr)) > EASY_DB

    def _counts(self) -> None:
        counts = self.record.counts
        square = self.worker.watch()
        macs = square.macs
        self.figures["seen_macs"] = macs
        if macs + square.summed_products < counts.params:
            self.findings.append(f"{macs} multiply-accumulates seen for {counts.params} parameters")
        images = self.record.images
        whole = [pixels * (not tile) for pixels, tile in zip(images.lr_pixels, images.tile, strict=True)]
        if any(whole):  # an image that took tiles does not fit into memory
            self._compare_counts(macs / 256**2, *largest_lr(self.dataset, whole).shape[:2])
        if counts.computed:
            self._computed(counts, counts.computed)
        self._time_outside(square)

    def _compare_counts(self, per_pixel: float, height: int, width: int) -> None:
        """Compare the multiply-accumulates per pixel with those on a data set's image."""
        there = self._macs(height, width)
        self.figures["seen_macs_largest"] = there
        per_pixel_there = there / (height * width)
        differ = abs(per_pixel - per_pixel_there) > COUNT_SHARE * max(per_pixel, per_pixel_there, 1)
        if differ and not self._is_padding(per_pixel, there, height, width):
            self.findings.append(
                f"{per_pixel / 1e6:.3f} MFLOP a pixel on 256 x 256, {per_pixel_there / 1e6:.3f} on {width} x {height}"
            )

    def _computed(self, counts: Complexity, computed: Computed) -> None:
        """Report computation and storage that the protocol's counters do not see, with the figure concerned.

        Convolutions that are not modules are not a finding. The table's note on computed figures names them.
        """
        macs, traced, shown = computed.macs, computed.traced_macs, computed.photograph_macs
        if abs(traced - macs) > COUNT_SHARE * max(macs, traced):
            self.findings.append(f"{macs / 1e9:.2f} GFLOP seen by torch's dispatcher, {traced / 1e9:.2f} in a trace")
        if shown > (1 + COUNT_SHARE) * macs:
            self.findings.append(
                f"{shown / 1e9:.2f} GFLOP on a photograph, {macs / 1e9:.2f} on the random values that are counted on"
            )
        elif shown < (1 - COUNT_SHARE) * macs:
            self.notes.append(
                f"computes by content: {shown / 1e9:.2f} GFLOP on a photograph, {macs / 1e9:.2f} on random values"
            )
        if computed.summed_products > PRODUCT_SHARE * macs:
            self.findings.append(
                f"{computed.summed_products / 1e9:.2f} G multiply-accumulates are element-wise products that are "
                "summed, which FLOPs leave out"
            )
        if computed.hidden_values > max(HIDDEN_VALUES, HIDDEN_SHARE * counts.params):
            hidden = "; ".join(computed.hidden)
            values = f"{computed.hidden_values / 1e6:.3f} M"
            self.findings.append(f"reads {values} numbers that are not parameters: {hidden}")
        stored = computed.values - computed.hidden_values
        if stored > (1 + STORED_SHARE) * counts.params:
            self.findings.append(f"{counts.params / 1e6:.3f} M parameters hold {stored / 1e6:.3f} M numbers of 32 bits")
        if computed.unpacked_weights > (1 + STORED_SHARE) * counts.params:
            weights = f"{computed.unpacked_weights / 1e6:.3f} M weights"
            self.findings.append(f"{weights} are unpacked from {counts.params / 1e6:.3f} M parameters")
        if computed.made_weights > max(HIDDEN_VALUES, HIDDEN_SHARE * counts.params):
            self.findings.append(
                f"{computed.made_weights / 1e6:.3f} M weights come from a formula, from nothing that is stored"
            )
        if computed.unknown:
            self.findings.append(f"operators that no counter knows: {'; '.join(computed.unknown)}")

    def _macs(self, height: int, width: int) -> int:
        """Return the multiply-accumulates of a pass over an image of this size, as torch's dispatcher sees them."""
        return self.worker.watch(height, width).macs

    def _is_padding(self, per_pixel: float, macs: int, height: int, width: int) -> bool:
        """Return whether padding explains `macs`.

        They must not exceed those of the next larger size that needs no padding. That size must take about as many for
        each pixel as 256 x 256.
        """
        height, width = (-(-side // WINDOWS) * WINDOWS for side in (height, width))
        padded = self._macs(height, width)
        share = padded / (height * width) / max(per_pixel, 1)
        return macs <= padded and 1 - PADDED_SHARE <= share <= 1 + COUNT_SHARE

    def _time_outside(self, seen: WatchAnswer) -> None:
        for attempt in count(1):
            inside_ms, outside_ms, plain_ms = seen.operators_ms, seen.outside_ms, seen.plain_ms
            share = outside_ms / max(inside_ms + outside_ms, 1e-9)
            hidden = share > OUTSIDE_SHARE and outside_ms > OUTSIDE_MS
            slower = plain_ms > SLOWER_THAN_COUNTED * (inside_ms + outside_ms) + SLOWER_MS
            if not (hidden or slower) or attempt == PAIRS:
                break
            seen = self.worker.watch()  # is it the machine?
        self.figures["outside_share"] = share
        if self._is_busy():
            return
        if hidden:
            self.findings.append(f"{share:.0%} of a pass is outside of torch's operators, where nothing is counted")
        if slower:
            counted_ms = inside_ms + outside_ms
            self.findings.append(f"a plain pass takes {plain_ms:.1f} ms, the counted one {counted_ms:.1f} ms")

    def _processes(self) -> None:
        others = self.worker.other_processes()
        if others:
            self.findings.append(f"started {others} process{'es' * (others != 1)}")

    def _changes(self) -> None:
        changed_names = self.worker.ask("changed")
        if changed_names:
            self.findings.append(f"changes in its process: {', '.join(changed_names)[:300]}")
