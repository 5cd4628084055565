"""Our share of a sweep: 60 jobs of ours beside a bare Hydra app that does nothing.

Both sweep the same config groups over the same 60 combinations, in turns, in one run. Prints
milliseconds a job; ours counts everything: measuring, records, aggregation, plot and report.
"""

import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median

ROOT = Path(__file__).parents[1]
SWEEP = ["-m", "dist=glob(*)", "mode=sym,asym", "n_bits=range(4,14)"]
JOBS, ROUNDS = 3 * 2 * 10, 3

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
"""


def main() -> None:
    """Print the table."""
    with tempfile.TemporaryDirectory() as folder:
        app, conf = Path(folder, "bare.py"), Path(folder, "conf")
        conf.mkdir()
        (conf / "bare.yaml").write_text(BARE_CONFIG)
        app.write_text(BARE_APP)
        bare = [sys.executable, str(app), f"--config-dir={conf}", *SWEEP]
        ours = [sys.executable, str(ROOT / "run.py"), *SWEEP]
        seconds = [(_time(bare, folder), _time(ours, folder)) for _ in range(ROUNDS)]
    bare_ms, ours_ms = (1000 * median(column) / JOBS for column in zip(*seconds, strict=True))
    share = 1000 * median(after - before for before, after in seconds) / JOBS
    print(f"{JOBS} jobs, median of {ROUNDS} rounds in turns    ms a job")
    print(f"bare Hydra, the same groups, no-op         {bare_ms:8.1f}")
    print(f"quantlab, aggregation included             {ours_ms:8.1f}")
    print(f"our share on top (at most 15)              {share:8.1f}")
    print(f"ratio                                      {ours_ms / bare_ms:8.2f}")


def _time(command: list[str], folder: str) -> float:
    start = time.perf_counter()
    sweep = f"hydra.sweep.dir={folder}/{start}"
    subprocess.run([*command, sweep], check=True, capture_output=True)
    return time.perf_counter() - start


if __name__ == "__main__":
    main()
