import json
import subprocess
import sys

import numpy as np
import pytest

from quantlab.sources import hub as hubs
from tests import hub as loopback
from tests.conftest import ROOT, run_quantlab
from tests.sources.samples import write_gguf, write_safetensors
from tests.sources.test_hub import as_shards

VECTORS = ROOT / "tests/data/stored"
LARGE = np.zeros((2048, 1024), np.float32)


def list_tensors(path, *options):
    done = run_quantlab("tensors", path, *options)
    assert done.returncode == 0, done.stderr
    return done.stdout


def n_sent(hub):
    """Count the bytes of ranges that were read."""
    ranges = (span for _, path, span in hub.requests if span and path.startswith(loopback.BLOBS))
    spans = (span.removeprefix("bytes=").split("-") for span in ranges)
    return sum(int(last) + 1 - int(first) for first, last in spans)


@pytest.mark.parametrize("name", ["large.safetensors", "large.gguf"])
def test_of_a_file_the_header_alone_is_read(hub, tmp_path, name):
    path = tmp_path / name
    if name.endswith("gguf"):
        write_gguf(path, w=(LARGE, None), b=(LARGE[0], None))
    else:
        write_safetensors(path, w=LARGE, b=LARGE[0])
    hub.commit("org/model", {name: path.read_bytes()})
    assert list_tensors(f"hf://org/model/{name}") == list_tensors(path)
    assert n_sent(hub) <= 2**18
    assert not (tmp_path / "cache").exists()


@pytest.mark.parametrize("folder", sorted(path.name for path in VECTORS.glob("*/")))
def test_a_quantized_file_is_listed_as_one_on_disk(hub, folder):
    names = {path.name for path in (VECTORS / folder).iterdir()} & {
        "model.safetensors",
        "config.json",
    }
    if "model.safetensors" not in names:
        pytest.skip("it is no safetensors file")
    hub.commit("org/model", {name: (VECTORS / folder / name).read_bytes() for name in names})
    local = VECTORS / folder / "model.safetensors"
    remote = list_tensors("hf://org/model")
    assert remote == list_tensors(local).replace(str(local), "hf://org/model")


def test_a_checkpoint_in_several_files_is_listed_by_its_index(hub, tmp_path):
    files = as_shards(tmp_path)
    hub.commit("org/model", files)
    listed = json.loads(list_tensors("hf://org/model", "--json"))
    assert [tensor["name"] for tensor in listed["tensors"]] == ["a", "b"]


def test_a_damaged_file_is_called_by_its_id(hub):
    hub.commit("org/model", {"a.safetensors": b"no header", "b.gguf": b"GGUFnothing"})
    for name in ("a.safetensors", "b.gguf"):
        done = run_quantlab("tensors", f"hf://org/model/{name}")
        assert done.returncode == 1
        assert done.stderr.startswith("quantlab: hf://org/model@")
        assert "is cut off or damaged" in done.stderr
        assert len(done.stderr.splitlines()) == 1


def test_offline_the_file_in_the_cache_is_listed(hub, tmp_path, monkeypatch):
    path = tmp_path / "a.safetensors"
    write_safetensors(path, w=LARGE)
    hub.commit("org/model", {path.name: path.read_bytes()})
    hubs.locate("hf://org/model", [".safetensors"])
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    hubs._located.clear()
    assert list_tensors("hf://org/model") == list_tensors(path)


def test_a_user_lists_and_measures_by_id(tmp_path):
    write_safetensors(tmp_path / "a.safetensors", w=LARGE[:8] + np.arange(1024, dtype=np.float32))
    with loopback.serve() as (served, address):
        served.commit("org/model", {"a.safetensors": (tmp_path / "a.safetensors").read_bytes()})
        path = "hf://org/model@main/a.safetensors"
        environ = {"HF_ENDPOINT": address, "HF_HOME": str(tmp_path / "home"), "PATH": ""}
        for command in (
            ["tensors", path],
            ["run", "dist=file/safetensors", f"dist.path={path}", "n_bits=4"],
        ):
            done = subprocess.run(
                [sys.executable, "-m", "quantlab", *command],
                cwd=tmp_path,
                env=environ | {"PYTHONPATH": str(ROOT)},
                capture_output=True,
                text=True,
                check=False,
            )
            assert done.returncode == 0, done.stderr
    assert "sqnr" in done.stdout
