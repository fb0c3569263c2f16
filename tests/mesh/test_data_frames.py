"""What comes in on a stream is a sign of life: who is busy with data need not answer a probe."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

import pytest

from peer.events import Control, PeerId, Probe
from peer.rehearsal.driver import Device, Rehearsal
from rehearsal.stories import KINDS, WHOLE, Kind, home, together

MUTE = "p3"
SILENT = "is silent: taken for dead"
TAKEN_FOR_DEAD_S = 60.0  # after the last sign of life: probed, suspected, and not vouched for (suspicion.py)


def session(kind: Kind) -> tuple[Rehearsal, Counter[PeerId]]:
    """Four devices with rounds of 5 s: of those that are not heard in between each is probed. From now on no
    control call gets to one of them or from it; how many probes it does not answer is counted."""
    r, _ = home(kind, "complete", 4, seed=1)
    r._step_s = lambda peer: 5.0
    together(r, 4)
    r.run(30.0)
    call: Callable[[PeerId, PeerId, Control, float], None] = r.network._call
    unanswered = Counter[PeerId]()

    def no_word(src: PeerId, dst: PeerId, message: Control, since: float) -> None:
        if MUTE not in (src, dst):
            call(src, dst, message, since)
        elif dst == MUTE:
            unanswered[src] += isinstance(message, Probe)

    r.network._call = no_word  # type: ignore[method-assign]
    return r, unanswered


def others(r: Rehearsal) -> list[Device]:
    return [device for device in r.alive() if device.peer != MUTE]


def missed_by(r: Rehearsal) -> set[PeerId]:
    """Who has ever taken the mute one for dead."""
    return {peer for _, peer, note in r.notes if note.text == SILENT and note.fields["peer"] == MUTE}


@pytest.mark.parametrize("kind", [KINDS[0], WHOLE[1]], ids=lambda kind: kind.algorithm)
def test_who_answers_no_probe_lives_as_long_as_its_data_frames_come_and_no_longer(kind: Kind) -> None:
    r, unanswered = session(kind)
    earlier = {device.peer: device.rounds for device in r.alive()}
    r.run(150.0)
    assert min(unanswered[device.peer] for device in others(r)) >= 10
    assert missed_by(r) == set()
    assert {len(device.node.members.view()) for device in r.alive()} == {4}, "nor does it miss the others"
    assert min(device.rounds - earlier[device.peer] for device in r.alive()) >= 25, "rounds of 5 s, in 150 s"
    assert {device.node.rounds.missed for device in r.alive()} == {frozenset()}

    for device in others(r):
        r.block(MUTE, device.peer)
    r.run(TAKEN_FOR_DEAD_S)
    assert missed_by(r) == {device.peer for device in others(r)}
    assert {len(device.node.members.view()) for device in others(r)} == {3}
