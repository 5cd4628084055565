"""What a model keeps of each token beside its weights: the keys and values of its attention.

A layer keeps ``kv_heads * (key_length + value_length)`` values a token. Windows, latent attention
and layers that share them keep fewer, so that this is what is needed at most.
"""

from collections.abc import Mapping
from typing import Any

from quantlab.sources.gguf import read_fields
from quantlab.sources.safetensors import read_model_config

LATENT = "kv_lora_rank"  # of a model whose keys and values are compressed


def count_cached_values(path: str) -> int | None:
    """Return how many keys and values a model keeps of a token, in all layers.

    None where its metadata, those of a GGUF file or the config.json beside safetensors, lack the
    number of layers, of heads, or their size.
    """
    counts = _read_gguf(path) if path.endswith(".gguf") else _read_config(path)
    if counts is None or any(type(n) is not int or n < 0 for n in counts):
        return None
    heads_of_all_layers, key_length, value_length = counts
    return heads_of_all_layers * (key_length + value_length)


def _read_gguf(path: str) -> tuple[Any, Any, Any] | None:
    fields = read_fields(path)
    prefix = f"{fields.get('general.architecture')}."
    own = {key.removeprefix(prefix): value for key, value in fields.items()}
    heads, layers = own.get("attention.head_count"), own.get("block_count")
    kv_heads = own.get("attention.head_count_kv", heads)
    length = _divide(own.get("embedding_length"), heads)
    lengths = (own.get(f"attention.{part}_length", length) for part in ("key", "value"))
    if f"attention.{LATENT}" in own:
        return None
    return _all_heads(kv_heads, layers), *lengths


def _read_config(path: str) -> tuple[Any, Any, Any] | None:
    config = read_model_config(path)
    text = config.get("text_config")
    config = text if isinstance(text, Mapping) else config
    heads, layers = config.get("num_attention_heads"), config.get("num_hidden_layers")
    kv_heads = config.get("num_key_value_heads") or heads
    length = config.get("head_dim") or _divide(config.get("hidden_size"), heads)
    if LATENT in config:
        return None
    return _all_heads(kv_heads, layers), length, length


def _all_heads(kv_heads: Any, layers: Any) -> Any:
    """Return the number of heads of all layers, each of which may have a number of its own."""
    if isinstance(kv_heads, list):
        return sum(kv_heads) if all(type(n) is int for n in kv_heads) else None
    return kv_heads * layers if type(kv_heads) is int and type(layers) is int else None


def _divide(width: Any, heads: Any) -> int | None:
    return width // heads if type(width) is int and type(heads) is int and heads else None
