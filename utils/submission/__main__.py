"""A team's last steps: python -m utils.submission check | pack | factsheet | results --model_id N (or --model_file …)

check      runs the organizers' rules as a checklist, and says which of their five steps are left
pack       checks, then writes a zip that runs on its own; --into puts the model into the organizers' repository
factsheet  prints the LaTeX table and the paragraph on complexity; with --team, it writes the whole document
results    restores the images of --data_dir and writes the zip for the evaluation server

python -m utils.submission check --model_file team42_Net.py --data_dir DIR --into NTIRE2026_ESR
python -m utils.submission factsheet --model_id 7 --team team.toml
"""

import argparse
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import torch

from utils.challenge.rules import get_edition
from utils.data.datasets import open_dataset
from utils.errors import HarnessError, exit_on_harness_error
from utils.evaluate.measurement import MeasurementPlan
from utils.files import file_sha256
from utils.measure.environment import choose_device
from utils.measuring import run
from utils.options import SANDBOX_MODES, SPLITS, add_device, add_edition, add_model, parse, refuse
from utils.record import RECORDS_FILE, Counts, Record, read_results
from utils.request import DataChoice, IsolationChoice, ModelChoice, Request, one_entry
from utils.results.tables import latex_table
from utils.resumable import Rules, opened_runner
from utils.submission.checkout import insert, stage, steps
from utils.submission.checks import FAIL, check_submission
from utils.submission.factsheet import write_factsheet
from utils.submission.packing import complexity_paragraph, pack
from utils.submission.results_zip import write_results
from utils.submission.team import TeamFile, read_team
from utils.zoo.registry import ModelEntry, Origin, find_entry, read_registry, sources_sha256

SUBMISSIONS = Path("submissions")
MARKS = {True: "done ", False: "to do", None: "?    "}


def main() -> int:
    args = arguments()
    if args.command == "factsheet" and not args.team:
        refuse(("--out_file", "--edition", "--sandbox"), "is for --team; add it, or leave this out")
    entry = one_entry(choice_of(args))
    commands: dict[str, Callable[[ModelEntry, argparse.Namespace], int]] = {
        "check": check,
        "pack": pack_submission,
        "factsheet": factsheet,
        "results": results,
    }
    return commands[args.command](entry, args)


def choice_of(args: argparse.Namespace) -> ModelChoice:
    """Return the model that the arguments name."""
    ids = () if args.model_id is None else (args.model_id,)
    return ModelChoice(ids, args.model_file, args.checkpoint)


def arguments() -> argparse.Namespace:
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(prog="python -m utils.submission", description=__doc__, formatter_class=raw)
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    check, pack, factsheet, results = (
        commands.add_parser(name, help=text, description=f"{text[0].upper()}{text[1:]}.")
        for name, text in (
            ("check", "run the organizers' rules as a checklist, and say which of their five steps are left"),
            ("pack", "check, then write a zip that runs on its own, or put the model into a checkout"),
            ("factsheet", "print the complexity part of the factsheet, or write the whole document"),
            ("results", "write the zip for the evaluation server"),
        )
    )
    for command in (check, pack, factsheet, results):
        add_model(command)
        command.add_argument(
            "--sandbox", default="auto", choices=SANDBOX_MODES, help="sandbox of the submission's code (default: auto)"
        )
    for command in (check, pack):
        command.add_argument(
            "--data_dir", type=Path, help="check the PSNR on these images; only the challenge's whole folder counts"
        )
        command.add_argument("--requirements", type=Path, metavar="FILE", help="the organizers' requirements.txt")
    results.add_argument("--data_dir", type=Path, required=True, help="folder of the LR images that the server scores")
    for command in (check, pack, results):
        command.add_argument("--split", default="valid", choices=SPLITS, help="folders of the challenge")
    for command in (check, pack, factsheet):
        add_edition(command)
    for command in (pack, factsheet):
        command.add_argument(
            "--results", type=Path, default=Path("results"), metavar="DIR", help="results folder of eval.py"
        )
    for command in (factsheet, results):
        command.add_argument("--team", type=Path, metavar="TOML", help="the team's file; docs/team.toml is an example")
    check.add_argument("--into", type=Path, metavar="CHECKOUT", help="look at the steps in an organizers' repository")
    pack.add_argument(
        "--into", type=Path, metavar="CHECKOUT", help="put the model into an organizers' repository, and try it there"
    )
    results.add_argument("--names", default="hr", choices=("hr", "lr"), help="0801.png (hr, default) or 0801x4.png")
    add_device(results)
    for command, kind, default in (
        (pack, "zip", "teamNN_Name.zip"),
        (factsheet, "tex", "teamNN_Name/factsheet.tex"),
        (results, "zip", "teamNN_Name_SPLIT.zip"),
    ):
        command.add_argument("--out_file", type=Path, metavar=f"FILE.{kind}", help=f"default: {SUBMISSIONS}/{default}")
    return parse(parser, {"--out": "--out_file"})


def check(entry: ModelEntry, args: argparse.Namespace) -> int:
    """Print the checklist and the organizers' steps; return 1 if a rule is broken."""
    broken = breaks_rules(entry, args)
    print("\nThe organizers' five steps:")
    left = steps(entry, args.into)
    for number, step in enumerate(left, start=1):
        print(f"{MARKS[step.done]}  {number}. {step.text}")
    print("\nNext:")
    for line in next_commands(entry, args, broken, [step.done for step in left]):
        print(f"  {line}")
    return int(broken)


def next_commands(entry: ModelEntry, args: argparse.Namespace, broken: bool, done: list[bool | None]) -> list[str]:
    """Return what to do next, a line each."""
    name = f"--model_id {entry.id}" if args.model_file is None else f"--model_file {args.model_file}"
    if args.checkpoint:
        name += f" --checkpoint {args.checkpoint}"
    if broken:
        return ["correct what FAILs, and check again"]
    if args.into is None or not all(done[1:4]):
        hint = "" if args.into else "  # CHECKOUT: a clone of the organizers' repository"
        return [
            f"python eval.py {name}",
            f"python -m utils.submission pack {name} --into {args.into or 'CHECKOUT'}{hint}",
        ]
    return [
        f"cd {args.into} && git commit && git push",
        f"python -m utils.submission results {name} --data_dir DIR",
        f"python -m utils.submission factsheet {name} --team team.toml",
    ]


def breaks_rules(entry: ModelEntry, args: argparse.Namespace) -> bool:
    """Print the checklist, and return whether a rule is broken."""
    dataset = open_dataset(args.data_dir, args.split) if args.data_dir else None
    requirements = read_requirements(args.requirements) if args.requirements else None
    checks = check_submission(entry, requirements, dataset, get_edition(args.edition), args.sandbox)
    for rule in checks:
        print(f"{rule.status}  {rule.rule}: {rule.detail}")
    failed = [rule for rule in checks if rule.status == FAIL]
    broken = f"{len(failed)} of {len(checks)} rules broken" if failed else "no rule broken"
    print(f"\n{entry.full_name}: {broken}")
    return bool(failed)


def pack_submission(entry: ModelEntry, args: argparse.Namespace) -> int:
    """Check, write the zip, and put the model into a checkout if there is one."""
    record = measured(entry, args.results)  # fail before the checks if it is missing
    if breaks_rules(entry, args):
        return 1
    path = args.out_file or SUBMISSIONS / f"{Path(entry.file).stem}.zip"
    names = pack(entry, record, path, args.sandbox)
    print(f"{path}: {', '.join(names)}; unpacked into an empty folder it restores the sample bit by bit")
    return put_into(entry, args) if args.into else 0


def put_into(entry: ModelEntry, args: argparse.Namespace) -> int:
    """Put an entry into the organizers' repository, measure it there, and compare; return 1 if it differs."""
    paths = insert(entry, args.into)
    print(f"{args.into}: {', '.join(str(path.relative_to(args.into)) for path in paths)}")
    choices = choice_of(args), ModelChoice((entry.id,), repository=args.into)
    folder = SUBMISSIONS / Path(entry.file).stem / "into"
    shutil.rmtree(folder, ignore_errors=True)
    for models in choices:
        request = Request(
            models=models,
            data=DataChoice(args.data_dir, split=args.split),
            plan=MeasurementPlan(1, 0, 1),
            isolation=IsolationChoice(sandbox=args.sandbox),
            results=folder,
            device="cpu",
        )
        if status := run(request):
            return status
    ours, theirs = read_results(folder / RECORDS_FILE).values()
    if different := [key for key, value in exact(ours).items() if exact(theirs)[key] != value]:
        print(f"{args.into}: {', '.join(different)} differ from this project's; see the two tables above")
        return 1
    print(f"{args.into}: the same images, PSNR, SSIM and counts as here, to the last digit\n")
    print(stage(args.into, paths), end="")
    return 0


def exact(record: Record) -> dict[str, object]:
    """Return the figures that do not depend on time or memory."""
    counts = {key: getattr(record.counts, key) for key in Counts.__struct_fields__}
    return {"PSNR": record.images.psnr, "SSIM": record.images.ssim, **counts}


def factsheet(entry: ModelEntry, args: argparse.Namespace) -> int:
    """Print the table and the paragraph, or write the whole document."""
    record = measured(entry, args.results)
    if not args.team:
        print(f"{latex_table([record])}\n{complexity_paragraph(record)}", end="")
        return 0
    team, records = read_team(args.team), [record]
    if entry.training is not None:
        training = find_entry(entry.training, read_registry())
        try:
            records.insert(0, measured(training, args.results))
        except HarnessError as error:
            print(f"no row for {training.name}: {error}")
    tex = args.out_file or SUBMISSIONS / Path(entry.file).stem / "factsheet.tex"
    with opened_runner(entry, torch.device("cpu"), rules_of(entry, tex.parent, args)) as runner:
        architecture = runner.architecture()
    written = write_factsheet(tex, team, args.team.parent, records, architecture, args.edition)
    for key in written.missing:
        print(f"{args.team}: {key} is missing; the document has a placeholder")
    pdf = (
        f"{written.pdf}"
        if written.pdf
        else "no PDF, because pdflatex is not installed (Debian: texlive-latex-recommended)"
    )
    print(f"{tex}, architecture.pdf, architecture.png; {pdf}")
    return 0


def results(entry: ModelEntry, args: argparse.Namespace) -> int:
    """Write the zip for the evaluation server, and say what is in it."""
    dataset, team = open_dataset(args.data_dir, args.split), read_team(args.team) if args.team else TeamFile()
    path = args.out_file or SUBMISSIONS / f"{Path(entry.file).stem}_{args.split}.zip"
    with opened_runner(entry, choose_device(args.device), rules_of(entry, path.parent, args)) as runner:
        written = write_results(runner, dataset, path, team, args.names == "lr")
    size = path.stat().st_size / 2**20
    print(f"{path}: {written.images} images and readme.txt, {size:.1f} MiB; {written.runtime_s:.4f} s per image")
    if written.psnr is not None and written.ssim is not None:
        print(f"Read back: {written.psnr:.2f} dB PSNR, {written.ssim:.4f} SSIM")
    return 0


def rules_of(entry: ModelEntry, folder: Path, args: argparse.Namespace) -> Rules | None:
    """Return the rules for an entry's worker process; None for the registry's own, which run here."""
    return None if entry.origin == Origin.REGISTRY else Rules(folder / "logs", sandbox=args.sandbox)


def measured(entry: ModelEntry, folder: Path) -> Record:
    """Return the entry's complete record. Raise HarnessError if there is none with this code and these weights."""
    path = folder / RECORDS_FILE
    record = read_results(path).get(entry.key)
    way = f"--model_id {entry.id}" if entry.origin == Origin.REGISTRY else "--model_file …"
    if record is None:
        raise HarnessError(f"{path}: holds no results of {entry.name}; run python eval.py {way} first")
    weights = file_sha256(entry.checkpoint_path) if entry.checkpoint_path.is_file() else None
    for key, digest, changed in (("file_sha256", sources_sha256(entry), "code"), ("sha256", weights, "weights")):
        if getattr(record.model, key) != digest:
            raise HarnessError(
                f"{path}: its results of {entry.name} are of other {changed}; run python eval.py {way} again"
            )
    return record


def read_requirements(path: Path) -> set[str]:
    """Return the package names, in lower case, that a requirements.txt lists."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise HarnessError(f"{path}: cannot be read ({error})") from error
    matches = (re.match(r"[A-Za-z0-9][\w.-]*", line.strip()) for line in lines)
    return {match[0].lower() for match in matches if match}


if __name__ == "__main__":
    exit_on_harness_error(main)
