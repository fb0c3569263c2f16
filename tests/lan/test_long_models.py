"""Models of 24 MB, which are sent before all of them is laid out and mixed before all of them has come, while
one device's daemon is killed: whatever comes of an exchange, it is the mean of whole models."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from itertools import combinations
from pathlib import Path

import pytest

from lan.device import PATIENCE_S, Device, Network

pytestmark = [pytest.mark.lan]

NAME, PARAMETERS = "long", 6_000_000
OWN = (0.0, 1.0, 4.0)  # no two sets of them have one mean
ALGORITHMS = ("d-psgd", "all-reduce")
MEANS = {sum(some) / len(some) for n in (1, 2, 3) for some in combinations(OWN, n)}
TERMS = ("--task", "script", "--topology", "complete", "--local-steps", "1")
HERE = ("--interface", "lo")
KILLS = 2


class Script:
    def __init__(self, network: Network, device: Device, own: float, until: Path) -> None:
        command = [sys.executable, "-P", str(Path(__file__).with_name("long_models.py"))]
        self.process = subprocess.Popen(
            network.namespace.command([*command, NAME, str(own), str(PARAMETERS), str(until)]),
            env=device.environment() | {"PYTHONPATH": ":".join(sys.path)},
            cwd=network.folder,
            stdout=subprocess.PIPE,
            text=True,
        )
        self.mixed: list[tuple[float, float]] = []
        self._reading = threading.Thread(target=self._read)
        self._reading.start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            least, most = map(float, line.split())
            self.mixed.append((least, most))

    def count(self, value: float) -> int:
        return sum(least == pytest.approx(value, abs=1e-6) for least, _ in list(self.mixed))

    def end(self) -> int:
        code = self.process.wait(PATIENCE_S)
        self._reading.join()
        assert self.process.stdout is not None
        self.process.stdout.close()
        return code


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_no_exchange_is_of_half_a_model(network: Network, algorithm: str) -> None:
    devices = [network.add(name) for name in ("one", "two", "three")]
    network.start(*devices)
    first, *others = devices
    first.ok("create", NAME, "--algorithm", algorithm, *TERMS, *HERE)
    key = first.ok("key", NAME).out.split()[-1]
    for device in others:
        device.ok("join", NAME, "--key", key, *HERE)
    network.wait("all are members", lambda: all(d.session(NAME).get("members") == 3 for d in devices))
    until = network.folder / "over"
    scripts = [Script(network, d, own, until) for d, own in zip(devices, OWN, strict=True)]
    whole = sum(OWN) / 3

    def all_exchange(more: int) -> None:
        before = [script.count(whole) for script in scripts]
        network.wait(
            "all exchange with all",
            lambda: all(s.count(whole) >= b + more for s, b in zip(scripts, before, strict=True)),
        )

    all_exchange(3)
    for i in range(KILLS):
        time.sleep(0.07 * i)  # in another moment of a round each time
        others[-1].kill()
        network.start(others[-1])
        all_exchange(2)
    until.touch()
    assert [script.end() for script in scripts] == [0, 0, 0]
    found = [pair for script in scripts for pair in script.mixed]
    if algorithm == "d-psgd":
        assert not [pair for pair in found if pair[0] != pair[1]], "a model that is part one, part another"
    numbers = {number for pair in found for number in pair}  # where a device goes parts may be of other sets
    strange = [number for number in numbers if min(abs(number - mean) for mean in MEANS) > 1e-6]
    assert not strange, "what no set of models has for a mean"
