import dataclasses
import json

import pytest

from peer.config import Descriptor, JoinOptions, check_address, check_name
from peer.errors import ConfigError, UsageError

NONCE = "0123456789abcdef" * 2
HOME = Descriptor("home", NONCE)


def changed(**values: object) -> dict[str, object]:
    return {**HOME.to_dict(), **values}


def test_the_defaults_are_those_of_the_command_line() -> None:
    HOME.check()
    assert (HOME.task, HOME.algorithm, HOME.topology) == ("spoken-digits", "difference-push", "exponential")
    assert (HOME.local_steps, HOME.pace, HOME.rounds) == (16, "lockstep", 0)


def test_a_descriptor_survives_the_way_to_another_member() -> None:
    one = Descriptor("a.b-c_1", NONCE, options={"algorithm.preset": "frugal"}, lr=0.1, batch=8, momentum=0.0)
    two = Descriptor.from_dict(json.loads(one.canonical()))
    assert two == one
    assert two.canonical() == one.canonical()


def test_the_canonical_form_has_sorted_keys_and_one_spelling() -> None:
    backwards = dict(reversed(list(HOME.to_dict().items())))
    assert Descriptor.from_dict(backwards).canonical() == HOME.canonical()
    assert b": " not in HOME.canonical()
    assert list(json.loads(HOME.canonical())) == sorted(HOME.to_dict())
    whole, fraction = Descriptor.from_dict(changed(lr=1)), Descriptor.from_dict(changed(lr=1.0))
    assert whole.canonical() == fraction.canonical()


def test_the_id_tells_sessions_apart_by_anything_in_them() -> None:
    assert len(HOME.id) == 32
    others = [{"nonce": "f" * 32}, {"name": "work"}, {"seed": 1}, {"rounds": 3}, {"lr": 0.5}]
    ids = {dataclasses.replace(HOME, **other).id for other in others}  # type: ignore[arg-type]
    assert len(ids | {HOME.id}) == len(others) + 1


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"extra": 1}, "unknown key 'extra'; known are name, nonce"),
        ({"local_steps": 0}, "local_steps may not be 0"),
        ({"local_steps": "16"}, "local_steps should be int"),
        ({"local_steps": True}, "local_steps should be int"),
        ({"rounds": -1}, "rounds"),
        ({"lr": float("nan")}, "lr"),
        ({"lr": 0.0}, "lr"),
        ({"momentum": 1.0}, "momentum"),
        ({"batch": 0}, "batch"),
        ({"pace": "gallop"}, "pace"),
        ({"nonce": "xyz"}, "nonce"),
        ({"name": "../../etc"}, "name"),
        ({"algorithm": "teleport"}, "no algorithm is called 'teleport'"),
        ({"topology": "torus"}, "no topology"),
        ({"task": "mnist"}, "no task"),
        ({"task": "file"}, "task_digest"),
        ({"task_digest": "a" * 64}, "task_digest"),
        ({"compression": "auto,fp16"}, "stands alone"),
        ({"options": {"algorithm.preset": "cheap"}}, "dense, balanced, frugal"),
        ({"options": ["a"]}, "options should be"),
        ({"options": {"a": 1}}, "options should be"),
        ({"format": 2}, "upgrade"),
    ],
)
def test_nonsense_from_elsewhere_is_refused_by_name(values: dict[str, object], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        Descriptor.from_dict(changed(**values))


def test_a_missing_key_is_named() -> None:
    without = {key: value for key, value in HOME.to_dict().items() if key != "seed"}
    with pytest.raises(ConfigError, match="lacks 'seed'"):
        Descriptor.from_dict(without)


def test_join_options_come_back_as_they_went() -> None:
    options = JoinOptions(
        shard="3/8", peers=("pi-1.local:7070",), interfaces=("wlan0",), task_file_text="x = 1"
    )
    assert JoinOptions.from_dict(json.loads(json.dumps(options.to_dict()))) == options


@pytest.mark.parametrize(
    "values",
    [
        {"device": "tpu"},
        {"timeout_s": -1},
        {"timeout_s": None},
        {"peers": ["nowhere"]},
        {"listen": "1:2:3"},
        {"insecure": 1},
        {"interfaces": "lo"},
        {"task_file_text": "x" * 70000},
        {"key": "secret"},
        {"quiet_hours": "22"},
        {"manners": "good"},
    ],
)
def test_join_options_are_checked(values: dict[str, object]) -> None:
    with pytest.raises(ConfigError):
        JoinOptions.from_dict({**JoinOptions().to_dict(), **values})


@pytest.mark.parametrize("name", ["", "-x", ".x", "a b", "a/b", "x" * 64, "caf\u00e9", "a\n"])
def test_a_name_can_be_a_folder_and_be_typed(name: str) -> None:
    with pytest.raises(UsageError, match="letters, digits"):
        check_name(name)


def test_addresses_have_a_host_and_a_port() -> None:
    assert check_address("pi-1.local:7070") == ("pi-1.local", 7070)
    assert check_address("[fe80::1]:7070") == ("fe80::1", 7070)
    assert check_address(":7070") == ("", 7070)
    with pytest.raises(UsageError, match="HOST:PORT"):
        check_address(":7070", needs_host=True)
    for wrong in ("pi-1", ":", "7070", "pi-1:", "pi-1:70707", "fe80::1:7070", "pi-1:http"):
        with pytest.raises(UsageError):
            check_address(wrong)


def test_options_kept_before_there_were_quiet_hours_are_read_and_have_none() -> None:
    old = JoinOptions(budget="2MB/min", shard="1/8").to_dict()
    del old["quiet_hours"], old["manners"]
    assert JoinOptions.from_dict(old) == JoinOptions(budget="2MB/min", shard="1/8")


def test_every_address_can_be_listened_on_and_none_can_be_dialed_without_a_host() -> None:
    plain = JoinOptions().to_dict()
    assert JoinOptions.from_dict({**plain, "listen": ":7000"}).listen == ":7000"
    with pytest.raises(ConfigError, match="HOST:PORT"):
        JoinOptions.from_dict({**plain, "peers": [":7000"]})
