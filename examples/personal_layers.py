"""Personal layers: the devices share a body, and each keeps a head of its own at home.

    peerd create shapes --task script                 # on one device; prints the join key
    peerd join shapes --key peerd1-…                  # on the other
    python examples/personal_layers.py shapes --names 0123456789      # on one
    python examples/personal_layers.py shapes --names 9876543210      # on the other

What is attached is `model.body` alone: nothing of the head is sent, compared or asked for, though one
optimizer trains both. Here each device has names of its own for the ten digits, so that one head for all
could not be right on both. Give attach an nn.ModuleList of parts where what is shared is no module by itself.
peerd keeps checkpoints of what is shared; the head's are yours, and it is saved below.
"""

import argparse
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional

import peer
from peer.tasks.batches import shuffled
from peer.tasks.spoken_digits import load_clips

DIGITS = 10


class Model(nn.Module):
    """A body for all and a head for this device."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(1, 16, 3, stride=2, padding=1), nn.ReLU(),
            nn.Conv2d(16, 32, 3, stride=4, padding=1), nn.ReLU(),
            nn.Flatten(), nn.Linear(512, 32), nn.ReLU(),
        )  # fmt: skip
        self.head = nn.Linear(32, DIGITS)

    def forward(self, features: Tensor) -> Tensor:
        logits: Tensor = self.head(self.body(features))
        return logits


def clips(names: str, test: bool) -> tuple[Tensor, Tensor]:
    """Your own data: here clips of digits, called as this device calls them."""
    found = load_clips(test=test)
    called = torch.tensor([int(name) for name in names])
    return found.features, called[found.digits]


@torch.no_grad()
def accuracy(model: nn.Module, names: str) -> float:
    features, called = clips(names, test=True)
    return (model(features).argmax(dim=1) == called).double().mean().item()


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("session")
    parser.add_argument("--names", default="0123456789", help="what this device calls the digits 0 to 9")
    parser.add_argument("--head", type=Path, help="file that the head is kept in between two runs")
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--pace", choices=["free", "lockstep"], default="free")
    asked = parser.parse_args()

    model = Model()
    if asked.head is not None and asked.head.exists():
        model.head.load_state_dict(torch.load(asked.head, weights_only=True))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    loader = shuffled(*clips(asked.names, test=False), batch=32, order=1)

    with peer.attach(asked.session, model.body, optimizer, pace=asked.pace) as swarm:
        for _, (features, called) in zip(range(asked.steps), loader, strict=False):
            loss = functional.cross_entropy(model(features), called)
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            swarm.step(loss.item())
            if swarm.done:
                break
    if asked.head is not None:
        torch.save(model.head.state_dict(), asked.head)
    print(f"{swarm.round + 1} rounds closed, {swarm.rounds_with_others} of them here and with others")
    print(f"accuracy by this device's names {accuracy(model, asked.names):.1%}")


if __name__ == "__main__":
    main()
