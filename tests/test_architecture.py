"""The rooms of the house, and the one way in which imports run."""

import ast
import json
import subprocess
import sys
from functools import cache
from graphlib import TopologicalSorter

import pytest

from tests.conftest import ROOT

PACKAGE = ROOT / "quantlab"
ROOMS = ["formats", "sources", "stats", "models", "records", "report", "plans", "sweep"]
LOOSE = [
    "__init__", "__main__", "conf", "errors", "experiment", "interrupt", "measurement", "quant",
    "text", "verify",
]  # fmt: skip
# Each may import those before it.
ORDER = [
    "text", "conf", "interrupt", "formats", "quant", "sources", "stats", "models", "records",
    "report", "plans", "experiment", "measurement", "errors", "sweep", "verify", "__main__",
    "__init__",
]  # fmt: skip
FILES = {path.relative_to(PACKAGE).as_posix(): path for path in PACKAGE.rglob("*.py")}
OF_A_WHOLE_ROOM = {
    "tests/records/test_hostile.py",
    "tests/report/test_browser.py",
    "tests/sources/test_fuzz.py",
    "tests/sources/test_published.py",
    "tests/sweep/test_engines.py",
    "tests/sweep/test_parts.py",
}
KIND = "kinds of checkpoints whose codes are stored alike, with their formulas"
RUNTIME = "the terms of one runtime"
READER = "one container, which its yaml names"
APART = {  # modules with one user, one of their room, and why they stand alone
    **{f"sources/kinds/{name}.py": KIND for name in ("packed", "scaled", "small_floats")},
    "sources/numpy.py": READER,
    **{
        f"plans/runtimes/{name}.py": RUNTIME
        for name in ("llama_cpp", "mlx", "onnxruntime", "torch")
    },
    "sources/views.py": "what is put together of stored tensors; pairing says which is which",
    "plans/page.py": "matplotlib, which quantlab.plan in Python does without",
    "sweep/jobs.py": "the runs of a sweep before any starts; launch is what happens to them",
}
LIGHT = [
    *(f"{room}.{path.stem}" for room in ROOMS[:3] for path in (PACKAGE / room).glob("[a-z]*.py")),
    "records.record", "report.choices", "report.terminal", "experiment",
    "measurement", "quant",
]  # fmt: skip


def room(module):
    """Return the room or loose module of a file or a dotted name below the package."""
    return module.removesuffix(".py").replace("/", ".").split(".")[0]


@cache
def imports(path):
    """Return every module that a file names in an import, wherever the import stands."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{path} has a relative import"
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


@cache
def own_imports(path):
    """Return those of the package, as dotted names below it; the package itself is none."""
    prefix = "quantlab."
    return {name.removeprefix(prefix) for name in imports(path) if name.startswith(prefix)}


def modules_after(code):
    code += "; import json, sys; print(json.dumps(list(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return set(json.loads(done.stdout.splitlines()[-1]))


def test_the_rooms_are_those_announced():
    folders = {path.name for path in PACKAGE.iterdir() if path.is_dir()} - {"__pycache__"}
    assert folders == set(ROOMS)
    assert {path.stem for path in PACKAGE.glob("*.py")} == set(LOOSE)
    assert len(LOOSE) <= 10
    assert set(ORDER) == {*ROOMS, *LOOSE}


@pytest.mark.parametrize("name", FILES)
def test_imports_run_one_way(name):
    here = room(name)
    before = ORDER[: ORDER.index(here) + 1]
    for module in own_imports(FILES[name]):
        assert room(module) in before, f"quantlab/{name} imports quantlab.{module}, a later room"


@pytest.mark.parametrize("here", ROOMS)
def test_a_room_has_no_circle(here):
    files = {name: path for name, path in FILES.items() if room(name) == here}
    modules = {name.removesuffix(".py").replace("/", "."): path for name, path in files.items()}
    graph = {
        module: {
            other
            for other in modules
            for imported in own_imports(path)
            if other != module and (imported == other or imported.startswith(f"{other}."))
        }
        for module, path in modules.items()
    }
    TopologicalSorter(graph).prepare()  # raises CycleError, which names the circle


def test_a_module_with_one_user_belongs_into_it():
    users = {name: set() for name in FILES if "/" in name and "__init__" not in name}
    modules = {name.removesuffix(".py").replace("/", "."): name for name in users}
    for name, path in FILES.items():
        for imported in own_imports(path):
            used = modules.get(imported) or modules.get(imported.rpartition(".")[0])
            if used and used != name:
                users[used].add(name)
    alone = {
        name
        for name, importers in users.items()
        if len(importers) == 1 and room(next(iter(importers))) == room(name)
    }
    assert alone == APART.keys()


@pytest.mark.parametrize("here", ROOMS)
def test_a_room_says_what_it_is_for_and_nothing_else(here):
    tree = ast.parse((PACKAGE / here / "__init__.py").read_text())
    paragraph = ast.get_docstring(tree).split()
    assert len(tree.body) == 1
    assert len(paragraph) > 30
    assert {"know", "knows"} & set(paragraph)


@pytest.mark.parametrize("name", [name for name in FILES if room(name) in ("formats", "stats")])
def test_the_numerics_know_arrays_and_themselves_alone(name):
    known = {"ml_dtypes", "numpy", "quantlab", *sys.stdlib_module_names}
    assert {module.split(".")[0] for module in imports(FILES[name])} <= known


def test_the_tests_mirror_the_rooms():
    for here in ROOMS:
        for path in (ROOT / "tests" / here).glob("test_*.py"):
            module = path.stem.removeprefix("test_")
            stands = (PACKAGE / here / f"{module}.py").exists() or (
                PACKAGE / here / module
            ).is_dir()
            name = path.relative_to(ROOT).as_posix()
            assert stands or name in OF_A_WHOLE_ROOM, f"{name} tests no module of {here}"


def test_a_run_needs_neither_pandas_nor_matplotlib():
    heavy = {"hydra", "omegaconf", "pandas", "matplotlib"}
    code = (
        f"import importlib, sys\nfor name in {LIGHT}:\n"
        "    importlib.import_module('quantlab.' + name)\n"
        f"    assert not {heavy} & set(sys.modules), name"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert not done.returncode, done.stderr


def test_a_single_run_imports_neither_pandas_nor_matplotlib(tmp_path):
    code = (
        f"import runpy, sys; sys.argv = ['run.py', 'hydra.sweep.dir={tmp_path}']; "
        "runpy.run_path('run.py', run_name='__main__')"
    )
    loaded = modules_after(code)
    assert "quantlab.stats.measure" in loaded
    assert not {"pandas", "matplotlib"} & loaded
