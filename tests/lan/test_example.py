"""examples/plain_loop.py as a user runs it: a script of one's own that takes the built-in learner's place."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from lan.device import Device, Network

pytestmark = [pytest.mark.lan]

EXAMPLE = Path(__file__).parents[2] / "examples" / "plain_loop.py"
NAME, SEED = "home", "3"
STEPS = 800  # 50 rounds
MOST_ROUNDS = 40  # heard by both: all, besides those around the script's beginning and end
ALONE_AT_MOST = 0.52  # what one speaker's recordings teach about all six (peer/tasks/spoken_digits.py)
HERE = ("--interface", "lo")


def start_example(network: Network, device: Device) -> subprocess.Popen[str]:
    command = [sys.executable, str(EXAMPLE), NAME, "--speaker", device.name, "--seed", SEED]
    return subprocess.Popen(
        network.namespace.command([*command, "--steps", str(STEPS), "--pace", "lockstep"]),
        env=device.environment(),  # PEERD_SOCKET says which daemon
        cwd=network.folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def parcels(device: Device) -> dict[str, int]:
    """Taken over so far on this device's links, by direction."""
    return {link["direction"]: link["parcels"] for link in device.session(NAME)["links"]}


def weights(*devices: Device) -> list[float] | None:
    """When all have closed the same round, with nothing in flight."""
    rounds = {d.session(NAME)["round"] for d in devices}
    seen = [d.session(NAME) for d in devices]
    found = [s["weight"] for s in seen]
    return found if len(rounds | {s["round"] for s in seen}) == 1 and all(found) else None


def test_a_script_of_ones_own_trains_with_the_others_and_hands_its_weight_over(network: Network) -> None:
    one, other = network.add("george"), network.add("jackson")
    network.start(one, other)
    one.ok("create", NAME, "--task", "spoken-digits", "--shard", "speaker=george", "--seed", SEED, *HERE)
    key = one.ok("key", NAME).out.split()[-1]
    other.ok("join", NAME, "--key", key, "--shard", "speaker=jackson", *HERE)
    network.wait("both train", lambda: all(d.session(NAME)["state"] == "training" for d in (one, other)))
    before = parcels(one)
    script = start_example(network, other)
    assert script.stdout is not None
    began = script.stdout.readline()
    assert began.startswith("training with the others, from round "), began + script.stdout.read()
    network.wait(
        "the built-in learner has handed its weight on, and the script has its share",
        lambda: sum(weights(one, other) or [0.0]) == pytest.approx(1.0, rel=1e-6),
    )
    out, _ = script.communicate(timeout=120)
    assert script.returncode == 0, began + out
    last = re.findall(r"^accuracy over all speakers ([0-9.]+)%$", out, re.MULTILINE)
    assert float(last[0]) > 100 * ALONE_AT_MOST, began + out
    after = parcels(one)
    assert {way: after[way] - before[way] > MOST_ROUNDS for way in after} == {"in": True, "out": True}
    assert other.session(NAME)["weight"] == 0
    network.wait(
        "the weight is all with the one that goes on",
        lambda: one.session(NAME)["weight"] == pytest.approx(1.0, rel=1e-6),
    )
