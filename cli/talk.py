"""Speaking with the daemon: one request, lines on the way, one answer. Without a daemon, becoming one."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn

import click

from cli.arguments import Place
from cli.text import clean
from peer.errors import NoDaemonError, PeerdError
from peer.local import (
    SYSTEM_SOCKET,
    Client,
    ForbiddenSocketError,
    HungDaemonError,
    connect,
    default_socket,
    error_of,
    is_barred,
    restarting,
)

Frame = dict[str, Any]
ANSWER_S = 30.0  # how long a daemon may take for what it should do at once; its loop never waits (guess)


class SilentDaemonError(PeerdError):
    """A daemon is there and does not answer. No NoDaemonError: no command may become a second daemon."""

    exit_code = NoDaemonError.exit_code


class BarredDaemonError(SilentDaemonError):
    """It is not this user's to ask, or the service's, which has no socket just now."""


def show_progress(line: str) -> None:
    """A line of progress, for a person who waits at a terminal."""
    if sys.stderr.isatty():
        click.echo(clean(line), err=True)


def open_client(place: Place) -> Client:
    """A connection to the daemon. Raises NoDaemonError if there is none, SilentDaemonError if it hangs, is a
    service between two lives, or not this user's to ask, or ConfigError if its socket is a stranger's."""
    path = default_socket(place.socket, os.environ, place.state)
    try:
        return connect(path)
    except HungDaemonError as error:
        raise SilentDaemonError(str(error)) from error
    except ForbiddenSocketError as error:
        raise BarredDaemonError(str(error)) from error
    except NoDaemonError as error:
        if path == SYSTEM_SOCKET:
            raise SilentDaemonError(restarting()) from error
        if is_barred(place.socket, os.environ, place.state):
            raise BarredDaemonError(str(ForbiddenSocketError(SYSTEM_SOCKET))) from error
        raise


def converse(
    client: Client,
    request: Frame,
    on_progress: Callable[[str], None] = show_progress,
    timeout_s: float | None = ANSWER_S,
) -> tuple[Frame, int | None]:
    """Send a request; its "done" frame and the descriptor that came with it, which is the caller's to close.

    timeout_s: of silence, None for any. Raises the error the daemon reports, or NoDaemonError on silence.
    """
    client.send(request)
    while True:
        try:
            frame, fd = client.receive(timeout_s)
        except TimeoutError as error:
            raise NoDaemonError(f"{error}; see 'peerd logs', or start it again") from error
        if frame["op"] == "done":
            return frame, fd
        if fd is not None:
            os.close(fd)
        if frame["op"] == "error":
            raise error_of(frame)
        if frame["op"] != "progress":
            raise PeerdError(
                f"the daemon answered {request['op']!r} with {frame['op']!r}; are both of one version?"
            )
        on_progress(str(frame.get("text", "")))


def ask(place: Place, request: Frame) -> Frame:
    """One request on a connection of its own, where no descriptor is awaited."""
    with open_client(place) as client:
        frame, fd = converse(client, request)
    if fd is not None:
        os.close(fd)
    return frame


def become_daemon(place: Place, request: Frame | None = None, options: Sequence[str] = ()) -> NoReturn:
    """Turn this process into a daemon in the foreground, which begins with the request. options: more words
    for its command line.

    The request may hold a key, so it goes through a memfd and never into arguments or the environment.
    """
    command = [sys.executable, "-P", "-m", "peer", *options]
    command += ["--socket", str(Path(place.socket).absolute())] if place.socket else []
    command += ["--state", str(Path(place.state).absolute())] if place.state else []
    if request is not None:
        command += ["--request-fd", str(_inherited(request))]
    environment = {name: value for name, value in os.environ.items() if name != "PEERD_KEY"}
    sys.stdout.flush()
    sys.stderr.flush()
    os.execve(sys.executable, command, environment)


def _inherited(request: Frame) -> int:
    import msgpack

    fd = os.memfd_create("peerd-request", 0)  # without MFD_CLOEXEC: the daemon inherits it
    with os.fdopen(os.dup(fd), "wb") as file:
        file.write(msgpack.packb(request))
    os.lseek(fd, 0, os.SEEK_SET)
    return fd
