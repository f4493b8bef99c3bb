"""Ctrl-C as a request: the step under way is finished and saved first."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterator
from typing import Any


class Flag:
    """True once a person has asked to stop."""

    def __init__(self) -> None:
        self.up = False

    def __bool__(self) -> bool:
        return self.up


@contextlib.contextmanager
def interruptible(active: bool) -> Iterator[Flag]:
    """Within, the first Ctrl-C raises a flag and the second one interrupts as usual."""
    flag = Flag()
    if not active or threading.current_thread() is not threading.main_thread():
        yield flag
        return
    before = signal.getsignal(signal.SIGINT)

    def ask(number: int, frame: Any) -> None:
        flag.up = True
        signal.signal(signal.SIGINT, before)

    signal.signal(signal.SIGINT, ask)
    try:
        yield flag
    finally:
        signal.signal(signal.SIGINT, before)
