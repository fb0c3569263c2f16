"""The pure rooms stay pure, and no folder a user happens to be in can shadow our modules.

import-linter (pyproject.toml) holds who may import whom; this file holds what it cannot see: names taken from
allowed modules, builtins, and how other Python processes are started.
"""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = ("peer", "cli")

PURE = [
    "peer/mesh/membership.py",
    "peer/mesh/suspicion.py",
    "peer/mesh/probing.py",
    "peer/mesh/gossip.py",
    "peer/mesh/copies.py",
    "peer/mesh/topology.py",
    "peer/mesh/agreement.py",
    "peer/mesh/generations.py",
    "peer/mesh/graphs.py",
    "peer/mesh/reunion.py",
    "peer/mesh/giving.py",
    "peer/mesh/leaving.py",
    "peer/mesh/neighbors.py",
    "peer/mesh/rounds.py",
    "peer/mesh/terms.py",
    "peer/mesh/links.py",
    "peer/mesh/inlink.py",
    "peer/mesh/outlink.py",
    "peer/mesh/upkeep.py",
    "peer/mesh/unanswered.py",
    "peer/mesh/patience.py",
    "peer/mesh/budget.py",
    "peer/mesh/frame_bytes.py",
    "peer/mesh/node.py",
    "peer/mesh/sketches.py",
    "peer/learner/exchange.py",
    "peer/graphs.py",
    "peer/placing.py",
    "peer/schedule.py",
    "peer/quiet_hours.py",
    "peer/daemon/condition.py",
    "peer/daemon/manners.py",
    "peer/learner/portions.py",
    "peer/learner/incoming.py",
    "peer/learner/look.py",
    "peer/learner/projection.py",
    "peer/sketch.py",
    "peer/learner/outgoing.py",
    "peer/learner/sending.py",
    "peer/algorithms",
    "peer/compression",
]
LOCAL = ["event_frames", "framing", "local", "places", "shared_buffer"]  # the local protocol
LEAVES = sorted({path.stem for path in (ROOT / "peer").glob("[a-z]*.py")} - set(LOCAL))

CLOCKS_FILES_AND_LOGS = {
    "asyncio", "concurrent", "datetime", "fcntl", "io", "logging", "mmap", "multiprocessing", "os", "pathlib",
    "secrets", "select", "selectors", "shutil", "signal", "socket", "subprocess", "tempfile", "threading",
    "time", "uuid", "warnings",
}  # fmt: skip
IMPURE_BUILTINS = {"open", "print", "input", "eval", "exec", "id", "hash", "breakpoint"}
# What draws from, or sets, a generator shared by the whole process.
GLOBAL_RANDOMNESS = {
    "random": {"Random"},
    "numpy.random": {"Generator", "default_rng", "SeedSequence", "PCG64"},
}
TORCH_GLOBAL_RANDOMNESS = {
    "manual_seed",
    "seed",
    "rand_like",
    "randn_like",
    "randint_like",
    "set_default_dtype",
}
TORCH_NEEDS_GENERATOR = {"rand", "randn", "randint", "randperm", "bernoulli", "multinomial", "normal"}


def sources(entries: list[str]) -> list[Path]:
    """Python files of these files and folders."""
    found: list[Path] = []
    for entry in entries:
        path = ROOT / entry
        found += sorted(path.rglob("*.py")) if path.is_dir() else [path]
    return [path for path in found if path.is_file() and "wire" not in path.parts]


def parse(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"), filename=str(path))


def imported(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """(line, dotted name) of everything imported, wherever in the file."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            yield from ((node.lineno, f"{node.module}.{alias.name}") for alias in node.names)


def dotted(node: ast.expr) -> str:
    """`a.b.c` as written, or "" for anything that is not a chain of names."""
    if isinstance(node, ast.Name):
        return node.id
    if isinstance(node, ast.Attribute) and (head := dotted(node.value)):
        return f"{head}.{node.attr}"
    return ""


def global_randomness(tree: ast.Module) -> Iterator[tuple[int, str]]:
    """(line, what) of every draw from a generator that was not passed in."""
    names = {"np": "numpy", **{m: m for m in ("random", "numpy", "torch")}}
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module in GLOBAL_RANDOMNESS:
            allowed = GLOBAL_RANDOMNESS[node.module]
            yield from ((node.lineno, a.name) for a in node.names if a.name not in allowed)
        if not isinstance(node, ast.Call) or not (name := dotted(node.func)):
            continue
        head, _, rest = name.partition(".")
        module, _, call = f"{names.get(head, '?')}.{rest}".rpartition(".")
        numbers = module in GLOBAL_RANDOMNESS and call not in GLOBAL_RANDOMNESS[module]
        if numbers or (module == "torch" and call in TORCH_GLOBAL_RANDOMNESS):
            yield node.lineno, name
        elif module == "torch" and call in TORCH_NEEDS_GENERATOR:
            if not any(keyword.arg == "generator" for keyword in node.keywords):
                yield node.lineno, f"{name} without generator="
        elif call in {"manual_seed", "initial_seed"} and module.startswith("torch.random"):
            yield node.lineno, name


@pytest.mark.parametrize("entry", PURE)
def test_every_pure_room_is_where_this_file_looks(entry: str) -> None:
    assert (ROOT / entry).exists(), "was it renamed? this file and the contracts in pyproject.toml follow"


@pytest.mark.parametrize("path", sources(PURE), ids=lambda p: str(p.relative_to(ROOT)))
def test_pure_rooms_have_no_clock_socket_file_or_logger(path: Path) -> None:
    tree = parse(path)
    found = [
        f"line {line}: imports {name}"
        for line, name in imported(tree)
        if name.partition(".")[0] in CLOCKS_FILES_AND_LOGS
    ]
    found += [
        f"line {node.lineno}: calls {node.func.id}()"
        for node in ast.walk(tree)
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in IMPURE_BUILTINS
    ]
    assert not found, "a driver does that, and hands the result in as an event: " + "; ".join(found)


@pytest.mark.parametrize("path", sources(PURE), ids=lambda p: str(p.relative_to(ROOT)))
def test_pure_rooms_draw_only_from_a_generator_passed_in(path: Path) -> None:
    found = [f"line {line}: {what}" for line, what in global_randomness(parse(path))]
    assert not found, "pass a seeded generator in: " + "; ".join(found)


@pytest.mark.parametrize(
    ("snippet", "draws"),
    [
        ("import random\nrandom.choice([1])", True),
        ("import random\nrandom.Random(3).choice([1])", False),
        ("from random import shuffle", True),
        ("import torch\ntorch.randn(3)", True),
        ("import torch\ntorch.randn(3, generator=g)", False),
        ("import numpy as np\nnp.random.default_rng(1)", False),
        ("import numpy as np\nnp.random.rand(1)", True),
    ],
)
def test_the_check_for_global_randomness_sees_it(snippet: str, draws: bool) -> None:
    assert bool(list(global_randomness(ast.parse(snippet)))) is draws


WALL_CLOCKS = {
    "time.time", "time.time_ns", "time.localtime", "time.gmtime", "time.ctime", "time.strftime",
    "time.CLOCK_REALTIME", "datetime.now", "datetime.utcnow", "datetime.today", "date.today",
    "datetime.datetime.now", "datetime.datetime.utcnow", "datetime.datetime.today", "datetime.date.today",
}  # fmt: skip


@pytest.mark.parametrize("path", sources(list(PACKAGES)), ids=lambda p: str(p.relative_to(ROOT)))
def test_wall_time_is_read_where_its_being_wrong_is_said_and_nowhere_else(path: Path) -> None:
    """A Pi starts in 1970 and jumps by years: no timeout, no order and no certificate goes by that clock."""
    tree = parse(path)
    reads = [n.lineno for n in ast.walk(tree) if isinstance(n, ast.Attribute) and dotted(n) in WALL_CLOCKS]
    reads += [line for line, name in imported(tree) if name in WALL_CLOCKS]
    assert bool(reads) is (path == ROOT / "peer/daemon/clocks.py"), f"{path.name}: lines {reads}"


def test_every_leaf_is_named_in_the_import_contracts() -> None:
    contracts = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    assert [name for name in LEAVES + LOCAL if f'"peer.{name}"' not in contracts] == []


@pytest.mark.parametrize("name", LEAVES + LOCAL)
def test_leaves_import_the_standard_library_and_leaves_alone(name: str) -> None:
    allowed_own = {f"peer.{leaf}" for leaf in (LEAVES if name in LEAVES else LEAVES + LOCAL)}
    allowed_foreign = sys.stdlib_module_names | (set() if name in LEAVES else {"msgpack"})
    for line, what in imported(parse(ROOT / "peer" / f"{name}.py")):
        top = what.partition(".")[0]
        fits = (
            what in allowed_own or what.rpartition(".")[0] in allowed_own
            if top == "peer"
            else top in allowed_foreign
        )
        assert fits, f"peer/{name}.py:{line} imports {what}"


def interpreter_lists(tree: ast.AST) -> Iterator[ast.List | ast.Tuple]:
    """List and tuple displays that start with sys.executable: a Python process about to be started."""
    for node in ast.walk(tree):
        if isinstance(node, ast.List | ast.Tuple) and node.elts and dotted(node.elts[0]) == "sys.executable":
            yield node


@pytest.mark.parametrize("path", sources(list(PACKAGES)), ids=lambda p: str(p.relative_to(ROOT)))
def test_python_processes_are_started_with_a_safe_path(path: Path) -> None:
    """`python -m` puts the current folder first on sys.path: a user's own cli.py would win. -P does not."""
    for display in interpreter_lists(parse(path)):
        flags = [
            e.value for e in display.elts[1:] if isinstance(e, ast.Constant) and isinstance(e.value, str)
        ]
        assert {"-P", "-I"} & set(flags), (
            f"{path.name}:{display.lineno}: start it as [sys.executable, '-P', '-m', …]"
        )


@pytest.mark.parametrize("path", sources(list(PACKAGES)), ids=lambda p: str(p.relative_to(ROOT)))
def test_nothing_sleeps_to_wait(path: Path) -> None:
    """A wait is for an event, with a timeout; time.sleep can be woken by nothing."""
    sleeps = [
        node.lineno
        for node in ast.walk(parse(path))
        if isinstance(node, ast.Call) and dotted(node.func) == "time.sleep"
    ]
    assert not sleeps, f"{path.name}: time.sleep on lines {sleeps}"
