"""Reads that a signal ends, whenever it arrives."""

from __future__ import annotations

import io
import os
import signal
import threading
from collections.abc import Iterator
from typing import BinaryIO

import pytest

from deepctl.cancellation import interruptible


@pytest.fixture
def pipe() -> Iterator[tuple[BinaryIO, BinaryIO]]:
    """The end of a pipe that is read, and the end that is written."""
    reading, writing = os.pipe()
    with open(reading, "rb") as first, open(writing, "wb", buffering=0) as second:
        yield first, second


def test_a_signal_that_interrupts_no_system_call_ends_a_read_all_the_same(pipe: tuple[BinaryIO, BinaryIO]) -> None:
    """As one that arrives between Python's last look for signals and the read: here, another thread receives it."""
    reading, writing = pipe
    is_over = threading.Event()

    def press() -> None:
        is_over.wait(0.05)
        signal.pthread_kill(threading.get_ident(), signal.SIGINT)
        if not is_over.wait(10):
            os.write(writing.fileno(), bytes(100))

    presser = threading.Thread(target=press)
    stream = interruptible(reading)
    writing.write(b"abc")
    presser.start()
    with pytest.raises(KeyboardInterrupt):
        assert stream.read(4) == b"", "the signal was lost"
    is_over.set()
    presser.join()
    assert signal.set_wakeup_fd(-1) == -1


def test_the_same_holds_at_a_terminal() -> None:
    """Where Ctrl-C just before the read would have no effect until the next key."""
    master, terminal = os.openpty()
    is_over = threading.Event()

    def press() -> None:
        is_over.wait(0.05)
        signal.pthread_kill(threading.get_ident(), signal.SIGINT)
        if not is_over.wait(10):
            os.write(master, b"late\n")

    presser = threading.Thread(target=press)
    try:
        with open(terminal, "rb", closefd=False) as reading:
            os.write(master, b"a line\nmore")
            stream = interruptible(reading)
            assert stream.readline() == b"a line\n"
            presser.start()
            with pytest.raises(KeyboardInterrupt):
                assert stream.readline() == b"", "the signal was lost"
    finally:
        is_over.set()
        presser.join()
        os.close(master)
        os.close(terminal)


def test_a_signal_whose_handler_returns_does_not_end_a_read(pipe: tuple[BinaryIO, BinaryIO]) -> None:
    reading, writing = pipe
    caught: list[int] = []

    def handle(number: int, _: object) -> None:
        caught.append(number)
        writing.close()

    before = signal.signal(signal.SIGALRM, handle)
    try:
        writing.write(b"abc")
        signal.setitimer(signal.ITIMER_REAL, 0.05)
        assert interruptible(reading).read() == b"abc"
    finally:
        signal.signal(signal.SIGALRM, before)
    assert caught == [signal.SIGALRM]


def test_what_cannot_wait_is_read_as_it_is(pipe: tuple[BinaryIO, BinaryIO]) -> None:
    stream = io.BytesIO(b"abc")
    assert interruptible(stream) is stream
    _, writing = pipe
    assert interruptible(writing) is writing
