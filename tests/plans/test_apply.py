import json
import zipfile

import gguf
import ml_dtypes
import numpy as np
import onnx
import pytest
import safetensors
from safetensors.numpy import load_file, save_file

import quantlab
from quantlab.formats.format import FormatSpec
from quantlab.plans.apply import _targets, apply_plan
from quantlab.sources.onnx_graph import model_files
from tests.conftest import run_quantlab
from tests.sources.onnx_samples import external, save

ASYM = {"mode": "asym", "n_bits": 4, "block": "group", "block_size": 32, "scale_dtype": "float16"}
SYM = {"mode": "sym", "n_bits": 6, "block": "channel", "scale_dtype": "float32"}
ROWS = {"settings": json.dumps({"block.axis": 0})}


def weights(dtype=np.float32):
    rng = np.random.default_rng(0)
    shapes = {"a.weight": (64, 96), "b.weight": (32, 64), "c.weight": (8, 32), "norm": (96,)}
    return {name: rng.standard_normal(shape).astype(dtype) for name, shape in shapes.items()}


def write_plan(folder, tensors, **formats):
    """Write a plan with formats of some tensors, by the letter that they begin with."""
    rows = []
    for name, x in tensors.items():
        form = {"range": "absmax", "format": "f", **formats[name[0]]} if name[0] in formats else {}
        own = {"dist": "file/x", "tensor": name, "dtype": x.dtype.name, "n_elements": x.size}
        rows.append(own | form)
    (folder / "plan.json").write_text(json.dumps({"schema": 1, "tensors": rows}))
    return folder / "plan.json"


def expected(x, form, axis=-1):
    """What an array comes back as in a format, in its dtype."""
    moved = np.moveaxis(x, axis, -1)
    block = form.get("block_size") or form["block"]
    x_hat = quantlab.roundtrip(moved, form["mode"], form["n_bits"], block, form["scale_dtype"])
    return np.moveaxis(x_hat, -1, axis).astype(x.dtype)


@pytest.mark.parametrize("dtype", [np.float32, np.float16, ml_dtypes.bfloat16])
def test_safetensors_has_the_values_of_the_plan_and_all_else_as_it_was(tmp_path, dtype):
    tensors = weights(dtype) | {"ids": np.arange(5)}
    model, out = tmp_path / "m.safetensors", tmp_path / "o.safetensors"
    save_file(tensors, model, metadata={"format": "pt", "note": "é"})
    plan = write_plan(tmp_path, tensors, a=ASYM, b=SYM, c=ASYM | ROWS)
    done = apply_plan(tmp_path, model, out)
    assert (list(done.files), done.n_replaced, done.n_copied) == ([out], 3, 2)
    stored = load_file(out)
    assert stored["a.weight"].tobytes() == expected(tensors["a.weight"], ASYM).tobytes()
    assert stored["b.weight"].tobytes() == expected(tensors["b.weight"], SYM).tobytes()
    rows = expected(tensors["c.weight"], ASYM, axis=0)
    assert stored["c.weight"].tobytes() == rows.tobytes()
    for name in ("norm", "ids"):
        assert stored[name].tobytes() == tensors[name].tobytes()
    with safetensors.safe_open(out, framework="numpy") as file:
        assert file.metadata() == {"format": "pt", "note": "é"}
    assert plan.exists()


def test_a_checkpoint_in_several_files_is_a_directory_of_them(tmp_path):
    tensors = weights()
    parts = {"m-1.safetensors": ["a.weight", "norm"], "m-2.safetensors": ["b.weight", "c.weight"]}
    for file, names in parts.items():
        save_file({name: tensors[name] for name in names}, tmp_path / file)
    weight_map = {name: file for file, names in parts.items() for name in names}
    index = tmp_path / "m.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": weight_map}))
    write_plan(tmp_path, tensors, b=SYM)
    with pytest.raises(ValueError, match=r"is 3 files: give a directory for .*o\.json"):
        apply_plan(tmp_path, index, tmp_path / "o.json")
    out = tmp_path / "deep" / "out"
    apply_plan(tmp_path, index, out)
    assert {path.name for path in out.iterdir()} == {index.name, *parts}
    for name in (index.name, "m-1.safetensors"):
        assert (out / name).read_bytes() == (tmp_path / name).read_bytes()
    stored = load_file(out / "m-2.safetensors")
    np.testing.assert_array_equal(stored["b.weight"], expected(tensors["b.weight"], SYM))
    np.testing.assert_array_equal(stored["c.weight"], tensors["c.weight"])


@pytest.mark.parametrize("location", ["../secret", "{folder}/secret"])
def test_data_outside_the_directory_of_a_model_is_not_copied(tmp_path, location):
    (tmp_path / "secret").write_bytes(bytes(16))
    (tmp_path / "model").mkdir()
    path = location.format(folder=tmp_path)
    model = save(tmp_path / "model/m.onnx", external("w", [4], path))
    with pytest.raises(ValueError, match="outside its own directory"):
        model_files(str(model))


def test_data_in_a_folder_of_a_model_keeps_its_place(tmp_path):
    files = [tmp_path / "m.onnx", tmp_path / "a/w.data", tmp_path / "b/w.data"]
    out = tmp_path / "out"
    assert _targets(files, out) == [out / "m.onnx", out / "a/w.data", out / "b/w.data"]


@pytest.mark.parametrize("external", [False, True])
def test_onnx_has_them_inline_beside_and_as_floats(tmp_path, external):
    tensors = weights()
    protos = [onnx.numpy_helper.from_array(x, name) for name, x in tensors.items()]
    protos[2] = onnx.helper.make_tensor("c.weight", 1, (8, 32), tensors["c.weight"].reshape(-1))
    assert protos[2].float_data
    nodes = [onnx.helper.make_node("MatMul", ["x", "a.weight"], ["y"])]
    info = onnx.helper.make_tensor_value_info
    graph = onnx.helper.make_graph(nodes, "g", [info("x", 1, [1, 64])], [info("y", 1, [1, 96])])
    graph.initializer.extend(protos)
    model = onnx.helper.make_model(graph, producer_name="me")
    onnx.save(model, tmp_path / "m.onnx", save_as_external_data=external, location="m.data")
    along_inputs = {"settings": json.dumps({"block.axis": "input"})}
    write_plan(tmp_path, tensors, a=ASYM | along_inputs, b=SYM, c=ASYM)
    out = tmp_path / "out"
    out.mkdir()
    done = apply_plan(tmp_path, tmp_path / "m.onnx", out)
    assert len(done.files) == 1 + external
    loaded = onnx.load(out / "m.onnx")
    onnx.checker.check_model(loaded)
    assert loaded.producer_name == "me"
    stored = {each.name: onnx.numpy_helper.to_array(each) for each in loaded.graph.initializer}
    inputs = expected(tensors["a.weight"], ASYM, axis=0)
    np.testing.assert_array_equal(stored["a.weight"], inputs)
    np.testing.assert_array_equal(stored["b.weight"], expected(tensors["b.weight"], SYM))
    np.testing.assert_array_equal(stored["c.weight"], expected(tensors["c.weight"], ASYM))
    np.testing.assert_array_equal(stored["norm"], tensors["norm"])


def test_gguf_keeps_its_fields(tmp_path):
    tensors = weights(np.float16)
    writer = gguf.GGUFWriter(tmp_path / "m.gguf", "llama")
    writer.add_name("mine")
    for name, x in tensors.items():
        writer.add_tensor(name, x)
    for write in (writer.write_header_to_file, writer.write_kv_data_to_file,
                  writer.write_tensors_to_file, writer.close):  # fmt: skip
        write()
    write_plan(tmp_path, tensors, a=ASYM)
    apply_plan(tmp_path, tmp_path / "m.gguf", tmp_path / "o.gguf")
    reader = gguf.GGUFReader(tmp_path / "o.gguf")
    assert reader.get_field("general.name").contents() == "mine"
    stored = {each.name: each.data for each in reader.tensors}
    np.testing.assert_array_equal(stored["a.weight"], expected(tensors["a.weight"], ASYM))
    np.testing.assert_array_equal(stored["b.weight"], tensors["b.weight"])


@pytest.mark.parametrize("small_first", [False, True])
def test_gguf_in_shards_stays_in_shards(tmp_path, small_first):
    tensors = weights(np.float16)
    how = {"split_max_tensors": 2, "small_first_shard": small_first}
    writer = gguf.GGUFWriter(tmp_path / "m.gguf", "llama", **how)
    for name, x in tensors.items():
        writer.add_tensor(name, x)
    for write in (writer.write_header_to_file, writer.write_kv_data_to_file,
                  writer.write_tensors_to_file, writer.close):  # fmt: skip
        write()
    shards = sorted(tmp_path.glob("*.gguf"))
    assert len(shards) == 2 + small_first
    write_plan(tmp_path, tensors, a=ASYM, c=SYM)
    done = apply_plan(tmp_path, shards[-1], tmp_path / "out")
    assert list(done.files) == [tmp_path / "out" / shard.name for shard in shards]
    forms = {"a.weight": ASYM, "c.weight": SYM}
    for number, (shard, written) in enumerate(zip(shards, done.files, strict=True)):
        before, after = gguf.GGUFReader(shard), gguf.GGUFReader(written)
        fields = [{k: f.contents() for k, f in each.fields.items()} for each in (before, after)]
        assert fields[0] == fields[1]
        about = [fields[1][f"split.{key}"] for key in ("no", "count", "tensors.count")]
        assert about == [number, len(shards), len(tensors)]
        for old, new in zip(before.tensors, after.tensors, strict=True):
            described = [(t.name, t.shape.tolist(), t.tensor_type) for t in (old, new)]
            assert described[0] == described[1]
            form = forms.get(new.name)
            x_hat = expected(tensors[new.name], form) if form else tensors[new.name]
            assert new.data.tobytes() == x_hat.tobytes()


@pytest.mark.parametrize("order", "CF")
@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_arrays_of_numpy_keep_their_order(tmp_path, save, order):
    tensors = {name: np.asarray(x, order=order) for name, x in weights().items()}
    save(tmp_path / "m.npz", **tensors)
    np.save(tmp_path / "a.weight.npy", tensors["a.weight"])
    write_plan(tmp_path, tensors, a=ASYM)
    apply_plan(tmp_path, tmp_path / "m.npz", tmp_path / "o.npz")
    with np.load(tmp_path / "o.npz") as stored:
        assert stored.files == list(tensors)
        x_hat = expected(tensors["a.weight"], ASYM)
        np.testing.assert_array_equal(stored["a.weight"], x_hat)
        np.testing.assert_array_equal(stored["b.weight"], tensors["b.weight"])
        assert stored["a.weight"].flags.f_contiguous == (order == "F")
    kinds = [
        [member.compress_type for member in zipfile.ZipFile(tmp_path / name).infolist()]
        for name in ("m.npz", "o.npz")
    ]
    assert kinds[0] == kinds[1]
    write_plan(tmp_path, {"a.weight": tensors["a.weight"]}, a=ASYM)
    apply_plan(tmp_path, tmp_path / "a.weight.npy", tmp_path / "o.npy")
    np.testing.assert_array_equal(np.load(tmp_path / "o.npy"), x_hat)


@pytest.fixture
def model(tmp_path):
    save_file(weights(), tmp_path / "m.safetensors")
    return tmp_path / "m.safetensors"


def test_a_mistake_is_one_sentence_and_writes_nothing(model, tmp_path):
    tensors = weights()
    write_plan(tmp_path, tensors, a=ASYM)
    out = tmp_path / "o.safetensors"
    for other, sentence in (
        ({"a.weight": np.zeros(4)}, r"'a\.weight' with 4 values, not 6144: .* another checkpoint"),
        ({"away": np.zeros(4)}, r"has no away, which .*plan\.json stores in a format"),
        (tensors | {"n": np.zeros(3)}, r"has no n, which"),
    ):
        plan = write_plan(tmp_path, other, a=ASYM, n=SYM)
        with pytest.raises(ValueError, match=sentence):
            apply_plan(plan, model, out)
        assert not out.exists()
    out.write_text("mine")
    write_plan(tmp_path, tensors, a=ASYM)
    done = run_quantlab("apply", tmp_path, model, out)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == (f"quantlab: {out} is there already: name another file, or remove it\n")
    assert out.read_text() == "mine"
    assert not list(tmp_path.glob(".*"))


def test_values_beyond_a_dtype_are_refused(tmp_path):
    x = np.full((4, 32), 65504, np.float16)
    save_file({"a": x}, tmp_path / "m.safetensors")
    write_plan(tmp_path, {"a": x}, a=ASYM | {"mode": "sym", "n_bits": 3, "scale_dtype": "bfloat16"})
    with pytest.raises(ValueError, match=r"'a' comes back with values beyond float16, its dtype"):
        apply_plan(tmp_path, tmp_path / "m.safetensors", tmp_path / "new" / "out" / "o.safetensors")
    assert not (tmp_path / "new").exists()


@pytest.mark.slow
def test_the_figures_of_the_plan_are_those_of_what_is_written(model, tmp_path):
    mixed = ["mode=sym,asym", "block=group", "n_bits=3,5"]
    source = ["dist=file/safetensors", f"dist.path={model}", f"hydra.sweep.dir={tmp_path}/s"]
    assert run_quantlab("run", "-m", *source, *mixed).returncode == 0
    assert run_quantlab("plan", tmp_path / "s", "--bits", "5").returncode == 0
    out = tmp_path / "out" / "o.safetensors"
    done = run_quantlab("apply", tmp_path / "s", model, out)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == f"3 tensors as the plan brings them back, 1 as they were:\n{out}\n"
    rows = json.loads((tmp_path / "s" / "plan.json").read_bytes())["tensors"]
    stored, tensors = load_file(out), weights()
    for row in rows:
        if "sqnr_db" not in row:
            continue
        x, x_hat = (each[row["tensor"]].astype(np.float64) for each in (tensors, stored))
        sqnr = 10 * np.log10(np.square(x).sum() / np.square(x - x_hat).sum())
        assert sqnr == pytest.approx(row["sqnr_db"], rel=1e-12)
        assert FormatSpec.from_row({"n_bits": None, "settings": None, **row}).name
