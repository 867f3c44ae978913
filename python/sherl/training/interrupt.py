"""Ctrl-C during a fit: the first asks it to end after the step under way, the second raises KeyboardInterrupt."""

from __future__ import annotations

import signal
import threading
from types import FrameType
from typing import Any


class Interrupt:
    """Context in which an interrupt is noted rather than raised.

    It acts in the main thread where Python's own handler is in place; a handler of the user's stays.

    Attributes
    ----------
    asked : bool
        Whether an interrupt came.
    """

    def __init__(self) -> None:
        self.asked = False
        self._former: Any = None  # as signal gives it

    def __enter__(self) -> Interrupt:
        main = threading.current_thread() is threading.main_thread()
        if main and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
            self._former = signal.signal(signal.SIGINT, self._note)
        return self

    def __exit__(self, *error: object) -> None:
        if self._former is not None:
            signal.signal(signal.SIGINT, self._former)

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.asked:
            raise KeyboardInterrupt
        self.asked = True
