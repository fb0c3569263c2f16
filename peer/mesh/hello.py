"""How two members get to know each other: Hello, at both ends.

The caller first asks an address for its leaf, over a channel that trusts the session CA: whoever answers
knows the session's key, and no more is said there. Then it says Hello again over a channel that trusts that
leaf alone, which only the leaf's owner can answer, and that second Hello carries the record, the descriptor
and the model signature. The server has seen the caller's leaf in the handshake already. A pin that fails is
dropped, so the next call begins with Hello anew; ids being hashes of keys, only the same key comes back
under the same id.
"""

from __future__ import annotations

import asyncio
import logging
from collections import defaultdict
from collections.abc import Callable

import grpc.aio

from peer.errors import NobodyFoundError, PeerdError, RemoteError
from peer.events import Met, PeerId
from peer.mesh.channels import (
    CALL_TIMEOUT_S,
    GONE,
    HELLO,
    Dialer,
    diagnose,
    join_address,
    resolve,
    split_address,
)
from peer.mesh.contacts import Contact, Contacts
from peer.mesh.frames import parse
from peer.mesh.greeting import Greeting, Introduction, greeting_from_wire, greeting_to_wire
from peer.wire import peer_pb2 as pb

log = logging.getLogger(__name__)


class Introducer:
    """Says and answers Hello, and keeps one control channel to each peer that it met."""

    def __init__(
        self,
        dialer: Dialer,
        contacts: Contacts,
        me: Callable[[], Introduction],
        on_met: Callable[[Met], None],
    ) -> None:
        self.insecure = dialer.insecure
        self._dialer = dialer
        self._seal = dialer.identity.seal
        self._contacts = contacts
        self._me = me
        self._on_met = on_met
        self._control: dict[PeerId, grpc.aio.Channel] = {}
        self._attempts: dict[PeerId, int] = {}
        self._meeting: defaultdict[PeerId, asyncio.Lock] = defaultdict(asyncio.Lock)

    # --- calling ---------------------------------------------------------------------------------------

    async def hello(self, address: str) -> PeerId:
        """Meet whoever is at HOST:PORT. NobodyFoundError, WrongKeyError or RemoteError says why not."""
        problem: Exception | None = None
        for numeric in await resolve(address):
            try:
                contact = await self._identify(numeric)
                await self.introduce(contact)
            except NobodyFoundError as error:
                problem = problem or await self._diagnose(numeric, error)
            else:
                return contact.peer
        assert problem is not None
        raise problem

    async def reach(self, contact: Contact) -> Contact:
        """The contact with a pinned leaf, after Hello at its candidates if there is none. RemoteError if
        all fail.
        """
        problem: Exception = NobodyFoundError(f"no address of {contact.peer} is known")
        async with self._meeting[contact.peer]:
            if contact.leaf_pem is not None and contact.addresses:
                return contact
            for address in list(contact.addresses):
                try:
                    if await self._identify(address) is contact:
                        await self.introduce(contact)
                        return contact
                except PeerdError as error:
                    problem = error
        contact.unreached = str(problem)
        raise RemoteError(f"{contact.peer} cannot be reached: {problem}")

    async def introduce(self, contact: Contact) -> None:
        """Say who we are to a peer whose leaf is pinned, and hear who it is."""
        channel = self.control_channel(contact)
        answer = await self._call(channel, contact, self._me())
        if answer.introduction is None:
            raise RemoteError(f"{contact.peer} does not say who it is")
        self._meet(contact, answer.introduction)

    def control_channel(self, contact: Contact) -> grpc.aio.Channel:
        """The one channel for control calls to this peer; its leaf must be pinned."""
        channel = self._control.get(contact.peer)
        if channel is None:
            channel = self._control[contact.peer] = self.new_channel(contact)
        return channel

    def new_channel(self, contact: Contact) -> grpc.aio.Channel:
        """A channel of its own connection to this peer; its leaf must be pinned."""
        if contact.leaf_pem is None or not contact.addresses:
            raise RemoteError(f"no address of {contact.peer} has answered yet")
        attempt = self._attempts[contact.peer] = self._attempts.get(contact.peer, -1) + 1
        return self._dialer.to_peer(contact.candidates(attempt), contact.peer, contact.leaf_pem)

    async def forget(self, contact: Contact) -> None:
        """The pinned handshake or the call failed: the next one starts with Hello."""
        contact.leaf_pem = None
        channel = self._control.pop(contact.peer, None)
        if channel is not None:
            await channel.close(None)

    async def close(self) -> None:
        for contact in list(self._contacts):
            await self.forget(contact)

    async def _identify(self, address: str) -> Contact:
        """Whose address is this? Pins the leaf shown there."""
        async with self._dialer.to_any_member(address) as channel:
            answer = await self._call(channel, None, None)
        if answer.peer == self._dialer.identity.peer_id:
            raise RemoteError(f"{address} is this device itself")
        contact = self._contacts.of(answer.peer)
        if contact.blocked:
            raise RemoteError(f"{answer.peer} is blocked on this device")
        leaf_pem = self._dialer.identity.check_leaf(answer.leaf, answer.peer)
        if leaf_pem != contact.leaf_pem or address not in contact.addresses[:1]:
            await self.forget(contact)
        contact.leaf_pem = leaf_pem
        contact.unreached = ""
        contact.learn([address], proven=True)
        return contact

    async def _call(
        self, channel: grpc.aio.Channel, contact: Contact | None, said: Introduction | None
    ) -> Greeting:
        """One Hello. NobodyFoundError if the call fails, RemoteError if the answer breaks a rule."""
        request = greeting_to_wire(self._greeting(said), self._seal).SerializeToString()
        began = asyncio.get_running_loop().time()
        try:
            call = channel.unary_unary(HELLO, bytes, bytes)
            data: bytes = await call(request, timeout=CALL_TIMEOUT_S, metadata=self._dialer.metadata)
        except GONE as error:
            if contact is not None:
                await self.forget(contact)
            raise NobodyFoundError(_details(error)) from error
        message = parse(pb.HelloMessage, data)
        answer = greeting_from_wire(message, self._seal)
        if contact is not None and answer.peer != contact.peer:
            raise RemoteError(f"{contact.peer} answers as {answer.peer}")
        contact = contact or self._contacts.get(answer.peer)
        if contact is not None:
            contact.bytes_sent += len(request)
            contact.bytes_received += len(data)
            contact.time(asyncio.get_running_loop().time() - began)
        return answer

    async def _diagnose(self, address: str, error: NobodyFoundError) -> Exception:
        if self.insecure:
            return NobodyFoundError(f"no member of this session answers on {address}: {error}")
        return await diagnose(address, self._dialer.identity)

    def _greeting(self, said: Introduction | None) -> Greeting:
        boot = self._me().record.boot
        return Greeting(self._dialer.identity.peer_id, boot, self._dialer.identity.leaf_der, said)

    # --- answering -------------------------------------------------------------------------------------

    def answer(self, data: bytes, caller: Contact, came_from: str) -> bytes:
        """The answer to a Hello from a caller whose key the handshake has proven. RemoteError if it breaks
        a rule.

        A caller of another protocol version gets our Hello all the same, so that it can say what is wrong.
        """
        message = parse(pb.HelloMessage, data)
        if message.id != caller.peer:
            raise RemoteError(f"{caller.peer} says Hello as another")
        said: Introduction | None = None
        try:
            greeting = greeting_from_wire(message, self._seal)
            said = greeting.introduction
        except RemoteError as error:
            caller.reject(str(error))
            log.warning("%s", error, extra={"peer": caller.peer})
        if said is not None:
            leaf_pem = self._dialer.identity.check_leaf(greeting.leaf, caller.peer)
            caller.leaf_pem = leaf_pem
            ports = {split_address(address)[1] for address in said.record.addresses}
            caller.learn([join_address(came_from, port) for port in sorted(ports)] if came_from else [])
            self._meet(caller, said)
        answer = self._greeting(self._me() if said is not None else None)
        return greeting_to_wire(answer, self._seal).SerializeToString()

    def _meet(self, contact: Contact, said: Introduction) -> None:
        mine = self._me().session
        contact.other_session = said.session if mine and said.session != mine else ""
        if contact.other_session:
            raise RemoteError(f"{contact.peer} has another session of this key: {said.session}, here {mine}")
        contact.introduction = said
        if contact.met_at is None:
            contact.met_at = asyncio.get_running_loop().time()
        contact.lists(said.record.addresses)
        self._on_met(Met(said.record))


def _details(error: BaseException) -> str:
    return str(error.details()) if isinstance(error, grpc.aio.AioRpcError) else repr(error)
