"""What damaged input has once found."""

from __future__ import annotations

import hashlib
import os
import struct
from unittest.mock import patch

import pytest
import torch

from badinput.bodies import remembered
from badinput.wires import LEAF, identities
from peer.algorithms import make
from peer.algorithms.base import SHARE, Links
from peer.algorithms.difference_push import DEVIATION
from peer.compression import history as memory
from peer.compression.bodies import Dense, Layout, Recalled
from peer.compression.codec import Message
from peer.compression.history import History
from peer.compression.quantize import quantize
from peer.config import JoinOptions
from peer.daemon.signatures import first_difference
from peer.errors import ConfigError, DataError, PeerdError, RemoteError, UnknownBaseError
from peer.event_frames import EventAssembler, from_frame
from peer.events import Key
from peer.learner.checkpoint import save_plain, unpack
from peer.mesh.identity import load_certificate

LAYOUT = Layout((4,))
ONES = torch.ones(4)


def test_a_certificate_of_an_unknown_version_is_refused() -> None:
    assert LEAF[10:13] == b"\x02\x01\x02", "version 3"
    with pytest.raises(RemoteError, match="none"):
        load_certificate(LEAF[:12] + b"\x09" + LEAF[13:])


def test_a_certificate_whose_signature_is_not_whole_bytes_is_refused() -> None:
    me, other = identities()[:2]
    at = LEAF.rindex(b"\x00\x30")  # in front of the signature: bits of its last byte that do not count
    assert me.check_leaf(LEAF, other.peer_id)
    with pytest.raises(RemoteError, match="not whole bytes"):
        me.check_leaf(LEAF[:at] + b"\x01" + LEAF[at + 1 :], other.peer_id)


def test_a_certificate_made_out_to_a_string_of_bits_is_refused() -> None:
    me, other = identities()[:2]
    name = b"\x0c\x1c" + other.peer_id.encode()
    assert LEAF.count(name) == 1
    with pytest.raises(RemoteError, match="broken one"):
        me.check_leaf(LEAF.replace(name, b"\x03" + name[1:]), other.peer_id)


def test_a_certificate_made_out_to_a_country_is_refused_without_a_warning() -> None:
    me, other = identities()[:2]
    kind = b"\x06\x03\x55\x04\x03\x0c\x1c" + other.peer_id.encode()
    assert LEAF.count(kind) == 1
    with pytest.raises(RemoteError, match="broken one"):
        me.check_leaf(LEAF.replace(kind, kind.replace(b"\x04\x03", b"\x04\x06", 1)), other.peer_id)


def test_a_checkpoint_that_is_a_tensor_is_refused() -> None:
    payload = save_plain(torch.arange(6.0))
    header = struct.pack(">8sIQQ", b"peerd-ck", 1, 3, len(payload))
    with pytest.raises(DataError, match="does not hold what a checkpoint holds"):
        unpack(header + hashlib.sha256(header + payload).digest() + payload, "the file")


def test_a_models_signature_with_infinite_sizes_is_no_signature() -> None:
    assert "in names, shapes or dtypes" in first_difference(b"[]", b'[["w", [1e999], "torch.float32"]]')


def test_fields_whose_names_are_not_text_are_unknown_fields() -> None:
    with pytest.raises(PeerdError, match="no field 'fd2'"):
        from_frame({"op": "Taken", b"size": 1, "fd2": 1})


def test_a_long_message_of_no_length_leaves_no_descriptor_open() -> None:
    fd = os.memfd_create("test")
    with pytest.raises(PeerdError, match="count of bytes"):
        EventAssembler().take({"op": "begin", "event": {"op": "Push", "payload": None}}, fd)
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(fd)


def test_join_options_that_are_no_map_are_refused() -> None:
    with pytest.raises(ConfigError, match="no map but 'cuda'"):
        JoinOptions.from_dict("cuda")  # type: ignore[arg-type]


def test_symbols_that_build_on_the_memory_of_a_new_link_are_refused() -> None:
    layout = Layout((64,))
    with patch.object(memory, "SMALLEST_MODEL", 1):
        body = remembered(layout, torch.float32).recall(quantize(torch.linspace(-1, 1, 64), 2.0, layout))
    assert isinstance(body, Recalled)
    with pytest.raises(UnknownBaseError, match="new"):
        History.fresh(layout).read(body)


@pytest.mark.parametrize("name", ["sgp", "sparse-push", "difference-push"])
def test_a_newcomers_first_weight_is_one_that_can_be_divided_by(name: str) -> None:
    node = make(name, {}, LAYOUT, torch.float32)
    node.know(ONES)
    with pytest.raises(RemoteError, match="weight of at least"):
        node.receive("1", Message(Key(0, 1), SHARE, Dense(ONES), 1e-40), 0.0)
    assert node.weight == 0
    assert not node.mass()[0].any()
    assert node.receive("1", Message(Key(0, 1), SHARE, Dense(1e-9 * ONES), 1e-9), 0.0) == {}
    assert torch.equal(node.estimate(), ONES)


def test_a_refused_deviation_changes_nothing_of_what_is_known_of_its_link() -> None:
    node = make("difference-push", {}, LAYOUT, torch.float32)
    node.know(ONES)
    with pytest.raises(UnknownBaseError, match="initial model"):
        node.receive("1", Message(Key(0, 1), DEVIATION, Dense(ONES), 0.5, b"another"), 0.0)
    assert not node.lacking


@pytest.mark.parametrize("name", ["relay-sum", "relay-sum-grad"])
def test_neighbors_that_together_count_more_nodes_than_there_are_are_not_all_believed(name: str) -> None:
    node = make(name, {}, LAYOUT, torch.float32)
    node.know(ONES)
    node.begin(ONES, 1.0)
    links = Links(Key(1, 1), {"1": 0.3, "2": 0.3}, frozenset({"1", "2"}), 4, trees=(("1", "2"),))
    node.step(torch.zeros(4), 0.1, links, 0.0)
    meaning = type(node).MEANING  # type: ignore[attr-defined]
    first, second = (
        Message(Key(1, 1), meaning, Dense(0 * ONES), base=count, delivery="latest")
        for count in (b"\3\0", b"\1\0")
    )
    node.receive("1", first, 0.0)
    with pytest.raises(RemoteError, match="5 models of 4 nodes"):
        node.receive("2", second, 0.0)
    mixed = node.mix()
    assert torch.equal(mixed, 0.25 * ONES if name == "relay-sum" else ONES)
