"""Our share of a sweep: 60 jobs of ours beside a bare Hydra app that does nothing.

Both sweep the same config groups over the same 60 combinations, in turns, in one run. Prints
milliseconds a job. What a sweep costs once, aggregation with its plot, is shown apart.
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


AGGREGATE = """
import sys, time
start = time.perf_counter()
from pathlib import Path
from quantlab import report
from quantlab.aggregate import aggregate
report.sweep(aggregate(Path(sys.argv[1])))
print(time.perf_counter() - start)
"""


def main() -> None:
    """Print the table."""
    with tempfile.TemporaryDirectory() as folder:
        app, conf = Path(folder, "bare.py"), Path(folder, "conf")
        conf.mkdir()
        (conf / "bare.yaml").write_text(BARE_CONFIG)
        app.write_text(BARE_APP)
        bare = [str(app), f"--config-dir={conf}", *SWEEP]
        ours = [str(ROOT / "run.py"), *SWEEP]
        rounds = [_round(bare, ours, Path(folder, str(number))) for number in range(ROUNDS)]
    bare_s, ours_s, collect_s = (median(column) for column in zip(*rounds, strict=True))
    total_s = median(ours - bare for bare, ours, _ in rounds)
    runs_s = median(ours - bare - collect for bare, ours, collect in rounds)
    print(f"{JOBS} jobs, median of {ROUNDS} rounds in turns            ms a job")
    for label, seconds in (
        ("bare Hydra, the same groups, no-op", bare_s),
        ("quantlab, everything", ours_s),
        ("our share on top, everything", total_s),
        ("  of it the aggregation, once a sweep", collect_s),
        ("  of it the runs (at most 15)", runs_s),
    ):
        print(f"{label:<40}{1000 * seconds / JOBS:16.1f}")


def _round(bare: list[str], ours: list[str], folder: Path) -> tuple[float, float, float]:
    """Return the seconds of a bare sweep, of ours, and of collecting ours."""
    seconds = []
    for app, name in ((bare, "bare"), (ours, "ours")):
        start = time.perf_counter()
        _run(*app, f"hydra.sweep.dir={folder / name}")
        seconds.append(time.perf_counter() - start)
    return seconds[0], seconds[1], float(_run("-c", AGGREGATE, str(folder / "ours")))


def _run(*arguments: str) -> str:
    command = [sys.executable, *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True, cwd=ROOT).stdout


if __name__ == "__main__":
    main()
