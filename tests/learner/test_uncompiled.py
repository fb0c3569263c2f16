"""torch's compiler stays out of a learner, and is there for a task that wants it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

STEPS = """
import sys
import torch
import peer.learner.__main__
from peer.learner.loop import endless, local_step
from peer.learner.task import Settings, load_task, seeded_model
from peer.learner.uncompiled import make_without_compiler, step_without_compiler

settings = Settings(seed=0, order=0, batch=4, lr=0.1, momentum=0.9, data=None, options={})
task = load_task("quadratic", settings, None)
model = seeded_model(task, 0)
batches = endless(task, "0/2", torch.device("cpu"))

make_without_compiler()


def trained(make):
    optimizer = make(model.parameters())
    return [local_step(task, model, optimizer, next(batches)) for _ in range(5)]


def loaded():
    return "torch._dynamo" in sys.modules or "sympy" in sys.modules
"""


LEARNER = """
import sys
from pathlib import Path
from learner.daemon_stand_in import StandIn, descriptor
from peer.learner import __main__ as child

daemon = StandIn(descriptor(rounds=3))
child.dial = lambda *_, **__: daemon.attachment(Path(sys.argv[1]), device="cpu")
child.LINGER_S = 0.0
code = child.main(["--socket", "/run/none", "--session", "home"])
print(code, "torch" in sys.modules, "torch._dynamo" in sys.modules)
daemon.close()
"""
TRAINED = """
torch.manual_seed(1)
print(*(loss.hex() for loss in trained(lambda p: torch.optim.SGD(p, lr=0.05, momentum=0.9))), loaded())
"""


def printed(code: str, *arguments: str, before: str = STEPS) -> list[str]:
    done = subprocess.run(
        [sys.executable, "-P", "-c", before + code, *arguments],
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.split()


def test_a_learner_trains_without_it(tmp_path: Path) -> None:
    assert printed(LEARNER, str(tmp_path), before="") == ["0", "True", "False"]


def test_a_learner_looks_for_garbage_once_its_imports_are_done() -> None:
    code = """
import gc, runpy, sys
sys.argv = ["learner"]
counts = []
gc.callbacks.append(lambda phase, _: counts.append(phase))
try:
    runpy.run_module("peer.learner", run_name="__main__")
except SystemExit:
    print(gc.isenabled(), gc.get_freeze_count() > 50_000, counts.count("start") < 10)
"""
    assert printed(code, before="") == ["True"] * 3


def test_no_optimizer_loads_it() -> None:
    code = """
for name in ("SGD", "Adam", "AdamW", "Adagrad", "RMSprop"):
    losses = trained(lambda p: getattr(torch.optim, name)(p, lr=0.05))
    print(losses[-1] < losses[0], loaded())
"""
    assert printed(code) == ["True", "False"] * 5


def test_steps_are_the_same_with_it() -> None:
    without, with_it = printed(TRAINED), printed("import torch._dynamo\n" + TRAINED)
    assert without[:-1] == with_it[:-1]
    assert (without[-1], with_it[-1]) == ("False", "True")


USES = {
    "a submodule": "import torch._dynamo.config as c; print(c is sys.modules['torch._dynamo'].config)",
    "a name": "from torch._dynamo import optimize; print(callable(optimize))",
    "an attribute": "print(callable(torch._dynamo.optimize))",
    "compile": "print(float(torch.compile(lambda x: 2 * x, backend='eager')(torch.ones(()))) == 2.0)",
    "a compiled step": """
line = torch.nn.Linear(2, 1)
optimizer = torch.optim.SGD(line.parameters(), lr=0.1)
optimizer.step = torch.compile(optimizer.step, backend="eager")
line(torch.ones(1, 2)).sum().backward()
before = line.weight.detach().clone()
with step_without_compiler(optimizer):
    optimizer.step()
optimizer.zero_grad()
print(bool((line.weight == before - 0.1).all()))""",
    "a hook": """
optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=0.1)
optimizer.register_step_post_hook(lambda *_: print(callable(torch._dynamo.optimize)))
with step_without_compiler(optimizer):
    optimizer.step()""",
    "an optimizer of one's own": """
class Own(torch.optim.SGD):
    def step(self):
        import torch._dynamo.config
        print(torch._dynamo.config is not None)
optimizer = Own([torch.zeros(1)], lr=0.1)
with step_without_compiler(optimizer):
    optimizer.step()""",
}


@pytest.mark.parametrize("use", list(USES))
def test_it_is_there_for_who_asks(use: str) -> None:
    code = f"""
trained(lambda p: torch.optim.SGD(p, lr=0.05))
{USES[use]}
trained(lambda p: torch.optim.Adam(p, lr=0.05))
import torch._dynamo, torch._dynamo.config
print(torch._dynamo.config is sys.modules["torch._dynamo"].config, loaded())
"""
    assert printed(code) == ["True", "True", "True"]
