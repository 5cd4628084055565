import numpy as np
import onnx
import onnxruntime
import pytest
from google.protobuf.message import DecodeError
from onnx import TensorProto, helper, numpy_helper

from quantlab.sources import onnx_proto
from quantlab.sources.onnx_proto import read_model
from tests.models.samples import answer_two_layers, two_layers


def nested(*lengths):
    """A model of tensors of some lengths: initializers, Constant nodes, and those of a body."""
    tensors = [
        numpy_helper.from_array(np.arange(length, dtype=np.float32), f"w{place}")
        for place, length in enumerate(lengths)
    ]
    constants = [helper.make_node("Constant", [], [f"c{t.name}"], value=t) for t in tensors]
    body = helper.make_graph(constants, "body", [], [], tensors)
    branch = helper.make_node("If", ["condition"], [], then_branch=body, else_branch=body)
    graph = helper.make_graph([*constants, branch], "g", [], [], tensors, doc_string="x" * 9000)
    return helper.make_model(graph)


@pytest.mark.parametrize("lengths", [(), (3,), (1024, 5, 40_000), (1023, 1024), (70_000, 70_000)])
def test_a_model_is_the_same_once_its_values_are_loaded(tmp_path, lengths):
    path = tmp_path / "m.onnx"
    onnx.save_model(nested(*lengths), path)
    model = read_model(str(path))
    in_file = [t for t in model.graph.initializer if t.data_location == TensorProto.EXTERNAL]
    assert len(in_file) == sum(4 * length >= onnx_proto.MIN_MAPPED_BYTES for length in lengths)
    assert model.ByteSize() < 60_000 + 6 * sum(4 * n < 4096 for n in lengths) * 4096
    onnx.load_external_data_for_model(model, str(tmp_path))
    assert all_values(model) == all_values(onnx.load(path))
    assert [node.op_type for node in model.graph.node] == ["Constant"] * len(lengths) + ["If"]


def all_values(model):
    """The bytes of every tensor of a model, in its order."""
    graphs = [model.graph, *(a.g for a in model.graph.node[-1].attribute)]
    tensors = [tensor for graph in graphs for tensor in graph.initializer]
    nodes = [node for graph in graphs for node in graph.node if node.op_type == "Constant"]
    return [tensor.raw_data for tensor in [*tensors, *(node.attribute[0].t for node in nodes)]]


@pytest.mark.parametrize("keep", [0, 1, 100, 5000, -1])
def test_a_file_that_is_cut_is_read_as_protobuf_reads_it(tmp_path, keep):
    content = nested(2000, 3000).SerializeToString()[:keep]
    path = tmp_path / "m.onnx"
    path.write_bytes(content)
    if not content:
        assert read_model(str(path)) == onnx.ModelProto()
        return
    with pytest.raises(DecodeError):
        read_model(str(path))


def test_onnx_runtime_finds_the_values_in_the_file_of_the_model(tmp_path):
    path, _, weights, x = two_layers(tmp_path)
    model = read_model(path, min_mapped_bytes=0)
    assert all(t.data_location == TensorProto.EXTERNAL for t in model.graph.initializer)
    options = onnxruntime.SessionOptions()
    key = "session.model_external_initializers_file_folder_path"
    options.add_session_config_entry(key, str(tmp_path))
    session = onnxruntime.InferenceSession(model.SerializeToString(), options)
    answers = session.run(None, {"x": x})[0]
    assert answers == pytest.approx(answer_two_layers(x, weights), abs=1e-6)
