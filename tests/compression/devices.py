"""Where tensors may lie that a compressor is given: everywhere this machine has."""

from __future__ import annotations

import torch

DEVICES = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]
EVERYWHERE = [(device, dtype) for device in DEVICES for dtype in (torch.float32, torch.float64)]
