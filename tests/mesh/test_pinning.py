"""Whoever holds the session's key can sign a leaf in anybody's name. The pin is what remains: it holds here.

Mallory is a member who does so. What she makes is signed with the session's CA key, like every leaf.
"""

from __future__ import annotations

import hashlib

import grpc.aio
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.x509.oid import NameOID

from mesh.test_transport import Member, raw_channel, serving, stranger_metadata
from peer.errors import PeerdError, RemoteError
from peer.events import Met, PeerId, Probe
from peer.keys import new_key
from peer.mesh.channels import HELLO
from peer.mesh.contacts import Contact
from peer.mesh.greeting import Greeting, Introduction, Signature, greeting_to_wire
from peer.mesh.identity import ANY_MEMBER, SessionIdentity
from peer.wire import peer_pb2 as pb


def signed_leaf(signer: SessionIdentity, owner: Member, name: PeerId, *, may_sign: bool = False) -> bytes:
    """A leaf for `owner`'s key in this name, signed with the CA key that `signer` derived (DER)."""
    proper = x509.load_der_x509_certificate(owner.identity.leaf_der)
    names = [x509.DNSName(name), x509.DNSName(ANY_MEMBER)]
    usage = x509.KeyUsage(True, False, False, False, False, may_sign, False, False, False)
    builder = (
        x509.CertificateBuilder()
        .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)]))
        .issuer_name(proper.issuer)
        .public_key(owner.device.private_key.public_key())
        .serial_number(7)
        .not_valid_before(proper.not_valid_before_utc)
        .not_valid_after(proper.not_valid_after_utc)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(usage, critical=True)
        .add_extension(x509.SubjectAlternativeName(names), critical=False)
    )
    return builder.sign(signer._ca_key, hashes.SHA256()).public_bytes(serialization.Encoding.DER)


def pem(der: bytes) -> bytes:
    return x509.load_der_x509_certificate(der).public_bytes(serialization.Encoding.PEM)


def poses_as(mallory: Member, b: Member) -> None:
    """In the handshake a leaf of b's name and her own key; in Hello, b's own leaf, id and record."""
    mallory.identity.leaf_pem = pem(signed_leaf(mallory.identity, mallory, b.id))
    mallory.identity.peer_id, mallory.identity.leaf_der = b.id, b.identity.leaf_der
    mallory.introduction = b.introduction


def met(member: Member) -> list[PeerId]:
    return [event.record.peer for event in member.events if isinstance(event, Met)]


@pytest.mark.parametrize("known", [False, True])
async def test_one_who_signs_a_leaf_in_anothers_name_is_not_met_as_the_other(known: bool) -> None:
    """The session CA vouches for her leaf and the name fits; b's pinned leaf does not."""
    key = new_key()
    a, b, mallory = Member(key), Member(key), Member(key)
    poses_as(mallory, b)
    async with serving(a, mallory):
        if known:
            async with serving(b):
                await a.transport.hello(b.address)
        before = met(a)
        with pytest.raises(PeerdError):
            await a.transport.hello(mallory.address)
        await a.transport.refresh(b.id)
        assert met(a) == before
        a.transport.tell(b.id, Probe(b"for b alone"))
        await a.transport.stop()  # once the message is told or given up
        assert mallory.events == []


async def test_before_a_leaf_is_pinned_its_owner_is_asked_for_it_and_told_nothing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Of the two Hellos only the one on the channel that trusts the CA reaches Mallory."""
    key = new_key()
    a, b, mallory = Member(key), Member(key), Member(key)
    signature = Signature(hashlib.sha256(b"model").digest(), b"[]")
    a.introduction = Introduction(a.introduction.record, "0f" * 16, b"{}", signature, features=5)
    poses_as(mallory, b)
    heard_by_mallory, heard_by_b = overhear(mallory, monkeypatch), overhear(b, monkeypatch)
    asked = {"magic", "protocol_min", "protocol_max", "id", "boot", "leaf"}
    told = {"record", "session", "descriptor", "signature", "features"}
    async with serving(a, b, mallory):
        with pytest.raises(PeerdError):
            await a.transport.hello(mallory.address)
        assert heard_by_mallory == [asked]
        await a.transport.hello(b.address)
        assert heard_by_b == [asked, asked | told]


def overhear(member: Member, monkeypatch: pytest.MonkeyPatch) -> list[set[str]]:
    """The fields of each Hello that this member hears."""
    heard: list[set[str]] = []
    answer = member.transport._introducer.answer

    def note(data: bytes, caller: Contact, came_from: str) -> bytes:
        heard.append({field.name for field, _ in pb.HelloMessage.FromString(data).ListFields()})
        return answer(data, caller, came_from)

    monkeypatch.setattr(member.transport._introducer, "answer", note)
    return heard


UNFIT = {
    "a key of its own in another's name": "has another key",
    "may sign": "more than digital signatures",
    "of another session": "not signed with this session's key",
    "none": "should be a certificate",
}


def unfit_leaf(case: str, mallory: Member) -> bytes:
    """A leaf that must not be pinned, for Mallory to say Hello with (DER)."""
    if case == "none":
        return b"garbage"
    if case == "of another session":
        return signed_leaf(Member(new_key()).identity, mallory, mallory.id)
    return signed_leaf(mallory.identity, mallory, mallory.id, may_sign=True)


@pytest.mark.parametrize("case", UNFIT)
async def test_a_leaf_that_is_unfit_is_not_pinned_by_the_one_who_calls(case: str) -> None:
    key = new_key()
    a, b, mallory = Member(key), Member(key), Member(key)
    if case == "a key of its own in another's name":
        poses_as(mallory, b)
        mallory.identity.leaf_der = signed_leaf(mallory.identity, mallory, b.id)
    else:
        mallory.identity.leaf_der = unfit_leaf(case, mallory)
    async with serving(a, mallory):
        with pytest.raises(RemoteError, match=UNFIT[case]):
            await a.transport.hello(mallory.address)
        assert met(a) == []
        assert [contact.peer for contact in a.transport.contacts if contact.leaf_pem is not None] == []


@pytest.mark.parametrize("case", UNFIT)
async def test_a_leaf_that_is_unfit_is_not_pinned_by_the_one_who_is_called(case: str) -> None:
    key = new_key()
    a, b, mallory = Member(key), Member(key), Member(key)
    leaf = b.identity.leaf_der if "another's name" in case else unfit_leaf(case, mallory)
    greeting = Greeting(mallory.id, 1, leaf, Introduction(mallory.introduction.record))
    async with serving(a), raw_channel(mallory, a) as channel:
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await channel.unary_unary(HELLO)(
                greeting_to_wire(greeting, mallory.identity.seal).SerializeToString(),
                metadata=stranger_metadata(mallory),
            )
        assert refused.value.code() == grpc.StatusCode.INVALID_ARGUMENT
        assert UNFIT[case] in a.rejections()[mallory.id]
        assert met(a) == []
        assert a.transport.contacts.of(mallory.id).leaf_pem is None
