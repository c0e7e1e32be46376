"""The challenge's editions: thresholds, baselines, and the score, as data and arithmetic.

Source: the NTIRE 2025 and 2026 Efficient SR rules. The score of one figure is exp(2 figure / baseline's figure). The
final score is their weighted sum. Lower is better; the baseline itself scores exp(2) = 7.3891.
"""

import math
from dataclasses import dataclass

from utils.errors import HarnessError

SUB_TRACKS = ("runtime", "flops", "params")


@dataclass(frozen=True)
class Figures:
    """The figures that the rules score. `psnr` maps a split, "valid" or "test", to dB."""

    runtime_ms: float
    flops_g: float
    params_m: float
    psnr: dict[str, float]


@dataclass(frozen=True)
class Edition:
    """One year's rules: the baseline and its published figures, the PSNR to reach per split, the weights."""

    year: int
    baseline: str
    baseline_id: int  # in the registry
    baseline_sha256: str  # of the published checkpoint, to which `published` belongs
    published: Figures
    threshold: dict[str, float]
    weights: tuple[float, float, float]  # of runtime, FLOPs, params


EDITIONS = {
    2025: Edition(
        2025,
        "EFDN",
        0,
        "71069f10ef234cd123f45ac8e69099f0a1fdc0c16afcfe2189e50071d47ce477",
        Figures(16.69, 16.70, 0.276, {"valid": 26.93, "test": 27.01}),  # runtime: mean of 18.77 valid and 14.61 test
        {"valid": 26.90, "test": 26.99},
        (0.7, 0.15, 0.15),
    ),
    2026: Edition(
        2026,
        "SPAN",
        126,
        "6c80f05048313289c6526e5fc9726688d7bb3dfdd6ae3c8b1e7dd09f601e5971",
        Figures(7.74, 9.83, 0.151, {"valid": 26.94, "test": 27.01}),  # runtime: mean of 8.00 valid and 7.47 test
        {"valid": 26.90, "test": 26.99},
        (0.8, 0.1, 0.1),
    ),
}


@dataclass(frozen=True)
class Score:
    """Ratios to the baseline and scores of runtime, FLOPs and params, in this order.

    `margin` is the PSNR above the required one [dB] per split. `passed` compares at two decimals, as results are
    published: 26.896 counts as 26.90.
    """

    ratios: tuple[float, float, float]
    scores: tuple[float, float, float]
    final: float
    margin: dict[str, float]
    passed: bool


def get_edition(year: int) -> Edition:
    """Return the rules of a year. Raise HarnessError for an unknown one."""
    if year not in EDITIONS:
        raise HarnessError(f"--edition {year}: unknown; known are {', '.join(map(str, EDITIONS))}")
    return EDITIONS[year]


def allowed_distance(edition: Edition, split: str) -> float:
    """Return how far the threshold lies from the baseline's published PSNR [dB], such as -0.03."""
    return round(edition.threshold[split] - edition.published.psnr[split], 2)


def score(figures: Figures, baseline: Figures, edition: Edition, estimate: bool = False) -> Score:
    """Score `figures` against the `baseline`'s, both measured on one machine, by an edition's rules.

    The thresholds apply only to the challenge's images. With `estimate`, for other images, a model must reach the
    baseline's PSNR on the same images minus the distance that the rules allow.
    """
    ratios = (
        figures.runtime_ms / baseline.runtime_ms,
        figures.flops_g / baseline.flops_g,
        figures.params_m / baseline.params_m,
    )
    runtime, flops, params = (math.exp(2 * ratio) for ratio in ratios)
    scores = runtime, flops, params
    final = sum(weight * value for weight, value in zip(edition.weights, scores, strict=True))
    if estimate:
        margin = {
            split: -math.inf
            if -math.inf in (psnr, baseline.psnr[split])
            else psnr - baseline.psnr[split] - allowed_distance(edition, split)
            for split, psnr in figures.psnr.items()
        }
        passed = all(round(value, 2) >= 0 for value in margin.values())
    else:
        margin = {split: psnr - edition.threshold[split] for split, psnr in figures.psnr.items()}
        passed = all(round(psnr, 2) >= edition.threshold[split] for split, psnr in figures.psnr.items())
    return Score(ratios, scores, final, margin, passed)


def rank(scores: dict[str, Score], track: str | None = None) -> list[str]:
    """Return the names, best first, by final score or by one of `SUB_TRACKS`. Models that do not pass come last.

    `scores` maps names to Score.
    """
    place = SUB_TRACKS.index(track) if track else None

    def key(name: str) -> tuple[bool, float]:
        value = scores[name].final if place is None else scores[name].scores[place]
        return not scores[name].passed, value

    return sorted(scores, key=key)
