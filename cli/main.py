"""The entry of `peerd`: commands are loaded when they are used, errors become one line and an exit code."""

from __future__ import annotations

import errno
import importlib
import os
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click

from cli.arguments import Place, place_options
from cli.text import one_line
from peer.errors import PeerdError, StateError
from peer.version import VERSION

USAGE = 2
INTERRUPTED = 130  # 128 + SIGINT, as shells have it
INTERNAL = 70  # sysexits.h: EX_SOFTWARE
_NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)

# Each name is a file of this folder with a `command` in it; the text is what `peerd --help` shows.
COMMANDS = {
    "create": "Make a session and join it; prints the join key.",
    "join": "Join a session on this network.",
    "leave": "Hand over, say goodbye, keep the checkpoint.",
    "key": "Show a session's join key again.",
    "rekey": "A new key for a session, to keep a device out.",
    "block": "Have nothing to do with a device.",
    "unblock": "Let a blocked device in again.",
    "status": "Who trains, how well, and how many bytes it takes.",
    "sessions": "Sessions this device knows or sees on the network.",
    "logs": "What the daemon or a session has to say.",
    "export": "Write a session's model as a safetensors or ONNX file.",
    "doctor": "Why no peers are found, and what to do.",
    "daemon": "Run the daemon in the foreground.",
    "service": "Run the daemon as a service of this device.",
    "rehearse": "Many devices in virtual time, on this one.",
    "demo": "Several devices on this machine learn together.",
}


class Commands(click.Group):
    """A group that imports a command's module when the command is asked for."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        command: click.Command = importlib.import_module(f"cli.{cmd_name}").command
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl(list(COMMANDS.items()))


@click.group(
    cls=Commands,
    context_settings={"help_option_names": ["-h", "--help"]},
    invoke_without_command=True,  # to show the help
    subcommand_metavar="COMMAND [ARGS]...",
)
@click.version_option(VERSION, message="%(prog)s %(version)s")
@place_options
@click.pass_context
def peerd(ctx: click.Context, socket: str | None, state: str | None) -> None:
    """Trains one model together with the other devices on the network, with no server."""
    ctx.obj = Place(socket, state)
    if ctx.invoked_subcommand is None:
        click.echo(ctx.get_help(), err=True)
        ctx.exit(USAGE)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run a command and exit with its code (peer/errors.py says which error has which)."""
    sys.exit(run(arguments))


def run(arguments: Sequence[str] | None = None) -> int:
    """Run a command; the exit code."""
    try:
        code: Any = peerd.main(args=arguments, prog_name="peerd", standalone_mode=False)
    except PeerdError as error:
        return _say(str(error), error.exit_code)
    except click.UsageError as error:
        command = error.ctx.command_path if error.ctx is not None else "peerd"
        return _say(f"{error.format_message().rstrip('.')}; see '{command} --help'", error.exit_code)
    except click.ClickException as error:
        return _say(error.format_message(), error.exit_code)
    except (click.Abort, KeyboardInterrupt):
        return _say("interrupted", INTERRUPTED)
    except BrokenPipeError:
        _no_more_output()
        return 128 + 13  # SIGPIPE: whoever read has enough
    except OSError as error:
        if error.errno not in _NO_ROOM or error.filename is not None:
            return _bug(error)
        _no_more_output()
        said = f"the output could not be written: {error.strerror}; send it where there is room"
        return _say(said, StateError.exit_code)
    except Exception as error:  # noqa: BLE001 - the last one there is; it is written down and ends with 70
        return _bug(error)
    return code if isinstance(code, int) else 0


def _no_more_output() -> None:
    """Let what standard output did not take go nowhere, or Python complains of it at its end."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _bug(error: Exception) -> int:
    return _say(f"internal error, a bug: {type(error).__name__}: {error}; {_write_down()}", INTERNAL)


def _say(text: str, code: int) -> int:
    click.echo(f"peerd: {one_line(text)}", err=True)
    return code


def _write_down() -> str:
    """Keep the traceback in the state folder, or show it; a sentence that says which."""
    from peer.places import state_folder

    details = traceback.format_exc()
    try:
        log: Path = state_folder(None, os.environ) / "cli-error.log"
    except PeerdError as error:
        click.echo(details, err=True)
        return f"see above (there is no folder to keep it in: {error})"
    try:
        log.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        log.write_text(details, encoding="utf-8")
    except OSError as error:
        click.echo(details, err=True)
        return f"see above (it could not be written to {log}: {error.strerror})"
    return f"details are in {log}, and what the daemon did in 'peerd logs'"


if __name__ == "__main__":
    main()
