"""Measure models and print the factsheet table: python eval.py [--model_id N …] [--data_dir D]

python eval.py --model_id 7 0 --score            NanoSR and EFDN on the built-in sample, scored
python eval.py --model_file team42_Net.py        a model that is not in the registry, in a separate process
python eval.py --show --report page              measure nothing; show the tables and write the page of --results
"""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from utils.errors import exit_on_harness_error
from utils.files import project_version
from utils.options import (
    SANDBOX_MODES,
    SPLITS,
    add_device,
    add_edition,
    add_model,
    amount,
    natural,
    parse,
    positive,
    refuse,
)

if TYPE_CHECKING:
    from utils.request import Request

BACKENDS = ("plain", "fast", "winograd", "amx", "triton", "auto")
LIMITS = (
    "--time_limit",
    "--pass_limit",
    "--memory_limit",
    "--sandbox",
)  # options about models in separate processes
MEASURES = (
    "--runs",
    "--warmup",
    "--repeats",
    "--luma",
    "--workers",
    "--fresh",
    "--jobs",
    "--save_images",
    "--isolated",
    "--device",
    *LIMITS,
)
CHOOSES = ("--model_file", "--checkpoint", "--repository", "--backend", "--precision", "--register")


def main() -> int:
    args = parse(parser())
    check(args)
    from utils.measuring import run  # which imports torch: --help and a mistyped option need not wait for it

    return run(request_from(args))


def parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--version", action="version", version=project_version())
    models = parser.add_argument_group("models")
    add_model(models, several=True)
    models.add_argument("--repository", type=Path, metavar="DIR", help="measure the models of an organizers' checkout")
    models.add_argument("--register", type=natural, metavar="ID", help="add --model_file to the registry under this id")
    models.add_argument(
        "--trust_checkpoint",
        action="store_true",
        help="load checkpoints that hold more than tensors; this may run their author's code",
    )
    models.add_argument(
        "--backend", choices=BACKENDS, help="implementation of the network; auto: the fastest on this machine"
    )
    models.add_argument(
        "--precision", choices=("float32", "bfloat16", "float16"), help="number type of the computation"
    )
    data = parser.add_argument_group("data")
    data.add_argument(
        "--data_dir",
        type=Path,
        help="folder of HR and LR images (default: ../ if it holds the challenge's data, else the sample)",
    )
    data.add_argument("--hr", type=Path, metavar="DIR", help="folder of HR images, instead of --data_dir")
    data.add_argument("--lr", type=Path, metavar="DIR", help="folder of LR images (default: made from the HR images)")
    data.add_argument("--split", default="valid", choices=SPLITS, help="folders of the challenge (default: valid)")
    measuring = parser.add_argument_group("measuring")
    measuring.add_argument("--runs", type=positive, default=5, help="timed runs over the data set (default 5)")
    measuring.add_argument(
        "--warmup", type=natural, default=3, help="passes before the steady time is taken (default 3)"
    )
    measuring.add_argument("--repeats", type=positive, default=10, help="timed passes of the steady time (default 10)")
    measuring.add_argument(
        "--luma", action="store_true", help="take PSNR and SSIM on luma (BT.601), too, as most papers print them"
    )
    measuring.add_argument(
        "--workers", type=natural, help="threads that read and score during passes (default: 8 on a GPU, 0 on a CPU)"
    )
    measuring.add_argument("--fresh", action="store_true", help="do not resume an interrupted measurement")
    measuring.add_argument(
        "--jobs",
        type=positive,
        default=1,
        metavar="N",
        help="measure N models at once, each on its own GPU (default 1)",
    )
    add_device(measuring)
    isolation = parser.add_argument_group("isolation")
    isolation.add_argument(
        "--isolated", action="store_true", help="run each model in a separate process; a failure costs only its own row"
    )
    isolation.add_argument(
        "--time_limit", type=amount, default=60, metavar="MINUTES", help="limit of an isolated model (default 60)"
    )
    isolation.add_argument(
        "--pass_limit",
        type=amount,
        metavar="SECONDS",
        help="limit of one forward pass of an isolated model (default: none)",
    )
    isolation.add_argument(
        "--memory_limit",
        type=amount,
        metavar="GIB",
        help="memory limit of an isolated model (default: 90 %% of the memory)",
    )
    isolation.add_argument(
        "--sandbox", default="auto", choices=SANDBOX_MODES, help="sandbox of untrusted code (default: auto)"
    )
    output = parser.add_argument_group("output")
    output.add_argument(
        "--results",
        type=Path,
        default=Path("results"),
        metavar="DIR",
        help="folder of records and tables (default: results)",
    )
    output.add_argument("--show", action="store_true", help="measure nothing; show what --results holds")
    output.add_argument(
        "--score", action="store_true", help="score against the edition's baseline, which is measured, too"
    )
    add_edition(output)
    output.add_argument(
        "--report", type=Path, metavar="DIR", help="write a page of tables, plots and crops to this folder"
    )
    output.add_argument(
        "--save_images", action="store_true", help="write the restored images; always on without HR images"
    )
    return parser


def check(args: argparse.Namespace) -> None:
    """Raise HarnessError for an option that would be ignored."""
    if not args.score:
        refuse(("--edition",), "is for --score; add it, or leave this out")
    if args.show:
        refuse(MEASURES, "is for measuring; leave it out with --show")
        refuse(CHOOSES, "is for measuring; --show takes models by --model_id alone, or all there are")
    elif not (args.isolated or args.model_file or args.repository):
        refuse(LIMITS, "is for isolated models; add --isolated, or leave this out")


def request_from(args: argparse.Namespace) -> "Request":
    """Return the arguments as a Request."""
    from utils.evaluate.measurement import MeasurementPlan
    from utils.isolation.process import Limits
    from utils.request import DataChoice, IsolationChoice, ModelChoice, Request

    memory = args.memory_limit * 2**30 if args.memory_limit else Limits.memory_bytes
    limits = Limits(60 * args.time_limit, memory, pass_seconds=args.pass_limit)
    return Request(
        models=ModelChoice(
            ids=tuple(dict.fromkeys(args.model_id or ())),
            file=args.model_file,
            checkpoint=args.checkpoint,
            repository=args.repository,
            register=args.register,
            trust_checkpoint=args.trust_checkpoint,
            backend=args.backend,
            precision=args.precision,
        ),
        data=DataChoice(args.data_dir, args.hr, args.lr, args.split),
        plan=MeasurementPlan(args.runs, args.warmup, args.repeats, args.workers, args.luma),
        isolation=IsolationChoice(args.isolated, args.sandbox, limits),
        results=args.results,
        device=args.device,
        fresh=args.fresh,
        save_images=args.save_images,
        report=args.report,
        edition=args.edition if args.score else None,
        show=args.show,
        jobs=args.jobs,
    )


if __name__ == "__main__":
    exit_on_harness_error(main)
