"""Files that tests write, and what is read back."""

import json
import struct

import gguf
import numpy as np
import safetensors.numpy

RNG = np.random.default_rng(0)


X = RNG.standard_normal((40, 30)).astype(np.float32)


def read(source):
    """Return what each chosen tensor holds, as float32 in its shape."""
    return {
        tensor.name: tensor.block(0, tensor.size).reshape(tensor.shape)
        for tensor in source.tensors()
    }


def write_safetensors(path, **arrays):
    safetensors.numpy.save_file(arrays, path)
    return str(path)


def write_raw(path, header, data=b""):
    """Write a safetensors file by hand, so that its header may lie."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + data)
    return str(path)


def write_gguf(path, **arrays):
    writer = gguf.GGUFWriter(path, "test")
    for name, (array, kind) in arrays.items():
        writer.add_tensor(name, array, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return str(path)
