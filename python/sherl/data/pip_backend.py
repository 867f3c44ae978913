"""A build backend that only states a name and a version, so that pip hands over a source archive without running it."""

from __future__ import annotations

import os
from pathlib import Path

__all__ = ["write_inert_build_backend"]

_SOURCE = """\
import os
import sys

# pip asks for this attribute where a source archive names no backend of its own.
__legacy__ = sys.modules[__name__]


def prepare_metadata_for_build_wheel(metadata_directory, config_settings=None):
    name = {project!r} + "-" + {version!r} + ".dist-info"
    os.makedirs(os.path.join(metadata_directory, name))
    with open(os.path.join(metadata_directory, name, "METADATA"), "w") as stream:
        stream.write("Metadata-Version: 2.1\\nName: " + {project!r} + "\\nVersion: " + {version!r} + "\\n")
    return name
"""


def write_inert_build_backend(folder: Path, project: str, version: str) -> dict[str, str]:
    """Write a stand-in for setuptools and return the environment variables that make pip use it.

    ``pip download`` asks a source archive for its metadata even when no dependency is wanted, and for an archive of
    the setup.py kind that means running its setup.py with setuptools: foreign code, and a build tool that may not be
    there. The stand-in comes first on the module path of pip's helper process and answers with the name and version
    alone. It serves with ``--no-build-isolation``, as otherwise pip installs the real setuptools.

    Parameters
    ----------
    folder : pathlib.Path
        A folder to create.
    project, version : str
        What the archive's metadata shall say.

    Returns
    -------
    dict of str to str
        Environment variables for the pip process.
    """
    package = folder.absolute() / "setuptools"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("")
    (package / "build_meta.py").write_text(_SOURCE.format(project=project, version=version))
    earlier = os.environ.get("PYTHONPATH")
    return {
        "PYTHONPATH": str(package.parent) + (os.pathsep + earlier if earlier else ""),
        # Ask for the backend where pip would still call setup.py by itself (before 23.1, with setuptools installed).
        "PIP_USE_PEP517": "1",
        # An installed setuptools otherwise routes `import distutils` to itself, which the stand-in hides.
        "SETUPTOOLS_USE_DISTUTILS": "stdlib",
        "PYTHONDONTWRITEBYTECODE": "1",
    }
