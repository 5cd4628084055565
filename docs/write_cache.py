"""Write keys and values of an attention layer for two sets of tokens: ``write_cache.py DIR``.

The layer is drawn, not trained. Its keys have a bias that is large in a few channels, as those of
language models have (KIVI, 2024), its tokens differ in size, and rare ones are large.
"""

import sys
from pathlib import Path

import numpy as np

HIDDEN, HEADS, HEAD_DIM = 128, 8, 16
N_LARGE, LARGE = 6, 12.0  # channels of the keys, and how large their bias is


def draw_tokens(rng: np.random.Generator, n: int) -> np.ndarray:
    """Return hidden states ``(n, HIDDEN)``, each of a size of its own."""
    return rng.standard_normal((n, HIDDEN)) * rng.lognormal(0, 0.5, (n, 1))


if __name__ == "__main__":
    folder, rng = Path(sys.argv[1]), np.random.default_rng(0)
    folder.mkdir(parents=True, exist_ok=True)
    width = HEADS * HEAD_DIM
    weights = {name: rng.standard_normal((HIDDEN, width)) / np.sqrt(HIDDEN) for name in "kv"}
    bias = np.zeros(width)
    bias[rng.choice(width, N_LARGE, replace=False)] = LARGE * rng.choice([-1, 1], N_LARGE)
    for name, n in (("calibration", 512), ("cache", 256)):
        x = draw_tokens(rng, n)
        cache = {"k": x @ weights["k"] + bias, "v": x @ weights["v"]}
        np.savez(folder / f"{name}.npz", **{key: a.astype(np.float32) for key, a in cache.items()})
