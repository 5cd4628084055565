"""Names of one tensor in different files of a model, and what llama.cpp's converter does to it."""

import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from quantlab.formats.blocks import Shape

MAX_LAYERS = 512  # more than any model has: the names of gguf are listed layer by layer


@dataclass(frozen=True)
class Architecture:
    """The family of a model as a GGUF file names it, and the heads of its attention."""

    name: str
    heads: tuple[int, ...] = ()  # one, or one a block
    kv_heads: tuple[int, ...] = ()

    def n_heads(self, projection: str, block: int) -> int:
        """Return the number of heads of "q" or "k" in a block; 0 where it is not known."""
        counts = self.heads if projection == "q" else self.kv_heads or self.heads
        return counts[block % len(counts)] if len(counts) == 1 or block < len(counts) else 0


class Family(NamedTuple):
    """What a file says of its model; `model_type` is its family as Hugging Face calls it.

    `ties_embeddings` is False where the model has an output layer that is not its embedding.
    """

    architecture: Architecture | None = None
    model_type: str | None = None
    ties_embeddings: bool = True


@cache
def _name_map(architecture: str) -> Any:
    import gguf

    names = {name: arch for arch, name in gguf.MODEL_ARCH_NAMES.items()}
    return gguf.get_tensor_name_map(names.get(architecture, gguf.MODEL_ARCH.LLAMA), MAX_LAYERS)


def gguf_name(name: str, architecture: str = "llama") -> str | None:
    """Translate the name of a tensor of Hugging Face to llama.cpp's; None where it has none.

    >>> gguf_name("model.layers.3.self_attn.q_proj.weight")
    'blk.3.attn_q.weight'
    """
    if name.endswith(".dt_bias"):
        name = f"{name.removesuffix('dt_bias')}dt_proj.bias"
    translated = _name_map(architecture).get_name(name, try_suffixes=(".weight", ".bias"))
    return str(translated) if translated else None


PERMUTED = {  # architectures whose rows of q and k llama.cpp's converter reorders
    "arcee", "arctic", "chameleon", "cogvlm", "deci", "deepseek", "granite", "granite_swa",
    "granitehybrid", "granitemoe", "llada", "llama", "llama-embed", "minicpm", "mistral3",
    "nanbeige", "nemotron_h", "nemotron_h_moe", "olmo", "smollm3", "xverse",
}  # fmt: skip


SHIFTED = {  # architectures to whose norms the converter adds 1
    "gemma", "gemma-embedding", "gemma2", "gemma3", "minimax-m3", "nemotron", "qwen35", "qwen35moe",
    "qwen3next", "step35",
}  # fmt: skip
SHIFTED_BY_MLX = {"qwen3_5", "qwen3_5_moe", "qwen3_next"}  # families as Hugging Face calls them
NOT_SHIFTED = "linear_attn.norm.weight"


def norm_shift(name: str, architecture: Architecture) -> float:
    """Return the number that llama.cpp's converter adds to values of Hugging Face's `name`."""
    return 1.0 if architecture.name in SHIFTED and is_shifted_norm(name) else 0.0


def is_shifted_norm(name: str) -> bool:
    """Test for a norm to which the converters of some families add 1."""
    return name.endswith("norm.weight") and not name.endswith(NOT_SHIFTED)


def row_order(name: str, rows: int, architecture: Architecture) -> NDArray[np.int64] | None:
    """Return the row of Hugging Face's q or k that each row of llama.cpp's is; None of any other.

    For the architectures in `PERMUTED` its converter turns the two halves of each head into pairs
    (`LlamaModel.permute`). `name` is that of llama.cpp.
    """
    match = re.fullmatch(r"blk\.(\d+)\.attn_(q|k)\.(?:weight|bias)", name)
    if not match:
        return None
    heads = architecture.n_heads(match[2], int(match[1]))
    if not heads or rows % (2 * heads):
        return None
    halves = np.arange(rows).reshape(heads, 2, rows // heads // 2)
    return halves.swapaxes(1, 2).reshape(-1)


def pair_names(names: Iterable[str], stored_names: Iterable[str]) -> Mapping[str, str]:
    """Return the stored name of each name: a known suffix added or removed, or a longer path.

    Equal names pair first. A pair by path must be the only one on both sides.

    >>> pair_names(["a.weight", "b"], ["model.a.weight", "b.weight", "c"])
    {'b': 'b.weight', 'a.weight': 'model.a.weight'}
    """
    names, stored = list(names), set(stored_names)
    pairs = {
        name: spelling
        for name in names
        for spelling in (name.removesuffix(".weight"), f"{name}.weight", name)  # its own wins
        if spelling in stored
    }
    free = stored - set(pairs.values())
    by_ending: dict[str, list[str]] = {}
    for path in free:
        for ending in _endings(path):
            by_ending.setdefault(ending, []).append(path)
    by_path = {}
    for name in names:
        longer = by_ending.get(name)
        options = longer or [ending for ending in _endings(name) if ending in free][:1]
        if name not in pairs and len(options) == 1:
            by_path[name] = options[0]
    counts = Counter(by_path.values())
    return pairs | {name: path for name, path in by_path.items() if counts[path] == 1}


def pair_common_ends(
    shapes: Mapping[str, Shape], stored_shapes: Mapping[str, Shape]
) -> dict[str, str]:
    """Return the stored name of each name that has another prefix.

    The longest common end of two parts or more decides, where one tensor of a shape has it on both
    sides.

    >>> pair_common_ends({"a.b.w.bias": (2,)}, {"x.b.w.bias": (2,), "x.c.w.bias": (2,)})
    {'a.b.w.bias': 'x.b.w.bias'}
    """
    longest = max((name.count(".") for name in shapes), default=0)
    pairs: dict[str, str] = {}
    for n_parts in range(longest, 1, -1):
        ends, stored_ends = (
            _unique_ends(named, n_parts)
            for named in (
                {name: shape for name, shape in shapes.items() if name not in pairs},
                {name: stored_shapes[name] for name in stored_shapes.keys() - pairs.values()},
            )
        )
        pairs |= {name: stored_ends[end] for end, name in ends.items() if end in stored_ends}
    return pairs


def _unique_ends(shapes: Mapping[str, Shape], n_parts: int) -> dict[tuple[str, Shape], str]:
    """Return the name that alone has an end of so many parts, and a shape, by both."""
    ends: dict[tuple[str, Shape], str | None] = {}
    for name, shape in shapes.items():
        parts = name.split(".")
        if len(parts) > n_parts:
            end = ".".join(parts[-n_parts:]), shape
            ends[end] = None if end in ends else name
    return {end: name for end, name in ends.items() if name}


def _endings(path: str) -> list[str]:
    """Return the ends of a path that have two parts or more."""
    parts = path.split(".")
    return [".".join(parts[n:]) for n in range(1, len(parts) - 1)]
