import hashlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from peer.errors import UsageError
from peer.keys import format_key, new_key, parse_key

KEY = bytes(range(16))
TEXT = format_key(KEY)


@given(st.binary(min_size=16, max_size=16))
def test_a_key_is_what_its_text_says(key: bytes) -> None:
    assert parse_key(format_key(key)) == key


def test_the_text_is_eight_groups_of_four_letters() -> None:
    prefix, *groups = TEXT.split("-")
    assert prefix == "peerd1"
    assert [len(group) for group in groups] == [4] * 8


def test_the_text_is_the_key_and_four_bytes_of_its_sha256_in_base32() -> None:
    import base64

    raw = base64.b32decode("".join(TEXT.split("-")[1:]))
    assert raw == KEY + hashlib.sha256(KEY).digest()[:4]


@pytest.mark.parametrize(
    "typed",
    [
        TEXT.lower(),
        TEXT.replace("-", ""),
        TEXT.replace("-", " "),
        f"  {TEXT}\n",
        TEXT.replace("-", "\u2013"),
        "peerd1-" + TEXT[7:].replace("O", "0").replace("I", "1").replace("B", "8"),
    ],
)
def test_a_person_may_type_it_carelessly(typed: str) -> None:
    assert parse_key(typed) == KEY


def test_every_single_wrong_letter_is_noticed() -> None:
    for at in range(7, len(TEXT)):
        if TEXT[at] == "-":
            continue
        slip = TEXT[:at] + ("A" if TEXT[at] != "A" else "C") + TEXT[at + 1 :]
        with pytest.raises(UsageError, match="checksum"):
            parse_key(slip)


@pytest.mark.parametrize(
    ("typed", "said"),
    [
        ("", "starts with 'peerd1-'"),
        ("hunter2", "starts with 'peerd1-'"),
        ("peerd2-AAAA", "upgrade"),
        (TEXT[:-1], "31 letters"),
        (TEXT + "A", "33 letters"),
        (TEXT[:8] + "9" + TEXT[9:], "letter 2 of group 1"),
        (TEXT[:8] + "\u00e9" + TEXT[9:], "letter 2 of group 1"),
    ],
)
def test_the_error_says_what_is_wrong(typed: str, said: str) -> None:
    with pytest.raises(UsageError, match=said):
        parse_key(typed)


def test_errors_do_not_repeat_the_key() -> None:
    with pytest.raises(UsageError) as raised:
        parse_key(TEXT[:-1] + ("A" if TEXT[-1] != "A" else "C"))
    assert TEXT[7:11] not in str(raised.value)


def test_new_keys_differ() -> None:
    assert len({new_key() for _ in range(8)}) == 8
