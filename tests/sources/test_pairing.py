"""A quantized file beside its original: which tensors belong together, and what is said if none."""

from pathlib import Path

import gguf
import numpy as np
import pytest

from quantlab.experiment import Experiment
from quantlab.sources.gguf import Gguf, GgufFile
from quantlab.sources.safetensors import Safetensors, SafetensorsFile
from tests.sources import published, samples
from tests.sources.samples import write_safetensors
from tests.tiny_llama import permute

HEADS, KV_HEADS = 4, 2
Q8 = gguf.GGMLQuantizationType.Q8_0
Q, K, V = (f"model.layers.0.self_attn.{each}_proj.weight" for each in "qkv")
GGUF_NAMES = {
    Q: "blk.0.attn_q.weight",
    K: "blk.0.attn_k.weight",
    V: "blk.0.attn_v.weight",
    "model.norm.weight": "output_norm.weight",
}
SHAPES = {Q: (64, 64), K: (32, 64), V: (32, 64), "model.norm.weight": (64,)}


def model(seed=0):
    """The tensors of a llama of one layer, by their names of Hugging Face."""
    rng = np.random.default_rng(seed)
    return {name: rng.standard_normal(shape, np.float32) for name, shape in SHAPES.items()}


def converted(tensors):
    """Those tensors as llama.cpp names and reorders them."""
    moved = {name: x.copy() for name, x in tensors.items()}
    for name in tensors:
        for part, heads in (("q_proj", HEADS), ("k_proj", KV_HEADS)):
            if part in name:
                moved[name] = permute(moved[name], heads).reshape(moved[name].shape)
    return {GGUF_NAMES.get(name, name): x for name, x in moved.items()}


def write_gguf(path, tensors, architecture="llama", kind=Q8):
    """Write tensors of a model, matrices quantized where there is a `kind`."""
    writer = gguf.GGUFWriter(path, architecture)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(KV_HEADS)
    for name, x in tensors.items():
        if kind is None or x.ndim == 1:
            writer.add_tensor(name, x)
        else:
            writer.add_tensor(name, gguf.quantize(x, kind), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return str(path)


def run(source, stored):
    return Experiment(source, stored, k=10, rel_threshold=1e-8, threads=1).run()


@pytest.fixture
def files(tmp_path):
    """The original, as Hugging Face and as llama.cpp have it, and that in Q8_0."""
    return (
        Safetensors(write_safetensors(tmp_path / "m.safetensors", **model())),
        Gguf(write_gguf(tmp_path / "m-F32.gguf", converted(model()), kind=None)),
        GgufFile(write_gguf(tmp_path / "m-Q8_0.gguf", converted(model()))),
    )


def test_names_of_one_kind_pair_and_what_comes_back_is_what_is_stored(files):
    _, original, stored = files
    outcome = run(original, stored)
    assert (set(outcome.tensors), outcome.failed) == (set(GGUF_NAMES.values()), {})
    assert not outcome.skipped
    for name, x in converted(model()).items():
        figures, sizes = outcome.tensors[name]["measured"], outcome.tensors[name]["storage"]
        back = gguf.dequantize(gguf.quantize(x, Q8), Q8) if x.ndim > 1 else x
        assert figures["max_err"] == np.abs(back - x).max()
        assert sizes["bits_per_value"] == (8.5 if x.ndim > 1 else 32)
        assert outcome.tensors[name]["stored_dtype"] == ("Q8_0" if x.ndim > 1 else "F32")
        assert outcome.tensors[name]["stored_file"] == "m-Q8_0.gguf"


def test_a_checkpoint_beside_a_gguf_has_the_figures_of_a_gguf(files):
    checkpoint, original, stored = files
    theirs, outcome = run(original, stored), run(checkpoint, stored)
    assert (set(outcome.tensors), outcome.skipped, outcome.failed) == (set(SHAPES), {}, {})
    for name, each in outcome.tensors.items():
        same = theirs.tensors[GGUF_NAMES[name]]
        for key in ("mae", "max_err", "rmse", "sqnr_db", "rel_err"):
            found, expected = each["measured"][key], same["measured"][key]
            assert found == (expected and pytest.approx(expected, rel=1e-9)), key
        assert (each["remark"], each["stored_dtype"]) == (None, same["stored_dtype"])


def test_a_gguf_beside_a_stored_checkpoint_has_its_rows(files, tmp_path):
    _, original, _ = files
    half = {name: x.astype(np.float16) for name, x in model().items()}
    stored = SafetensorsFile(write_safetensors(tmp_path / "half.safetensors", **half))
    outcome = run(original, stored)
    assert (set(outcome.tensors), outcome.failed) == (set(GGUF_NAMES.values()), {})
    for name, x in model().items():
        error = np.abs(x.astype(np.float16).astype(np.float32) - x).max()
        assert outcome.tensors[GGUF_NAMES[name]]["measured"]["max_err"] == error


def test_biases_of_q_and_k_are_moved_too(tmp_path):
    # convert_hf_to_gguf.py: name.endswith(("q_proj.weight", "q_proj.bias"))
    bias, theirs = Q.replace("weight", "bias"), "blk.0.attn_q.bias"
    x = np.arange(1, 65, dtype=np.float32)
    checkpoint = Safetensors(write_safetensors(tmp_path / "m.safetensors", **{bias: x}))
    moved = {theirs: permute(x, HEADS).reshape(-1)}
    outcome = run(checkpoint, GgufFile(write_gguf(tmp_path / "m.gguf", moved)))
    assert outcome.failed == {}
    assert outcome.tensors[bias]["measured"]["max_err"] == 0


@pytest.mark.parametrize("stored_by", ["llama.cpp", "Hugging Face"])
def test_norms_of_gemma_are_greater_by_1_in_llama_cpp(tmp_path, stored_by):
    name, x = "model.layers.0.input_layernorm.weight", np.linspace(-0.5, 1, 64, dtype=np.float32)
    checkpoint = write_safetensors(tmp_path / "m.safetensors", **{name: x})
    path = write_gguf(tmp_path / "m.gguf", {"blk.0.attn_norm.weight": x + 1}, architecture="gemma2")
    if stored_by == "llama.cpp":
        outcome = run(Safetensors(checkpoint), GgufFile(path))
    else:
        outcome = run(Gguf(path), SafetensorsFile(checkpoint))
    (found,) = outcome.tensors.values()
    assert found["measured"]["max_err"] < 1e-6


def test_other_families_keep_their_rows(tmp_path):
    checkpoint = Safetensors(write_safetensors(tmp_path / "m.safetensors", **model()))
    named = {GGUF_NAMES[name]: x for name, x in model().items()}
    stored = GgufFile(write_gguf(tmp_path / "m.gguf", named, architecture="qwen2"))
    outcome = run(checkpoint, stored)
    assert (outcome.failed, len(outcome.tensors)) == ({}, 4)
    assert all(each["remark"] is None for each in outcome.tensors.values())


def test_what_only_one_side_has_is_listed_with_the_reason(tmp_path):
    ours = {"a": np.ones((2, 32), np.float32), "only.ours": np.ones((2, 32), np.float32)}
    stored = {"a": ours["a"], "only.theirs": ours["a"]}
    source = Gguf(write_gguf(tmp_path / "o.gguf", ours, kind=None))
    outcome = run(source, GgufFile(write_gguf(tmp_path / "q.gguf", stored)))
    assert list(outcome.tensors) == ["a"]
    assert outcome.skipped == {
        "only.theirs": "only q.gguf has it",
        "only.ours": "q.gguf has no tensor of this name",
    }


def test_a_tensor_that_is_not_chosen_is_not_missing(tmp_path):
    path = write_gguf(tmp_path / "o.gguf", converted(model()), kind=None)
    stored = GgufFile(write_gguf(tmp_path / "q.gguf", converted(model())))
    outcome = run(Gguf(path, include="*attn_v*"), stored)
    assert list(outcome.tensors) == ["blk.0.attn_v.weight"]
    assert set(outcome.skipped.values()) == {"not in dist.include"}


def test_nothing_in_common_is_one_sentence(tmp_path):
    x = np.ones((2, 32), np.float32)
    source = Gguf(write_gguf(tmp_path / "o.gguf", {"a": x}, kind=None))
    with pytest.raises(ValueError, match="there is no tensor to measure") as caught:
        run(source, GgufFile(write_gguf(tmp_path / "q.gguf", {"b": x})))
    assert "b: only q.gguf has it; a: q.gguf has no tensor of this name" in str(caught.value)


def test_a_file_and_its_original_that_are_swapped_are_one_sentence(tmp_path):
    x, q8 = np.ones((2, 32), np.float32), gguf.GGMLQuantizationType.Q8_0
    file, original = str(tmp_path / "q.gguf"), str(tmp_path / "o.gguf")
    samples.write_gguf(file, a=(gguf.quants.quantize(x, q8), q8), b=(x, None))
    samples.write_gguf(original, a=(x, None), b=(x, None))
    with pytest.raises(ValueError, match=r"dist\.path takes the original") as caught:
        run(Gguf(file), GgufFile(original))
    assert str(caught.value).startswith(f"{file} holds a in Q8_0 and o.gguf in F32")


def only_failure(tmp_path, ours, theirs, name="w", stored_name="w", **written):
    """Return what is said of one tensor that cannot be measured, and the path of the file."""
    source = Gguf(write_gguf(tmp_path / "o.gguf", {name: ours}, kind=None))
    path = write_gguf(tmp_path / "q.gguf", {stored_name: theirs}, **written)
    outcome = run(source, GgufFile(path))
    assert not outcome.tensors
    return outcome.failed[name], path


@pytest.mark.parametrize("shape", [(8, 32), (96, 64)])
def test_another_shape_is_told(tmp_path, shape):
    ours, theirs = np.ones((96, 64), np.float32), np.ones(shape, np.float32)
    if shape == ours.shape:
        ours = ours[:95]
    said, path = only_failure(tmp_path, ours, theirs)
    assert said == (
        f"tensor 'w' in {path} has the shape {list(shape)}, the original {list(ours.shape)}"
    )


def test_another_tensor_of_the_name_is_not_the_same(tmp_path):
    ours, theirs = (np.random.default_rng(n).standard_normal((64, 64), np.float32) for n in (0, 1))
    said, _ = only_failure(tmp_path, ours, theirs)
    assert said.startswith("tensor 'w' is not the same tensor in q.gguf: the cosine of both is ")
    assert "read" not in said


def test_a_transposed_square_is_recognized(tmp_path):
    x = np.random.default_rng(0).standard_normal((64, 64), np.float32)
    said, _ = only_failure(tmp_path, x, np.ascontiguousarray(x.T))
    assert "is not the same tensor in q.gguf" in said
    assert "read transposed it fits the original far better (" in said


@pytest.mark.parametrize(
    ("architecture", "moved", "reading"),
    [("llama", False, "without"), ("qwen2", True, "with")],
)
def test_rows_in_the_other_order_are_recognized(tmp_path, architecture, moved, reading):
    tensors = model()
    checkpoint = Safetensors(write_safetensors(tmp_path / "m.safetensors", **tensors))
    named = converted(tensors) if moved else {GGUF_NAMES[name]: x for name, x in tensors.items()}
    outcome = run(checkpoint, GgufFile(write_gguf(tmp_path / "q.gguf", named, architecture)))
    assert set(outcome.failed) == {Q, K}
    for said in outcome.failed.values():
        assert f": read {reading} llama.cpp's order of the rows of q and k it fits the" in said
    assert set(outcome.tensors) == {V, "model.norm.weight"}


def test_another_scale_is_remarked_and_what_is_declared_measured(tmp_path):
    x = np.random.default_rng(0).standard_normal((64, 64), np.float32)
    source = Gguf(write_gguf(tmp_path / "o.gguf", {"w": x}, kind=None))
    stored = GgufFile(write_gguf(tmp_path / "q.gguf", {"w": 2 * x}))
    found = run(source, stored).tensors["w"]
    assert found["remark"].startswith("read with another scale it fits the original far better (")
    assert found["measured"]["sqnr_db"] == pytest.approx(0, abs=0.01)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_is_refused_with_its_place(tmp_path, value):
    x = np.random.default_rng(0).standard_normal((3, 64), np.float32)
    theirs = x.copy()
    theirs[1, 7] = value
    said, _ = only_failure(tmp_path, x, theirs, kind=None)
    assert said == (f"tensor 'w' comes back as {value} at [1, 7]: F32 is damaged")


def test_a_damaged_scale_is_refused_with_the_place_of_its_first_value(tmp_path):
    x = np.random.default_rng(0).standard_normal((3, 64), np.float32)
    source = Gguf(write_gguf(tmp_path / "o.gguf", {"w": x}, kind=None))
    path = write_gguf(tmp_path / "q.gguf", {"w": x})
    scale = gguf.quantize(x, Q8)[2, 34:36].tobytes()  # of the second block of the third row
    data = Path(path).read_bytes()
    Path(path).write_bytes(data.replace(scale, np.float16(np.inf).tobytes()))
    said = run(source, GgufFile(path)).failed["w"]
    assert "inf at [2, 32]: Q8_0 is damaged" in said


def test_a_changed_file_is_another_identity(tmp_path):
    x = np.ones((2, 32), np.float32)
    source = Gguf(write_gguf(tmp_path / "o.gguf", {"w": x}, kind=None))
    found = []
    for values in (x, x, 3 * x):
        stored = GgufFile(write_gguf(tmp_path / "q.gguf", {"w": values}))
        tensors, _ = Experiment(source, stored, 10, 1e-8, 1).identify()
        found.append(tensors["w"]["stored_sha256"])
    assert found[0] == found[1] != found[2]


@pytest.mark.parametrize("shape", [(48, 64), (32, 96)])
@pytest.mark.parametrize("kind", ["safetensors", "gguf"])
def test_an_embedding_that_is_stored_as_an_output_layer_too_is_compared_twice(
    tmp_path, kind, shape
):
    name, x = "model.embed_tokens.weight", published.draw(*shape)
    source = published.write_safetensors(tmp_path / "a/a.safetensors", {name: x})
    if kind == "gguf":
        output = "output.weight"
        (codes, q8), y = published.q8_0(x)
        stored = {"token_embd.weight": x.astype(np.float16), output: (codes, q8)}
        file = GgufFile(str(published.write_gguf(tmp_path / "b.gguf", stored)))
    else:
        output = "lm_head.weight"
        codes, scale, y = published.fp8(x)
        stored = {name: x.astype(np.float16), output: codes, f"{output}_scale": np.array(scale)}
        path = published.write_safetensors(tmp_path / "b/b.safetensors", stored)
        file = SafetensorsFile(str(path))
    outcome = Experiment(Safetensors(str(source)), file, 10, 1e-12, 1).run()
    assert list(outcome.tensors) == [name, output]
    assert outcome.tensors[output]["measured"]["max_err"] == pytest.approx(np.abs(x - y).max())
    assert outcome.tensors[name]["measured"]["max_err"] < 1e-4
    assert outcome.coverage["values"] == outcome.coverage["all_values"] == x.size
    assert outcome.coverage["bytes"] == outcome.coverage["all_bytes"]
    assert not outcome.skipped


def test_an_output_layer_of_another_model_is_no_embedding(tmp_path):
    name, x = "model.embed_tokens.weight", published.draw(48, 64)
    stored = {name: x, "lm_head.weight": published.draw(48, 64, seed=1)}
    file = SafetensorsFile(str(published.write_safetensors(tmp_path / "b/b.safetensors", stored)))
    for config, tied in (({"tie_word_embeddings": False}, {}), ({}, {name: "lm_head.weight"})):
        path = published.write_safetensors(tmp_path / "a/a.safetensors", {name: x}, config)
        assert file.bind(Safetensors(str(path))).tied == tied
    of_others = {name: x, "other.embed_tokens.weight": x}
    for original in (of_others, {name: x[:32]}, stored):
        path = published.write_safetensors(tmp_path / "a/a.safetensors", original)
        assert file.bind(Safetensors(str(path))).tied == {}


def linear_attention(columns, heads):
    """Return the small tensors of a layer of Qwen3-Next, by the ends of their names."""
    decays = np.random.default_rng(4).uniform(1, 16, heads)
    return {
        "input_layernorm.weight": published.draw(columns, seed=1),
        "linear_attn.norm.weight": published.draw(columns, seed=2) + np.float32(1),
        "linear_attn.conv1d.weight": published.draw(columns, 1, 4, seed=3),
        "linear_attn.dt_bias": published.draw(heads, seed=5),
        "linear_attn.A_log": np.log(decays).astype(np.float32),
    }


def restored(source, file):
    """Return the values of each original as they are stored, by its name."""
    bound = file.bind(source)
    assert not bound.unmatched()
    opened = {tensor.name: (tensor, bound.open(tensor)) for tensor in source.tensors()}
    return {
        name: stored.read(0, tensor.size).reshape(tensor.shape)
        for name, (tensor, stored) in opened.items()
    }


@pytest.mark.parametrize(("columns", "heads"), [(64, 8), (96, 5)])
def test_what_llama_cpp_changes_in_qwen3_next_is_changed_back(tmp_path, columns, heads):
    x = linear_attention(columns, heads)
    original = {f"model.layers.0.{name}": values for name, values in x.items()}
    norm, gated, conv, bias, decay = x.values()
    stored = {
        "blk.0.attn_norm.weight": norm + np.float32(1),
        "blk.0.ssm_norm.weight": gated,
        "blk.0.ssm_conv1d.weight": conv.squeeze(),
        "blk.0.ssm_dt.bias": bias,
        "blk.0.ssm_a": -np.exp(decay),
    }
    paths = (
        str(published.write_safetensors(tmp_path / "a.safetensors", original)),
        str(published.write_gguf(tmp_path / "b.gguf", stored, "qwen3next")),
    )
    back = restored(Safetensors(paths[0]), GgufFile(paths[1]))
    for name, values in original.items():
        np.testing.assert_allclose(back[name], values, rtol=1e-5, atol=1e-7)
    back = restored(Gguf(paths[1]), SafetensorsFile(paths[0]))
    for name, values in stored.items():
        np.testing.assert_allclose(back[name], values, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize(("columns", "heads"), [(64, 8), (96, 5)])
def test_what_mlx_changes_in_qwen3_next_is_changed_back(tmp_path, columns, heads):
    original = {f"model.layers.0.{k}": x for k, x in linear_attention(columns, heads).items()}
    norm, conv = (f"model.layers.0.{k}.weight" for k in ("input_layernorm", "linear_attn.conv1d"))
    moved = np.ascontiguousarray(np.moveaxis(original[conv], 2, 1))
    stored = original | {norm: original[norm] + np.float32(1), conv: moved}
    config = {"model_type": "qwen3_next"}
    source = published.write_safetensors(tmp_path / "a/a.safetensors", original, config)
    path = published.write_safetensors(
        tmp_path / "b/b.safetensors", stored, config, metadata={"format": "mlx"}
    )
    back = restored(Safetensors(str(source)), SafetensorsFile(str(path)))
    for name, values in original.items():
        np.testing.assert_allclose(back[name], values, rtol=1e-5, atol=1e-7)


def test_a_norm_that_is_greater_by_1_says_so(tmp_path):
    x = published.draw(64) + np.float32(1)
    source = write_safetensors(tmp_path / "a.safetensors", norm=x)
    path = write_safetensors(tmp_path / "b.safetensors", norm=x + np.float32(1))
    outcome = Experiment(Safetensors(source), SafetensorsFile(path), 10, 1e-12, 1).run()
    assert "read less 1, as it is greater by 1 in the files" in outcome.tensors["norm"]["remark"]


def test_an_original_without_a_pair_takes_no_tensor_of_another(tmp_path):
    x = published.draw(32, 64)
    names = ["layers.0.w", "vision.layers.0.w"]
    source = published.write_safetensors(tmp_path / "a.safetensors", dict.fromkeys(names, x))
    path = published.write_safetensors(tmp_path / "b.safetensors", {names[0]: x})
    outcome = Experiment(Safetensors(str(source)), SafetensorsFile(str(path)), 10, 1e-12, 1).run()
    assert list(outcome.tensors) == names[:1]
    assert list(outcome.skipped) == names[1:]


def test_another_prefix_is_remarked_once(tmp_path):
    layers = {f"layers.{n}.up.weight": published.draw(32, 64) for n in (0, 1)}
    ends = layers | {"norm.w.bias": published.draw(32, 64)}
    original, stored = (
        published.write_safetensors(
            tmp_path / f"{prefix}safetensors", {f"{prefix}{end}": x for end, x in ends.items()}
        )
        for prefix in ("model.", "net.decoder.")
    )
    found = run(Safetensors(str(original)), SafetensorsFile(str(stored))).tensors
    assert len(found) == 3
    assert {each["remark"] for each in found.values()} == {
        "names are paired by their common ends: 'net.decoder.' stands there for 'model.'"
    }
