"""What a session key and a device key prove, and how they are kept."""

from __future__ import annotations

import stat
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from peer.errors import RemoteError, StateError
from peer.keys import new_key
from peer.mesh.identity import (
    Device,
    SessionIdentity,
    peer_id_of,
)


def device() -> Device:
    return Device(ec.generate_private_key(ec.SECP256R1()))


def test_the_ca_is_byte_for_byte_the_same_on_every_member() -> None:
    key = new_key()
    one, two = SessionIdentity(key, device()), SessionIdentity(key, device())
    assert one.ca_pem == two.ca_pem
    assert one.beacon_key == two.beacon_key
    assert one.peer_id != two.peer_id
    other = SessionIdentity(new_key(), device())
    assert other.ca_pem != one.ca_pem
    assert other.beacon_key != one.beacon_key


def test_no_derived_secret_contains_the_session_key_or_another_one() -> None:
    key = new_key()
    session = SessionIdentity(key, device())
    secrets = [session.beacon_key, bytes.fromhex(session.insecure_token), key]
    assert len({secret[:16] for secret in secrets}) == 3


def test_a_leaf_may_sign_data_and_nothing_else() -> None:
    me = device()
    leaf = x509.load_pem_x509_certificate(SessionIdentity(new_key(), me).leaf_pem)
    usage = leaf.extensions.get_extension_for_class(x509.KeyUsage)
    assert usage.critical
    assert usage.value.digital_signature
    assert not usage.value.key_cert_sign
    assert not usage.value.key_agreement
    assert leaf.subject.rfc4514_string() == f"CN={me.id}"
    assert leaf.not_valid_before_utc.isoformat() == "1970-01-01T00:00:00+00:00"  # where a Pi's clock starts
    assert leaf.not_valid_after_utc.isoformat() == "9999-12-31T23:59:59+00:00"  # no end: RFC 5280
    with pytest.raises(x509.ExtensionNotFound):
        leaf.extensions.get_extension_for_class(x509.ExtendedKeyUsage)


def test_names_in_certificates_are_hashes() -> None:
    session = SessionIdentity(new_key(), device())
    for pem in (session.ca_pem, session.leaf_pem):
        for name in (certificate := x509.load_pem_x509_certificate(pem)).subject, certificate.issuer:
            kind, _, digest = name.rfc4514_string().removeprefix("CN=").partition("-")
            assert kind in ("p", "s")
            assert len(digest) == 26


def test_the_id_is_the_hash_of_the_public_key() -> None:
    me = device()
    session = SessionIdentity(new_key(), me)
    assert peer_id_of(session.leaf_pem) == peer_id_of(session.leaf_der) == me.id == session.peer_id
    assert len(me.id) == 28


def test_key_and_leaf_are_made_once_and_kept_to_their_owner(tmp_path: Path) -> None:
    key, state = new_key(), tmp_path / "state"
    first = SessionIdentity(key, Device.load_or_create(state), state / "home")
    again = SessionIdentity(key, Device.load_or_create(state), state / "home")
    assert first.peer_id == again.peer_id
    assert first.leaf_pem == again.leaf_pem
    for path in (state / "device.pem", state / "home" / "leaf.pem"):
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert sorted(path.name for path in state.iterdir()) == ["device.pem", "home"]


def test_a_device_key_that_others_can_read_is_refused(tmp_path: Path) -> None:
    Device.load_or_create(tmp_path)
    (tmp_path / "device.pem").chmod(0o640)
    with pytest.raises(StateError, match="chmod 600"):
        Device.load_or_create(tmp_path)


def test_a_damaged_device_key_is_not_replaced_silently(tmp_path: Path) -> None:
    Device.load_or_create(tmp_path)
    (tmp_path / "device.pem").write_text("garbage")
    with pytest.raises(StateError, match="holds no key"):
        Device.load_or_create(tmp_path)


def test_a_damaged_leaf_is_signed_anew(tmp_path: Path) -> None:
    key, me = new_key(), device()
    SessionIdentity(key, me, tmp_path)
    (tmp_path / "leaf.pem").write_text("garbage")
    fresh = SessionIdentity(key, me, tmp_path)
    assert fresh.check_leaf(fresh.leaf_der, me.id) == fresh.leaf_pem
    assert (tmp_path / "leaf.pem").read_bytes() == fresh.leaf_pem


def test_a_leaf_is_pinned_only_for_its_own_key_and_session() -> None:
    key = new_key()
    mine, other = SessionIdentity(key, device()), SessionIdentity(key, device())
    foreign = SessionIdentity(new_key(), device())
    assert mine.check_leaf(other.leaf_der, other.peer_id) == other.leaf_pem
    with pytest.raises(RemoteError, match="another key"):
        mine.check_leaf(other.leaf_der, mine.peer_id)
    with pytest.raises(RemoteError, match="not signed with this session's key"):
        mine.check_leaf(foreign.leaf_der, foreign.peer_id)
    with pytest.raises(RemoteError, match="is none"):
        mine.check_leaf(b"garbage", other.peer_id)


@pytest.mark.parametrize("may_sign", [True, False])
def test_a_leaf_that_could_sign_for_others_is_never_pinned(may_sign: bool) -> None:
    """A pinned certificate is a trust anchor to gRPC; without KeyUsage, or with keyCertSign, it would vouch
    for any.
    """
    session, mallory = SessionIdentity(new_key(), device()), device()
    builder = x509.CertificateBuilder().subject_name(x509.Name([])).issuer_name(x509.Name([]))
    builder = builder.public_key(mallory.private_key.public_key()).serial_number(7)
    leaf = x509.load_pem_x509_certificate(session.leaf_pem)
    builder = builder.not_valid_before(leaf.not_valid_before_utc).not_valid_after(leaf.not_valid_after_utc)
    builder = builder.add_extension(x509.SubjectAlternativeName([x509.DNSName(mallory.id)]), critical=False)
    builder = builder.add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
    if may_sign:
        usage = x509.KeyUsage(True, False, False, False, False, True, False, False, False)
        builder = builder.add_extension(usage, critical=True)
    der = builder.sign(mallory.private_key, hashes.SHA256()).public_bytes(serialization.Encoding.DER)
    with pytest.raises(RemoteError, match=r"more than digital signatures|lacks an extension"):
        session.check_leaf(der, mallory.id)
