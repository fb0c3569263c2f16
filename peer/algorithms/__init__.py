"""The algorithms, one file per paper, and `make`, which builds one from a session's descriptor.

base.py is the protocol they follow, push_sum.py what those share whose mass moves along links, whole_model.py
what those do that send whole models.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial

import torch

from peer import catalogue
from peer.algorithms.a2cid2 import A2CiD2
from peer.algorithms.ad_psgd import ADPSGD
from peer.algorithms.all_reduce import AllReduce
from peer.algorithms.base import Algorithm
from peer.algorithms.choco import ChocoSGD
from peer.algorithms.d2 import D2
from peer.algorithms.d_psgd import DPSGD
from peer.algorithms.detag import DeTAG
from peer.algorithms.difference_push import Budget, DifferencePush
from peer.algorithms.gradient_tracking import DSGT
from peer.algorithms.power_gossip import PowerGossip
from peer.algorithms.push_sum import GUARD, Guard
from peer.algorithms.quasi_global import QuasiGlobal
from peer.algorithms.relay_sum import FILLS, RelayGrad, RelaySum
from peer.algorithms.replicas import REPLICA_MB
from peer.algorithms.sgp import SGP
from peer.algorithms.sparse_push import SparsePush, consensus_step
from peer.catalogue import MAX_PHASE
from peer.compression.bodies import Layout
from peer.compression.compressor import Compressor, Fitting, compressor
from peer.compression.history import recalling
from peer.errors import UsageError
from peer.grammar import MAX_BITS, Compression

_KNOWN = {
    "sgp": ("min-weight", "overshoot"),
    "sparse-push": ("gamma", "reference", "min-weight", "overshoot"),
    "difference-push": (
        "preset",
        "bits",
        "final-bits",
        "placing",  # peer/placing.py: of rounds, not of what they send
        "share",
        "replicas",
        "replica-mb",
        "min-weight",
        "overshoot",
    ),
    "relay-sum": ("fill", "lr-correction"),
    "relay-sum-grad": (),
    "d-psgd": (),
    "a2cid2": ("rate",),
    "ad-psgd": ("rate",),
    "power-gossip": ("rank", "iterations", "diffusion", "warm-start"),
    "all-reduce": ("parts",),
    "qg-d-psgd": ("beta",),
    "choco-sgd": ("gamma",),
    "d2": ("lazy",),
    "dsgt": (),
    "detag": ("rounds", "eta", "momentum"),
}


def make(
    name: str,
    options: Mapping[str, str],
    layout: Layout,
    dtype: torch.dtype,
    compression: str = "",
    *,
    lockstep: bool = True,
) -> Algorithm:
    """The algorithm of that name. Raises UsageError.

    options: its own, with bare keys. compression: as in `--compression`, "" for the algorithm's default.
    lockstep: False for pace "free".
    """
    spec = catalogue.compression_of(name, compression)
    unknown = set(options) - set(_KNOWN[name])
    if unknown:
        known = ", ".join(_KNOWN[name]) or "none"
        raise UsageError(f"{name} has no option '{min(unknown)}'; there are {known}")
    catalogue.check_pace(name, "lockstep" if lockstep else "free")
    build = {
        "sgp": _sgp,
        "sparse-push": _sparse_push,
        "difference-push": _difference_push,
        "relay-sum": _relay_sum,
        "relay-sum-grad": _relay_grad,
        "d-psgd": _d_psgd,
        "a2cid2": _a2cid2,
        "ad-psgd": _ad_psgd,
        "power-gossip": _power_gossip,
        "all-reduce": _all_reduce,
        "qg-d-psgd": _quasi_global,
        "choco-sgd": _choco_sgd,
        "d2": _d2,
        "dsgt": _dsgt,
        "detag": _detag,
    }[name]
    return build(_Request(options, layout, dtype, spec, lockstep))


@dataclass(frozen=True, slots=True)
class _Request:
    """What `make` was asked for."""

    options: Mapping[str, str]
    layout: Layout
    dtype: torch.dtype
    spec: Compression
    lockstep: bool

    def number(self, key: str, default: float, least: float, most: float) -> float:
        text = self.options.get(key)
        if text is None:
            return default
        try:
            value = float(text)
        except ValueError:
            value = float("nan")
        if not least <= value <= most:
            raise UsageError(f"option {key} is a number from {least:g} to {most:g}, not '{text}'")
        return value

    def word(self, key: str, *words: str) -> str:
        """One of `words`; the first is the default."""
        text = self.options.get(key, words[0])
        if text not in words:
            raise UsageError(f"option {key} is one of {', '.join(words)}, not '{text}'")
        return text

    def is_auto(self, key: str) -> bool:
        return self.options.get(key, "auto") == "auto"

    @property
    def gamma(self) -> float:
        """The consensus step of what is sent compressed."""
        if self.is_auto("gamma"):
            return consensus_step(self.spec, self.layout)
        return self.number("gamma", 1.0, 1e-6, 1.0)

    @property
    def guard(self) -> Guard:
        return Guard(
            self.number("min-weight", GUARD.min_weight, 0.0, 1.0),
            self.number("overshoot", GUARD.overshoot, 1.0, 1e9),
        )

    @property
    def compressor(self) -> Compressor:
        return compressor(self.spec, self.layout, self.dtype)

    @property
    def Q(self) -> Compressor | Fitting | None:
        """How whole vectors travel; None: exactly as they are."""
        if self.spec.is_auto:
            return Fitting(self.layout, self.dtype)
        return None if self.spec == Compression() else self.compressor


def _sgp(asked: _Request) -> Algorithm:
    return SGP(asked.layout, asked.dtype, asked.Q, lockstep=asked.lockstep, guard=asked.guard)


def _sparse_push(asked: _Request) -> Algorithm:
    return SparsePush(
        asked.layout,
        asked.dtype,
        asked.compressor,
        asked.gamma,
        reference="initial" if asked.word("reference", "zero", "initial") == "initial" else "zero",
        lockstep=asked.lockstep,
        guard=asked.guard,
    )


def _difference_push(asked: _Request) -> Algorithm:
    """`bits` is short for `--compression bits=R`; `preset` has been turned into one by whoever took it."""
    plain = Budget()
    replicas = asked.word("replicas", "on", "off") == "on"
    usual = None if asked.spec.bits is not None or asked.spec.is_auto else asked.compressor
    if usual is not None and "bits" in asked.options:
        raise UsageError("option bits is for --compression bits=R, and another compression is given")
    asked_bits = "bits" in asked.options or asked.spec.bits not in (None, plain.R)
    bits = asked.number("bits", asked.spec.bits or plain.R, 0.01, MAX_BITS)
    budget = Budget(
        R=bits,
        final=asked.number("final-bits", max(bits, plain.final), 0.01, MAX_BITS),
        fixed=bits if asked_bits and not replicas else max(bits, plain.fixed),
        share=asked.number("share", plain.share, 0.0, plain.share),
    )
    return DifferencePush(
        asked.layout,
        asked.dtype,
        partial(recalling, asked.layout),
        compressor(Compression(values="int8"), asked.layout, asked.dtype),
        budget,
        usual=usual,
        auto=asked.spec.is_auto,
        replicas=replicas,
        replica_mb=_replica_mb(asked),
        lockstep=asked.lockstep,
        guard=asked.guard,
    )


def _replica_mb(asked: _Request) -> float:
    """What "auto" comes to is the learner's to say (learner/memory.py); else it is a constant."""
    if asked.options.get("replica-mb") == "auto":
        return REPLICA_MB
    return asked.number("replica-mb", REPLICA_MB, 0.0, 1e6)


def _relay_sum(asked: _Request) -> Algorithm:
    fill = asked.word("fill", *FILLS)
    return RelaySum(
        asked.layout,
        asked.dtype,
        asked.Q,
        fill=next(known for known in FILLS if known == fill),
        correction=asked.word("lr-correction", "on", "off") == "on",
        lockstep=asked.lockstep,
    )


def _relay_grad(asked: _Request) -> Algorithm:
    return RelayGrad(asked.layout, asked.dtype, asked.Q)


def _d_psgd(asked: _Request) -> Algorithm:
    return DPSGD(asked.layout, asked.dtype, asked.Q, lockstep=asked.lockstep)


def _a2cid2(asked: _Request) -> Algorithm:
    return A2CiD2(asked.layout, asked.dtype, asked.Q, _rate(asked))


def _ad_psgd(asked: _Request) -> Algorithm:
    return ADPSGD(asked.layout, asked.dtype, asked.Q, _rate(asked))


def _rate(asked: _Request) -> float:
    return asked.number("rate", 1.0, 0.01, 16.0)


def _power_gossip(asked: _Request) -> Algorithm:
    auto = asked.options.get("diffusion") == "auto"
    return PowerGossip(
        asked.layout,
        asked.dtype,
        rank=int(asked.number("rank", 1, 1, 64)),
        iterations=int(asked.number("iterations", 1, 1, 64)),
        diffusion=None if auto else asked.number("diffusion", 1.0, 0.01, 2.0),
        warm=asked.word("warm-start", "on", "off") == "on",
    )


def _all_reduce(asked: _Request) -> Algorithm:
    asked_for = asked.word("parts", "auto", "on", "off")
    parts = None if asked_for == "auto" else asked_for == "on"
    return AllReduce(asked.layout, asked.dtype, asked.Q, parts=parts)


def _quasi_global(asked: _Request) -> Algorithm:
    beta = asked.number("beta", 0.9, 0.0, 0.999)
    return QuasiGlobal(asked.layout, asked.dtype, asked.Q, beta=beta, lockstep=asked.lockstep)


def _choco_sgd(asked: _Request) -> Algorithm:
    return ChocoSGD(asked.layout, asked.dtype, asked.compressor, asked.gamma)


def _d2(asked: _Request) -> Algorithm:
    return D2(asked.layout, asked.dtype, lazy=asked.word("lazy", "on", "off") == "on")


def _dsgt(asked: _Request) -> Algorithm:
    return DSGT(asked.layout, asked.dtype)


def _detag(asked: _Request) -> Algorithm:
    return DeTAG(
        asked.layout,
        asked.dtype,
        R="auto" if asked.is_auto("rounds") else int(asked.number("rounds", 1, 1, MAX_PHASE)),
        eta="auto" if asked.is_auto("eta") else asked.number("eta", 0.0, 0.0, 0.999),
        beta=asked.number("momentum", 0.0, 0.0, 0.999),
    )
