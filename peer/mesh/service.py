"""The answering side: one gRPC server, three calls, and nobody is heard before it is known who speaks.

Mutual TLS admits members of the session alone; here the id that a caller claims is compared with the hash
of the key it showed in that handshake, before a byte of its request is parsed (the handlers take raw bytes
for that).
"""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from typing import Any, NoReturn, Protocol

import grpc
import grpc.aio

from peer.errors import RemoteError
from peer.events import Control, Direction, PeerId
from peer.mesh.channels import (
    CALL_TIMEOUT_S,
    ID_HEADER,
    MAX_RPCS,
    SERVER_OPTIONS,
    SERVICE,
    TOKEN_HEADER,
    bind,
)
from peer.mesh.contacts import Contact, Contacts
from peer.mesh.frames import (
    Attach,
    control_from_wire,
    control_to_wire,
    frame_from_wire,
    frame_to_wire,
    parse,
    peer_id,
)
from peer.mesh.hello import Introducer
from peer.mesh.identity import SessionIdentity, peer_id_of
from peer.mesh.stream import Intake, LinkStream
from peer.wire import peer_pb2 as pb

log = logging.getLogger(__name__)

MAX_PEER_STREAMS = 6  # calls of Link from one peer: two links, a replacement of each, and two to spare
STOP_GRACE_S = 0.2  # streams have been ended before; a longer grace is waited for in full
OTHER_END: dict[Direction, Direction] = {"out": "in", "in": "out"}
Context = grpc.aio.ServicerContext[bytes, bytes]


class Listener(Protocol):
    """Whom the service hands over to what has passed its checks."""

    def heard(self, src: PeerId, message: Control) -> Control | None: ...
    def adopt(self, stream: LinkStream) -> bool: ...
    async def run(self, stream: LinkStream) -> None: ...


class Service:
    """Serves one session. The first refusal of anything is here; whoever gets past it is a member."""

    def __init__(
        self,
        identity: SessionIdentity,
        contacts: Contacts,
        introducer: Introducer,
        intake: Intake,
        listener: Listener,
    ) -> None:
        self._identity, self._seal = identity, identity.seal
        self._contacts = contacts
        self._introducer = introducer
        self._insecure = introducer.insecure
        self._intake = intake
        self._listener = listener
        self._accepted: Counter[PeerId] = Counter()
        self._server: grpc.aio.Server | None = None

    async def start(self, listen: str | None) -> int:
        """Serve on HOST:PORT (None: any free port) and return the port. PortError says what is in the way."""
        server = grpc.aio.server(options=SERVER_OPTIONS, maximum_concurrent_rpcs=MAX_RPCS)
        handlers: dict[str, grpc.RpcMethodHandler[Any, Any]] = {
            "Hello": grpc.unary_unary_rpc_method_handler(self._hello),
            "Tell": grpc.unary_unary_rpc_method_handler(self._tell),
            "Link": grpc.stream_stream_rpc_method_handler(self._link),
        }
        server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE, handlers),))
        port = bind(server, listen, self._identity, self._insecure)
        await server.start()
        self._server = server
        return port

    async def stop(self) -> None:
        if self._server is not None:
            await self._server.stop(STOP_GRACE_S)

    async def _caller(self, context: Context) -> Contact:
        """Who calls, as the handshake proved it; ends the call if that is not who it claims to be."""
        headers = dict(context.invocation_metadata() or ())
        claimed = str(headers.get(ID_HEADER, ""))
        if self._insecure:
            if headers.get(TOKEN_HEADER) != self._identity.insecure_token:
                await _refuse(context, grpc.StatusCode.UNAUTHENTICATED, "not a member of this session")
            proven = claimed
        else:
            proven = peer_id_of(b"".join(context.auth_context().get("x509_pem_cert", ())))
        try:
            contact = self._contacts.of(peer_id(proven))
        except RemoteError as error:
            await _refuse(context, grpc.StatusCode.UNAUTHENTICATED, str(error))
        if claimed != proven:
            contact.reject("it called under another's id")
            await _refuse(
                context, grpc.StatusCode.UNAUTHENTICATED, "the id is not that of the certificate's key"
            )
        if contact.blocked:
            await _refuse(context, grpc.StatusCode.PERMISSION_DENIED, "blocked")
        contact.calls = True
        return contact

    async def _hello(self, data: bytes, context: Context) -> bytes:
        caller = await self._caller(context)
        caller.bytes_received += len(data)
        try:
            answer = self._introducer.answer(data, caller, _host_of(context))
        except RemoteError as error:
            caller.reject(str(error))
            await _refuse(context, grpc.StatusCode.INVALID_ARGUMENT, str(error))
        caller.bytes_sent += len(answer)
        return answer

    async def _tell(self, data: bytes, context: Context) -> bytes:
        caller = await self._caller(context)
        caller.bytes_received += len(data)
        try:
            message = control_from_wire(parse(pb.ControlMessage, data), caller.peer, self._seal)
            if message is None:
                raise RemoteError("a call that says nothing")
        except RemoteError as error:
            caller.reject(str(error))
            await _refuse(context, grpc.StatusCode.INVALID_ARGUMENT, str(error))
        said = self._listener.heard(caller.peer, message)
        answer = control_to_wire(said, self._seal).SerializeToString()
        caller.bytes_sent += len(answer)
        return answer

    async def _link(self, _requests: object, context: Context) -> None:
        caller = await self._caller(context)
        if self._accepted[caller.peer] >= MAX_PEER_STREAMS:
            await _refuse(context, grpc.StatusCode.RESOURCE_EXHAUSTED, "too many streams")
        self._accepted[caller.peer] += 1
        try:
            await self._accept(caller, context)
        except RemoteError as error:
            caller.reject(str(error))
            await _refuse(context, grpc.StatusCode.INVALID_ARGUMENT, str(error))
        except TimeoutError:
            await _refuse(context, grpc.StatusCode.DEADLINE_EXCEEDED, "no Attach came")
        finally:
            self._accepted[caller.peer] -= 1

    async def _accept(self, caller: Contact, context: Context) -> None:
        async with asyncio.timeout(CALL_TIMEOUT_S):
            data = await context.read()
        if not isinstance(data, bytes):  # it is cut off, or has changed its mind: it broke no rule
            log.debug("a stream ended before its Attach", extra={"peer": caller.peer})
            await _refuse(context, grpc.StatusCode.ABORTED, "the stream ended before its Attach")
        direction = OTHER_END[check_attach(data, caller, self._identity.peer_id)]
        stream = LinkStream(caller, direction, context, self._intake, dialed=False)
        await context.write(attach(direction, caller.peer))
        if not self._listener.adopt(stream):
            await _refuse(context, grpc.StatusCode.ALREADY_EXISTS, "this link has a stream")
        await self._listener.run(stream)
        if not context.cancelled():
            await _refuse(context, grpc.StatusCode.ABORTED, stream.reason)


def attach(direction: Direction, to: PeerId) -> bytes:
    """The first message of a stream, as bytes."""
    return frame_to_wire(Attach(direction, to)).SerializeToString()


def check_attach(data: object, contact: Contact, me: PeerId, expected: Direction | None = None) -> Direction:
    """The direction the other end names in its first message. RemoteError if that is not a fitting Attach."""
    if not isinstance(data, bytes):
        raise RemoteError(f"the stream of {contact.peer} ended before its Attach")
    frame = frame_from_wire(parse(pb.LinkFrame, data))
    if not isinstance(frame, Attach) or frame.to != me or frame.direction != (expected or frame.direction):
        raise RemoteError(f"the stream of {contact.peer} does not begin with a fitting Attach")
    return frame.direction


def _host_of(context: Context) -> str:
    """The caller's address without its port; gRPC writes ipv4:1.2.3.4:56 or ipv6:%5B::1%5D:56."""
    family, _, rest = context.peer().partition(":")
    host = rest.rpartition(":")[0].replace("%5B", "").replace("%5D", "").replace("%25", "%")
    return host if family in ("ipv4", "ipv6") else ""


async def _refuse(context: Context, code: grpc.StatusCode, details: str) -> NoReturn:
    await context.abort(code, details)
    raise AssertionError("abort has returned")
