"""A training loop of your own in a peerd session: five lines more than without.

    peerd create home --task spoken-digits           # on one device; prints the join key
    peerd join home --key peerd1-…                    # on the others
    python examples/plain_loop.py home                # on any of them, instead of the built-in loop

The model must have the same parameters (names, shapes, types) on all devices; this one has those of the
built-in task, written out as in a script of your own. `attach` loads the swarm's model into it. Seed it as
the session is seeded, because links may refer to the initial model instead of sending it.
"""

import argparse

import torch
from torch import Tensor, nn
from torch.nn import functional

import peer
from peer.tasks.batches import shuffled
from peer.tasks.spoken_digits import load_clips


def digits_model(seed: int) -> nn.Module:
    """32 x 32 log-mel pictures to ten digits."""
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Conv2d(1, 16, 3, stride=2, padding=1), nn.ReLU(),
        nn.Conv2d(16, 32, 3, stride=2, padding=1), nn.ReLU(),
        nn.Conv2d(32, 32, 3, stride=2, padding=1), nn.ReLU(),
        nn.Flatten(), nn.Linear(512, 64), nn.ReLU(), nn.Linear(64, 10),
    )  # fmt: skip


def clips_of(speaker: str) -> tuple[Tensor, Tensor]:
    """Your own data: here what one speaker said."""
    clips = load_clips(test=False)
    chosen = [i for i, name in enumerate(clips.speakers) if name == speaker]
    return clips.features[chosen], clips.digits[chosen]


@torch.no_grad()
def accuracy(model: nn.Module) -> float:
    """Over all speakers."""
    clips = load_clips(test=True)
    return (model(clips.features).argmax(dim=1) == clips.digits).double().mean().item()


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("session")
    parser.add_argument("--socket", help="the daemon's socket, if it is not where peerd looks for it")
    parser.add_argument("--speaker", default="jackson")
    parser.add_argument("--seed", type=int, default=0, help="the session's, as given to 'peerd create'")
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--pace", choices=["free", "lockstep"], default="free")
    asked = parser.parse_args()

    loader = shuffled(*clips_of(asked.speaker), batch=32, order=1)
    model = digits_model(asked.seed)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.02, momentum=0.9)

    with peer.attach(asked.session, model, optimizer, socket=asked.socket, pace=asked.pace) as swarm:
        print(f"training with the others, from round {swarm.round}", flush=True)
        for step, (features, digits) in zip(range(asked.steps), loader, strict=False):
            loss = functional.cross_entropy(model(features), digits)
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            mixed = swarm.step(loss.item())
            if mixed and step % 160 < 16:
                swarm.report({"accuracy": accuracy(model)})
                print(f"round {swarm.round}: accuracy over all speakers {accuracy(model):.1%}", flush=True)
            if swarm.done:
                break
    print(f"{swarm.round + 1} rounds closed, {swarm.rounds_with_others} of them here and with others")
    print(f"accuracy over all speakers {accuracy(model):.1%}")


if __name__ == "__main__":
    main()
