"""Small files of every kind, damaged at random: read, or refused in a sentence, at little cost."""

import json
import resource
import signal
import struct
import time
import tracemalloc
from contextlib import contextmanager

import gguf
import ml_dtypes
import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from quantlab.sources.readers import DECODERS, READERS
from tests.sources.kinds.samples import BESIDE, DATA, FILE, NORM, read_metadata, vector, write
from tests.sources.samples import X

pytestmark = pytest.mark.slow
SECONDS, BYTES = 2, 2**26  # that a damaged file of some kB may take
ROUNDS = 12
NUMBERS = (0, 1, -1, 2, 7, 2**31, 2**32, 2**62, 2**63 - 1)
SETTINGS = (None, True, "", "\x1b[2J\n", [], {}, [[]], {"a": []}, 0.5, -1, 0, 3, 2**70, "4", 1e300)


class OverrunError(BaseException):
    """A file took too long; no reader catches it."""


def _overrun(*_):
    raise OverrunError


@contextmanager
def bounded():
    """Allow little time and memory."""
    before = signal.signal(signal.SIGALRM, _overrun)
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (2**36, hard))
    signal.setitimer(signal.ITIMER_REAL, 3 * SECONDS)
    tracemalloc.start()
    start = time.process_time()
    try:
        yield
        assert time.process_time() - start < SECONDS
        assert tracemalloc.get_traced_memory()[1] < BYTES
    finally:
        tracemalloc.stop()
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


def refused(error, path):
    """Require one sentence that names the file, and not because memory ran out."""
    assert str(path) in str(error)
    assert str(error).isprintable(), str(error)
    assert len(str(error)) < 1500, str(error)
    assert not isinstance(error.__cause__, MemoryError | RecursionError)


def ends(read, size):
    """Read both ends of a tensor."""
    read(0, min(size, 4096))
    read(max(size - 4096, 0), size)


def require_harmless(path, kind):
    """Open, list and decode all of a file."""
    with bounded():
        try:
            source = READERS[kind](str(path))
            for tensor in source.tensors():
                if tensor.size and not hasattr(tensor, "reason"):
                    ends(tensor.block, tensor.size)
        except ValueError as error:
            refused(error, path)
        try:
            stored = DECODERS[kind](str(path))
        except ValueError as error:
            refused(error, path)
            return
        for name, tensor in stored.tensors.items():
            assert tensor.dtype.isprintable()
            assert tensor.remark is None or tensor.remark.isprintable()
            original = type("Original", (), {"name": name, "shape": tensor.shape})
            try:
                opened = stored.open(original)
                if tensor.size:
                    ends(opened.read, tensor.size)
            except ValueError as error:
                refused(error, path)


def flipped(rng, data, span=None):
    """Return bytes of which some are others, or that end early."""
    damaged = bytearray(data)
    for _ in range(rng.integers(1, 6)):
        place = int(rng.integers(0, min(span or len(data), len(data))))
        damaged[place] = int(rng.integers(0, 256))
    return bytes(damaged[: rng.integers(len(damaged))] if rng.random() < 0.2 else damaged)


def reshaped(rng, array):
    """Return the same bytes under another shape and dtype."""
    octets = np.frombuffer(np.ascontiguousarray(array).tobytes(), np.uint8)
    dtype = np.dtype(rng.choice(["u1", "i1", "i2", "f2", "i4", "u4", "f4", "i8", "f8", "?"]))
    values = octets[: octets.size // dtype.itemsize * dtype.itemsize].view(dtype)
    rows = int(rng.choice([1, 2, 4, 8, 16, 32, 3, 5]))
    way = rng.integers(5)
    if way == 0:
        return values
    if way == 1:
        return values[:0]
    if way == 2:
        return values[0] if values.size else values
    shape = (rows, -1) if way == 3 else (1, rows, -1)
    return values[: values.size // rows * rows].reshape(shape) if values.size else values


def cut(rng, array):
    """Return an array with one axis shorter or longer."""
    if not array.ndim:
        return np.repeat(array, 2)
    axis = int(rng.integers(array.ndim))
    size = array.shape[axis] + int(rng.choice([-1, 1, 3]))
    return np.resize(array, (*array.shape[:axis], max(size, 0), *array.shape[axis + 1 :]))


def disturbed(rng, settings):
    """Return JSON with one value replaced, at any depth."""
    if isinstance(settings, dict) and settings and rng.random() < 0.85:
        key = str(rng.choice(list(settings)))
        return settings | {key: disturbed(rng, settings[key])}
    return SETTINGS[rng.integers(len(SETTINGS))]


VECTORS = sorted(path.parent.name for path in DATA.glob("*/config.json"))


@pytest.mark.parametrize("folder", VECTORS)
def test_a_damaged_checkpoint(tmp_path, folder):
    parts, config = vector(folder)
    parts[BESIDE] = NORM
    path = tmp_path / FILE
    rng = np.random.default_rng(VECTORS.index(folder))
    for _ in range(ROUNDS):
        part = str(rng.choice(list(parts)))
        changes = {
            "shape": lambda part=part: {part: reshaped(rng, parts[part])},
            "size": lambda part=part: {part: cut(rng, parts[part])},
            "values": lambda part=part: {
                part: np.frombuffer(flipped(rng, parts[part].tobytes()) + bytes(8), "u1")[
                    : parts[part].nbytes
                ]
            },
            "none": dict,
        }
        changed = changes[str(rng.choice(list(changes)))]()
        if rng.random() < 0.2:
            changed = dict.fromkeys([part])
        kept = {k: v for k, v in (parts | changed).items() if v is not None}
        metadata = read_metadata(folder)
        if rng.random() < 0.3 and folder.startswith("tao"):
            name, about = next((key, text) for key, text in metadata.items() if text[0] == "{")
            metadata[name] = json.dumps(disturbed(rng, json.loads(about)))
        write(path, kept, metadata)
        said = config if rng.random() < 0.6 else disturbed(rng, config)
        (tmp_path / "config.json").write_text(json.dumps(said))
        require_harmless(path, "safetensors")
        whole = path.read_bytes()
        length = struct.unpack("<Q", whole[:8])[0]
        path.write_bytes(flipped(rng, whole, length + 8 if rng.random() < 0.7 else None))
        require_harmless(path, "safetensors")


STATES = [folder for folder in VECTORS if folder.startswith("bnb") and folder != "bnb-int8"]


@pytest.mark.parametrize("folder", STATES)
def test_a_damaged_state_of_bitsandbytes(tmp_path, folder):
    parts, _ = vector(folder)
    (key,) = (part for part in parts if "quant_state" in part)
    state = json.loads(bytes(parts[key]))
    rng = np.random.default_rng(0)
    for _ in range(4 * ROUNDS):
        said = json.dumps(disturbed(rng, state)).encode()
        if rng.random() < 0.3:
            said = flipped(rng, said) or b" "
        write(tmp_path / FILE, parts | {key: np.frombuffer(said, np.uint8)})
        require_harmless(tmp_path / FILE, "safetensors")


def quantized_gguf(path):
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_head_count(4)
    writer.add_token_list(["a", "b", "c"])
    writer.add_array("scores", [1, 2, 3])
    rng = np.random.default_rng(0)
    for kind, octets in (("Q4_K", 144), ("Q8_0", 34), ("IQ2_XS", 74)):
        rows = rng.integers(0, 60, (4, octets), np.uint8)
        writer.add_tensor(kind, rows, raw_dtype=gguf.GGMLQuantizationType[kind])
    writer.add_tensor("norm", X)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path.read_bytes()


@pytest.mark.parametrize("seed", range(8))
def test_a_damaged_gguf(tmp_path, seed):
    path = tmp_path / "m.gguf"
    whole = quantized_gguf(path)
    require_harmless(path, "gguf")
    rng = np.random.default_rng(seed)
    header = whole.index(b"norm") + 32
    for _ in range(2 * ROUNDS):
        if rng.random() < 0.5:
            place = int(rng.integers(8, header - 8))
            number = NUMBERS[rng.integers(len(NUMBERS))]
            octets = struct.pack("<q" if abs(number) < 2**63 else "<Q", number)
            path.write_bytes(whole[:place] + octets[: rng.choice([4, 8])] + whole[place + 8 :])
        else:
            path.write_bytes(flipped(rng, whole, header if rng.random() < 0.7 else None))
        require_harmless(path, "gguf")


@pytest.mark.parametrize("length", [2**33, 2**64 - 1])
@pytest.mark.parametrize("kind", [gguf.GGUFValueType.UINT8, gguf.GGUFValueType.STRING])
def test_an_array_of_gguf_without_end(tmp_path, kind, length):
    head = struct.pack("<4sIQQ", b"GGUF", 3, 0, 1)
    key = struct.pack("<Q1sIIQ", 1, b"a", gguf.GGUFValueType.ARRAY, kind, length)
    (tmp_path / "m.gguf").write_bytes(head + key)
    require_harmless(tmp_path / "m.gguf", "gguf")


@pytest.mark.parametrize("counts", [(2**62, 0), (0, 2**62), (2**32, 2**32)])
def test_a_gguf_that_counts_without_end(tmp_path, counts):
    (tmp_path / "m.gguf").write_bytes(struct.pack("<4sIQQ", b"GGUF", 3, *counts))
    require_harmless(tmp_path / "m.gguf", "gguf")


def onnx_model(folder, external):
    """Return a model of every kind of weight."""
    rng = np.random.default_rng(0)
    arrays = {
        "norm": X,
        "a_quantized": rng.integers(0, 256, (8, 32), np.uint8),
        "a_scale": np.ones(8, np.float32),
        "b_quantized": rng.integers(-99, 99, (8, 32)).astype(np.int8),
        "b_scale": np.ones((8, 2), np.float16),
        "b_zero_point": np.ones((8, 2), np.int8),
        "c_Q4": rng.integers(0, 256, (5, 2, 16), np.uint8),
        "c_scales": np.ones(10, np.float32),
        "c_zeros": np.ones(5, np.uint8),
        "d_quantized": np.ones((3, 3), np.int8),
        "d_scale": np.float32(1),
        "d_zero_point": np.int8(3),
        "f": X,
        "g_quantized": np.ones((2, 3, 20), np.int8),
        "g_scale": np.ones((2, 20), np.float32),
        "h_scale": np.ones((2, 6), ml_dtypes.float8_e4m3fn),
    }
    made = [numpy_helper.from_array(np.asarray(array), name) for name, array in arrays.items()]
    made.append(helper.make_tensor("e_quantized", TensorProto.INT4, [3], bytes(2), raw=True))
    made.append(
        helper.make_tensor("h_f4", TensorProto.FLOAT4E2M1, [8, 6], bytes(range(24)), raw=True)
    )
    inputs = {
        "a": ["a_quantized", "a_scale"],
        "b": ["b_quantized", "b_scale", "b_zero_point"],
        "e": ["e_quantized", "d_scale"],
        "f_dq": ["f_q", "d_scale", "d_zero_point"],
        "h_steps": ["h_scale", "d_scale"],
        "h": ["h_f4", "h_steps"],
    }
    about = {
        "a": {"axis": 0},
        "b": {"axis": 1, "block_size": 16},
        "h": {"axis": 0, "block_size": 4},
    }
    nodes = [
        helper.make_node("DequantizeLinear", names, [out], **about.get(out, {}))
        for out, names in inputs.items()
    ]
    body = helper.make_graph(
        [helper.make_node("Constant", [], ["norm"], value=numpy_helper.from_array(X))], "b", [], []
    )
    nodes += [
        helper.make_node("QuantizeLinear", ["f", "d_scale", "d_zero_point"], ["f_q"]),
        helper.make_node("Constant", [], ["k"], value_floats=[1.0, 2.0]),
        helper.make_node("If", ["x"], ["i"], then_branch=body, else_branch=body),
        helper.make_node("QLinearMatMul", ["x", "", "", *inputs["b"]], ["m"]),
        helper.make_node("DynamicQuantizeLSTM", ["x", "g_quantized", *[""] * 6, "g_scale"], ["g"]),
    ]
    nodes.append(
        helper.make_node(
            "MatMulNBits",
            ["x", "c_Q4", "c_scales", "c_zeros"],
            ["c"],
            domain="com.microsoft",
            K=50,
            N=5,
            bits=4,
            block_size=32,
        )
    )
    model = helper.make_model(helper.make_graph(nodes, "g", [], [], made))
    if external:
        onnx.save(
            model,
            folder / "m.onnx",
            save_as_external_data=True,
            location="m.data",
            size_threshold=0,
        )
        model = onnx.load(folder / "m.onnx", load_external_data=False)
    return model


def disturb(rng, model):
    """Change one field of a model."""
    held = model.graph.initializer
    one, other = held[rng.integers(len(held))], held[rng.integers(len(held))]
    nodes = [node for node in model.graph.node if node.input]
    node = nodes[rng.integers(len(nodes))]
    number = NUMBERS[rng.integers(len(NUMBERS))]
    way = rng.integers(8)
    if way == 0 and one.dims:
        one.dims[rng.integers(len(one.dims))] = number
    elif way == 1:
        one.dims.append(number)
    elif way == 2:
        one.data_type = int(rng.integers(0, 30))
    elif way == 3:
        one.raw_data = flipped(rng, one.raw_data or b"abcd")
    elif way == 4:
        one.name = other.name
    elif way == 5 and one.external_data:
        entry = one.external_data[rng.integers(len(one.external_data))]
        entry.value = str(rng.choice([str(number), "", "../m.data", "m.data/.", "m.onnx", "x"]))
    elif way == 6 and node.attribute:
        said = node.attribute[rng.integers(len(node.attribute))]
        values = [number, 0.5, "a", [1, 2], [0.5], float("nan")]
        said.CopyFrom(helper.make_attribute(said.name, values[rng.integers(len(values))]))
    else:
        node.input[rng.integers(len(node.input))] = str(rng.choice([one.name, "", "gone"]))


@pytest.mark.parametrize("external", [False, True])
@pytest.mark.parametrize("seed", range(6))
def test_a_damaged_onnx(tmp_path, seed, external):
    whole = onnx_model(tmp_path, external)
    path, rng = tmp_path / "m.onnx", np.random.default_rng(seed)
    path.write_bytes(whole.SerializeToString())
    require_harmless(path, "onnx")
    data = (tmp_path / "m.data").read_bytes() if external else b""
    for _ in range(2 * ROUNDS):
        model = onnx.ModelProto()
        model.CopyFrom(whole)
        for _ in range(rng.integers(0, 3)):
            disturb(rng, model)
        octets = model.SerializeToString()
        path.write_bytes(octets if rng.random() < 0.7 else flipped(rng, octets))
        if external:
            size = len(data) if rng.random() < 0.8 else int(rng.integers(len(data)))
            (tmp_path / "m.data").unlink()  # a mapped file that shrinks kills who reads it
            (tmp_path / "m.data").write_bytes(data[:size])
        require_harmless(path, "onnx")
