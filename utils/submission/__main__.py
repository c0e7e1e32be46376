"""A team's last steps: python -m utils.submission check | pack | factsheet | results --model_id N (or --model_file …)

check      runs the organizers' rules as a checklist; the model's code is run
pack       checks, then writes a zip with model, checkpoint, select_model branch, results and factsheet table, and
           proves it by running it from an empty folder
factsheet  prints the LaTeX table and the paragraph on complexity from the results measured by eval.py
results    restores the images of --data_dir and writes the zip for the evaluation server
"""

import argparse
import re
from pathlib import Path

from utils.challenge.rules import EDITIONS, get_edition
from utils.data.datasets import open_dataset
from utils.errors import HarnessError, exit_on_harness_error
from utils.files import file_sha256
from utils.measure.environment import choose_device
from utils.options import SANDBOX_MODES, SPLITS, add_device, add_model, parse, refuse
from utils.record import RECORDS_FILE, Record, read_results
from utils.request import ModelChoice, one_entry
from utils.results.tables import latex_table
from utils.resumable import Rules, opened_runner
from utils.submission.checks import FAIL, check_submission
from utils.submission.packing import complexity_paragraph, pack
from utils.submission.results_zip import TeamFile, read_team, write_results
from utils.zoo.registry import ModelEntry, Origin, sources_sha256


def main() -> int:
    args = arguments()
    if args.command == "factsheet":
        refuse(
            ("--data_dir", "--split", "--edition", "--requirements", "--sandbox", "--out_file"),
            "is not for `factsheet`",
        )
    if args.command == "check":
        refuse(("--results", "--out_file"), "is not for `check`")
    ids = () if args.model_id is None else (args.model_id,)
    entry = one_entry(ModelChoice(ids, args.model_file, args.checkpoint))
    if args.command != "results":
        refuse(("--team", "--names", "--device"), f"is not for `{args.command}`")
    else:
        refuse(("--results", "--edition", "--requirements"), "is not for `results`")
        return make_results(entry, args)
    if args.command == "factsheet":
        record = measured(entry, args.results)
        print(f"{latex_table([record])}\n{complexity_paragraph(record)}", end="")
        return 0
    packed = measured(entry, args.results) if args.command == "pack" else None  # better known before the checks
    dataset = open_dataset(args.data_dir, args.split) if args.data_dir else None
    requirements = read_requirements(args.requirements) if args.requirements else None
    checks = check_submission(entry, requirements, dataset, get_edition(args.edition), args.sandbox)
    for check in checks:
        print(f"{check.status}  {check.rule}: {check.detail}")
    failed = [check.rule for check in checks if check.status == FAIL]
    if failed:
        print(f"\n{entry.full_name}: {len(failed)} of {len(checks)} rules broken")
        return 1
    print(f"\n{entry.full_name}: no rule broken")
    if packed:
        path = args.out_file or Path("submissions") / f"{Path(entry.file).stem}.zip"
        names = pack(entry, packed, path, args.sandbox)
        print(f"{path}: {', '.join(names)}; unpacked into an empty folder it restores the sample bit by bit")
    return 0


def make_results(entry: ModelEntry, args: argparse.Namespace) -> int:
    """Write the zip for the evaluation server, and say what is in it."""
    if not args.data_dir:
        raise HarnessError("--data_dir: is missing; name the folder whose LR images the server scores")
    dataset, team = open_dataset(args.data_dir, args.split), read_team(args.team) if args.team else TeamFile()
    path = args.out_file or Path("submissions") / f"{Path(entry.file).stem}_{args.split}.zip"
    rules = None if entry.origin == Origin.REGISTRY else Rules(path.parent / "logs", sandbox=args.sandbox)
    with opened_runner(entry, choose_device(args.device), rules) as runner:
        written = write_results(runner, dataset, path, team, args.names == "lr")
    size = path.stat().st_size / 2**20
    print(f"{path}: {written.images} images and readme.txt, {size:.1f} MiB; {written.runtime_s:.4f} s per image")
    if written.psnr is not None and written.ssim is not None:
        print(f"Read back: {written.psnr:.2f} dB PSNR, {written.ssim:.4f} SSIM")
    return 0


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("command", choices=("check", "pack", "factsheet", "results"))
    add_model(parser)
    parser.add_argument(
        "--data_dir", type=Path, help="check the PSNR on these images; only the challenge's whole folder counts"
    )
    parser.add_argument("--split", default="valid", choices=SPLITS)
    parser.add_argument(
        "--edition",
        type=int,
        choices=EDITIONS,
        default=max(EDITIONS),
        help="year of the threshold (default %(default)s)",
    )
    parser.add_argument("--requirements", type=Path, metavar="FILE", help="the organizers' requirements.txt")
    parser.add_argument(
        "--results", type=Path, default=Path("results"), metavar="DIR", help="results folder of eval.py"
    )
    parser.add_argument(
        "--sandbox", default="auto", choices=SANDBOX_MODES, help="sandbox of the submission's code (default: auto)"
    )
    parser.add_argument("--team", type=Path, metavar="TOML", help="extra_data and description for the readme.txt")
    parser.add_argument("--names", default="hr", choices=("hr", "lr"), help="0801.png (hr, default) or 0801x4.png")
    add_device(parser)
    parser.add_argument("--out_file", type=Path, metavar="FILE.zip", help="default: submissions/teamNN_Name.zip")
    return parse(parser, {"--out": "--out_file"})


def measured(entry: ModelEntry, folder: Path) -> Record:
    """Return the entry's complete record. Raise HarnessError if there is none of this file with these weights."""
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
