"""A model in 64 numbers: what it says of distances, how exactly, and what its form refuses."""

from __future__ import annotations

import math
import struct

import pytest
import torch

from peer.learner.projection import CHUNK, project, tag_of
from peer.sketch import BODY_BYTES, COUNT, STANDARD_ERROR, distance, is_body, norm, pack, spread, unpack


def sketched(x: torch.Tensor, session: str) -> tuple[float, ...]:
    body = pack(project(x, session))
    assert body is not None
    return unpack(body)


def models(n: int, d: int, apart: float, seed: int = 0) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    common = torch.randn(d, generator=generator)
    return [common + apart * torch.randn(d, generator=generator) for _ in range(n)]


def test_a_distance_is_estimated_within_the_error_it_states() -> None:
    """Over 100 sessions: the error of one is what is promised, and their mean has next to none."""
    one, other = models(2, 5000, 0.01)
    exact = float((one - other).norm())
    squares = [(distance(sketched(one, str(s)), sketched(other, str(s))) / exact) ** 2 for s in range(100)]
    mean = sum(squares) / len(squares)
    deviation = math.sqrt(sum((square - mean) ** 2 for square in squares) / len(squares))
    assert mean == pytest.approx(1.0, abs=3 * 2 * STANDARD_ERROR / 10)
    assert 0.7 < deviation / (2 * STANDARD_ERROR) < 1.3


def test_it_is_linear_so_that_the_consensus_distance_is_that_of_the_sketches() -> None:
    found = models(5, 3 * CHUNK + 17, 0.05)
    stacked = torch.stack(found).double()
    exact = float((stacked - stacked.mean(0)).square().sum(1).mean().sqrt())
    assert spread([sketched(x, "home") for x in found]) == pytest.approx(exact, rel=3 * STANDARD_ERROR)
    total = project(found[0] + found[1], "home")
    parts = [a + b for a, b in zip(project(found[0], "home"), project(found[1], "home"), strict=True)]
    assert total == pytest.approx(parts, rel=1e-4, abs=1e-4)


def test_models_that_are_near_are_told_apart_down_to_what_is_rounded_off() -> None:
    one = models(1, 20_000, 0.0)[0].double()
    for apart in (1e-2, 1e-3, 3e-4):
        other = one * (1 + apart)
        far = distance(sketched(one, "home"), sketched(other, "home")) / norm(sketched(one, "home"))
        assert far == pytest.approx(apart, rel=0.2)
    assert distance(sketched(one, "home"), sketched(one, "home")) == 0.0


def test_one_hot_and_constant_models_keep_their_norm() -> None:
    hot = torch.zeros(1000)
    hot[7] = 3.0
    assert norm(sketched(hot, "home")) == pytest.approx(3.0, rel=1e-4)
    assert norm(sketched(torch.full((100_000,), 2.0), "home")) == pytest.approx(632.5, rel=4 * STANDARD_ERROR)


def test_every_machine_draws_the_same_buckets_and_signs() -> None:
    """Golden: a NumPy whose generator gave other bits would make devices look apart that are not."""
    numbers = project(torch.arange(1.0, 101.0), "home")
    assert [round(number) for number in numbers[:8]] == GOLDEN
    assert numbers != project(torch.arange(1.0, 101.0), "other")


GOLDEN = [-29, -100, 33, 0, -80, -45, 85, -40]


def test_the_form_is_small_and_refuses_what_no_sketch_is() -> None:
    body = pack([1.0] * COUNT)
    assert body is not None
    assert len(body) == BODY_BYTES <= 160
    assert unpack(body) == pytest.approx([1.0] * COUNT, rel=1e-4)
    assert unpack(pack([0.0] * COUNT) or b"") == (0.0,) * COUNT
    for wrong in (b"", body[:-1], body + b"\0", None, "x" * BODY_BYTES):
        assert not is_body(wrong)
    for scale in (math.nan, math.inf, -1.0):
        assert not is_body(struct.pack("<f", scale) + body[4:])


def test_the_largest_that_passes_leaves_every_figure_finite() -> None:
    most = unpack(struct.pack("<f", 3.4e38) + struct.pack("<64h", *([32767, -32768] * 32)))
    least = unpack(struct.pack("<f", 3.4e38) + struct.pack("<64h", *([-32768, 32767] * 32)))
    assert math.isfinite(distance(most, least))
    assert math.isfinite(spread([most, least]))


@pytest.mark.parametrize("bad", [math.nan, math.inf, 1e39])
def test_a_model_that_is_not_finite_has_no_sketch(bad: float) -> None:
    assert pack([bad] + [0.0] * (COUNT - 1)) is None


def test_a_layout_has_a_name_of_its_own_in_each_session() -> None:
    assert len({tag_of("a", b"x"), tag_of("a", b"y"), tag_of("b", b"x")}) == 3
