import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from contextlib import suppress

import numpy as np
import pandas as pd
import pytest

import quantlab
from quantlab.records import record
from quantlab.report.export import model_card
from tests.conftest import ROOT, run, run_quantlab
from tests.models.samples import two_layers
from tests.sources.samples import write_gguf

SERVER = ROOT / ".venv" / "mlflow" / "bin" / "mlflow"


def export(*arguments, **how):
    done = run_quantlab("export", *arguments, **how)
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


@pytest.fixture(scope="module")
def answered(tmp_path_factory):
    """A sweep of a model in two widths, with what it answers."""
    folder = tmp_path_factory.mktemp("answered")
    path, inputs, _, _ = two_layers(folder)
    done = run(
        "-m", "dist=file/onnx", f"dist.path={path}", "n_bits=4,8", "model=onnx",
        f"model.inputs={inputs}", f"hydra.sweep.dir={folder / 'sweep'}",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return folder / "sweep"


def rows_of(text, heading):
    """Return the cells of the first table below a heading of a card."""
    table = re.search(r"\n((?:\|.*\n)+)", text.partition(heading)[2])[1].splitlines()
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in table[2:]]


def test_a_card_is_read_by_the_parser_of_the_hub(answered):
    from huggingface_hub import ModelCard

    text = export(answered, "--to", "card")
    card = ModelCard(text)
    assert card.data.tags == ["quantlab", "quantization"]
    table = quantlab.load(answered)
    for bits, sqnr in ((4, "sym 4 bits"), (8, "sym 8 bits")):
        of_width = table[table.n_bits == bits]
        (row,) = (row for row in rows_of(card.text, "# What these") if row[0] == sqnr)
        assert row[1] == "2"
        assert float(row[4]) == pytest.approx(of_width.sqnr_db.min(), abs=0.005)
        assert row[5] == of_width.loc[of_width.sqnr_db.idxmin(), "tensor"]
    assert rows_of(card.text, "## The tensors that lost most")[0][1] == "sym 4 bits"
    answers = quantlab.answers(answered)
    assert f"{answers.kl[0]:.3g}" in text
    manifest = json.loads((answered / "manifest.json").read_bytes())
    assert manifest["command"] in text
    assert f"results.csv sha256 {manifest['artefacts']['results.csv']}" in text


def test_a_card_of_a_file_of_the_hub_names_its_base_and_commit(hub, tmp_path):
    from huggingface_hub import ModelCard

    values = np.random.default_rng(0).standard_normal((4, 32)).astype(np.float32)
    commit = hub.commit("org/base", {"f.gguf": _gguf_bytes(tmp_path, values)})
    sweep = tmp_path / "sweep"
    done = run("-m", "dist=file/gguf", "dist.path=hf://org/base", "n_bits=4",
               f"hydra.sweep.dir={sweep}")  # fmt: skip
    assert done.returncode == 0, done.stderr
    card = ModelCard(model_card(sweep))
    assert card.data.base_model == "org/base"
    assert f"at commit {commit}: f.gguf sha256 " in card.text


def _gguf_bytes(folder, values):
    path = folder / "f.gguf"
    write_gguf(path, w=(values, None))
    return path.read_bytes()


def test_a_card_goes_into_a_file(answered, tmp_path):
    assert export(answered, "--to", "card", "--output", tmp_path / "README.md").strip() == str(
        tmp_path / "README.md"
    )
    assert (tmp_path / "README.md").read_text() == model_card(answered)


def test_parquet_has_the_table_and_where_it_came_from(answered, tmp_path):
    parquet = pytest.importorskip("pyarrow.parquet")
    assert export(answered, "--to", "parquet", cwd=tmp_path) == "sweep.parquet\n"
    table = pd.read_parquet(tmp_path / "sweep.parquet")
    pd.testing.assert_frame_equal(table, quantlab.load(answered))
    metadata = parquet.read_metadata(tmp_path / "sweep.parquet").metadata
    assert json.loads(metadata[b"quantlab"]) == json.loads(
        (answered / "manifest.json").read_bytes()
    )


def require_logged(client, directory):
    """Require the runs of a sweep, with every figure and file, to be in MLflow."""
    (experiment,) = client.search_experiments(filter_string="name = 'quantlab'")
    runs = client.search_runs([experiment.experiment_id])
    (parent,) = (run for run in runs if "mlflow.parentRunId" not in run.data.tags)
    by_key = {run.data.tags.get("quantlab.key"): run for run in runs}
    for path in record.find(directory):
        content = record.read(path)
        logged = by_key[content["key"]]
        assert logged.info.status == "FINISHED"
        assert logged.data.tags["mlflow.parentRunId"] == parent.info.run_id
        assert logged.data.params["n_bits"] == str(content["n_bits"])
        for name, tensor in content["tensors"].items():
            assert logged.data.metrics[f"sqnr_db/{name}"] == tensor["measured"]["sqnr_db"]
        for answer in content["answers"]:
            assert logged.data.metrics[f"kl/{answer['output']}"] == answer["figures"]["kl"]
        artefacts = client.list_artifacts(logged.info.run_id)
        assert [item.path for item in artefacts] == ["record.json"]
    names = {item.path for item in client.list_artifacts(parent.info.run_id)}
    assert {"results.csv", "report.html", "manifest.json", "plots"} <= names


@pytest.mark.slow
def test_mlflow_has_every_run_in_a_folder(answered, tmp_path, monkeypatch):
    mlflow = pytest.importorskip("mlflow")
    place = f"file://{tmp_path / 'mlruns'}"
    refused = run_quantlab("export", answered, "--to", "mlflow", "--output", place)
    assert refused.returncode == 1
    assert "MLFLOW_ALLOW_FILE_STORE=true" in refused.stderr
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    assert "2 runs of sweep are logged" in export(answered, "--to", "mlflow", "--output", place)
    again = export(answered, "--to", "mlflow", "--output", place)
    assert "is logged already" in again
    require_logged(mlflow.MlflowClient(place), answered)


@pytest.mark.slow
@pytest.mark.skipif(
    not SERVER.exists(), reason="there is no server of MLflow: `make mlflow` installs it"
)
def test_mlflow_has_every_run_on_a_server(answered, tmp_path):
    mlflow = pytest.importorskip("mlflow")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [
        SERVER, "server", "--host", "127.0.0.1", "--port", str(port), "--workers", "1",
        "--backend-store-uri", f"sqlite:///{tmp_path}/mlflow.db",
        "--artifacts-destination", str(tmp_path / "artefacts"),
    ]  # fmt: skip
    address = f"http://127.0.0.1:{port}"
    how = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL, "start_new_session": True}
    env = os.environ | {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}  # eight processes
    with subprocess.Popen(command, env=env, **how) as server:
        try:
            _wait_for(f"{address}/health", server)
            export(answered, "--to", "mlflow", "--output", address)
            require_logged(mlflow.MlflowClient(address), answered)
        finally:
            with suppress(ProcessLookupError):  # where it ended by itself
                os.killpg(server.pid, signal.SIGKILL)  # its workers outlive it otherwise


def _wait_for(address, server):
    deadline = time.monotonic() + 180  # it starts for half a minute on a busy machine
    while server.poll() is None and time.monotonic() < deadline:
        try:
            urllib.request.urlopen(address).close()
        except OSError:
            time.sleep(0.5)
        else:
            return
    pytest.fail(f"{address} does not answer")


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--to", "excel"], "--to takes one of card, parquet, mlflow, got 'excel'"),
        (["--to", "parquet"], "Parquet takes the package pyarrow: pip install pyarrow"),
        (["--to", "mlflow"], "MLflow takes the package mlflow: pip install mlflow-skinny"),
    ],
)
def test_what_cannot_be_written_is_a_sentence(answered, monkeypatch, arguments, sentence):
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    monkeypatch.setitem(sys.modules, "mlflow", None)
    done = run_quantlab("export", answered, *arguments)
    assert (done.returncode, done.stderr) == (1, f"quantlab: {sentence}\n")


def test_a_directory_that_is_no_sweep_is_a_sentence(tmp_path):
    done = run_quantlab("export", tmp_path, "--to", "card")
    assert done.returncode == 1
    assert len(done.stderr.splitlines()) == 1
