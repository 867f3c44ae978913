"""A process that is killed during `fit` loses no more than the steps since its last checkpoint, and no bit."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from small import network, problem, same_bits
from test_fit import course

import sherl

pytestmark = pytest.mark.core

TESTS = Path(__file__).parent
SETTINGS = {"epochs": 3, "batch_size": 5, "accumulate": 2, "learning_rate": 1e-2, "restore_best": True, "ema": 0.9,
            "bucket_by_length": True, "progress": False}

TRAINING = """
import json, os, signal, sys
from pathlib import Path
import numpy as np
import sherl
from sherl.training import stepper
from small import network, problem
from test_killed_training import SETTINGS

folder, calls, left = Path(sys.argv[1]), 0, int(sys.argv[2])

def mortal(function):
    # Ends the process, as a loss of power would, in the given call, counted over all of these functions.
    def called(*arguments, **options):
        global calls
        calls += 1
        if calls == left:
            os.kill(os.getpid(), signal.SIGKILL)
        return function(*arguments, **options)
    return called

for name in ("fsync", "replace", "chmod"):
    setattr(os, name, mortal(getattr(os, name)))

class Steps(sherl.Callback):
    on_step_end = mortal(lambda self, state: None)

resume = folder if (folder / "fit.npz").exists() else None
net = network(dropout=0.2)
history = net.fit(*problem(), **SETTINGS, validation=problem(30, seed=1), checkpoint=folder, checkpoint_every=2,
                  resume_from=resume, callbacks=[Steps()])
np.savez(folder / "outcome.npz", **net.state_dict())
(folder / "history.json").write_text(json.dumps(history.to_dict()))
print("calls", calls)
"""


def run(folder, call=0):
    """Train in a process of its own that gets killed in a call, if any; return its outcome."""
    path = os.pathsep.join([str(Path(sherl.__file__).parents[1]), str(TESTS)])
    done = subprocess.run([sys.executable, "-c", TRAINING, str(folder), str(call)], capture_output=True, text=True,
                          env={**os.environ, "PYTHONPATH": path}, timeout=600)
    assert done.returncode in (0, -signal.SIGKILL), done.stderr
    return done


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """What a training gives that nothing interrupts, and in how many calls it may be killed."""
    net = network(dropout=0.2)
    history = net.fit(*problem(), **SETTINGS, validation=problem(30, seed=1))
    calls = int(run(tmp_path_factory.mktemp("whole")).stdout.split()[-1])
    return net.state_dict(), json.loads(json.dumps(course(history))), calls


def assert_whole(folder, whole):
    state, history, _ = whole
    with np.load(folder / "outcome.npz") as found:
        assert same_bits(dict(found), state)
    found = json.loads((folder / "history.json").read_text())
    assert course(sherl.History.from_dict(found)) == history


@pytest.mark.parametrize("moment", [number / 8 for number in range(9)])
def test_killed_once(moment, whole, tmp_path):
    assert run(tmp_path, 1 + round(moment * (whole[2] - 1))).returncode == -signal.SIGKILL
    assert not (tmp_path / "outcome.npz").exists()
    assert run(tmp_path).returncode == 0
    assert_whole(tmp_path, whole)


def test_killed_again_and_again(whole, tmp_path):
    attempts = 1
    while run(tmp_path, whole[2] // 4).returncode != 0:
        attempts += 1
        assert attempts < 30
    assert attempts > 3
    assert_whole(tmp_path, whole)


def test_a_checkpoint_with_a_flipped_byte_is_refused_or_the_same(whole, tmp_path):
    def resumed():
        net = network(seed=9, dropout=0.2)
        net.fit(*problem(), **SETTINGS, validation=problem(30, seed=1), resume_from=tmp_path)
        return net.state_dict()

    run(tmp_path)
    path = tmp_path / "fit.npz"
    content = path.read_bytes()
    rng, refused = np.random.default_rng(0), 0
    # The directory at the end has the names and checksums; of a few facts of an archive, such as times, nothing hangs.
    for place in (*rng.integers(len(content), size=60), *(len(content) - rng.integers(1, 2000, size=60))):
        spoilt = bytearray(content)
        spoilt[place] ^= 1 << rng.integers(8)
        path.write_bytes(spoilt)
        try:
            assert same_bits(resumed(), whole[0]), place
        except ValueError as error:
            assert "resume_from: " in str(error) and str(tmp_path) in str(error)
            refused += 1
    assert refused > 60
