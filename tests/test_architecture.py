import json
import subprocess
import sys

import pytest

CORE = [
    "quant", "dist", "files", "metrics", "rank", "predict", "stream", "experiment", "record",
    "terminal", "verdict", "measurement",
]  # fmt: skip
NUMERICS = {
    "quant": set(),
    "histogram": set(),
    "rank": set(),
    "predict": set(),
    "metrics": {"histogram"},
    "counts": {"quant"},
    "roundtrip": {"quant"},
}


def modules_after(code):
    code += "; import json, sys; print(json.dumps(list(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return set(json.loads(done.stdout.splitlines()[-1]))


@pytest.mark.parametrize("module", CORE)
def test_the_core_needs_neither_hydra_nor_pandas_nor_matplotlib(module):
    assert not {"hydra", "omegaconf", "pandas", "matplotlib"} & modules_after(
        f"import quantlab.{module}"
    )


@pytest.mark.parametrize(("module", "others"), NUMERICS.items())
def test_the_numerics_import_nothing_of_ours_but_each_other(module, others):
    ours = {name for name in modules_after(f"import quantlab.{module}") if "quantlab" in name}
    assert ours == {"quantlab", *(f"quantlab.{name}" for name in {module, *others})}


def test_a_single_run_imports_neither_pandas_nor_matplotlib(tmp_path):
    code = (
        f"import runpy, sys; sys.argv = ['run.py', 'hydra.sweep.dir={tmp_path}']; "
        "runpy.run_path('run.py', run_name='__main__')"
    )
    loaded = modules_after(code)
    assert "quantlab.stream" in loaded
    assert not {"pandas", "matplotlib"} & loaded
