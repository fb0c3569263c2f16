"""A module's trainable state as one flat CPU tensor, and back.

Part of it: the parameters that require gradients and the floating-point buffers, in `state_dict` order, each
tensor once. Not part of it: frozen parameters and integer buffers (counters), which stay each device's own.
Writing copies into the module's own tensors, so an optimizer's references hold.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator

import torch
from torch import Tensor, nn

from peer.compression.layout import bound_of, largest
from peer.errors import DataError

Signature = list[tuple[str, list[int], str]]


class FlatModel:
    """The shared part of `module`. `dtype` is float64 if any of its tensors is, else float32."""

    def __init__(self, module: nn.Module) -> None:
        self._tensors = _shared_tensors(module)
        if not any(isinstance(tensor, nn.Parameter) for tensor in self._tensors.values()):
            raise DataError(
                f"the model {type(module).__name__} has no parameter that requires a gradient; "
                "there is nothing to train"
            )
        for name, tensor in self._tensors.items():
            if not tensor.is_floating_point():
                raise DataError(
                    f"the model's '{name}' is {_dtype_name(tensor)}; peerd trains floating-point tensors"
                )
        double = any(tensor.dtype == torch.float64 for tensor in self._tensors.values())
        self.dtype = torch.float64 if double else torch.float32
        self._whole: Tensor | None = None  # what all tensors are views of, after `gather`

    @property
    def device(self) -> torch.device:
        """Where the module's tensors are; where they are in several places, its first one."""
        return next(iter(self._tensors.values())).device

    def gather(self) -> None:
        """Lay the module's tensors out as views of one, where they are of one type and on the CPU: `read` and
        `write` are then one copy. The module's parameters stay the same objects."""
        alike = all(tensor.dtype == self.dtype and tensor.is_cpu for tensor in self._tensors.values())
        if not alike or any(name.endswith("running_var") for name in self._tensors):
            return
        whole = self.read()
        for tensor, part in zip(self._tensors.values(), torch.split(whole, list(self.sizes)), strict=True):
            tensor.data = part.view(tensor.shape)
        self._whole = whole

    @property
    def sizes(self) -> tuple[int, ...]:
        """Numbers per tensor, in order."""
        return tuple(tensor.numel() for tensor in self._tensors.values())

    @property
    def rows(self) -> tuple[int, ...]:
        """Lengths of the tensors' first axes; one of a vector or a number is one row."""
        return tuple(tensor.shape[0] if tensor.dim() > 1 else 1 for tensor in self._tensors.values())

    @property
    def size(self) -> int:
        """d, the length of the flat tensor."""
        return sum(self.sizes)

    @property
    def parameters(self) -> int:
        """Trainable parameters, buffers left out."""
        return sum(tensor.numel() for tensor in self._tensors.values() if isinstance(tensor, nn.Parameter))

    @property
    def signature(self) -> Signature:
        """[(name, shape, dtype)…]: what two devices must agree on."""
        return [(name, list(tensor.shape), _dtype_name(tensor)) for name, tensor in self._tensors.items()]

    def read(self) -> Tensor:
        """A copy of the state: flat [d], CPU, `dtype`."""
        if self._whole is not None:
            return self._whole.clone()
        with torch.no_grad():
            flat = torch.cat(
                [tensor.detach().reshape(-1).to(self.dtype) for tensor in self._tensors.values()]
            )
            return flat.cpu()

    def pieces(self) -> Iterator[Tensor]:
        """The state, piece by piece: flat, CPU, `dtype`, and where it can be the module's own memory."""
        for tensor in (self._whole,) if self._whole is not None else self._tensors.values():
            yield tensor.detach().reshape(-1).to("cpu", self.dtype)

    def bound(self) -> float:
        """As `bound_of` the whole state."""
        return largest(
            bound_of(tensor.detach().reshape(-1).to(self.dtype)) for tensor in self._tensors.values()
        )

    def write(self, flat: Tensor) -> None:
        """Set the module's state to `flat` [d], in place. Running variances are kept from going negative."""
        assert flat.shape == (self.size,), f"a flat model of {self.size} numbers, not {tuple(flat.shape)}"
        if self._whole is not None:
            self._whole.copy_(flat)
            return
        with torch.no_grad():
            parts = torch.split(flat.to(self.device), list(self.sizes))
            for (name, tensor), part in zip(self._tensors.items(), parts, strict=True):
                tensor.copy_(part.view(tensor.shape))
                if name.endswith("running_var"):
                    tensor.clamp_(
                        min=0
                    )  # an average of compressed changes may undershoot; BatchNorm adds its eps

    def named(self, flat: Tensor) -> dict[str, Tensor]:
        """`flat` cut into tensors of the module's names, shapes and dtypes."""
        return unflatten(flat, self.signature)


def unflatten(flat: Tensor, signature: Signature) -> dict[str, Tensor]:
    """A flat model as named tensors. Raises DataError when the sizes do not add up."""
    sizes = [math.prod(shape) for _, shape, _ in signature]
    if flat.numel() != sum(sizes):
        raise DataError(f"a model of {flat.numel()} numbers does not fit a signature of {sum(sizes)}")
    parts = torch.split(flat, sizes)
    return {
        name: part.reshape(shape).to(getattr(torch, dtype)).clone()
        for (name, shape, dtype), part in zip(signature, parts, strict=True)
    }


def signature_bytes(signature: Signature) -> bytes:
    """Canonical JSON: equal exactly when names, shapes and dtypes are."""
    return json.dumps(signature, separators=(",", ":"), ensure_ascii=False).encode()


def _shared_tensors(module: nn.Module) -> dict[str, Tensor]:
    buffers = {id(buffer) for buffer in module.buffers()}
    chosen: dict[str, Tensor] = {}
    seen: set[int] = set()
    for name, tensor in module.state_dict(keep_vars=True).items():
        if not isinstance(tensor, Tensor) or id(tensor) in seen or not tensor.numel():
            continue  # extra state of a module, a tied weight under its second name, or nothing
        seen.add(id(tensor))
        if tensor.requires_grad or (id(tensor) in buffers and tensor.is_floating_point()):
            chosen[name] = tensor
    return chosen


def _dtype_name(tensor: Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")
