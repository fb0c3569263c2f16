"""What callbacks for other people's loops are made of, and what they say where their library is missing."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from learner.daemon_stand_in import StandIn, descriptor
from peer.adapters import membership
from peer.adapters.membership import Membership
from peer.errors import UsageError
from peer.events import Holds
from peer.learner.attach import Swarm, Terms


@pytest.fixture
def daemon(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[StandIn]:
    """What `attach` attaches to; it notes the options as `asked`."""
    stand_in = StandIn(descriptor(local_steps=1, rounds=3))

    def attach(session: str, model: nn.Module, optimizer: torch.optim.Optimizer, **options: Any) -> Swarm:
        stand_in.asked = options  # type: ignore[attr-defined]
        swarm = Swarm(stand_in.attachment(tmp_path), model, optimizer, Terms(Path("unused"), "lockstep", 1))
        swarm.begin()
        return swarm

    monkeypatch.setattr(membership, "attach", attach)
    yield stand_in
    stand_in.close()


def test_a_run_attaches_a_part_steps_to_the_sessions_end_and_lets_go(daemon: StandIn) -> None:
    model = nn.Sequential(nn.Linear(3, 2), nn.Linear(2, 1))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    run = Membership("home", lambda whole: whole[0], {"pace": "lockstep"})
    run.begin(model, optimizer, 1)
    assert daemon.asked == {"pace": "lockstep"}  # type: ignore[attr-defined]
    assert daemon.reports()[0]["parameters"] == 8
    assert run.step(torch.tensor(0.5))
    run.report({"accuracy": torch.tensor(0.75), "epoch": 2, "text": "x", "all": torch.zeros(2)})
    steps = 1
    while run.step(0.5):
        steps += 1
        assert steps < 10
    assert not run.step(None), "a loop that cannot stop at once goes on alone"
    run.end()
    run.end()
    assert run.swarm is not None
    assert run.swarm.finished
    assert any(report.get("metrics") == {"accuracy": 0.75, "epoch": 2.0} for report in daemon.reports())


def test_what_a_broken_loop_leaves_attached_is_handed_over_at_the_interpreters_exit(
    daemon: StandIn, monkeypatch: pytest.MonkeyPatch
) -> None:
    at_exit: list[Any] = []
    monkeypatch.setattr(membership.atexit, "register", at_exit.append)
    model = nn.Linear(3, 1)
    run = Membership("home", None, {})
    run.begin(model, torch.optim.SGD(model.parameters(), lr=0.1), 1)
    [hand_over] = at_exit
    hand_over()
    daemon.wait_for(lambda: daemon.events[-1] == Holds((), 0.0))


def test_a_loop_over_several_processes_is_refused() -> None:
    model = nn.Linear(3, 1)
    with pytest.raises(UsageError, match=r"spread over 2 processes.*start it with one"):
        Membership("home", None, {}).begin(model, torch.optim.SGD(model.parameters(), lr=0.1), 2)


@pytest.mark.parametrize(
    ("adapter", "missing"),
    [("lightning", ("lightning", "pytorch_lightning")), ("transformers", ("transformers",))],
)
def test_without_its_library_an_adapter_says_how_to_install_it(
    adapter: str, missing: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delitem(sys.modules, f"peer.adapters.{adapter}", raising=False)
    for name in missing:
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(ImportError, match=rf"-m pip install peerd\[{adapter}\]"):
        importlib.import_module(f"peer.adapters.{adapter}")
