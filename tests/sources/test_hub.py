import json
import sys

import numpy as np
import pytest
from huggingface_hub import constants

from quantlab.records import record
from quantlab.sources import hub as hubs
from quantlab.sources.gguf import Gguf, GgufFile
from quantlab.sources.hub import parse_id
from quantlab.sources.readers import READERS
from quantlab.sources.safetensors import Safetensors, SafetensorsFile
from tests import hub as loopback
from tests.conftest import run, run_quantlab
from tests.hub import set_endpoint
from tests.sources.samples import read, write_gguf, write_safetensors

X = np.random.default_rng(0).standard_normal((8, 32)).astype(np.float32)
REPO = "org/model"


@pytest.fixture
def files(tmp_path):
    """Files of a repository by their names, as bytes."""
    write_safetensors(tmp_path / "model.safetensors", w=X, b=X[0])
    write_gguf(tmp_path / "q.gguf", w=(X, None))
    names = ("model.safetensors", "q.gguf")
    return {name: (tmp_path / name).read_bytes() for name in names} | {"README.md": b"a model"}


def as_shards(tmp_path):
    """A checkpoint in two files and its index."""
    parts = {"model-00001-of-00002.safetensors": "a", "model-00002-of-00002.safetensors": "b"}
    for name, tensor in parts.items():
        write_safetensors(tmp_path / name, **{tensor: X})
    index = {"weight_map": {tensor: name for name, tensor in parts.items()}}
    written = {name: (tmp_path / name).read_bytes() for name in parts}
    return written | {"model.safetensors.index.json": json.dumps(index).encode()}


def error_of(path):
    with pytest.raises(ValueError, match=r"^hf://") as error:
        Safetensors(path)
    assert "\n" not in str(error.value)
    return str(error.value)


def downloaded(hub):
    """Return the names of the files whose bytes were sent."""
    requests = (path for method, path, _ in hub.requests if method == "GET")
    return {path.rpartition("/")[2] for path in requests if path.startswith(loopback.BLOBS)}


def test_a_file_is_downloaded_once_and_read(hub, files):
    commit = hub.commit(REPO, files)
    source = Safetensors("hf://org/model@main/model.safetensors")
    assert np.array_equal(read(source)["w"], X)
    assert source.path.endswith(f"models--org--model/snapshots/{commit}/model.safetensors")
    assert downloaded(hub) == {"model.safetensors"}
    hubs._located.clear()  # as another process
    hub.requests.clear()
    Safetensors("hf://org/model/model.safetensors")
    assert not downloaded(hub)


def test_an_id_without_a_file_means_the_only_one_of_its_kind(hub, files):
    hub.commit(REPO, files)
    assert Gguf("hf://org/model").path.endswith("/q.gguf")
    assert Safetensors("hf://org/model").path.endswith("/model.safetensors")
    assert downloaded(hub) == {"q.gguf", "model.safetensors"}
    hub.commit("org/two", {"a.gguf": files["q.gguf"], "b.gguf": files["q.gguf"]})
    with pytest.raises(ValueError, match=r"holds 2 files \(a.gguf, b.gguf\): name one, as in hf:"):
        Gguf("hf://org/two")
    with pytest.raises(ValueError, match=r"holds no file with one of the suffixes \.onnx"):
        READERS["onnx"]("hf://org/two")


def test_of_a_checkpoint_in_several_files_the_shards_of_its_index_are_downloaded(
    hub, files, tmp_path
):
    shards = as_shards(tmp_path)
    hub.commit(REPO, files | shards)
    source = Safetensors("hf://org/model")
    assert {entry.name for entry in source.entries} == {"a", "b"}
    assert downloaded(hub) == shards.keys()


def test_a_config_beside_the_file_is_read(hub, files):
    config = {"model_type": "qwen2", "tie_word_embeddings": False}
    hub.commit(REPO, files | {"config.json": json.dumps(config).encode()})
    source = Safetensors("hf://org/model")
    assert source.family.model_type == "qwen2"
    assert not source.family.ties_embeddings


@pytest.mark.parametrize(
    ("path", "sentence"),
    [
        ("hf://org/nothing/a.safetensors", "does not exist or is private: check the name"),
        ("hf://org/model@v9/a.safetensors", "has no revision v9"),
        ("hf://org/model/modell.safetensors", "near misses are model.safetensors"),
        ("hf://model.safetensors", "names no model of the hub: write hf://ORG/MODEL"),
        ("hf://datasets/org/name/a.npy", "names no model of the hub"),
    ],
)
def test_what_the_hub_does_not_have_is_a_sentence(hub, files, path, sentence):
    hub.commit(REPO, files)
    assert sentence in error_of(path)


def test_a_gated_repository_takes_a_token(hub, files, monkeypatch):
    hub.commit(REPO, files)
    hub.gated.add(REPO)
    sentence = error_of("hf://org/model/model.safetensors")
    assert sentence.endswith("/org/model, then log in with hf auth login")
    assert "is gated: accept its terms" in sentence
    monkeypatch.setenv("HF_TOKEN", "hf_token")
    assert len(Safetensors("hf://org/model/model.safetensors").entries) == 2


def test_a_download_that_breaks_goes_on_where_it_broke(hub, files, monkeypatch):
    hub.commit(REPO, files)
    hub.broken.add("model.safetensors")
    monkeypatch.setattr(constants, "DOWNLOAD_CHUNK_SIZE", 64)
    assert np.array_equal(read(Safetensors("hf://org/model/model.safetensors"))["w"], X)
    size = len(files["model.safetensors"])
    (resumed,) = (span for _, _, span in hub.requests if span)
    assert 0 < int(resumed.removeprefix("bytes=").removesuffix("-")) <= size // 2


def test_a_file_with_another_hash_is_not_kept(hub, files, tmp_path):
    hub.commit(REPO, files)
    hub.forged.add("model.safetensors")
    sentence = error_of("hf://org/model/model.safetensors")
    assert "it arrived damaged, with another hash than the hub names: try again" in sentence
    assert not list((tmp_path / "cache").rglob("*.safetensors"))
    hub.forged.clear()
    assert np.array_equal(read(Safetensors("hf://org/model/model.safetensors"))["w"], X)


def test_without_a_network_the_cache_serves(hub, files, monkeypatch):
    hub.commit(REPO, files)
    Safetensors("hf://org/model/model.safetensors")
    set_endpoint(monkeypatch, "http://127.0.0.1:9")
    hubs._located.clear()
    assert np.array_equal(read(Safetensors("hf://org/model/model.safetensors"))["w"], X)
    hubs._located.clear()
    assert np.array_equal(read(Safetensors("hf://org/model"))["w"], X)
    assert "cannot be reached" in error_of("hf://org/model/other.safetensors")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert "HF_HUB_OFFLINE is set" in error_of("hf://org/model/other.safetensors")


def test_a_hub_that_is_down_is_a_sentence(hub, files):
    hub.commit(REPO, files)
    hub.status = 500
    assert "cannot be" in error_of("hf://org/model/model.safetensors")


def test_pickled_objects_are_refused_before_they_are_downloaded(hub, files):
    hub.commit(REPO, files | {"pytorch_model.bin": b"pickle"})
    with pytest.raises(ValueError, match="convert it to safetensors"):
        Safetensors("hf://org/model/pytorch_model.bin")
    assert not hub.requests


def test_without_the_package_the_sentence_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(ValueError, match="takes the package huggingface_hub: pip install hug"):
        Safetensors("hf://org/model/model.safetensors")


def test_a_quantized_file_is_called_by_its_repository(hub, files):
    hub.commit(REPO, files)
    assert GgufFile("hf://org/model").file_name == "q.gguf"
    assert SafetensorsFile("hf://org/model").file_name == "org/model/model.safetensors"


def test_ids_are_split():
    assert parse_id("hf://a/b@x/c/d.gguf") == ("a/b", "x", "c/d.gguf")
    assert parse_id("hf://a/b") == ("a/b", "main", None)


@pytest.mark.slow
@pytest.mark.usefixtures("undrawn")
def test_a_sweep_knows_the_commit_it_has_measured(hub, files, tmp_path):
    first = hub.commit(REPO, files)
    write_safetensors(tmp_path / "model.safetensors", w=X + 1, b=X[0])
    path = "hf://org/model/model.safetensors"
    sweep = [
        "-m", "dist=file/safetensors", f"dist.path={path}", "n_bits=4,8",
        f"hydra.sweep.dir={tmp_path / 'sweep'}",
    ]  # fmt: skip
    done = run(*sweep)
    assert done.returncode == 0, done.stderr
    (directory, _) = sorted(path.parent for path in record.find(tmp_path / "sweep"))
    recorded = record.read(directory / "record.json")["hub"]
    assert recorded[path]["commit"] == first
    manifest = json.loads((tmp_path / "sweep" / "manifest.json").read_bytes())
    assert manifest["hub"] == {path: [recorded[path]]}
    assert run_quantlab("verify", tmp_path / "sweep").returncode == 0

    moved = {"model.safetensors": (tmp_path / "model.safetensors").read_bytes()}
    second = hub.commit(REPO, files | moved)
    hubs._located.clear()
    assert run_quantlab("reproduce", directory).returncode == 0  # of the commit that was measured
    hubs._located.clear()
    done = run(*sweep)
    assert f"{path} has moved from commit {first[:10]} to {second[:10]}" in done.stdout
    assert "resuming: 2 changed; 2 to do" in done.stdout
    assert record.read(directory / "record.json")["hub"][path]["commit"] == second
