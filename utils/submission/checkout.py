"""Insert a submission into the organizers' repository: its files, its branch in `select_model`, the steps left."""

import ast
import subprocess
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from utils.errors import HarnessError
from utils.files import file_sha256, writing
from utils.isolation.repository import FUNCTION, PROGRAM, compared_ids, parsed_program, read_program
from utils.submission.packing import branch_body, place_of
from utils.zoo.registry import ModelEntry, source_files

NEEDED = ("os", "torch")  # modules that the branch uses


@dataclass(frozen=True)
class Step:
    """One of the organizers' five steps. `done` is None if it is unknown."""

    text: str
    done: bool | None


def insert(entry: ModelEntry, checkout: Path) -> list[Path]:
    """Copy an entry's files into a checkout, and add its branch to `select_model`. Return the paths that it needs.

    Inserting an entry again changes nothing. Before writing anything, raise HarnessError if the id is taken, if
    `select_model` does not have the organizers' form, or if the checkout has other uncommitted changes.
    """
    files = {checkout / place: source for place, source in _places(entry)}
    program = checkout / PROGRAM
    before = read_program(program)
    after = with_branch(before, entry, program)
    paths = [program, *files]
    if others := sorted(set(_changed(checkout)) - {str(path.relative_to(checkout)) for path in paths}):
        raise HarnessError(f"{checkout}: has changes that are not committed ({', '.join(others[:3])}); commit them")
    for target, source in files.items():
        if target.is_file() and file_sha256(target) != file_sha256(source):
            raise HarnessError(f"{target}: is another file than {source}; move it away")
    with writing(checkout, "choose another --into"):
        for target, source in files.items():
            target.parent.mkdir(exist_ok=True)
            target.write_bytes(source.read_bytes())
        if after != before:
            program.write_bytes(after)
    return paths


def with_branch(source: bytes, entry: ModelEntry, program: Path) -> bytes:
    """Return the text of a test_demo.py with an entry's branch in `select_model`; change no other byte.

    Raise HarnessError if the id belongs to another model, or if there is no branch to insert it after.
    """
    tree, function = parsed_program(source, program)
    branches = _branches(function)
    if not branches:
        raise HarnessError(f"{program}: has no branches by model id in {FUNCTION}; name an organizers' repository")
    body = branch_body(entry)
    for branch in branches:
        if entry.id in compared_ids(branch.test):
            own = [node for node in branch.body if not isinstance(node, ast.Import)]
            if ast.dump(ast.Module(own, [])) == ast.dump(ast.parse("\n".join(body))):
                return source
            names = [node.id for statement in branch.body for node in ast.walk(statement) if isinstance(node, ast.Name)]
            name = next((name for name in names if name[:1].isupper()), "another model")
            raise HarnessError(f"{program}: id {entry.id} is taken, by {name}; ask the organizers for yours")
    last = branches[-1]
    compared = ast.unparse(last.test.left) if isinstance(last.test, ast.Compare) else "model_id"
    existing = source.splitlines(keepends=True)
    imported = {alias.asname or alias.name.partition(".")[0] for alias in _imports(tree)}
    indent = existing[last.lineno - 1][: last.col_offset].decode()
    inner = existing[last.body[0].lineno - 1][: last.body[0].col_offset].decode()
    inner = indent + 4 * " " if inner.strip() else inner
    lines = [f"{indent}elif {compared} == {entry.id}:"]
    lines += [f"{inner}import {name}" for name in NEEDED if name not in imported]
    lines += [f"{inner}{line}" for line in body]
    end = last.body[-1].end_lineno or 0
    newline = b"\r\n" if existing[end - 1].endswith(b"\r\n") else b"\n"
    if not existing[end - 1].endswith(b"\n"):
        existing[end - 1] += newline
    existing[end:end] = [line.encode() + newline for line in lines]
    return b"".join(existing)


def _branches(function: ast.FunctionDef) -> list[ast.If]:
    """Return the ifs and elifs of a function that compare a model id, in the file's order, without nested ones."""
    found: list[ast.If] = []
    waiting = list(reversed(function.body))
    while waiting:
        node = waiting.pop()
        if isinstance(node, ast.If):
            waiting += node.orelse if len(node.orelse) == 1 else []  # an elif
            found += [node] if compared_ids(node.test) else []
    return found


def _imports(tree: ast.Module) -> Iterator[ast.alias]:
    for node in tree.body:
        if isinstance(node, ast.Import):
            yield from node.names


def steps(entry: ModelEntry, checkout: Path | None) -> list[Step]:
    """Return the organizers' five steps in a team's order, marked as done as far as a checkout shows it."""
    places = dict(_places(entry))
    model, *_, checkpoint = places
    there: list[bool | None] = [None, None, None]
    sent = None
    if checkout:
        program = checkout / PROGRAM
        there = [_is_there(checkout / place, places[place]) for place in (model, checkpoint)]
        there.append(_has_branch(program, entry))
        sent = False if _changed(checkout) else None
    return [
        Step(f"register the team; its number is {entry.id:02}", True),
        Step(f"the network in {model}", there[0]),
        Step(f"the weights in {checkpoint}", there[1]),
        Step(f"a branch for id {entry.id} in {FUNCTION} of {PROGRAM}", there[2]),
        Step("commit, push, and send the organizers the command that clones it", sent),
    ]


def stage(checkout: Path, paths: Sequence[Path]) -> str:
    """Add paths to the checkout's index and return the `git diff --stat` of what a commit would contain."""
    _git(checkout, "add", "--force", *(str(path.relative_to(checkout)) for path in paths))
    return _git(checkout, "diff", "--cached", "--stat")


def _places(entry: ModelEntry) -> Iterator[tuple[str, Path]]:
    """Yield (place in a repository, file) of an entry's sources, then of its checkpoint."""
    for source in source_files(entry):
        yield place_of(source), source
    yield f"model_zoo/{entry.checkpoint_path.name}", entry.checkpoint_path


def _is_there(path: Path, source: Path) -> bool:
    return path.is_file() and file_sha256(path) == file_sha256(source)


def _has_branch(program: Path, entry: ModelEntry) -> bool:
    before = read_program(program)
    return with_branch(before, entry, program) == before


def _changed(checkout: Path) -> list[str]:
    """Return the paths of a checkout's uncommitted changes, without untracked files."""
    lines = _git(checkout, "status", "--porcelain", "--untracked-files=no", "-z").split("\0")
    return [line[3:] for line in lines if line]


def _git(checkout: Path, *words: str) -> str:
    try:
        done = subprocess.run(["git", "-C", str(checkout), *words], capture_output=True, check=False)
    except OSError as error:
        raise HarnessError(f"git: cannot be run ({error.strerror}); install it") from error
    if done.returncode:
        reason = done.stderr.decode(errors="replace").strip().splitlines()
        raise HarnessError(f"{checkout}: git {words[0]} fails ({reason[0] if reason else done.returncode})")
    return done.stdout.decode(errors="replace")
