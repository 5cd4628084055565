"""What it takes to aggregate 100, 1,000 and 10,000 records: seconds, and the most memory held.

The records are those of one real run, under other seeds; each aggregation has a process of its
own, and writes table, pictures and report. Asked for: at most 10 s and 500 MB for 10,000, and at
most 20 s and 5 MB with the report.
"""

import subprocess
import sys
import tempfile
from pathlib import Path

from quantlab.experiment import Experiment
from quantlab.formats.format import Format
from quantlab.formats.uniform import Symmetric
from quantlab.records.disk import to_json
from quantlab.records.record import NAME, run_and_write
from quantlab.sources.lab import VerbProbs

AGGREGATE = """
import resource, sys, time
start = time.perf_counter()
from pathlib import Path
from quantlab.report.terminal import sweep_summary
from quantlab.report.aggregate import aggregate
from quantlab.report.bar import ReportSettings
from quantlab.report.texts import Texts
t = Texts("en")
done = aggregate(Path(sys.argv[1]), ReportSettings({}, t))
sweep_summary(done.findings, done.files, t)
print(time.perf_counter() - start, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)
"""


def main() -> None:
    """Print the table."""
    print("   records   seconds   ms a record        MB   MB of report.html")
    for n in (100, 1_000, 10_000):
        with tempfile.TemporaryDirectory() as folder:
            _records(Path(folder), n)
            command = [sys.executable, "-c", AGGREGATE, folder]
            told = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
            page = Path(folder, "report.html").stat().st_size / 1e6
        seconds, megabytes = map(float, told.split())
        print(f"{n:10,}{seconds:10.2f}{1000 * seconds / n:14.2f}{megabytes:10.0f}{page:20.1f}")


def _records(folder: Path, n: int) -> None:
    experiment = Experiment(VerbProbs(42, 600, 1.5), Format(Symmetric(8)), 10, 1e-8, 1)
    asked = {"dist": "verb_probs", "mode": "symmetric", "n_bits": 8}
    one = run_and_write(folder, experiment.run, {"seed": 42}, job=0, overrides=[], **asked)
    (folder / NAME).unlink()
    for seed in range(n):
        one |= {"job": seed, "overrides": [f"seed={seed}"], "config": {"seed": seed}}
        directory = folder / f"verb_probs-sym-8bit-{seed:05}"
        directory.mkdir()
        (directory / NAME).write_bytes(to_json(one))


if __name__ == "__main__":
    main()
