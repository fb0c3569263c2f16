"""The scripts in examples/ as a user runs them: two processes, daemons that find each other by mDNS. (The
plain loop, which takes a built-in learner's place: test_example.py)"""

from __future__ import annotations

import signal
from collections.abc import Iterator

import pytest
import torch

from lan.conftest import open_network
from lan.device import Device, Network
from lan.examples import HERE, Script, apart, kept, percent, rounds, share

pytestmark = [pytest.mark.lan]

NEAR = 0.2  # of a model's length; two that never met are further apart than 1
Pair = tuple[Network, Device, Device]


@pytest.fixture(scope="module")
def pair() -> Iterator[Pair]:
    """Two devices with a daemon each, for all tests of this file."""
    network = open_network()
    one, other = network.add("one"), network.add("other")
    network.start(one, other)
    yield network, one, other
    network.close()


def run(pair: Pair, example: str, name: str, first: tuple[str, ...], second: tuple[str, ...]) -> list[str]:
    """The example on both devices, with these arguments; what each printed. They have met and agree."""
    network, one, other = pair
    share(name, one, other, "--task", "script", "--local-steps", "8")
    arguments = [name, "--pace", "lockstep"]
    scripts = [
        Script.start(network, device, example, *arguments, *own)
        for device, own in ((one, first), (other, second))
    ]
    said = [script.end() for script in scripts]
    for out in said:
        closed, with_others = rounds(out)
        assert with_others > 0.5 * closed > 5, out
    assert apart(kept(one, name), kept(other, name)) < NEAR, said
    return said


def test_lightning(pair: Pair) -> None:
    steps = ("--steps", "600")
    said = run(
        pair,
        "lightning_digits.py",
        "digits",
        ("--speaker", "george", *steps),
        ("--speaker", "jackson", *steps),
    )
    together = [percent(out, "accuracy over all speakers") for out in said]
    assert min(together) > 55, said  # alone 53 at the most in 120 trainings, together 57.7 at the least in 66
    _, one, other = pair
    shown = [device.session("digits")["metrics"]["accuracy"] for device in (one, other)]
    assert min(shown) > 0.3, "what Lightning validates is shown in status"
    assert kept(one, "digits").signature[0][0] == "net.0.weight"


def test_of_a_frozen_model_only_what_is_trained_travels(pair: Pair) -> None:
    steps = ("--steps", "160")
    said = run(pair, "huggingface_finetune.py", "tuning", ("--part", "0", *steps), ("--part", "1", *steps))
    for out in said:
        assert percent(out, "accuracy over all kinds") > 60, out
    travel, whole = (int(word) for word in said[0].split()[0:3:2])
    _, one, _ = pair
    shown = one.session("tuning")
    assert kept(one, "tuning").model.numel() == travel == 4420
    assert whole > 10 * travel
    assert shown["bytes_dense_exchanges"] % (4 * travel) == 0
    assert 0 < shown["bytes_sent"] < 4 * whole, "not even one whole model"


def test_personal_layers_stay_at_home(pair: Pair) -> None:
    network, one, other = pair
    steps = ("--steps", "240")
    files = [network.folder / f"{device.name}.head" for device in (one, other)]
    owns = [("--names", names, "--head", str(file), *steps)
            for names, file in zip(("0123456789", "9876543210"), files, strict=True)]  # fmt: skip
    said = run(pair, "personal_layers.py", "shapes", owns[0], owns[1])
    for out in said:
        assert percent(out, "accuracy by this device's names") > 60, out
    names = [name for name, _, _ in kept(one, "shapes").signature]
    assert names == ["0.weight", "0.bias", "2.weight", "2.bias", "5.weight", "5.bias"]
    heads = [torch.load(file, weights_only=True)["weight"] for file in files]
    assert float((heads[0] - heads[1]).norm()) > 0.5 * float(heads[0].norm())


def test_a_stream_without_daemons_ends_politely_with_ctrl_c(pair: Pair) -> None:
    """Each script brings a daemon of its own, which finds the other's, and ends with it. The second device
    has never heard of the session: its script has the key."""
    network, one, other = pair
    one.ok("create", "hum", "--task", "script", *HERE)
    key = {"PEERD_KEY": one.ok("key", "hum").out.strip()}
    assert [device.stop() for device in (one, other)] == [0, 0]
    scripts = [
        Script.start(
            network, device, "sensor_stream.py", "hum", "--pace", "lockstep", "--hertz", hertz, **more
        )
        for device, hertz, more in ((one, "50", {}), (other, "60", key))
    ]
    for script in scripts:
        assert script.line() == "reading; Ctrl-C ends it\n"
    network.wait("both train together", lambda: all(_trains(device) for device in (one, other)))
    for script in scripts:
        script.process.send_signal(signal.SIGINT)
    for script in scripts:
        closed, with_others = rounds(script.end())
        assert with_others > 0.5 * closed > 20
    assert apart(kept(one, "hum"), kept(other, "hum")) < NEAR
    assert not one.answers()
    assert not other.answers()
    assert list(network.namespace.processes()) == []


def _trains(device: Device) -> bool:
    shown = device.session("hum")
    return shown["state"] == "training" and (shown["round"] or 0) > 40
