"""The entries of an organizers' repository, read from the syntax tree of its test_demo.py without running it."""

import ast
import hashlib
import re
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

from utils.errors import HarnessError, in_one_line
from utils.files import file_sha256
from utils.isolation.answers import RepositoryAnswer
from utils.record import Repository
from utils.zoo.registry import ModelEntry, Origin

PROGRAM, FUNCTION = "test_demo.py", "select_model"
NAME_CHARACTERS = re.compile(r"[^\w.+-]+")  # characters not allowed in a row's name, which is also a folder's
NAME_LENGTH = 60


def repository_entries(folder: Path | str, trust_checkpoint: bool = False) -> list[ModelEntry]:
    """Return a ModelEntry for each model id that an organizers' `select_model` compares `model_id` with, in order.

    `folder` is the checkout. Raise HarnessError if it is not one.
    """
    folder = Path(folder).resolve()
    branches = _branches(folder)
    if not branches:
        raise HarnessError(
            f"{folder / PROGRAM}: {FUNCTION} compares model_id with no number; write if model_id == 1: …"
        )
    return [
        ModelEntry(
            id=model_id,
            name=_name_in(branch) or unnamed(model_id),
            file=str(folder / PROGRAM),
            class_name=FUNCTION,
            arguments={"model_id": model_id},
            checkpoint="",
            provenance=f"{FUNCTION} of {folder.name}",
            origin=Origin.REPOSITORY,
            trust_checkpoint=trust_checkpoint,
        )
        for model_id, branch in branches.items()
    ]


def described(entry: ModelEntry, answer: RepositoryAnswer) -> tuple[ModelEntry, Repository, list[str]]:
    """Return a repository's entry, completed by the built model's answer, with its fingerprint and notes.

    `answer` comes from the worker and is not trusted: only names and a range are taken from it.
    """
    data_range = answer.data_range
    if data_range not in (1.0, 255.0):
        raise HarnessError(f"{FUNCTION} gives data_range {data_range:g}, expected 1.0 or 255.0")
    folder = Path(entry.file).parent
    name = entry.name
    if name == unnamed(entry.id):
        name = clean_name(re.sub(r"^\d+_", "", answer.name)) or name
    notes = [note[:300] for note in answer.notes][:10]
    try:
        files = {path.resolve() for path in map(Path, answer.files)}
        known = fingerprint(entry, sorted(str(path) for path in files if path.is_relative_to(folder)))
    except OSError as error:
        raise HarnessError(f"says that it read a file that cannot be read ({in_one_line(error)})") from error
    return replace(entry, name=name, data_range=float(data_range)), known, notes


def unnamed(model_id: int) -> str:
    """Return a row's name for a model whose branch does not name it."""
    return f"model_{model_id}"


def clean_name(text: str) -> str:
    """Turn a text into a valid name of a row."""
    return NAME_CHARACTERS.sub("_", text).strip("._")[:NAME_LENGTH]


def fingerprint(entry: ModelEntry, files: Iterable[str]) -> Repository:
    """Return the identity of a repository's entry: its branch's sha256 and that of each file."""
    folder = Path(entry.file).parent
    branch = _branches(folder).get(entry.id, [])
    source = "\n".join(ast.unparse(node) for node in branch)
    return Repository(
        folder=str(folder),
        model_id=entry.id,
        branch_sha256=hashlib.sha256(source.encode()).hexdigest(),
        files={
            str(path.relative_to(folder)): file_sha256(path) if path.is_file() else None
            for path in (folder / name for name in files)
        },
    )


def _branches(folder: Path) -> dict[int, list[ast.stmt]]:
    """Return {model id: body} of the branches of select_model, in the file's order."""
    path = Path(folder) / PROGRAM
    _, function = parsed_program(read_program(path), path)
    branches: dict[int, list[ast.stmt]] = {}
    for node in ast.walk(function):
        if isinstance(node, ast.If):
            for model_id in compared_ids(node.test):
                branches.setdefault(model_id, node.body)
    return dict(sorted(branches.items()))


def read_program(path: Path) -> bytes:
    """Return the text of a test_demo.py. Raise HarnessError if it cannot be read."""
    try:
        return path.read_bytes()
    except OSError as error:
        raise HarnessError(f"{path}: cannot be read ({error.strerror}); name an organizers' repository") from error


def parsed_program(source: bytes, path: Path) -> tuple[ast.Module, ast.FunctionDef]:
    """Return the syntax tree of a test_demo.py, and its `select_model`. Raise HarnessError if it has none."""
    try:
        tree = ast.parse(source)
    except (SyntaxError, ValueError) as error:
        raise HarnessError(f"{path}: cannot be read as Python ({error}); name an organizers' repository") from error
    functions = [node for node in tree.body if isinstance(node, ast.FunctionDef) and node.name == FUNCTION]
    if not functions:
        raise HarnessError(f"{path}: has no function {FUNCTION}; name an organizers' repository")
    return tree, functions[-1]


def compared_ids(test: ast.expr) -> list[int]:
    """Return the whole numbers that a condition such as `model_id == 7` or `model_id in (7, 8)` compares it with."""
    if not (isinstance(test, ast.Compare) and len(test.ops) == 1 and ast.unparse(test.left).endswith("model_id")):
        return []
    values = []
    if isinstance(test.ops[0], (ast.Eq, ast.In)):
        constants = [node.value for node in ast.walk(test.comparators[0]) if isinstance(node, ast.Constant)]
        values = [value for value in constants if type(value) is int]
    return values


def _name_in(branch: list[ast.stmt]) -> str:
    """Return the constant part of what a branch assigns to `name`, such as f"{model_id:02}_NanoSR"."""
    nodes = (inner for statement in branch for inner in ast.walk(statement))
    for node in (node for node in nodes if isinstance(node, ast.Assign)):
        targets = [ast.unparse(target) for target in node.targets]
        if any("name" in target.split(", ")[0].strip("(") for target in targets):
            constants = [inner.value for inner in ast.walk(node.value) if isinstance(inner, ast.Constant)]
            words = [value for value in constants if isinstance(value, str) and re.search("[A-Za-z]", value)]
            if words:
                return clean_name(re.sub(r"^\d*_", "", words[0]))
    return ""
