"""What can be said of algorithms, tasks and topologies without loading them. Standard library only.

One entry each, with its options; catalogue.py looks names up here and says what is wrong with a user's words.
Where to look next: peer/algorithms/, peer/tasks/.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, TypedDict

from peer.grammar import MAX_BITS, Option, ShardKind

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
    where what it does not send is lost for good, or waited for. momentum: may the optimizer have one, or has
    the algorithm its own?
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
# counts them: 8 peers, Fashion-MNIST cnn, exponential graph (bench/results/frontier.json).
_PRESETS = {
    "dense": Preset(4, "bits=1"),  # 125x, of 512 exchanges
    "balanced": Preset(16, "bits=1"),  # 485x, of 128
    "frugal": Preset(32, "bits=0.95"),  # 1017x, of 128 in twice the steps
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
                    "steps; rate, but steps with logit-adjustment or not-true-distillation",
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
                topologies=("ring", "exponential", "grid", "complete", "chain", "binary-tree"),
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
            "the mean of all models in every round, each device averaging a part of them",
            compression="none",
            compressions=DENSE,
            options={
                "parts": Option(
                    "auto",
                    "each device averages a part of the model, not all of it: on; auto from 1 MB",
                    choices=("auto", "on", "off"),
                )
            },
            topologies=("complete",),
            presets={},
            graph="undirected",
            paces=("lockstep", "overlap"),
            budget=False,
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

# of all tasks that come with peerd: what makes their local steps (peer/learner/task.py)
OPTIMIZERS = ("sgd", "nesterov", "adam")
_STEPS = {
    "optimizer": Option(
        "sgd", "with --momentum; nesterov: looking ahead by it; adam: its first beta", choices=OPTIMIZERS
    )
}

# of tasks that tell classes apart (peer/tasks/labels.py, batches.py)
_CLASSES = {
    "logit-adjustment": Option(
        "0", "0.5 where devices have very different labels: expect one's own to be as frequent", most=4
    ),
    "not-true-distillation": Option(
        "0", "1 where labels differ, not on the ring: keep what others taught of labels one lacks", most=1
    ),
    "validation": Option(
        "0", "so many training examples held out, and evaluated on instead of test ones", most=1e6, whole=True
    ),
}

SPEAKERS = ("george", "jackson", "lucas", "nicolas", "theo", "yweweler")  # of the spoken-digits data

SCRIPT = "script"  # the task of sessions that have none: scripts alone train in them
TASKS: dict[str, TaskEntry] = {
    entry.name: entry
    for entry in (
        TaskEntry(
            "spoken-digits",
            "ten spoken digits by six speakers; the data comes with peerd",
            shards=frozenset({"part", "dirichlet", "natural", "speaker"}),
            options={**_CLASSES, **_STEPS},
            speakers=SPEAKERS,
        ),
        TaskEntry(
            "quadratic",
            "a quadratic bowl per device; for trying things out",
            shards=frozenset({"part"}),
            options={
                "dim": Option("1000", "number of parameters", least=1, most=1e8, whole=True),
                "noise": Option("0", "deviation of the gradients' noise", most=1e6),
                **_STEPS,
            },
        ),
        TaskEntry(
            "fashion-mnist",
            "ten kinds of clothes in 28 x 28 pictures; its four files lie in the folder of --data",
            shards=frozenset({"part", "dirichlet"}),
            options={
                "model": Option("cnn", "54,314 parameters, or 101,770", choices=("cnn", "mlp")),
                **_CLASSES,
                **_STEPS,
            },
        ),
        TaskEntry(
            "characters",
            "the next character of a text, a file that --data names",
            shards=frozenset({"part"}),
            options={
                "model": Option("gru", "which kind of model", choices=("gru", "transformer")),
                "context": Option("64", "bytes it looks back", least=8, most=1024, whole=True),
                **_STEPS,
            },
        ),
        TaskEntry(
            SCRIPT,
            "none: only scripts of your own train, those that call peer.attach",
            shards=frozenset(),
            options={},
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
