import json
import pickle
import re

import ml_dtypes
import numpy as np
import pytest
from safetensors import TensorSpec, serialize_file

from quantlab.experiment import Experiment
from quantlab.sources.file import PICKLED
from quantlab.sources.safetensors import MAX_CONFIG_BYTES, Safetensors, SafetensorsFile, read_arrays
from quantlab.sources.tensor import Tensor
from tests.conftest import run_without_privileges
from tests.sources.kinds.samples import BESIDE, DATA, FILE, NORM, read_metadata, save, vector, write
from tests.sources.published import draw, fp8, nvfp4
from tests.sources.published import write_safetensors as write_checkpoint
from tests.sources.samples import X, read, write_raw, write_safetensors


def test_a_file_without_permission_is_not_missing(tmp_path):
    shard, index = tmp_path / "m-1.safetensors", tmp_path / "m.safetensors.index.json"
    write_safetensors(shard, w=X)
    index.write_text(json.dumps({"weight_map": {"w": shard.name}}))
    shard.chmod(0)
    done = run_without_privileges("-m", "quantlab", "tensors", index)
    why = f"{index} needs {shard}, which cannot be read: Permission denied"
    assert (done.returncode, done.stderr) == (1, f"quantlab: {why}\n")


def test_safetensors_of_every_dtype_without_torch(tmp_path):
    kinds = {
        "float16": np.float16,
        "bfloat16": ml_dtypes.bfloat16,
        "float8_e4m3fn": ml_dtypes.float8_e4m3fn,
        "float8_e5m2": ml_dtypes.float8_e5m2,
        "float64": np.float64,
        "float32": np.float32,
    }
    stored = {name: X.astype(kind) for name, kind in kinds.items()} | {"ids": np.arange(4)}
    path = tmp_path / "m.safetensors"
    specs = {
        name: TensorSpec(
            dtype=name if name in kinds else "int64",
            shape=array.shape,
            data_ptr=array.ctypes.data,
            data_len=array.nbytes,
        )
        for name, array in stored.items()
    }
    serialize_file(specs, path)
    source = Safetensors(str(path))
    found = read(source)
    assert found.keys() == kinds.keys()
    for name, values in found.items():
        assert np.array_equal(values, stored[name].astype(np.float32)), name
    assert {entry.name: entry.dtype for entry in source.entries} == {
        name: name for name in kinds
    } | {"ids": "I64"}
    assert source.skipped() == {"ids": "I64 is no floating-point type"}


def test_a_sharded_checkpoint_is_one_source(tmp_path):
    write_safetensors(tmp_path / "a.safetensors", first=X, spare=X)
    write_safetensors(tmp_path / "b.safetensors", second=X + 1)
    index = tmp_path / "model.safetensors.index.json"
    weights = {"first": "a.safetensors", "second": "b.safetensors"}
    index.write_text(json.dumps({"metadata": {}, "weight_map": weights}))
    found = read(Safetensors(str(index)))
    assert list(found) == ["first", "second"]
    assert np.array_equal(found["second"], X + 1)


VECTORS = sorted(path.parent for path in DATA.glob("*/model.safetensors"))


def stored(folder):
    (tensor,) = SafetensorsFile(str(folder / "model.safetensors")).tensors.values()
    return tensor


def decoded(tensor):
    return tensor.reader()(0, tensor.size).reshape(tensor.shape)


@pytest.mark.parametrize("folder", VECTORS, ids=lambda path: path.name)
def test_a_decoder_equals_the_package_bit_for_bit(folder):
    tensor, expected = stored(folder), np.load(folder / "expected.npz")
    assert tensor.fault is None
    assert tensor.remark is None
    np.testing.assert_array_equal(decoded(tensor), expected[tensor.name], strict=True)
    assert 8 * sum(part.array.nbytes for part in tensor.parts) == tensor.bits


@pytest.mark.parametrize("folder", VECTORS, ids=lambda path: path.name)
def test_any_stretch_and_any_rows_are_those_of_the_whole(folder):
    tensor, rng = stored(folder), np.random.default_rng(0)
    whole, read = decoded(tensor), tensor.reader()
    for _ in range(20):
        start, stop = sorted(rng.integers(0, tensor.size + 1, 2))
        if start < stop:
            np.testing.assert_array_equal(read(start, stop), whole.reshape(-1)[start:stop])
    flat = whole.reshape(-1, whole.shape[-1])
    which = rng.permutation(len(flat))[:5]
    np.testing.assert_array_equal(tensor.decode_rows(which), flat[which])


def test_there_is_a_vector_of_every_decoder():
    kinds = {stored(folder).dtype.split()[0] for folder in VECTORS}
    assert kinds >= {
        "AWQ",
        "GPTQ",
        "compressed-tensors",
        "bitsandbytes",
        "MLX",
        "MXFP4",
        "fp8",
        "torchao",
    }


@pytest.mark.parametrize("folder", VECTORS, ids=lambda path: path.name)
def test_a_checkpoint_in_several_files_is_one(tmp_path, folder):
    parts, config = vector(folder.name)
    (tmp_path / "config.json").write_text(json.dumps(config))
    weights = {}
    for number, (part, array) in enumerate((parts | {BESIDE: NORM}).items()):
        name = write(tmp_path / f"{number}.safetensors", {part: array}, read_metadata(folder.name))
        names = (array.name for array in read_arrays(str(name)))
        weights |= dict.fromkeys(names, f"{number}.safetensors")
    index = tmp_path / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": weights}))
    found = dict(SafetensorsFile(str(index)).tensors)
    np.testing.assert_array_equal(decoded(found.pop(BESIDE)), NORM)
    ((name, tensor),) = found.items()
    np.testing.assert_array_equal(decoded(tensor), np.load(folder / "expected.npz")[name])


def test_one_damaged_tensor_costs_none_of_the_others(tmp_path):
    good, _ = vector("awq-g32")
    bad, _ = vector("ct-pack-4-sym")
    bad = {f"model.layers.1.{part}": array for part, array in bad.items()}
    bad["model.layers.1.weight_shape"] = np.array([3, 5])
    found = SafetensorsFile(write(tmp_path / FILE, good | bad | {BESIDE: NORM})).tensors
    faults = {name: tensor.fault for name, tensor in found.items() if tensor.fault}
    assert list(faults) == ["model.layers.1.weight"]
    assert len(found) == 3


def test_an_empty_tensor_beside_them_is_no_harm(tmp_path):
    parts, _ = vector("awq-g32")
    for empty in (np.empty(0, np.float32), np.empty((0, 4), np.float16), np.empty(0, np.int32)):
        path = write(tmp_path / FILE, parts | {"model.empty": empty})
        assert len(SafetensorsFile(path).tensors) == 1 + (empty.dtype != np.int32)
    assert SafetensorsFile(write(tmp_path / FILE, {"model.empty": empty})).tensors == {}


@pytest.mark.parametrize("kind", ["F4", "F6_E2M3", "C64"])
def test_a_dtype_that_numpy_lacks_costs_none_of_the_others(tmp_path, kind):
    size = {"F4": 4, "F6_E2M3": 6, "C64": 64}[kind]
    header = {
        "odd": {"dtype": kind, "shape": [8], "data_offsets": [0, size]},
        "w": {"dtype": "F32", "shape": [1], "data_offsets": [size, size + 4]},
    }
    path = write_raw(tmp_path / FILE, header, bytes(size + 4))
    tensors = SafetensorsFile(path).tensors
    assert "w" in tensors
    assert ("odd" in tensors) == (kind != "C64")


def test_a_type_below_a_byte_ends_within_one_and_its_scales_may_not_fit(tmp_path):
    header = {"w.weight": {"dtype": "F6_E3M2", "shape": [4, 5], "data_offsets": [0, 15]}}
    path = tmp_path / FILE
    (odd,) = SafetensorsFile(write_raw(path, header, bytes(range(15)))).tensors.values()
    whole = decoded(odd).reshape(-1)
    for start in range(20):
        np.testing.assert_array_equal(odd.reader()(start, 20), whole[start:])
    header["w.scale"] = {"dtype": "F32", "shape": [3], "data_offsets": [15, 27]}
    (odd,) = SafetensorsFile(write_raw(path, header, bytes(27))).tensors.values()
    assert odd.fault == (
        "has weight of [15] and scale of [3] for the shape [4, 5], which do not fit"
    )


CONFIGS = {
    "no JSON": (b"{", r"stands beside a config.json that is no JSON \("),
    "no UTF-8": (b'{"a": "\xff"}', r"stands beside a config.json that is no JSON \("),
    "too deep": (b"[" * 200_000, r"stands beside a config.json that is no JSON \("),
    "endless digits": (b"9" * 5000, r"stands beside a config.json that is no JSON \("),
    "too long": (
        b" " * (MAX_CONFIG_BYTES + 1),
        f"stands beside a config.json of {MAX_CONFIG_BYTES + 1} bytes",
    ),
    "a list of settings": (
        b'{"quantization_config": [4]}',
        "stands beside a config.json whose quantization_config is no mapping",
    ),
}


@pytest.mark.parametrize(("content", "said"), CONFIGS.values(), ids=CONFIGS)
def test_a_config_that_cannot_be_read_is_one_sentence(tmp_path, content, said):
    path = save(tmp_path, "awq-g32")
    (tmp_path / "config.json").write_bytes(content)
    with pytest.raises(ValueError, match=said) as caught:
        SafetensorsFile(path)
    assert str(caught.value).startswith(path)
    assert str(caught.value).isprintable()
    assert len(str(caught.value)) < 1000


def test_the_family_of_a_model_is_a_name_in_its_config(tmp_path):
    source = Safetensors(save(tmp_path, "awq-g32"))
    for content, family in (('{"model_type": "gpt_oss"}', "gpt_oss"), ('{"model_type": []}', None)):
        (tmp_path / "config.json").write_text(content)
        assert source.family.model_type == family
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(ValueError, match=r"model\.safetensors stands beside a config\.json"):
        _ = source.family.model_type


METHOD = '{"quantization_config": {"quant_method": %s}}'


@pytest.mark.parametrize(
    "content",
    [
        "[]",
        "[1]",
        "null",
        "3",
        '"text"',
        "{}",
        '{"a": NaN}',
        METHOD % '"auto-round"',
        METHOD % "[]",
    ],
)
def test_a_config_that_says_nothing_is_none(tmp_path, content):
    path = save(tmp_path, "awq-g32")
    (tmp_path / "config.json").write_text(content)
    tensor = SafetensorsFile(path).tensors["model.layers.0.mlp.down_proj.weight"]
    np.testing.assert_array_equal(
        decoded(tensor), np.load(DATA / "awq-g32/expected.npz")[tensor.name]
    )


@pytest.mark.parametrize("bits", ["\x1b[2J", "two\nlines", "x" * 100_000, [[4]] * 10_000])
def test_a_config_plays_no_tricks_on_a_terminal(tmp_path, bits):
    config = {"quantization_config": {"quant_method": "awq", "bits": bits}}
    path = save(tmp_path, "awq-g32", config=lambda _: config)
    remark = SafetensorsFile(path).tensors["model.layers.0.mlp.down_proj.weight"].remark
    assert remark.startswith("config.json says bits ")
    assert remark.isprintable()
    assert len(remark) < 300


class Bomb:
    """What runs code where it is unpickled."""

    def __reduce__(self):
        return (pytest.fail, ("a pickle was loaded",))


@pytest.mark.parametrize("suffix", PICKLED)
@pytest.mark.parametrize("reader", [Safetensors, SafetensorsFile])
def test_a_pickle_is_refused_and_never_loaded(tmp_path, reader, suffix):
    path = tmp_path / f"model{suffix}"
    path.write_bytes(pickle.dumps(Bomb()))
    with pytest.raises(ValueError, match="convert it to safetensors") as caught:
        reader(str(path))
    assert str(caught.value).startswith(f"{path} holds pickled objects, which run code")


@pytest.mark.parametrize("suffix", ["safetensors", "json", "h5", "msgpack", "tar"])
def test_a_pickle_under_another_name_is_no_tensor_file(tmp_path, suffix):
    path = tmp_path / f"model.{suffix}"
    path.write_bytes(pickle.dumps(Bomb()))
    for reader in (Safetensors, SafetensorsFile):
        with pytest.raises(ValueError, match="is no safetensors file, or is cut off or damaged"):
            reader(str(path))


def test_a_fault_that_only_decoding_finds_costs_one_tensor(tmp_path):
    good, _ = vector("awq-g32")
    bad, _ = vector("gptq-4-asym-order")
    bad["g_idx"] = np.full_like(bad["g_idx"], 99)
    bad = {f"model.layers.1.{part}": array for part, array in bad.items()}
    path = write(tmp_path / FILE, good | bad | {BESIDE: NORM})
    sentence = "has g_idx of [128] that names no group of 4"
    tensors = {tensor.name: tensor for tensor in Safetensors(str(path), select="all").tensors()}
    assert len(tensors) == 3
    with pytest.raises(ValueError, match=re.escape(sentence)):
        tensors["model.layers.1.weight"].require_finite()
    bound = SafetensorsFile(str(path))
    x = Tensor("model.layers.1.weight", np.zeros((1, 1), np.float32))
    with pytest.raises(ValueError, match=re.escape(sentence)):
        bound.open(x)


LAYER = "model.layers.0.self_attn"


def remarks(folder, original, stored):
    """Return the remark of each tensor that has one."""
    source = write_checkpoint(folder / "a/a.safetensors", original)
    path = write_checkpoint(folder / "b/b.safetensors", stored)
    outcome = Experiment(Safetensors(str(source)), SafetensorsFile(str(path)), 10, 1e-12, 1).run()
    assert not outcome.failed
    return {name: row["remark"] for name, row in outcome.tensors.items() if row["remark"]}


def in_fp8(*names, **scales):
    """Return an original, and it in fp8 with scales beside each weight."""
    original, stored = {}, {}
    for name in names:
        original[f"{name}.weight"] = draw(32, 64)
        codes, scale, _ = fp8(original[f"{name}.weight"])
        stored |= {f"{name}.weight": codes, f"{name}.weight_scale": np.array(scale)}
        stored |= {f"{name}.{key}": np.float32(value) for key, value in scales.items()}
    return original, stored


@pytest.mark.parametrize("key", ["input_scale", "scale_input", "activation_scale", "qscale_act"])
@pytest.mark.parametrize(("value", "text"), [(0, "0"), (np.inf, "inf"), (np.nan, "nan"), (1, "")])
def test_a_scale_of_activations_that_is_none_is_remarked(tmp_path, key, value, text):
    found = remarks(tmp_path, *in_fp8("mlp.up_proj", **{key: [value]}))
    sentence = f"its {key} is {text}, with which no activation is computed"
    assert found == ({"mlp.up_proj.weight": sentence} if text else {})


@pytest.mark.parametrize("place", [f"{LAYER}.", f"{LAYER}.k_proj."])
@pytest.mark.parametrize(("value", "is_told"), [(1, True), (0.5, False)])
def test_scales_of_a_cache_that_was_not_calibrated_are_remarked(tmp_path, place, value, is_told):
    original, stored = in_fp8(f"{LAYER}.k_proj", f"{LAYER}.o_proj")
    stored |= {f"{place}k_scale": np.float32(1), f"{place}v_scale": np.float32(value)}
    sentence = "every k_scale and v_scale of the file is 1, as where no KV cache was calibrated"
    found = remarks(tmp_path, original, stored)
    assert found == ({f"{LAYER}.k_proj.weight": sentence} if is_told else {})


def test_scales_of_layers_that_are_joined_must_be_the_same(tmp_path):
    original, stored = {}, {}
    names = [f"{LAYER}.{name}" for name in ("q_proj", "k_proj", "v_proj", "o_proj")]
    names += [f"model.layers.{n}.mlp.{name}" for n in (0, 1) for name in ("gate_proj", "up_proj")]
    for n, name in enumerate(names):
        x = original[f"{name}.weight"] = draw(32, 64) * (2 if n in (1, 7) else 1)
        packed, scales, whole, _ = nvfp4(x)
        stored |= {f"{name}.weight": packed, f"{name}.weight_scale": scales}
        stored[f"{name}.weight_scale_2"] = np.array(whole)
    end = "vLLM joins the layers and takes the largest for all"
    one, two = "model.layers.1.mlp.gate_proj.weight", "model.layers.1.mlp.up_proj.weight"
    assert remarks(tmp_path, original, stored) == {
        f"{names[0]}.weight": f"its weight_scale_2 is not that of k_proj: {end}",
        f"{names[1]}.weight": f"its weight_scale_2 is not that of q_proj and v_proj: {end}",
        f"{names[2]}.weight": f"its weight_scale_2 is not that of k_proj: {end}",
        one: f"its weight_scale_2 is not that of up_proj: {end}",
        two: f"its weight_scale_2 is not that of gate_proj: {end}",
    }


def test_experts_that_are_left_as_they_are_are_remarked(tmp_path):
    original, stored = in_fp8(f"{LAYER}.o_proj")
    expert = "model.layers.0.mlp.experts.0.up_proj.weight"
    original[expert] = stored[expert] = draw(32, 64).astype(np.float16)
    sentence = "the experts are stored as they are, while other weights are quantized"
    assert remarks(tmp_path, original, stored) == {expert: sentence}
    others = {name: x.astype(np.float32) for name, x in original.items()}
    assert remarks(tmp_path, original, others) == {}
    quantized = in_fp8("model.layers.0.mlp.experts.1.up_proj")
    assert remarks(tmp_path, original | quantized[0], stored | quantized[1]) == {}
