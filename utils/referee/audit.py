"""The audit of a row: does the contestant do for every input what its figures say? After MLPerf's audits.

A finding is a line beside the figures; it never hides them. Times accuse nobody where the machine was busy with other
work: then the row says so. What is checked, and by what: the contestant's clock by the
judge's; what it might keep by inputs that it has not seen; its quality by images mirrored; fvcore's counts by torch's
dispatcher, at two sizes; the time outside of torch's operators; and what it has changed or started.
"""

from dataclasses import asdict
from itertools import count

import cv2
import numpy as np

from utils.data.datasets import read_fitting_hr
from utils.data.images import to_image, to_tensor
from utils.errors import ForeignError, HarnessError
from utils.evaluate.evaluation import largest_lr
from utils.evaluate.fresh import changed
from utils.evaluate.metrics import psnr
from utils.protocol import SCALE

# How far honest figures lie apart on busy machines; docs/robustness.md has the spread that was measured.
CLOCK_SHARE, CLOCK_MS = 0.10, 1.0  # judge's clock against the contestant's, of the time and per pass
MEAN_SHARE, MEAN_MS = 0.25, 4.0  # the same of the mean, which one moment of a busy machine can move
SEEN_SHARE, SEEN_MS = 1.3, 1.0  # the fastest pass on a new input against the fastest on a seen one
ANSWER_GREY_LEVELS = 6.0  # root mean square by which an output may follow a change of one grey level
MIRROR_DB = 1.0  # PSNR lost on a mirrored image
COUNT_SHARE = 0.05  # fvcore's count against the dispatcher's, and the latter's per pixel at two sizes
# A network of windows pads its input. A size that any window divides, larger than an image's, needs the most work that
# padding explains; and 256, which not every window divides, may have taken a tenth more for each pixel.
WINDOWS, PADDED_SHARE = 192, 0.10
OUTSIDE_SHARE, OUTSIDE_MS = 0.15, 5.0  # of a pass, outside of torch's operators
SLOWER_THAN_COUNTED, SLOWER_MS = 1.6, 5.0  # a plain pass against the counted one
EXACT_DB = 60.0  # no network restores a photograph that well
EASY_DB = 40.0  # of bicubic upscaling, from which on an image is no photograph with anything to restore
LEAD = 4  # images of the protocol's order before the drawn one comes again
PAIRS, MORE_PAIRS = 2, 4  # passes on a seen and a new input in turn; more of them before anybody is accused


class Audit:
    """Audits a contestant whose record is complete but for this; `result()` gives what the record holds."""

    def __init__(self, contestant, record, dataset, rng=None):
        self.contestant, self.record, self.dataset = contestant, record, dataset
        self.rng = rng or np.random.default_rng()  # unseeded: nobody can know what is drawn
        self.findings, self.notes, self.figures = [], [], {}

    def result(self):
        """Return {"ran", "sandbox", "notes", "findings", "busy", "figures"}; a wrong clock is replaced in the record.

        "busy" is None, or the `Waiting` that was too much to judge times.
        """
        steps = (self._clock, self._new_inputs, self._mirrored, self._counts, self._processes, self._changes)
        try:
            for step in steps:
                step()
            self.contestant.check_last()
        except (HarnessError, ForeignError) as error:
            self.findings.append(f"fails in the audit ({error})")
        waiting = self.contestant.waiting()
        self.findings = list(dict.fromkeys([*self.findings, *self.contestant.findings]))
        return {
            "ran": "contestant",
            "sandbox": self.contestant.process,
            "notes": [*self.contestant.notes, *self.notes],
            "findings": self.findings,
            "busy": asdict(waiting) if waiting.is_too_much else None,
            "figures": {name: value if np.isfinite(value) else None for name, value in self.figures.items()},
        }

    def _is_busy(self):
        """Return whether other processes had the cores: passes take longer and answers come late for that alone."""
        return self.contestant.waiting().is_too_much

    def _clock(self):
        timings = self.contestant.timings
        reported, judged = (np.array([getattr(t, key) for t in timings]) for key in ("reported_ms", "judged_ms"))
        self.figures |= {"reported_ms": float(reported.sum()), "judged_ms": float(judged.sum()), "passes": len(timings)}
        usual, mean = np.median(judged - reported), np.mean(judged - reported)  # too long a report is no advantage
        allowed = max(CLOCK_SHARE * np.median(judged), CLOCK_MS)
        fair = mean <= max(MEAN_SHARE * np.mean(judged), MEAN_MS)
        if fair and (usual <= allowed or self._reported_is_possible()):
            return
        if self._is_busy():
            return
        self.findings.append(
            f"its clock says {np.median(reported):.2f} ms a pass, the judge's, shown here, {np.median(judged):.2f} ms"
        )
        runtime = self.record["runtime"]
        runtime["clock"] = "the judge's, around a pass, transfers subtracted"
        steady, passes = runtime["steady"], iter(judged)
        places = [(run, index) for run in runtime["runs"] for index in range(len(run))]
        extra = steady["warmup"] + steady["repeats"] if steady else 0
        for run, index in places[max(len(places) - (len(timings) - extra), 0) :]:
            run[index] = float(next(passes))
        if steady:
            p10, median, p90 = np.percentile(judged[len(judged) - steady["repeats"] :], [10, 50, 90])
            steady |= {"p10_ms": float(p10), "median_ms": float(median), "p90_ms": float(p90)}

    def _reported_is_possible(self):
        """Whether, on images of their own, the fastest passes by the judge's clock take no longer than was reported.

        On a machine with other work every answer may come late, the fastest of a few hardly.
        """
        runs, possible, reported = self.record["runtime"]["runs"], [], []
        for number in self.rng.permutation(len(self.dataset.pairs))[:LEAD]:
            lr, times_ms = self.dataset.pairs[number].read_lr(), []
            for _ in range(MORE_PAIRS):
                self._judged(changed(lr, self.rng), times_ms)
            possible.append(min(times_ms))
            reported.append(np.median([run[number] for run in runs if len(run) > number]))
        return np.mean(possible) <= np.mean(reported) + max(CLOCK_SHARE * np.mean(possible), CLOCK_MS)

    def _new_inputs(self):
        """A drawn image as it is and with imperceptible changes, in turn: time and output must be of the same kind."""
        number = int(self.rng.integers(len(self.dataset.pairs)))
        lr = self.dataset.pairs[number].read_lr()
        seen_ms, new_ms, differences = self._in_turn(lr, PAIRS)
        if min(new_ms) > SEEN_SHARE * min(seen_ms) + SEEN_MS:  # is it the machine?
            seen_ms, new_ms, _ = self._in_turn(lr, MORE_PAIRS)
        answer = float(np.max(differences))  # NaN, if the new image alone gives any
        self.figures |= {"seen_ms": min(seen_ms), "new_ms": min(new_ms), "answer_grey_levels": answer}
        if min(*seen_ms, *new_ms) <= 0:
            self.notes.append("a pass took less than its transfers: times of seen and new images were not compared")
            return
        if min(new_ms) > SEEN_SHARE * min(seen_ms) + SEEN_MS and not self._is_busy():
            self.findings.append(f"takes {min(seen_ms):.2f} ms for a seen image, {min(new_ms):.2f} ms for a new one")
        self._repeated(number, min(new_ms))
        if min(differences) == 0:
            self.findings.append("its output does not follow its input: a changed image gives the same")
        elif not answer <= ANSWER_GREY_LEVELS and not self.contestant.missing_weights:
            self.findings.append(f"an image changed by one grey level gives an output {answer:.3g} grey levels away")

    def _repeated(self, number, new_ms):
        """The repeated runs took no less for this image than a new input does, when their order comes again."""
        repeated = [run[number] for run in self.record["runtime"]["runs"][1:] if len(run) > number]
        if not repeated or new_ms <= SEEN_SHARE * float(np.median(repeated)) + SEEN_MS:
            return
        again_ms, other_ms, count = [], [], len(self.dataset.pairs)  # is it the machine?
        lead = min(LEAD, count)
        for _ in range(MORE_PAIRS):
            for step in reversed(range(lead)):
                lr = self.dataset.pairs[(number - step) % count].read_lr()
                self._judged(lr, again_ms)
            self._judged(changed(lr, self.rng), other_ms)
        if min(other_ms) > SEEN_SHARE * min(again_ms[lead - 1 :: lead]) + SEEN_MS and not self._is_busy():
            self.findings.append(
                f"repeated runs took {np.median(repeated):.2f} ms where a new input takes {min(other_ms):.2f} ms"
            )

    def _in_turn(self, lr, pairs):
        """Return times [ms] of passes over a seen and over a new input, and how far apart their outputs are."""
        seen_ms, new_ms, differences = [], [], []
        for _ in range(pairs):
            seen = self._judged(lr, seen_ms)
            new = self._judged(changed(lr, self.rng), new_ms)
            differences.append(float((new - seen).square().mean().sqrt()) * 255 / self._range)
        return seen_ms, new_ms, differences

    def _judged(self, image, times_ms):
        output, *_ = self.contestant.forward(to_tensor(image, self._range))
        times_ms.append(self.contestant.timings[-1].judged_ms)
        return output

    @property
    def _range(self):
        return self.contestant.entry.data_range

    def _mirrored(self):
        """A mirrored image is as hard as it was; who has its original from elsewhere does not have it mirrored."""
        quality = self.record["images"]["psnr"]
        if not self.dataset.has_hr or None in quality:
            return
        exact = sum(value > EXACT_DB and not self._is_easy(number) for number, value in enumerate(quality))
        if exact:
            self.findings.append(f"restores {exact} of {len(quality)} images as nothing can from their LR images")
        number = int(self.rng.integers(len(self.dataset.pairs)))
        pair = self.dataset.pairs[number]
        lr = pair.read_lr()
        output, *_ = self.contestant.forward(to_tensor(lr[:, ::-1], self._range))
        mirrored = psnr(to_image(output, self._range)[:, ::-1], read_fitting_hr(pair, lr))
        self.figures["mirrored_db"] = mirrored - quality[number]
        if mirrored < quality[number] - MIRROR_DB:
            self.findings.append(f"{quality[number]:.2f} dB on {pair.name}, {mirrored:.2f} dB on the same mirrored")

    def _is_easy(self, number):
        """Return whether bicubic upscaling restores an image nearly: a flat one, or a ramp, hides nothing."""
        pair = self.dataset.pairs[number]
        lr = pair.read_lr()
        bicubic = cv2.resize(lr, None, fx=SCALE, fy=SCALE, interpolation=cv2.INTER_CUBIC)
        return psnr(bicubic, read_fitting_hr(pair, lr)) > EASY_DB

    def _counts(self):
        counted = self.record["complexity"]["flops"]
        square = self.contestant.watch()
        height, width = largest_lr(self.dataset, self.record["images"]["lr_pixels"]).shape[:2]
        macs, there = square["macs"], self._macs(height, width)
        self.figures |= {"seen_macs": macs, "seen_macs_largest": there}
        if abs(counted - macs) > COUNT_SHARE * max(macs, counted):
            self.findings.append(f"{macs / 1e9:.2f} GFLOP seen by torch's dispatcher, {counted / 1e9:.2f} counted")
        params = self.record["complexity"]["params"]
        if macs < params:
            self.findings.append(f"{macs} multiply-accumulates counted for {params} parameters")
        per_pixel, per_pixel_there = macs / 256**2, there / (height * width)
        differ = abs(per_pixel - per_pixel_there) > COUNT_SHARE * max(per_pixel, per_pixel_there, 1)
        if differ and not self._is_padding(per_pixel, there, height, width):
            self.findings.append(
                f"{per_pixel / 1e6:.3f} MFLOP a pixel on 256 x 256, {per_pixel_there / 1e6:.3f} on {width} x {height}"
            )
        self._time_outside(square)

    def _macs(self, height, width):
        """Multiply-accumulates of a pass over an image of this size, as torch's dispatcher sees them."""
        return self.contestant.watch(height, width)["macs"]

    def _is_padding(self, per_pixel, macs, height, width):
        """Whether `macs` on an image are no more than on the next size that needs none, which is as 256 x 256 is."""
        height, width = (-(-side // WINDOWS) * WINDOWS for side in (height, width))
        padded = self._macs(height, width)
        share = padded / (height * width) / max(per_pixel, 1)
        return macs <= padded and 1 - PADDED_SHARE <= share <= 1 + COUNT_SHARE

    def _time_outside(self, seen):
        for attempt in count(1):
            inside_ms, outside_ms, plain_ms = (seen[key] for key in ("operators_ms", "outside_ms", "plain_ms"))
            share = outside_ms / max(inside_ms + outside_ms, 1e-9)
            hidden = share > OUTSIDE_SHARE and outside_ms > OUTSIDE_MS
            slower = plain_ms > SLOWER_THAN_COUNTED * (inside_ms + outside_ms) + SLOWER_MS
            if not (hidden or slower) or attempt == PAIRS:
                break
            seen = self.contestant.watch()  # is it the machine?
        self.figures["outside_share"] = share
        if self._is_busy():
            return
        if hidden:
            self.findings.append(f"{share:.0%} of a pass is outside of torch's operators, where nothing is counted")
        if slower:
            counted_ms = inside_ms + outside_ms
            self.findings.append(f"a plain pass takes {plain_ms:.1f} ms, the counted one {counted_ms:.1f} ms")

    def _processes(self):
        others = self.contestant.other_processes()
        if others:
            self.findings.append(f"started {others} process{'es' * (others != 1)} of its own")

    def _changes(self):
        changed_names = self.contestant.ask("changed")
        if changed_names:
            self.findings.append(f"changes in its process: {', '.join(changed_names)[:300]}")
