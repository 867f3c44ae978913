"""Builds every tests/c/test_*.c with the C core in float32 and runs it, plain, under sanitizers or under valgrind.

    python tests/c/run.py [--sanitize | --valgrind] [name ...]

The exit code is 0 only when every test built and passed. The BLAS is the one of the package's build: scipy-openblas32
unless SHERL_BLAS=system; the compiler is $CC or cc.
"""

import argparse
import os
import shlex
import subprocess
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
import build_sources
from build_sources import BuildError, Unit

SANITIZERS = "address,undefined"
SECONDS_A_TEST = 600
# Memory of threads that still wait for work at the end counts as possibly lost; only what surely is lost fails.
LEAKS = "definite,indirect"
VALGRIND = ["valgrind", "--quiet", "--error-exitcode=99", "--leak-check=full"]
VALGRIND += [f"--show-leak-kinds={LEAKS}", f"--errors-for-leak-kinds={LEAKS}"]
# Valgrind has no AVX-512, so both the core and OpenBLAS must be kept from picking it.
VALGRIND_ENVIRONMENT = {"SHERL_INSTRUCTION_SET": "avx2", "OPENBLAS_CORETYPE": "Haswell"}


def main() -> int:
    arguments = parse_arguments()
    sources = [source for source in build_sources.sources("tests/c/test_*.c") if is_wanted(source, arguments.names)]
    if not sources:
        print(f"no test in tests/c has a name of {arguments.names}", file=sys.stderr)
        return 2
    try:
        programs = build(sources, SANITIZERS if arguments.sanitize else "")
    except BuildError as error:
        print(error, file=sys.stderr)
        return 1
    failed = [program.name for program in programs if not passes(program, arguments.valgrind)]
    print("".join(f"failed: {name}\n" for name in failed)
          + f"tests/c: {len(programs) - len(failed)} passed, {len(failed)} failed")
    return 1 if failed else 0


def parse_arguments():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    how = parser.add_mutually_exclusive_group()
    how.add_argument("--sanitize", action="store_true", help="build with AddressSanitizer and UBSan; leaks fail too")
    how.add_argument("--valgrind", action="store_true", help="run under valgrind; definite leaks fail too")
    parser.add_argument("names", nargs="*", help="names of tests, such as linear or test_linear.c; all by default")
    return parser.parse_args()


def is_wanted(source: str, names: list[str]) -> bool:
    stem = Path(source).stem
    return not names or any(Path(name).stem in (stem, stem.removeprefix("test_")) for name in names)


def build(sources: list[str], sanitize: str) -> list[Path]:
    """Compile the core once and link each test with it; returns the programs."""
    blas = build_sources.find_blas()
    compiler = shlex.split(os.environ.get("CC", "cc"))
    # Only the optimized build can be held to no warnings: at -O1 GCC takes variables for uninitialized that are not.
    flags = [*build_sources.compile_flags(sanitize, warnings_are_errors=not sanitize), "-g", *blas.compile_flags]
    units = [*map(Unit, sources), *build_sources.core_units()]
    folder = build_sources.ROOT / "build" / "c-tests"
    objects = build_sources.compile_all(compiler, [(unit, flags) for unit in units], folder)
    tests, core = objects[: len(sources)], objects[len(sources) :]
    link_flags = [*build_sources.sanitizer_flags(sanitize), *blas.link_flags, "-lm", "-pthread"]
    programs = []
    for test in tests:
        programs.append(test.with_suffix(""))
        build_sources.run([*compiler, str(test), *map(str, core), *link_flags, "-o", str(programs[-1])])
    return programs


def passes(program: Path, valgrind: bool) -> bool:
    environment = dict(os.environ)
    environment.update(ASAN_OPTIONS="detect_leaks=1", UBSAN_OPTIONS="print_stacktrace=1")
    if valgrind and build_sources.is_x86_64():
        environment.update(VALGRIND_ENVIRONMENT)
    command = [*(VALGRIND if valgrind else []), str(program)]
    print("run", *command, flush=True)
    try:
        result = subprocess.run(command, env=environment, cwd=program.parent, timeout=SECONDS_A_TEST)
    except subprocess.TimeoutExpired:
        print(f"{program.name} took over {SECONDS_A_TEST} s", file=sys.stderr)
        return False
    if result.returncode:
        print(f"{program.name} ended with {result.returncode}", file=sys.stderr)
    return result.returncode == 0


if __name__ == "__main__":
    sys.exit(main())
