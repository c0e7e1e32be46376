"""What `eval.py` does: it measures the models that its arguments name, or shows what was measured."""

from tqdm import tqdm

from utils.arguments import chosen_entries
from utils.challenge.rules import get_edition
from utils.challenge.score_tables import score_markdown, score_records
from utils.data.datasets import open_dataset, open_folders
from utils.data.images import to_tensor
from utils.data.sample import default_data_dir
from utils.errors import HarnessError
from utils.evaluate.fastest import FASTEST_FILE, fastest_form
from utils.evaluate.measurement import ALONE, Plan
from utils.evaluate.sharding import joined_shard
from utils.files import write_text
from utils.measure.environment import choose_device
from utils.measure.precision import cost_line
from utils.options import refuse
from utils.progress import progress
from utils.referee.process import Limits
from utils.referee.rows import Row, Rules
from utils.referee.sandbox import choose_sandbox
from utils.results.record import RECORDS_FILE, current_records, read_incomplete, read_results, with_distinct_names
from utils.results.report import write_report
from utils.results.tables import write_tables
from utils.zoo.registry import Origin, register

APART = ("--time_limit", "--memory_limit", "--sandbox")  # options about models in processes of their own
MEASURES = (
    "--runs",
    "--warmup",
    "--repeats",
    "--workers",
    "--fresh",
    "--save_images",
    "--isolated",
    "--device",
    *APART,
)


def measure_or_show(args):
    """Do what eval.py's arguments ask for; return the exit status."""
    if not args.score:
        refuse(("--edition",), "is for --score; add it, or leave this out")
    if args.show:
        refuse(MEASURES, "is for measuring; leave it out with --show")
    elif not (args.isolated or args.model_file or args.repository):
        refuse(APART, "is for models in processes of their own; add --isolated, or leave this out")
    if args.show:
        return show(stored_records(args), args)
    with joined_shard() as shard:
        if (args.isolated or args.repository) and shard.world > 1:
            raise HarnessError("--isolated: measures one model after the other; leave out torchrun or --isolated")
        return run(args, shard)


def run(args, shard):
    """Measure the models that the arguments name, and show them; return the exit status."""
    edition = get_edition(args.edition) if args.score else None
    device = choose_device(args.device, shard.local_rank)
    dataset = open_data(args, shard)

    def fastest(entry, registry):
        return fastest_here(entry, registry, dataset, device, args, shard)

    entries = chosen_entries(args, edition and edition.baseline_id, fastest)
    results = args.results / RECORDS_FILE
    read_results(results)  # a file that cannot be used is better known before the work than after it
    if shard.is_first and any(runs_apart(entry, args) for entry in entries):
        print(f"Strangers' code: {choose_sandbox(args.sandbox)[1]}")
    for precision in {entry.variant["precision"] for entry in entries if entry.variant.get("backend") == "fast"}:
        if shard.is_first and (line := cost_line(device, precision)):
            print(line)
    keys = [measure_entry(entry, entries, dataset, device, results, args, shard) for entry in entries]
    if not shard.is_first:
        return 0
    records = current_records(results, keys)
    if args.register is not None and records[0]["status"] == "complete":
        register(entries[0])  # now that it has been seen to run
    return show(records, args, dataset)


def stored_records(args):
    """Return the records that --show means: all that there are, or the registry's of --model_id and the baseline."""
    if args.model_file or args.repository or args.backend or args.precision or args.register is not None:
        raise HarnessError("--show: measures nothing, so it takes models by --model_id alone, or all there are")
    results = args.results / RECORDS_FILE
    records = current_records(results, read_results(results) | read_incomplete(results))
    if not records:
        raise HarnessError(f"{results}: holds no results; leave out --show to measure some")
    if not args.model_id:
        return records
    registered = [record for record in records if record["model"]["origin"] == Origin.REGISTRY]
    if unknown := set(args.model_id) - {record["model"]["id"] for record in registered}:
        raise HarnessError(f"--model_id {min(unknown)}: not in {results}; leave out --show to measure it")
    wanted = {*args.model_id, get_edition(args.edition).baseline_id if args.score else None}
    return [record for record in registered if record["model"]["id"] in wanted]


def open_data(args, shard=ALONE):
    """Open the data that the arguments name, by default the sample, which the first process makes."""
    if args.data_dir and (args.hr or args.lr):
        raise HarnessError("--data_dir: holds both kinds of images; leave it out with --hr and --lr")
    if shard.is_first and not (args.data_dir or args.hr or args.lr):
        default_data_dir()
    shard.wait()
    if args.hr or args.lr:
        dataset = open_folders(args.hr, args.lr, args.dataset)
    else:
        dataset = open_dataset(args.data_dir or default_data_dir(), args.dataset)
    if shard.is_first:
        print(f"Data: {dataset.label}, in {dataset.folder}")
    return dataset


def fastest_here(entry, registry, dataset, device, args, shard):
    """Return the form of a model that the first process finds the fastest on the data's first image."""
    choice = None
    if shard.is_first:
        lr = to_tensor(dataset.pairs[0].read_lr(), entry.data_range)
        choice = fastest_form(entry, registry, args.precision, lr, device, args.results / FASTEST_FILE)
        print(f"{entry.name}: {choice}")
    return shard.from_first(choice and choice.entry)


def measure_entry(entry, entries, dataset, device, results, args, shard):
    """Measure one model into the results; return the key of its row.

    A stranger's model runs in a process of its own. What stops one of several models costs its row; under torchrun it
    stops all, for other processes may be waiting for this one, and end with it.
    """
    rules = rules_of(entry, args) if runs_apart(entry, args) else None
    keep = args.save_images or args.report or not dataset.has_hr
    save_dir = args.results / "images" / entry.slug if keep else None
    plan = Plan(args.runs, args.warmup, args.repeats, args.workers)
    row = Row(entry, results, args.fresh)
    if name := row.measured_before(rules, device, dataset, plan, save_dir):
        tqdm.write(f"{name}: measured before, unchanged")
        return entry.key
    passes = plan.passes(len(shard.part_of(dataset).pairs))
    with progress(total=passes, desc=entry.name, disable=not shard.is_first) as bar:
        reason = row.measure(
            rules,
            device,
            dataset,
            plan,
            shard,
            save_dir=save_dir,
            on_pass=bar.update,
        )
    if reason:
        if rules:
            reason += f" (its output: {rules.logs})"
        several = args.isolated or args.repository or (len(entries) > 1 and not args.model_file)
        if not several or shard.world > 1:
            raise HarnessError(reason)
        tqdm.write(f"{row.name}: {reason}")
    shard.wait()  # the first process still times its steady passes, and not beside the next model
    return entry.key


def runs_apart(entry, args):
    """Return whether an entry's code runs in a process of its own: whatever is not the registry's does."""
    return args.isolated or entry.origin != Origin.REGISTRY


def rules_of(entry, args):
    """How a model is run that gets a process of its own."""
    memory = args.memory_limit * 2**30 if args.memory_limit else Limits.memory_bytes
    limits = Limits(60 * args.time_limit, memory)
    repository = args.repository if entry.origin == Origin.REPOSITORY else None
    return Rules(args.results / "logs", limits, args.sandbox, repository)


def show(records, args, dataset=None):
    """Write and print the views of the records; return the exit status, 1 if a model has no complete one.

    `dataset`, which a report shows images of, is opened here if none is given.
    """
    records = with_distinct_names(records)
    print(f"\n{write_tables(args.results, records)}")
    print(f"Results: {args.results / RECORDS_FILE}; tables: {args.results}/factsheet.txt, .md, .tex")
    complete = [record for record in records if record["status"] == "complete"]
    if args.report and complete:
        write_report(args.report / "report.html", complete, dataset or open_data(args), args.results / "images")
        print(f"Report: {args.report / 'report.html'}")
    if args.score:
        edition = get_edition(args.edition)
        scores = score_markdown(score_records(complete, edition))
        write_text(args.results / "scores.md", scores)
        print(scores)
    return int(len(complete) < len(records))
