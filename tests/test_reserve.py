"""Memory of payloads that is used again, and only when nobody has it any more."""

from __future__ import annotations

import errno
import fcntl
import os
import signal
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from peer import shared_buffer
from peer.available import rss_mb
from peer.errors import PeerdError
from peer.shared_buffer import AGAIN_S, KEEP_S, REMEMBERED, STRETCH, WORTH_KEEPING, Reserve, SharedBuffer

SIZE = WORTH_KEEPING


def memory(buffer: SharedBuffer) -> int:
    return os.fstat(buffer.fileno()).st_ino


@pytest.fixture
def reserve() -> Iterator[Reserve]:
    reserve = Reserve()
    yield reserve
    reserve.close()


def test_the_next_buffer_of_this_size_is_made_of_the_last_ones_memory(reserve: Reserve) -> None:
    with reserve.make(SIZE) as first:
        inode = memory(first)
        first.write(0, b"first")
    with reserve.make(SIZE) as second:
        assert memory(second) == inode
        second.write(0, b"again")
        assert bytes(second.view()[:5]) == b"again"
        assert reserve.size == SIZE


def test_memory_in_use_is_nobody_elses(reserve: Reserve) -> None:
    with reserve.make(SIZE) as first, reserve.make(SIZE) as second:
        assert memory(first) != memory(second)
        first.write(0, b"1")
        second.write(0, b"2")
        assert first.read(0, 1) + second.read(0, 1) == b"12"


def fill(buffer: SharedBuffer) -> None:
    """Write all of it, so that every page is there."""
    buffer.write(0, bytes(len(buffer)))


def mappings(inode: int) -> int:
    """How often this process has that memory mapped."""
    lines = Path("/proc/self/maps").read_text().splitlines()
    return sum(shared_buffer.NAME in line and line.split()[4] == str(inode) for line in lines)


def passed_on(buffer: SharedBuffer) -> tuple[int, int]:
    """Its descriptor as it comes to another process, and its size."""
    return os.dup(buffer.fileno()), len(buffer)


@pytest.mark.parametrize("times", [0, 1, 2])
def test_a_view_alone_keeps_it_in_use(reserve: Reserve, times: int) -> None:
    for _ in range(times):
        with reserve.make(SIZE) as before:
            fill(before)
    first = reserve.make(SIZE)
    first.write(0, b"held")
    inode, view = memory(first), first.view()
    first.close()
    with reserve.make(SIZE) as second:
        assert memory(second) != inode
        second.write(0, b"else")
    part = view[:4]
    view.release()
    with reserve.make(SIZE) as second:
        assert memory(second) != inode, "a part of it is looked at"
    assert bytes(part) == b"held"
    part.release()
    with reserve.make(SIZE) as third, reserve.make(SIZE) as fourth:
        assert inode in (memory(third), memory(fourth))


def test_memory_that_is_used_again_is_mapped_once(reserve: Reserve) -> None:
    with reserve.make(SIZE) as first:
        fill(first)
        inode = memory(first)
        assert mappings(inode) == 0
    for round_ in range(3):
        with reserve.make(SIZE) as again:
            again.write(SIZE - 4, round_.to_bytes(4, "big"))
            assert (memory(again), mappings(inode)) == (inode, 1)
            assert (
                again.read(SIZE - 4, 8) == os.pread(again.fileno(), 8, SIZE - 4) == bytes((0, 0, 0, round_))
            )
            with again.part(SIZE - 1, 8) as part, again.view() as view:
                assert bytes(part) == bytes(view[-1:]) == bytes((round_,))
            assert mappings(inode) == 1
        with pytest.raises(PeerdError, match="closed"):
            again.part(0, 1)
    reserve.close()
    assert mappings(inode) == 0


def test_memory_with_missing_pages_is_not_mapped_to_be_written_to(reserve: Reserve) -> None:
    with reserve.make(SIZE) as first:
        first.write(0, bytes(SIZE - 5000))  # a parcel that broke off
        inode = memory(first)
    with reserve.make(SIZE) as second:
        assert (memory(second), mappings(inode)) == (inode, 0)
        fill(second)
    with reserve.make(SIZE) as third:
        assert (memory(third), mappings(inode)) == (inode, 1)


def test_memory_that_comes_again_is_mapped_once_and_is_its_makers_when_nobody_looks(reserve: Reserve) -> None:
    here = Reserve()
    inode = 0
    for round_ in range(1, 4):
        with reserve.make(SIZE) as made:
            fill(made)
            made.write(0, bytes((round_,)))
            assert memory(made) == (inode or memory(made)), "what is mapped there and not used is free"
            inode = memory(made)
            came = here.taken(*passed_on(made))
        view = came.view()
        assert mappings(inode) == (1 if round_ == 1 else 2), "its maker's beside this one's, from then on"
        came.close()
        with reserve.make(SIZE) as other:  # somebody looks at what came
            assert memory(other) != inode
        assert view[0] == round_
        del view
    here.close()
    reserve.close()
    assert mappings(inode) == 0


def test_new_memory_that_comes_takes_the_place_of_what_came_before(reserve: Reserve) -> None:
    here = Reserve()
    with reserve.make(SIZE) as first, reserve.make(SIZE) as second:
        for made in (first, second):
            fill(made)
        for made in (first, first):
            here.taken(*passed_on(made)).close()
        assert mappings(memory(first)) == 1
        here.taken(*passed_on(second)).close()
        assert mappings(memory(first)) == mappings(memory(second)) == 0
        with here.taken(*passed_on(first)), SharedBuffer.of(bytes(SIZE)) as third:
            here.taken(*passed_on(second)).close()
            assert mappings(memory(first)) == mappings(memory(second)) == 1
            here.taken(*passed_on(third)).close()
            assert mappings(memory(first)) == 1, "it is in use"
            assert mappings(memory(second)) == mappings(memory(third)) == 0
    here.close()


def test_what_does_not_come_any_more_is_let_go_of() -> None:
    now = 0.0
    here = Reserve(lambda: now)
    with SharedBuffer.of(bytes(SIZE)) as made:
        for _ in range(2):
            came = here.taken(*passed_on(made))
        view = came.view()
        came.close()
        now += 0.9 * KEEP_S
        assert here.tidy() <= KEEP_S
        assert mappings(memory(made)) == 1
        now += 2 * KEEP_S
        assert here.tidy() <= KEEP_S
        assert here.taken(*passed_on(made)).view() == view, "somebody looks at it: it stays"
        assert mappings(memory(made)) == 1
        del view
        now += 0.9 * KEEP_S
        here.tidy()
        assert mappings(memory(made)) == 1
        now += 0.1 * KEEP_S
        assert here.tidy() == AGAIN_S
        assert here.tidy() == float("inf")
        assert mappings(memory(made)) == 0


def test_of_what_has_come_only_the_last_are_remembered() -> None:
    here = Reserve()
    with SharedBuffer.of(bytes(SIZE)) as made:
        here.taken(*passed_on(made)).close()
        for _ in range(REMEMBERED):
            with SharedBuffer.create(SIZE) as other:
                here.taken(*passed_on(other)).close()
        here.taken(*passed_on(made)).close()
        assert mappings(memory(made)) == 0
        with here.taken(*passed_on(made)):
            assert mappings(memory(made)) == 1
            for _ in range(REMEMBERED):
                with SharedBuffer.create(SIZE) as other:
                    here.taken(*passed_on(other)).close()
        here.taken(*passed_on(made)).close()
        assert mappings(memory(made)) == 1, "what is mapped is known, however much has come since"
        here.taken(*passed_on(made)).close()
        assert mappings(memory(made)) == 1
    here.close()


def test_a_payload_that_has_grown_is_read_from_its_file() -> None:
    here, fd = Reserve(), os.memfd_create("growing", os.MFD_ALLOW_SEALING)
    fcntl.fcntl(fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK)
    for size in (SIZE, SIZE, 2 * SIZE, 2 * SIZE):
        os.pwrite(fd, b"x" * size, 0)
        with here.taken(os.dup(fd), size) as came, came.view() as view:
            assert (len(view), view[-1:], came.read(size - 1, 1)) == (size, b"x", b"x")
    os.close(fd)
    here.close()


def test_what_comes_is_taken_over_as_from_its_descriptor() -> None:
    here = Reserve()
    with SharedBuffer.of(bytes(SIZE)) as made, pytest.raises(PeerdError, match="announced"):
        here.taken(os.dup(made.fileno()), SIZE + 1)
    for _ in range(2):
        with SharedBuffer.of(b"short") as made, here.taken(*passed_on(made)) as came:
            assert came.read(0, 9) == b"short"
    assert here.tidy() == float("inf")
    here.close()
    with SharedBuffer.of(bytes(SIZE)) as made:
        for _ in range(2):
            here.taken(*passed_on(made)).close()
        assert mappings(memory(made)) == 0, "it keeps nothing any more"


def test_a_descriptor_that_was_passed_on_keeps_it_in_use_until_its_process_is_killed(
    reserve: Reserve,
) -> None:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
    child = os.fork()
    if child == 0:  # holds what it is sent until it is killed
        try:
            _, fds, _, _ = socket.recv_fds(theirs, 1, 1)
            buffer = SharedBuffer.from_fd(fds[0], SIZE)
            held = buffer.view()
            buffer.close()
            theirs.sendall(bytes(held[:4]))
            signal.pause()
        finally:
            os._exit(1)
    try:
        with reserve.make(SIZE) as first:
            first.write(0, b"sent")
            inode = memory(first)
            socket.send_fds(ours, [b"x"], [first.fileno()])
        with reserve.make(SIZE) as second:  # on its way, or there: in use all the same
            assert memory(second) != inode
        assert ours.recv(4) == b"sent"
        with reserve.make(SIZE) as second:
            assert memory(second) != inode
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        ours.close()
        theirs.close()
    with reserve.make(SIZE) as third, reserve.make(SIZE) as fourth:
        assert inode in (memory(third), memory(fourth))


def test_free_memory_of_another_size_is_given_back_before_more_is_taken(reserve: Reserve) -> None:
    with reserve.make(SIZE) as busy:
        reserve.make(2 * SIZE).close()
        with reserve.make(3 * SIZE):
            assert reserve.size == SIZE + 3 * SIZE
        assert len(busy) == SIZE


def test_what_nobody_uses_is_given_back() -> None:
    now = 100.0
    reserve = Reserve(lambda: now)
    assert reserve.tidy() == float("inf")
    with reserve.make(SIZE):
        now += 2 * KEEP_S
        assert reserve.tidy() <= KEEP_S
    assert reserve.size == SIZE
    reserve.tidy()  # sees it free
    now += KEEP_S / 2
    with reserve.make(SIZE):  # used again: the time counts anew
        now += KEEP_S / 2
        reserve.tidy()
    reserve.tidy()
    now += 0.9 * KEEP_S
    assert reserve.tidy() <= KEEP_S
    assert reserve.size == SIZE
    now += 0.1 * KEEP_S
    assert reserve.tidy() == AGAIN_S
    assert reserve.tidy() == float("inf")
    assert reserve.size == 0


def test_memory_that_is_not_used_goes_back_one_by_one() -> None:
    now = 0.0
    reserve = Reserve(lambda: now)
    with reserve.make(SIZE), reserve.make(SIZE):
        pass
    reserve.tidy()
    now += KEEP_S
    assert reserve.tidy() == AGAIN_S
    assert reserve.size == SIZE
    assert reserve.tidy() == AGAIN_S
    assert reserve.size == 0


def test_a_mapping_that_nobody_uses_goes_before_more_memory_is_taken(reserve: Reserve) -> None:
    with SharedBuffer.of(bytes(SIZE)) as made:
        for _ in range(2):
            reserve.taken(*passed_on(made)).close()
        with reserve.make(SIZE):
            assert mappings(memory(made)) == 0


def test_payloads_are_not_counted_as_a_process_own_memory() -> None:
    reserve, before = Reserve(), rss_mb()
    for _ in range(2):
        with reserve.make(64 * SIZE) as made:
            fill(made)
    with reserve.make(64 * SIZE) as made:
        assert mappings(memory(made)) == 1
        assert rss_mb() < before + 32
    reserve.close()


def test_a_long_write_to_mapped_memory_is_whole(reserve: Reserve) -> None:
    size = 2 * STRETCH + 4097
    for mark in (b"a", b"b", b"c"):
        with reserve.make(size) as buffer:
            buffer.write(1, mark * (size - 1))
            assert buffer.read(1, size) == mark * (size - 1)
            buffer.write(0, mark)


def test_memory_of_which_the_kernel_does_not_tell_is_in_use(
    reserve: Reserve, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_room(fd: int, operation: int) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    with reserve.make(SIZE) as first:
        inode = memory(first)
    with monkeypatch.context() as patched:
        patched.setattr(shared_buffer.fcntl, "flock", no_room)
        with reserve.make(SIZE) as second:
            assert memory(second) != inode
        reserve.tidy()
    with reserve.make(SIZE) as third:
        assert memory(third) == inode


def test_a_buffer_that_is_lost_gives_its_memory_back(reserve: Reserve) -> None:
    lost = reserve.make(SIZE)
    inode = memory(lost)
    del lost
    with reserve.make(SIZE) as next_one:
        assert memory(next_one) == inode


def test_short_payloads_are_not_kept(reserve: Reserve) -> None:
    with reserve.of(b"short") as buffer:
        assert buffer.read(0, 10) == b"short"
    assert reserve.size == 0


def test_closing_it_takes_nothing_from_those_who_use_it() -> None:
    reserve = Reserve()
    with reserve.make(SIZE) as buffer:
        buffer.write(SIZE - 3, b"end")
        reserve.close()
        assert buffer.read(SIZE - 3, 3) == b"end"
        assert reserve.size == 0
    with reserve.make(SIZE):  # somebody who did not know
        assert reserve.size == 0


def test_where_a_file_cannot_be_opened_again_each_buffer_is_made_anew(
    reserve: Reserve, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(fd: int) -> int:
        raise PermissionError(f"no /proc/self/fd/{fd}")

    monkeypatch.setattr(shared_buffer, "_opened_again", refused)
    with reserve.of(b"x" * SIZE) as first:
        assert first.read(0, 1) == b"x"
    assert reserve.size == 0
    with reserve.make(SIZE) as second:
        assert second.read(0, 1) == b"\0"


def test_one_that_cannot_be_handed_out_is_there_for_the_next(
    reserve: Reserve, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(fd: int) -> int:
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    with reserve.make(SIZE) as first:
        inode = memory(first)
    with monkeypatch.context() as patched:
        patched.setattr(shared_buffer, "_opened_again", refused)
        with pytest.raises(OSError, match=os.strerror(errno.EMFILE)):
            reserve.make(SIZE)
    with reserve.make(SIZE) as second:
        assert memory(second) == inode


def test_threads_never_share_what_is_in_use(reserve: Reserve) -> None:
    wrong: list[str] = []

    def work(mark: bytes) -> None:
        for _ in range(50):
            with reserve.make(SIZE) as buffer:
                buffer.write(0, mark * 4)
                if buffer.read(0, 4) != mark * 4:
                    wrong.append(mark.decode())

    threads = [threading.Thread(target=work, args=(mark,)) for mark in (b"a", b"b", b"c")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
    assert reserve.size <= 3 * SIZE
