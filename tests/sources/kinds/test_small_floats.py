import json
import tracemalloc

import numpy as np
import pytest

from tests.sources.kinds.samples import (
    BESIDE,
    FILE,
    NORM,
    SafetensorsFile,
    decoded,
    expected,
    fault,
    opened,
    save,
    told,
)
from tests.sources.samples import write_safetensors

NAME = "model.layers.0.mlp.experts.gate_up_proj"
BLOCKS, SCALES = f"{NAME}_blocks", f"{NAME}_scales"

BAD = {
    "no scales": ({SCALES: None}, "has no scales"),
    "scales of other experts": ({SCALES: lambda s: s[:1]}, "which do not fit"),
    "scales of three blocks": ({SCALES: lambda s: s[..., :2]}, "which do not fit"),
    "scales of one dimension": ({SCALES: np.ravel}, "which do not fit"),
    "blocks of 15 bytes": ({BLOCKS: lambda b: b[..., :15]}, "which do not fit"),
    "blocks of three dimensions": ({BLOCKS: lambda b: b[0]}, "which do not fit"),
    "blocks of none": ({BLOCKS: lambda b: b[0, 0, 0, 0]}, "which do not fit"),
    "no experts": ({BLOCKS: lambda b: b[:0]}, "which do not fit"),
    "blocks of floats": ({BLOCKS: lambda b: b.astype(np.float32)}, "float32"),
    "blocks of words": ({BLOCKS: lambda b: b.astype(np.int32)}, "int32"),
    "scales of floats": ({SCALES: lambda s: s.astype(np.float32)}, "float32"),
    "scales that are no number": (
        {SCALES: lambda s: np.full(s.shape, np.nan, np.float32)},
        "float32",
    ),
}

BAD_NVFP4 = {
    "no scales": ({"weight_scale": None}, "has no weight_scale"),
    "no scale of the tensor": ({"weight_global_scale": None}, "has no weight_global_scale"),
    "two scales of the tensor": (
        {"weight_global_scale": lambda s: np.concatenate([s, s])},
        "weight_global_scale of [2], which do not fit",
    ),
    "a scale of 0": ({"weight_global_scale": lambda s: s * 0}, "weight_global_scale"),
    "bytes of one dimension": (
        {"weight_packed": np.ravel},
        "has weight of [2048] and weight_scale of [32, 8], which do not fit",
    ),
    "bytes of three": (
        {"weight_packed": lambda w: w[None]},
        "has weight of [1, 32, 64] and weight_scale of [32, 8], which do not fit",
    ),
    "other rows": (
        {"weight_packed": lambda w: w[:31]},
        "has weight of [31, 64] and weight_scale of [32, 8], which do not fit",
    ),
    "no columns": ({"weight_packed": lambda w: w[:, :0]}, "do not fit"),
    "no groups": ({"weight_scale": lambda s: s[:, :0]}, "do not fit"),
    "groups that do not divide": ({"weight_scale": lambda s: s[:, :7]}, "do not fit"),
}

BNB = ["bnb-nf4", "bnb-fp4", "bnb-nf4-nested", "bnb-nf4-nested-float32", "bnb-int8"]
STATE = "weight.quant_state.bitsandbytes__nf4"
DEEP = b"[" * 50_000


def octets(data):
    return np.frombuffer(data, np.uint8)


def state(**changes):
    """Return what changes the state, and drops what is None."""

    def changed(array):
        said = json.loads(bytes(array)) | changes
        return octets(json.dumps({k: v for k, v in said.items() if v is not None}).encode())

    return {STATE: changed}


UNREADABLE = {
    "no JSON": {STATE: lambda _: octets(b"not JSON")},
    "empty": {STATE: lambda s: s[:0]},
    "a list": {STATE: lambda _: octets(b"[1, 2]")},
    "too deep": {STATE: lambda _: octets(DEEP)},
    "too long": {STATE: lambda _: octets(b" " * (2**16 + 1))},
    "digits without end": {STATE: lambda _: octets(b'{"blocksize": ' + b"9" * 5000)},
    "no UTF-8": {STATE: lambda s: s | np.uint8(128)},
    "of floats": {STATE: lambda s: s.astype(np.float32)},
    "no block size": state(blocksize=None),
    "no shape": state(shape=None),
    "a block size of 0": state(blocksize=0),
    "a block size below 0": state(blocksize=-64),
    "a block size of text": state(blocksize="64"),
    "a block size that is true": state(blocksize=True),
    "a block size in halves": state(blocksize=64.5),
    "a shape of nothing": state(shape=[24, 0]),
    "a shape below nothing": state(shape=[-24, -128]),
    "a shape without axes": state(shape=[]),
    "a shape of a number": state(shape=3072),
    "a shape of text": state(shape="ab"),
    "a shape in halves": state(shape=[24, 128.0]),
    "a shape of lists": state(shape=[[24], [128]]),
}

BAD_BNB = {
    "no weight": ("bnb-nf4", {"weight": None}, "has no weight"),
    "no magnitudes": ("bnb-nf4", {"weight.absmax": None}, "has no absmax"),
    "no levels": ("bnb-nf4", {"weight.quant_map": None}, "has no quant_map"),
    "15 levels": ("bnb-nf4", {"weight.quant_map": lambda m: m[:15]}, "levels"),
    "a huge shape": ("bnb-nf4", state(shape=[2**62, 2**62]), "48 magnitudes"),
    "another shape": ("bnb-nf4", state(shape=[24, 129]), "48 magnitudes"),
    "another block size": ("bnb-nf4", state(blocksize=128), "48 magnitudes"),
    "a huge block size": ("bnb-nf4", state(blocksize=10**300), "quant_state"),
    "a weight cut off": ("bnb-nf4", {"weight": lambda w: w[:-1]}, "1535 bytes"),
    "an empty weight": ("bnb-nf4", {"weight": lambda w: w[:0]}, "0 bytes"),
    "no magnitude": ("bnb-nf4", {"weight.absmax": lambda a: a[:0]}, "0 magnitudes"),
    "magnitudes that are codes": (
        "bnb-nf4-nested",
        {"weight.nested_absmax": None},
        "has no nested_absmax",
    ),
    "no nested table": (
        "bnb-nf4-nested",
        {"weight.nested_quant_map": None},
        "has no nested_quant_map",
    ),
    "a nested table cut off": (
        "bnb-nf4-nested",
        {"weight.nested_quant_map": lambda m: m[:255]},
        "nested magnitudes",
    ),
    "nested codes of floats": (
        "bnb-nf4-nested",
        {"weight.absmax": lambda a: a.astype(np.float32)},
        "nested magnitudes",
    ),
    "a nested block size of 0": ("bnb-nf4-nested", state(nested_blocksize=0), "quant_state"),
    "a nested block size below 0": ("bnb-nf4-nested", state(nested_blocksize=-1), "quant_state"),
    "a nested block size of text": ("bnb-nf4-nested", state(nested_blocksize="a"), "quant_state"),
    "a nested offset of text": ("bnb-nf4-nested", state(nested_offset="a"), "quant_state"),
    "a nested offset of a list": ("bnb-nf4-nested", state(nested_offset=[1]), "quant_state"),
    "a nested block size beyond integers": (
        "bnb-nf4-nested",
        state(nested_blocksize=2**70),
        "quant_state",
    ),
    "a block size beyond integers": (
        "bnb-nf4",
        state(blocksize=2**70) | {"weight.absmax": lambda a: a[:1]},
        "quant_state",
    ),
    "a nested offset of nothing": ("bnb-nf4-nested", state(nested_offset=[]), "quant_state"),
    "a nested offset beyond floats": (
        "bnb-nf4-nested",
        state(nested_offset=10**400),
        "quant_state",
    ),
    "a nested offset that is no number": (
        "bnb-nf4-nested",
        state(nested_offset=float("nan")),
        "quant_state",
    ),
    "codes of one dimension": ("bnb-int8", {"weight": np.ravel}, "no matrix"),
    "codes of three": ("bnb-int8", {"weight": lambda w: w[None]}, "do not fit"),
    "SCB of other rows": ("bnb-int8", {"SCB": lambda s: s[:23]}, "do not fit"),
    "no SCB in it": ("bnb-int8", {"SCB": lambda s: s[:0]}, "do not fit"),
}

CASES = [
    pytest.param(folder, *case, id=f"{folder}, {name}")
    for folder, cases in (("mxfp4", BAD), ("ct-nvfp4", BAD_NVFP4))
    for name, case in cases.items()
] + [pytest.param(*case, id=name) for name, case in BAD_BNB.items()]


@pytest.mark.parametrize(("folder", "changes", "why"), CASES)
def test_parts_that_make_no_tensor_are_a_fault(tmp_path, folder, changes, why):
    assert why in fault(save(tmp_path, folder, changes))


@pytest.mark.parametrize("folder", ["mxfp4", "ct-nvfp4", *BNB])
def test_no_config_is_needed(tmp_path, folder):
    tensor = opened(save(tmp_path, folder, config=lambda _: None))
    np.testing.assert_array_equal(decoded(tensor), expected(folder)[1])


@pytest.mark.parametrize("exponent", [0, 1, 254, 255])
def test_the_ends_of_the_exponents_are_no_warning(tmp_path, exponent):
    path = save(tmp_path, "mxfp4", {SCALES: lambda s: np.full_like(s, exponent)})
    values = decoded(opened(path))
    if exponent < 2:
        assert np.abs(values).max() == np.float32(6 * 2.0 ** (exponent - 127))
    elif exponent == 254:
        assert np.isinf(values).any()  # 6 times 2^127
    else:
        assert np.isnan(values).all()  # OCP MX 1.0: the scale 255 is NaN


@pytest.mark.parametrize("dtype", [np.float32, np.int32])
def test_a_name_that_ends_with_blocks_is_no_mxfp4(tmp_path, dtype):
    arrays = {"model.n_blocks": NORM.astype(dtype), BESIDE: NORM}
    file = SafetensorsFile(write_safetensors(tmp_path / FILE, **arrays))
    faults = {name: tensor.fault for name, tensor in file.tensors.items() if tensor.fault}
    assert faults == {}


@pytest.mark.parametrize("folder", ["mxfp4", "ct-nvfp4", *BNB])
def test_a_right_file_has_no_remark(tmp_path, folder):
    assert told(tmp_path, folder) is None


def test_a_scale_left_out_is_told(tmp_path):
    without = {"weight_global_scale": np.ones_like}
    said = "read with another scale it fits the original far better"
    assert said in told(tmp_path, "ct-nvfp4", without)


@pytest.mark.parametrize(
    ("reading", "changes"),
    [
        ("with the halves of bytes swapped", {BLOCKS: lambda b: b << 4 | b >> 4}),
        ("with another scale", {SCALES: lambda s: s + 3}),
    ],
)
def test_words_that_are_written_otherwise_are_told(tmp_path, reading, changes):
    assert f"read {reading} it fits the original far better" in told(tmp_path, "mxfp4", changes)


@pytest.mark.parametrize("changes", UNREADABLE.values(), ids=UNREADABLE)
def test_a_state_that_cannot_be_read_is_a_fault(tmp_path, changes):
    assert fault(save(tmp_path, "bnb-nf4", changes)).startswith(
        "has a quant_state that cannot be read ("
    )


def test_a_state_of_a_single_number_takes_no_memory(tmp_path):
    path = save(tmp_path, "bnb-nf4", {STATE: lambda _: np.int64(2**27)})
    tracemalloc.start()
    why = fault(path)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert "quant_state" in why
    assert peak < 2**24


def test_a_long_row_takes_no_memory_until_it_is_read(tmp_path):
    n = 2**21
    parts = state(shape=[n]) | {
        "weight": lambda _: np.zeros((n // 2, 1), np.uint8),
        "weight.absmax": lambda _: np.ones(n // 64, np.float32),
    }
    path = save(tmp_path, "bnb-nf4", parts)
    tracemalloc.start()
    tensor = SafetensorsFile(path).tensors["model.layers.0.mlp.down_proj.weight"]
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert tensor.shape == (n,)
    assert peak < n


@pytest.mark.parametrize("kind", ["\x1b[2J", "two\nlines", "x" * 10_000, {"a": [1]}])
def test_a_state_plays_no_tricks_on_a_terminal(tmp_path, kind):
    tensor = opened(save(tmp_path, "bnb-nf4", state(quant_type=kind)))
    assert tensor.dtype.isprintable()
    assert len(tensor.dtype) < 100


@pytest.mark.parametrize("shape", [[3072], [2, 12, 128], [1] * 90 + [24, 128]])
def test_a_shape_has_any_number_of_axes(tmp_path, shape):
    tensor = opened(save(tmp_path, "bnb-nf4", state(shape=shape)))
    assert tensor.shape == tuple(shape)
    values = tensor.reader()(0, tensor.size)
    np.testing.assert_array_equal(values, expected("bnb-nf4")[1].reshape(-1))


@pytest.mark.parametrize("kind", [np.float32, np.float16, np.int8])
def test_bytes_may_be_stored_under_any_dtype(tmp_path, kind):
    path = save(tmp_path, "bnb-nf4", {"weight": lambda w: w.reshape(-1).view(kind)})
    np.testing.assert_array_equal(decoded(opened(path)), expected("bnb-nf4")[1])


@pytest.mark.parametrize("folder", ["bnb-nf4", "bnb-fp4", "bnb-nf4-nested"])
def test_halves_of_bytes_that_are_swapped_are_told(tmp_path, folder):
    swapped = {"weight": lambda w: w << 4 | w >> 4}
    said = "read with the halves of bytes swapped it fits the original far better"
    assert said in told(tmp_path, folder, swapped)


def test_magnitudes_left_out_are_told(tmp_path):
    said = "read with another scale it fits the original far better"
    assert said in told(tmp_path, "bnb-int8", {"SCB": lambda s: s * 127})
