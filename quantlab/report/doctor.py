"""Which packages are here that quantlab can use, and whether those with compiled code load."""

import os
import platform
from collections.abc import Iterator
from importlib import import_module
from importlib.metadata import PackageNotFoundError, distribution, version
from typing import NamedTuple

from packaging.requirements import Requirement

import quantlab
from quantlab.formats.ggml import load_library
from quantlab.report.tables import Table
from quantlab.report.terminal import render
from quantlab.stats.parallel import usable_cores
from quantlab.text import NULL

HEADS = ("extra", "package", "version", "")
COMPILED = ("safetensors", "onnx", "onnxruntime")
MARKER = "extra"  # the name, in a requirement's marker, of the extra that it is of


class Extra(NamedTuple):
    """A package of an extra, its version or None, and whether it can be used or what to do."""

    name: str
    package: str
    version: str | None
    state: str


def diagnose() -> str:
    """Say which versions and extras are here, a line each, and what to install for the others."""
    rows = [(e.name, e.package, e.version or NULL, e.state) for e in find_extras()]
    return render(_describe_machine(), Table(HEADS, rows, words=(1, 2, 3, 4)))


def _describe_machine() -> str:
    return (
        f"quantlab {quantlab.__version__}, Python {platform.python_version()}, NumPy "
        f"{version('numpy')}, {platform.system()} {platform.machine()}, {usable_cores()} of "
        f"{os.cpu_count()} cores"
    )


def find_extras() -> Iterator[Extra]:
    """Yield each package of each extra, as the metadata of quantlab list them.

    Raises ValueError in a clone that is not installed, which has none.
    """
    try:
        own = distribution("quantlab")
    except PackageNotFoundError:
        raise ValueError("quantlab is not installed here: run pip install . in its clone") from None
    requirements = [Requirement(text) for text in own.requires or ()]
    for extra in own.metadata.get_all("Provides-Extra") or ():
        for requirement in requirements:
            marker = requirement.marker
            if marker and MARKER in str(marker) and marker.evaluate({MARKER: extra}):
                yield _inspect(extra, requirement)


def _inspect(extra: str, requirement: Requirement) -> Extra:
    package = requirement.name
    try:
        installed = version(package)
    except PackageNotFoundError:
        return Extra(
            extra, package, None, f"missing: pip install '{package}{requirement.specifier}'"
        )
    if not requirement.specifier.contains(installed):
        return Extra(extra, package, installed, f"takes {requirement.specifier}")
    return Extra(extra, package, installed, _try_load(package))


def _try_load(package: str) -> str:
    """Load the compiled code of a package, and say whether that works."""
    try:
        if package == "xllamacpp":
            load_library()
        elif package == "numba":
            import_module("quantlab.stats.kernel")  # which Numba compiles when it is imported
        elif package in COMPILED:
            import_module(package)
        else:
            return "installed"
    except Exception as reason:  # whatever a library that does not fit the machine raises
        return f"does not load: {' '.join(str(reason).split()) or repr(reason)}"
    return "loads"
