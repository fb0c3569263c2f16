"""The join key: 16 random bytes in a form a person can read out and type in. Standard library only.

    peerd1-K3QX-…   "peerd", the form's number, and 8 groups of 4 base32 letters (RFC 4648, section 6):
                    the 16 bytes of the key and the first 4 bytes of their SHA-256, so that a slip is noticed

The key itself is only ever an input to HKDF (peer/mesh/identity.py); nothing here derives anything from it.
"""

from __future__ import annotations

import base64
import hashlib
import re
import secrets

from peer.errors import UsageError

KEY_BYTES = 16  # 128 bits: out of reach of guessing
CHECK_BYTES = 4  # one slip in 2**32 goes unnoticed (guess)
PREFIX = "peerd1"
_GROUP = 4  # letters, as on a product key
_LETTERS = (KEY_BYTES + CHECK_BYTES) * 8 // 5
_ALPHABET = "ABCDEFGHIJKLMNOPQRSTUVWXYZ234567"
_LOOK_ALIKE = str.maketrans("018", "OIB")  # none of the three is in the alphabet


def new_key() -> bytes:
    """A fresh session key from the system's random source."""
    return secrets.token_bytes(KEY_BYTES)


def format_key(key: bytes) -> str:
    """The join key a person types: `peerd1-XXXX-…`, 8 groups of 4 letters."""
    if len(key) != KEY_BYTES:
        raise AssertionError(f"a session key has {KEY_BYTES} bytes, not {len(key)}")
    letters = base64.b32encode(key + _checksum(key)).decode("ascii")
    return "-".join([PREFIX, *(letters[i : i + _GROUP] for i in range(0, _LETTERS, _GROUP))])


def parse_key(text: str) -> bytes:
    """The 16 bytes of a join key. Case, spaces and missing hyphens are forgiven, and 0, 1, 8 read as O, I, B.

    Raises UsageError that says what is wrong and never repeats the key.
    """
    compact = re.sub(r"[\s\-\u2010-\u2015]", "", text).upper()
    if not compact.startswith(PREFIX.upper()):
        if re.match(r"PEERD\d", compact):
            raise UsageError(f"this peerd knows join keys of the form '{PREFIX}-…' alone; upgrade it")
        raise UsageError(f"a join key starts with '{PREFIX}-'; 'peerd key NAME' on a member shows it")
    letters = compact[len(PREFIX) :].translate(_LOOK_ALIKE)
    wrong = next(((at, letter) for at, letter in enumerate(letters) if letter not in _ALPHABET), None)
    if wrong is not None:
        at, letter = wrong
        raise UsageError(
            f"letter {at % _GROUP + 1} of group {at // _GROUP + 1} of the join key is {letter!r}; "
            "only A to Z and 2 to 7 occur in one"
        )
    if len(letters) != _LETTERS:
        raise UsageError(
            f"the join key has {len(letters)} letters after '{PREFIX}-' and should have {_LETTERS}, "
            f"8 groups of {_GROUP}; copy it whole"
        )
    raw = base64.b32decode(letters)
    key, check = raw[:KEY_BYTES], raw[KEY_BYTES:]
    if not secrets.compare_digest(check, _checksum(key)):
        raise UsageError(
            "the join key's checksum is off: a letter is mistyped; compare it with 'peerd key NAME'"
        )
    return key


def _checksum(key: bytes) -> bytes:
    return hashlib.sha256(key).digest()[:CHECK_BYTES]
