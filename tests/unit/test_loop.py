"""The end of a process that had plain functions in threads."""

import os
import threading
from collections.abc import Callable

import pytest

from jetcron import loop


@pytest.fixture
def exits(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The codes with which the process was ended at once."""
    codes: list[int] = []
    monkeypatch.setattr(os, "_exit", codes.append)
    return codes


def start(work: Callable[[], object]) -> threading.Thread:
    thread = threading.Thread(target=work, daemon=False)
    thread.start()
    return thread


def test_a_thread_that_is_ending_is_let_end(exits: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loop, "_MOMENT", 20.0)  # it is over as soon as the threads are
    told = threading.Event()
    threading.Timer(0.02, told.set).start()
    start(told.wait)
    loop.leave_threads()
    assert exits == []


def test_one_that_goes_on_is_left(exits: list[int]) -> None:
    told = threading.Event()
    thread = start(told.wait)
    loop.leave_threads()
    told.set()
    thread.join()
    assert exits == [0]
