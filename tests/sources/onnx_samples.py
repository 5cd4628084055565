"""ONNX models that tests write, and what ONNX Runtime computes of them."""

import numpy as np
import onnxruntime
from onnx import TensorProto, helper, numpy_helper

from quantlab.sources.onnx import OnnxFile
from tests.sources.kinds.samples import decoded
from tests.sources.samples import RNG


def save(path, *initializers, nodes=()):
    graph = helper.make_graph(list(nodes), "g", [], [], list(initializers))
    path.write_bytes(helper.make_model(graph).SerializeToString())
    return str(path)


def external(name, shape, location, data_type=TensorProto.FLOAT, **about):
    """Return an initializer whose data is elsewhere."""
    proto = TensorProto(name=name, data_type=data_type, dims=shape)
    proto.data_location = TensorProto.EXTERNAL
    for key, value in {"location": location, **about}.items():
        proto.external_data.add(key=key, value=str(value))
    return proto


SCALES = {np.float32: TensorProto.FLOAT, np.float16: TensorProto.FLOAT16}
RANGES = {
    "INT8": (-128, 128), "UINT8": (0, 256), "INT16": (-(2**15), 2**15), "UINT16": (0, 2**16),
    "INT4": (-8, 8), "UINT4": (0, 16),
}  # fmt: skip


def values(kind, shape):
    return RNG.integers(*RANGES[kind], shape)


def constant(name, kind, array, *, raw=True):
    """Return an initializer of a kind by its name."""
    data_type = getattr(TensorProto, kind)
    if not raw:
        return helper.make_tensor(name, data_type, array.shape, array.ravel().tolist())
    dtype = helper.tensor_dtype_to_np_dtype(data_type)
    proto = numpy_helper.from_array(np.asarray(array).astype(dtype), name)
    assert proto.raw_data
    return proto


def model(nodes, initializers, inputs=(), kind=TensorProto.FLOAT, opset=23):
    y = helper.make_tensor_value_info("y", kind, None)
    graph = helper.make_graph(
        nodes if isinstance(nodes, list) else [nodes], "g", list(inputs), [y], list(initializers)
    )
    opsets = [helper.make_opsetid("", opset), helper.make_opsetid("com.microsoft", 1)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=10)


def save_model(path, made):
    path.write_bytes(made.SerializeToString())
    return str(path)


def saved(path, node, *initializers):
    return save_model(path, model(node, initializers))


def run(made, **inputs):
    """Return what ONNX Runtime computes on one thread, as the model says."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 4
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(made.SerializeToString(), options)
    return session.run(None, inputs)[0]


def only_tensor(path):
    (tensor,) = OnnxFile(path).tensors.values()
    return tensor


def linear(n=3, **about):
    """Return a DequantizeLinear of the first `n` of codes, scale and zero point."""
    inputs = ["w_quantized", "s", "z"][:n]
    return helper.make_node("DequantizeLinear", inputs, ["y"], **about)


def check(tmp_path, node, *initializers, kind=np.float32):
    """Require what the codes decode to, whole and in stretches, to be ONNX Runtime's."""
    made = model(node, initializers, kind=SCALES[kind])
    tensor = only_tensor(save_model(tmp_path / "m.onnx", made))
    assert tensor.fault is None
    assert tensor.name == "w"
    y = run(made).astype(np.float32)
    np.testing.assert_array_equal(decoded(tensor), y, strict=True)
    read = tensor.reader()
    for start, stop in np.sort(RNG.integers(0, tensor.size + 1, (5, 2))):
        if start < stop:
            np.testing.assert_array_equal(read(start, stop), y.reshape(-1)[start:stop])


def scale(*shape, kind=np.float32):
    return numpy_helper.from_array(np.ones(shape, kind), "s")
