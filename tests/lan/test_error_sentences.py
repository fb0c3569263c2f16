"""What commonly goes wrong ends in one line that says what to do, and in the exit code of the contract.

Each test has a network of its own; most need no learner, or the smallest one.
"""

from __future__ import annotations

import subprocess
import textwrap
from pathlib import Path

import pytest

from lan.device import Device, Network, Outcome

pytestmark = [pytest.mark.lan]

HERE = ("--interface", "lo")
SMALL = ("--task", "quadratic", "--option", "dim=100")

TASK = """
    import torch
    from torch import nn

    def model():
        return nn.Sequential(nn.Linear(4, {hidden}), nn.Linear({hidden}, 1))

    def batches(shard, device):
        while True:
            yield torch.zeros(2, 4, device=device)

    def loss(model, batch):
        return model(batch).square().mean()
"""


def one_line(outcome: Outcome, code: int, *words: str) -> None:
    """The command ended with `code` and a single line on stderr that has all these words."""
    assert outcome.code == code, f"expected {code}, got {outcome.code}: {outcome.said}"
    assert "Traceback" not in outcome.said
    lines = [line for line in outcome.err.strip().splitlines() if line.strip()]
    assert len(lines) == 1, f"one line was expected:\n{outcome.err}"
    missing = [word for word in words if word.lower() not in lines[0].lower()]
    assert not missing, f"{missing} not in: {lines[0]}"


def health(network: Network, device: Device, *words: str) -> str:
    """Wait for a health sentence with all these words."""

    def sentence() -> str:
        said: list[str] = device.status()["health"]
        return next((s for s in said if all(word.lower() in s.lower() for word in words)), "")

    return network.wait(f"a health sentence with {words}", sentence)


def started(network: Network, *names: str) -> list[Device]:
    devices = [network.add(name) for name in names]
    network.start(*devices)
    return devices


def created(device: Device, *options: str) -> str:
    """Create the session `home` on this device; its key."""
    device.ok("create", "home", *(options or SMALL), *HERE)
    return device.ok("key", "home").out.split()[-1]


def disk(network: Network, device: Device, size: str) -> None:
    """Give the device a state folder on a disk of its own of this size."""
    device.state.mkdir(mode=0o700)
    network.namespace.run("mount", "-t", "tmpfs", "-o", f"size={size},mode=0700", "none", str(device.state))


def fill(network: Network, device: Device) -> None:
    """Leave no byte free on that disk."""
    network.namespace.run("sh", "-c", f"cat /dev/zero > {device.state}/ballast 2>/dev/null || true")


def task_file(folder: Path, name: str, hidden: int) -> str:
    path = folder / name
    path.write_text(textwrap.dedent(TASK).format(hidden=hidden))
    return str(path)


def test_no_daemon_is_69_and_says_how_to_start_one(network: Network) -> None:
    nobody = network.add("a")
    for command in (("status",), ("leave", "home"), ("key", "home")):
        one_line(nobody.peerd(*command), 69, "no daemon answers on", "peerd daemon", "--socket")


def test_an_unknown_session_is_66(network: Network) -> None:
    [a] = started(network, "a")
    for command in (("status", "nosuch"), ("leave", "nosuch"), ("key", "nosuch"), ("logs", "nosuch")):
        one_line(a.peerd(*command), 66, "nosuch")
    one_line(a.peerd("export", "nosuch", "-o", str(network.folder / "x")), 66, "nosuch")


def test_wrong_words_on_the_command_line_are_2(network: Network) -> None:
    [a] = started(network, "a")
    for words in (
        ("create", "home", "--task", "nosuch"),
        ("create", "home", "--algorithm", "nosuch"),
        ("create", "home", "--topology", "nosuch"),
        ("create", "home", "--compression", "nosuch"),
        ("create", "home", "--option", "nosuch=1"),
        ("join", "home", "--key", "peerd1-AAAA"),
    ):
        refused = a.peerd(*words)
        assert refused.code == 2, f"{words}: {refused.code} {refused.said}"
        assert "Traceback" not in refused.said
    assert a.status()["sessions"] == []


def test_a_key_that_is_mistyped_is_told_from_one_that_is_wrong(network: Network) -> None:
    [a] = started(network, "a")
    key = created(a)
    last = key[-1]
    mistyped = key[:-1] + ("A" if last != "A" else "B")
    refused = a.peerd("join", "home", "--key", mistyped)
    assert refused.code == 2, refused.said
    assert key not in refused.said


def test_a_wrong_key_is_64_through_peer_as_well(network: Network) -> None:
    a, b, c = started(network, "a", "b", "c")
    a.ok("create", "home", *SMALL, "--listen", "127.0.0.1:7701", *HERE)
    other = created(c)
    c.ok("leave", "home", "--forget")
    by_address = b.peerd("join", "home", "--key", other, "--peer", "127.0.0.1:7701", "--timeout", "8", *HERE)
    one_line(by_address, 64, "key")
    member = a.session("home")
    assert (member["bytes_received"] or 0, member["links"]) == (0, [])


def test_nobody_there_is_75_and_the_session_waits(network: Network) -> None:
    a, b = started(network, "a", "b")
    key = created(a)
    assert a.stop() == 0
    one_line(b.peerd("join", "home", "--key", key, "--timeout", "3", *HERE), 75, "--peer")
    assert [s["state"] for s in b.status()["sessions"]] == ["waiting"]


def test_a_peer_that_is_nowhere_is_75_and_named(network: Network) -> None:
    a, b = started(network, "a", "b")
    key = created(a)
    assert a.stop() == 0
    nowhere = b.peerd("join", "home", "--key", key, "--peer", "127.0.0.1:9", "--timeout", "3", *HERE)
    one_line(nowhere, 75, "127.0.0.1:9")


def test_an_occupied_port_is_71(network: Network) -> None:
    a, b = started(network, "a", "b")
    a.ok("create", "home", *SMALL, "--listen", "127.0.0.1:7702", *HERE)
    taken = b.peerd("create", "other", *SMALL, "--listen", "127.0.0.1:7702", *HERE)
    one_line(taken, 71, "7702", "--listen")
    assert b.status()["sessions"] == []


def test_an_address_that_is_not_ours_is_71(network: Network) -> None:
    [a] = started(network, "a")
    foreign = a.peerd("create", "home", *SMALL, "--listen", "192.0.2.1:7703", *HERE)
    one_line(foreign, 71, "192.0.2.1")


def test_another_model_is_65_and_names_the_first_difference(network: Network) -> None:
    a, b = started(network, "a", "b")
    key = created(a, "--task", task_file(network.folder, "narrow.py", 8))
    wide = task_file(network.folder, "wide.py", 16)
    refused = b.peerd("join", "home", "--key", key, "--task", wide, *HERE)
    one_line(refused, 65, "0.weight", "(16, 4)", "(8, 4)", "same task file")


def test_a_task_file_that_cannot_be_read_is_65(network: Network) -> None:
    [a] = started(network, "a")
    one_line(a.peerd("create", "home", "--task", str(network.folder / "nosuch.py"), *HERE), 65, "nosuch.py")


def test_a_data_folder_that_is_not_there_is_65(network: Network) -> None:
    [a] = started(network, "a")
    missing = str(network.folder / "nosuch")
    one_line(a.peerd("create", "home", *SMALL, "--data", missing, *HERE), 65, missing)


def test_a_state_folder_that_is_full_is_73(network: Network) -> None:
    a = network.add("a")
    disk(network, a, "64k")
    fill(network, a)
    refused = a.peerd("daemon")
    one_line(refused, 73, str(a.state), "free some space")


def test_a_disk_that_fills_up_is_a_health_sentence(network: Network) -> None:
    a, b = network.add("a"), network.add("b")
    disk(network, a, "1m")
    network.start(a, b)
    key = created(a, "--task", "spoken-digits", "--shard", "speaker=theo")  # a checkpoint of 190 kB
    fill(network, a)
    b.ok("join", "home", "--key", key, "--shard", "speaker=lucas", *HERE)
    health(network, a, str(a.state), "space")


def test_no_multicast_is_a_health_sentence_that_names_peer(network_without_multicast: Network) -> None:
    [a] = started(network_without_multicast, "a")
    a.ok("create", "home", *SMALL)
    health(network_without_multicast, a, "multicast", "--peer")


def test_a_socket_path_that_is_too_long_is_78(network: Network) -> None:
    a = network.add("a")
    too_long = str(network.folder / ("x" * 100))
    one_line(a.peerd("--socket", too_long, "status"), 78, "100", "--socket")


def test_without_a_daemon_create_and_join_run_one_until_the_session_ends(network: Network) -> None:
    a, b = network.add("a"), network.add("b")
    bounded = ("create", "home", *SMALL, "--rounds", "5", "--shard", "0/2", *HERE)
    creating = a.spawn(*bounded, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    key = network.wait("the foreground daemon's key", lambda: key_of(a))
    joined = b.peerd("join", "home", "--key", key, "--task", "quadratic", "--shard", "1/2", *HERE)
    out, err = creating.communicate(timeout=120)
    assert (creating.returncode, joined.code) == (0, 0), f"{out}{err}{joined.said}"
    assert key in out
    assert not list(network.namespace.processes())


def key_of(device: Device) -> str:
    asked = device.peerd("key", "home")
    return asked.out.split()[-1] if asked.code == 0 else ""


def test_a_peer_joins_by_address_where_nothing_is_advertised(network: Network) -> None:
    a, b = started(network, "a", "b")
    a.ok("create", "home", *SMALL, "--listen", "127.0.0.1:7704", "--shard", "0/2", *HERE)
    key = a.ok("key", "home").out.split()[-1]
    b.ok("join", "home", "--key", key, "--peer", "127.0.0.1:7704", "--shard", "1/2", *HERE)
    network.wait("both train", lambda: all(d.session("home")["state"] == "training" for d in (a, b)))
