"""Builds the extension modules sherl._core (float32) and sherl._core_double (float64) from the same C sources.

The metadata is in pyproject.toml; build_sources.py has the sources, the flags and the search for a BLAS.
Environment: SHERL_BLAS=scipy|system, SHERL_WERROR=1, SHERL_SANITIZE=address,undefined.
"""

import os
import re
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext
from setuptools.errors import CompileError

sys.path.insert(0, str(Path(__file__).resolve().parent))
import build_sources

# What the bundled OpenBLAS may need: the C library of any Linux, nothing that would have to be shipped too.
SYSTEM_LIBRARIES = re.compile(r"(libc|libm|libpthread|ld-linux[\w-]*|libc\.musl-\w+)\.so(\.\d+)?")


class BuildCore(build_ext):
    """Compiles the units of both modules in one pool, links them and puts a private OpenBLAS beside them."""

    def run(self):
        try:
            super().run()
        except build_sources.BuildError as error:
            raise CompileError(str(error)) from None

    def build_extensions(self):
        import numpy

        blas = build_sources.find_blas()
        sanitize = os.environ.get("SHERL_SANITIZE", "")
        flags = build_sources.compile_flags(sanitize, os.environ.get("SHERL_WERROR") == "1")
        include_folders = [sysconfig.get_path("include"), sysconfig.get_path("platinclude"), numpy.get_include()]
        units = build_sources.core_units() + build_sources.binding_units(sorted(set(include_folders)))
        work = [
            (unit, [*flags, *blas.compile_flags, *(f"-D{name}" for name, _ in extension.define_macros)])
            for extension in self.extensions
            for unit in units
        ]
        objects = build_sources.compile_all(list(self.compiler.compiler_so), work, Path(self.build_temp))
        library = self.copy_openblas(blas)
        link_flags = blas.link_flags if library is None else [str(library), "-Wl,-rpath,$ORIGIN/_openblas"]
        for index, extension in enumerate(self.extensions):
            own = objects[index * len(units) : (index + 1) * len(units)]
            self.link(extension, own, [*build_sources.sanitizer_flags(sanitize), *link_flags, "-lm", "-pthread"])

    def link(self, extension, objects, flags):
        target = Path(self.get_ext_fullpath(extension.name)).absolute()
        partial = target.with_suffix(".partial")
        target.parent.mkdir(parents=True, exist_ok=True)
        build_sources.run([*self.compiler.linker_so, *map(str, objects), *flags, "-o", str(partial)])
        os.replace(partial, target)

    def copy_openblas(self, blas):
        """Put the library under a name and SONAME of its own into the package that is built, with its licence.

        The loader takes libraries with one SONAME for the same; under its old one, another package's copy could
        stand in for this one, and its settings be shared.
        """
        folder = Path(self.build_lib, "sherl", "_openblas").absolute()
        library = folder / f"libsherl_openblas-{blas.version}.so"
        if blas.library and library.exists():
            return library
        shutil.rmtree(folder, ignore_errors=True)
        if blas.library is None:
            return None
        folder.mkdir(parents=True)
        partial = library.with_suffix(".partial")
        shutil.copy(blas.license, folder / "LICENSE.txt")
        shutil.copy(blas.library, partial)
        patchelf("--set-soname", library.name, partial)
        foreign = [name for name in patchelf("--print-needed", partial).split() if not SYSTEM_LIBRARIES.fullmatch(name)]
        if foreign:
            raise build_sources.BuildError(f"{blas.library} needs {', '.join(foreign)}, which would have to be bundled "
                                           "too")
        os.replace(partial, library)
        return library

    def copy_extensions_to_source(self):
        """An in-place or editable build has the modules in the source folder, and there they look for OpenBLAS too."""
        built = Path(self.build_lib, "sherl", "_openblas")
        target = Path(self.get_finalized_command("build_py").get_package_dir("sherl"), "_openblas")
        if built.exists():
            target.mkdir(exist_ok=True)
            for file in built.iterdir():
                partial = target / (file.name + ".partial")
                shutil.copy(file, partial)
                os.replace(partial, target / file.name)
        super().copy_extensions_to_source()


def patchelf(option, *arguments):
    # The patchelf package puts its program beside Python's, a folder that need not be on the search path.
    program = shutil.which("patchelf") or shutil.which("patchelf", path=sysconfig.get_path("scripts"))
    if program is None:
        raise build_sources.BuildError("the build needs the patchelf package, which was not found")
    command = [program, option, *map(str, arguments)]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def extension(name, macros):
    files = {
        "sources": [unit.source for unit in build_sources.binding_units([])] + build_sources.sources("sherl_c/**/*.c"),
        "depends": build_sources.sources("sherl_c/**/*.h") + build_sources.sources("python/binding/*.h"),
    }
    return Extension(name, define_macros=macros, **files)


setup(
    cmdclass={"build_ext": BuildCore},
    ext_modules=[extension("sherl._core", []), extension("sherl._core_double", [("SHERL_DOUBLE", None)])],
)
