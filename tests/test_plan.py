"""Plans, checks and diffs as a person and a pipeline run them, and llama.cpp taking a recipe."""

import json
import re
import shutil
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
from onnx import helper

import quantlab
from quantlab import __main__ as program
from quantlab.text import format_size
from tests import tiny_llama
from tests.conftest import ROOT, run, run_quantlab
from tests.models.samples import save_model
from tests.sources.published import draw, scaled_fp8, write_safetensors

TOOL = ROOT / ".venv/llama/llama-quantize"
TYPES = "mode=ggml/q3_k,ggml/q4_0,ggml/q4_k,ggml/q5_k,ggml/q6_k,ggml/q8_0"
BEST = "tense_logits as sym 9 bits; verb_probs as log 10 bits; hidden as sym 10 bits, group 32"


def command(*arguments):
    """Run quantlab as a pipeline would."""
    return run_quantlab(*arguments)


@pytest.fixture
def refused(monkeypatch, capsys):
    """Run a command that must be refused, and return its exit code and its one sentence."""

    def ask(*arguments):
        monkeypatch.setattr(sys, "argv", ["quantlab", *map(str, arguments)])
        with pytest.raises(SystemExit) as caught:
            program.main()
        printed = capsys.readouterr()
        assert printed.out == ""
        assert len(printed.err.strip().splitlines()) == 1, printed.err
        return caught.value.code, printed.err

    return ask


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A tiny llama as a checkpoint and as GGUF."""
    folder = tmp_path_factory.mktemp("tiny")
    tiny_llama.write_hugging_face(folder)
    tiny_llama.write_gguf(folder / "tiny-F16.gguf")
    return folder


@pytest.fixture(params=["gguf", "safetensors"])
def types(folder, request):
    """The sweep of some types of llama.cpp over one of its files."""
    directory = folder / request.param
    path = folder / {"gguf": "tiny-F16.gguf", "safetensors": "model.safetensors"}[request.param]
    source = [f"dist=file/{request.param}", f"dist.path={path}"]
    done = run("-m", *source, TYPES, f"hydra.sweep.dir={directory}")
    assert (done.returncode, done.stderr) == (0, "")
    return directory


@pytest.fixture
def remedies(tmp_path):
    """A copy of the aggregate of the remedies that is committed, without a record of a run."""
    for name in ("results.json", "results.csv", "verdict.json"):
        shutil.copy(ROOT / "multirun" / "remedies" / name, tmp_path)
    shutil.copy(ROOT / "tests" / "data" / "remedies" / "manifest.json", tmp_path)
    return tmp_path


def test_one_line_answers_what_the_lab_asks(remedies):
    done = command("plan", remedies, "--bar")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith(f"{BEST} (")
    written = {path.name for path in remedies.iterdir()}
    assert {"plan.json", "plan.csv", "plan.html"} <= written
    assert all(f"{remedies / name}\n" in done.stdout for name in ("plan.json", "plan.csv"))


def test_the_verdict_the_check_and_the_plan_say_the_same(remedies):
    judged = quantlab.verdict(remedies).set_index("tensor")
    planned = quantlab.plan(remedies, bar=True).set_index("tensor")
    assert judged["meets"].all()
    assert judged["format"].equals(planned["format"].loc[judged.index])
    done = command("check", remedies)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("check passed: all 3 tensors meet the bar (top k in order;")


@pytest.mark.slow
@pytest.mark.skipif(not TOOL.exists(), reason="llama-quantize is not built: make llama")
def test_llama_cpp_takes_the_recipe_and_keeps_what_the_plan_promised(types, folder, tmp_path):
    done = command("plan", types, "--bits", "4.8", "--recipe", "llama.cpp")
    assert (done.returncode, done.stderr) == (0, "")
    usage = done.stdout.splitlines()[-1]
    planned = f"{tmp_path}/planned.gguf"
    usage = usage.replace("F16.gguf", f"{folder}/tiny-F16.gguf").replace("PLANNED.gguf", planned)
    tool, *arguments = usage.split()
    assert tool == TOOL.name
    subprocess.run([str(TOOL), *arguments], check=True, capture_output=True)
    if types.name == "gguf":
        n_bytes = (tmp_path / "planned.gguf").stat().st_size
        assert f"The file that llama.cpp writes has 1.49 MB ({n_bytes:,} bytes)." in done.stdout
    done = run(
        "-m", "dist=file/gguf", f"dist.path={folder}/tiny-F16.gguf", "mode=file/gguf",
        f"mode.path={planned}", f"hydra.sweep.dir={tmp_path}/kept",
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, "")
    kept = quantlab.load(tmp_path / "kept").set_index("tensor")
    plan = pd.read_csv(types / "plan.csv")
    plan = plan.assign(tensor=[tiny_llama.gguf_name(n) or n for n in plan["tensor"]])
    plan = plan.set_index("tensor").loc[kept.index]
    quantized = plan["stored_dtype"].notna()
    chosen = plan["stored_dtype"][quantized].str.upper()
    assert len(set(chosen)) > 1
    assert chosen.tolist() == kept["stored_dtype"][quantized].tolist()
    assert set(kept["stored_dtype"][~quantized]) <= {"F32", "F16"}
    figures = (table["sqnr_db"][quantized].astype(float) for table in (plan, kept))
    np.testing.assert_allclose(*figures, rtol=2e-6)
    whole = json.loads((types / "plan.json").read_bytes())
    size = (kept["bits_per_value"] * kept["n_elements"])[quantized].sum() / 8
    assert size == plan["n_bytes"][quantized].sum()
    assert whole["bits_per_value"] <= 4.8


@pytest.mark.slow
@pytest.mark.skipif(not TOOL.exists(), reason="llama-quantize is not built: make llama")
def test_llama_cpp_joins_shards_into_a_file_of_the_size_that_the_plan_says(tmp_path):
    tiny_llama.write_gguf(tmp_path / "tiny.gguf", shard_tensors=8)
    first = tmp_path / "tiny-00001-of-00003.gguf"
    source = ["dist=file/gguf", f"dist.path={first}", "mode=ggml/q4_0,ggml/q8_0"]
    assert run("-m", *source, f"hydra.sweep.dir={tmp_path}/types").returncode == 0
    done = command("plan", tmp_path / "types", "--bits", "6", "--recipe", "llama.cpp")
    recipe, joined = tmp_path / "types" / "plan.llama.cpp.txt", tmp_path / "joined.gguf"
    arguments = ["--tensor-type-file", str(recipe), str(first), str(joined), "q8_0"]
    subprocess.run([str(TOOL), *arguments], check=True, capture_output=True)
    assert f"({joined.stat().st_size:,} bytes)" in done.stdout


def test_a_plan_says_the_size_of_the_model_that_its_script_writes(tmp_path):
    nodes = [helper.make_node("MatMul", ["x", "w"], ["h"]), helper.make_node("Relu", ["h"], ["y"])]
    values = {"w": draw(64, 80, seed=1)}
    path = save_model(tmp_path / "m.onnx", nodes, values, {"x": [1, 64]}, {"y": [1, 80]})
    sweep = ["dist=file/onnx", f"dist.path={path}", "mode=onnx/matmulnbits", "n_bits=4,8"]
    assert run("-m", *sweep, "mode.group_size=32", f"hydra.sweep.dir={tmp_path}/s").returncode == 0
    done = command("plan", tmp_path / "s", "--bits", "6", "--recipe", "onnxruntime")
    assert done.returncode == 0, done.stderr
    usage = done.stdout.splitlines()[-1]
    usage = usage.replace("MODEL.onnx", str(path)).replace("OUT.onnx", f"{tmp_path}/out.onnx")
    subprocess.run([sys.executable, *usage.split()[1:]], check=True, capture_output=True)
    n_bytes = (tmp_path / "out.onnx").stat().st_size
    assert f"onnxruntime writes has {format_size(n_bytes)} ({n_bytes:,} bytes)" in done.stdout


def test_a_plan_for_mlx_says_about_what_it_will_weigh(folder, tmp_path):
    source = ["dist=file/safetensors", f"dist.path={folder}/model.safetensors", "mode=mlx/affine"]
    assert run("-m", *source, "n_bits=4,8", f"hydra.sweep.dir={tmp_path}").returncode == 0
    done = command("plan", tmp_path, "--bits", "6", "--recipe", "mlx")
    assert done.returncode == 0, done.stderr
    size = re.search(r"The files that mlx writes have about (.*) MB\.", done.stdout)[1]
    values = json.loads((tmp_path / "plan.json").read_bytes())["n_bytes"]
    assert float(size) == pytest.approx(values / 1e6, rel=0.01)


def test_a_plan_is_verified_until_it_or_the_results_change(lab_sweep, tmp_path):
    copy = shutil.copytree(lab_sweep[0], tmp_path / "lab")
    assert command("plan", copy, "--bits", "10").returncode == 0
    assert command("verify", copy).stdout == f"{copy} matches its manifest\n"
    (copy / "plan.csv").write_text("")
    done = command("verify", copy)
    assert (done.returncode, done.stdout.count("\n")) == (1, 1)
    assert (
        f"{copy}/plan.csv has changed: its sha256 is not the one in {copy}/plan.json" in done.stdout
    )


def test_another_plan_leaves_no_recipe_of_the_last(remedies):
    assert command("plan", remedies, "--bar", "--recipe", "json").returncode == 0
    assert json.loads((remedies / "plan.recipe.json").read_bytes())["hidden"]["n_bits"] == 10
    assert command("plan", remedies, "--size", "2.5 kB").returncode == 0
    assert not (remedies / "plan.recipe.json").exists()


def test_a_check_fails_a_pipeline(remedies):
    done = command("check", remedies, "report.bar.sqnr_db=90")
    assert (done.returncode, done.stderr) == (1, "")
    *misses, last = done.stdout.splitlines()
    assert len(misses) == 2
    assert misses[0].startswith("verb_probs: no format tried meets the bar; in the nearest, ")
    assert last.startswith("check failed: 2 of 3 tensors miss the bar (")
    done = command("check", remedies, "report.bar.sqnr=90")
    assert (done.returncode, done.stdout) == (2, "")
    assert "report.bar.sqnr is an unknown key" in done.stderr


def test_a_check_fails_where_a_run_did(tmp_path):
    np.savez(tmp_path / "w.npz", good=np.arange(9.0), bad=np.full(4, np.nan))
    source = ["dist=file/npz", f"dist.path={tmp_path}/w.npz"]
    assert run("-m", *source, f"hydra.sweep.dir={tmp_path}/s").returncode == 1
    done = command("check", tmp_path / "s")
    assert (done.returncode, done.stderr) == (1, "")
    assert done.stdout.startswith("1 of 2 tensors could not be measured (tensor 'bad' holds 4 NaN")
    assert done.stdout.splitlines()[-1] == (
        "check failed: one tensor could not be measured; "
        "the tensor measured does not miss the bar (SQNR ≥ 20 dB)"
    )


@pytest.mark.slow
@pytest.mark.usefixtures("undrawn")
def test_a_diff_fails_a_pipeline(remedies, tmp_path):
    wide, narrow = (tmp_path / name for name in ("wide", "narrow"))
    for directory, bits in ((wide, 8), (narrow, 6)):
        done = run("-m", "dist=hidden,verb_probs", f"n_bits={bits}", f"hydra.sweep.dir={directory}")
        assert done.returncode == 0
    done = command("diff", wide, wide)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.endswith(
        "diff: 0 of 2 compared became worse by more than 0.1 dB, 0 better\n"
    )
    done = command("diff", wide, narrow, "report.bar.top_order=null")
    assert (done.returncode, done.stderr) == (1, "")
    assert "sym 8 bits → sym 6 bits" in done.stdout
    assert done.stdout.endswith(
        "diff: 2 of 2 compared became worse by more than 0.1 dB, 0 better\n"
    )
    done = command("diff", narrow, wide, "--tolerance", "1", "report.bar.top_order=null")
    assert (done.returncode, done.stderr) == (0, "")
    assert "0 of 2 compared became worse by more than 1 dB, 2 better" in done.stdout
    done = command("diff", narrow, remedies, "dist=hidden")
    assert (done.returncode, done.stdout) == (2, "")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (
            ["--bits", "0.5"],
            "0.5 bits per value (102 B) is below what there is: plans of",
        ),
        (["--size", "4.5XB"], "--size takes a number and one of B, kB, MB, GB, TB, KiB"),
        (["--bits", "nan"], "--bits takes a number of bits per value above 0, got 'nan'"),
        (["--bits", "9", "--by", "mae"], "--by takes sqnr_db or out_sqnr_db or kl, got 'mae'"),
        (["--bits", "9", "--by", "out_sqnr_db"], "has no out_sqnr_db: sweep with metrics.imatrix"),
        (["--bits", "9", "--keep", "x*=nf4"], "--keep x* matches none of the 3 tensors measured"),
        (["--bits", "9", "--keep", "hidden=q4_0"], "'hidden' has no such format, only float32; "),
        (["--bits", "9", "--keep", "hidden"], "--keep takes PATTERN=FORMAT, as in"),
        (["--bits", "9", "--same", "h?"], "--same h? matches none of the 3 tensors measured"),
        (
            ["--bits", "9", "--recipe", "onnx"],
            "--recipe takes one of llama.cpp, torchao, mlx",
        ),
        (["--bits", "9", "--recipe", "llama.cpp"], "llama.cpp has none of the formats tried ("),
        (["--bits", "9", "--weights", "{}/none.csv"], "none.csv cannot be read: No such file"),
        (["--bar", "report.bar.rel_err=2"], "report.bar.rel_err must be a number above 0, up to 1"),
    ],
)
def test_a_mistake_is_one_sentence_and_writes_nothing(remedies, refused, arguments, said):
    before = sorted(remedies.iterdir())
    code, sentence = refused("plan", remedies, *(each.format(remedies) for each in arguments))
    assert code == 2
    assert said in sentence
    assert sorted(remedies.iterdir()) == before


@pytest.mark.parametrize("name", ["plan", "check", "diff"])
def test_what_is_no_sweep_is_named(refused, tmp_path, name):
    rest = {"plan": ["--bar"], "check": [], "diff": [tmp_path]}[name]
    code, sentence = refused(name, tmp_path / "none", *rest)
    assert code == 2
    assert f"{tmp_path}/none does not exist: give the directory of a sweep" in sentence
    code, sentence = refused(name, tmp_path, *rest)
    assert f"{tmp_path}/results.csv does not exist: quantlab aggregate" in sentence


def test_a_sweep_of_one_format_leaves_no_choice(refused, tmp_path):
    done = run("-m", "dist=hidden,verb_probs", f"hydra.sweep.dir={tmp_path}")
    assert done.returncode == 0
    _, sentence = refused("plan", tmp_path, "--bits", "9")
    assert "has one format, sym 8 bits: a plan takes two or more" in sentence
    assert not list(tmp_path.glob("plan*"))


@pytest.mark.usefixtures("undrawn")
def test_a_mode_of_one_s_own_has_an_option_for_each_width(tmp_path):
    text = (ROOT / "docs" / "extending.md").read_text()
    for name, content in re.findall(r"`(own/\S+)`\n\n```\w+\n(.*?)```", text, re.DOTALL):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(content)
    sweep = ["dist=laplace", "mode=sym,power_of_two", "n_bits=4,8", "hydra.sweep.dir=s"]
    done = run_quantlab("run", "--config-dir", "own", "-m", *sweep, cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    for width in (4, 8):
        keep = f"*=POWER_OF_TWO {width} bits"
        done = run_quantlab("plan", tmp_path / "s", "--bits", "9", "--keep", keep)
        assert (done.returncode, done.stderr) == (0, "")
        assert done.stdout.startswith(f"laplace as power_of_two {width} bits (")


@pytest.mark.usefixtures("undrawn")
def test_a_check_fails_where_too_little_was_compared(tmp_path):
    name = next(iter(scaled_fp8(tmp_path, "mlp")))
    original, stored = (tmp_path / f"{letter}.safetensors" for letter in "ab")
    x = draw(64, 64)
    norm = {"norm.weight": x[0]}  # no weight, which is left out on both sides
    write_safetensors(original, {name: x, "lost.weight": x[:2]} | norm)
    sweep = tmp_path / "s"
    source = ["dist=file/safetensors", f"dist.path={original}"]
    mode = ["mode=file/safetensors", f"mode.path={stored}"]
    done = run("-m", *source, *mode, f"hydra.sweep.dir={sweep}")
    assert (done.returncode, done.stderr) == (0, "")
    shown = (
        "96.9% of the original's values were compared, 100% of the bytes of the file; without a "
    )
    assert f"{shown}partner: lost.weight" in done.stdout
    done = command("check", sweep)
    assert (done.returncode, done.stderr) == (1, "")
    assert f"{shown}partner: lost.weight\n" in done.stdout
    assert done.stdout.splitlines()[-1] == (
        "check failed: of one file too little was compared; "
        "the tensor measured does not miss the bar (SQNR ≥ 20 dB)"
    )
    assert command("check", sweep, "report.bar.coverage=0.9").returncode == 0
    table = quantlab.load(sweep)
    share = 4096 / (4096 + 128)
    assert table["coverage"].tolist() == [share]
    assert table["unpaired"].tolist() == ["lost.weight"]
    assert quantlab.verdict(sweep)["coverage"].tolist() == [share]
    assert not json.loads((sweep / "verdict.json").read_bytes())["meets"]
    assert "96.9% of the original" in (sweep / "report.html").read_text()
