"""Devices that come and go when a bounded session on an agreed tree ends: all end with one mean, of all."""

from __future__ import annotations

import pytest
import torch

from peer.rehearsal.play import Play
from peer.rehearsal.trainer import Trainer
from rehearsal.test_rehearse import plan_of


@pytest.mark.parametrize("seed", [1, 2])
def test_one_whose_tree_was_too_soon_does_not_end_by_itself(seed: int) -> None:
    """It has restarted twice, and goes on by a tree of its own that the others refuse for 15 s: time enough
    to come to the end on it, and to be taken for the one that everybody else has missed."""
    plan = plan_of(
        f"--algorithm relay-sum --topology binary-tree --peers 8 --rounds 80 --lr 0.05 --seed {seed} "
        "--churn 25%/30 --final-rounds",
        "--task quadratic --option dim=20 --local-steps 1 --momentum 0",
    )
    play = Play(plan, Trainer(plan))
    play.play()
    notes = [note.text for _, _, note in play.rehearsal.notes]
    assert not any("starts over" in text for text in notes)
    models = torch.stack([play.final[name] for name in plan.names()])
    assert (models - models.mean(0)).norm(dim=1).max() < 1e-5
