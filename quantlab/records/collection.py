"""The records of a sweep -> its runs, and a row of figures for each of their tensors."""

import os
import pickle
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple, cast

from tqdm import tqdm

from quantlab.records import disk, record
from quantlab.records.manifest import IDENTITY
from quantlab.records.record import Row, Run
from quantlab.records.rows import Rows, join_rows
from quantlab.stats.parallel import usable_cores

MAX_BATCH_BYTES = 2**24  # of records whose results are in memory at once
MIN_SHARED_BYTES = 2**26  # of records, which one process reads while others start
WORKER_PROGRAM = """\
import gc, os, sys
gc.disable()  # what is read has no cycles, and a tenth of the time went into looking for them
results = os.fdopen(os.dup(1), "wb")
os.dup2(2, 1)  # what modules print is no result
import pickle
sys.path = pickle.load(sys.stdin.buffer)
from quantlab.records.collection import write_batches
write_batches(results)
"""
FIGURE_KEYS = "/figures"  # of a row: the keys that its tensor has, in their order
DIRECTORY = "/directory"  # of a row: its run directory


class Collection(NamedTuple):
    """The runs of a sweep in its order, and the `figures` of their tensors, a row each.

    The ``tensors`` of a record are no results but the rows of its tensors, by their names.
    """

    runs: list[Run]
    figures: Rows


def collect(directory: Path) -> Collection:
    """Read the record of every run below a directory.

    A million tensors must fit in memory: a tensor is reduced to its figures, its place in a divided
    source (``places`` of its record), and what `IDENTITY`, `FIGURE_KEYS` and `DIRECTORY` are.
    Raises ValueError if there is no record, or none that can be read.
    """
    require_records(directory)
    batches = _batches([*record.find(directory)])
    runs: list[Run] = []
    tables: list[Rows] = []
    n_paths = sum(len(batch.paths) for batch in batches)
    with tqdm(total=n_paths, desc="reading", unit="run", delay=1, disable=None, leave=False) as bar:
        for batch_runs, table in _read_batches(batches, directory):
            offset = sum(table.n for table in tables)
            runs += [_shift_rows(run, offset) for run in batch_runs]
            tables.append(table)
            bar.update(len(batch_runs))
    if not any(run.record for run in runs):
        reason = min(runs, key=_sweep_order).error
        raise ValueError(f"{directory} is not a sweep: nothing in it can be read: {reason}")
    return Collection(sorted(runs, key=_sweep_order), join_rows(tables))


class Batch(NamedTuple):
    """Records that are read before their results are reduced to figures, and their size."""

    paths: list[Path]
    n_bytes: int


def _batches(paths: Sequence[Path]) -> list[Batch]:
    """Divide records into batches: the results of all would take five times as much memory."""
    batches = []
    batch = Batch([], 0)
    for path in paths:
        with suppress(OSError):
            batch = batch._replace(n_bytes=batch.n_bytes + path.stat().st_size)
        batch.paths.append(path)
        if batch.n_bytes > MAX_BATCH_BYTES:
            batches.append(batch)
            batch = Batch([], 0)
    return [*batches, batch] if batch.paths else batches


def _read_batches(batches: Sequence[Batch], directory: Path) -> Iterator[tuple[list[Run], Rows]]:
    """Read batches in their order; of large sweeps each core reads some."""
    paths = [batch.paths for batch in batches]
    n_workers = min(usable_cores(), len(batches))
    if n_workers < 2 or sum(batch.n_bytes for batch in batches) < MIN_SHARED_BYTES:
        n_workers = 0
    with _start_workers(n_workers) as workers:
        for n, worker in enumerate(workers):
            _send(worker, sys.path, (paths[n :: len(workers)], directory))
        for n, batch in enumerate(paths):
            received = _receive(workers[n % len(workers)]) if workers else None
            yield received or _read_runs(batch, directory)


# multiprocessing would run the program of the user again, which need not expect it, or fork locks.
@contextmanager
def _start_workers(n: int) -> Iterator[list[subprocess.Popen[bytes]]]:
    """Start up to `n` processes that `write_batches`; Ctrl-C ends them with this one.

    They import nothing from the current directory (-P), and nothing runs before them (-S).
    """
    workers: list[subprocess.Popen[bytes]] = []
    try:
        with suppress(OSError):  # this one reads what is left to it
            while sys.executable and len(workers) < n:
                worker = subprocess.Popen(
                    [sys.executable, "-P", "-S", "-c", WORKER_PROGRAM],
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    stderr=subprocess.DEVNULL,
                    start_new_session=True,
                )
                workers.append(worker)
        yield workers
    finally:
        for worker in workers:
            worker.kill()
            worker.wait()
            cast("BinaryIO", worker.stdout).close()


def _send(worker: subprocess.Popen[bytes], *values: Any) -> None:
    with suppress(BrokenPipeError), cast("BinaryIO", worker.stdin) as pipe:
        for value in values:
            pickle.dump(value, pipe)


def _receive(worker: subprocess.Popen[bytes]) -> tuple[list[Run], Rows] | None:
    """Take the next batch from a worker, None if it has ended."""
    try:
        return cast("tuple[list[Run], Rows]", pickle.load(cast("BinaryIO", worker.stdout)))
    except (EOFError, pickle.UnpicklingError):
        return None


def write_batches(results: BinaryIO) -> None:
    """Read the batches that standard input names, and write them."""
    batches, directory = pickle.load(sys.stdin.buffer)
    for paths in batches:
        pickle.dump(_read_runs(paths, directory), results, pickle.HIGHEST_PROTOCOL)
        results.flush()


def _shift_rows(run: Run, offset: int) -> Run:
    """Count the rows of a run from the first of the sweep, where its batch begins at `offset`."""
    if run.record:
        rows = run.record["tensors"].items()
        run.record["tensors"] = {sys.intern(name): row + offset for name, row in rows}
    return run


def require_directory(directory: Path) -> None:
    """Raise ValueError unless a directory exists and can be listed."""
    if not directory.is_dir():
        missing = "is not a directory" if directory.exists() else "does not exist"
        raise ValueError(f"{directory} {missing}: give the directory of a sweep")
    if not os.access(directory, os.R_OK | os.X_OK):  # else it would look empty
        raise ValueError(f"{directory} cannot be read: you have no permission to list its files")


def require_records(directory: Path) -> None:
    """Raise ValueError unless a directory exists and holds the record of a run."""
    require_directory(directory)
    if not any(record.find(directory)):
        raise ValueError(f"{directory} is not a sweep: it holds no {record.NAME}")


def _read_runs(paths: Sequence[Path], directory: Path) -> tuple[list[Run], Rows]:
    """Read the records of a batch, and the figures of their tensors."""
    runs: list[Run] = []
    rows: list[Row] = []
    for path in paths:
        run, results = _read_run(path, directory)
        if run.record:
            run.record["tensors"] = {name: len(rows) + n for n, name in enumerate(results)}
        rows += [_tensor_row(name, result, run.directory) for name, result in results.items()]
        runs.append(run)
    return runs, Rows.of(rows)


def _read_run(path: Path, directory: Path) -> tuple[Run, dict[str, Any]]:
    """Read a record, and the results of its tensors apart from it."""
    name = path.parent.relative_to(directory).as_posix()
    try:
        if not disk.is_inside(path, directory):
            raise ValueError(f"{path} is a link out of the sweep")
        content = record.read(path)
        sha256 = disk.digest(path)
    except ValueError as reason:
        error = str(reason).replace(f"{directory}{os.sep}", "")  # the same wherever the sweep is
        return Run(name, None, None, error), {}
    results = content["tensors"]
    content["places"] = {
        tensor: result["place"] for tensor, result in results.items() if "place" in result
    }
    return Run(name, sha256, content, content["error"]), results


def _tensor_row(name: str, result: Mapping[str, Any], directory: str) -> Row:
    figures = record.figures(result)
    return figures | {
        "tensor": name,
        IDENTITY: (result["dtype"], tuple(result["shape"]), result["sha256"]),
        FIGURE_KEYS: tuple(figures),
        DIRECTORY: directory,
    }


def _sweep_order(run: Run) -> tuple[Any, ...]:
    """Order runs as they were typed, those that cannot be read first."""
    if run.record is None:
        return (-1,)
    job, dist, mode, n_bits = (run.record[key] for key in ("job", "dist", "mode", "n_bits"))
    n_bits = n_bits if isinstance(n_bits, int) else 0  # a run may fail for it
    return job or 0, dist, mode, n_bits, run.directory
