"""Where the model computes: the accelerator if it really works, else the CPU."""

from __future__ import annotations

import os

import torch

from peer.errors import DataError


def pick_device(wanted: str) -> tuple[torch.device, str]:
    """The device for "auto", "cpu" or "cuda", and a sentence for the log ("" when there is nothing to say).

    A driver that does not fit this torch shows in the first kernel only, so one is run. Raises DataError when
    "cuda" is asked for and does not work; "auto" falls back to the CPU.
    """
    if wanted == "cpu" or (wanted == "auto" and not torch.cuda.is_available()):
        return torch.device("cpu"), ""
    fault = _kernel_fault()
    if not fault:
        return torch.device("cuda"), f"training on {torch.cuda.get_device_name()}"
    if wanted == "cuda":
        raise DataError(f"--device cuda: no kernel runs on this device's GPU ({fault}); use --device cpu")
    return torch.device("cpu"), f"training on the CPU: no kernel runs on this device's GPU ({fault})"


def name_of(device: torch.device) -> str:
    """For people: what a model that lies there is computed on."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return "CPU" if device.type == "cpu" else device.type


def _kernel_fault() -> str:
    """Why a small convolution and its gradient do not run on the GPU, "" when they do."""
    try:
        x = torch.ones(1, 1, 4, 4, device="cuda", requires_grad=True)
        torch.nn.functional.conv2d(x, torch.ones(1, 1, 3, 3, device="cuda")).sum().backward()
        torch.cuda.synchronize()
    except (RuntimeError, AssertionError) as error:  # torch raises AssertionError when built without CUDA
        return (str(error).splitlines() or ["no reason given"])[0][:200]
    return ""


def use_threads() -> None:
    """Intra-op threads as the daemon says in OMP_NUM_THREADS, its cores divided among its learners."""
    threads = os.environ.get("OMP_NUM_THREADS", "")
    if threads.isdecimal() and int(threads) > 0:
        torch.set_num_threads(int(threads))
