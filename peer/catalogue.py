"""Looks up a user's words: algorithms, options, topologies, tasks, compressions. Standard library only.

The CLI and the daemon check them here without loading torch; the learner builds from the same entries
(entries.py). What is planned and not built is an error that says what exists. Where to look next:
peer/algorithms/, peer/tasks/, peer/compression/.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from typing import Literal

from peer.entries import (
    ALGORITHMS,
    DEFAULT_ALGORITHM,
    DEFAULT_LOCAL_STEPS,
    DEFAULT_TASK,
    DEFAULT_TOPOLOGY,
    DIRECTED,
    MAX_PHASE,
    MAX_RANDOM_K,
    PACES,
    SCRIPT,
    SPEAKERS,
    TASKS,
    TOPOLOGIES,
    TRAINING_OPTIONS,
    TREES,
    AlgorithmEntry,
    Kind,
    TaskEntry,
)
from peer.errors import UsageError
from peer.grammar import (
    COMPRESSION_HELP,
    MAX_BITS,
    PARTS,
    Compression,
    Option,
    Shard,
    parse_compression,
    parse_shard,
    written,
    written_all,
)

__all__ = [
    "ALGORITHMS", "COMPRESSION_HELP", "DEFAULT_ALGORITHM", "DEFAULT_LOCAL_STEPS", "DEFAULT_TASK",
    "DEFAULT_TOPOLOGY", "DIRECTED", "MAX_BITS", "MAX_PHASE", "PACES", "SCRIPT", "SPEAKERS", "TASKS",
    "TOPOLOGIES", "TRAINING_OPTIONS", "TREES", "AlgorithmEntry", "Compression", "Option", "Shard",
    "parse_compression", "parse_shard",
]  # fmt: skip

MANNERS = ("on", "mains", "off")


def algorithm(name: str) -> AlgorithmEntry:
    """Raises UsageError that lists the algorithms there are."""
    if name not in ALGORITHMS:
        raise UsageError(f"no algorithm is called '{name}'; there are {', '.join(ALGORITHMS)}")
    return ALGORITHMS[name]


def task(name: str) -> TaskEntry:
    """Raises UsageError that lists the tasks there are."""
    if name not in TASKS:
        raise UsageError(f"no task is called '{name}'; there are {', '.join(TASKS)}, or name a Python file")
    return TASKS[name]


def check_topology(text: str, algorithm_name: str = DEFAULT_ALGORITHM) -> str:
    """The topology, if there is one of that name and the algorithm can run on it. Raises UsageError."""
    entry = algorithm(algorithm_name)
    kind = "random-K" if text.startswith("random-") else text
    if kind not in TOPOLOGIES:
        raise UsageError(f"no topology is called '{text}'; there are {', '.join(TOPOLOGIES)}")
    if kind not in entry.topologies:
        able = ", ".join(name for name, other in ALGORITHMS.items() if kind in other.topologies)
        raise UsageError(
            f"{entry.name} runs on {', '.join(entry.topologies)}, not on '{text}'; on that one run {able}"
        )
    if kind == "random-K":
        count = text.removeprefix("random-")
        if not re.fullmatch(r"[1-9][0-9]?", count) or int(count) > MAX_RANDOM_K:
            raise UsageError(
                f"topology random-K has K out-neighbors, 1 to {MAX_RANDOM_K}, as in 'random-2', not '{text}'"
            )
    return text


def check_pace(algorithm_name: str, pace: str) -> str:
    """The pace, if there is one of that name and the algorithm is sound in it. Raises UsageError."""
    entry = algorithm(algorithm_name)
    if pace not in PACES:
        raise UsageError(f"no pace is called '{pace}'; there are {', '.join(PACES)}")
    if pace not in entry.paces:
        raise UsageError(
            f"{entry.name} cannot run in the pace '{pace}'; it can in {' or '.join(entry.paces)} "
            f"(--pace, or pace= of peer.attach)"
        )
    return pace


def check_manners(word: str) -> str:
    """The word, if it is one for `--manners`. Raises UsageError."""
    if word not in MANNERS:
        raise UsageError(f"--manners is one of {', '.join(MANNERS)}, not '{word}'")
    return word


def check_budget(algorithm_name: str, budget: str | None) -> None:
    """Raises UsageError for a budget with an algorithm that cannot keep what it does not send."""
    if budget not in (None, "none") and not algorithm(algorithm_name).budget:
        able = ", ".join(name for name, entry in ALGORITHMS.items() if entry.budget)
        raise UsageError(
            f"{algorithm_name} cannot do without what a budget holds back: join with --budget none, or make "
            f"the session with {able}"
        )


def momentum_of(algorithm_name: str, asked: float | None) -> float | None:
    """The optimizer's momentum; None is the task's own. Raises UsageError where there is to be none."""
    entry = algorithm(algorithm_name)
    if entry.momentum:
        return asked
    if asked:
        option = next(key for key in ("momentum", "beta") if key in entry.options)
        raise UsageError(
            f"{entry.name} makes its own momentum of what all devices do, and an optimizer's in front of it "
            f"does harm: leave --momentum out, or set it with --option {option}={asked:g}"
        )
    return 0.0


def check_optimizer(options: Mapping[str, str], momentum: float | None) -> None:
    """Raises UsageError for Nesterov's way of momentum without any. momentum: as `momentum_of` gives it."""
    if options.get("task.optimizer") == "nesterov" and momentum == 0:
        raise UsageError(
            "option optimizer=nesterov needs a momentum above 0, and there is none: give --momentum, or "
            "leave the option out"
        )


def compression_of(algorithm_name: str, text: str) -> Compression:
    """The compression an algorithm is to work with; "" is its default. Raises UsageError if it cannot."""
    entry = algorithm(algorithm_name)
    found = parse_compression(text or entry.compression)
    if kind_of(found) not in entry.compressions:
        can = " or ".join(_LISTED[kind]() for kind in _LISTED if kind in entry.compressions)
        raise UsageError(f"{entry.name} cannot work with compression '{text}'; it can with {can}")
    return found


def kind_of(compression: Compression) -> Kind:
    """What an algorithm needs to know of a compression to say whether it can work with it."""
    if compression.is_auto:
        return "auto"
    if compression.transform is not None:
        return "bits" if compression.bits is not None else "lowrank"
    if compression.sparsifier is not None:
        return "sparse"
    return {"": "none", "sign": "sign"}.get(compression.values, "dense")  # type: ignore[return-value]


_LISTED: dict[Kind, Callable[[], str]] = {
    "none": lambda: "none",
    "bits": lambda: written("bits"),
    "dense": lambda: ", ".join(name for name in _value_types() if name != "sign"),
    "sparse": lambda: f"{written_all('sparsifier')}, each with {', '.join(_value_types())}",
    "sign": lambda: "sign",
    "lowrank": lambda: f"{written('lowrank')}, with a value type or without",
    "auto": lambda: "auto",
}


def _value_types() -> list[str]:
    return [name for name, part in PARTS.items() if part.kind == "value type"]


def resolve_options(algorithm_name: str, task_name: str, pairs: Iterable[str]) -> dict[str, str]:
    """`key=value` texts as {full key: value}: "algorithm.…", "task.…", or one of TRAINING_OPTIONS.

    Bare keys may be used where they are unambiguous. A task file ("file") declares none.
    Raises UsageError that lists the known keys.
    """
    known = dict(TRAINING_OPTIONS)
    known |= {f"algorithm.{key}": option for key, option in algorithm(algorithm_name).options.items()}
    if task_name != "file":
        known |= {f"task.{key}": option for key, option in task(task_name).options.items()}
    chosen: dict[str, str] = {}
    for pair in pairs:
        key, equals, value = pair.partition("=")
        if not equals or not key:
            raise UsageError(f"an option is given as key=value, not '{pair}'")
        full = _full_key(key, known, f"{algorithm_name} with {task_name}")
        if full in chosen:
            raise UsageError(f"option {key} is given twice")
        chosen[full] = known[full].check(key, value)
    return chosen


def check_schedule(options: Mapping[str, str], rounds: int) -> None:
    """Raises UsageError if a session of so many rounds, 0 for no end, cannot have this learning rate over
    time."""
    kind = options.get("schedule", "constant")
    if kind != "constant" and not rounds:
        raise UsageError(f"option schedule={kind} needs a session with an end; give it --rounds")
    text = options.get("lr-decay", TRAINING_OPTIONS["lr-decay"].default)
    for pair in text.split(","):
        at, factor = (float(number) for number in pair.split(":"))
        if not (0 < at < 1 and 0 < factor <= 1):
            raise UsageError(
                "option lr-decay has parts of the session, between 0 and 1, and factors, above 0 to 1, as in "
                f"'{TRAINING_OPTIONS['lr-decay'].default}', not '{pair}'"
            )


def _full_key(key: str, known: Mapping[str, Option], where: str) -> str:
    found = [full for full in known if full == key or full.partition(".")[2] == key]
    if len(found) > 1:
        raise UsageError(f"option '{key}' could be {' or '.join(found)}; write one of them")
    if not found:
        listing = f"there are {', '.join(known)}" if known else "there are none"
        raise UsageError(f"{where} has no option '{key}'; {listing}")
    return found[0]


def options_for(side: Literal["algorithm", "task"], options: Mapping[str, str]) -> dict[str, str]:
    """The options of one side of a descriptor, with bare keys."""
    prefix = side + "."
    return {key.removeprefix(prefix): value for key, value in options.items() if key.startswith(prefix)}


def check_shard(task_name: str, text: str) -> str:
    """The shard, if the task can be split that way; a task file reads it as it likes. Raises UsageError."""
    if task_name == "file":
        return text
    entry, shard = task(task_name), parse_shard(text)
    if shard.kind not in entry.shards:
        raise UsageError(
            f"task {task_name} has no {shard.kind} shards; it has {', '.join(sorted(entry.shards))}"
        )
    if shard.kind == "speaker" and shard.speaker not in entry.speakers:
        raise UsageError(f"no speaker is called '{shard.speaker}'; there are {', '.join(entry.speakers)}")
    return text
