"""Score tables of measured records or of published results, by one edition's rules.

python -m utils.challenge.score_tables docs/ntire2026.csv [--edition 2026] [--computed] scores a table as published.
"""

import csv
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from utils.challenge.rules import EDITIONS, SUB_TRACKS, Edition, Figures, Score, allowed_distance, rank, score
from utils.data.datasets import is_challenge
from utils.errors import HarnessError, exit_on_harness_error
from utils.options import add_edition, command_line, parse
from utils.record import Record
from utils.results.tables import aligned

HEADER = ("Place", "Model", "PSNR", "Runtime", "FLOPs", "Params", "S runtime", "S FLOPs", "S params", "Score")


@dataclass(frozen=True)
class Scoring:
    """Scores by model name, and their basis.

    `estimate` is None on the challenge's images. On other images, it names them, and PSNR is scored by the distance to
    the baseline. `published_weights` says whether the baseline has the weights of its published PSNR. `not_clean` names
    the models with audit findings.
    """

    scores: dict[str, Score]
    edition: Edition
    estimate: str | None = None
    published_weights: bool = True
    not_clean: tuple[str, ...] = ()

    def placed(self, track: str | None = None) -> list[str]:
        """Return the names with a place, best first. These models pass and have no audit findings."""
        names = rank(self.scores, track)
        return [name for name in names if self.scores[name].passed and name not in self.not_clean]


def figures_from_record(record: Record) -> Figures:
    """Return a complete record's Figures; without weights or HR images its PSNR is -inf."""
    psnr = record.psnr_db
    return Figures(
        record.runtime_ms or 0.0,
        record.counts.flops / 1e9,
        record.counts.params / 1e6,
        {record.dataset.split: -math.inf if psnr is None else psnr},
    )


def score_records(records: list[Record], edition: Edition) -> Scoring:
    """Score records measured in one run, which must include the registry's baseline of the edition.

    The records must have distinct names. Without quality (no weights or no HR images), a model is scored but does not
    pass. Raise HarnessError if the baseline is missing, or if a record is from another machine or data set than the
    baseline's.
    """
    reference = _baseline_of(records, edition)
    if reference is None:
        raise HarnessError(f"--score: the baseline of {edition.year}, {edition.baseline}, was not measured with them")
    for record in records:
        if _circumstances(record) != _circumstances(reference):
            raise HarnessError(
                f"{record.model.name}: measured on another machine or data than {edition.baseline}; measure both again"
            )
    baseline, data = figures_from_record(reference), reference.dataset
    estimate = None if is_challenge(data.label, data.split) else data.label
    scores = {
        record.model.name: score(figures_from_record(record), baseline, edition, estimate is not None)
        for record in records
    }
    not_clean = tuple(record.model.name for record in records if record.audit and record.audit.findings)
    return Scoring(scores, edition, estimate, reference.model.sha256 == edition.baseline_sha256, not_clean)


def _baseline_of(records: list[Record], edition: Edition) -> Record | None:
    """Return the record of the edition's baseline, preferably one with the published weights."""
    registered = [record for record in records if record.model.origin == "registry"]
    own = [record for record in registered if record.model.id == edition.baseline_id]
    published = [record for record in own if record.model.sha256 == edition.baseline_sha256]
    return next(iter([*published, *own]), None)


def _circumstances(record: Record) -> tuple[object, ...]:
    environment, data = record.environment, record.dataset
    machine = environment.device, environment.gpu, environment.cpu, environment.threads
    return *machine, data.label, data.sha256, environment.libraries["torch"]


def main() -> None:
    parser = command_line(
        "-m utils.challenge.score_tables",
        "Score a table of results as published. What was measured here is scored by eval.py --score.",
        "docs/ntire2026.csv",
        "docs/ntire2026.csv --edition 2025 --computed",
    )
    parser.add_argument("table", type=Path, metavar="TABLE.csv", help="with the columns of docs/ntire2026.csv")
    add_edition(parser)
    parser.add_argument("--baseline", default="00_SPAN", metavar="NAME", help="the row to compare with")
    parser.add_argument("--computed", action="store_true", help="with the FLOPs that the protocol's counter left out")
    args = parse(parser)
    print(score_markdown(score_published(args.table, EDITIONS[args.edition], args.baseline, args.computed)), end="")


def score_published(path: Path, edition: Edition, baseline: str, computed: bool = False) -> Scoring:
    """Score a results table as published against one of its rows. Raise HarnessError as `read_published` does."""
    figures = read_published(path, computed)
    if baseline not in figures:
        raise HarnessError(f"--baseline {baseline}: not in {path}; it holds {', '.join(figures)}")
    return Scoring({name: score(values, figures[baseline], edition) for name, values in figures.items()}, edition)


def read_published(path: str | Path, computed: bool = False) -> dict[str, Figures]:
    """Return {name: Figures} of a results table as published (CSV); runtime is the mean of valid and test.

    With `computed`, the figures include FLOPs that the protocol's counter left out, for entries where they are known.
    Raise HarnessError if the file is not such a table.
    """
    try:
        with open(Path(path), newline="", encoding="utf-8") as file:
            return {
                row["name"]: Figures(
                    (float(row["valid_ms"]) + float(row["test_ms"])) / 2,
                    float((computed and row["computed_flops_g"]) or row["flops_g"]),
                    float(row["params_m"]),
                    {"valid": float(row["valid_psnr"]), "test": float(row["test_psnr"])},
                )
                for row in csv.DictReader(file)
            }
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise HarnessError(f"{path}: not a results table ({error}); docs/ntire2026.csv shows the columns") from error


def score_rows(scoring: Scoring) -> list[list[str]]:
    """Return the cells of the score table, best first; models without a place come last."""
    rows, placed = [], scoring.placed()
    for name in [*placed, *(name for name in rank(scoring.scores) if name not in placed)]:
        result = scoring.scores[name]
        rows.append(
            [
                str(placed.index(name) + 1) if name in placed else "-",
                name,
                ", ".join(_psnr(split, margin, scoring) for split, margin in result.margin.items()),
                *(f"{ratio:.3f}" for ratio in result.ratios),
                *(_score(value) for value in (*result.scores, result.final)),
            ]
        )
    return rows


def _score(value: float) -> str:
    return f"{value:.4f}" if value < 1e5 else f"{value:.4e}"  # the exponential of a slow model's ratio has many digits


def _psnr(split: str, margin: float, scoring: Scoring) -> str:
    """Return the distance to the threshold, or to the baseline if the threshold does not apply."""
    if margin == -math.inf:
        return f"{split} none"
    distance = margin + (allowed_distance(scoring.edition, split) if scoring.estimate else 0)
    return f"{split} {distance:+.4f} dB"


def _psnr_notes(scoring: Scoring) -> Iterator[str]:
    edition = scoring.edition
    if scoring.estimate is None:
        yield "PSNR: above (+) or below (-) the threshold. A model below it, or without quality, has no place."
        return
    splits = {split for result in scoring.scores.values() for split in result.margin}
    allowed = ", ".join(f"{-allowed_distance(edition, split):.2f} dB ({split})" for split in sorted(splits))
    yield (
        "PSNR: an estimate. The thresholds hold for the challenge's images only. "
        f"On {scoring.estimate}, the table shows the distance to {edition.baseline}. "
        f"A model that is more than {allowed} below it has no place."
    )
    if not scoring.published_weights:
        yield (
            f"{edition.baseline} has weights of this project here, not the published ones. The estimate is too good by "
            f"as much as these are worse. With the published file: --model_id {edition.baseline_id} --checkpoint FILE, "
            "then --show --score."
        )


def score_markdown(scoring: Scoring) -> str:
    """Return the score table in Markdown, with the rules that it follows."""
    rows = [list(HEADER), ["---:", "---", "---:"] + ["---:"] * (len(HEADER) - 3), *score_rows(scoring)]
    notes = score_notes(scoring)
    return "\n".join([*(f"| {' | '.join(row)} |" for row in rows), "", *(f"- {note}" for note in notes)]) + "\n"


def score_text(scoring: Scoring) -> str:
    """Return the score table as aligned text, with the rules that it follows."""
    lines = aligned([HEADER, *score_rows(scoring)], left=HEADER.index("Model"))
    return "\n".join([*lines, "", *score_notes(scoring)]) + "\n"


def score_notes(scoring: Scoring) -> list[str]:
    """Return the notes under a score table: its rules, and the models without a place."""
    edition = scoring.edition
    weights = " + ".join(
        f"{weight:g} S {name}" for weight, name in zip(edition.weights, ("runtime", "FLOPs", "params"), strict=True)
    )
    thresholds = ", ".join(f"{split} {value:.2f} dB" for split, value in edition.threshold.items())
    notes = [
        f"Edition {edition.year}: baseline {edition.baseline}; PSNR to reach: {thresholds}, compared at two decimals.",
        f"Runtime, FLOPs, Params: ratio to the baseline; S = exp(2 ratio); Score = {weights}; lower is better.",
        *_psnr_notes(scoring),
    ]
    if scoring.not_clean:
        notes.append(f"No place, the audit found something: {', '.join(scoring.not_clean)}.")
    for track in SUB_TRACKS:
        order = scoring.placed(track)
        notes.append(f"Sub-track {track}, best first: {', '.join(order) or 'no model passes'}.")
    return notes


if __name__ == "__main__":
    exit_on_harness_error(main)
