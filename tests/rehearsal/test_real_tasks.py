"""Rehearsals of tasks with data: clothes in unlike parts, a text in pieces, both written by these tests."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from peer.errors import UsageError
from peer.learner.flat import FlatModel
from peer.learner.task import Settings, load_task, seeded_model
from peer.rehearsal import report
from peer.rehearsal.plan import Plan
from peer.rehearsal.play import Play
from peer.rehearsal.trainer import Trainer
from peer.tasks.fashion_mnist import Pictures, features, load_pictures
from rehearsal.test_rehearse import plan_of, played
from tasks.clothes import TEST, TRAIN, idx, write_clothes

PEERS, BATCH = 5, 10
MISLABELED = 20  # test pictures: nobody who learns from the others is right about these
BITS = 2
RELAYS = "--algorithm relay-sum --topology binary-tree --local-steps 1 --option lr-correction=off"
OURS = f"--algorithm difference-push --topology exponential --local-steps 5 --option bits={BITS}"


@pytest.fixture
def clothes(tmp_path: Path) -> Path:
    write_clothes(tmp_path)
    kinds = bytearray(load_pictures(tmp_path, test=True).kinds)
    load_pictures.cache_clear()
    kinds[:MISLABELED] = [(kind + 1) % 10 for kind in kinds[:MISLABELED]]
    idx(tmp_path / "t10k-labels-idx1-ubyte.gz", (TEST,), bytes(kinds))
    return tmp_path


def told(text: str, data: Path) -> str:
    return f"--data {data} --peers {PEERS} --batch {BATCH} --warmup 0 {text}"


def of_model(model: Tensor, module: nn.Module, examples: Tensor, answers: Tensor) -> tuple[float, float]:
    """Accuracy and loss of a rehearsed model, reckoned here."""
    FlatModel(module).write(model)
    with torch.no_grad():
        logits = module(examples).reshape(len(answers), -1)
    right = (logits.argmax(dim=1) == answers).double().mean().item()
    return right, functional.cross_entropy(logits, answers).item()


def check_bytes(play: Play, found: dict[str, Any]) -> None:
    """Whole models over both directions of a tree's n - 1 edges; a budget for each parameter otherwise."""
    sent, models = found["bytes"]["sent_per_peer"], found["bytes"]["dense_exchanges_per_peer"]
    if play.plan.session.algorithm == "relay-sum":
        assert models == play.rounds * 2 * (PEERS - 1) / PEERS * 4 * play.trainer.parameters
        assert 1 < sent / models < 1.001
        assert found["bytes"]["dense_per_peer"] == models
    else:
        assert models / sent == pytest.approx(32 / BITS, rel=0.02)
        assert found["bytes"]["dense_per_peer"] == 5 * models


def kinds_of_shards(plan: Plan) -> list[Counter[int]]:
    """What each peer's batches hold in one pass over its part."""
    passes = TRAIN // PEERS // BATCH
    pupils = Trainer(plan)._pupils
    return [
        Counter(kind for _ in range(passes) for kind in next(pupils[name].batches)[1].tolist())
        for name in plan.names()
    ]


@pytest.mark.parametrize(
    ("model", "text"),
    [
        ("mlp", f"{RELAYS} --rounds 40 --lr 0.1"),
        ("cnn", f"{RELAYS} --rounds 40 --lr 0.2"),
        ("mlp", f"{OURS} --rounds 10 --lr 0.06"),
        ("cnn", f"{OURS} --rounds 10 --lr 0.1"),
    ],
)
def test_clothes_in_unlike_parts_are_learnt_and_judged_by_the_test_pictures(
    clothes: Path, model: str, text: str
) -> None:
    task = f"--task fashion-mnist --option model={model} --split dirichlet=0.1"
    play = played(told(text, clothes), task)
    found = report.figures(play, 1.0)
    settings = Settings(data=str(clothes), options={"task.model": model})
    module = seeded_model(load_task("fashion-mnist", settings), 0)

    def judged(one: Tensor, pictures: Pictures) -> tuple[float, float]:
        return of_model(one, module, features(pictures.bytes), torch.tensor(pictures.kinds))

    test, train = (load_pictures(clothes, test=which) for which in (True, False))
    models = [play.final[name] for name in play.plan.names()]
    on_test, on_train = ([judged(one, pictures) for one in models] for pictures in (test, train))
    accuracies = [accuracy for accuracy, _ in on_test]
    assert found["metric"] == {
        "name": "accuracy",
        "mean": pytest.approx(sum(accuracies) / PEERS),
        "worst": pytest.approx(min(accuracies)),
        "best": pytest.approx(max(accuracies)),
        "averaged_model": pytest.approx(judged(torch.stack(models).mean(dim=0), test)[0]),
    }
    assert max(accuracies) <= 1 - MISLABELED / TEST < min(accuracy for accuracy, _ in on_train)
    assert found["curve"][0] == [0, *[pytest.approx(judged(play.trainer.initial, test)[0])] * 2]
    assert found["curve"][-1][0] == play.rounds and found["curve"][-1][1] > 4 * found["curve"][0][1]
    assert max(loss for _, loss in on_train) < judged(play.trainer.initial, train)[1] / 3
    alone = max(sum(train.kinds.count(kind) for kind in part) for part in kinds_of_shards(play.plan)) / TRAIN
    assert min(accuracy for accuracy, _ in on_train) > alone + 0.2, "kinds it has no pictures of are known"
    check_bytes(play, found)


def test_parts_of_clothes_have_label_shares_as_the_split_says(clothes: Path) -> None:
    """Alike: about a tenth of each kind in every part. Unlike: most of a part is of one or two kinds."""
    largest = {}
    for split in ("iid", "dirichlet=0.1"):
        text = told(f"{RELAYS} --rounds 1 --split {split}", clothes)
        parts = kinds_of_shards(plan_of(text, "--task fashion-mnist --option model=mlp"))
        assert sum(parts, Counter()) == Counter(load_pictures(clothes, test=False).kinds)
        assert {part.total() for part in parts} == {TRAIN // PEERS}
        largest[split] = [max(part.values()) / part.total() for part in parts]
        kinds = [frozenset(part) for part in parts]
        assert len(set(kinds)) == (1 if split == "iid" else PEERS)
    assert max(largest["iid"]) < 0.2 and min(largest["dirichlet=0.1"]) > 0.4


# --- a text ----------------------------------------------------------------------------------------------

CONTEXT = 8
VERSES = (b"the cat sat. ", b"my dog ran; ", b"big cows! ", b"no wolf by us? ", b"hi, foxy pig: ")


@pytest.fixture
def text(tmp_path: Path) -> Path:
    """A verse for each peer, again and again, and a last tenth with some of each."""
    length = 900
    pieces = [(verse * length)[:length] for verse in VERSES]
    tail = b"".join(piece[: length // 9] for piece in pieces)
    path = tmp_path / "verses.txt"
    path.write_bytes(b"".join(pieces) + tail)
    assert len(tail) * 10 == len(path.read_bytes())
    return path


CHARACTERS = f"--task characters --option context={CONTEXT}"


@pytest.mark.parametrize("words", [f"{RELAYS} --rounds 25 --lr 0.5", f"{OURS} --rounds 8 --lr 0.3"])
def test_a_text_in_pieces_is_learnt_and_judged_by_its_last_tenth(text: Path, words: str) -> None:
    play = played(told(f"{words} --momentum 0.9", text), CHARACTERS)
    found = report.figures(play, 1.0)
    settings = Settings(data=str(text), options={"task.context": str(CONTEXT)})
    module = seeded_model(load_task("characters", settings), 0)
    content = text.read_bytes()
    tail = torch.tensor(list(content[len(content) * 9 // 10 :]))
    rows = tail.unfold(0, CONTEXT + 1, CONTEXT)

    def judged(one: Tensor) -> tuple[float, float]:
        return of_model(one, module, rows[:, :-1], rows[:, 1:].flatten())

    accuracies, losses = zip(*(judged(play.final[name]) for name in play.plan.names()), strict=True)
    assert found["metric"]["name"] == "accuracy"
    assert found["metric"]["mean"] == pytest.approx(sum(accuracies) / PEERS)
    assert found["metric"]["worst"] == pytest.approx(min(accuracies))
    alone = 1 / len(VERSES)  # all that who knows one verse can be sure of
    assert min(accuracies) > 2 * alone > found["curve"][0][1]
    assert max(losses) < judged(play.trainer.initial)[1] / 2
    check_bytes(play, found)


def test_each_peer_reads_its_own_piece_of_a_text(text: Path) -> None:
    plan = plan_of(told(f"{RELAYS} --rounds 1", text), CHARACTERS)
    for (_, pupil), verse in zip(sorted(Trainer(plan)._pupils.items()), VERSES, strict=True):
        rows = next(pupil.batches).tolist()
        assert all(bytes(row) in verse * 3 for row in rows)


def test_a_text_has_no_labels_to_split_by(text: Path) -> None:
    with pytest.raises(UsageError, match="characters has no dirichlet shards"):
        plan_of(told(f"{RELAYS} --rounds 1 --split dirichlet=0.1", text), CHARACTERS)


def changes(local_steps: int, weight: str, rounds: int) -> list[Tensor]:
    """Of one peer that learns spoken digits by itself, round by round, each from where the last one ended."""
    options = f"--option not-true-distillation={weight} --local-steps {local_steps} --warmup 0"
    plan = plan_of(f"--peers 2 --rounds {rounds} --split dirichlet=0.1 {options}", "--task spoken-digits")
    trainer, made = Trainer(plan), []
    z = trainer.initial
    for round_ in range(rounds):
        u, _ = trainer.train(plan.names()[0], z, round_)
        made.append(u)
        z = z + u
    return made


def test_what_is_distilled_is_of_the_model_that_a_round_begins_with() -> None:
    """There both say the same, so the first step is the plain one, and those after it are not."""
    plain, distilled = changes(1, "0", 5), changes(1, "1", 5)
    assert all(torch.allclose(a, b, rtol=0, atol=1e-7) for a, b in zip(plain, distilled, strict=True))
    assert plain[4].abs().max() > 1e-3, "or that says nothing; of the first round's model it is 1e-4 apart"
    assert (changes(4, "0", 1)[0] - changes(4, "1", 1)[0]).abs().max() > 5e-5
