"""run.py and ``python -m quantlab``, in processes of their own, as a person runs them."""

import json

import numpy as np
import pandas as pd
import pytest
from safetensors.numpy import save_file

import quantlab
from quantlab.records import record
from tests.conftest import run, run_python, run_quantlab
from tests.models.samples import two_layers

pytestmark = pytest.mark.usefixtures("undrawn")


def test_a_single_run_prints_and_keeps_its_figures(tmp_path):
    done = run("dist=hidden", "n_bits=4", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    (path,) = tmp_path.glob("multirun/*/hidden-sym-4bit-*/record.json")
    one = record.read(path)
    assert one["status"] == "completed"
    assert one["overrides"] == ["dist=hidden", "n_bits=4"]
    measured = one["tensors"]["hidden"]["measured"]
    assert f"{measured['sqnr_db']:.6g}" in done.stdout
    assert "predicted" in done.stdout
    assert str(path.relative_to(tmp_path)) in done.stdout
    assert (path.parent / ".hydra" / "config.yaml").exists()


def test_a_run_with_a_model_prints_what_its_answers_lost(tmp_path):
    path, inputs, *_ = two_layers(tmp_path)
    model = ["dist=file/onnx", f"dist.path={path}", "model=onnx", f"model.inputs={inputs}"]
    done = run(*model, "n_bits=4", "report.bar.kl=1", f"hydra.run.dir={tmp_path}/run")
    assert (done.returncode, done.stderr) == (0, "")
    heading, table, sentence = done.stdout.split("\n\n")[1:]
    assert heading == "Do the answers survive?"
    assert table.startswith("format     bits per value KL, bits KL p99 same first answer")
    assert sentence.startswith("probs, 70 answers: the fewest bits that meet the bar are those of")
    done = run("-m", *model, "n_bits=4,8", "report.bar.kl=1e-9", f"hydra.sweep.dir={tmp_path}/s")
    assert "probs, 70 answers: no format tried meets the bar; in the nearest, sym" in done.stdout
    verdict = json.loads((tmp_path / "s" / "verdict.json").read_bytes())
    assert [output["missed"] for output in verdict["answers"]] == [["kl"]]
    assert run_quantlab("check", tmp_path / "s").returncode == 1
    assert run_quantlab("check", tmp_path / "s", "report.bar.kl=1").returncode == 0


@pytest.mark.parametrize("sweep", [[], ["-m"]])
def test_a_setting_may_name_what_hydra_knows(tmp_path, sweep):
    values = [
        "name=${hydra:job.name}",
        "where=${hydra:runtime.output_dir}",
        "number=${oc.env:NUMBER}",
    ]
    notes = [f"+{value}" for value in values]
    done = run(*sweep, *notes, "+hydra.job.env_set.NUMBER=7", f"hydra.sweep.dir={tmp_path}")
    assert done.returncode == 0, done.stderr
    (path,) = tmp_path.glob("*/record.json")
    config = record.read(path)["config"]
    assert (config["name"], config["where"], config["number"]) == ("run", str(path.parent), "7")


def test_the_lab_lands_on_disk(lab_sweep):
    directory, printed = lab_sweep
    nested = json.loads((directory / "results.json").read_text())
    assert list(nested) == ["tense_logits", "verb_probs", "hidden"]
    for modes in nested.values():
        assert list(modes) == ["symmetric", "asymmetric"]
        for figures in modes.values():
            assert {"mae", "max_err", "rel_err", "cos_sim", "n_codes"} <= figures.keys()
    assert len(list(directory.glob("*/record.json"))) == 6
    assert (directory / "error_histogram.png").read_bytes().startswith(b"\x89PNG")
    for name in ("results.json", "results.csv", "manifest.json", "error_histogram.png"):
        assert str(directory / name) in printed


def test_a_record_holds_prediction_and_measurement(lab_sweep):
    directory, _ = lab_sweep
    for path in directory.glob("*/record.json"):
        for tensor in record.read(path)["tensors"].values():
            assert (
                tensor["predicted"].keys() - {"landmark", "words"}
                <= (tensor["measured"] | tensor["params"]).keys()
            )


@pytest.mark.slow
def test_all_widths_in_one_sweep(tmp_path):
    sweep = f"hydra.sweep.dir={tmp_path}/s"
    done = run("-m", "dist=glob(*)", "mode=sym,asym", "n_bits=range(2,17,7)", "rank.k=5", sweep)
    assert done.returncode == 0, done.stderr
    table = pd.read_csv(tmp_path / "s" / "results.csv")
    assert len(table) == 3 * 2 * 3
    assert set(table["n_bits"]) == {2, 9, 16}
    assert set(table["dist"]) == {"hidden", "tense_logits", "verb_probs"}
    assert (table["top_k"] == 5).all()
    assert "rel_err" in done.stdout
    again = run_quantlab("aggregate", tmp_path / "s")
    assert again.returncode == 0
    assert again.stdout in done.stdout


def test_other_settings_are_axes_too(tmp_path):
    done = run("-m", "seed=1,2", "dist.n=4096", f"hydra.sweep.dir={tmp_path}")
    assert done.returncode == 0, done.stderr
    nested = json.loads((tmp_path / "results.json").read_text())
    seeds = nested["verb_probs"]["symmetric"]
    assert list(seeds) == ["1", "2"]
    assert seeds["1"]["n_elements"] == 4096
    assert seeds["1"]["mae"] != seeds["2"]["mae"]


def test_run_directories_follow_what_was_asked_alone(lab_sweep, tmp_path):
    assert run("experiment=lab", f"hydra.sweep.dir={tmp_path}").returncode == 0
    names = {path.name for path in tmp_path.glob("*/")}
    assert names == {path.name for path in lab_sweep[0].glob("*/")}


def test_help_is_ours():
    done = run("--help")
    assert done.returncode == 0
    assert "Examples" in done.stdout
    assert "mode: asym, fp4" in done.stdout


def test_the_config_can_be_seen():
    done = run("--cfg", "job", "mode=asym")
    assert done.returncode == 0
    assert "zero_point: widen" in done.stdout


def test_completion_is_hydras():
    done = run("-sc", "install=bash")
    assert done.returncode == 0
    assert "complete" in done.stdout


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (
            ["dist=foo"],
            "dist=foo does not exist: choose one of activations, hidden, tense_logits, verb_probs",
        ),
        (["dist=ray"], "dist=ray does not exist: choose one of activations, hidden, tense_logits"),
        (["mode=foo"], "mode=foo does not exist: choose one of asym, fp4"),
        (["n_bits=99"], "n_bits must be a whole number from 2 to 16, got 99"),
        (["n_bits=1"], "n_bits must be a whole number from 2 to 16, got 1"),
        (["n_bits=abc"], "n_bits must be a whole number from 2 to 16, got 'abc'"),
        (["dist.n=-5"], "dist.n must be a whole number of 1 or more, got -5"),
        (["rank.k=0"], "rank.k must be a whole number of 1 or more, got 0"),
        (["rank=5"], "rank.k must be a whole number of 1 or more, got None"),
        (
            ["bits=4"],
            "bits=4 sets an unknown key: choose one of block, dist, metrics, mode, n_bits",
        ),
        (
            ["-m", "bits=4,8"],
            "bits=4 sets an unknown key: choose one of block, dist, metrics, mode, n",
        ),
        (
            ["mode.zero_point=clip"],
            "mode.zero_point=clip sets an unknown key: this choice has none to set",
        ),
        (["dist=glob("], "dist=glob(: no viable alternative"),
        (["n_bits=4,8"], "n_bits=4,8 is a sweep: add -m"),
        (
            ["dist=npy"],
            "choose one of activations, hidden, tense_logits, verb_probs, file/gguf, file/npy",
        ),
        (["dist.x=a (1)"], """takes quotes: "key='a value'\""""),
        (["-m", "dist=hidden,foo"], "dist=foo does not exist: choose one of activations, hidden"),
        (
            ["-m", "dist=glob(z*)"],
            "dist=glob(z*) matches nothing: choose one of activations, hidden",
        ),
        (["-m", "n_bits=4,99"], "n_bits must be a whole number from 2 to 16, got 99"),
        (["-m", "mode=sym", "rank.k=3,0"], "rank.k must be a whole number of 1 or more, got 0"),
        (["dist=file/npy"], "dist.path is not set: add dist.path=..."),
        (
            ["dist=file/npy", "dist.path=no.npy"],
            "no.npy: no such file",
        ),
        (["dist=file/safetensors", "dist.path=."], ". is a directory: name the safetensors file"),
        (["dist=file/zip", "dist.path=x"], "dist=file/zip does not exist: choose one of"),
        (
            ["threads=0"],
            "threads must be a whole number of 1 or more, or null for all cores, got 0",
        ),
        (
            ["-m", "dist=file/npy", "dist.path=a.npy,b.npy"],
            "a.npy: no such file",
        ),
    ],
)
def test_a_mistake_is_one_sentence_and_leaves_nothing(tmp_path, arguments, told):
    done = run(*arguments, cwd=tmp_path)
    assert done.returncode == 1
    assert told in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
    assert list(tmp_path.iterdir()) == []


def test_a_directory_that_is_no_sweep_is_told(tmp_path):
    done = run_quantlab("aggregate", tmp_path)
    assert done.returncode == 1
    assert done.stderr == (f"quantlab: {tmp_path} is not a sweep: it holds no record.json\n")


@pytest.fixture
def checkpoint(tmp_path):
    """A hundred small tensors, one of integers, one with a NaN."""
    rng = np.random.default_rng(0)
    arrays = {f"layer.{i}.weight": rng.standard_normal(50, np.float32) for i in range(100)}
    arrays["layer.57.weight"][13] = np.nan
    path = tmp_path / "model.safetensors"
    save_file(arrays | {"steps": np.arange(3)}, path)
    return path


@pytest.mark.slow
def test_one_bad_tensor_of_a_hundred_costs_that_one(checkpoint, tmp_path):
    source = ["dist=file/safetensors", f"dist.path={checkpoint}"]
    told = (
        "1 of 100 tensors could not be measured (tensor 'layer.57.weight' holds 1 NaN or Inf among "
        "its 50 values"
    )
    many = run("-m", *source, "mode=sym,asym", "n_bits=4,8", f"hydra.sweep.dir={tmp_path}/s")
    assert many.returncode == 1
    assert told in many.stdout
    assert "left out: steps (I64 is no floating-point type)" in many.stdout
    (line,) = many.stderr.splitlines()  # no traceback, and no progress bar where nobody watches
    assert line.startswith(f"quantlab: 4 runs done; {told}")  # and no retry that ends the same way
    assert line.endswith(": dist.exclude='layer.57.weight' leaves it out")
    assert "4/4 runs, 0 failed" in many.stdout
    assert "failed or left no record" not in many.stdout
    for name in ("report.md", "report.html"):
        assert "1 of 100 tensors could not be measured" in (tmp_path / "s" / name).read_text()
    verdict = json.loads((tmp_path / "s" / "verdict.json").read_text())
    assert (verdict["meets"], len(verdict["failures"])) == (False, 4)
    table = pd.read_csv(tmp_path / "s" / "results.csv")
    assert len(table) == 4 * 99
    assert set(table["dtype"]) == {"float32"}
    nested = json.loads((tmp_path / "s" / "results.json").read_text())
    assert len(nested["file/safetensors"]["asymmetric"]["8"]) == 99
    for path in (tmp_path / "s").glob("*/record.json"):
        one = record.read(path)
        assert (one["status"], len(one["tensors"])) == ("failed", 99)
        assert list(one["failed"]) == ["layer.57.weight"]
        assert list(one["skipped"]) == ["steps"]

    single = run(*source, "dist.include=layer.5*", cwd=tmp_path)
    assert single.returncode == 1
    assert "1 of 11 tensors could not be measured (tensor 'layer.57.weight'" in single.stderr
    assert "layer.58.weight" in single.stdout
    assert "Traceback" not in single.stderr


def test_patterns_are_typed_as_in_a_shell(checkpoint, tmp_path):
    source = ["dist=file/safetensors", f"dist.path={checkpoint}", f"hydra.sweep.dir={tmp_path}"]
    done = run(*source, "dist.include=[layer.1*,layer.2.*]", "dist.exclude=*.1?.*")
    assert done.returncode == 0, done.stderr
    (path,) = tmp_path.glob("*/record.json")
    assert set(record.read(path)["tensors"]) == {"layer.1.weight", "layer.2.weight"}


def test_the_threads_change_no_figure(tmp_path):
    np.save(tmp_path / "w.npy", np.random.default_rng(1).standard_normal(2**20 + 99))
    for threads in ("null", 1, 3):
        done = run(
            "dist=file/npy",
            f"dist.path={tmp_path}/w.npy",
            f"threads={threads}",
            f"hydra.sweep.dir={tmp_path}/{threads}",
        )
        assert done.returncode == 0, done.stderr
    first, *rest = (record.read(p)["tensors"] for p in tmp_path.glob("*/*/record.json"))
    assert all(each == first for each in rest)


def test_what_a_file_holds_is_listed(checkpoint):
    done = run_quantlab("tensors", checkpoint, "--include", "steps", "layer.1.*")
    assert done.returncode == 2  # two patterns take two options
    done = run_quantlab("tensors", checkpoint, "--include=steps", "--include=layer.1.*")
    assert done.returncode == 0, done.stderr
    lines = [line.split() for line in done.stdout.splitlines()]
    assert ["layer.1.weight", "[50]", "float32", "50", "chosen"] in lines
    assert [
        "steps",
        "[3]",
        "int64",
        "3",
        "left",
        "out:",
        "int64",
        "is",
        "no",
        "floating-point",
        "type",
    ] in lines
    assert [
        "layer.2.weight",
        "[50]",
        "float32",
        "50",
        "left",
        "out:",
        "not",
        "in",
        "dist.include",
    ] in lines


BROKEN = """
_target_: broken.Broken
"""
BROKEN_CODE = """
import numpy as np
from quantlab.sources.source import Source
from quantlab.sources.tensor import Tensor

class Broken(Source):
    expected = None
    def tensors(self):
        yield Tensor("weights", np.array([1, np.nan, np.inf], np.float32))
"""


def test_a_tensor_that_is_not_finite_fails_its_run_alone(tmp_path, monkeypatch):
    (tmp_path / "conf" / "dist").mkdir(parents=True)
    (tmp_path / "conf" / "dist" / "broken.yaml").write_text(BROKEN)
    (tmp_path / "broken.py").write_text(BROKEN_CODE)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    own = [f"--config-dir={tmp_path}/conf", f"hydra.sweep.dir={tmp_path}/sweep"]
    told = "tensor 'weights' holds 2 NaN or Inf among its 3 values, the first (nan) at index [1]"

    single = run(*own, "dist=broken")
    assert single.returncode == 1
    assert told in single.stderr
    assert "Traceback" not in single.stderr

    many = run("-m", *own, "dist=broken,hidden,verb_probs")
    assert many.returncode == 1
    assert many.stdout.count(told) == 1
    nested = json.loads((tmp_path / "sweep" / "results.json").read_text())
    assert list(nested) == ["hidden", "verb_probs"]


def test_a_single_run_ends_with_its_record_and_how_to_get_a_report(tmp_path):
    done = run("dist=hidden", "report.lang=es", f"hydra.sweep.dir={tmp_path}")
    path, advice = done.stdout.splitlines()[-2:]
    (directory,) = tmp_path.iterdir()
    assert path == str(directory / "record.json")
    assert advice == f"para obtener un informe: quantlab report {directory}"
    command = advice.partition(": ")[2].split()
    done = run_python("-m", *command)
    assert (done.returncode, done.stderr) == (0, "")
    assert "hidden, symmetric: 8 bits no cumplen los criterios" in done.stdout
    assert '<html lang="es">' in (directory / "report.html").read_text()
    command = json.loads((directory / "manifest.json").read_bytes())["command"]
    asked = f"dist=hidden report.lang=es hydra.sweep.dir={tmp_path}"
    assert command == f"python run.py {asked}"


def test_a_tensor_of_zeros_has_a_record_and_no_relative_error(tmp_path):
    np.savez(tmp_path / "z.npz", w=np.ones((4, 8), np.float32), z=np.zeros((4, 8), np.float32))
    sweep = ["-m", "dist=file/npz", f"dist.path={tmp_path}/z.npz", "mode=sym,asym"]
    done = run(*sweep, f"hydra.sweep.dir={tmp_path}/s")
    assert (done.returncode, done.stderr) == (0, "")
    table = quantlab.load(tmp_path / "s")
    zeros = table[table["tensor"] == "z"]
    assert zeros["rel_err"].isna().all()
    assert zeros["missed"].isna().all()
    assert (zeros["max_err"] == 0).all()


def test_values_that_float32_turns_to_zero_are_reported(tmp_path):
    tensors = {f"t{n}": np.array([1.0, 1e-50] + n * [1e-60]) for n in range(5)}
    np.savez(tmp_path / "w.npz", kept=np.ones(2), **tensors)
    source = ["dist=file/npz", f"dist.path={tmp_path}/w.npz"]
    lines = [
        "t0: one value is too small for float32 and was measured as 0",
        "t1: 2 values are too small for float32 and were measured as 0",
        "t2: 3 values are too small for float32 and were measured as 0",
        "... and so are values of 2 more tensors, in results.csv",
    ]
    done = run(*source, f"hydra.sweep.dir={tmp_path}/one")
    assert "\n".join(lines) in done.stdout
    done = run("-m", *source, "n_bits=4,8", f"hydra.sweep.dir={tmp_path}/many")
    assert "\n".join(lines) in done.stdout
    for name in ("report.html", "report.md"):
        text = (tmp_path / "many" / name).read_text()
        assert all(line in text for line in lines)
    table = pd.read_csv(tmp_path / "many" / "results.csv").query("n_bits == 8")
    counts = dict(zip(table["tensor"], table["underflowed"].fillna(0), strict=True))
    assert counts == {"kept": 0, "t0": 1, "t1": 2, "t2": 3, "t3": 4, "t4": 5}


def test_a_tensor_without_the_axis_is_left_out_with_the_reason(tmp_path):
    np.savez(tmp_path / "w.npz", deep=np.ones((2, 3, 4)), flat=np.ones((2, 3)), line=np.ones(3))
    sweep = ["-m", "dist=file/npz", f"dist.path={tmp_path}/w.npz", "block=channel", "block.axis=2"]
    done = run(*sweep, f"hydra.sweep.dir={tmp_path}/s")
    assert (done.returncode, done.stderr) == (0, "")
    assert (
        "left out: flat (block.axis=2 does not exist in its shape [2, 3]: choose one from -2 to 1)"
        in done.stdout
    )
    again = run(*sweep, f"hydra.sweep.dir={tmp_path}/s")
    assert again.stdout.startswith("resuming: 1 complete; 0 to do")


@pytest.mark.slow
def test_a_sweep_has_one_selection_of_tensors(tmp_path):
    np.savez(tmp_path / "w.npz", a=np.ones((2, 3)), b=np.eye(3), c=np.eye(4))
    sweep = ["-m", "dist=file/npz", f"dist.path={tmp_path}/w.npz", "n_bits=4,8"]
    several = run(*sweep, "dist.include=a,b", f"hydra.sweep.dir={tmp_path}/s")
    assert several.returncode == 1
    assert several.stderr == (
        "quantlab: dist.include takes one selection in a sweep, which may be a list, as in "
        "dist.include=[conv*,fc*]: give each selection a hydra.sweep.dir of its own\n"
    )
    assert run(*sweep, f"hydra.sweep.dir={tmp_path}/s").returncode == 0
    others = {
        "dist.include=[a,b]": "dist.include=null, not",
        "dist.exclude=a": "dist.exclude=null, not a",
        "dist.select=all": "dist.select=weights, not all",
    }
    for other, sentence in others.items():
        again = run(*sweep, other, f"hydra.sweep.dir={tmp_path}/s")
        assert again.returncode == 1
        assert sentence in again.stderr
        assert again.stderr.endswith(
            ": give each selection a hydra.sweep.dir of its own, or remove the directory\n"
        )
    assert run(*sweep, "mode=asym", f"hydra.sweep.dir={tmp_path}/s").returncode == 0
    assert run_quantlab("plan", tmp_path / "s", "--bits", "8").returncode == 0


def test_groups_along_an_axis_are_a_format_of_their_own(tmp_path):
    np.save(tmp_path / "w.npy", np.random.default_rng(0).standard_normal((64, 96)))
    source = ["dist=file/npy", f"dist.path={tmp_path}/w.npy", "block=group"]
    sweep = ["-m", *source, "block.axis=null,0", "n_bits=3,4", f"hydra.sweep.dir={tmp_path}/s"]
    assert run(*sweep).returncode == 0
    records = [json.loads(path.read_text()) for path in (tmp_path / "s").glob("*/record.json")]
    names = {content["spec"]["name"]: content["config"]["block"] for content in records}
    assert "axis" not in names["sym 4 bits, group 32"]  # and keys are those before there was one
    assert names["sym 4 bits, group 32, block.axis=0"]["axis"] == 0
    assert len(names) == 4
    assert run(*sweep).stdout.startswith("resuming: 4 complete; 0 to do")
    done = run_quantlab("plan", tmp_path / "s", "--bits", "4")
    assert done.returncode == 0, done.stderr


@pytest.mark.slow
def test_every_mode_gives_the_same_bytes_whatever_does_the_work(tmp_path):
    rng = np.random.default_rng(0)
    np.savez(tmp_path / "w.npz", w=rng.standard_normal((40, 70)), b=rng.standard_normal(7))
    modes = "mode=glob([*,mx/*,nv/*])"
    sweep = ["-m", "dist=file/npz", f"dist.path={tmp_path}/w.npz", "dist.select=all", modes]
    for name, how in (("one", "threads=1"), ("two", "threads=2 hydra/launcher=joblib")):
        done = run(*sweep, f"hydra.sweep.dir={tmp_path}/{name}", *how.split())
        assert (done.returncode, done.stderr) == (0, "")
    one, two = (
        [(tmp_path / name / file).read_bytes() for file in ("results.json", "results.csv")]
        for name in ("one", "two")
    )
    assert one == two
    figures = json.loads((tmp_path / "one" / "results.json").read_text())
    assert len(figures["file/npz"]) == 17
