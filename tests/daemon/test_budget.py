"""A budget on real daemons: it holds while training goes on, the status says so, and join changes it."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable

import pytest

from daemon.conftest import PATIENCE_S, Home, here, session
from daemon.puppet import Puppet, ask
from daemon.test_sessions import knows, port, quiet, until
from peer.config import JoinOptions
from peer.daemon.session import SessionDriver
from peer.errors import NobodyFoundError, UsageError
from peer.status import BudgetStatus

Make = Callable[[str], Home]


def driver(home: Home) -> SessionDriver:
    return home.daemon.sessions["home"]


def sent(home: Home) -> int:
    return sum(contact.bytes_sent for contact in driver(home).transport.contacts)


def budget(home: Home) -> BudgetStatus:
    found = home.daemon.status("home").sessions[0].budget
    assert found is not None
    return found


async def test_a_budget_holds_among_puppets_that_send_as_fast_as_they_can(home: Make) -> None:
    """A puppet knows of no allowance: what has no room waits at the link, and rounds go on without."""
    async with asyncio.timeout(PATIENCE_S):
        a, b = home("a"), home("b")
        key = await a.daemon.create(session(), here())
        first = await Puppet.attach(a.socket, "home")
        options = here(peers=(port(a),), budget="20kB/min")
        joining = asyncio.create_task(b.daemon.join("home", key, options, quiet))
        await until(driver(a), lambda: knows(b))
        second = await Puppet.attach(b.socket, "home")
        await joining
        node = driver(b).node
        assert node is not None
        await until(driver(b), node.links.waiting)
        held = second.rounds
        await asyncio.gather(first.until(held + 3), second.until(held + 3))
        shown = budget(b)
        assert 0.7 * 20_000 < shown.spent_last_min <= 20_000
        assert sent(b) <= 20_000
        assert shown.forecast_day == 1440 * shown.spent_last_min
        assert home_status(a)["budget"] is None
        await change(b, first, second)


async def change(b: Home, first: Puppet, second: Puppet) -> None:
    """Given anew with join it holds at once, and none lifts it; both stay with the membership."""
    await ask(b.socket, "join", name="home", key=None, options=here(budget="1GB/h").to_dict())
    assert budget(b).bytes_per_min == 16_666_666
    done = second.rounds
    await asyncio.gather(first.until(done + 20), second.until(done + 20))
    assert json.loads((driver(b).folder.path / "options.json").read_text())["budget"] == "1GB/h"
    await ask(b.socket, "join", name="home", key=None, options=here(budget="none").to_dict())
    assert home_status(b)["budget"] is None
    peers = driver(b).folder.options.peers
    assert peers, "the other options stay as they were"
    await b.daemon.leave("home", forget=False)
    with pytest.raises(NobodyFoundError):
        await b.daemon.join("home", None, JoinOptions(timeout_s=0.0, budget="50kB/min"), quiet)
    assert (driver(b).options.peers, driver(b).options.insecure) == (peers, True)
    assert budget(b).bytes_per_min == 50_000


def home_status(home: Home) -> dict[str, object]:
    return home.daemon.status("home").sessions[0].to_dict()


async def test_an_algorithm_that_would_lose_what_is_held_back_takes_no_budget(home: Make) -> None:
    a, b = home("a"), home("b")
    asked = session(algorithm="relay-sum-grad", topology="chain", compression="none")
    with pytest.raises(
        UsageError, match=r"relay-sum-grad cannot do without.*--budget none.*relay-sum, d-psgd"
    ):
        await a.daemon.create(asked, here(budget="20kB/min"))
    assert not a.daemon.sessions
    key = await a.daemon.create(asked, here())
    with pytest.raises(UsageError, match="cannot do without what a budget holds back"):
        async with asyncio.timeout(PATIENCE_S):
            await b.daemon.join("home", key, here(peers=(port(a),), budget="20kB/min"), quiet)
    with pytest.raises(UsageError, match="cannot do without what a budget holds back"):
        driver(a).set_budget(here(budget="20kB/min"))
    assert driver(a).spending.bytes_per_min is None
    await a.daemon.leave("home", forget=False)
    with pytest.raises(UsageError, match="cannot do without what a budget holds back"):
        await a.daemon.join("home", key, here(budget="20kB/min"), quiet)
