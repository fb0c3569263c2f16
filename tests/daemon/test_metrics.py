"""What Prometheus reads of a daemon: parsed by its own parser, in step with `peerd status --json`."""

from __future__ import annotations

import asyncio
import json
import re
import signal
import subprocess
import sys
import urllib.request
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import suppress
from pathlib import Path

import pytest
from prometheus_client import Metric
from prometheus_client.openmetrics import parser as openmetrics
from prometheus_client.parser import text_string_to_metric_families

import peer.__main__
from daemon.conftest import PATIENCE_S, Home
from daemon.puppet import Puppet, ask
from daemon.test_sessions import pair, until
from peer.daemon import metrics, metrics_server
from peer.daemon.metrics_server import MetricsServer
from peer.errors import ConfigError, UsageError
from peer.status import BudgetStatus, DeviceStatus, LinkStatus, SessionStatus

Make = Callable[[str], Home]
Serve = Callable[..., Awaitable[MetricsServer]]
Series = dict[tuple[str, frozenset[tuple[str, str]]], float]

BUDGET = BudgetStatus(1000, 10, 14400, 2)
LINKS = (
    LinkStatus("p-b", "pi-2", "out", "alive", "10.0.0.2:7", 12.5, 900, None, 4, 1, 0.5, 1),
    LinkStatus("p-b", "pi-2", "in", "alive", "10.0.0.2:7", 12.5, None, 700, 3, 0, 0.5, 2),
)
TRAINING = SessionStatus(
    "home", "s-1", "sgp", "ring", "quadratic", "training", 17, 4, 2, 0.5, {"accuracy": 0.9}, 2, 900, 700, 800,
    9000, 3000, 10.0, 0.5, 0.01, 3, 0.1, 0.4, 60.0, LINKS, 1, 2.5, BUDGET, 18, 6, 0.5,
    consensus_relative=0.02, mean_weight=0.98,
)  # fmt: skip
FULL = DeviceStatus(
    "p-a", 'pi "1"\\', "0.1", 7, 60.0, 50.0, ("the clock is unset", "no space left"), (TRAINING,), 12.5, False
)


@pytest.fixture
async def serve() -> AsyncIterator[Serve]:
    """Starts serving a snapshot; all ends with the test."""
    servers: list[MetricsServer] = []

    async def start(
        status: Callable[[], DeviceStatus] = lambda: FULL, at: tuple[str, int] = ("127.0.0.1", 0)
    ) -> MetricsServer:
        servers.append(MetricsServer(at, status))
        await servers[-1].start()
        return servers[-1]

    yield start
    for server in servers:
        await server.stop()


async def get(server: MetricsServer, *lines: str) -> tuple[int, dict[str, str], str]:
    """Status, headers and body that come for these lines of a request; a scrape without any."""
    reader, writer = await asyncio.open_connection("127.0.0.1", server.ports[0])
    head = lines or ("GET /metrics HTTP/1.1", f"Host: localhost:{server.ports[0]}")
    writer.write("".join(f"{line}\r\n" for line in (*head, "")).encode())
    answer = (await reader.read()).decode()
    writer.close()
    await writer.wait_closed()
    top, _, body = answer.partition("\r\n\r\n")
    first, *rest = top.split("\r\n")
    return int(first.split()[1]), dict(line.split(": ", 1) for line in rest), body


async def scrape(server: MetricsServer) -> dict[str, Metric]:
    """Families by name. Every series is there once."""
    status, _, body = await get(server)
    assert status == 200
    families = {family.name: family for family in text_string_to_metric_families(body)}
    assert len(series(families)) == sum(len(family.samples) for family in families.values())
    return families


def series(families: dict[str, Metric]) -> Series:
    samples = [sample for family in families.values() for sample in family.samples]
    return {(sample.name, frozenset(sample.labels.items())): sample.value for sample in samples}


def value(found: Series, name: str, /, **labels: str) -> float:
    return found[name, frozenset(labels.items())]


async def test_every_family_has_a_type_a_help_and_a_name_by_the_conventions(serve: Serve) -> None:
    families = await scrape(await serve())
    for family in families.values():
        assert family.documentation.endswith("."), family
        assert family.type in ("counter", "gauge"), family
        for sample in family.samples:
            assert sample.name.endswith("_total") == (family.type == "counter"), sample
            assert re.fullmatch("(peerd|process)(_[a-z]+)+", sample.name), sample
            assert not re.search("_(ms|mb|kb|min|count)(_|$)", sample.name), sample
            assert set(sample.labels) <= {
                "session", "peer", "direction", "device", "version", "algorithm", "topology", "task", "state",
                "name",
            }  # fmt: skip
            assert family.name.startswith("process_") or family.samples, family


async def test_units_labels_and_escapes(serve: Serve) -> None:
    found = series(await scrape(await serve()))
    assert value(found, "peerd_info", peer="p-a", device='pi "1"\\', version="0.1") == 1
    assert value(found, "peerd_health_sentences") == 2
    assert value(found, "peerd_clock_unset") == 1
    assert value(found, "peerd_state_free_bytes") == 12.5e6
    assert value(found, "peerd_session_state", session="home", state="training") == 1
    assert value(found, "peerd_session_state", session="home", state="alone") == 0
    assert value(found, "peerd_session_evaluation", session="home", name="accuracy") == 0.9
    assert value(found, "peerd_session_consensus_ratio", session="home") == 0.02
    assert value(found, "peerd_session_mean_weight", session="home") == 0.98
    assert value(found, "peerd_session_replica_bytes", session="home") == 2.5e6
    assert value(found, "peerd_session_budget_bytes", session="home") == 1000
    assert value(found, "peerd_session_learner_restarts_total", session="home") == 6
    assert value(found, "peerd_link_bytes_total", session="home", peer="p-b", direction="out") == 900
    assert value(found, "peerd_link_bytes_total", session="home", peer="p-b", direction="in") == 700
    assert value(found, "peerd_link_unacked", session="home", peer="p-b", direction="out") == 1
    assert value(found, "peerd_peer_rtt_seconds", session="home", peer="p-b") == 0.0125
    assert value(found, "peerd_peer_rejected_total", session="home", peer="p-b") == 3
    assert value(found, "peerd_peer_info", session="home", peer="p-b", device="pi-2") == 1
    assert value(found, "process_resident_memory_bytes") > 0


async def test_what_is_not_known_has_no_sample(serve: Serve) -> None:
    families = await scrape(await serve(lambda: DeviceStatus("p", sessions=(SessionStatus("home"),))))
    found = {name for name, family in families.items() if family.samples and name.startswith("peerd_")}
    assert found == {"peerd_info", "peerd_health_sentences", "peerd_session_info", "peerd_session_state"}
    assert {"peerd_session_loss", "peerd_link_bytes", "peerd_session_budget_bytes"} <= set(families)


def test_openmetrics_is_spoken_to_who_asks_for_it() -> None:
    body, content_type = metrics.text(FULL, "application/openmetrics-text;version=1.0.0,text/plain;q=0.5")
    assert content_type.startswith("application/openmetrics-text; version=")
    strict = {family.name: family for family in openmetrics.text_string_to_metric_families(body.decode())}
    plain, _ = metrics.text(FULL, "")
    loose = {family.name for family in text_string_to_metric_families(plain.decode())}
    assert {name for name, family in strict.items() if family.type != "info"} <= loose


def test_neighbors_and_names_are_bounded_and_the_living_come_first() -> None:
    dead = [LinkStatus(f"p-{n:03}", state="dead") for n in range(300)]
    living = [LinkStatus(f"q-{n:03}", direction=d) for n in range(100) for d in ("in", "out")]  # type: ignore[arg-type]
    session_ = SessionStatus("home", links=(*dead, *living), metrics={f"m{n}": float(n) for n in range(1000)})
    body, _ = metrics.text(DeviceStatus("p", sessions=(session_,)), "")
    alive = {f.name: f for f in text_string_to_metric_families(body.decode())}["peerd_peer_alive"].samples
    assert (len(alive), sum(sample.value for sample in alive)) == (metrics.MAX_PEERS, 100)
    assert body.count(b"\npeerd_session_evaluation{") == metrics.MAX_NAMES


async def test_a_scrape_says_what_status_says_of_daemons_that_trained_and_no_secret(
    home: Make, serve: Serve
) -> None:
    async with asyncio.timeout(PATIENCE_S):
        a, b, first, _ = await pair(home, rounds=20)
        for h in (a, b):
            await h.daemon.sessions["home"].ended.wait()
        server = await serve(lambda: a.daemon.status(None))
        answer, _ = await ask(a.socket, "status", name=None)
        found = series(await scrape(server))
        _, _, body = await get(server)
    [shown] = answer["status"]["sessions"]
    for name, field in {
        "peerd_session_round": "round", "peerd_session_rounds_total": "rounds_closed",
        "peerd_session_rounds_alone_total": "rounds_alone", "peerd_session_members": "members",
        "peerd_session_dense_bytes_total": "bytes_dense", "peerd_session_weight": "weight",
        "peerd_session_message_bytes_total": "message_bytes_sent",
        "peerd_session_learner_restarts_total": "learner_restarts",
    }.items():  # fmt: skip
        assert value(found, name, session="home") == shown[field] is not None, name
    assert shown["rounds_closed"] == first.rounds
    assert shown["round"] == 20
    assert value(found, "peerd_session_bytes_total", session="home", direction="out") == shown["bytes_sent"]
    other, out = b.daemon.device.key.id, next(link for link in shown["links"] if link["direction"] == "out")
    assert value(found, "peerd_link_bytes_total", session="home", peer=other, direction="out") > 0
    rtt_s = value(found, "peerd_peer_rtt_seconds", session="home", peer=other)
    assert rtt_s == pytest.approx(out["rtt_ms"] / 1e3)
    assert answer["status"]["clock_set"] is True
    assert answer["status"]["state_free_mb"] > 0
    for secret in (a.daemon.key("home"), a.daemon.store.sessions()[0].key.hex(), out["address"]):
        assert secret not in body


def counters(h: Home) -> Series:
    """Those of links too, by series."""
    body, _ = metrics.text(h.daemon.status(None), "")
    families = {family.name: family for family in text_string_to_metric_families(body.decode())}
    return series({k: v for k, v in families.items() if v.type == "counter" and k.startswith("peerd_")})


def none_went_down(before: Series, after: Series) -> None:
    assert before
    assert {key: (was, after[key]) for key, was in before.items() if after[key] < was} == {}


async def test_no_counter_goes_down_when_a_learner_starts_again(home: Make) -> None:
    async with asyncio.timeout(PATIENCE_S):
        _, b, first, second = await pair(home)
        await asyncio.gather(first.until(5), second.until(5))
        before = counters(b)
        second.close()
        await second.ended()
        await until(b.daemon.sessions["home"], lambda: b.daemon.sessions["home"].learning.end is None)
        none_went_down(before, counters(b))
        third = await Puppet.attach(b.socket, "home")
        await asyncio.gather(third.until(3), first.until(first.rounds + 3))
        none_went_down(before, counters(b))


async def test_no_counter_goes_down_when_a_script_takes_the_place_and_leaves(home: Make) -> None:
    """Then there is another node, whose own counts begin anew."""
    async with asyncio.timeout(PATIENCE_S):
        _, b, first, second = await pair(home)
        await asyncio.gather(first.until(5), second.until(5))
        node, before = b.daemon.sessions["home"].node, counters(b)
        script = await Puppet.attach(b.socket, "home", child=False)
        await asyncio.gather(script.until(3), first.until(first.rounds + 3))
        assert b.daemon.sessions["home"].node is not node
        after = counters(b)
    assert value(after, "peerd_session_rounds_total", session="home") > 5
    none_went_down(before, after)


async def test_a_port_that_is_taken_stops_no_daemon_and_is_tried_again(
    home: Make, serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(metrics_server, "AGAIN_S", 0.0)
    async with asyncio.timeout(PATIENCE_S):
        a, first = home("a"), await serve()
        assert a.daemon.status(None).health == ()
        port = first.ports[0]
        a.daemon.metrics = second = await serve(lambda: a.daemon.status(None), ("127.0.0.1", port))
        [said] = a.daemon.status(None).health
        assert said == (
            f"no metrics are served on port {port} of 127.0.0.1: Address already in use; name another "
            "with --metrics or PEERD_METRICS (this one is tried again)"
        )
        assert second.ports == []
        await first.stop()
        await second.listening.wait()
        assert a.daemon.status(None).health == ()
        assert value(series(await scrape(second)), "peerd_health_sentences") == 0


async def test_a_web_page_cannot_read_it_under_a_name_of_its_own(serve: Serve) -> None:
    inside = await serve()
    for named in (
        "evil.example",
        "evil.example:9",
        "127.0.0.1.evil.example",
        "localhost.evil.example",
        "[",
        "",
    ):
        status, _, body = await get(inside, "GET /metrics HTTP/1.1", f"Host: {named}")
        assert (status, body) == (403, "a server on loopback is named by its number, or localhost\n"), named
    for named in ("localhost", "LOCALHOST:1", "127.0.0.1:1", "[::1]:1", "[::1]"):
        assert (await get(inside, "GET /metrics HTTP/1.1", f"Host: {named}"))[0] == 200, named
    assert (await get(inside, "GET /metrics HTTP/1.0"))[0] == 200
    outside = await serve(at=("0.0.0.0", 0))
    assert (await get(outside, "GET /metrics HTTP/1.1", "Host: pi-1.local:1"))[0] == 200


@pytest.mark.parametrize(
    ("line", "status"),
    [
        ("GET / HTTP/1.1", 404), ("GET /metrics?name=x HTTP/1.1", 200), ("HEAD /metrics HTTP/1.1", 200),
        ("POST /metrics HTTP/1.1", 405), ("GET /metrics HTTP/2.0", 505), ("GET /metrics", 400),
        ("GET http://[ HTTP/1.1", 400), ("\x16\x03\x01\u00e9", 400),
        (f"GET /{70_000 * 'a'} HTTP/1.1", 400), ("HEAD / HTTP/1.1", 404), ("HEAD /metrics HTTP/2.0", 505),
    ],
)  # fmt: skip
async def test_what_is_no_scrape_is_told_so(serve: Serve, line: str, status: int) -> None:
    async with asyncio.timeout(PATIENCE_S):
        found, headers, body = await get(await serve(), line, "Host: localhost")
    assert found == status
    assert headers["connection"] == "close"
    assert len(body.encode()) == (0 if line.startswith("HEAD") else int(headers["content-length"]))
    assert ("allow" in headers) == (status == 405)


@pytest.mark.parametrize("accept", ["caf\u00e9", "text/plain; version=1.x", "text/plain; version=1.0.\u00e9"])
async def test_who_asks_for_what_nobody_knows_gets_plain_text(serve: Serve, accept: str) -> None:
    async with asyncio.timeout(PATIENCE_S):
        status, headers, body = await get(
            await serve(), "GET /metrics HTTP/1.1", "Host: localhost", f"Accept: {accept}"
        )
    assert (status, headers["content-type"].split(";")[0]) == (200, "text/plain")
    assert "peerd_info" in body


async def test_silent_clients_are_few_and_not_waited_for(
    serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(metrics_server, "CLIENT_S", 0.2)
    async with asyncio.timeout(PATIENCE_S):
        server = await serve()
        silent = [
            await asyncio.open_connection("127.0.0.1", server.ports[0])
            for _ in range(metrics_server.CLIENTS + 3)
        ]
        for reader, writer in silent:  # each is cut off
            with suppress(ConnectionResetError):
                assert await reader.read() == b""
            writer.transport.abort()
        monkeypatch.undo()
        await scrape(server)


async def test_stopping_waits_for_nobody(serve: Serve) -> None:
    async with asyncio.timeout(PATIENCE_S):
        server = await serve()
        reader, writer = await asyncio.open_connection("127.0.0.1", server.ports[0])
        await scrape(server)
        [port] = server.ports
        await server.stop()
        with suppress(ConnectionResetError):
            assert await reader.read() == b""
        writer.transport.abort()
        with pytest.raises(ConnectionRefusedError):
            await asyncio.open_connection("127.0.0.1", port)


def test_where_it_is_served_is_a_flag_or_the_environment_and_loopback_by_default() -> None:
    address = metrics_server.address
    assert address(None, {}) is None
    assert address(None, {"PEERD_METRICS": "9790"}) == ("127.0.0.1", 9790)
    assert address("0.0.0.0:9791", {"PEERD_METRICS": "9790"}) == ("0.0.0.0", 9791)
    assert address("[::1]:9790", {}) == ("::1", 9790)
    assert address(":9790", {}) == ("127.0.0.1", 9790)
    assert address("", {"PEERD_METRICS": "9790"}) is None
    with pytest.raises(UsageError, match="--metrics: an address is written HOST:PORT"):
        address("99999", {})
    with pytest.raises(ConfigError, match="PEERD_METRICS: an address is written HOST:PORT"):
        address(None, {"PEERD_METRICS": "pi-1"})


def test_a_word_that_is_no_address_ends_the_daemon_before_it_begins(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert peer.__main__.main(["--metrics", "pi-1"]) == 2
    monkeypatch.setenv("PEERD_METRICS", "pi-1")
    assert peer.__main__.main([]) == 78
    assert "or the port alone for 127.0.0.1" in capsys.readouterr().err


def test_a_daemon_as_a_process_serves_them_and_logs_objects(tmp_path: Path) -> None:
    command = [sys.executable, "-P", "-m", "peer", "--socket", str(tmp_path / "s"), "--state", str(tmp_path)]
    daemon = subprocess.Popen(
        [*command, "--metrics", "0", "--log-format", "json"], stderr=subprocess.PIPE, text=True
    )
    assert daemon.stderr is not None
    lines = map(json.loads, daemon.stderr)
    served = next(line for line in lines if line["message"] == "metrics are served")
    assert (served["level"], served["host"]) == ("INFO", "127.0.0.1")
    with urllib.request.urlopen(f"http://127.0.0.1:{served['port']}/metrics", timeout=60) as answer:
        families = {family.name for family in text_string_to_metric_families(answer.read().decode())}
    assert {"peerd_info", "peerd_session_round", "process_open_fds"} <= families
    daemon.send_signal(signal.SIGTERM)
    assert daemon.wait(120) == 0
    daemon.stderr.close()
