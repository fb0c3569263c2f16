"""A training loop of your own in a peerd session: five lines more than without.

    peerd create home --task spoken-digits           # on one device; prints the join key
    peerd join home --key peerd1-…                    # on the others
    python examples/plain_loop.py home                # on any of them, instead of the built-in loop

The model must have the same parameters on all devices; here it is the built-in task's, and its data too.
For data of your own replace `loader`, `model` and `task.loss`.
"""

import argparse

import torch

import peer
from peer.learner.task import Settings, load_task, seeded_model


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("session")
    parser.add_argument("--socket", help="the daemon's socket, if it is not where peerd looks for it")
    parser.add_argument("--shard", default="speaker=jackson")
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--pace", choices=["free", "lockstep"], default="free")
    asked = parser.parse_args()

    task = load_task("spoken-digits", Settings())
    loader = task.batches(asked.shard, torch.device("cpu"))
    model = seeded_model(task, seed=0)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.02, momentum=0.9)

    with peer.attach(asked.session, model, optimizer, socket=asked.socket, pace=asked.pace) as swarm:
        print(f"training with the others, from round {swarm.round}", flush=True)
        for step, batch in zip(range(asked.steps), loader, strict=False):
            loss = task.loss(model, batch)
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            mixed = swarm.step(loss.item())
            if mixed and step % 160 < 16:
                figures = task.evaluate(model)
                swarm.report(figures)
                print(
                    f"round {swarm.round}: accuracy over all speakers {figures['accuracy']:.1%}", flush=True
                )
            if swarm.done:
                break
    print(f"accuracy over all speakers {task.evaluate(model)['accuracy']:.1%}")


if __name__ == "__main__":
    main()
