"""What home networks do to four devices: another address, a lossy slow line, a firewall, no multicast.

Told in order on one network: a test relies on the ones before it. Each device is in two sessions, one that
shares weight out and one on a tree that all agree on. The learners are paced (lan/paced.py).
"""

from __future__ import annotations

import pytest

from lan.bridge import Switch, Wired
from lan.intact import clean_logs, finite
from lan.watching import (
    NAME,
    PORT,
    SHOWN,
    TASK,
    as_good_as,
    begin_all,
    comes_to,
    distances,
    during,
    epoch,
    everyone_trains,
    key_of,
    known_at,
    links,
    on_one_graph,
    rounds,
    rounds_later,
    sessions,
    states,
)

pytestmark = [pytest.mark.lan]

COUNT = 4
TREE = "tree"
SLOW_S, SLOW_ROUNDS = 30.0, {NAME: 10, TREE: 3}  # on a tree they are whole models, 80 kB to each neighbor
AHEAD = 10  # rounds
SESSIONS = {
    NAME: ("--topology", "complete"),
    TREE: ("--algorithm", "relay-sum", "--topology", "spanning-tree"),
}


@pytest.fixture(scope="module")
def devices(lan: Switch) -> list[Wired]:
    return begin_all(lan, COUNT, SESSIONS)


def on_one_tree(lan: Switch, devices: list[Wired], *, after: int = 0) -> None:
    """All are, one of a later epoch than this, and train on it, and nobody is blamed."""
    on_one_graph(lan, devices, TREE, after=after)
    finite(devices)
    clean_logs(lan)


def test_one_that_went_on_while_the_others_stood_still_is_in_step_again(
    lan: Switch, devices: list[Wired]
) -> None:
    *others, ahead = devices
    before = max(rounds(devices).values())
    for other in others:
        other.freeze()
    lan.wait("it is rounds ahead", lambda: rounds([ahead])[f"{ahead.name} {NAME}"] >= before + AHEAD)
    for other in others:
        other.thaw()
    lan.wait("all train", lambda: everyone_trains(devices))
    rounds_later(lan, 2 * AHEAD, devices)
    assert everyone_trains(devices), "one that hears nobody is alone"
    lan.wait("no weight is lost", lambda: comes_to(devices, 1.0, NAME))
    on_one_tree(lan, devices)


def test_another_address_is_noticed_by_everybody(lan: Switch, devices: list[Wired]) -> None:
    *others, mover = devices
    peer, old = mover.peer, mover.host
    mover.move()
    assert mover.host != old

    def found() -> bool:
        return known_at(others, mover, peer)

    lan.wait("everybody has it at its new address", found)
    lan.wait("all train", lambda: everyone_trains(devices))
    rounds_later(lan, 5, devices)
    assert found()
    assert everyone_trains(devices), "one entry for it, and not two"
    lan.wait("no weight is lost", lambda: comes_to(devices, 1.0, NAME))
    on_one_tree(lan, devices)


def test_on_a_lossy_slow_line_nobody_is_taken_for_dead(lan: Switch, devices: list[Wired]) -> None:
    for device in devices:
        device.shape(loss=0.05, rate="1mbit")
    before = rounds(devices)

    def nobody_dies() -> None:
        for session in sessions(devices):
            assert session["members"] == COUNT
            assert {link["state"] for link in session["links"]} <= {"alive", "suspect"}

    lost = lan.dropped()
    during(lan, SLOW_S, nobody_dies)
    assert lan.dropped() > lost
    assert all(now >= before[name] + SLOW_ROUNDS[name.split()[1]] for name, now in rounds(devices).items())
    for device in devices:
        device.unshape()
    rounds_later(lan, 3, devices)
    lan.wait("no weight is lost", lambda: comes_to(devices, 1.0, NAME))
    on_one_tree(lan, devices)


def test_one_that_is_switched_off_hands_over_and_says_goodbye(lan: Switch, devices: list[Wired]) -> None:
    *others, leaver = devices
    peer, before = leaver.peer, epoch(devices, TREE)
    assert leaver.stop() == 0
    assert not list(leaver.namespace.processes())
    lan.wait("the others train without it", lambda: everyone_trains(others))
    assert states(others, peer) == {"left"}, "it said goodbye: dead is whoever falls silent"
    lan.wait("the others have the whole weight", lambda: comes_to(others, 1.0, NAME))
    on_one_tree(lan, others, after=before)


def test_behind_a_firewall_it_trains_both_ways(lan: Switch, devices: list[Wired]) -> None:
    *others, hidden = devices
    hidden.firewall()
    refused, tree = lan.dropped(), epoch(others, TREE)
    lan.start(hidden)
    peer = hidden.peer
    lan.wait("all train", lambda: everyone_trains(devices))

    def parcels() -> dict[tuple[str, str], int]:
        rows = hidden.session(NAME)["links"]
        return {(row["peer"], row["direction"]): row["parcels"] for row in rows if row["state"] == "alive"}

    everywhere = {(other.peer, direction) for other in others for direction in ("in", "out")}
    lan.wait("its links are up, in and out", lambda: parcels().keys() == everywhere)
    before = parcels()
    lan.wait("they carry", lambda: all(count >= before[link] + 5 for link, count in parcels().items()))
    for other in others:
        rows = links([other], peer)
        assert {row["direction"] for row in rows} == {"in", "out"}
        assert {row["state"] for row in rows} == {"alive"}
    assert lan.dropped() > refused, "the others have tried to dial it"
    lan.wait("no weight is lost", lambda: comes_to(devices, 1.0, NAME))
    on_one_tree(lan, devices, after=tree)


def test_one_that_no_multicast_reaches_joins_late_by_address(lan: Switch, devices: list[Wired]) -> None:
    late = lan.add("late")
    late.deafen()
    late.mute()
    lan.start(late)
    founder = devices[0]
    how = ("--task", str(TASK), "--shard", f"mean/{COUNT}")
    alone = late.peerd("join", NAME, "--key", key_of(founder), *how, "--timeout", "5")
    assert alone.code == 75, alone.said
    late.ok("leave", NAME)
    known, tree = {name: max(distances(devices, name)) for name in SESSIONS}, epoch(devices, TREE)
    for number, name in enumerate(SESSIONS):
        by = ("--key", key_of(founder, name), "--peer", f"{founder.host}:{PORT + number}")
        late.ok("join", name, *how, *by)
        lan.wait("a first figure of it", lambda name=name: late.session(name)["metrics"])
        assert as_good_as(known[name], [late], name), "it starts from what the others know"
    everybody = [*devices, late]
    lan.wait("it trains, and all see it", lambda: everyone_trains(everybody))
    rounds_later(lan, 10, everybody)
    lan.wait("a newcomer takes weight and makes none", lambda: comes_to(everybody, 1.0, NAME))
    on_one_tree(lan, everybody, after=tree)
    rounds_later(lan, 2 * SHOWN, everybody)  # figures of the new tree, and not of the wait for it
    for name in SESSIONS:
        assert as_good_as(known[name], everybody, name), "and disturbs nobody"
