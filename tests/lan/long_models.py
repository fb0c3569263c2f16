"""A script whose model is one number many times over: before each exchange it sets all of it to its own.

Prints a line for each exchange: least and largest number of the mixed model.
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

import torch
from torch import nn

import peer


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("session")
    parser.add_argument("own", type=float)
    parser.add_argument("parameters", type=int)
    parser.add_argument("until", type=Path, help="ends when this file is there")
    asked = parser.parse_args()
    torch.set_num_threads(1)
    model = nn.ParameterList([torch.empty(asked.parameters).fill_(asked.own)])
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    socket = os.environ["PEERD_SOCKET"]
    with peer.attach(asked.session, model, optimizer, socket=socket, pace="lockstep") as swarm:
        while not asked.until.exists() and not swarm.done:
            model[0].data.fill_(asked.own)
            if swarm.step():
                least, most = model[0].detach().aminmax()
                sys.stdout.write(f"{float(least)} {float(most)}\n")
                sys.stdout.flush()


if __name__ == "__main__":
    main()
