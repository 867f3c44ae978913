"""The C tests, which use the core through its C API alone, pass with AddressSanitizer and UBSan watching."""

import subprocess
import sys
from pathlib import Path

RUNNER = Path(__file__).parent / "c" / "run.py"


def test_c_programs_pass_under_sanitizers():
    result = subprocess.run([sys.executable, RUNNER, "--sanitize"], capture_output=True, text=True)
    assert result.returncode == 0, result.stdout + result.stderr
    assert " 0 failed" in result.stdout


def test_runner_fails_when_no_test_has_the_name():
    result = subprocess.run([sys.executable, RUNNER, "no_such_test"], capture_output=True, text=True)
    assert result.returncode == 2
    assert "no_such_test" in result.stderr
