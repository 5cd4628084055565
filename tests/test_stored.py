"""Quantized files through the whole program: a tiny llama, quantized by llama.cpp's own tool."""

import json
import shutil
import subprocess

import gguf
import numpy as np
import pandas as pd
import pytest

from tests import tiny_llama
from tests.conftest import ROOT, run, run_quantlab

TOOL = ROOT / ".venv/llama/llama-quantize"
pytestmark = [
    pytest.mark.slow,
    pytest.mark.usefixtures("undrawn"),
    pytest.mark.skipif(not TOOL.exists(), reason="llama-quantize is not built: make llama"),
]
IN_ORDER = ["mae", "max_err", "rmse", "rel_err", "sqnr_db", "cos_sim", "one_minus_cos", "bias"]
SAME = [  # whatever the order of the rows
    "err_p50", "err_p95", "zeroed", "n_elements", "x_min", "x_max", "underflowed",
    "bits_per_value", "stored_dtype", "zero_share",
]  # fmt: skip
TOP = ["top_order_kept", "top_merged", "top_swapped", "top_worst", "top_best"]
FIGURES = [*IN_ORDER, *SAME, *TOP, "bits_above_bound"]


def quantize(folder, kind, name=None, imatrix=None):
    """Quantize the F16 file of a folder with the real tool."""
    path = folder / (name or f"tiny-{kind}.gguf")
    weights = ["--imatrix", imatrix] if imatrix else []
    command = [TOOL, *weights, folder / "tiny-F16.gguf", path, kind, "2"]
    subprocess.run([str(each) for each in command], check=True, capture_output=True)
    return path


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """The model as a checkpoint and as GGUF, its importance matrix, and what the tool makes."""
    folder = tmp_path_factory.mktemp("tiny")
    tiny_llama.write_hugging_face(folder)
    tiny_llama.write_gguf(folder / "tiny-F16.gguf")
    imatrix = tiny_llama.write_imatrix(folder / "imatrix.gguf")
    for kind in ("Q4_K_M", "IQ4_XS"):
        quantize(folder, kind)
        quantize(folder, kind, f"tiny-{kind}-weighted.gguf", imatrix)
    return folder


def of_gguf(folder):
    return ["dist=file/gguf", f"dist.path={folder}/tiny-F16.gguf", "dist.select=all"]


def of_hugging_face(folder):
    return [
        "dist=file/safetensors", f"dist.path={folder}/model.safetensors", "dist.select=all",
    ]  # fmt: skip


def of_file(folder, *kinds):
    paths = ",".join(f"{folder}/tiny-{kind}.gguf" for kind in kinds)
    return ["mode=file/gguf", f"mode.path={paths}"]


def sweep(directory, *arguments):
    """Run a sweep and return its table, by GGUF names, and what was printed."""
    done = run("-m", *arguments, f"hydra.sweep.dir={directory}")
    assert (done.returncode, done.stderr) == (0, ""), done.stdout
    table = pd.read_csv(directory / "results.csv")
    names = [tiny_llama.gguf_name(name) or name for name in table["tensor"]]
    return table.assign(tensor=names).set_index("tensor"), done.stdout


@pytest.mark.parametrize("kind", ["Q4_K_M", "IQ4_XS"])
def test_both_originals_of_a_file_give_the_same_figures(folder, tmp_path, kind):
    ours, _ = sweep(tmp_path / "gguf", *of_gguf(folder), *of_file(folder, kind))
    theirs, _ = sweep(tmp_path / "hf", *of_hugging_face(folder), *of_file(folder, kind))
    assert set(ours.index) == set(theirs.index)
    assert len(ours) == len(tiny_llama.shapes())
    theirs = theirs.loc[ours.index]
    pd.testing.assert_frame_equal(ours[SAME], theirs[SAME])
    pd.testing.assert_frame_equal(ours[IN_ORDER], theirs[IN_ORDER], rtol=2e-6, atol=1e-10)
    kept = ~ours.index.str.contains(r"attn_[qk]\.")  # those whose rows do not move
    pd.testing.assert_frame_equal(ours[FIGURES][kept], theirs[FIGURES][kept], check_exact=True)
    assert ours["remark"].isna().all()
    assert theirs["remark"].isna().all()
    assert ours["sqnr_db"].min() > 20


def test_types_and_sizes_are_those_of_the_file(folder, tmp_path):
    table, printed = sweep(tmp_path / "s", *of_gguf(folder), *of_file(folder, "Q4_K_M"))
    tensors = gguf.GGUFReader(folder / "tiny-Q4_K_M.gguf").tensors
    assert dict(table["stored_dtype"]) == {each.name: each.tensor_type.name for each in tensors}
    assert dict(table["bits_per_value"]) == {
        each.name: 8 * each.n_bytes / each.n_elements for each in tensors
    }
    assert set(table["stored_dtype"]) == {"Q4_K", "Q6_K", "F32"}
    size = sum(int(each.n_bytes) for each in tensors)
    assert f"{size / 1e6:.3g} MB in all (Q4_K: 13, F32: 5, Q6_K: 3)" in printed


def test_figures_are_those_of_what_gguf_decodes(folder, tmp_path):
    table, _ = sweep(tmp_path / "s", *of_gguf(folder), *of_file(folder, "IQ4_XS"))
    original = {each.name: each.data for each in gguf.GGUFReader(folder / "tiny-F16.gguf").tensors}
    for each in gguf.GGUFReader(folder / "tiny-IQ4_XS.gguf").tensors:
        x = original[each.name].astype(float)
        err = gguf.dequantize(each.data, each.tensor_type).astype(float).reshape(x.shape) - x
        row = table.loc[each.name]
        assert row["max_err"] == np.abs(err).max()
        assert row["mae"] == pytest.approx(np.abs(err).mean(), rel=1e-6)
        if err.any():
            sqnr = 10 * np.log10((x * x).sum() / (err * err).sum())
            assert row["sqnr_db"] == pytest.approx(sqnr, rel=1e-6)


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize(("mode", "kind"), [("q4_k", "Q4_K_M"), ("iq4_xs", "IQ4_XS")])
def test_a_type_by_its_own_code_gives_the_figures_of_the_file(
    folder, tmp_path, mode, kind, weighted
):
    file = f"{kind}-weighted" if weighted else kind
    theirs, _ = sweep(tmp_path / "file", *of_gguf(folder), *of_file(folder, file))
    own = [f"mode=ggml/{mode}", *([f"mode.imatrix={folder}/imatrix.gguf"] if weighted else [])]
    ours, _ = sweep(tmp_path / "own", *of_gguf(folder), *own)
    same = theirs.index[theirs["stored_dtype"] == mode.upper()]
    assert len(same) >= 13
    figures = [key for key in FIGURES if key != "stored_dtype"]
    pd.testing.assert_frame_equal(
        ours.loc[same, figures], theirs.loc[same, figures], check_exact=True
    )


def test_an_importance_matrix_changes_what_the_tool_and_our_mode_write(folder, tmp_path):
    table, _ = sweep(
        tmp_path, *of_gguf(folder), *of_file(folder, "Q4_K_M", "Q4_K_M-weighted"),
        f"metrics.imatrix={folder}/imatrix.gguf",
    )  # fmt: skip
    plain, weighted = (each for _, each in table.groupby("stored_file", sort=True))
    assert plain["stored_file"].iloc[0] == "tiny-Q4_K_M-weighted.gguf"  # "-" sorts before "."
    plain, weighted = weighted, plain
    known = list(tiny_llama.importance())
    assert (weighted.loc[known, "out_sqnr_db"] > plain.loc[known, "out_sqnr_db"]).all()
    assert (weighted.loc[known, "sqnr_db"] < plain.loc[known, "sqnr_db"]).all()


def test_any_mode_has_the_error_of_the_output(folder, tmp_path):
    importance = f"metrics.imatrix={folder}/imatrix.gguf"
    ours, _ = sweep(tmp_path / "gguf", *of_gguf(folder), "mode=sym", "n_bits=6", importance)
    theirs, _ = sweep(tmp_path / "hf", *of_hugging_face(folder), "n_bits=6", importance)
    known = tiny_llama.importance()
    for name in ours.index.difference(list(known)):
        assert np.isnan(ours.loc[name, "out_sqnr_db"])
        assert "out_sqnr_db: imatrix.gguf has no importance of it" in ours.loc[name, "reasons"]
    for name, x in tiny_llama.tensors().items():
        name, x = tiny_llama.gguf_name(name), tiny_llama.converted(name, x).astype(float)
        if name in known:
            step = ours.loc[name, "scale"]
            err = np.rint(x / step) * step - x
            power = known[name] * np.array([x * x, err * err])
            expected = 10 * np.log10(power[0].sum() / power[1].sum())
            assert ours.loc[name, "out_sqnr_db"] == pytest.approx(expected, rel=1e-5)
            assert theirs.loc[name, "out_sqnr_db"] == pytest.approx(expected, rel=1e-5)


def test_a_rerun_does_nothing_until_a_stored_file_changes(folder, tmp_path):
    path = shutil.copy(folder / "tiny-Q4_K_M.gguf", tmp_path / "stored.gguf")
    asked = [*of_gguf(folder), "mode=file/gguf", f"mode.path={path}"]
    first, _ = sweep(tmp_path / "s", *asked)
    _, printed = sweep(tmp_path / "s", *asked)
    assert printed.startswith("resuming: 1 complete; 0 to do")
    shutil.copy(folder / "tiny-IQ4_XS.gguf", path)
    second, printed = sweep(tmp_path / "s", *asked)
    assert printed.startswith("resuming: 1 changed; 1 to do")
    assert "IQ4_XS" in set(second["stored_dtype"])
    assert (second["sqnr_db"].dropna() != first["sqnr_db"].dropna()).any()


@pytest.mark.parametrize(
    ("mode", "key"), [("ggml/q4_k", "mode.imatrix"), ("sym", "metrics.imatrix")]
)
def test_so_it_is_with_an_importance_matrix(folder, tmp_path, mode, key):
    path = tiny_llama.write_imatrix(tmp_path / "imatrix.gguf")
    asked = [*of_gguf(folder), "dist.include=*blk.0*", f"mode={mode}", f"{key}={path}"]
    first, _ = sweep(tmp_path / "s", *asked)
    _, printed = sweep(tmp_path / "s", *asked)
    assert printed.startswith("resuming: 1 complete; 0 to do")
    tiny_llama.write_imatrix(path, seed=1)
    second, printed = sweep(tmp_path / "s", *asked)
    assert printed.startswith("resuming: 1 changed; 1 to do")
    figure = "out_sqnr_db" if mode == "sym" else "sqnr_db"
    assert not first[figure].dropna().equals(second[figure].dropna())


def test_a_sweep_of_a_file_is_verified_and_reproduced(folder, tmp_path):
    sweep(tmp_path / "s", *of_hugging_face(folder), *of_file(folder, "IQ4_XS"))
    done = run_quantlab("verify", tmp_path / "s")
    assert (done.returncode, done.stderr) == (0, "")
    (directory,) = (path.parent for path in (tmp_path / "s").glob("*/record.json"))
    done = run_quantlab("reproduce", directory)
    assert "reproduced, every figure bit for bit" in done.stdout, done.stdout + done.stderr


def test_threads_change_no_figure(folder, tmp_path):
    found = []
    for threads in (1, 3):
        directory = tmp_path / str(threads)
        sweep(
            directory, *of_hugging_face(folder), *of_file(folder, "Q4_K_M"),
            f"metrics.imatrix={folder}/imatrix.gguf", f"threads={threads}",
        )  # fmt: skip
        found.append(json.loads((directory / "results.json").read_bytes()))
    assert found[0] == found[1]


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["mode=file/gguf"], "mode.path is not set: add mode.path=..."),
        (["mode=file/gguf", "mode.path=no.gguf"], "no.gguf: no such file"),
        (["mode=file/gguf", "mode.path={}/imatrix.gguf", "n_bits=4"], "n_bits=4 does not go with"),
        (["mode=ggml/iq2_xs"], "takes an importance matrix: add mode.imatrix=FILE"),
        (["mode=ggml/q4_k", "mode.imatrix={}/tiny-F16.gguf"], "it is no importance matrix"),
        (["metrics.imatrix={}/config.json"], "is no imatrix file, or is cut off or damaged"),
        (["mode=ggml/q4_k", "n_bits=5"], "n_bits must be 4, the width of mode=ggml/q4_k, got 5"),
    ],
)
def test_a_mistake_is_one_sentence_and_leaves_nothing(folder, tmp_path, arguments, told):
    done = run(*of_gguf(folder), *(each.format(folder) for each in arguments), cwd=tmp_path)
    assert done.returncode == 1
    assert told in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
    assert list(tmp_path.iterdir()) == []
