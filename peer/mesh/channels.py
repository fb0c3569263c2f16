"""gRPC channels and servers as peerd uses them: options, credentials, targets, and what a failure means.

Two kinds of channel: one that trusts the session CA and asks for any member (Hello only), and one that
trusts a single leaf and asks for its peer by id (everything else). Each has a TCP connection of its own, so
that a control call never waits behind a parcel: on one connection it took 0.5 to 1 s at 20 Mbit/s,
measured.

TLS 1.3 and nothing older: gRPC for Python has no option for that (grpc/grpc#37305), but suites of TLS 1.2
can be named in the environment, which gRPC reads once, when it is imported. The one left there is for RSA;
leaves have P-256 keys, so no handshake of TLS 1.2 finds a common suite. Those of TLS 1.3 are not concerned.
"""

from __future__ import annotations

import asyncio
import errno
import os
import socket
from contextlib import suppress
from urllib.parse import quote

os.environ["GRPC_SSL_CIPHER_SUITES"] = "ECDHE-RSA-AES128-GCM-SHA256"  # TLS 1.3 only, see above

import grpc
import grpc.aio

del os.environ["GRPC_SSL_CIPHER_SUITES"]  # has been read; not for learners

from peer.errors import NobodyFoundError, PeerdError, PortError, RemoteError, UsageError, WrongKeyError
from peer.events import PeerId
from peer.mesh.frames import PEER_ID
from peer.mesh.identity import ANY_MEMBER, SessionIdentity, load_certificate, peer_id_of
from peer.wire import peer_pb2 as pb

SERVICE = pb.DESCRIPTOR.services_by_name["Peer"].full_name
HELLO, TELL, LINK = (f"/{SERVICE}/{name}" for name in ("Hello", "Tell", "Link"))
ID_HEADER = "peerd-id"
TOKEN_HEADER = "peerd-token"
CALL_TIMEOUT_S = 5.0  # a Hello or an Attach; a Wi-Fi stall takes up to 1 s, a handshake on a Pi some 50 ms
MAX_RPCS = 1024  # long streams count: 2 a member, 256 members, as many control calls
GONE = (grpc.RpcError, grpc.aio.BaseError, asyncio.InvalidStateError)  # how grpc.aio says that a call is over

COMMON_OPTIONS: list[tuple[str, int]] = [
    (
        "grpc.max_receive_message_length",
        (1 << 20) + (1 << 14),
    ),  # a chunk is 512 KiB, a probe of 256 records 80
    # A silent partition is found in 15 s: by TCP_USER_TIMEOUT, which gRPC sets to its keepalive timeout and
    # whose timer of that name never fires (grpc/grpc#39239). A peer whose kernel still acknowledges is found
    # in 70 s, membership having judged long before: on a slow link a ping waits behind up to 4 MB of parcel,
    # and 5 s for its answer cut healthy streams of 4 Mbit/s, measured.
    ("grpc.keepalive_time_ms", 10_000),
    ("grpc.keepalive_timeout_ms", 5_000),
    ("grpc.http2.ping_timeout_ms", 60_000),  # gRPC's default
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.http2.max_pings_without_data", 0),
    ("grpc.default_compression_algorithm", 0),
    ("grpc.enable_retries", 0),  # a retried call is a duplicate
]
CHANNEL_OPTIONS: list[tuple[str, int]] = [
    *COMMON_OPTIONS,
    ("grpc.initial_reconnect_backoff_ms", 200),
    ("grpc.max_reconnect_backoff_ms", 3_000),  # the default, 120 s, cost 9 s after a minute's partition
    ("grpc.use_local_subchannel_pool", 1),  # or channels to one address share a connection
    ("grpc.enable_http_proxy", 0),
    ("grpc.service_config_disable_resolution", 1),
]
SERVER_OPTIONS: list[tuple[str, int]] = [
    *COMMON_OPTIONS,
    ("grpc.so_reuseport", 0),  # or a second process takes the port silently, and half of the calls
    ("grpc.server_handshake_timeout_ms", 5_000),
    ("grpc.http2.min_ping_interval_without_data_ms", 5_000),  # of pings received; 300 s would end idle calls
]


class Dialer:
    """Makes channels in the name of one member of one session."""

    def __init__(self, identity: SessionIdentity, insecure: bool) -> None:
        self.identity = identity
        self.insecure = insecure
        self.metadata = grpc.aio.Metadata((ID_HEADER, identity.peer_id))
        if insecure:
            self.metadata.add(TOKEN_HEADER, identity.insecure_token)

    def to_any_member(self, address: str) -> grpc.aio.Channel:
        """A channel for Hello alone. address: of a number, not a name (see `resolve`)."""
        return self._channel([address], self.identity.ca_pem, ANY_MEMBER)

    def to_peer(self, addresses: list[str], peer: PeerId, leaf_pem: bytes) -> grpc.aio.Channel:
        """A channel that only the owner of this leaf can answer. All addresses must be of one family."""
        if self.insecure:
            addresses = [address for address in addresses if _is_loopback(address)]
        if not addresses:
            raise RemoteError(f"no address of {peer} can be dialed from here")
        return self._channel(addresses, leaf_pem, peer)

    def _channel(self, addresses: list[str], trusted: bytes, name: str) -> grpc.aio.Channel:
        if self.insecure:
            require_loopback(addresses[0])
            return grpc.aio.insecure_channel(_target(addresses), options=CHANNEL_OPTIONS)
        credentials = grpc.ssl_channel_credentials(
            root_certificates=trusted,
            private_key=self.identity.leaf_key_pem,
            certificate_chain=self.identity.leaf_pem,
        )
        options = [*CHANNEL_OPTIONS, ("grpc.ssl_target_name_override", name)]
        return grpc.aio.secure_channel(_target(addresses), credentials, options=options)


def _target(addresses: list[str]) -> str:
    if addresses[0].startswith("["):  # RFC 6874: the % of a scope is itself escaped
        return "ipv6:" + ",".join(quote(address, safe="[]:") for address in addresses)
    return "ipv4:" + ",".join(addresses)


def split_address(address: str) -> tuple[str, int]:
    """(host, port) of HOST:PORT; brackets of an IPv6 address are taken off. UsageError if it is none."""
    host, colon, port = address.rpartition(":")
    host = host.removeprefix("[").removesuffix("]")
    if not colon or not host or not port.isascii() or not port.isdigit() or not 0 <= int(port) < 65536:
        raise UsageError(f"{address!r} is no HOST:PORT, such as 192.168.1.7:7000")
    return host, int(port)


def join_address(host: str, port: int) -> str:
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def require_loopback(address: str) -> None:
    """UsageError unless the address cannot leave this device: plaintext must not."""
    if not _is_loopback(address):
        raise UsageError(f"--insecure works on this device only, and {address} is not a loopback address")


def _is_loopback(address: str) -> bool:
    host, _ = split_address(address)
    return host.startswith("127.") or host == "::1"


class NoSuchHostError(NobodyFoundError):
    """A name that leads to no address."""


async def resolve(address: str) -> list[str]:
    """Addresses by number for HOST:PORT, IPv4 first. NoSuchHostError if the name leads nowhere."""
    host, port = split_address(address)
    try:
        found = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError) as error:  # UnicodeError: a label that is empty or too long
        why = error.strerror if isinstance(error, OSError) else "it is no host name"
        raise NoSuchHostError(f"the name {host!r} leads to no address: {why}; check --peer") from error
    found.sort(key=lambda entry: entry[0] != socket.AF_INET)
    return list(dict.fromkeys(join_address(str(entry[4][0]), port) for entry in found))


def bind(server: grpc.aio.Server, listen: str | None, identity: SessionIdentity, insecure: bool) -> int:
    """Bind a server and return its port. PortError names the port and what to do.

    listen: HOST:PORT, HOST or :PORT; None is any free port. Without a host it listens on every address of
    IPv4 and IPv6, or (insecure) on those of loopback.
    """
    host, colon, port = (listen or "").rpartition(":")
    if not colon or host.endswith(":") or (port and not port.isdigit()):
        host, port = listen or "", ""
    address = f"{host or ('127.0.0.1' if insecure else every_address())}:{port or 0}"
    _check_free(address)
    try:
        if insecure:
            require_loopback(address)
            bound = server.add_insecure_port(address)
            if not host and socket.has_dualstack_ipv6():
                with suppress(RuntimeError):  # a host with IPv6 switched off; then it has no ::1 to announce
                    server.add_insecure_port(f"[::1]:{bound}")
            return bound
        pair = (identity.leaf_key_pem, identity.leaf_pem)
        credentials = grpc.ssl_server_credentials([pair], identity.ca_pem, require_client_auth=True)
        return server.add_secure_port(address, credentials)
    except RuntimeError as error:
        raise PortError(f"cannot listen on {address}; choose another with --listen HOST:PORT") from error


def every_address() -> str:
    """gRPC listens on IPv4 too where it is told [::], as the system does."""
    return "[::]" if socket.has_dualstack_ipv6() else "0.0.0.0"


def _check_free(address: str) -> None:
    """gRPC says only 'failed to bind'; asking first tells a taken port from a foreign address."""
    host, port = split_address(address)
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if host == "::":  # IPv4 too, whatever net.ipv6.bindv6only says
            probe.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        try:
            probe.bind((host, port))
            probe.listen(1)
        except OSError as error:
            if error.errno == errno.EADDRINUSE:
                raise PortError(
                    f"port {port} is taken on this device; find out by whom with 'ss -ltnp sport = :{port}', "
                    "or choose another with --listen HOST:PORT"
                ) from error
            if error.errno == errno.EACCES:
                raise PortError(f"port {port} needs root; choose one above 1023 with --listen") from error
            raise PortError(
                f"{host} is no address of this device ({error.strerror}); name one of its own with --listen"
            ) from error


async def diagnose(address: str, identity: SessionIdentity) -> PeerdError:
    """Why Hello got no answer at this address (by number): nobody, no peerd, or one of another session."""
    host, port = split_address(address)
    try:
        async with asyncio.timeout(CALL_TIMEOUT_S):
            _, writer = await asyncio.open_connection(host, port)
    except TimeoutError:
        return NobodyFoundError(
            f"nobody answers on {address}: timed out; is the device on, and on this network?"
        )
    except OSError as error:
        return NobodyFoundError(f"nobody answers on {address}: {error.strerror}; is peerd running there?")
    writer.close()
    leaf = await _certificate_at(host, port)
    if leaf is None or not _of_peerd(leaf):
        return NobodyFoundError(f"what answers on {address} is not peerd; check the port")
    try:
        identity.check_leaf(leaf, peer_id_of(leaf))
    except RemoteError:
        return WrongKeyError(
            f"the peerd on {address} does not know this key; check the key, or which session it is"
        )
    return RemoteError(f"the member on {address} refuses this device or broke off; see its log")


async def _certificate_at(host: str, port: int) -> bytes | None:
    """What a TLS server shows before it has seen our certificate (DER); nothing is believed of it."""
    return await asyncio.to_thread(_shown_at, host, port)


def _shown_at(host: str, port: int) -> bytes | None:
    import ssl  # brings a second OpenSSL besides gRPC's (peer/lean.py), for a failed join alone

    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.set_alpn_protocols(["h2"])
    try:
        with (
            socket.create_connection((host, port), CALL_TIMEOUT_S) as plain,
            context.wrap_socket(plain) as tls,
        ):
            return tls.getpeercert(binary_form=True)
    except OSError:  # ssl.SSLError and TimeoutError among them
        return None


def _of_peerd(leaf: bytes) -> bool:
    try:
        subject = load_certificate(leaf).subject
    except (RemoteError, ValueError):  # ValueError: a name that is not in its own encoding
        return False
    return any(PEER_ID.fullmatch(str(name.value)) for name in subject)
