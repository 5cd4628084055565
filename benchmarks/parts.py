"""What a checkpoint in four parts takes on two processes beside one run that measures it whole.

The checkpoint has twice the layers of BERT large, 636 million values of bfloat16. Both sides
measure it in one format with one thread a run, in turns; start-up, aggregation and report are in
them. Prints seconds, the least of the rounds as whatever else runs only adds to them, and how many
times as fast the parts are; asked for: at least 1.7. The tables of both must be the same bytes.
"""

import subprocess
import sys
import tempfile
import time
from pathlib import Path

import ml_dtypes
import numpy as np
from safetensors.numpy import save_file

ROOT = Path(__file__).parents[1]
WIDTH, LAYERS, VOCABULARY = 1024, 48, 30522
FORMAT = ["mode=asym", "n_bits=4", "block=group", "range=mse"]
PARTS = ["dist.parts=4", "dist.part=range(4)", "hydra/launcher=joblib", "hydra.launcher.n_jobs=2"]
ROUNDS = 3


def main() -> None:
    """Print the table."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "checkpoint.safetensors")
        _write(path)
        asked = ["dist=file/safetensors", f"dist.path={path}", *FORMAT, "threads=1"]
        rounds = [
            (
                _seconds(asked, f"{folder}/whole-{number}"),
                _seconds([*asked, *PARTS], f"{folder}/parts-{number}"),
            )
            for number in range(ROUNDS)
        ]
        tables = {each.read_bytes() for each in Path(folder).glob("*/results.csv")}
        assert len(tables) == 1, "the tables differ"
    whole, parts = map(min, zip(*rounds, strict=True))
    print(f"least of {ROUNDS} rounds in turns      seconds   times as fast")
    print(f"{'one run, one thread':<31}{whole:11.1f}{1:16.2f}")
    print(f"{'4 parts on 2 processes':<31}{parts:11.1f}{whole / parts:16.2f}")


def _write(path: Path) -> None:
    """Write the checkpoint: weights as they are initialised, seeded."""
    shapes: dict[str, tuple[int, ...]] = {"embeddings.weight": (VOCABULARY, WIDTH)}
    for layer in range(LAYERS):
        square = dict.fromkeys(("query", "key", "value", "output"), (WIDTH, WIDTH))
        wide = {"up": (4 * WIDTH, WIDTH), "down": (WIDTH, 4 * WIDTH)}
        for name, shape in {**square, **wide}.items():
            shapes[f"layer.{layer}.{name}.weight"] = shape
            shapes[f"layer.{layer}.{name}.bias"] = shape[:1]
    draw = np.random.default_rng(0).standard_normal
    weights = {
        name: (0.02 * draw(shape, np.float32)).astype(ml_dtypes.bfloat16)
        for name, shape in shapes.items()
    }
    save_file(weights, path)


def _seconds(asked: list[str], folder: str) -> float:
    start = time.perf_counter()
    subprocess.run(
        [sys.executable, str(ROOT / "run.py"), "-m", *asked, f"hydra.sweep.dir={folder}"],
        check=True,
        stdout=subprocess.DEVNULL,
        cwd=ROOT,
    )
    return time.perf_counter() - start


if __name__ == "__main__":
    main()
