"""The daemon's log: what others report in it."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path

import pytest

from peer.daemon import logs


@pytest.fixture
def recent(tmp_path: Path) -> Iterator[logs.Recent]:
    root = logging.getLogger()
    handlers, level, raising = root.handlers, root.level, logging.raiseExceptions
    yield logs.start(tmp_path, stderr=None)
    for handler in root.handlers:
        handler.close()
    root.handlers, logging.raiseExceptions = handlers, raising
    root.setLevel(level)


def test_zeroconf_that_finds_no_network_says_so_in_a_line(recent: logs.Recent) -> None:
    try:
        raise OSError(101, "Network is unreachable")
    except OSError as error:
        logging.getLogger("zeroconf").warning("Error with socket %d: %s", 18, error, exc_info=True)
    [seen] = recent.lines(None)
    assert seen.endswith("WARNING Error with socket 18: [Errno 101] Network is unreachable")


def test_an_error_that_zeroconf_does_not_name_is_named(recent: logs.Recent) -> None:
    try:
        raise OSError(101, "Network is unreachable")
    except OSError:
        logging.getLogger("zeroconf").warning("Exception occurred", exc_info=True)
    [seen] = recent.lines(None)
    assert seen.endswith("Exception occurred: OSError(101, 'Network is unreachable')")
