"""Names of one tensor in two files, and the rows that llama.cpp's converter moves."""

import numpy as np
import pytest

from quantlab.sources.names import Architecture, gguf_name, norm_shift, pair_names, row_order
from tests import tiny_llama


def test_every_tensor_of_a_llama_has_its_gguf_name():
    for name in tiny_llama.shapes():
        assert gguf_name(name) == tiny_llama.gguf_name(name)


@pytest.mark.parametrize(
    ("name", "architecture", "theirs"),
    [
        ("model.layers.3.self_attn.q_proj.bias", "qwen2", "blk.3.attn_q.bias"),
        ("model.layers.7.self_attn.q_norm.weight", "qwen3", "blk.7.attn_q_norm.weight"),
        ("model.layers.31.mlp.down_proj.weight", "no such family", "blk.31.ffn_down.weight"),
        ("lm_head.weight", "", "output.weight"),
        ("blk.0.attn_q.weight", "llama", "blk.0.attn_q.weight"),
        ("a.tensor.of.nobody", "llama", None),
        ("", "llama", None),
    ],
)
def test_other_families_and_names(name, architecture, theirs):
    assert gguf_name(name, architecture) == theirs


@pytest.mark.parametrize(
    ("name", "stored", "partner"),
    [
        ("a.weight", ["a.weight", "a", "m.a.weight"], "a.weight"),
        ("a", ["b", "a.weight"], "a.weight"),
        ("a.weight", ["a"], "a"),
        ("b.a.weight", ["m.b.a.weight", "m.c.a.weight"], "m.b.a.weight"),
        ("m.b.a.weight", ["b.a.weight"], "b.a.weight"),
        ("m.l.b.a", ["b.a", "l.b.a"], "l.b.a"),  # of many the longest
        ("b.a", ["m.b.a", "n.b.a"], None),  # nobody knows which
        ("b.weight", ["m.a.weight"], None),
        ("m.a.weight", ["weight"], None),  # a name that says nothing
        ("weight", ["m.a.weight"], None),
        ("ab.c", ["b.c", "m.xab.c"], None),  # parts of names are no names
        ("a", [], None),
    ],
)
def test_partners_are_equal_or_end_alike(name, stored, partner):
    assert pair_names([name], stored) == ({name: partner} if partner else {})


def test_no_stored_tensor_is_the_partner_of_two():
    found = pair_names(["layers.0.w", "vision.layers.0.w"], ["layers.0.w"])
    assert found == {"layers.0.w": "layers.0.w"}


@pytest.mark.parametrize("end", ["q.weight", "k.weight", "q.bias", "k.bias"])
@pytest.mark.parametrize(("heads", "kv_heads"), [(8, 4), (4, 4), (6, 1)])
def test_rows_are_moved_as_the_converter_does(end, heads, kv_heads):
    n = heads if end[0] == "q" else kv_heads
    weights = np.random.default_rng(0).standard_normal((n * 10, 7 if "weight" in end else 1))
    order = row_order(
        f"blk.3.attn_{end}", len(weights), Architecture("llama", (heads,), (kv_heads,))
    )
    assert order is not None
    np.testing.assert_array_equal(weights[order], tiny_llama.permute(weights, n))
    np.testing.assert_array_equal(weights[order][np.argsort(order)], weights)


@pytest.mark.parametrize(
    ("name", "rows", "architecture"),
    [
        ("blk.0.attn_v.weight", 64, Architecture("llama", (4,), (4,))),
        ("blk.0.attn_q_norm.weight", 64, Architecture("llama", (4,), (4,))),
        ("blk.0.attn_q.weight", 64, Architecture("llama")),  # heads are not told
        ("blk.2.attn_q.weight", 64, Architecture("llama", (4, 4), (4, 4))),  # nor those of block 2
        ("v.blk.0.attn_q.weight", 64, Architecture("llama", (4,), (4,))),  # not of the model
        ("blk.0.attn_q.weight", 60, Architecture("llama", (8,), (8,))),  # no whole pairs
    ],
)
def test_other_rows_stay(name, rows, architecture):
    assert row_order(name, rows, architecture) is None


@pytest.mark.parametrize(("end", "heads"), [("q", 8), ("k", 2)])
def test_blocks_may_have_heads_of_their_own(end, heads):
    architecture = Architecture("deci", (4, 8), (4, 2))
    weights = np.arange(64.0).reshape(64, 1)
    order = row_order(f"blk.1.attn_{end}.weight", 64, architecture)
    np.testing.assert_array_equal(
        weights[order].ravel(), tiny_llama.permute(weights, heads).ravel()
    )


def test_keys_have_the_heads_of_queries_where_nothing_else_is_told():
    order = row_order("blk.0.attn_k.weight", 64, Architecture("llama", (4,)))
    np.testing.assert_array_equal(
        order, row_order("blk.0.attn_q.weight", 64, Architecture("llama", (4,)))
    )


@pytest.mark.parametrize(
    ("name", "architecture", "more"),
    [
        ("model.layers.0.input_layernorm.weight", "gemma2", 1),
        ("model.layers.0.self_attn.q_norm.weight", "gemma3", 1),
        ("model.layers.0.self_attn.q_proj.weight", "gemma2", 0),
        ("model.layers.0.input_layernorm.weight", "llama", 0),
        ("model.norm.bias", "gemma2", 0),
        ("model.layers.0.post_attention_layernorm.weight", "qwen3next", 1),
        ("model.layers.0.linear_attn.norm.weight", "qwen3next", 0),
    ],
)
def test_norms_of_some_families_are_shifted(name, architecture, more):
    assert norm_shift(name, Architecture(architecture)) == more
