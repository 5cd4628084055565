"""What a sweep of 300 runs takes beside a bare Hydra app that does nothing in the same 300.

Both sweep the same config groups over the same combinations, in turns, in one run. Prints seconds
and the ratio to bare Hydra; the whole of quantlab is in them, aggregation and plot included.
"""

import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median

ROOT = Path(__file__).parents[1]
SWEEP = ["-m", "dist=glob(*)", "mode=sym,asym", "n_bits=range(7,17)", "rank.k=range(3,8)"]
JOBS, ROUNDS = 3 * 2 * 10 * 5, 3

BARE_APP = f"""
import hydra

@hydra.main(version_base="1.3", config_path={str(ROOT / "conf")!r}, config_name="bare")
def main(cfg):
    pass

main()
"""
BARE_CONFIG = """
defaults:
  - dist: verb_probs
  - mode: sym
  - experiment: null
  - _self_
n_bits: 8
seed: 42
rank:
  k: 10
"""


def main() -> None:
    """Print the table."""
    with tempfile.TemporaryDirectory() as folder:
        app, conf = Path(folder, "bare.py"), Path(folder, "conf")
        conf.mkdir()
        (conf / "bare.yaml").write_text(BARE_CONFIG)
        app.write_text(BARE_APP)
        ours = [str(ROOT / "run.py"), *SWEEP]
        sweeps = {
            "bare Hydra, no-op": ([str(app), f"--config-dir={conf}", *SWEEP], "bare"),
            "quantlab (at most 0.6)": (ours, "ours"),
            "quantlab, joblib (at most 0.4)": ([*ours, "hydra/launcher=joblib"], "joblib"),
            "quantlab, all done before": (ours, "ours"),
        }
        rounds = [
            [_seconds(*each, f"{folder}/{number}") for each in sweeps.values()]
            for number in range(ROUNDS)
        ]
    medians = [median(column) for column in zip(*rounds, strict=True)]
    print(f"{JOBS} runs, median of {ROUNDS} rounds in turns   seconds   ms a run   of bare Hydra")
    for label, seconds in zip(sweeps, medians, strict=True):
        print(f"{label:<39}{seconds:8.1f}{1000 * seconds / JOBS:11.1f}{seconds / medians[0]:16.2f}")


def _seconds(command: list[str], name: str, folder: str) -> float:
    start = time.perf_counter()
    where = f"hydra.sweep.dir={folder}/{name}"
    subprocess.run(
        [sys.executable, *command, where], check=True, stdout=subprocess.DEVNULL, cwd=ROOT
    )
    return time.perf_counter() - start


if __name__ == "__main__":
    main()
