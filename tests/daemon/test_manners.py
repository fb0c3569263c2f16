"""Manners in virtual time: when a device trains less, pauses, and goes on, and that it does not flap."""

from __future__ import annotations

import random
from itertools import pairwise

import pytest

from peer.daemon.condition import Cooling, Firmware, Host, Supply, Zone
from peer.daemon.manners import (
    CALM_S,
    COOL_S,
    LEAST_SHARE,
    MAINS_S,
    STEP_S,
    Strain,
    Verdict,
    Waiting,
    verdict,
)
from peer.daemon.pacing import others_part
from peer.quiet_hours import QuietHours

LOOK_S = 5.0
TRIPS = {"passive": 80.0, "hot": 90.0, "critical": 105.0}


class Device:
    """Its condition is looked at every LOOK_S; `shares` is what came of that."""

    def __init__(self, manners: str = "on") -> None:
        self.strain, self.manners, self.now = Strain(), manners, 0.0
        self.shares: list[float] = []

    def live(self, seconds: float, host: Host | None = None, waiting: float | None = 0.0) -> Verdict:
        end = self.now + seconds
        while self.now < end:
            self.now += LOOK_S
            others = Waiting(waiting, "camera.service") if waiting is not None else None
            self.strain.take(host or Host(), others, self.now)
            self.shares.append(self.verdict.share)
        return self.verdict

    @property
    def verdict(self) -> Verdict:
        return verdict(self.strain, self.manners, None, None)

    @property
    def changes(self) -> int:
        return sum(a != b for a, b in pairwise(self.shares))


def at(celsius: float) -> Host:
    return Host(zones=(Zone("cpu-thermal", celsius, TRIPS),))


def battery(percent: int | None, status: str = "Discharging", mains: bool = False) -> Host:
    return Host(supplies=(Supply("AC", "Mains", mains), Supply("BAT0", "Battery", None, status, percent)))


def test_a_device_that_is_well_trains_at_full_pace() -> None:
    device = Device()
    assert device.live(600.0, at(60.0)) == Verdict()
    assert device.live(600.0, at(60.0), waiting=None) == Verdict(), "what is unknown is no reason"
    assert device.changes == 0


@pytest.mark.parametrize(
    ("host", "waiting", "why"),
    [
        (at(81.0), 0.0, "hot: cpu-thermal is at 81"),
        (Host(cooling=(Cooling("cpufreq-cpu0", 1, 3),)), 0.0, "held back to cool (cpufreq-cpu0)"),
        (Host(firmware=Firmware(0x4)), 0.0, "the firmware holds the processor back"),
        (Host(firmware=Firmware(0x80008)), 0.0, "the firmware holds the processor back"),
        (Host(firmware=Firmware(0x50005)), 0.0, "too little voltage"),
        (Host(), 40.0, "others wait for the processor (camera.service), 40 % of the time"),
    ],
)
def test_the_share_is_halved_as_long_as_the_device_is_pressed_and_returns_when_it_is_not(
    host: Host, waiting: float, why: str
) -> None:
    device = Device()
    assert device.live(LOOK_S, host, waiting).share == 0.5, "at once"
    assert why in device.verdict.reason
    assert device.live(STEP_S - LOOK_S, host, waiting).share == 0.5
    assert device.live(LOOK_S, host, waiting).share == 0.25
    assert device.live(10 * STEP_S, host, waiting).share == LEAST_SHARE, "it stays a member"
    assert device.live(CALM_S).share == LEAST_SHARE
    assert device.live(LOOK_S).share == 2 * LEAST_SHARE
    assert device.live(4 * CALM_S) == Verdict()
    assert device.changes == 7, "three times less, four times more"


@pytest.mark.parametrize(
    "host",
    [
        Host(cooling=(Cooling("pwm-fan", 3, 4),)),
        Host(firmware=Firmware(0xF0000)),
        Host(zones=(Zone("soc", 120.0, {}),)),
        Host(unknown={"pressure": "no psi"}),
    ],
    ids=["a fan", "only since boot", "no trip points", "unknown"],
)
def test_what_is_no_throttling_now_changes_nothing(host: Host) -> None:
    assert Device().live(300.0, host, waiting=None) == Verdict()


def test_between_pressed_and_calm_nothing_moves() -> None:
    device = Device()
    device.live(LOOK_S, waiting=40.0)
    assert device.live(3600.0, waiting=18.0).share == 0.5
    device.live(LOOK_S, at(85.0))
    assert device.live(3600.0, at(78.0)).share == 0.25
    assert device.changes == 1


@pytest.mark.parametrize("seed", range(5))
def test_figures_that_jump_about_do_not_make_it_flap(seed: int) -> None:
    """Whatever comes, it takes more at most once in CALM_S and less at most once in STEP_S."""
    dice, device = random.Random(seed), Device()
    for _ in range(2000):
        device.live(LOOK_S, at(dice.uniform(60.0, 86.0)), dice.choice([0.0, 5.0, 15.0, 30.0, 80.0]))
    ups = [i for i, (a, b) in enumerate(pairwise(device.shares)) if b > a]
    assert all(LOOK_S * (b - a) >= CALM_S for a, b in pairwise(ups))
    assert device.changes <= 2 * len(ups) + 4


def test_it_finds_the_share_that_others_bear() -> None:
    """Their wait is what this device takes of the processor: at 15 % and less nobody complains."""
    device = Device()
    for _ in range(360):
        device.live(LOOK_S, waiting=60.0 * device.verdict.share)
    assert set(device.shares[60:]) == {0.25}, "15 % of waiting is neither pressed nor calm"


def test_near_the_limit_it_pauses_until_it_has_been_cool_for_a_while_and_begins_slowly() -> None:
    device = Device()
    found = device.live(LOOK_S, at(91.0))
    assert found.pauses
    assert "cpu-thermal is at 91" in found.reason
    assert device.live(600.0, at(84.0)).pauses, "below the limit, and not cool"
    assert device.live(COOL_S, at(70.0)).pauses
    assert device.live(LOOK_S, at(84.0)).pauses, "warm again in between: cool time starts anew"
    assert device.live(COOL_S, at(70.0)).pauses
    assert device.live(LOOK_S, at(70.0)) == Verdict(LEAST_SHARE, "it was too hot")
    assert device.live(5 * CALM_S, at(60.0)) == Verdict()


@pytest.mark.parametrize(
    "blind",
    [Host(), Host(zones=(Zone("gpu", 50.0, TRIPS),)), Host(zones=(Zone("cpu-thermal", 50.0, {}),))],
    ids=["no zone at all", "another is cool", "without its limits"],
)
def test_a_zone_that_was_too_hot_and_cannot_be_read_is_not_taken_for_cool(blind: Host) -> None:
    device = Device()
    device.live(LOOK_S, at(91.0))
    found = device.live(10 * COOL_S, blind)
    assert found == Verdict(0.0, "too hot: cpu-thermal is at 91 °C; cpu-thermal cannot be read now")
    found = device.live(COOL_S, at(70.0))
    assert found == Verdict(0.0, "too hot: cpu-thermal is at 91 °C"), "cool time starts when it is read again"
    assert device.live(LOOK_S, at(70.0)) == Verdict(LEAST_SHARE, "it was too hot")
    device.live(LOOK_S, Host(zones=(Zone("gpu", 91.0, TRIPS),)))
    assert device.live(COOL_S, Host(zones=(Zone("gpu", 70.0, TRIPS),))).pauses
    assert device.live(LOOK_S, Host(zones=(Zone("gpu", 70.0, TRIPS),))).share == LEAST_SHARE, (
        "its own heat alone"
    )


def test_a_zone_with_a_critical_point_alone_pauses_just_below_it() -> None:
    def zone(celsius: float) -> Host:
        return Host(zones=(Zone("cpu", celsius, {"critical": 110.0}),))

    device = Device()
    assert device.live(LOOK_S, zone(104.9)).share == 1.0
    assert device.live(LOOK_S, zone(105.0)).pauses


def test_on_battery_it_trains_half_the_time_and_pauses_when_that_runs_down() -> None:
    device = Device()
    assert device.live(LOOK_S, battery(90)) == Verdict(0.5, "on battery")
    assert device.live(LOOK_S, battery(30)).share == 0.5
    assert device.live(LOOK_S, battery(29)).pauses
    assert "29 % left; goes on at 40 %" in device.verdict.reason
    assert device.live(600.0, battery(35)).pauses
    assert device.live(LOOK_S, battery(40)).share == 0.5
    assert device.live(LOOK_S, battery(20)).pauses
    assert device.live(MAINS_S, battery(20, "Charging", mains=True)).pauses, "the plug may be loose"
    assert device.live(LOOK_S, battery(20, "Charging", mains=True)) == Verdict()


def test_a_loose_plug_does_not_make_it_come_and_go() -> None:
    device = Device()
    for _ in range(100):
        device.live(LOOK_S, battery(20))
        device.live(2 * LOOK_S, battery(20, mains=True))
    assert set(device.shares) == {0.0}


def test_a_battery_that_does_not_say_how_full_it_is_slows_and_does_not_pause() -> None:
    assert Device().live(600.0, battery(None)) == Verdict(0.5, "on battery")


def test_on_battery_and_pressed_the_smaller_share_holds() -> None:
    device = Device()
    host = Host(supplies=battery(90).supplies, cooling=(Cooling("Processor", 2, 3),))
    assert device.live(STEP_S + LOOK_S, host).share == 0.25
    assert "held back" in device.verdict.reason


def test_with_mains_it_never_trains_on_battery_and_with_off_always() -> None:
    assert Device("mains").live(LOOK_S, battery(90)).pauses
    assert Device("mains").live(LOOK_S, at(81.0)).share == 0.5
    for host in (battery(5), at(104.0), Host(firmware=Firmware(0xF))):
        assert Device("off").live(600.0, host, waiting=99.0) == Verdict()


@pytest.mark.parametrize("manners", ["on", "off", "mains"])
def test_quiet_hours_are_kept_whatever_the_manners_and_come_first(manners: str) -> None:
    strain, quiet = Strain(), QuietHours(22 * 60, 7 * 60)
    strain.take(battery(10), None, 5.0)
    found = verdict(strain, manners, quiet, 23 * 60)
    assert found == Verdict(0.0, "quiet hours 22:00-07:00", "07:00")
    assert verdict(Strain(), manners, quiet, 7 * 60) == Verdict()
    assert verdict(Strain(), manners, quiet, None) == Verdict(), "nobody knows what time it is"


@pytest.mark.parametrize(
    ("group_s", "own_s", "part"),
    [(10.0, 10.0, 0.0), (10.0, 4.0, 0.6), (10.0, 11.0, 0.0), (10.0, -30.0, 1.0), (0.0, 0.0, 0.0)],
)
def test_the_others_part_is_what_the_group_used_and_we_did_not(
    group_s: float, own_s: float, part: float
) -> None:
    assert others_part(group_s, own_s) == pytest.approx(part)
