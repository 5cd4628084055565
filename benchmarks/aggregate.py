"""What it takes to aggregate 100, 1,000 and 10,000 records: seconds, and the most memory held.

The records are those of one real run, under other seeds; each aggregation has a process of its
own, and writes table, pictures and report. Asked for: at most 10 s and 500 MB for 10,000, and at
most 20 s and 5 MB with the report.

``--large`` adds a million rows, 2,500 records of 400 tensors each in a format of its own: 4.6 GB of
records. Asked for: at most 60 s, 1.5 GB and 5 MB.
"""

import json
import subprocess
import sys
import tempfile
from collections.abc import Callable
from itertools import islice, product
from pathlib import Path
from typing import Any

import orjson

from quantlab.experiment import Experiment
from quantlab.formats.format import Format, FormatSpec
from quantlab.formats.uniform import Symmetric
from quantlab.records.record import NAME, run_and_write
from quantlab.sources.source import VerbProbs

N_FORMATS, N_TENSORS = 2_500, 400
FORMATS = (
    ("float32", "float16", "bfloat16"),
    ("absmax", "percentile", "mse", "optimal"),
    range(16, 16 * 15, 16),
    range(2, 17),
)

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
    print("   records      rows   seconds   µs a row        MB   MB of report.html")
    for n in (100, 1_000, 10_000):
        _measure(n, n, _write_seeds)
    if "--large" in sys.argv[1:]:
        _measure(N_FORMATS, N_FORMATS * N_TENSORS, _write_formats)


def _measure(n: int, n_rows: int, write: Callable[[Path, int], None]) -> None:
    """Print the line of `n` records, which a function writes."""
    with tempfile.TemporaryDirectory() as folder:
        write(Path(folder), n)
        command = [sys.executable, "-c", AGGREGATE, folder]
        output = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
        page = Path(folder, "report.html").stat().st_size / 1e6
    seconds, megabytes = map(float, output.split())
    per_row = 1e6 * seconds / n_rows
    print(f"{n:10,}{n_rows:10,}{seconds:10.2f}{per_row:11.0f}{megabytes:10.0f}{page:20.1f}")


def _run(folder: Path) -> dict[str, Any]:
    """Return the record of a run."""
    experiment = Experiment(VerbProbs(42, 600, 1.5), Format(Symmetric(8)), 10, 1e-8, 1)
    identity = {"dist": "verb_probs", "mode": "symmetric", "n_bits": 8}
    content = run_and_write(folder, experiment.run, {"seed": 42}, job=0, overrides=[], **identity)
    (folder / NAME).unlink()
    return content


def _write_seeds(folder: Path, n: int) -> None:
    content = _run(folder)
    for seed in range(n):
        content |= {"job": seed, "overrides": [f"seed={seed}"], "config": {"seed": seed}}
        _write(folder / f"verb_probs-sym-8bit-{seed:05}", content)


def _write_formats(folder: Path, n: int) -> None:
    """Write records of many tensors, each in groups of another size, scale, range and width."""
    content = _run(folder)
    result = json.dumps(*content["tensors"].values())
    for job, (scale, range_name, size, n_bits) in enumerate(islice(product(*FORMATS), n)):
        columns = {"block": "group", "block_size": size, "scale_dtype": scale, "range": range_name}
        content["tensors"] = {f"layer.{k}.weight": json.loads(result) for k in range(N_TENSORS)}
        for number, tensor in enumerate(content["tensors"].values()):
            tensor["storage"]["bits_per_value"] = n_bits + 32 / size
            tensor["measured"]["sqnr_db"] = 6.02 * n_bits - size / 100 + number / 1000
        content |= {
            "job": job,
            "n_bits": n_bits,
            "spec": FormatSpec.of("sym", n_bits, columns, {}).to_json(),
            "overrides": [f"n_bits={n_bits}", f"block.size={size}"],
            "config": {"n_bits": n_bits, "block": {"size": size}},
        }
        _write(folder / f"verb_probs-{job:05}", content)


def _write(directory: Path, content: dict[str, Any]) -> None:
    directory.mkdir()
    (directory / NAME).write_bytes(orjson.dumps(content, option=orjson.OPT_INDENT_2))


if __name__ == "__main__":
    main()
