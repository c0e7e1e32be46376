"""The factsheet of a submission: a LaTeX document with its figure, and the PDF if a LaTeX engine is installed."""

import csv
import re
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec
from jinja2 import Environment, FileSystemLoader, StrictUndefined

from utils.errors import HarnessError
from utils.files import LOG_FILE, RECIPE_FILE, read_toml, write_text
from utils.measure.architecture import Architecture
from utils.record import Record
from utils.results.tables import latex, latex_table
from utils.submission.diagram import boxes, draw_architecture
from utils.submission.packing import complexity_paragraph
from utils.submission.team import TeamFile

ENGINES = ("pdflatex", "xelatex", "lualatex", "tectonic")
ENGINE_S = 120  # time limit of one pass of an engine
LINK = re.compile(r"[\w:/.~?=&+@-]+", re.ASCII)  # accepted by \url without escapes
LOSSES = {
    "l1": "L1",
    "l2": "L2",
    "rmse": "root mean square error of each patch",
    "charbonnier": "Charbonnier",
    "l1+frequency": "L1 and L1 of the Fourier transform",
}


@dataclass
class Written:
    """A written document: the `missing` keys have placeholders; `pdf` is None if there is no engine."""

    tex: Path
    pdf: Path | None = None
    missing: list[str] = field(default_factory=list)


def write_factsheet(
    tex: Path, team: TeamFile, team_folder: Path, records: Sequence[Record], architecture: Architecture, edition: int
) -> Written:
    """Write the document, architecture.pdf and .png beside it, and the PDF.

    `records` are the training form's, if it has been measured, and the submitted network's, in this order. Raise
    HarnessError if a file cannot be written, or if the engine fails.
    """
    record, written = records[-1], Written(tex)
    values = known_values(team, team_folder)

    def need(key: str, what: str) -> str:
        value = values.get(key)
        if value:
            return latex(
                ", ".join(value) if isinstance(value, tuple) else f"{value:,}" if isinstance(value, int) else value
            )
        if key not in written.missing:
            written.missing.append(key)
        return rf"\todo{{{latex(what)}}}"

    def link(key: str, what: str) -> str:
        value = values.get(key)
        return rf"\url{{{value}}}" if value and LINK.fullmatch(value) else need(key, what)

    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        undefined=StrictUndefined,
        block_start_string="<%",
        block_end_string="%>",
        variable_start_string="<<",
        variable_end_string=">>",
        trim_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters["latex"] = latex
    text = environment.get_template("factsheet.tex").render(
        need=need,
        link=link,
        edition=edition,
        name=latex(record.model.name),
        repeats=any(box.repeats > 1 for box in boxes(architecture)),
        table=latex_table(list(records), fit=True),
        paragraph=complexity_paragraph(record),
        references=team.references,
    )
    draw_architecture(architecture, record.model.name, tex.with_name("architecture"))
    write_text(tex, text)
    written.pdf = compiled(tex)
    return written


def known_values(team: TeamFile, folder: Path) -> dict[str, Any]:
    """Return the values of a team's file as {"table.key": …}. Missing ones come from its training run."""
    values: dict[str, Any] = {"title": team.title, "references": team.references}
    for table in ("team", "method"):
        values |= {
            f"{table}.{key}": value for key, value in msgspec.structs.asdict(getattr(team, table)).items() if value
        }
    if team.method.run:
        values = {f"method.{key}": value for key, value in training_facts(folder / team.method.run).items()} | values
    return values


def training_facts(run: Path) -> dict[str, Any]:
    """Return the facts in a training run's recipe.toml and log.csv. Raise HarnessError if they cannot be read."""
    hint = "name a folder that train.py wrote in method.run, or leave the key out"
    recipe = read_toml(run / RECIPE_FILE, hint)
    try:
        with open(run / LOG_FILE, newline="", encoding="utf-8") as file:
            rows = list(csv.DictReader(file))
        seconds = float(rows[-1]["seconds"]) if rows else 0.0
        steps = int(rows[-1]["step"]) if rows else 0
        muon = f" and Muon, {recipe['muon_learning_rate']:g}" if recipe["muon_learning_rate"] else ""
        names = "AdamW and Muon" if muon else "AdamW"
        betas = ", ".join(f"{beta:g}" for beta in recipe["betas"])
        falls = []
        if recipe["milestones"]:
            at = ", ".join(f"{step:,}" for step in recipe["milestones"])
            falls.append(f"multiplied by {recipe['gamma']:g} at {at} iterations")
        if recipe["cooldown"]:
            falls.append(f"falls linearly to 0 over the last {recipe['cooldown']:,} iterations")
        return {
            "patches": f"{recipe['hr_patch']} x {recipe['hr_patch']} HR pixels, flipped and rotated",
            "batch": recipe["batch"],
            "optimizer": f"{names} (betas {betas})",
            "loss": LOSSES.get(recipe["loss"], recipe["loss"]),
            "learning_rate": f"{recipe['learning_rate']:g} (AdamW){muon}" if muon else f"{recipe['learning_rate']:g}",
            "schedule": ", ".join(falls) or "constant",
            "iterations": steps,
            "duration": f"{seconds / 3600:.1f} hours" if seconds else "",
        }
    except (OSError, KeyError, ValueError, TypeError) as error:
        raise HarnessError(f"{run}: not the recipe or the log of a training run ({error}); {hint}") from error


def compiled(tex: Path) -> Path | None:
    """Make the PDF of a LaTeX file. Return its path, or None if no engine is installed.

    Remove the engine's other files. Raise HarnessError with its first error.
    """
    engine = next(filter(shutil.which, ENGINES), None)
    if engine is None:
        return None
    options = [] if engine == "tectonic" else ["-interaction=nonstopmode", "-no-shell-escape"]
    output = ""
    for _ in range(1 if engine == "tectonic" else 2):  # the second pass knows the figure's number
        try:
            done = subprocess.run(
                [engine, *options, tex.name], cwd=tex.parent, capture_output=True, timeout=ENGINE_S, check=False
            )
        except (OSError, subprocess.TimeoutExpired) as error:
            raise HarnessError(f"{tex}: {engine} does not run ({error}); compile it by hand") from error
        output = done.stdout.decode(errors="replace")
    for suffix in (".aux", ".log", ".out"):
        tex.with_suffix(suffix).unlink(missing_ok=True)
    errors = [line for line in output.splitlines() if line.startswith("!")]
    pdf = tex.with_suffix(".pdf")
    if errors or not pdf.is_file():
        reason = errors[0] if errors else "no PDF came out"
        raise HarnessError(f"{tex}: {engine} says {reason.lstrip('! ')!r}; correct the team's file, or the document")
    return pdf
