"""Names and what goes with them: algorithms, options, topologies, tasks, compressions. Standard library only.

The CLI and the daemon check a user's words here without loading torch; the learner builds from the same
entries. What is planned and not built is an error that says what exists. Where to look next:
peer/algorithms/, peer/tasks/, peer/compression/.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Literal, TypedDict

from peer.errors import UsageError
from peer.grammar import (
    COMPRESSION_HELP,
    MAX_BITS,
    PARTS,
    Compression,
    Option,
    Shard,
    ShardKind,
    parse_compression,
    parse_shard,
    written,
    written_all,
)

__all__ = ["COMPRESSION_HELP", "Compression", "Option", "Shard", "parse_compression", "parse_shard"]


PACES = ("lockstep", "overlap", "free")


@dataclass(frozen=True, slots=True)
class Preset:
    """What a preset stands for when the user does not say otherwise."""

    local_steps: int
    compression: str


Kind = Literal["none", "dense", "sign", "sparse", "lowrank", "bits", "auto"]  # of compressions
DENSE: frozenset[Kind] = frozenset({"none", "dense", "auto"})
EXACT: frozenset[Kind] = frozenset({"none"})
WITH_FEEDBACK: frozenset[Kind] = frozenset({"sparse", "sign", "lowrank"})
ALL_BUT_NONE: frozenset[Kind] = frozenset({"bits", "dense", "sign", "sparse", "lowrank", "auto"})


@dataclass(frozen=True, slots=True)
class AlgorithmEntry:
    """An algorithm without loading it. compression: its default; compressions: the kinds it can work with.

    topologies: those it runs on, its default first. graph: what it needs of one; all but "directed" exchange
    on a graph that the members agree on. paces: those it is sound in. budget: may a device have one? Not
    where what it does not send is lost for good. momentum: may the optimizer have one, or has the algorithm
    its own?
    """

    name: str
    about: str
    compression: str
    compressions: frozenset[Kind]
    options: Mapping[str, Option]
    topologies: tuple[str, ...]
    presets: Mapping[str, Preset]
    graph: Literal["directed", "undirected", "tree"] = "directed"
    paces: tuple[str, ...] = PACES
    budget: bool = True
    momentum: bool = True


@dataclass(frozen=True, slots=True)
class TaskEntry:
    """What can be said about a built-in task without loading it. shards: the kinds of SHARD it takes."""

    name: str
    about: str
    shards: frozenset[ShardKind]
    options: Mapping[str, Option]
    speakers: tuple[str, ...] = ()


DIRECTED = ("exponential", "ring", "random-K", "complete", "grid")  # for push-sum: mesh/topology.py
UNDIRECTED = ("ring", "grid", "complete", "exponential", "chain", "binary-tree")  # for gossip: the same
TREES = ("binary-tree", "double-tree", "chain", "spanning-tree")  # for relays: mesh/graphs.py
TOPOLOGIES = (
    *("ring", "exponential", "random-K", "complete", "grid"),
    *("chain", "binary-tree", "double-tree", "spanning-tree"),
)
MAX_PHASE = 64  # rounds of DeTAG without a step: what theory asks for on a ring of 100 (guess)
MAX_RANDOM_K = 16  # out-neighbors a round; more is 'complete' in a house (guess)
DEFAULT_ALGORITHM, DEFAULT_TOPOLOGY, DEFAULT_TASK = (
    "difference-push",
    "exponential",
    "spoken-digits",
)
DEFAULT_LOCAL_STEPS = 16  # as preset "balanced"

# Local steps and bits per exchange. Bytes saved on the wire, final rounds included, as `peerd rehearse`
# counts them: 8 peers, Fashion-MNIST cnn, exponential graph, 128 exchanges (bench/frontier.py).
_PRESETS = {
    "dense": Preset(4, "bits=1"),  # 122x
    "balanced": Preset(16, "bits=1"),  # 485x
    "frugal": Preset(32, "bits=0.95"),  # 1018x
}

_GUARD = {
    "min-weight": Option("0.4", "a node lighter than this, relative to the others, gives nothing away"),
    "overshoot": Option(
        "1.25", "a light node's model moves at most so many times its own local change", least=1, most=1e9
    ),
}

_RATE = Option(
    "1", "averagings that a device takes part in, for each round's local steps", least=0.01, most=16
)


class _Lossless(TypedDict):
    topologies: tuple[str, ...]
    presets: Mapping[str, Preset]
    graph: Literal["undirected"]
    paces: tuple[str, ...]
    budget: bool


# what cannot do without a message waits for it: peer/algorithms/lossless.py
_LOSSLESS: _Lossless = {
    "topologies": UNDIRECTED,
    "presets": {},
    "graph": "undirected",
    "paces": ("lockstep",),
    "budget": False,
}

ALGORITHMS: dict[str, AlgorithmEntry] = {
    entry.name: entry
    for entry in (
        AlgorithmEntry(
            "difference-push",
            "sends what each neighbor does not know yet, quantized; the default",
            compression="bits=1",
            compressions=ALL_BUT_NONE,
            options={
                "preset": Option("balanced", "how many bytes to save", choices=tuple(_PRESETS)),
                "bits": Option("1", "as --compression bits=R", least=0.01, most=MAX_BITS),
                "final-bits": Option("2", "bits in the final rounds", least=0.01, most=MAX_BITS),
                "placing": Option(
                    "rate",
                    "of exchanges in a session with an end: by the learning rate summed up, or every so many "
                    "steps; rate, but steps with logit-adjustment",
                    choices=("rate", "steps"),
                ),
                "share": Option("0.5", "most of the weight in one parcel", most=0.5),
                "replicas": Option("on", "remember what each neighbor knows", choices=("on", "off")),
                "replica-mb": Option(
                    "auto",
                    "memory for that; auto is a quarter of what the device has left",
                    most=1e6,
                    words=("auto",),
                ),
                **_GUARD,
            },
            topologies=DIRECTED,
            presets=_PRESETS,
        ),
        AlgorithmEntry(
            "sgp",
            "stochastic gradient push: whole models (Assran et al. 2019)",
            compression="none",
            compressions=DENSE,
            options=dict(_GUARD),
            topologies=DIRECTED,
            presets={},
        ),
        AlgorithmEntry(
            "sparse-push",
            "top-k of the model with error feedback (Aketi et al. 2021)",
            compression="topk=1%,fp16",
            compressions=WITH_FEEDBACK,
            options={
                "gamma": Option(
                    "auto", "consensus step; auto is the share kept", least=1e-6, words=("auto",)
                ),
                "reference": Option(
                    "zero",
                    "top-k of the model (zero: the paper) or of what differs from the initial one",
                    choices=("zero", "initial"),
                ),
                **_GUARD,
            },
            topologies=DIRECTED,
            presets={},
        ),
        AlgorithmEntry(
            "relay-sum",
            "whole models relayed along a tree: the exact mean, some rounds old (Vogels et al. 2021)",
            compression="none",
            compressions=DENSE,
            options={
                "fill": Option(
                    "prev",
                    "what stands in for devices not heard of: the device's own model before its local steps "
                    "or after them (half), the initial one, or nothing (counts)",
                    choices=("prev", "x0", "half", "counts"),
                ),
                "lr-correction": Option(
                    "on",
                    "raise the learning rate of every local step by what the delay takes",
                    choices=("on", "off"),
                ),
            },
            topologies=TREES,
            presets={},
            graph="tree",
        ),
        AlgorithmEntry(
            "relay-sum-grad",
            "changes relayed along a tree, each applied once everywhere; for networks that lose nothing",
            compression="none",
            compressions=DENSE,
            options={},
            topologies=TREES,
            presets={},
            graph="tree",
            paces=("lockstep", "overlap"),
            budget=False,
        ),
        AlgorithmEntry(
            "d-psgd",
            "whole models averaged with the neighbors': a baseline (Lian et al. 2017)",
            compression="none",
            compressions=DENSE,
            options={},
            topologies=UNDIRECTED,
            presets={},
            graph="undirected",
        ),
        *(
            AlgorithmEntry(
                name,
                about,
                compression="none",
                compressions=DENSE - {"auto"},
                options={"rate": _RATE},
                topologies=("exponential", "ring", "grid", "complete", "chain", "binary-tree"),
                presets={},
                graph="undirected",
                paces=("lockstep", "overlap"),
            )
            for name, about in (
                (
                    "a2cid2",
                    "two neighbors average at a time, nobody waits, with momentum (Nabli et al. 2023)",
                ),
                ("ad-psgd", "as a2cid2 without its momentum: a baseline (Lian et al. 2018)"),
            )
        ),
        AlgorithmEntry(
            "power-gossip",
            "low-rank differences of neighbors, found by power iteration (Vogels et al. 2020)",
            compression="none",
            compressions=frozenset({"none"}),
            options={
                "rank": Option("1", "of the differences", least=1, most=64, whole=True),
                "iterations": Option("1", "of power iteration in a round", least=1, most=64, whole=True),
                "diffusion": Option(
                    "1",
                    "over-relaxation; auto is the best for the graph",
                    least=0.01,
                    most=2,
                    words=("auto",),
                ),
                "warm-start": Option(
                    "on", "begin with what the last iteration has come to", choices=("on", "off")
                ),
            },
            topologies=("exponential", "ring", "grid", "complete", "chain", "binary-tree"),
            presets={},
            graph="undirected",
            paces=("lockstep", "overlap"),
            budget=False,
        ),
        AlgorithmEntry(
            "qg-d-psgd",
            "d-psgd with a momentum of what the models do together (Lin et al. 2021)",
            compression="none",
            compressions=DENSE,
            options={"beta": Option("0.9", "momentum; the optimizer's own is to be 0", most=0.999)},
            topologies=UNDIRECTED,
            presets={},
            graph="undirected",
            momentum=False,
        ),
        AlgorithmEntry(
            "all-reduce",
            "d-psgd with everybody: the mean of all models in every round, for reference",
            compression="none",
            compressions=DENSE,
            options={},
            topologies=("complete",),
            presets={},
            graph="undirected",
        ),
        AlgorithmEntry(
            "d2",
            "whole models, less what unlike data made of the last ones (Tang et al. 2018)",
            compression="none",
            compressions=EXACT,
            options={
                "lazy": Option(
                    "on",
                    "average with (I + W) / 2 on every graph, or only where W would be unstable",
                    choices=("on", "off"),
                )
            },
            **_LOSSLESS,
        ),
        AlgorithmEntry(
            "dsgt",
            "whole models, and what tracks the mean gradient (Pu, Nedic 2021)",
            compression="none",
            compressions=EXACT,
            options={},
            **_LOSSLESS,
        ),
        AlgorithmEntry(
            "detag",
            "gradient tracking with accelerated gossip, in phases of some rounds (Lu, De Sa 2021)",
            compression="none",
            compressions=EXACT,
            options={
                "rounds": Option(
                    "auto",
                    "of a phase, whose steps make one batch; auto is by the graph, 4 at the most",
                    least=1,
                    most=MAX_PHASE,
                    whole=True,
                    words=("auto",),
                ),
                "eta": Option(
                    "auto", "acceleration; auto is by the graph, 0 is none", most=0.999, words=("auto",)
                ),
                "momentum": Option("0", "before the tracker; the optimizer's own is to be 0", most=0.999),
            },
            momentum=False,
            **_LOSSLESS,
        ),
        AlgorithmEntry(
            "choco-sgd",
            "compressed differences to what the neighbors know (Koloskova et al. 2019)",
            compression="sign",
            compressions=WITH_FEEDBACK | {"dense"},
            options={
                "gamma": Option("auto", "consensus step; auto is the share kept", least=1e-6, words=("auto",))
            },
            **_LOSSLESS,
        ),
    )
}

# of tasks that tell classes apart (peer/tasks/labels.py, batches.py)
_CLASSES = {
    "logit-adjustment": Option(
        "0", "0.5 where devices have very different labels: expect one's own to be as frequent", most=4
    ),
    "validation": Option(
        "0", "so many training examples held out, and evaluated on instead of test ones", most=1e6, whole=True
    ),
}

SPEAKERS = ("george", "jackson", "lucas", "nicolas", "theo", "yweweler")  # of the spoken-digits data

TASKS: dict[str, TaskEntry] = {
    entry.name: entry
    for entry in (
        TaskEntry(
            "spoken-digits",
            "ten spoken digits by six speakers; the data comes with peerd",
            shards=frozenset({"part", "dirichlet", "natural", "speaker"}),
            options=_CLASSES,
            speakers=SPEAKERS,
        ),
        TaskEntry(
            "quadratic",
            "a quadratic bowl per device; for trying things out",
            shards=frozenset({"part"}),
            options={
                "dim": Option("1000", "number of parameters", least=1, most=1e8, whole=True),
                "noise": Option("0", "deviation of the gradients' noise", most=1e6),
            },
        ),
        TaskEntry(
            "fashion-mnist",
            "ten kinds of clothes in 28 x 28 pictures; its four files lie in the folder of --data",
            shards=frozenset({"part", "dirichlet"}),
            options={
                "model": Option("cnn", "54,314 parameters, or 101,770", choices=("cnn", "mlp")),
                **_CLASSES,
            },
        ),
        TaskEntry(
            "characters",
            "the next character of a text, a file that --data names",
            shards=frozenset({"part"}),
            options={
                "model": Option("gru", "which kind of model", choices=("gru", "transformer")),
                "context": Option("64", "bytes it looks back", least=8, most=1024, whole=True),
            },
        ),
    )
}


# The learning rate over a session (peer/schedule.py).
_PAIR = r"[0-9]*\.?[0-9]+:[0-9]*\.?[0-9]+"
TRAINING_OPTIONS = {
    "schedule": Option(
        "cosine", "of the learning rate; constant without an end", choices=("constant", "cosine", "step")
    ),
    "warmup": Option("50", "steps of rising learning rate", most=1e9, whole=True),
    "lr-decay": Option("0.75:0.1,0.9:0.1", "of schedule=step", form=rf"{_PAIR}(,{_PAIR})*"),
}


# --- looking names up --------------------------------------------------------------------------------


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


def check_budget(algorithm_name: str, budget: str | None) -> None:
    """Raises UsageError for a budget with an algorithm that cannot keep what it does not send."""
    if budget not in (None, "none") and not algorithm(algorithm_name).budget:
        able = ", ".join(name for name, entry in ALGORITHMS.items() if entry.budget)
        raise UsageError(
            f"{algorithm_name} loses for good what a budget holds back: join with --budget none, or make the "
            f"session with {able}"
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
