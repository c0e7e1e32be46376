"""A team's TOML file: the facts in the results' readme.txt and the factsheet that cannot be measured.

docs/team.toml is an example with all keys. Each key may be left out.
"""

from pathlib import Path
from typing import Annotated

from msgspec import Meta, Struct

from utils.files import read_toml
from utils.typed import converted

Text = Annotated[str, Meta(max_length=10_000)]


class Team(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The participants. `username` is for the evaluation server. The two entries are the best of their phase."""

    name: Text = ""
    leader: Text = ""
    address: Text = ""
    email: Text = ""
    members: tuple[Text, ...] = ()
    affiliations: tuple[Text, ...] = ()
    username: Text = ""
    development_entry: Text = ""
    validation_entry: Text = ""
    code: Text = ""


class Method(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The method in the team's words, and how it was trained.

    `run` is a folder that train.py wrote, relative to this file. It supplies these keys if they are missing: `patches`,
    `batch`, `optimizer`, `loss`, `learning_rate`, `schedule`, `iterations`, `duration`.
    """

    architecture: Text = ""
    data: Text = ""
    pairs: Annotated[int, Meta(ge=0)] = 0
    run: Text = ""
    patches: Text = ""
    batch: Annotated[int, Meta(ge=0)] = 0
    optimizer: Text = ""
    loss: Text = ""
    learning_rate: Text = ""
    schedule: Text = ""
    iterations: Annotated[int, Meta(ge=0)] = 0
    duration: Text = ""
    hardware: Text = ""


class TeamFile(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`title` is the factsheet's, `extra_data` and `description` are lines of the results' readme.txt."""

    title: Text = ""
    extra_data: bool = False
    description: Annotated[str, Meta(max_length=1000)] = "PyTorch"
    references: tuple[Text, ...] = ()
    team: Team = Team()
    method: Method = Method()


def read_team(path: Path) -> TeamFile:
    """Return a team's TOML file. Raise HarnessError if it cannot be read, or has an unknown key."""
    hint = "docs/team.toml has all keys"
    return converted(read_toml(path, hint), TeamFile, path, hint)
