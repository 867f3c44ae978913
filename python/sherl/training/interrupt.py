"""Ctrl-C during a fit: the first asks it to end after the step under way, the second raises KeyboardInterrupt."""

import signal
import threading


class Interrupt:
    """Context in which an interrupt is noted rather than raised.

    It acts in the main thread where Python's own handler is in place; a handler of the user's stays.

    Attributes
    ----------
    asked : bool
        Whether an interrupt came.
    """

    def __init__(self):
        self.asked = False
        self._former = None

    def __enter__(self):
        main = threading.current_thread() is threading.main_thread()
        if main and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
            self._former = signal.signal(signal.SIGINT, self._note)
        return self

    def __exit__(self, *error):
        if self._former is not None:
            signal.signal(signal.SIGINT, self._former)

    def _note(self, number, frame):
        if self.asked:
            raise KeyboardInterrupt
        self.asked = True
