"""Networks for tests of real daemons; on failure the report carries every device's status and log."""

from __future__ import annotations

from collections.abc import Generator, Iterator
from typing import Any

import pytest

from lan.bridge import Switch
from lan.device import Network
from lan.namespace import NamespaceRefusedError


def open_network(loopback: bool = True) -> Network:
    """A new network; fails with the reason when the kernel refuses one."""
    try:
        return Network(loopback)
    except NamespaceRefusedError as error:
        pytest.fail(str(error), pytrace=False)


@pytest.fixture
def network() -> Iterator[Network]:
    """A network for one test."""
    opened = open_network()
    yield opened
    opened.close()


@pytest.fixture
def network_without_multicast() -> Iterator[Network]:
    """A network in which no interface is up: nothing can be multicast."""
    opened = open_network(loopback=False)
    yield opened
    opened.close()


@pytest.fixture(scope="module")
def home() -> Iterator[Network]:
    """A network that all tests of a module share, in their order: they tell one story."""
    opened = open_network()
    yield opened
    opened.close()


@pytest.fixture(scope="module")
def lan() -> Iterator[Switch]:
    """A switch with a cable to every device, for all tests of a module, in their order."""
    try:
        opened = Switch()
    except NamespaceRefusedError as error:
        pytest.fail(str(error), pytrace=False)
    yield opened
    opened.close()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[Any]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    if report.when != "teardown" and report.failed:
        arguments: dict[str, Any] = getattr(item, "funcargs", {})
        for network in (value for value in arguments.values() if isinstance(value, Network)):
            report.sections.append(("devices", network.summary()))
            for device in network.devices.values():
                report.sections.append((f"log of {device.name}", device.log_tail()))
    return report
