"""Options that several commands share, and what they turn into: a place to ask, a task, how to take part."""

from __future__ import annotations

import functools
import hashlib
import os
import stat
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import click

from peer import catalogue
from peer.config import MAX_TASK_TEXT, JoinOptions, check_address
from peer.errors import DataError, UsageError
from peer.grammar import parse_budget
from peer.quiet_hours import parse_quiet_hours

_F = TypeVar("_F", bound=Callable[..., Any])


@dataclass(frozen=True, slots=True)
class Place:
    """Where the daemon is asked for: the --socket and --state flags, None when not given."""

    socket: str | None = None
    state: str | None = None


def place_options(command: _F) -> _F:
    """Add --socket and --state."""
    command = click.option("--state", metavar="FOLDER", help="State folder of the daemon.")(command)
    return click.option("--socket", metavar="PATH", help="The daemon's socket.")(command)


def at_place(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add --socket and --state and hand them over as `place`, the group's where the command has none."""

    @place_options
    @click.pass_context
    @functools.wraps(command)
    def placed(ctx: click.Context, /, socket: str | None, state: str | None, **arguments: Any) -> Any:
        outer = ctx.obj if isinstance(ctx.obj, Place) else Place()
        return ctx.invoke(command, place=Place(socket or outer.socket, state or outer.state), **arguments)

    return placed


_DEFAULTS = JoinOptions()
_JOIN_OPTIONS = (
    click.option("--task", metavar="TASK", help=f"One of {', '.join(catalogue.TASKS)}, or a Python file."),
    click.option("--data", metavar="PATH", help="Folder with this device's data; a text for characters."),
    click.option("--shard", metavar="SHARD", help="Part of it: 3/8, dirichlet=0.1:3/8, speaker=jackson."),
    click.option("--peer", "peers", multiple=True, metavar="HOST:PORT", help="A member; repeatable."),
    click.option(
        "--device",
        type=click.Choice(["auto", "cpu", "cuda"]),
        default=_DEFAULTS.device,
        show_default=True,
        help="Where to compute; auto takes a GPU that works, else the CPU.",
    ),
    click.option("--listen", metavar="HOST:PORT", help="Where to be reached; any free port by default."),
    click.option(
        "--interface", "interfaces", multiple=True, metavar="IF", help="Look here alone; repeatable."
    ),
    click.option(
        "--timeout",
        "timeout_s",
        metavar="SECONDS",
        type=click.FloatRange(0, 1e6),
        default=_DEFAULTS.timeout_s,
        show_default=True,
        help="How long to wait for a first link.",
    ),
    click.option(
        "--budget",
        metavar="2MB/min",
        help="Most to send in any minute; also per h, day, month. Kept until given anew; none lifts it.",
    ),
    click.option(
        "--quiet-hours",
        metavar="22-7",
        help="Pause in these hours of each day, local time. Kept until given anew; none lifts them.",
    ),
    click.option(
        "--manners",
        type=click.Choice(catalogue.MANNERS),
        envvar="PEERD_MANNERS",
        help="Back off from heat, battery, and others that need the CPU (on, the default); mains: as on, and "
        "never on battery. Kept until given anew.",
    ),
    click.option("--insecure", is_flag=True, help="No TLS, and on this machine alone."),
)


def join_options(command: _F) -> _F:
    """Add the options that say how this device takes part."""
    for option in reversed(_JOIN_OPTIONS):
        command = option(command)
    return command


@dataclass(frozen=True, slots=True)
class TaskChoice:
    """name: a built-in's, or "file" with the file's text and SHA-256."""

    name: str
    digest: str = ""
    text: str | None = None


def choose_task(word: str) -> TaskChoice:
    """The task a user means: a built-in or a Python file. Raises UsageError, DataError."""
    if word in catalogue.TASKS:
        return TaskChoice(word)
    path = Path(word)
    if not (word.endswith(".py") or "/" in word or os.path.isfile(word)):
        catalogue.task(word)
    try:
        data = path.read_bytes()
        text = data.decode("utf-8")
    except OSError as error:
        raise DataError(f"the task file {word} cannot be read: {error.strerror}; look at --task") from error
    except UnicodeDecodeError as error:
        raise DataError(
            f"the task file {word} is not UTF-8 text: byte {error.start} is {data[error.start]:#x}"
        ) from error
    if len(data) > MAX_TASK_TEXT:
        raise UsageError(
            f"the task file {word} has {len(data)} bytes, and {MAX_TASK_TEXT} are allowed; move what does "
            "not change into an installed package and import it"
        )
    _check_python(word, data)
    return TaskChoice("file", hashlib.sha256(data).hexdigest(), text)


def _check_python(word: str, data: bytes) -> None:
    """Compile the file, and run nothing of it. Raises DataError that names file and line."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # it is the learner that shows them
            compile(data, word, "exec", dont_inherit=True)
    except (SyntaxError, ValueError, RecursionError) as error:
        line = getattr(error, "lineno", None) or 1
        raise DataError(
            f"the task file {word} is not Python, line {line}: {getattr(error, 'msg', error)}"
        ) from error


def options_from(task: TaskChoice | None, arguments: dict[str, Any]) -> JoinOptions:
    """What `join_options` gave, checked. task: None for the session's. Raises UsageError, DataError."""
    if arguments["shard"] is not None and task is not None:
        catalogue.check_shard(task.name, arguments["shard"])
    for address in arguments["peers"]:
        check_address(address, needs_host=True)
    if arguments["listen"]:
        check_address(arguments["listen"])
    if arguments["budget"] is not None:
        parse_budget(arguments["budget"])
    if arguments["quiet_hours"] is not None:
        parse_quiet_hours(arguments["quiet_hours"])
    folder = arguments["data"]
    if folder is not None:
        check_data(folder)
    names = (
        "shard", "peers", "device", "listen", "interfaces", "timeout_s", "insecure", "budget", "quiet_hours",
        "manners",
    )  # fmt: skip
    return JoinOptions(
        data=str(Path(folder).absolute()) if folder is not None else None,
        task_file_text=task.text if task is not None else None,
        **{name: arguments[name] for name in names},
    )


def check_data(folder: str) -> None:
    """Raises DataError unless it is a folder, or the file that a task may want instead."""
    try:
        mode = os.stat(folder).st_mode
        found = stat.S_ISDIR(mode) or stat.S_ISREG(mode)
    except (FileNotFoundError, NotADirectoryError):
        found = False
    except OSError as error:
        raise DataError(
            f"the folder {folder} may not be looked at: {error.strerror}; look at --data, or make it readable"
        ) from error
    if not found:
        raise DataError(f"there is no folder and no file {folder}; look at --data")
