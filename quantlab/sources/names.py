"""What one tensor is called in different files of one model, and how llama.cpp reorders it."""

import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

LAYERS = 512  # more than any model has: the names of gguf are listed layer by layer


@dataclass(frozen=True)
class Architecture:
    """What a GGUF file says of its model: its family, and the heads of its attention."""

    name: str
    heads: tuple[int, ...] = ()  # one, or one a block
    kv_heads: tuple[int, ...] = ()

    def heads_of(self, part: str, block: int) -> int:
        """Return how many heads "q" or "k" has in a block; 0 where it is not known."""
        counts = self.heads if part == "q" else self.kv_heads or self.heads
        return counts[block % len(counts)] if len(counts) == 1 or block < len(counts) else 0


@cache
def _name_map(architecture: str) -> Any:
    import gguf

    names = {name: arch for arch, name in gguf.MODEL_ARCH_NAMES.items()}
    return gguf.get_tensor_name_map(names.get(architecture, gguf.MODEL_ARCH.LLAMA), LAYERS)


def gguf_name(name: str, architecture: str = "llama") -> str | None:
    """Return what llama.cpp calls a tensor of Hugging Face; None where it has no name for it.

    >>> gguf_name("model.layers.3.self_attn.q_proj.weight")
    'blk.3.attn_q.weight'
    """
    found = _name_map(architecture).get_name(name, try_suffixes=(".weight", ".bias"))
    return str(found) if found else None


PERMUTED = {  # architectures whose rows of q and k llama.cpp's converter reorders
    "arcee", "arctic", "chameleon", "cogvlm", "deci", "deepseek", "granite", "granite_swa",
    "granitehybrid", "granitemoe", "llada", "llama", "llama-embed", "minicpm", "mistral3",
    "nanbeige", "nemotron_h", "nemotron_h_moe", "olmo", "smollm3", "xverse",
}  # fmt: skip


SHIFTED = {  # architectures to whose norms the converter adds 1
    "gemma", "gemma-embedding", "gemma2", "gemma3", "minimax-m3", "nemotron", "step35",
}  # fmt: skip


def shift(name: str, architecture: Architecture) -> float:
    """Return what llama.cpp's converter adds to the values of a tensor of Hugging Face's `name`."""
    return 1.0 if architecture.name in SHIFTED and name.endswith("norm.weight") else 0.0


def row_order(name: str, rows: int, architecture: Architecture) -> NDArray[np.int64] | None:
    """Return which row of Hugging Face's q or k is each row of llama.cpp's; None of any other.

    For the architectures in `PERMUTED` its converter turns the two halves of each head into pairs
    (`LlamaModel.permute`). `name` is that of llama.cpp.
    """
    match = re.fullmatch(r"blk\.(\d+)\.attn_(q|k)\.(?:weight|bias)", name)
    if not match:
        return None
    heads = architecture.heads_of(match[2], int(match[1]))
    if not heads or rows % (2 * heads):
        return None
    halves = np.arange(rows).reshape(heads, 2, rows // heads // 2)
    return halves.swapaxes(1, 2).reshape(-1)


def partners(names: Iterable[str], stored: Iterable[str]) -> Mapping[str, str]:
    """Return which stored tensor each name is of, by its name, a known suffix, or a longer path.

    >>> partners(["a.weight", "b"], ["model.a.weight", "b.weight", "c"])
    {'b': 'b.weight', 'a.weight': 'model.a.weight'}
    """
    names, held = list(names), set(stored)
    found = {name: each for name in names for each in _same(name) if each in held}
    free = held - set(found.values())
    longer: dict[str, list[str]] = {}
    for each in free:
        for end in _ends(each):
            longer.setdefault(end, []).append(each)
    likely = {}
    for name in names:
        options = longer.get(name) or [each for each in _ends(name) if each in free][:1]
        if name not in found and len(options) == 1:
            likely[name] = options[0]
    times = Counter(likely.values())
    return found | {name: each for name, each in likely.items() if times[each] == 1}


def _same(name: str) -> list[str]:
    """Return what else a tensor may be called, its own name last."""
    return [name.removesuffix(".weight"), f"{name}.weight", name]


def _ends(name: str) -> list[str]:
    """Return the ends of a path that have two parts or more."""
    parts = name.split(".")
    return [".".join(parts[n:]) for n in range(1, len(parts) - 1)]
