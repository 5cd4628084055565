"""The vectors of ``tests/data/stored``, changed and saved anew, and what is read back."""

import json
import warnings

import numpy as np
from safetensors import safe_open

from quantlab.experiment import Experiment
from quantlab.sources.safetensors import Safetensors, SafetensorsFile, read_arrays
from tests.conftest import ROOT
from tests.sources.samples import write_raw, write_safetensors

DATA = ROOT / "tests/data/stored"
LAYER = "model.layers.0.mlp.down_proj"
BESIDE = "model.norm.weight"  # a tensor that is stored as it is
NORM = np.linspace(0.5, 1.5, 64, dtype=np.float32)
KINDS = {
    "float64": "F64", "float32": "F32", "float16": "F16", "bfloat16": "BF16", "bool": "BOOL",
    "float8_e4m3fn": "F8_E4M3", "float8_e5m2": "F8_E5M2", "float8_e8m0fnu": "F8_E8M0",
    "int8": "I8", "uint8": "U8", "int16": "I16", "int32": "I32", "uint32": "U32", "int64": "I64",
}  # fmt: skip


def vector(folder):
    """Return the parts of a vector by what follows the layer's name, and its config.json."""
    tensors = {each.name: each.open().array for each in read_arrays(str(DATA / folder / FILE))}
    config = json.loads((DATA / folder / "config.json").read_bytes())
    return {short(name): np.array(array) for name, array in tensors.items()}, config


def read_metadata(folder):
    """Return the metadata of a vector's file."""
    with safe_open(DATA / folder / FILE, framework="numpy") as content:
        return content.metadata()


FILE = "model.safetensors"


def short(name):
    return name.removeprefix(f"{LAYER}.")


def full(part):
    return part if part.startswith("model.") else f"{LAYER}.{part}"


def write(path, parts, metadata=None):
    """Write parts of a layer, of any dtype."""
    header, data = {"__metadata__": metadata} if metadata else {}, b""
    for part, array in parts.items():
        octets = np.ascontiguousarray(array).tobytes()
        header[full(part)] = {
            "dtype": KINDS[array.dtype.name],
            "shape": list(array.shape),
            "data_offsets": [len(data), len(data) + len(octets)],
        }
        data += octets
    return write_raw(path, header, data)


def save(directory, folder, changes=None, config=None):
    """Save a vector beside a dense tensor; a change is a function of a part, or None to drop it.

    Its config.json becomes what `config` makes of it, and is left out where that is None.
    """
    parts, settings = vector(folder)
    for part, change in (changes or {}).items():
        if change is None:
            del parts[part]
        else:
            parts[part] = np.asarray(change(parts.get(part)))
    if config is not None:
        settings = config(settings)
    if settings is not None:
        (directory / "config.json").write_text(json.dumps(settings))
    return write(directory / FILE, parts | {BESIDE: NORM})


def quantization(**changes):
    """Return what changes the settings of the quantization in a config.json."""
    return lambda config: {
        **config,
        **{key: config[key] | changes for key in config if key.startswith("quantization")},
    }


def opened(path):
    """Return the quantized tensor of a file; the dense one beside it is as it was."""
    tensors = dict(SafetensorsFile(path).tensors)
    beside = tensors.pop(BESIDE)
    assert np.array_equal(decoded(beside), NORM)
    (tensor,) = tensors.values()
    return tensor


def decoded(tensor):
    return tensor.reader()(0, tensor.size).reshape(tensor.shape)


def expected(folder):
    """Return the name of a vector's tensor, what its package returns, and what was quantized."""
    arrays = np.load(DATA / folder / "expected.npz")
    (name,) = (each.removesuffix(".original") for each in arrays if each.endswith(".original"))
    return name, arrays[name], arrays[f"{name}.original"]


def fault(path):
    """Return why a tensor cannot be decoded, "" where it can; any warning is an error."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        tensor = opened(path)
        reason = tensor.find_fault()
        if reason is None:
            decoded(tensor)
            return ""
    assert "\n" not in reason
    assert len(reason) < 300
    assert tensor.size == 0 or tensor.fault is None
    return reason


def run(directory, path, name, x):
    """Measure a file beside its original; return the outcome of the run."""
    source = write_safetensors(directory / "original.safetensors", **{name: x})
    return Experiment(Safetensors(source), SafetensorsFile(path), 10, 1e-12, 1).run()


def told(directory, folder, changes=None, config=None, x=None):
    """Return what a run says of a vector, changed, beside its own original or another."""
    name, _, original = expected(folder)
    path = save(directory, folder, changes, config)
    outcome = run(directory, path, name, original if x is None else x)
    return outcome.failed.get(name) or outcome.tensors[name]["remark"]
