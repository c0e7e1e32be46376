"""The registry entries that a command line's arguments mean; utils/options.py has the arguments."""

import json
from dataclasses import replace

from utils.errors import HarnessError
from utils.referee.repository import repository_entries
from utils.zoo.registry import (
    ModelEntry,
    Origin,
    entry_from_file,
    find_entry,
    find_variant,
    read_registry,
    with_checkpoint,
)


def submitted_entry(args):
    """Return the entry of the model that `add_model_file`'s arguments describe; giving it is the consent to run it."""
    if not (args.class_name and args.checkpoint):
        raise HarnessError("--model_file: needs --class and --checkpoint too")
    try:
        arguments = json.loads(args.args or "[]")
    except ValueError as error:
        raise HarnessError(f"--args {args.args}: not JSON ({error}); write a list or an object") from error
    if not isinstance(arguments, (list, dict)):
        raise HarnessError(f"--args {args.args}: neither a list nor an object")
    if isinstance(arguments, dict) and not isinstance(arguments.get("*", []), list):
        raise HarnessError(f'--args {args.args}: "*" holds the positional arguments, a list')
    options = args.data_range or 1.0, args.state_key or "", args.lenient
    return entry_from_file(args.model_file, args.class_name, arguments, args.checkpoint, *options)


def check_without_file(args):
    """Raise HarnessError if an option that describes a --model_file is given without one: it would be ignored."""
    given = {
        "--class": args.class_name,
        "--args": args.args,
        "--state_key": args.state_key,
        "--data_range": args.data_range,
        "--lenient": args.lenient,
    }
    for name, value in given.items():
        if value and not args.model_file:
            raise HarnessError(f"{name}: describes a --model_file; name that file, or leave {name} out")


def one_entry(args):
    """Return the one entry that `--model_id` or `--model_file` names. Raises HarnessError unless it is one of them."""
    if (args.model_id is None) == (args.model_file is None):
        raise HarnessError("name one model, by --model_id or by --model_file")
    check_without_file(args)
    if args.model_file:
        return submitted_entry(args)
    entry = find_entry(args.model_id, read_registry())
    return with_checkpoint(entry, args.checkpoint)


def chosen_entries(args, baseline_id=None, fastest=None):
    """Return the entries to measure, in order: those asked for, a variant's plain form, the registry's `baseline_id`.

    `fastest(entry, registry)` gives the form of an entry that `--backend auto` means. It runs the entry in this
    process, so it is asked for the registry's alone.
    """
    registry = read_registry()
    check_without_file(args)
    if args.model_file and args.model_id:
        raise HarnessError("--model_id: names a model of the registry; leave it out with --model_file")
    if args.register is not None and not args.model_file:
        raise HarnessError("--register: needs --model_file, the model to write into the registry")
    if args.repository and (args.model_file or args.checkpoint):
        raise HarnessError("--repository: brings files and weights of its own; leave out --model_file and --checkpoint")
    if args.checkpoint and not args.model_file and len(set(args.model_id or ())) != 1:
        raise HarnessError("--checkpoint: needs exactly one --model_id, the model that it belongs to")
    if (args.backend or args.precision) and (args.model_file or args.repository):
        raise HarnessError(
            "--backend, --precision: choose among the registry's forms of a model; leave them out with --model_file "
            "and --repository"
        )
    if args.model_file:
        entries = [submitted_entry(args)]
        if args.register is not None:
            entries = [replace(entries[0], id=args.register)]
    elif args.repository:
        entries = repository_models(args)
    elif args.model_id:
        entries = [find_entry(model_id, registry) for model_id in dict.fromkeys(args.model_id)]
    else:
        entries = [entry for entry in registry if not entry.variant]
    if args.trust_checkpoint:
        entries = [replace(entry, trust_checkpoint=True) for entry in entries]
    if args.backend or args.precision:
        if args.backend == "auto":
            chosen = [fastest(entry, registry) for entry in entries]
        else:
            chosen = [find_variant(entry, registry, args.backend, args.precision) for entry in entries]
        entries = [*chosen, *(entry for entry in entries if entry not in chosen)]
    if args.checkpoint and args.model_id:  # it belongs to the one model that is named, in each of its forms
        entries = [with_checkpoint(entry, args.checkpoint) for entry in entries]
    if baseline_id is not None and not any(is_registered(entry, baseline_id) for entry in entries):
        entries = [*entries, find_entry(baseline_id, registry)]
    return entries


def is_registered(entry: ModelEntry, model_id: int) -> bool:
    """Return whether an entry is the registry's of this id."""
    return entry.origin == Origin.REGISTRY and entry.id == model_id


def repository_models(args):
    """Return the entries of `--repository`, those of `--model_id` if it is given."""
    entries = repository_entries(args.repository, args.trust_checkpoint)
    if not args.model_id:
        return entries
    if unknown := set(args.model_id) - {entry.id for entry in entries}:
        known = ", ".join(str(entry.id) for entry in entries)
        raise HarnessError(f"--model_id {min(unknown)}: not in {args.repository}/test_demo.py, which knows {known}")
    return [entry for entry in entries if entry.id in args.model_id]
