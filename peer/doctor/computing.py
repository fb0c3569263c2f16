"""Does torch work here? A wheel that was built for another processor ends a process with SIGILL, without a
word, and often only at the first operation: so a child tries it.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import Mapping
from contextlib import suppress

from peer.doctor.finding import Finding

# A product, its gradient and one step of a sum: what a learner's first second does, in each of fp32 and
# int64.
TRIAL = """
import torch
print(torch.__version__, flush=True)
x = torch.ones(64, 64, requires_grad=True)
(x @ x).exp().mean().backward()
assert torch.arange(64).sum().item() == 2016 and x.grad is not None
print("works", flush=True)
"""
FOR_A_PI = "'torch>=2.5,<2.10'"
INSTALLED = "/opt/peerd"  # deploy/install.sh's; what its releases hold is its own to change
UNTRIED_BYTES = 300 << 20  # with less memory left the trial itself would push others out (guess)


async def try_torch(timeout_s: float, env: Mapping[str, str] = os.environ) -> Finding:
    """Run the trial in a child of this Python, for so long at the most."""
    child = await asyncio.create_subprocess_exec(
        *[sys.executable, "-P", "-c", TRIAL],
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        env={**env, "OMP_NUM_THREADS": "1"},
    )
    try:
        async with asyncio.timeout(timeout_s):
            said, complaint = await child.communicate()
    except TimeoutError:
        return _too_slow(timeout_s)
    finally:
        if child.returncode is None:
            with suppress(ProcessLookupError):
                child.kill()
            await child.wait()
    assert child.returncode is not None
    return judge(child.returncode, said.decode("utf-8", "replace"), complaint.decode("utf-8", "replace"))


def judge(code: int, said: str, complaint: str) -> Finding:
    """How the trial ended: its exit code (below 0 is a signal), what it printed and its last words."""
    version, *rest = said.split() or [""]
    last = complaint.strip().splitlines()[-1] if complaint.strip() else ""
    data = {"version": version or None, "exit_code": code, "said": last or None}
    torch = f"torch {version}" if version else "torch"
    if code == 0 and rest == ["works"]:
        return Finding("torch", "ok", f"{torch} computes", "", data)
    if code == -signal.SIGILL:
        when = "at its first operation" if version else "while it is loaded"
        return Finding(
            "torch",
            "problem",
            f"{torch} dies of an illegal instruction {when}: it was built for a processor that has "
            "instructions this one lacks (torch 2.10 on a Raspberry Pi 4 does so)",
            f"install another one beside peerd: {_install()}",
            data,
        )
    if code < 0:
        seen = f"{torch} dies of signal {_name(-code)} when it computes"
        why = "the kernel's log may say why ('sudo dmesg | tail'); memory may be short"
        return Finding("torch", "problem", seen, why, data)
    if "No module named 'torch'" in last:
        advice = f"install it: {_install()} on a Pi; docs/install.md says which elsewhere"
        return Finding("torch", "problem", "torch is not installed beside peerd", advice, data)
    seen = f"{torch} does not work: {last or f'exit code {code}'}"
    again = f"install torch again, beside peerd: {_install()}; docs/install.md says which"
    return Finding("torch", "problem", seen, again, data)


def _install() -> str:
    """The command that puts a torch beside this peerd, by the means that peerd came with."""
    if sys.executable.startswith(f"{INSTALLED}/"):
        return "'sudo deploy/install.sh --torch torch==2.9.1'"
    return f"'{sys.executable} -m pip install {FOR_A_PI}'"


def not_tried(available: int) -> Finding:
    seen = f"torch is not tried: only {available / 1e6:.0f} MB of memory are left"
    return Finding(
        "torch", "warning", seen, "end other programs and run 'peerd doctor' again", {"version": None}
    )


def in_use(session: str) -> Finding:
    """A learner of this device trains: there is nothing left to try."""
    return Finding("torch", "ok", f"torch computes: the learner of '{session}' trains", "", {"version": None})


def _too_slow(timeout_s: float) -> Finding:
    return Finding(
        "torch",
        "warning",
        f"torch was not loaded and tried within {timeout_s:.0f} s",
        "a slow SD card takes longer the first time: run 'peerd doctor' again",
        {"version": None},
    )


def _name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return str(number)
