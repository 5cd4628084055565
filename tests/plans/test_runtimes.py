import json
import re
import subprocess
import sys
from math import prod

import ml_dtypes
import numpy as np
import onnx
import pytest
import yaml

from quantlab.formats.format import FormatSpec
from quantlab.formats.ggml import NUMBERS
from quantlab.formats.matmul_nbits import OnnxMatMulNBits
from quantlab.plans.options import Assignment, Original, float_width
from quantlab.plans.runtimes import RUNTIMES, find_runtime, onnxruntime
from quantlab.plans.runtimes.runtime import table_bits
from quantlab.report.choices import FormatResult
from quantlab.sources.onnx import Onnx, OnnxFile
from quantlab.sources.safetensors import read_arrays
from tests.conftest import ROOT
from tests.plans.samples import FORMATS, row

RECIPES = ROOT / "tests" / "data" / "recipes"
PACKAGES = ROOT / ".venv" / "recipes" / "bin" / "python"  # make recipes

HAS = {
    "llama.cpp": ["ggml/q4_k", "ggml/q8_0"],
    "torchao": [
        "sym 4 bits, group 32", "asym 4 bits, group 64", "sym 8 bits, channel", "fp8_e4m3, channel",
    ],
    "mlx": ["asym 4 bits, group 64", "mx/fp4"],
    "onnxruntime": [],
    "llm-compressor": [
        "sym 4 bits, group 32", "asym 4 bits, group 64", "sym 8 bits, channel",
        "fp8_e4m3, channel", "mx/fp4",
    ],
    "gptqmodel": ["sym 4 bits, group 32", "asym 4 bits, group 64", "sym 8 bits, channel"],
    "auto-round": [
        "sym 4 bits, group 32", "asym 4 bits, group 64", "sym 8 bits, channel", "mx/fp4",
    ],
    "modelopt": [
        "sym 4 bits, group 32", "sym 8 bits, channel", "sym 8 bits", "fp8_e4m3, channel", "mx/fp4",
    ],
    "json": list(FORMATS),
}  # fmt: skip


@pytest.mark.parametrize("runtime", RUNTIMES.values(), ids=list(RUNTIMES))
def test_what_to_sweep_is_shell_to_copy(runtime):
    typed = subprocess.run(
        ["sh", "-c", f"printf '%s\\n' {runtime.hint}"], capture_output=True, text=True, check=True
    )
    assert all(re.fullmatch(r"[\w.]+=[\w/*(),.]+", line) for line in typed.stdout.splitlines())


def tensor(name, shape=(64, 64), dist="file/gguf", dtype="float16"):
    size = 1
    for each in shape:
        size *= each
    return Original(dist, name, dtype, shape, float_width(dtype) * size)


def assigned(row, tensor_=None):
    """A tensor in the format of a row, as it is stored without one."""
    tensor_ = tensor_ or tensor("w", (100, row["n_elements"] // 100))
    result = row and FormatResult(FormatSpec.from_row(row), row)
    return Assignment(tensor_, table_bits(row) if row else tensor_.bits, result=result)


def config(name, form, size=6400, **change):
    """A format in terms of a runtime."""
    return RUNTIMES[name].config(assigned(row("w", form, 4, 20, size, **change)))


def recipe(name, *pairs):
    return RUNTIMES[name].recipe([assigned(row, tensor) for tensor, row in pairs]).decode()


@pytest.mark.parametrize("name", HAS)
def test_a_runtime_has_these_formats_and_no_other(name):
    known = [form for form in FORMATS if config(name, form) is not None]
    assert known == HAS[name]
    with pytest.raises(
        ValueError, match=r"recipe takes one of llama.cpp, torchao, mlx, onnx.*json"
    ):
        find_runtime("onnx")


@pytest.mark.parametrize("name", [name for name in HAS if name not in ("llama.cpp", "json")])
def test_a_range_that_is_searched_is_no_runtime_s(name):
    assert config(name, "asym 4 bits, group 64", range="mse") is None


def test_types_of_files_are_llama_cpp_s_too():
    for kind in [*map(str.upper, NUMBERS), "F16", "BF16", "F32"]:
        change = {"mode": "file/gguf", "stored_dtype": kind}
        assert config("llama.cpp", "ggml/q4_k", **change) == kind.lower()
        assert config("llama.cpp", "ggml/q4_k", **change | {"mode": "file/safetensors"}) is None


@pytest.mark.parametrize(
    ("name", "shape", "taken"),
    [
        ("blk.0.attn_q.weight", (64, 64), True),
        ("blk.0.ffn_gate_exps.weight", (8, 64, 64), True),
        ("output.weight", (64, 64), True),
        ("blk.0.attn_norm.weight", (64,), False),
        ("blk.0.attn_q.bias", (64, 64), False),
        ("blk.0.ffn_gate_inp.weight", (64, 8), False),
        ("blk.0.thin.weight", (1, 64), False),
        ("blk.0.ssm_conv1d.weight", (64, 4), False),
    ],
)
def test_llama_cpp_quantizes_what_llama_quantize_does(name, shape, taken):
    assert (RUNTIMES["llama.cpp"].refuse_tensor(tensor(name, shape)) is None) == taken


def test_llama_cpp_has_a_line_for_each_tensor_that_it_would_quantize():
    low, high = row("w", "ggml/q4_k", 4.5, 20), row("w", "ggml/q8_0", 8.5, 40)
    text = recipe(
        "llama.cpp",
        (tensor("blk.0.attn_q.weight"), low),
        (tensor("blk.1.attn_q.weight"), high),
        (tensor("output.weight"), None),
        (tensor("output_norm.weight", (64,)), None),
    )
    assert text.splitlines() == [
        r"^blk\.0\.attn_q\.weight$=q4_k", r"^blk\.1\.attn_q\.weight$=q8_0", r"^output\.weight$=f16",
    ]  # fmt: skip


def test_names_that_llama_quantize_could_not_read_match_byte_by_byte():
    low = row("w", "ggml/q4_k", 4.5, 20)
    text = recipe("llama.cpp", (tensor("Odd =é.weight"), low))
    assert text == "^.dd....\\.weight$=q4_k\n"


def test_names_of_hugging_face_are_translated_or_refused():
    low = row("w", "ggml/q4_k", 4.5, 20)
    known = tensor("model.layers.3.self_attn.q_proj.weight", dist="file/safetensors")
    assert recipe("llama.cpp", (known, low)) == "^blk\\.3\\.attn_q\\.weight$=q4_k\n"
    with pytest.raises(ValueError, match=r"llama.cpp has no name for 'odd.weight': sweep the GGUF"):
        recipe("llama.cpp", (tensor("odd.weight", dist="file/safetensors"), low))


def test_torchao_is_given_its_configs_as_it_writes_them():
    names = ("a.weight", "b.weight", "c.weight")
    forms = ("sym 4 bits, group 32", "fp8_e4m3, channel", None)
    rows = [form and row("w", form, 4, 20, 6400, scale_dtype="bfloat16") for form in forms]
    taken = [(tensor(name), each) for name, each in zip(names, rows, strict=True)]
    whole = json.loads(recipe("torchao", *taken, (tensor("norm.weight", (64,)), None)))
    assert (whole["_type"], whole["_version"]) == ("FqnToConfig", 1)
    configs = whole["_data"]["fqn_to_config"]
    assert list(configs) == ["a", "b", "c"]
    assert configs["a"] == {
        "_type": "IntxWeightOnlyConfig",
        "_version": 2,
        "_data": {
            "weight_dtype": {"_type": "torch.dtype", "_data": "int4"},
            "granularity": {"_type": "PerGroup", "_version": 1, "_data": {"group_size": 32}},
            "mapping_type": {"_type": "MappingType", "_data": "SYMMETRIC"},
            "scale_dtype": {"_type": "torch.dtype", "_data": "bfloat16"},
        },
    }
    assert configs["b"]["_data"]["weight_dtype"]["_data"] == "float8_e4m3fn"
    assert configs["c"] is None


def test_mlx_is_given_the_arguments_of_its_predicate_and_counts_biases():
    low = row("w", "asym 4 bits, group 64", 4.3, 20, size=6400, scale_dtype="bfloat16")
    small = row("w", "mx/fp4", 4.25, 20, 6400)
    text = recipe(
        "mlx", (tensor("a.weight"), low), (tensor("b.weight"), small), (tensor("c.weight"), None)
    )
    assert json.loads(text) == {
        "a": {"group_size": 64, "bits": 4, "mode": "affine"},
        "b": {"group_size": 32, "bits": 4, "mode": "mxfp4"},
        "c": False,
    }
    assert RUNTIMES["mlx"].stored_bits(assigned(low)) == 6400 * 4 + 100 * 32
    assert RUNTIMES["mlx"].stored_bits(assigned(small)) == 27_200


def test_json_has_the_settings_of_any_format():
    text = recipe("json", (tensor("a"), row("w", "nf4, group 64", 4.5, 20)), (tensor("b"), None))
    assert json.loads(text) == {
        "a": {
            "mode": "nf4", "n_bits": 4, "block": "group", "block_size": 64,
            "scale_dtype": "float32", "range": "absmax",
        },
        "b": None,
    }  # fmt: skip


@pytest.mark.parametrize("name", HAS)
def test_the_use_names_the_file(name):
    assert "some dir/plan" in find_runtime(name).usage("some dir/plan")


def test_mlx_is_asked_for_the_least_default_group():
    assert "q_group_size=32" in find_runtime("mlx").usage("plan.mlx.json")


@pytest.mark.parametrize(
    ("name", "form", "change"),
    [
        ("torchao", "sym 8 bits, channel", {"n_bits": 9}),
        ("torchao", "nf4, group 64", {}),
        ("mlx", "asym 4 bits, group 64", {"n_bits": 7}),
        ("mlx", "asym 4 bits, group 64", {"block_size": 16}),
        ("mlx", "asym 4 bits, group 64", {"mode": "symmetric"}),
        ("llama.cpp", "ggml/q8_0", {"stored_dtype": "q9_9"}),
        ("llama.cpp", "ggml/q8_0", {"stored_dtype": None}),
    ],
)
def test_a_format_just_beyond_what_a_runtime_has_is_refused(name, form, change):
    assert config(name, form, **change) is None


@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize(
    "change",
    [
        {"settings": '{"block.axis": 1}'},
        {"settings": '{"mode.zero_point": "wide_int"}'},
        {"settings": '{"mode.zero_point": "clip"}'},
        {"block": "mine"},
        {"range": "mine"},
        {"mode": "mine"},
    ],
)
def test_only_json_takes_what_is_no_runtime_s_own(form, change):
    for name in RUNTIMES.keys() - {"json"}:
        assert config(name, form, **{"stored_dtype": None, **change}) is None
    settings = json.loads(change["settings"]) if "settings" in change else change
    assert settings.items() <= config("json", form, **change).items()


def test_experts_whose_rows_no_group_divides_are_no_format_of_mlx():
    rows = [row("w", "asym 4 bits, group 64", 4.3, 20, size=4 * 48 * 64)]
    for shape, is_taken in (((4, 48, 64), True), ((4, 64, 48), False)):
        assigned_ = assigned(rows[0], tensor("w.weight", shape))
        assert (RUNTIMES["mlx"].config(assigned_) is not None) == is_taken


def own(name, mode, n_bits, block_size=None, **settings):
    """A format by a runtime's own rule, in its terms."""
    change = {
        "mode": mode, "n_bits": n_bits, "block": block_size and "group", "block_size": block_size,
        "scale_dtype": None, "range": None,
        "settings": json.dumps(settings) if settings else None,
    }  # fmt: skip
    return config(name, "mx/fp4", **change)


def test_formats_by_mlx_s_own_rule_are_its_arguments():
    settings = {"mode.group_size": 32, "mode.dtype": "bfloat16"}
    affine = {"group_size": 32, "bits": 3, "mode": "affine"}
    assert own("mlx", "mlx/affine", 3, 32, **settings) == affine
    assert own("mlx", "mlx/mxfp4", 4, 32) == {"group_size": 32, "bits": 4, "mode": "mxfp4"}
    assert own("mlx", "mlx/affine", 3, 32, **{"transform.size": 64}) is None
    assert own("torchao", "mlx/affine", 3, 32) is None
    change = {"mode": "mlx/affine", "block_size": 64, "scale_dtype": None}
    exact = row("w", "asym 4 bits, group 64", 4.5, 20, 6400, **change)
    assert RUNTIMES["mlx"].stored_bits(assigned(exact)) == 6400 * 4.5


def test_formats_by_torchao_s_own_rule_are_its_configs():
    int4 = own("torchao", "torchao/int4", 4, 64)
    assert int4 == {
        "_type": "Int4WeightOnlyConfig",
        "_version": 2,
        "_data": {
            "group_size": 64,
            "int4_packing_format": {"_type": "Int4PackingFormat", "_data": "TILE_PACKED_TO_4D"},
        },
    }
    int8 = own("torchao", "torchao/int8", 8)
    rows = {"_type": "PerRow", "_version": 1, "_data": {"dim": -1}}
    assert int8 == {
        "_type": "Int8WeightOnlyConfig", "_version": 2, "_data": {"granularity": rows},
    }  # fmt: skip
    intx = own("torchao", "torchao/intx", 3, 32)["_data"]
    assert intx["weight_dtype"] == {"_type": "torch.dtype", "_data": "int3"}
    assert intx["granularity"]["_data"] == {"group_size": 32}
    assert intx["mapping_type"]["_data"] == "SYMMETRIC"
    assert intx["scale_dtype"] is None
    settings = {"mode.mapping": "asymmetric", "mode.group_size": None, "mode.dtype": "bfloat16"}
    intx = own("torchao", "torchao/intx", 3, **settings)["_data"]
    assert intx["granularity"]["_type"] == "PerAxis"
    assert intx["mapping_type"]["_data"] == "ASYMMETRIC"
    assert intx["scale_dtype"] == {"_type": "torch.dtype", "_data": "bfloat16"}


@pytest.mark.parametrize("n_added", [0, 1, 2])
def test_a_gguf_file_has_the_size_that_is_said(tmp_path, n_added):
    """Fields that llama-quantize adds are counted once; those of a split are left out."""
    gguf = pytest.importorskip("gguf")
    x = np.ones((4, 64), np.float16)

    def write(path, fields, data, **settings):
        writer = gguf.GGUFWriter(path, "llama")
        writer.add_name("a name of any length")
        for key in fields:
            writer.add_uint32(key, 1)
        writer.add_tensor("w.weight", data, **settings)
        writer.add_tensor("norm", np.ones(3, np.float32))
        for step in (writer.write_header_to_file, writer.write_kv_data_to_file,
                     writer.write_tensors_to_file, writer.close):  # fmt: skip
            step()
        return path

    added = ["general.file_type", "general.quantization_version"]
    kind = gguf.GGMLQuantizationType.Q8_0
    codes = gguf.quants.quantize(x.astype(np.float32), kind)
    whole = write(tmp_path / "q.gguf", added, codes, raw_dtype=kind)
    source = write(tmp_path / "s.gguf", [*added[:n_added], "split.count"], x)
    part = assigned(row("w", "ggml/q8_0", 8.5, 40, size=256), tensor("w.weight", (4, 64)))
    runtime = RUNTIMES["llama.cpp"]
    assert runtime.file_size([part], str(source)) == (whole.stat().st_size, True)


STORED = ROOT / "tests/data/stored"  # written by the packages themselves
STORED_FORMATS = {
    **{
        folder.name: ("mlx", {"mode": "mlx/affine", "n_bits": int(folder.name.split("-")[1])})
        for folder in STORED.glob("mlx-[0-9]*")
    },
    "mlx-mxfp4": ("mlx", {"mode": "mlx/mxfp4", "n_bits": 4}),
    "mlx-mxfp8": ("mlx", {"mode": "mx/fp8_e4m3", "n_bits": 8}),
    "ct-pack-3-sym": ("llm-compressor", {"mode": "sym", "n_bits": 3}),
    "ct-pack-4-sym": ("llm-compressor", {"mode": "sym", "n_bits": 4}),
    "ct-pack-4-asym": ("llm-compressor", {"mode": "asym", "n_bits": 4}),
    "ct-pack-8-channel": ("llm-compressor", {"mode": "sym", "n_bits": 8}),
    "ct-fp8-channel": ("llm-compressor", {"mode": "fp8_e4m3", "n_bits": 8}),
    "ct-fp8-tensor": ("llm-compressor", {"mode": "fp8_e4m3", "n_bits": 8, "block": "tensor"}),
    "ct-nvfp4": ("llm-compressor", {"mode": "nv/fp4", "n_bits": 4, "block_size": 16}),
    "gptq-2-sym": ("gptqmodel", {"mode": "sym", "n_bits": 2}),
    "gptq-3-sym": ("gptqmodel", {"mode": "sym", "n_bits": 3}),
    "gptq-4-asym-order": ("gptqmodel", {"mode": "asym", "n_bits": 4}),
    "gptq-8-sym": ("gptqmodel", {"mode": "sym", "n_bits": 8}),
}


@pytest.mark.parametrize("name", sorted(STORED_FORMATS))
def test_a_file_of_a_package_has_about_the_size_that_is_said(name):
    runtime, change = STORED_FORMATS[name]
    path = STORED / name / "model.safetensors"
    arrays = {array.name.rpartition(".")[2]: array for array in read_arrays(str(path))}
    scales = arrays.get("weight_scale") or arrays["scales"]
    shape = (16 if runtime == "mlx" else 32, 128)
    n_groups = scales.shape[0 if runtime == "gptqmodel" else -1]
    block = {"block": "group", "block_size": 128 // n_groups}
    if n_groups == 1 and runtime != "mlx":
        block = {"block": "channel"}
    form = row("w", "mx/fp4", 4, 20, prod(shape), **{**block, **change})
    dtype = {"F16": "float16"}.get(scales.kind, "bfloat16")
    matrix = tensor("model.layers.0.mlp.down_proj.weight", shape, "file/safetensors", dtype)
    size = RUNTIMES[runtime].file_size([assigned(form, matrix)], str(path))
    assert not size.is_exact
    # Of each offset a digit or two by the order of the arrays, and up to 7 bytes of padding.
    assert size.n_bytes == pytest.approx(path.stat().st_size, abs=12)


@pytest.mark.parametrize("dtype", ["float8_e4m3fn", "float4 of a package"])
def test_weights_in_codes_have_a_size_too(dtype):
    matrix = Original("file/safetensors", "a.weight", dtype, (64, 64), 8 * 4096)
    form = row("w", "sym 4 bits, group 32", 4, 20, 4096)
    size = RUNTIMES["llm-compressor"].file_size([assigned(form, matrix)], "m.safetensors")
    assert size.n_bytes > 4096 / 2 + 128 * 2


LAYER = "model.layers.0.{}.weight"
PLANNED = {  # a format, or None as it is stored, of each matrix of load_recipes.py
    "model.embed_tokens.weight": None,
    LAYER.format("q"): "sym 4 bits, group 32",
    LAYER.format("k"): "asym 4 bits, group 64",
    LAYER.format("v"): None,
    LAYER.format("o"): "fp8_e4m3, channel",
    "lm_head.weight": "mx/fp4",
}
OF_PACKAGES = ["llm-compressor", "gptqmodel", "auto-round", "modelopt"]


def planned(name):
    """The assignments of `PLANNED` to formats that a runtime has."""
    for weight, form in PLANNED.items():
        matrix = tensor(weight, (64, 64), "file/safetensors")
        has = form and form in HAS[name] and RUNTIMES[name].refuse_tensor(matrix) is None
        yield assigned(row("w", form, 4, 20, 4096) if has else None, matrix)


@pytest.mark.parametrize("name", OF_PACKAGES)
def test_a_recipe_is_the_one_that_the_package_has_read(name):
    runtime = RUNTIMES[name]
    assert runtime.recipe(list(planned(name))) == (RECIPES / runtime.file).read_bytes()


@pytest.mark.slow
@pytest.mark.skipif(not PACKAGES.exists(), reason="the packages are not installed: make recipes")
def test_the_packages_read_their_recipes():
    done = subprocess.run(
        [PACKAGES, RECIPES / "load_recipes.py"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


def onnx_parts(settings, weights):
    """Weights in bits, blocks and symmetric or not of MatMulNBits, None as they are stored."""
    return [
        assigned(
            change and row("w", "mx/fp4", 4, 20, 8192, mode="onnx/matmulnbits", n_bits=change[0],
                           block_size=change[1], scale_dtype=None, range=None,
                           settings=json.dumps({"mode.symmetric": change[2]})),
            tensor(name, weights[name].shape, "file/onnx", weights[name].dtype.name),
        )
        for name, change in settings.items()
    ]  # fmt: skip


def run_script(parts, path, out, *form):
    """Quantize a model with the recipe of ONNX Runtime, and return what it warns of."""
    script = path.with_name("plan.py")
    script.write_bytes(RUNTIMES["onnxruntime"].recipe(parts))
    command = [sys.executable, script, path, out, *form]
    return subprocess.run(command, capture_output=True, text=True, check=True).stderr


def test_onnx_runtime_quantizes_as_planned(tmp_path):
    rng = np.random.default_rng(0)
    weights = {name: rng.standard_normal((128, 64)).astype(np.float32) for name in "abcd"}
    nodes = [onnx.helper.make_node("MatMul", ["x", name], [f"y_{name}"]) for name in "abc"]
    nodes.append(onnx.helper.make_node("Gemm", ["x", "d"], ["y_d"]))
    graph = onnx.helper.make_graph(
        nodes, "g",
        [onnx.helper.make_tensor_value_info("x", 1, [1, 128])],
        [onnx.helper.make_tensor_value_info(f"y_{name}", 1, [1, 64]) for name in weights],
        [onnx.numpy_helper.from_array(x, name) for name, x in weights.items()],
    )  # fmt: skip
    onnx.save(onnx.helper.make_model(graph), tmp_path / "model.onnx")
    settings = {"a": (4, 32, False), "b": (8, 64, True), "c": None, "d": (4, 32, False)}
    parts = onnx_parts(settings, weights)
    for form in ([], ["QDQ"]):
        out = tmp_path / f"out{len(form)}.onnx"
        warned = run_script(parts, tmp_path / "model.onnx", out, *form)
        assert "no MatMul multiplies by d, which stays as it is" in warned
        source = Onnx(str(tmp_path / "model.onnx"))
        stored = OnnxFile(str(out)).bind(source)
        originals = {each.name: each for each in source.tensors()}
        for name in "ab":
            n_bits, group_size, symmetric = settings[name]
            mode = OnnxMatMulNBits(n_bits, group_size, symmetric)
            x_hat = mode.open(originals[name]).read(0, 8192)
            np.testing.assert_array_equal(stored.open(originals[name]).read(0, 8192), x_hat)
        values = stored.open(originals["c"]).read(0, 8192)
        np.testing.assert_array_equal(values, weights["c"].reshape(-1))


def many_layers(kind):
    """A model of matrices that are shared, small, unused, or of bodies; and its matrices."""
    rng, make = np.random.default_rng(0), onnx.helper
    shapes = dict.fromkeys("abcdef", (100, 300)) | {"small": (8, 5)}
    weights = {name: rng.standard_normal(shape).astype(kind) for name, shape in shapes.items()}
    data_type = make.np_dtype_to_tensor_dtype(np.dtype(kind))

    def value(name):
        return make.make_tensor_value_info(name, data_type, [None, None])

    def body(name):
        node = make.make_node("MatMul", ["x", name], ["y"])
        return make.make_graph([node], f"body of {name}", [], [value("y")])

    constant = onnx.numpy_helper.from_array(rng.standard_normal(5000), "values")
    layers = [make.make_node("MatMul", ["x", n], [f"y_{n}"], name=f"layer/{n}") for n in "abc"]
    nodes = [
        *layers,
        make.make_node("MatMul", ["x", "small"], ["y_small"]),
        make.make_node("MatMul", ["x", "a"], ["y_again"], doc_string="shares a"),
        make.make_node("Gemm", ["x", "b"], ["y_gemm"]),
        make.make_node("Constant", [], ["constant"], value=constant),
        make.make_node("If", ["is"], ["y_if"], doc_string="x" * 200,
                       then_branch=body("e"), else_branch=body("f")),
    ]  # fmt: skip
    tensors = [onnx.numpy_helper.from_array(x, name) for name, x in weights.items()]
    inputs = [value("x"), value("a"), make.make_tensor_value_info("is", 9, [])]
    graph = make.make_graph(nodes, "g", inputs, [value("y_a"), value("y_if")], tensors)
    return make.make_model(graph, opset_imports=[make.make_opsetid("", 21)]), weights


@pytest.mark.parametrize("kind", [np.float32, np.float16, ml_dtypes.bfloat16])
@pytest.mark.parametrize("external", [False, True])
def test_the_model_of_onnx_runtime_has_the_size_that_is_said(tmp_path, kind, external):
    model, weights = many_layers(kind)
    path, out = tmp_path / "model.onnx", tmp_path / "out.onnx"
    how = {"save_as_external_data": external, "location": "model.data", "size_threshold": 0}
    onnx.save(model, path, **how)
    settings = {"a": (4, 32, False), "b": (8, 64, True), "c": None, "d": (4, 16, False),
                "e": (2, 16, False), "f": None, "small": (4, 128, False)}  # fmt: skip
    parts = onnx_parts(settings, weights)
    run_script(parts, path, out)
    assert RUNTIMES["onnxruntime"].file_size(parts, str(path)) == (out.stat().st_size, True)
    names = {each.name for each in onnx.load(out).graph.initializer}
    assert names == {"a_Q4", "a_scales", "a_zero_points", "b", "b_Q8", "b_scales", "c", "e_Q2",
                     "e_scales", "e_zero_points", "f", "small_Q4", "small_scales",
                     "small_zero_points"}  # fmt: skip


def test_a_model_that_nothing_is_quantized_of_has_the_size_that_is_said(tmp_path):
    model, weights = many_layers(np.float32)
    path, out = tmp_path / "model.onnx", tmp_path / "out.onnx"
    onnx.save(model, path)
    parts = onnx_parts(dict.fromkeys(weights), weights)
    run_script(parts, path, out)
    assert RUNTIMES["onnxruntime"].file_size(parts, str(path)) == (out.stat().st_size, True)


def test_a_model_beyond_what_protobuf_writes_is_two_files(tmp_path, monkeypatch):
    """ModelProto.ByteSize, which the script asked, raises EncodeError from 2 GiB on."""
    monkeypatch.setattr(onnxruntime, "MAX_BYTES", 10_000)
    model, weights = many_layers(np.float32)
    path, folder = tmp_path / "model.onnx", tmp_path / "out"
    folder.mkdir()
    onnx.save(model, path)
    parts = onnx_parts({"a": (4, 32, False)}, weights)
    run_script(parts, path, folder / "out.onnx")
    files = sum(file.stat().st_size for file in folder.iterdir())
    assert len(list(folder.iterdir())) == 2
    size = RUNTIMES["onnxruntime"].file_size(parts, str(path))
    assert size == (pytest.approx(files, rel=0.01), False)


@pytest.mark.parametrize(
    ("name", "form", "bits"),
    [
        ("llm-compressor", "sym 4 bits, group 32", 4 * 4096 + 128 * 16),
        ("llm-compressor", "asym 4 bits, group 64", 4 * 4096 + 64 * (16 + 4)),
        ("gptqmodel", "sym 4 bits, group 32", 4 * 4096 + 128 * (16 + 4) + 64 * 32),
        ("auto-round", "sym 4 bits, group 32", 4 * 4096 + 128 * (16 + 4)),
        ("modelopt", "sym 4 bits, group 32", 4 * 4096 + 128 * 16),
        ("modelopt", "mx/fp4", 4 * 4096),
    ],
)
def test_sizes_are_those_of_the_package(name, form, bits):
    part = assigned(row("w", form, 4, 20, 4096), tensor("w.weight"))
    assert RUNTIMES[name].stored_bits(part) == bits


@pytest.mark.parametrize(
    ("name", "weight", "shape", "reason"),
    [
        ("gptqmodel", "lm_head.weight", (64, 64), "rule"),
        ("gptqmodel", "model.layers.0.q.weight", (64, 64), None),
        ("gptqmodel", "model.layers.0.norm.weight", (64,), "layer"),
        ("auto-round", "model.embed_tokens.weight", (64, 64), "rule"),
        ("auto-round", "model.layers.0.q.weight", (64, 48), "rule"),
        ("modelopt", "model.embed_tokens.weight", (64, 64), "rule"),
        ("onnxruntime", "conv", (8, 4, 3, 3), "layer"),
        ("onnxruntime", "onnx::MatMul_7", (64, 64), None),
    ],
)
def test_tensors_that_a_package_leaves_have_a_reason(name, weight, shape, reason):
    assert RUNTIMES[name].refuse_tensor(tensor(weight, shape)) == reason


def test_a_plan_that_quantizes_nothing_has_a_recipe():
    stored = [assigned(None, tensor(LAYER.format("q")))]
    assert json.loads(RUNTIMES["gptqmodel"].recipe(stored)) == {
        "dynamic": {r"-:^model\.layers\.0\.q$": {}}
    }
    text = RUNTIMES["llm-compressor"].recipe(stored)
    assert yaml.safe_load(text)["plan_stage"]["plan_modifiers"] == {
        "QuantizationModifier": {"config_groups": {}}
    }
