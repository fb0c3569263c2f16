"""What a session is and how this device takes part in it, as frozen records. Standard library only.

`Descriptor` is the same on all members: its digest names the session. `JoinOptions` never leave the device.
Both go through `to_dict` and `from_dict`, which is strict: unknown, missing and ill-typed keys are errors.
Where sockets and state are: peer/places.py. What may be named: peer/catalogue.py.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, Self

from peer import catalogue
from peer.errors import ConfigError, UsageError
from peer.grammar import parse_budget
from peer.quiet_hours import QuietHours, parse_quiet_hours

MAX_MEMBERS = 256  # of a session: architecture, section 9
MAX_NAME = 63  # letters: as a DNS label (RFC 1035, 2.3.4)
MAX_TASK_TEXT = 60 * 1024  # bytes of a task file: it travels to the daemon in one frame
NONCE_BYTES = 16
HEX_SHA256 = "[0-9a-f]{64}"
FORMAT = 1


@dataclass(frozen=True, slots=True)
class Descriptor:
    """A session as its creator wrote it. task: a built-in name, or "file" with its SHA-256 in task_digest.

    options: {"algorithm.key" or "task.key": value}. rounds: 0 is forever. compression: "" is the algorithm's
    default. lr, batch, momentum: None is the task's own. nonce: hex, makes each session's id its own.
    """

    name: str
    nonce: str
    task: str = catalogue.DEFAULT_TASK
    task_digest: str = ""
    algorithm: str = catalogue.DEFAULT_ALGORITHM
    options: dict[str, str] = field(default_factory=dict)
    topology: str = catalogue.DEFAULT_TOPOLOGY
    local_steps: int = catalogue.DEFAULT_LOCAL_STEPS
    rounds: int = 0
    pace: Literal["lockstep", "overlap", "free"] = "lockstep"
    compression: str = ""
    lr: float | None = None
    batch: int | None = None
    momentum: float | None = None
    seed: int = 0
    format: int = FORMAT

    def to_dict(self) -> dict[str, Any]:
        return {**dataclasses.asdict(self), "options": dict(self.options)}

    @classmethod
    def from_dict(cls, source: Mapping[str, Any]) -> Self:
        """Raises ConfigError: a key or value is off, or this peerd does not know a name in it."""
        if not isinstance(source, Mapping):
            raise ConfigError(f"the session's descriptor is no object but {str(source)[:80]!r}")
        if source.get("format") != FORMAT:
            raise ConfigError(
                f"the session has format {source.get('format')!r}; this peerd knows {FORMAT}; upgrade it"
            )
        found = cls(**_checked(cls, source, "the session's descriptor"))
        found.check()
        return found

    def canonical(self) -> bytes:
        """The same bytes on every member: JSON with sorted keys and no spaces."""
        return json.dumps(self.to_dict(), sort_keys=True, separators=(",", ":"), allow_nan=False).encode(
            "utf-8"
        )

    @property
    def id(self) -> str:
        """The session's id: 32 hex digits."""
        return hashlib.sha256(self.canonical()).hexdigest()[:32]

    def check(self) -> None:
        """Raises ConfigError if a value is out of range or a name is not in the catalogue."""
        try:
            check_name(self.name)
            catalogue.check_topology(self.topology, self.algorithm)
            catalogue.check_pace(self.algorithm, self.pace)
            catalogue.compression_of(self.algorithm, self.compression)
            catalogue.check_optimizer(self.options, catalogue.momentum_of(self.algorithm, self.momentum))
            if self.task != "file":
                catalogue.task(self.task)
            pairs = [f"{key}={value}" for key, value in self.options.items()]
            catalogue.check_schedule(catalogue.resolve_options(self.algorithm, self.task, pairs), self.rounds)
        except UsageError as error:
            raise ConfigError(f"session '{self.name[:MAX_NAME]}': {error}") from error
        rules = {
            "task_digest": bool(
                re.fullmatch("[0-9a-f]{64}" if self.task == "file" else "", self.task_digest)
            ),
            "nonce": bool(re.fullmatch(f"[0-9a-f]{{{2 * NONCE_BYTES}}}", self.nonce)),
            "local_steps": 1 <= self.local_steps <= 1_000_000,
            "rounds": 0 <= self.rounds < 1 << 40,
            "lr": self.lr is None or 0 < self.lr <= 1000,
            "batch": self.batch is None or 1 <= self.batch <= 1 << 20,
            "momentum": self.momentum is None or 0 <= self.momentum < 1,
            "seed": 0 <= self.seed < 1 << 63,
        }
        for key, holds in rules.items():
            if not holds:
                raise ConfigError(f"session '{self.name}': {key} may not be {getattr(self, key)!r}")


@dataclass(frozen=True, slots=True)
class JoinOptions:
    """How this device takes part. data: a folder; shard: a part of it. peers, listen: "host:port", where
    listen may be ":port" (every address).

    timeout_s: how long to look for a first link. task_file_text: the text of the user's task file. budget: of
    what this device sends, as in `--budget`; "none" lifts one given before. quiet_hours: as in
    `--quiet-hours`, "none" likewise. manners: "on", "off" or "mains"; None is "on".
    """

    data: str | None = None
    shard: str | None = None
    peers: tuple[str, ...] = ()
    device: Literal["auto", "cpu", "cuda"] = "auto"
    listen: str | None = None
    interfaces: tuple[str, ...] = ()
    timeout_s: float = 60.0
    insecure: bool = False
    task_file_text: str | None = None
    budget: str | None = None
    quiet_hours: str | None = None
    manners: str | None = None

    def to_dict(self) -> dict[str, Any]:
        return {**dataclasses.asdict(self), "peers": list(self.peers), "interfaces": list(self.interfaces)}

    @classmethod
    def from_dict(cls, source: Mapping[str, Any]) -> Self:
        """Raises ConfigError: a key or value is off. Options of before there were such have none."""
        if not isinstance(source, Mapping):
            raise ConfigError(f"the join options are no map but {str(source)[:80]!r}")
        source = {"budget": None, "quiet_hours": None, "manners": None, **source}
        found = cls(**_checked(cls, source, "the join options"))
        if found.device not in ("auto", "cpu", "cuda"):
            raise ConfigError(f"device is auto, cpu or cuda, not {found.device!r}")
        if not 0 <= found.timeout_s <= sys.float_info.max:
            raise ConfigError(f"the timeout is a number of seconds from 0, not {found.timeout_s!r}")
        try:
            for address in found.peers:
                check_address(address, needs_host=True)
            if found.listen:
                check_address(found.listen)
            if found.budget is not None:
                parse_budget(found.budget)
            if found.quiet_hours is not None:
                parse_quiet_hours(found.quiet_hours)
            if found.manners is not None:
                catalogue.check_manners(found.manners)
        except UsageError as error:
            raise ConfigError(str(error)) from error
        return found

    @property
    def bytes_per_min(self) -> int | None:
        """The budget; None is without one."""
        return parse_budget(self.budget) if self.budget is not None else None

    @property
    def quiet(self) -> QuietHours | None:
        return parse_quiet_hours(self.quiet_hours) if self.quiet_hours is not None else None


def check_name(name: str) -> str:
    """A session's name, if it can be one. Raises UsageError."""
    if not re.fullmatch(rf"[A-Za-z0-9][A-Za-z0-9._-]{{0,{MAX_NAME - 1}}}", name):
        raise UsageError(
            f"a session's name has 1 to {MAX_NAME} letters, digits, '.', '_' or '-' and begins with a letter "
            f"or digit; {name!r} does not"
        )
    return name


def check_address(text: str, *, needs_host: bool = False) -> tuple[str, int]:
    """Host and port of "host:port", "[v6]:port", or unless it `needs_host` ":port". Raises UsageError."""
    host, colon, port = text.rpartition(":")
    if not colon or not re.fullmatch("[0-9]{1,5}", port) or int(port) > 65535 or (needs_host and not host):
        raise UsageError(f"an address is written HOST:PORT, as in pi-1.local:7070, not {text!r}")
    if ":" in host and not (host.startswith("[") and host.endswith("]")):
        raise UsageError(f"an IPv6 address is written in brackets, as in [fe80::1]:7070, not {text!r}")
    return host.strip("[]"), int(port)


# --- strict records ----------------------------------------------------------------------------------

_MAX_ITEMS, _MAX_WORD = 256, 4096


def _checked(cls: type[Any], source: Mapping[str, Any], what: str) -> dict[str, Any]:
    """The source's values, typed as the dataclass says. Raises ConfigError."""
    kinds = {item.name: str(item.type) for item in dataclasses.fields(cls)}
    if unknown := sorted(str(key) for key in source.keys() - kinds.keys()):
        raise ConfigError(f"{what} has an unknown key '{unknown[0]}'; known are {', '.join(kinds)}")
    if missing := sorted(kinds.keys() - source.keys()):
        raise ConfigError(f"{what} lacks '{missing[0]}'")
    return {key: _typed(kind, source[key], f"{what}: {key}") for key, kind in kinds.items()}


def _typed(kind: str, value: Any, where: str) -> Any:
    if kind.endswith(" | None"):
        return None if value is None else _typed(kind.removesuffix(" | None"), value, where)
    limit = MAX_TASK_TEXT if "task_file_text" in where else _MAX_WORD
    if kind == "tuple[str, ...]" and isinstance(value, (list, tuple)) and len(value) <= _MAX_ITEMS:
        return tuple(_typed("str", item, where) for item in value)
    if kind == "dict[str, str]" and isinstance(value, Mapping) and len(value) <= _MAX_ITEMS:
        return {_typed("str", key, where): _typed("str", item, where) for key, item in value.items()}
    is_text = isinstance(value, str) and len(value.encode("utf-8", "surrogatepass")) <= limit
    if (kind == "str" or kind.startswith("Literal")) and is_text:
        return value
    if kind == "bool" and isinstance(value, bool):
        return value
    if kind == "int" and isinstance(value, int) and not isinstance(value, bool):
        return value
    if (
        kind == "float"
        and isinstance(value, (int, float))
        and not isinstance(value, bool)
        and -sys.float_info.max <= value <= sys.float_info.max
    ):
        return float(value)
    raise ConfigError(f"{where} should be {kind.replace('Literal', 'one of ')}, and is {str(value)[:80]!r}")
