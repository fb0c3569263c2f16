"""Algorithms from a descriptor's words."""

from __future__ import annotations

import pytest
import torch

from peer import catalogue
from peer.algorithms import make
from peer.algorithms.base import Algorithm, Message
from peer.algorithms.difference_push import DifferencePush
from peer.algorithms.push_sum import PushSum
from peer.algorithms.relay_sum import RelaySum
from peer.algorithms.replicas import REPLICA_MB
from peer.algorithms.sparse_push import SparsePush
from peer.compression.bodies import Layout
from peer.compression.codec import encode
from peer.compression.compressor import HEAD_BYTES, Fitting
from peer.errors import UsageError
from peer.events import Key

LAYOUT = Layout((900, 100))


def built(name: str, compression: str = "", **options: str) -> Algorithm:
    spelled = {key.replace("_", "-"): value for key, value in options.items()}
    return make(name, spelled, LAYOUT, torch.float32, compression)


@pytest.mark.parametrize("name", list(catalogue.ALGORITHMS))
def test_every_option_of_the_catalogue_is_taken(name: str) -> None:
    entry = catalogue.algorithm(name)
    algorithm = built(name, **{key: option.default for key, option in entry.options.items()})
    assert algorithm.name == name


def test_gamma_is_the_fraction_kept_unless_given() -> None:
    auto, given = built("sparse-push", "topk=2%"), built("sparse-push", gamma="0.25")
    assert isinstance(auto, SparsePush)
    assert isinstance(given, SparsePush)
    assert (auto.gamma, auto.reference, given.gamma) == (20 / 1000, "zero", 0.25)


@pytest.mark.parametrize(
    ("compression", "options", "bits"),
    [
        ("", {}, (1.0, 2.0, 3.0)),
        ("bits=4", {}, (4.0, 4.0, 4.0)),
        ("bits=0.5", {}, (0.5, 2.0, 3.0)),
        ("", {"bits": "0.5", "final_bits": "1"}, (0.5, 1.0, 3.0)),
        ("", {"replicas": "off"}, (1.0, 2.0, 3.0)),
        ("", {"replicas": "off", "bits": "1.5"}, (1.5, 2.0, 1.5)),
    ],
)
def test_bits_of_difference_push(
    compression: str, options: dict[str, str], bits: tuple[float, float, float]
) -> None:
    algorithm = built("difference-push", compression, **options)
    assert isinstance(algorithm, DifferencePush)
    assert (algorithm.budget.R, algorithm.budget.final, algorithm.budget.fixed) == bits
    assert algorithm.replicas.allowed == (options.get("replicas") != "off")


@pytest.mark.parametrize(
    ("compression", "gamma"),
    [
        ("globaltopk=2%,int4", 0.02),
        ("randomk=2%", 0.02),
        ("grouped=8", 1 / 8),
        ("sign", 0.45),
        ("topk=2%,sign", 0.45 * 0.02),
        ("lowrank=2", (900 * 2 / 30 + 100) / 1000),
    ],
)
def test_gamma_is_what_a_compression_keeps_for_sure(compression: str, gamma: float) -> None:
    layout = Layout((900, 100), (30, 1))
    algorithm = make("sparse-push", {}, layout, torch.float32, compression)
    assert isinstance(algorithm, SparsePush)
    assert algorithm.gamma == pytest.approx(gamma)


def test_relay_sum_is_made_of_its_words() -> None:
    usual, given = built("relay-sum"), built("relay-sum", "int8", fill="counts", lr_correction="off")
    assert isinstance(usual, RelaySum)
    assert isinstance(given, RelaySum)
    assert (usual.fill, usual.correction, given.fill, given.correction) == ("prev", True, "counts", False)
    v = torch.linspace(-1, 1, LAYOUT.d)
    assert torch.equal(usual.packed(v, None, "b").dense(), v)
    assert 0 < float((given.packed(v, None, "b").dense() - v).abs().max()) <= 0.5 / 127 * (1 + 2**-7)


def test_changes_are_not_relayed_in_the_free_pace() -> None:
    """A change would be used twice."""
    with pytest.raises(UsageError, match=r"cannot run in the pace 'free'.*pace= of peer\.attach"):
        make("relay-sum-grad", {}, LAYOUT, torch.float32, lockstep=False)


def test_pace_free_is_not_lockstep() -> None:
    algorithm = make("sgp", {}, LAYOUT, torch.float32, lockstep=False)
    assert isinstance(algorithm, PushSum)
    assert not algorithm.lockstep


@pytest.mark.parametrize(
    ("name", "options", "says"),
    [
        ("sgp", {"gamma": "1"}, "sgp has no option 'gamma'; there are min-weight"),
        ("difference-push", {"bits": "many"}, "option bits is a number from 0.01 to 8, not 'many'"),
        ("difference-push", {"compression": "int8", "bits": "1"}, "option bits is for --compression bits=R"),
        ("difference-push", {"share": "0.6"}, "option share is a number from 0 to 0.5, not '0.6'"),
        ("difference-push", {"replicas": "maybe"}, "option replicas is one of on, off, not 'maybe'"),
        ("sparse-push", {"gamma": "nan"}, "option gamma is a number"),
        ("relay-sum", {"fill": "x1"}, "option fill is one of prev, x0, half, counts, not 'x1'"),
        ("d-psgd", {"fill": "x0"}, "d-psgd has no option 'fill'; there are none"),
        ("no-such", {}, "no algorithm is called 'no-such'"),
    ],
)
def test_a_wrong_word_is_answered_with_the_right_ones(name: str, options: dict[str, str], says: str) -> None:
    with pytest.raises(UsageError, match=says):
        make(name, options, LAYOUT, torch.float32, options.pop("compression", ""))


def test_memory_for_replicas_is_a_number_or_left_to_the_learner() -> None:
    for text, mb in (("auto", REPLICA_MB), ("7.5", 7.5)):
        made = built("difference-push", **{"replica-mb": text})
        assert isinstance(made, DifferencePush) and made.replicas.mb == mb
    with pytest.raises(UsageError, match="replica-mb is a number"):
        built("difference-push", **{"replica-mb": "much"})


def test_auto_makes_whole_vectors_fit_a_link() -> None:
    fitting, v = Fitting(LAYOUT, torch.float32), torch.linspace(-1, 1, LAYOUT.d)
    sizes = {one.spec.values: len(encode(Message(Key(1, 2), 16, one(v), 0.5))) for one in fitting.steps}
    assert list(sizes.values()) == sorted(sizes.values(), reverse=True)
    for values, size in sizes.items():
        assert fitting.fit(HEAD_BYTES + size).spec.values == values
        assert sizes[fitting.fit(size - 1).spec.values] < size or values == "int8"
    assert fitting.fit(None).spec.values == "fp16"
    assert fitting.fit(0).spec.values == "int8", "what is less exact is no use"
    ample, of_fp16 = HEAD_BYTES + sizes["fp32"], HEAD_BYTES + sizes["fp16"]
    for hides, most, values in (
        (None, ample, "fp16"), (ample, ample, "fp32"), (ample, of_fp16, "fp16"), (of_fp16, ample, "fp16"),
        (None, of_fp16 // 2, "int8"), (ample, 0, "int8"), (0, ample, "int8"),
    ):  # fmt: skip
        assert fitting.fit(hides, most).spec.values == values, "the narrower of link and budget"
    assert sizes["int8"] <= fitting.least_bytes() <= HEAD_BYTES + sizes["int8"]
    halves = {
        one.spec.values: len(encode(Message(Key(1, 2), 16, one.every(v, 1, 2)))) for one in fitting.steps
    }
    for values, size in halves.items():
        assert fitting.fit(HEAD_BYTES + size, of=2).spec.values == values, "a double tree's are half as long"
        assert halves[fitting.fit(size - 1, of=2).spec.values] < size or values == "int8"
    assert halves["int8"] <= fitting.least_bytes(2) <= HEAD_BYTES + halves["int8"]
