"""The learning rate over a session."""

import pytest

from peer.errors import ConfigError
from peer.schedule import Schedule


def test_a_bounded_session_warms_up_stays_and_falls_to_one_percent() -> None:
    schedule = Schedule.of({}, 1000)
    assert schedule.factor(0) == pytest.approx(0.02)
    assert [schedule.factor(step) for step in (49, 200, 400)] == [1, 1, 1]
    assert schedule.factor(700) == pytest.approx(0.505)
    assert schedule.factor(1000) == pytest.approx(0.01)
    assert schedule.factor(5000) == pytest.approx(0.01)


def test_a_session_without_an_end_stays_constant() -> None:
    assert Schedule.of({"warmup": "0"}, 0).factor(10**9) == 1


def test_steps_multiply() -> None:
    schedule = Schedule.of({"schedule": "step", "warmup": "0", "lr-decay": "0.5:0.1,0.75:0.1"}, 100)
    assert [schedule.factor(step) for step in (49, 50, 75)] == pytest.approx([1, 0.1, 0.01])


@pytest.mark.parametrize(
    ("options", "steps", "words"),
    [
        ({"schedule": "linear"}, 10, "known are constant, cosine, step"),
        ({"schedule": "cosine"}, 0, "give it --rounds"),
        ({"warmup": "-1"}, 10, "expected a number of steps"),
        ({"schedule": "step", "lr-decay": "0.5"}, 10, "as in 0.75:0.1,0.9:0.1"),
        ({"schedule": "step", "lr-decay": "1.5:0.1"}, 10, "between 0 and 1"),
    ],
)
def test_what_is_off_is_said(options: dict[str, str], steps: int, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        Schedule.of(options, steps)
