"""RelaySum between real daemons: one tree, one generation, a crash and a return."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from lan.device import Device, Network

pytestmark = [pytest.mark.lan]

NAME = "tree"
HERE = ("--interface", "lo")
TASK = """
import time
import torch
from torch import nn

def model():
    return nn.Linear(16, 4)

def batches(shard, device, seed):
    generator = torch.Generator().manual_seed(seed + len(shard or ""))
    while True:
        time.sleep(0.05)  # a device's own pace
        x = torch.randn(8, 16, generator=generator)
        yield x, x[:, :4].sum(1).long() % 4

def loss(model, batch):
    return nn.functional.cross_entropy(model(batch[0]), batch[1])
"""


def state(device: Device) -> tuple[str, int | None, int]:
    session = device.session(NAME)
    return session["state"], session["generation"], session["members"]


def on_one_tree(devices: list[Device], members: int) -> bool:
    states = {state(d) for d in devices}
    (one,) = states if len(states) == 1 else [("", None, 0)]
    return one[0] == "training" and one[1] is not None and one[2] == members


def rounds_later(home: Network, devices: list[Device], count: int) -> None:
    before = {d.name: d.session(NAME)["round"] or 0 for d in devices}
    home.wait(
        f"{count} more rounds",
        lambda: all((d.session(NAME)["round"] or 0) >= before[d.name] + count for d in devices),
    )


def test_relay_sum_trains_on_one_tree_loses_a_device_and_takes_it_back(home: Network, tmp_path: Path) -> None:
    task = tmp_path / "task.py"
    task.write_text(TASK)
    devices = [home.add(name) for name in ("a", "b", "c", "d")]
    founder, *others = devices
    home.start(*devices)
    words = ("--task", str(task), "--algorithm", "relay-sum", "--local-steps", "2", "--lr", "0.05")
    founder.ok("create", NAME, *words, *HERE)
    key = founder.ok("key", NAME).out.split()[-1]
    joining = [d.spawn("join", NAME, "--key", key, "--task", str(task), *HERE) for d in others]
    assert [process.wait(120) for process in joining] == [0] * 3
    home.wait("all four are on one tree", lambda: on_one_tree(devices, 4))
    rounds_later(home, devices, 10)
    shown = json.loads(founder.ok("status", NAME, "--json").out)["sessions"][0]
    assert shown["topology"] == "binary-tree" and shown["weight"] == 1.0
    assert {link["state"] for link in shown["links"]} == {"alive"}

    others[1].kill()
    rest = [founder, others[0], others[2]]
    home.wait("the others are a generation of three", lambda: on_one_tree(rest, 3))
    rounds_later(home, rest, 10)
    home.start(others[1])
    home.wait("it is back on the tree", lambda: on_one_tree(devices, 4))
    rounds_later(home, devices, 10)
    assert all(d.session(NAME)["rounds_alone"] <= 3 for d in rest)
