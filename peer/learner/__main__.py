"""The daemon's child: `python -m peer.learner --socket PATH --session NAME`. Ends with its daemon, or on
SIGTERM after the current call, with exit code 0; with an error's exit code after telling the daemon the
reason."""

from __future__ import annotations

import gc

if __name__ == "__main__":
    gc.disable()  # what imports make stays: looking for garbage among it takes a sixth of their time

import argparse
import logging
import os
import random
import select
import signal
import sys
import threading
from pathlib import Path

from peer.compression.self_check import check_codecs
from peer.errors import NoDaemonError, PeerdError
from peer.learner.attach import Swarm, Terms
from peer.learner.devices import pick_device, use_threads
from peer.learner.dial import Attachment, dial
from peer.learner.loop import endless, train
from peer.learner.task import Settings, load_task, seeded_model
from peer.learner.uncompiled import make_without_compiler
from peer.local import Client

ORPHAN_S = 30.0  # a daemon that is killed leaves this long for the current step and a checkpoint (guess)
LINGER_S = 30.0  # after the last step, for what is on its way; the daemon says stop sooner (guess)


def main(arguments: list[str] | None = None) -> int:
    """Attach, train, and return the exit code."""
    parser = argparse.ArgumentParser(prog="python -m peer.learner", description="One session's learner.")
    parser.add_argument("--socket", required=True, type=Path)
    parser.add_argument("--session", required=True)
    asked = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(message)s")
    use_threads()
    attached = None
    try:
        attached = dial(asked.socket, asked.session, child=True)
        _take_part(attached, asked.socket)
    except PeerdError as error:
        logging.getLogger("peerd.learner").error("%s", error)
        if attached is not None:
            _tell(attached.client, error)
        return error.exit_code
    return 0


def _take_part(attached: Attachment, socket: Path) -> None:
    check_codecs()
    make_without_compiler()
    session, options = attached.descriptor, attached.options
    settings = Settings(
        seed=session.seed,
        order=random.SystemRandom().getrandbits(63),
        batch=session.batch,
        lr=session.lr,
        momentum=session.momentum,
        data=options.data,
        options=session.options,
    )
    task = load_task(session.task, settings, attached.task_file)
    device, remark = pick_device(options.device)
    model = seeded_model(task, session.seed).to(device)
    optimizer = task.optimizer(model.parameters())
    batches = endless(task, options.shard, device)
    terms = Terms(socket, session.pace, session.local_steps, child=True, manners=True)
    with Swarm(attached, model, optimizer, terms) as swarm:
        signal.signal(signal.SIGTERM, lambda *_: swarm.stop())
        if remark:
            swarm.log(remark)
        try:
            swarm.begin()
            train(swarm, task, model, optimizer, batches)
        except PeerdError as error:
            swarm.fail(error.exit_code, str(error))
            raise
        swarm.linger(LINGER_S)


def _end_with(daemon: int) -> None:
    """End this process some time after the daemon with this pid, even inside a call that never returns: its
    successor starts a learner of its own on the same checkpoints."""
    try:
        watch = os.pidfd_open(daemon)
    except ProcessLookupError:
        pass
    else:
        select.select([watch], [], [])
    threading.Event().wait(ORPHAN_S)
    os._exit(NoDaemonError.exit_code)


def _tell(client: Client, error: PeerdError) -> None:
    """Say why, if the failure came before there was a link thread to say it."""
    if client.fileno() < 0:
        return
    try:
        client.send({"op": "failed", "code": error.exit_code, "message": str(error)})
    except NoDaemonError:
        logging.getLogger("peerd.learner").info("the daemon is gone and does not hear of it")
    client.close()


if __name__ == "__main__":
    gc.freeze()
    gc.enable()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is meant for the daemon, which says stop in time
    threading.Thread(target=_end_with, args=(os.getppid(),), name="peerd-orphan", daemon=True).start()
    code = main()
    sys.stdout.flush()
    os._exit(code)  # torch's threads take a second to wind down, and nothing is left to write
