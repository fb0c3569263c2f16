"""Rules as nft of Debian 12 prints them: what they do with a packet, and what is said of it."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest

from peer.doctor import firewall
from peer.doctor.firewall import MDNS, Packet, Rules, UnreadableError, judge, lets_in, read

HERE = {"family": "inet", "table": "filter"}


def ruleset(
    *rules: list[dict[str, Any]], policy: str = "drop", **chains: list[list[dict[str, Any]]]
) -> Rules:
    """A base chain with these rules, and more chains by name."""
    base = {**HERE, "name": "input", "type": "filter", "hook": "input", "prio": 0, "policy": policy}
    entries: Rules = [{"metainfo": {"version": "1.0.6"}}, {"table": {"family": "inet", "name": "filter"}}]
    entries.append({"set": {**HERE, "name": "ports", "elem": [22, {"range": [7000, 7010]}]}})
    entries.append({"chain": base})
    for name, inside in {"input": list(rules), **chains}.items():
        if name != "input":
            entries.append({"chain": {**HERE, "name": name}})
        entries += [{"rule": {**HERE, "chain": name, "expr": expression}} for expression in inside]
    return entries


def port(protocol: str, right: Any, *then: dict[str, Any], op: str = "==") -> list[dict[str, Any]]:
    left = {"payload": {"protocol": protocol, "field": "dport"}}
    return [{"match": {"op": op, "left": left, "right": right}}, *(then or ({"accept": None},))]


def meta(key: str, right: Any, *then: dict[str, Any], op: str = "==") -> list[dict[str, Any]]:
    return [
        {"match": {"op": op, "left": {"meta": {"key": key}}, "right": right}},
        *(then or ({"accept": None},)),
    ]


def vmap(key: dict[str, Any], *elements: list[Any]) -> dict[str, Any]:
    return {"vmap": {"key": key, "data": {"set": list(elements)}}}


ACCEPT, DROP, REJECT = {"accept": None}, {"drop": None}, {"reject": {"type": "icmpx"}}
XT_REJECT = {"xt": {"type": "target", "name": "REJECT"}}  # as iptables-nft writes it
RETURN = {"return": None}
ESTABLISHED = [
    {"match": {"op": "in", "left": {"ct": {"key": "state"}}, "right": ["established", "related"]}},
    ACCEPT,
]
TO_GROUPS = [
    {
        "match": {
            "op": "==",
            "left": {"payload": {"protocol": "ip", "field": "daddr"}},
            "right": {"prefix": {"addr": "224.0.0.0", "len": 4}},
        }
    },
    ACCEPT,
]


@pytest.mark.parametrize(
    ("rules", "mdns", "tcp"),
    [
        ([], True, True),
        (ruleset(policy="accept"), True, True),
        (ruleset(ESTABLISHED, meta("iif", "lo"), meta("l4proto", "icmp")), False, False),
        (ruleset(port("udp", {"set": [67, 5353]}, {"counter": {}}, ACCEPT)), True, False),
        (ruleset(port("udp", 5353), port("tcp", "@ports")), True, True),
        (ruleset(port("udp", 5353), port("tcp", {"range": [1, 1024]})), True, False),
        (ruleset(TO_GROUPS), True, False),
        (ruleset(port("udp", 5353, DROP), policy="accept"), False, True),
        (ruleset(port("tcp", 22, REJECT, op="!="), policy="accept"), True, False),
        (ruleset([{"jump": {"target": "more"}}], more=[port("tcp", 7001)]), False, True),
        (ruleset([{"goto": {"target": "more"}}], [ACCEPT], more=[port("tcp", 7001)]), False, True),
        (
            ruleset([{"jump": {"target": "more"}}], [ACCEPT], more=[port("tcp", 7001, RETURN), [DROP]]),
            False,
            True,
        ),
        (ruleset(meta("iifname", "eth0"), port("udp", 5353)), True, None),
        (ruleset([{"xt": {"type": "match", "name": "geoip"}}, ACCEPT]), None, None),
        (ruleset([{"xt": {"type": "match", "name": "geoip"}}, DROP], [ACCEPT]), None, None),
        (ruleset([{"xt": {"type": "match", "name": "geoip"}}, ACCEPT], policy="accept"), True, True),
        (ruleset([{"jump": {"target": "input"}}]), None, None),
        (ruleset([XT_REJECT], policy="accept"), False, False),
        (ruleset(port("tcp", 22, XT_REJECT, op="!="), policy="accept"), True, False),
        (ruleset([{"xt": {"type": "match", "name": "geoip"}}, XT_REJECT], policy="accept"), None, None),
        (ruleset([{"xt": {"type": "target", "name": "TARPIT"}}], policy="accept"), None, None),
        (ruleset([{"counter": {}}, {"xt": None}]), None, None),
        (ruleset([{"xt": None}, {"counter": {}}, DROP]), False, False),
        (ruleset([{"xt": {"type": "target", "name": "LOG"}}], port("udp", 5353)), True, False),
        (ruleset([{"limit": {"rate": 3, "per": "minute"}}, {"log": None}]), False, False),
        (ruleset(port("tcp", 7001, {"queue": {"num": 0}}), policy="accept"), True, None),
        (ruleset([vmap({"payload": {"protocol": "tcp", "field": "dport"}}, [7000, ACCEPT])]), None, None),
        (
            ruleset(
                [vmap({"meta": {"key": "iifname"}}, ["eth0", {"jump": {"target": "lan"}}])], lan=[[ACCEPT]]
            ),
            None,
            None,
        ),
    ],
)
def test_a_packets_way_through_the_rules(rules: Rules, mdns: bool | None, tcp: bool | None) -> None:
    assert lets_in(rules, MDNS) is mdns
    assert lets_in(rules, Packet("tcp", 7001)) is tcp


def test_every_base_chain_must_let_it_through() -> None:
    other = json.loads(
        json.dumps(ruleset(port("udp", 5353, DROP), policy="accept")).replace('"filter"', '"more"')
    )
    assert lets_in([*ruleset(policy="accept"), *other], MDNS) is False


def nft(folder: Path, script: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A program of that name comes first."""
    program = folder / "nft"
    program.write_text(f"#!/bin/sh\n{script}\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
    monkeypatch.setattr(firewall, "NFT", ("nft",))


def test_root_runs_no_nft_that_a_path_put_before_the_systems(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ran: list[str] = []
    monkeypatch.setattr(firewall.shutil, "which", lambda name: name)
    monkeypatch.setattr(
        firewall.subprocess,
        "run",
        lambda command, **_: ran.append(command[0]) or subprocess.CompletedProcess(command, 1),
    )
    with pytest.raises(UnreadableError, match="only root"):
        read()
    assert ran == ["/usr/sbin/nft"]


def test_the_rules_are_read_from_the_program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "rules.json").write_text(json.dumps({"nftables": ruleset()}))
    nft(tmp_path, f'test "$*" = "-j list ruleset" && cat {tmp_path}/rules.json', monkeypatch)
    assert lets_in(read(), MDNS) is False


@pytest.mark.parametrize(
    ("script", "words"),
    [
        ("echo Operation not permitted >&2; exit 1", "sudo peerd doctor"),
        ("echo no json", "not understood"),
        ("echo '[]'", "not understood"),
    ],
)
def test_rules_that_cannot_be_read_are_said_to_be_unread(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, script: str, words: str
) -> None:
    nft(tmp_path, script, monkeypatch)
    with pytest.raises(UnreadableError, match=words) as unread:
        read()
    finding = judge(str(unread.value), {}, False)
    assert (finding.verdict, finding.data["read"]) == ("ok", False)
    assert words in finding.seen


def test_a_port_that_is_shut_is_named_with_the_command_that_opens_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(firewall.shutil, "which", lambda name: name if name == "ufw" else None)
    finding = judge(ruleset(port("udp", 5353)), {"home": 7001}, False)
    assert finding.verdict == "warning", "those that it dials itself are enough"
    assert "TCP port 7001 (home)" in finding.seen
    assert "'sudo ufw allow 7001/tcp'" in finding.advice
    assert "--listen" in finding.advice
    assert judge(ruleset(port("udp", 5353)), {"home": 7001}, True).verdict == "problem"
    deaf = judge(ruleset(port("tcp", 7001)), {"home": 7001}, False)
    assert (deaf.verdict, deaf.data["lets_in"]["mDNS"]["lets_in"]) == ("problem", False)
    assert "'sudo ufw allow 5353/udp'" in deaf.advice


@pytest.mark.parametrize(
    ("installed", "command"),
    [
        ("ufw", "'sudo ufw allow 5353/udp', 'sudo ufw allow 7001/tcp'"),
        ("firewall-cmd", "--add-port=5353/udp --add-port=7001/tcp"),
        ("", "'sudo nft insert rule inet filter input tcp dport 7001 accept'"),
    ],
)
def test_the_command_is_of_the_firewall_that_is_there(
    installed: str, command: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(firewall.shutil, "which", lambda name: name if name == installed else None)
    assert command in firewall.how_to_allow(MDNS, Packet("tcp", 7001))


def test_an_open_firewall_is_ok() -> None:
    finding = judge(ruleset(policy="accept"), {"home": 7001}, False)
    assert (finding.verdict, finding.advice) == ("ok", "")
    unsure = judge(ruleset(meta("iifname", "eth0")), {}, False)
    assert (unsure.verdict, unsure.data["lets_in"]["mDNS"]["lets_in"]) == ("ok", None)
