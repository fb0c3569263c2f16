"""What the answering side hands to its handlers, and on which connections it is called."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from contextlib import suppress

import grpc
import grpc.aio
import pytest

from mesh.test_transport import Member, raw_channel, serving, stranger_metadata
from peer.errors import PortError
from peer.events import Probe, StreamUp, Told
from peer.keys import new_key
from peer.mesh import channels, service
from peer.mesh.channels import (
    CHANNEL_OPTIONS,
    COMMON_OPTIONS,
    GONE,
    HELLO,
    LINK,
    SERVER_OPTIONS,
    TELL,
)
from peer.mesh.service import MAX_PEER_STREAMS, Context, Service, attach

Calls = defaultdict[str, list[str]]


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> Calls:
    """Addresses of callers (ipv4:HOST:PORT, in the order of calls) by method; of every call that is handed
    to a handler.
    """
    seen: Calls = defaultdict(list)

    def noting(method: str) -> None:
        handler = getattr(Service, f"_{method.lower()}")

        async def note(self: Service, request: object, context: Context) -> object:
            seen[method].append(context.peer())
            return await handler(self, request, context)

        monkeypatch.setattr(Service, f"_{method.lower()}", note)

    for method in ("Hello", "Tell", "Link"):
        noting(method)
    return seen


# --- who gets as far as a handler ----------------------------------------------------------------------


def hostile_channel(member: Member, stranger: Member, shown: str) -> grpc.aio.Channel:
    """It trusts this member's CA, so no check of the caller's own ends the handshake."""
    pair = (None, None)
    if shown == "a leaf of another session":
        pair = (stranger.identity.leaf_key_pem, stranger.identity.leaf_pem)
    credentials = grpc.ssl_channel_credentials(member.identity.ca_pem, *pair)
    options = [*CHANNEL_OPTIONS, ("grpc.ssl_target_name_override", member.id)]
    return grpc.aio.secure_channel(member.address, credentials, options=options)


@pytest.mark.parametrize("shown", ["nothing", "a leaf of another session"])
async def test_who_shows_no_leaf_of_this_session_reaches_no_handler(shown: str, calls: Calls) -> None:
    key = new_key()
    member, other, stranger = Member(key), Member(key), Member(new_key())
    async with serving(member):
        async with hostile_channel(member, stranger, shown) as channel:
            for method in (HELLO, TELL):
                with pytest.raises(grpc.aio.AioRpcError) as refused:
                    await channel.unary_unary(method)(b"\x08", metadata=stranger_metadata(stranger))
                assert refused.value.code() == grpc.StatusCode.UNAVAILABLE
            link = channel.stream_stream(LINK)(metadata=stranger_metadata(stranger))
            assert await link.code() == grpc.StatusCode.UNAVAILABLE
        assert calls == {}
        assert list(member.transport.contacts) == []
        async with raw_channel(other, member) as channel:
            with pytest.raises(grpc.aio.AioRpcError):
                await channel.unary_unary(HELLO)(b"\x08", metadata=stranger_metadata(other))
        assert len(calls["Hello"]) == 1, "a member is handed over, whatever it says"


# --- connections ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("insecure", [False, True])
async def test_control_calls_and_each_stream_have_a_connection_of_their_own(
    insecure: bool, calls: Calls
) -> None:
    """Or a ping waits behind a parcel: 0.5 to 1 s at 20 Mbit/s, measured."""
    key = new_key()
    a, b = Member(key, insecure=insecure), Member(key, insecure=insecure)
    async with serving(a, b):
        await a.transport.hello(b.address)
        a.transport.connect(b.id, "out")
        a.transport.connect(b.id, "in")
        await a.until(StreamUp(b.id, "out"))
        await a.until(StreamUp(b.id, "in"))
        for nonce in (b"1", b"2"):
            a.transport.tell(b.id, Probe(nonce))
            await b.until(Told(a.id, Probe(nonce)))
    assert len(calls["Link"]) >= 2
    assert len(set(calls["Link"])) == len(calls["Link"]), "streams share a connection"
    assert set(calls["Tell"]).isdisjoint(calls["Link"]), "control calls share one with a stream"
    assert len(set(calls["Tell"])) == 1, "control calls have one among them"


async def test_a_member_has_room_for_so_many_streams_and_others_are_not_concerned(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(service, "CALL_TIMEOUT_S", 60.0)  # streams without an Attach stay that long
    key = new_key()
    a, b, c = Member(key), Member(key), Member(key)
    async with serving(b), raw_channel(a, b) as of_a, raw_channel(c, b) as of_c:

        def link(member: Member, channel: grpc.aio.Channel) -> grpc.aio.StreamStreamCall[bytes, bytes]:
            return channel.stream_stream(LINK)(metadata=stranger_metadata(member))

        many = [link(a, of_a) for _ in range(MAX_PEER_STREAMS + 1)]
        ends = [asyncio.ensure_future(call.code()) for call in many]
        ended, open_ = await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
        assert [end.result() for end in ended] == [grpc.StatusCode.RESOURCE_EXHAUSTED]
        assert len(open_) == MAX_PEER_STREAMS == 6
        another = link(c, of_c)
        await another.write(attach("out", b.id))
        assert await another.read() == attach("in", c.id)
        for call in many:
            call.cancel()
        while True:  # until the server has seen that they are gone
            again = link(a, of_a)
            try:
                await again.write(attach("out", b.id))
                if await again.read() == attach("in", a.id):
                    break
            except GONE:
                continue
        await asyncio.gather(*open_, return_exceptions=True)


async def test_a_stream_that_ends_without_a_word_breaks_no_rule_and_one_that_says_another_does() -> None:
    """Whoever is cut off while it dials is not broken, and must not be shown as such."""
    key = new_key()
    a, b = Member(key), Member(key)

    async def ends(said: bytes | None) -> grpc.StatusCode:
        async with raw_channel(a, b) as channel:
            link = channel.stream_stream(LINK)(metadata=stranger_metadata(a))
            if said is not None:
                await link.write(said)
            await link.done_writing()
            return await link.code()

    async with serving(b):
        assert await ends(None) == grpc.StatusCode.ABORTED
        assert b.transport.contacts.of(a.id).rejected == 0
        assert await ends(attach("out", a.id)) == grpc.StatusCode.INVALID_ARGUMENT  # is itself not b
        assert b.transport.contacts.of(a.id).rejected == 1


# --- options -------------------------------------------------------------------------------------------

WHY_EACH = [
    (COMMON_OPTIONS, "grpc.enable_retries", 0, "a call that is tried again is a duplicate"),
    (COMMON_OPTIONS, "grpc.keepalive_permit_without_calls", 1, "a silent peer is found between calls too"),
    (COMMON_OPTIONS, "grpc.http2.max_pings_without_data", 0, "or pings end while nothing is sent"),
    (CHANNEL_OPTIONS, "grpc.use_local_subchannel_pool", 1, "or channels to one address share a connection"),
    (CHANNEL_OPTIONS, "grpc.max_reconnect_backoff_ms", 3_000, "120 s by default: no link after a partition"),
    (CHANNEL_OPTIONS, "grpc.enable_http_proxy", 0, "members are dialed directly, whatever the environment"),
    (SERVER_OPTIONS, "grpc.so_reuseport", 0, "or a second process takes the port and half of the calls"),
    (SERVER_OPTIONS, "grpc.server_handshake_timeout_ms", 5_000, "120 s by default, for who says nothing"),
]


@pytest.mark.parametrize(("options", "name", "value", "why"), WHY_EACH, ids=[why[1] for why in WHY_EACH])
def test_an_option_that_a_default_of_grpc_would_undo_is_set(
    options: list[tuple[str, int]], name: str, value: int, why: str
) -> None:
    ends = [CHANNEL_OPTIONS, SERVER_OPTIONS] if options is COMMON_OPTIONS else [options]
    for end in ends:
        assert len(dict(end)) == len(end), "an option is set twice"
        assert dict(end).get(name) == value, why


async def test_a_port_that_is_taken_meanwhile_is_not_shared(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two that ask at the same time both find it free; only one may have it."""
    monkeypatch.setattr(channels, "_check_free", lambda address: None)
    first, second = Member(new_key()), Member(new_key())
    async with serving(first):
        with pytest.raises(PortError, match=f"cannot listen on {first.address}.*--listen"):
            await second.transport.start(first.address)


async def test_who_connects_and_says_nothing_is_hung_up_on(monkeypatch: pytest.MonkeyPatch) -> None:
    sooner = [(name, value // 50 if "handshake" in name else value) for name, value in SERVER_OPTIONS]
    monkeypatch.setattr(service, "SERVER_OPTIONS", sooner)
    member = Member(new_key())
    async with serving(member):
        reader, writer = await asyncio.open_connection("127.0.0.1", member.port)
        with suppress(ConnectionResetError):
            assert await reader.read() == b""
        writer.close()
