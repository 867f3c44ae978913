"""What the tests share: the table of agreement with the reference outputs at the end of a run, and the thread count."""

import signal
import sys

import pytest

_AGREEMENT = pytest.StashKey()


def pytest_configure(config):
    config.stash[_AGREEMENT] = {}
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # as in a shell's background job: tests send interrupts
        signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture
def agreement(request):
    """Worst relative error of outputs and of all else by reference file, each with its name; printed at the end."""
    return request.config.stash[_AGREEMENT]


@pytest.fixture
def keep_threads():
    """Set the number of threads back after a test that changes it."""
    import sherl

    before = sherl.get_num_threads()
    yield
    sherl.set_num_threads(before)


@pytest.fixture
def double_core(monkeypatch):
    """Let the package compute in float64, with the core that is compiled for tests."""
    import sherl
    from sherl import _core_double

    single = sherl._core
    for name, module in list(sys.modules.items()):
        if name.startswith("sherl.") and getattr(module, "_core", None) is single:
            monkeypatch.setattr(module, "_core", _core_double)


def pytest_terminal_summary(terminalreporter, config):
    worst = config.stash[_AGREEMENT]
    if not worst:
        return
    terminalreporter.section("worst relative error by reference file")
    width = max(map(len, worst))
    terminalreporter.write_line(f"{'':{width}}   output  gradient")
    for name, kinds in worst.items():
        output, (other, what) = kinds["output"][0], kinds["other"]
        terminalreporter.write_line(f"{name:{width}}  {output:7.1e}   {other:7.1e}  {what}")
