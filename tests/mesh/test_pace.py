"""How long the open round waits, and what it teaches."""

from peer.events import Held, Key
from peer.mesh.pace import CLOSE_S, STEPS, Pace
from peer.mesh.patience import LEAST, PROGRESS_S, STALL_S


def nobody_is_absent(peer: str, ask: bool, quiet_s: float) -> bool:
    return False


def clear(dst: str) -> bool:
    return False


def opened(pace: Pace, round_: int, now: float, **pushed: float | bool) -> Key:
    """A round that is opened, and pushed two seconds later."""
    key = Key(1, round_)
    pace.open(key, now)
    pace.push(key, clear, now + 2.0, **pushed)  # type: ignore[arg-type]
    return key


def test_a_learner_that_has_heard_everybody_is_given_time_from_the_last_one_on() -> None:
    pace = Pace(late_is_lost=False)
    key = opened(pace, 3, 0.0)
    pace.moving("b", 1000.0)
    assert pace.gives_up(["b"], nobody_is_absent, 500.0) is None, "its bytes are on their way"
    pace.took("b", key, key, 500.0, behind=1)
    assert pace.gives_up(["b"], nobody_is_absent, 500.0) is None
    assert pace.gives_up(["b"], nobody_is_absent, 500.0 + CLOSE_S) == []


def test_after_somebody_has_gone_one_waits_briefly_and_after_somebody_has_come_as_usual() -> None:
    """Each judges for itself who is dead; who has come, all know soon."""
    for gone, waited_s in (([], LEAST * 2.0), (["c"], STALL_S)):
        pace = Pace(late_is_lost=False)
        pace.took("b", key := opened(pace, 3, 0.0), key, 2.0, behind=1)
        opened(pace, 4, 3.0)
        pace.view_changed(gone, 4.0)
        assert pace.gives_up(["b"], nobody_is_absent, 5.0 + waited_s - 0.1) is None
        assert pace.gives_up(["b"], nobody_is_absent, 5.0 + waited_s) == ["b"]
        opened(pace, 5, 20.0)
        assert pace.gives_up(["b"], nobody_is_absent, 22.0 + STALL_S) is None, "all know by now"


VIEW = ("a", "b", "c", "d")  # of a


def test_who_is_ahead_of_most_waits_for_them_and_not_for_one_that_is_behind() -> None:
    for behind, waits in ((("b", "c"), True), (("b",), False)):
        pace = Pace(late_is_lost=False)
        key = opened(pace, 30, 100.0)
        for src in VIEW[1:]:
            pace.took(src, Key(1, 5 if src in behind else 30), key, 111.0, behind=1, view=VIEW)
        for _ in range(10):
            pace.patience.missed("b")
        pace.took("b", Key(1, 6), key, 112.0, behind=1, view=VIEW)
        until = 112.0 + PROGRESS_S + LEAST * 1.0 if waits else 112.0
        assert pace.lead(112.0) == (24 if waits else 0)
        assert pace.gives_up(["b"], nobody_is_absent, until - 0.1) == (None if waits else ["b"])
        assert waits != (pace.gives_up(["b"], nobody_is_absent, until) is None)
        assert pace.lead(until + 0.1) == 0


def test_who_waits_for_those_that_come_after_takes_a_round_for_some_of_theirs() -> None:
    pace = Pace(late_is_lost=False)
    for own, first in ((30, 305.0), (31, 313.2)):
        key = opened(pace, own, 10.0 * own)
        for step in range(STEPS + (own == 30)):  # the first of all says nothing of how often they come
            now = first + 0.9 * step
            assert pace.gives_up(["b", "c"], nobody_is_absent, now) is None
            for src in ("b", "c"):
                pace.took(src, Key(1, own - 20 + step), key, now, behind=1, view=VIEW)
        assert pace.gives_up(["b", "c"], nobody_is_absent, now + 1.2) == ["b", "c"]


def test_what_comes_before_the_first_round_is_opened_says_nothing_of_who_is_ahead() -> None:
    pace = Pace(late_is_lost=False)
    for round_ in (3, 4):
        pace.took("b", Key(1, round_), Key(1, 50), 1.0, behind=1, view=VIEW)
    assert pace.lead(1.0) == 0


def test_one_that_skips_rounds_is_slow_and_not_on_its_way_here() -> None:
    """It goes to the round of most and is as far behind again. Where that is the round of the furthest, its
    next message is of this one."""
    for late_is_lost in (False, True):
        pace = Pace(late_is_lost=late_is_lost)
        key = opened(pace, 30, 100.0)
        for round_, at in ((5, 110.0), (17, 111.0)):
            pace.took("b", Key(1, round_), key, at, behind=8, view=VIEW)
        assert (pace.lead(111.0) > 0) == late_is_lost


def test_who_has_not_been_heard_of_late_says_nothing_of_who_is_ahead() -> None:
    """As those that sent here by an earlier view."""
    pace = Pace(late_is_lost=False)
    key = opened(pace, 1, 0.0)
    for src in ("c", "d"):
        pace.took(src, key, key, 1.0, behind=1, view=VIEW)
    for round_ in range(2, 30):
        key = opened(pace, round_, 10.0 * round_)
    for src in ("e", "f"):
        pace.took(src, key, key, 293.0, behind=1, view=(*VIEW, "e", "f"))
    for round_, at in ((5, 293.0), (6, 294.0)):
        pace.took("b", Key(1, round_), key, at, behind=1, view=(*VIEW, "e", "f"))
    assert pace.lead(294.0) == 0


def test_one_that_gives_no_sign_of_life_is_waited_for_as_before_when_it_is_back() -> None:
    def gone(peer: str, ask: bool, quiet_s: float) -> bool:
        return True

    pace = Pace(late_is_lost=False)
    for round_ in range(3):
        key = opened(pace, round_, 10.0 * round_)
        pace.took("b", key, key, 10.0 * round_ + 3.0, behind=1)
    usual = pace.patience.until("b", 0.0)
    for round_ in range(3, 30):
        key = opened(pace, round_, 10.0 * round_)
        assert pace.gives_up(["b"], gone, 10.0 * round_ + 2.0) == ["b"]
        pace.hold(Held(key, ("b",)), 10.0 * round_ + 2.0)
        assert pace.gives_up_acks(["b"], {"b"}, gone, 10.0 * round_ + 2.0)
    assert pace.patience.until("b", 0.0) == usual
    key = opened(pace, 30, 300.0)
    pace.hold(Held(key, ("b",)), 302.0)
    assert not pace.gives_up_acks(["b"], {"b"}, nobody_is_absent, 302.4)


def test_one_that_is_nearly_in_step_is_waited_for_and_teaches_nothing() -> None:
    for lag, waits in ((1, True), (3, True), (4, False)):
        pace = Pace(late_is_lost=False)
        for round_ in range(26, 31):
            key = opened(pace, round_, 10.0 * round_)
        for _ in range(10):
            pace.patience.missed("b")
        pace.took("b", Key(1, 30 - lag), key, 303.0, behind=1)
        assert (pace.gives_up(["b"], nobody_is_absent, 303.1) is None) == waits
        mean_s = pace.patience._links["b"].mean_s
        assert (mean_s is None) == (lag > 1)


def test_steps_that_were_done_before_the_round_opened_count_for_what_they_took() -> None:
    """With pace "overlap": else a fast device would take everybody for late."""
    waits = {}
    for worked_s in (0.0, 60.0):
        pace = Pace(late_is_lost=False)
        for round_ in range(30):
            key = Key(1, round_)
            pace.open(key, 100.0 * round_)
            pace.push(key, clear, 100.0 * round_, worked_s=worked_s)
            pace.took("b", key, key, 100.0 * round_ + 13.0, behind=1)
        key = Key(1, 30)
        pace.open(key, 3000.0)
        pace.push(key, clear, 3000.0, worked_s=worked_s)
        waits[worked_s] = pace.patience.until("b", 3000.0) - 3000.0
    assert waits[60.0] >= 120.0
    assert waits[0.0] < 20.0


def test_rounds_without_local_steps_teach_nothing() -> None:
    def taught(*, still: bool) -> float:
        pace = Pace(late_is_lost=True)
        for round_ in range(40):
            steps = still and round_ >= 20
            key = opened(pace, round_, 10.0 * round_, still=steps)
            late_s = 0.0 if steps else 4.0
            pace.took("b", key, key, 10.0 * round_ + 2.0 + late_s, behind=1)
            if not still and round_ == 19:
                break
        return pace.patience.until("b", 0.0)

    assert taught(still=True) == taught(still=False)


def test_an_exchange_that_waits_for_an_absent_neighbor_is_not_closed_again_and_again() -> None:
    """It brings nobody on, and no time would pass between two rounds; a new graph ends it."""

    def gone(peer: str, ask: bool, quiet_s: float) -> bool:
        return True

    for still, whole, going, closes in (
        (False, True, False, True),
        (True, False, False, True),
        (True, True, True, True),
        (True, True, False, False),
    ):
        pace = Pace(late_is_lost=True)
        opened(pace, 0, 0.0, still=still)
        assert (pace.gives_up(["b"], gone, 9.9, going=going, whole=whole) is not None) == closes
        assert closes or pace.gives_up(["b"], gone, 2.0 + CLOSE_S, whole=whole) == ["b"]


def halves(pace: Pace, round_: int, now: float, first_s: float, second_s: float) -> Key:
    """A round in two halves, in which both of b's messages come so late."""
    key = opened(pace, round_, now)
    pace.took("b", key, key, now + 2.0 + first_s, behind=1, half=True)
    pace.push_second(key, now + 10.0)
    pace.took("b", key, key, now + 10.0 + second_s, behind=1)
    return key


def test_a_message_of_the_first_half_is_not_one_of_the_second() -> None:
    pace = Pace(late_is_lost=True)
    key = opened(pace, 3, 0.0)
    assert pace.lacks(["b"]) == ["b"]
    pace.took("b", key, key, 3.0, behind=1, half=True)
    assert pace.lacks(["b"]) == []
    pace.push_second(key, 4.0)
    assert pace.lacks(["b"]) == ["b"]
    pace.took("b", key, key, 5.0, behind=1)
    assert pace.lacks(["b"]) == []
    key = opened(pace, 4, 10.0)
    assert pace.lacks(["b"]) == ["b"]
    pace.push_second(key, 13.0)
    pace.took("b", Key(1, 5), key, 14.0, behind=1, half=True)
    assert pace.lacks(["b"]) == [], "it is in a later round"


def test_each_half_is_given_up_by_itself() -> None:
    pace = Pace(late_is_lost=True)
    key = opened(pace, 3, 0.0)
    assert pace.gives_up(["b"], nobody_is_absent, 2.5) is None
    assert pace.gives_up(["b"], nobody_is_absent, 100.0) == ["b"]
    assert pace.gives_up(["b"], nobody_is_absent, 200.0) is None, "the learner has been told"
    pace.push_second(key, 201.0)
    assert pace.gives_up(["b"], nobody_is_absent, 201.5) is None
    assert pace.gives_up(["b"], nobody_is_absent, 300.0) == ["b"]


def test_each_half_teaches_how_long_it_takes() -> None:
    pace = Pace(late_is_lost=True)
    for round_ in range(40):
        halves(pace, round_, 100.0 * round_, 6.0, 20.0)

    def waits_s(key: Key, pushed_at: float) -> float:
        for tenths in range(1000):
            if pace.gives_up(["b"], nobody_is_absent, pushed_at + tenths / 10) is not None:
                return tenths / 10
        raise AssertionError(f"{key} is never given up")

    key = opened(pace, 40, 5000.0)
    first_s = waits_s(key, 5002.0)
    pace.push_second(key, 5200.0)
    second_s = waits_s(key, 5200.0)
    assert 6.0 <= first_s < 8.0
    assert 20.0 <= second_s < 22.0


def test_who_hangs_costs_less_from_round_to_round_in_both_halves() -> None:
    pace = Pace(late_is_lost=True)
    for round_ in range(20):
        halves(pace, round_, 100.0 * round_, 1.0, 1.0)
    waited = []
    for round_ in range(20, 28):
        now = 100.0 * round_
        key = opened(pace, round_, now)
        for pushed_at in (now + 2.0, now + 50.0):
            if pushed_at > now + 2.0:
                pace.push_second(key, pushed_at)
            tenths = range(400)
            given_up = (t / 10 for t in tenths if pace.gives_up(["b"], nobody_is_absent, pushed_at + t / 10))
            waited.append(next(given_up))
    assert waited[0] >= 2.0 and waited[1] >= 2.0
    assert max(waited[-2:]) < 0.2


def test_bytes_of_one_half_are_no_sign_of_life_in_the_next() -> None:
    """What moved is here: whoever hangs after it is waited for as usual."""
    pace = Pace(late_is_lost=True)
    for round_ in range(21):
        key, now = Key(1, round_), 100.0 * round_
        pace.open(key, now)
        pace.push(key, clear, now + 0.1)
        pace.moving("b", now + 0.2)
        pace.took("b", key, key, now + 0.2, behind=1, half=True)
        pace.push_second(key, now + 0.2)
        if round_ < 20:
            pace.took("b", key, key, now + 0.3, behind=1)
    assert pace.gives_up(["b"], nobody_is_absent, 2000.3) is None
    assert pace.gives_up(["b"], nobody_is_absent, 2001.2) == ["b"]
