"""Tables of scores: a view of measured records, or of results as published, by one edition's rules."""

import csv
import math
from pathlib import Path

from utils.challenge.rules import SUB_TRACKS, Figures, rank, score
from utils.errors import HarnessError
from utils.results.record import mean, protocol_runtime_ms

HEADER = ("Place", "Model", "PSNR", "Runtime", "FLOPs", "Params", "S runtime", "S FLOPs", "S params", "Score")


def figures_from_record(record):
    """Return a complete record's Figures; without weights or HR images its PSNR is -inf."""
    psnr = mean(record["images"]["psnr"])
    return Figures(
        protocol_runtime_ms(record),
        record["complexity"]["flops"] / 1e9,
        record["complexity"]["params"] / 1e6,
        {record["dataset"]["split"]: -math.inf if psnr is None else psnr},
    )


def score_records(records, edition):
    """Return {name: Score} of records measured in one run, the edition's baseline among them.

    Without quality (no weights, no HR images) a model is scored but counts as not passed. Raises HarnessError if the
    baseline is missing or a record comes from another machine or data set than the baseline's.
    """
    by_name = {record["model"]["name"]: record for record in records}
    if edition.baseline not in by_name:
        raise HarnessError(f"--score: the baseline of {edition.year}, {edition.baseline}, was not measured with them")
    reference = by_name[edition.baseline]
    for name, record in by_name.items():
        if _circumstances(record) != _circumstances(reference):
            raise HarnessError(
                f"{name}: measured on another machine or data than {edition.baseline}; measure both again"
            )
    baseline = figures_from_record(reference)
    return {name: score(figures_from_record(record), baseline, edition) for name, record in by_name.items()}


def _circumstances(record):
    environment = record["environment"]
    machine = tuple(environment[key] for key in ("device", "gpu", "cpu", "threads"))
    data = record["dataset"]["label"], record["dataset"].get("sha256")
    return machine, data, environment["libraries"]["torch"]


def read_published(path):
    """Return {name: Figures} of a results table as published (CSV); runtime is the mean of valid and test."""
    with open(Path(path), newline="", encoding="utf-8") as file:
        return {
            row["name"]: Figures(
                (float(row["valid_ms"]) + float(row["test_ms"])) / 2,
                float(row["flops_g"]),
                float(row["params_m"]),
                {"valid": float(row["valid_psnr"]), "test": float(row["test_psnr"])},
            )
            for row in csv.DictReader(file)
        }


def score_rows(scores):
    """Return the cells of the score table, best first; a model that misses the threshold has no place."""
    rows = []
    for place, name in enumerate(rank(scores), start=1):
        result = scores[name]
        rows.append(
            [
                str(place) if result.passed else "-",
                name,
                ", ".join(_margin(split, margin) for split, margin in result.margin.items()),
                *(f"{ratio:.3f}" for ratio in result.ratios),
                *(_score(value) for value in (*result.scores, result.final)),
            ]
        )
    return rows


def _score(value):
    return f"{value:.4f}" if value < 1e5 else f"{value:.4e}"  # the exponential of a slow model's ratio has many digits


def _margin(split, margin):
    return f"{split} none" if margin == -math.inf else f"{split} {margin:+.4f} dB"


def score_markdown(scores, edition):
    """Return the score table in Markdown, with the rules that it follows."""
    rows = [list(HEADER), ["---:", "---", "---:"] + ["---:"] * (len(HEADER) - 3), *score_rows(scores)]
    weights = " + ".join(
        f"{weight:g} S {name}" for weight, name in zip(edition.weights, ("runtime", "FLOPs", "params"), strict=True)
    )
    thresholds = ", ".join(f"{split} {value:.2f} dB" for split, value in edition.threshold.items())
    notes = [
        f"Edition {edition.year}: baseline {edition.baseline}; PSNR to reach: {thresholds}, compared at two decimals.",
        f"Runtime, FLOPs, Params: ratio to the baseline; S = exp(2 ratio); Score = {weights}; lower is better.",
        "PSNR: above (+) or below (-) the threshold; a model below it, or without quality, has no place.",
    ]
    for track in SUB_TRACKS:
        order = [name for name in rank(scores, track) if scores[name].passed]
        notes.append(f"Sub-track {track}: {', '.join(order) or 'no model passes'}.")
    return "\n".join([*(f"| {' | '.join(row)} |" for row in rows), "", *(f"- {note}" for note in notes)]) + "\n"
