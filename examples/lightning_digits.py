"""PyTorch Lightning in a peerd session: one callback more than without.

    pip install 'peerd[lightning]'
    peerd create digits --task script                 # on one device; prints the join key
    peerd join digits --key peerd1-…                  # on the other
    python examples/lightning_digits.py digits        # on both, each with a --speaker of its own

"script" is the task of sessions in which only scripts train. The module is the same on all devices; each
starts with its own numbers and takes over the session's. Where no daemon runs, the callback starts one for as
long as it trains.
"""

import argparse

import torch
from pytorch_lightning import LightningModule, Trainer
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import DataLoader, TensorDataset

from peer.adapters.lightning import PeerdCallback
from peer.tasks.spoken_digits import load_clips


class Digits(LightningModule):
    """32 x 32 log-mel pictures to ten digits."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(
            nn.Conv2d(1, 16, 3, stride=2, padding=1), nn.ReLU(),
            nn.Conv2d(16, 32, 3, stride=4, padding=1), nn.ReLU(),
            nn.Flatten(), nn.Linear(512, 10),
        )  # fmt: skip

    def forward(self, features: Tensor) -> Tensor:
        logits: Tensor = self.net(features)
        return logits

    def training_step(self, batch: tuple[Tensor, Tensor], _: int) -> Tensor:
        features, digits = batch
        return functional.cross_entropy(self(features), digits)

    def validation_step(self, batch: tuple[Tensor, Tensor], _: int) -> None:
        features, digits = batch
        self.log("accuracy", (self(features).argmax(dim=1) == digits).float().mean(), prog_bar=True)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.02, momentum=0.9)


def clips_of(speaker: str) -> TensorDataset:
    """Your own data: here what one speaker said."""
    clips = load_clips(test=False)
    chosen = [i for i, name in enumerate(clips.speakers) if name == speaker]
    return TensorDataset(clips.features[chosen], clips.digits[chosen])


def everybody() -> TensorDataset:
    """What no device trains on: other clips of all speakers."""
    clips = load_clips(test=True)
    return TensorDataset(clips.features, clips.digits)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("session")
    parser.add_argument("--speaker", default="jackson")
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--pace", choices=["free", "lockstep"], default="free")
    asked = parser.parse_args()

    train = DataLoader(clips_of(asked.speaker), batch_size=32, shuffle=True, drop_last=True)
    together = PeerdCallback(asked.session, pace=asked.pace)
    trainer = Trainer(
        max_steps=asked.steps,
        max_epochs=-1,
        val_check_interval=100,
        check_val_every_n_epoch=None,  # every so many steps, the last one too
        num_sanity_val_steps=0,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[together],
    )
    trainer.fit(Digits(), train, DataLoader(everybody(), batch_size=300))
    swarm = together.swarm
    assert swarm is not None
    print(f"{swarm.round + 1} rounds closed, {swarm.rounds_with_others} of them here and with others")
    print(f"accuracy over all speakers {float(trainer.callback_metrics['accuracy']):.1%}")


if __name__ == "__main__":
    main()
