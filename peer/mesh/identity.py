"""Who a device is, and what knowing a session's key proves.

A device is its P-256 key: its id is a hash of the public key. A session is its 128-bit key, never used raw:
HKDF-SHA256 (RFC 5869) with one label per use derives a P-256 key that signs certificates (the session CA,
whose certificate is byte for byte the same on every member), a key for mDNS beacons, and a token for
`--insecure`. A device's leaf certificate is signed by that CA once and kept. Knowing the key is admission;
being a certain member needs that member's device key, which never leaves it.

Certificates carry hashes for names. They are valid from 1970 to 9999, because a Pi without a network has no
clock.
"""

from __future__ import annotations

import base64
import datetime
import hashlib
import logging
import stat
import warnings
from pathlib import Path

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from cryptography.x509.oid import NameOID

from peer.errors import RemoteError, StateError
from peer.files import atomic_write, cannot_write
from peer.keys import KEY_BYTES

log = logging.getLogger(__name__)

# gRPC refuses Ed25519 certificates: NO_COMMON_SIGNATURE_ALGORITHMS, measured on 1.85.1
CURVE = ec.SECP256R1()
# n of P-256, FIPS 186-4, D.1.2.3
CURVE_ORDER = 0xFFFFFFFF00000000FFFFFFFFFFFFFFFFBCE6FAADA7179E84F3B9CAC2FC632551
EPOCH = datetime.datetime(1970, 1, 1, tzinfo=datetime.UTC)
FOREVER = datetime.datetime(9999, 12, 31, 23, 59, 59, tzinfo=datetime.UTC)  # RFC 5280 4.1.2.5
MAX_GOOD = 1024  # records whose signatures are remembered: four of each member's
# what reading a stranger's extensions raises; most of them are no ValueErrors
_BROKEN = (
    x509.ExtensionNotFound,
    x509.DuplicateExtension,
    x509.UnsupportedGeneralNameType,
    ValueError,
    TypeError,  # a name that is a string of bits
    UserWarning,  # a country's of other than two letters
)
ANY_MEMBER = "peerd"  # the second name of every leaf: what a Hello channel, which knows no id yet, asks for


def peer_id_of(certificate: bytes) -> str:
    """The id of the device whose certificate (PEM or DER) this is. RemoteError if it is none."""
    return _peer_id(_key_of(load_certificate(certificate)))


def load_certificate(certificate: bytes) -> x509.Certificate:
    """A certificate from PEM or DER that came over the network. RemoteError if it is none."""
    try:
        if certificate.startswith(b"-----"):
            return x509.load_pem_x509_certificate(certificate)
        return x509.load_der_x509_certificate(certificate)
    except (ValueError, x509.InvalidVersion) as error:
        raise RemoteError("what should be a certificate is none") from error


def _key_of(certificate: x509.Certificate) -> object:
    try:
        return certificate.public_key()
    except (ValueError, UnsupportedAlgorithm) as error:
        raise RemoteError("a certificate's key is of no known kind") from error


def _peer_id(public_key: object) -> str:
    if not isinstance(public_key, ec.EllipticCurvePublicKey) or public_key.curve.name != CURVE.name:
        raise RemoteError("a certificate's key is not on P-256")
    return "p-" + _short_hash(_public_bytes(public_key))


def _public_bytes(public_key: ec.EllipticCurvePublicKey) -> bytes:
    return public_key.public_bytes(
        serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
    )


def _short_hash(data: bytes) -> str:
    return base64.b32encode(hashlib.sha256(data).digest()).decode()[:26].lower()


def _private_pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )


class Device:
    """This device's own key pair; `id` is what other members know it by."""

    def __init__(self, private_key: ec.EllipticCurvePrivateKey) -> None:
        self.private_key = private_key
        self.id = _peer_id(private_key.public_key())

    @classmethod
    def load_or_create(cls, folder: Path) -> Device:
        """The key in `folder`/device.pem, made at the first start. StateError if it cannot be used safely."""
        path = folder / "device.pem"
        if not path.exists():
            write_private(path, _private_pem(ec.generate_private_key(CURVE)), replace=False)
        pem = read_private(path)
        try:
            private_key = serialization.load_pem_private_key(pem, password=None)
        except ValueError as error:
            raise StateError(
                f"{path} holds no key; restore it, or delete it to become a new device"
            ) from error
        if not isinstance(private_key, ec.EllipticCurvePrivateKey):
            raise StateError(
                f"{path} holds a key of another kind than P-256; delete it to become a new device"
            )
        return cls(private_key)


class RecordSeal:
    """Signs what this device says of itself in one session, and checks what others say of themselves.

    Whoever passes a record on cannot change it, nor bring it into another session: `domain` is derived from
    the session's key and part of what is signed. A Pi checks some thousand signatures a second, and the same
    records come again and again, so those found good are remembered.
    """

    def __init__(self, device: Device, domain: bytes) -> None:
        self.peer_id = device.id
        self._private_key = device.private_key
        self._key = device.private_key.public_key().public_bytes(
            serialization.Encoding.X962, serialization.PublicFormat.CompressedPoint
        )
        self._prefix = b"peerd record\0" + domain
        self._signed: tuple[bytes, bytes] = (b"", b"")  # the last one: it is told many times
        self._good: dict[bytes, None] = {}

    def sign(self, record: bytes) -> tuple[bytes, bytes]:
        """This device's public key and its signature of the record's bytes."""
        if self._signed[0] != record:
            algorithm = ec.ECDSA(hashes.SHA256(), deterministic_signing=True)
            self._signed = record, self._private_key.sign(self._prefix + record, algorithm)
        return self._key, self._signed[1]

    def check(self, owner: str, record: bytes, key: bytes, signature: bytes) -> None:
        """RemoteError unless the owner of that id has signed these bytes for this session."""
        said = f"{owner} {key.hex()} {signature.hex()} ".encode()
        whole = hashlib.sha256(said + record).digest()
        if whole in self._good:
            return
        try:
            public_key = ec.EllipticCurvePublicKey.from_encoded_point(CURVE, key)
            if _peer_id(public_key) != owner:
                raise RemoteError(f"a record of {owner} is signed with another's key")
            public_key.verify(signature, self._prefix + record, ec.ECDSA(hashes.SHA256()))
        except (ValueError, InvalidSignature) as error:
            raise RemoteError(f"a record of {owner} bears a false signature") from error
        self._good[whole] = None
        if len(self._good) > MAX_GOOD:
            del self._good[next(iter(self._good))]


class SessionIdentity:
    """What one device presents and trusts in one session. Without a folder the leaf is kept in memory
    alone.
    """

    def __init__(self, key: bytes, device: Device, folder: Path | None = None) -> None:
        assert len(key) == KEY_BYTES, f"a session key has {KEY_BYTES} bytes, not {len(key)}"
        self.peer_id = device.id
        self.beacon_key = _derive(key, "beacon", 32)
        self.insecure_token = _derive(key, "insecure", 16).hex()
        self.seal = RecordSeal(device, _derive(key, "records", 32))
        scalar = int.from_bytes(_derive(key, "certificate authority", 48), "big") % (CURVE_ORDER - 1) + 1
        self._ca_key = ec.derive_private_key(scalar, CURVE)
        self._ca = _ca_certificate(self._ca_key)
        self.ca_pem = self._ca.public_bytes(serialization.Encoding.PEM)
        self.leaf_key_pem = _private_pem(device.private_key)
        leaf = self._load_or_sign(device, folder)
        self.leaf_pem = leaf.public_bytes(serialization.Encoding.PEM)
        self.leaf_der = leaf.public_bytes(serialization.Encoding.DER)

    def check_leaf(self, der: bytes, peer: str) -> bytes:
        """The PEM of another member's leaf, fit to be pinned. RemoteError says which rule it breaks.

        A pinned certificate is a trust anchor to gRPC, so one that may sign would speak for any name.
        """
        leaf = load_certificate(der)
        if _peer_id(_key_of(leaf)) != peer:
            raise RemoteError(f"the certificate shown for {peer} has another key")
        _check_rules(leaf, peer)
        try:
            leaf.verify_directly_issued_by(self._ca)
        except (ValueError, TypeError, InvalidSignature, UnsupportedAlgorithm) as error:
            raise RemoteError(f"the certificate of {peer} was not signed with this session's key") from error
        if not leaf.public_bytes(serialization.Encoding.DER).endswith(b"\x00" + leaf.signature):
            # bits of the signature that do not count: it verifies all the same, and TLS would not take it
            raise RemoteError(f"the certificate of {peer} ends with a signature that is not whole bytes")
        return leaf.public_bytes(serialization.Encoding.PEM)

    def _load_or_sign(self, device: Device, folder: Path | None) -> x509.Certificate:
        if folder is None:
            return _leaf_certificate(device, self._ca, self._ca_key)
        path = folder / "leaf.pem"
        if path.exists():
            try:
                der = load_certificate(read_private(path)).public_bytes(serialization.Encoding.DER)
                return load_certificate(self.check_leaf(der, device.id))
            except RemoteError as error:
                log.warning("signing a new leaf certificate: %s: %s", path, error)
        leaf = _leaf_certificate(device, self._ca, self._ca_key)
        write_private(path, leaf.public_bytes(serialization.Encoding.PEM))
        return leaf


def _derive(key: bytes, use: str, length: int) -> bytes:
    return HKDF(hashes.SHA256(), length=length, salt=None, info=f"peerd 1 {use}".encode()).derive(key)


def _ca_certificate(key: ec.EllipticCurvePrivateKey) -> x509.Certificate:
    public = _public_bytes(key.public_key())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "s-" + _short_hash(public))])
    builder = (
        x509.CertificateBuilder(issuer_name=name, subject_name=name, public_key=key.public_key())
        .serial_number(int.from_bytes(hashlib.sha256(public).digest()[:8], "big") >> 1 | 1)
        .not_valid_before(EPOCH)
        .not_valid_after(FOREVER)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_usage(signs_certificates=True), critical=True)
    )
    return builder.sign(key, hashes.SHA256(), ecdsa_deterministic=True)


def _leaf_certificate(
    device: Device, ca: x509.Certificate, ca_key: ec.EllipticCurvePrivateKey
) -> x509.Certificate:
    names = [x509.DNSName(device.id), x509.DNSName(ANY_MEMBER)]
    builder = (
        x509.CertificateBuilder()
        .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, device.id)]))
        .issuer_name(ca.subject)
        .public_key(device.private_key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(EPOCH)
        .not_valid_after(FOREVER)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_usage(signs_certificates=False), critical=True)
        .add_extension(x509.SubjectAlternativeName(names), critical=False)
    )
    return builder.sign(ca_key, hashes.SHA256())


def _usage(signs_certificates: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not signs_certificates,
        key_cert_sign=signs_certificates,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        crl_sign=False,
        encipher_only=False,
        decipher_only=False,
    )


def _check_rules(leaf: x509.Certificate, peer: str) -> None:
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("error", "Attribute's length")  # of a name that is none
            common_names = [name.value for name in leaf.subject.get_attributes_for_oid(NameOID.COMMON_NAME)]
        usage = leaf.extensions.get_extension_for_class(x509.KeyUsage)
        names = leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        constraints = leaf.extensions.get_extension_for_class(x509.BasicConstraints).value
        dns_names = names.get_values_for_type(x509.DNSName)
    except _BROKEN as error:
        raise RemoteError(f"the certificate of {peer} lacks an extension or has a broken one") from error
    if not usage.critical or usage.value != _usage(signs_certificates=False) or constraints.ca:
        raise RemoteError(f"the certificate of {peer} may do more than digital signatures")
    if common_names != [peer] or len(names) != 2 or set(dns_names) != {peer, ANY_MEMBER}:
        raise RemoteError(f"the certificate of {peer} is made out to other names")


def read_private(path: Path) -> bytes:
    """A file that must be readable by its owner alone. StateError if others may read it, or nobody can."""
    try:
        mode = path.stat().st_mode
        if stat.S_IMODE(mode) & 0o077:
            raise StateError(
                f"{path} can be read by others (mode {stat.S_IMODE(mode):04o}); run 'chmod 600 {path}'"
            )
        return path.read_bytes()
    except OSError as error:
        raise StateError(f"cannot read {path}: {error.strerror}") from error


def write_private(path: Path, data: bytes, replace: bool = True) -> None:
    """Write with mode 0600, whole or not at all. With `replace` off an existing file stays as it is."""
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        if replace or not path.exists():
            atomic_write(path, data)
    except OSError as error:
        raise cannot_write(path, error) from error
