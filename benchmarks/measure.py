"""Paired timing and peak memory of several sides, each in a process of its own, and a description of the machine."""

import dataclasses
import gc
import importlib.metadata
import multiprocessing
import os
import pathlib
import platform
import resource
import statistics
import sys
import time
import traceback

STATUS = pathlib.Path("/proc/self/status")
CLEAR_REFERENCES = pathlib.Path("/proc/self/clear_refs")
RESET_PEAK = "5"  # what clear_refs takes to set the peak back to the present resident memory
WARM_UP_ROUNDS = 2
PAUSE = 0.03  # seconds before a step: threads that wait by spinning go to sleep, and do not slow the next side
LIBRARY_VARIABLES = ("OPENBLAS_", "OMP_", "MKL_", "SHERL_")  # beginnings of variables that change speed


class SideError(RuntimeError):
    """A side failed in its process; the message holds the traceback from there."""


class Side:
    """A side of a comparison, built and run in a process of its own.

    Processes keep the sides apart: neither the threads nor the memory of one is seen by another.

    Parameters
    ----------
    build : callable
        Called as ``build(*arguments)`` in the new process; importable by name. Returns an object whose ``step()``
        is what is timed; its other methods are reached through `call`.
    *arguments
        Arguments of ``build``.
    """

    def __init__(self, build, *arguments):
        context = multiprocessing.get_context("spawn")
        self._connection, other = context.Pipe()
        self._process = context.Process(target=_serve, args=(other, build, arguments), daemon=True)
        self._process.start()
        other.close()
        self._receive()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()

    def close(self):
        """End the process."""
        self._connection.close()
        self._process.join()

    def call(self, method, *arguments):
        """Result of ``method(*arguments)`` of the object that ``build`` returned."""
        return self._ask("call", method, *arguments)

    def seconds(self):
        """Wall-clock seconds of one step."""
        return self._ask("seconds")

    def growth(self, steps):
        """Bytes by which resident memory peaks, during some steps, above what it was before them."""
        return self._ask("growth", steps)

    def _ask(self, *request):
        self._connection.send(request)
        return self._receive()

    def _receive(self):
        try:
            failed, answer = self._connection.recv()
        except EOFError:
            self._process.join()
            raise SideError(f"the process of a side ended with exit code {self._process.exitcode}") from None
        if failed:
            raise SideError(answer)
        return answer


def _serve(connection, build, arguments):
    """Answer requests of a `Side` until its end of the connection is closed."""
    try:
        subject = build(*arguments)
        connection.send((False, None))
        while True:
            kind, *rest = connection.recv()
            connection.send((False, _ANSWERS[kind](subject, *rest)))
    except EOFError:
        pass
    except Exception:
        connection.send((True, traceback.format_exc()))


def _call(subject, method, *arguments):
    return getattr(subject, method)(*arguments)


def _seconds(subject):
    start = time.perf_counter()
    subject.step()
    return time.perf_counter() - start


def _growth(subject, steps):
    gc.collect()
    before = start_peak()
    for _ in range(steps):
        subject.step()
    return max(0, peak() - before)


_ANSWERS = {"call": _call, "seconds": _seconds, "growth": _growth}


def start_peak():
    """Begin a new measurement of peak resident memory; returns the resident bytes at its start.

    Where the system cannot set the peak back, the peak so far takes the place of the resident memory: what comes out
    is then the growth of the peak, which is smaller if loading took more memory than it kept.
    """
    if CLEAR_REFERENCES.exists():
        CLEAR_REFERENCES.write_text(RESET_PEAK)
    return peak()


def peak():
    """Peak resident bytes of this process since `start_peak`, or since its start where there is no /proc."""
    if STATUS.exists():
        lines = STATUS.read_text().splitlines()
        return 1024 * next(int(line.split()[1]) for line in lines if line.startswith("VmHWM:"))
    unit = 1 if sys.platform == "darwin" else 1024
    return unit * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


@dataclasses.dataclass(frozen=True)
class Timing:
    """Seconds of one side, a value a round."""

    rounds: tuple

    @property
    def median(self):
        return statistics.median(self.rounds)

    @property
    def minimum(self):
        return min(self.rounds)

    @property
    def spread(self):
        """Distance between the first and the third quartile."""
        return spread(self.rounds)

    def ratio(self, other):
        """Median over the rounds of this side's time over the other's in the same round."""
        return statistics.median(mine / theirs for mine, theirs in zip(self.rounds, other.rounds))


def spread(values):
    """Distance between the first and the third quartile."""
    first, _, third = statistics.quantiles(values, n=4, method="inclusive")
    return third - first


def paired(sides, repeats, warm_up=WARM_UP_ROUNDS):
    """Time sides in turn, so that a slow spell of the machine falls on all of them.

    Parameters
    ----------
    sides : dict of str to Side
    repeats : int
        Rounds, two or more. In each, every side takes one step; the side that begins changes from round to round.
    warm_up : int
        Rounds before them that do not count.

    Returns
    -------
    dict of str to Timing
    """
    if repeats < 2:
        raise ValueError(f"repeats must be 2 or more, got {repeats}")
    names = list(sides)
    seconds = {name: [] for name in names}
    for index in range(warm_up + repeats):
        first = index % len(names)
        for name in names[first:] + names[:first]:
            time.sleep(PAUSE)
            taken = sides[name].seconds()
            if index >= warm_up:
                seconds[name].append(taken)
    return {name: Timing(tuple(rounds)) for name, rounds in seconds.items()}


def machine(packages=()):
    """One line on the processor, memory and system, the versions of some packages, and variables that change speed."""
    parts = [processor(), f"{usable_processors()} CPUs"]
    if hasattr(os, "sysconf") and "SC_PHYS_PAGES" in os.sysconf_names:
        parts.append(f"{os.sysconf('SC_PHYS_PAGES') * os.sysconf('SC_PAGE_SIZE') / 2**30:.0f} GiB")
    parts += [f"{platform.system()} {platform.release()} {platform.machine()}", f"Python {platform.python_version()}"]
    parts += [f"{name} {importlib.metadata.version(name)}" for name in packages]
    parts += [f"{name}={value}" for name, value in sorted(os.environ.items()) if name.startswith(LIBRARY_VARIABLES)]
    return ", ".join(parts)


def processor():
    """Name of the processor, as far as the system tells it."""
    information = pathlib.Path("/proc/cpuinfo")
    if information.exists():
        for line in information.read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


def usable_processors():
    """Number of logical processors that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
