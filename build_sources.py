"""What the C core is made of and how it is compiled: sources, flags, instruction sets and the BLAS.

Shared by setup.py, which builds the extension modules, and tests/c/run.py, which builds the C tests.
"""

import hashlib
import os
import re
import shlex
import subprocess
import sys
import sysconfig
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent

# The kernels are compiled once for each of these; the core picks one at run time.
X86_INSTRUCTION_SETS = {
    "avx512bf16": ["-march=x86-64-v4", "-mavx512bf16"],
    "avx512": ["-march=x86-64-v4"],
    "avx2": ["-march=x86-64-v3"],
    "baseline": [],
}
PORTABLE_INSTRUCTION_SETS = {"baseline": []}

# -std=c11 would hide the POSIX threads and clocks that the core uses, hence _GNU_SOURCE.
# A product and a sum may fuse, but nothing else that breaks infinities or the order of a sum is allowed.
# Clang would warn of each loop that it could not vectorize, which at -O1 is every one.
C_FLAGS = [
    *["-std=c11", "-D_GNU_SOURCE", "-fPIC", "-pthread", "-fvisibility=hidden", "-Wall", "-Wextra", "-Wno-pass-failed"],
    *["-ffp-contract=fast", "-fopenmp-simd", "-fno-math-errno", "-fno-trapping-math"],
    *["-Isherl_c/include", "-Isherl_c"],
]


class BuildError(Exception):
    """A tool, a library or a compilation that the build needs failed; the message says which."""


@dataclass(frozen=True)
class Unit:
    """One compilation: a source below the project's folder, and the flags that only it gets."""

    source: str
    flags: tuple[str, ...] = ()
    variant: str = ""


@dataclass(frozen=True)
class Blas:
    """Flags that compile and link against a BLAS, and its shared library and licence where a copy is to be shipped."""

    compile_flags: list[str]
    link_flags: list[str]
    library: Path | None = None
    license: Path | None = None
    version: str = ""


def version() -> str:
    """The package's version, which pyproject.toml alone states."""
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    return re.search(r'^version = "(.+)"$', text, re.MULTILINE).group(1)


def sources(pattern: str) -> list[str]:
    """Files below the project's folder, in an order that does not depend on the file system."""
    return sorted(path.relative_to(ROOT).as_posix() for path in ROOT.glob(pattern))


def core_units() -> list[Unit]:
    """The compilations of the C core: every source once, and each kernel once for each instruction set."""
    kernels = sources("sherl_c/ops/kernels/*.c")
    units = [Unit(source) for source in sources("sherl_c/**/*.c") if source not in kernels]
    for name, flags in instruction_sets().items():
        units += [Unit(source, (f"-DSHERL_ISA={name}", *flags), name) for source in kernels]
    return units


def binding_units(include_folders: list[str]) -> list[Unit]:
    """The compilations of the CPython binding; warnings in the headers of Python and NumPy are not this project's."""
    flags = [flag for folder in include_folders for flag in ("-isystem", folder)]
    flags.append("-DNPY_NO_DEPRECATED_API=NPY_2_0_API_VERSION")
    return [Unit(source, tuple(flags)) for source in sources("python/binding/*.c")]


def instruction_sets() -> dict[str, list[str]]:
    """Instruction sets of the kernels, with the flags that select each."""
    return X86_INSTRUCTION_SETS if is_x86_64() else PORTABLE_INSTRUCTION_SETS


def is_x86_64() -> bool:
    return sysconfig.get_platform().endswith(("x86_64", "amd64"))


def compile_flags(sanitize: str = "", warnings_are_errors: bool = False) -> list[str]:
    """Flags of every compilation, core and binding."""
    flags = [*C_FLAGS, f'-DSHERL_VERSION="{version()}"']
    if is_x86_64():
        flags += ["-DSHERL_HAVE_X86_LEVELS=1"]
    flags += ["-O1", "-g", "-fno-omit-frame-pointer", *sanitizer_flags(sanitize)] if sanitize else ["-O3"]
    return flags + (["-Werror"] if warnings_are_errors else [])


def sanitizer_flags(sanitize: str) -> list[str]:
    """Flags of compilation and linking for a list such as "address,undefined"; a finding ends the program."""
    return [f"-fsanitize={sanitize}", "-fno-sanitize-recover=all"] if sanitize else []


def find_blas() -> Blas:
    """The BLAS that SHERL_BLAS names: "scipy" (the scipy-openblas32 package) or "system" (pkg-config openblas)."""
    default = "scipy" if sys.platform.startswith("linux") else "system"
    choice = os.environ.get("SHERL_BLAS") or default
    if choice == "scipy":
        return scipy_openblas()
    if choice == "system":
        return Blas(pkg_config("--cflags"), pkg_config("--libs"))
    raise BuildError(f'SHERL_BLAS must be "scipy" or "system", not "{choice}"')


def scipy_openblas() -> Blas:
    try:
        import scipy_openblas32
    except ImportError:
        raise BuildError(
            "the build needs the scipy-openblas32 package; install it, or set SHERL_BLAS=system to use the "
            "system's OpenBLAS"
        ) from None
    from importlib.metadata import distribution

    folder, name = Path(scipy_openblas32.get_lib_dir()), scipy_openblas32.get_library()
    package = distribution("scipy-openblas32")
    licenses = [file for file in package.files if "licenses/" in file.as_posix() or file.name.startswith("LICENSE")]
    if not licenses:
        raise BuildError("the scipy-openblas32 package has no licence file, and its library may not be copied without")
    return Blas(
        ["-I" + scipy_openblas32.get_include_dir(), "-DBLAS_SYMBOL_PREFIX=scipy_", "-DSHERL_BLAS_SCIPY=1"],
        [f"-L{folder}", f"-l{name}", f"-Wl,-rpath,{folder}"],
        folder / f"lib{name}.so",
        Path(package.locate_file(licenses[0])),
        package.version,
    )


def pkg_config(option: str) -> list[str]:
    command = ["pkg-config", option, "openblas"]
    try:
        return shlex.split(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    except FileNotFoundError:
        raise BuildError("SHERL_BLAS=system needs pkg-config, which was not found") from None
    except subprocess.CalledProcessError as error:
        raise BuildError(f"SHERL_BLAS=system: {error.stderr.strip()}") from None


def compile_all(compiler: list[str], work: list[tuple[Unit, list[str]]], folder: Path) -> list[Path]:
    """Compile each unit with its flags, as many at once as there are processors; objects come in the order of the work.

    An object that is newer than its source and every header that it read is kept. Objects of different flags lie
    in different folders, so a change of flags never meets a stale one.
    """
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        return list(pool.map(lambda item: _compile(compiler, *item, folder), work))


def _compile(compiler: list[str], unit: Unit, flags: list[str], folder: Path) -> Path:
    command = [*compiler, *flags, *unit.flags]
    digest = hashlib.sha256("\0".join(command).encode()).hexdigest()[:12]
    object_file = (folder / digest / unit.source).with_suffix(".o").absolute()
    dependencies = object_file.with_suffix(".d")
    if _is_current(object_file, dependencies):
        return object_file
    object_file.parent.mkdir(parents=True, exist_ok=True)
    print("compile", unit.source, unit.variant, flush=True)
    # Written beside its place and then moved there: two builds at once never link half an object.
    partial = object_file.with_suffix(f".{os.getpid()}.o")
    output = ["-MMD", "-MF", str(dependencies), "-MT", "object", "-c", unit.source, "-o", str(partial)]
    run([*command, *output])
    os.replace(partial, object_file)
    return object_file


def _is_current(object_file: Path, dependencies: Path) -> bool:
    """Whether an object is newer than every file that the compiler listed when it made it."""
    try:
        listed = dependencies.read_text().replace("\\\n", " ").split()[1:]
        made = object_file.stat().st_mtime
        return all((ROOT / name).stat().st_mtime < made for name in listed)
    except FileNotFoundError:
        return False


def run(command: list[str]) -> None:
    """Run a tool of the build in the project's folder; BuildError when it fails."""
    try:
        subprocess.run(command, check=True, cwd=ROOT)
    except FileNotFoundError:
        raise BuildError(f"the build needs {command[0]}, which was not found") from None
    except subprocess.CalledProcessError as error:
        raise BuildError(f"exit code {error.returncode} from: {shlex.join(command)}") from None
