"""ONNX models that answer, run by ONNX Runtime with replaced weights.

A session takes them as values of initializers that stand outside the model. Those that are given as
`add_initializer` are ignored where an optimization has folded them, as a convolution before a batch
norm.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from importlib import import_module
from importlib.metadata import version
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple
from zipfile import is_zipfile

import numpy as np
from numpy.typing import NDArray

from quantlab.models.model import Arrays
from quantlab.sources.file import existing_path, expand_home, file_sha256, file_state, readable
from quantlab.sources.onnx_graph import as_text, constant_protos, kind_name, model_files, read_graph
from quantlab.sources.tensor import FileState
from quantlab.stats.parallel import map_on_threads, usable_cores
from quantlab.text import label, near_misses, printable, require_packages

BATCH = 32  # samples that are answered together where the graph leaves that open
BATCHES_A_THREAD = 4  # whose answers are in memory at once
VALUE_FIELDS = (
    "raw_data", "float_data", "int32_data", "double_data", "external_data", "data_location",
)  # fmt: skip
MIN_GIVEN_BYTES = 2**10  # smaller ones may be needed to infer shapes, before values are given
RUNTIME_DTYPES = {
    "tensor(float)": "float32",
    "tensor(double)": "float64",
    **{f"tensor({name})": name for name in ("float16", "bool")},
    **{f"tensor({sign}int{n})": f"{sign}int{n}" for sign in ("", "u") for n in (8, 16, 32, 64)},
}


class GraphInput(NamedTuple):
    """An input of a graph: the lengths of its axes, None where they are open."""

    name: str
    dtype: str
    shape: tuple[int | None, ...]


@dataclass(frozen=True)
class OnnxModel:
    """An ONNX model and the inputs that it answers.

    `inputs` is an npz with an array for each input of the graph, the first axis counting samples,
    or a directory of such files. Where the inputs of the graph have no such axis, or one of a fixed
    length, that many samples are answered at a time; elsewhere `batch`. `threads` change no answer.
    """

    path: str | None = None
    inputs: str | None = None
    batch: int | None = None
    threads: int | None = None

    def __post_init__(self) -> None:
        """Raise ValueError where a setting or a file is missing."""
        if self.path is None:
            raise ValueError("model.path=FILE.onnx names the model that answers")
        if self.inputs is None:
            raise ValueError("model.inputs=FILE.npz names the inputs that the model answers")
        if self.batch is not None and (type(self.batch) is not int or self.batch < 1):
            raise ValueError(f"model.batch must be a whole number of 1 or more, got {self.batch!r}")
        require_packages(("onnx", "onnxruntime"), f"reading {self.path}")
        object.__setattr__(self, "path", existing_path(self.path, "onnx"))  # it is frozen
        with readable(str(self.path), "onnx"):
            model_files(str(self.path))
        self.input_files()

    @property
    def versions(self) -> dict[str, str]:
        """The version of ONNX Runtime, on which answers depend."""
        return {"onnxruntime": version("onnxruntime")}

    def identity(self) -> dict[str, Any]:
        """Return the sha256 of the model and of its inputs."""
        return {
            "model_sha256": [file_sha256(path) for path in model_files(str(self.path))],
            "inputs_sha256": [file_sha256(path) for path in self.input_files()],
        }

    def answers(self, weights: Arrays) -> Iterator[Arrays]:
        """Yield the outputs of each batch, with replaced weights.

        Raises ValueError where the graph has no such weight or cannot be run, or inputs do not fit.
        """
        with Session(str(self.path), weights) as session:
            threads = self.threads or usable_cores()
            batches = self.batches(session.inputs)
            while window := list(islice(batches, BATCHES_A_THREAD * threads)):
                yield from map_on_threads(session.run, window, threads)

    def compute_edges(self, names: Sequence[str]) -> Iterator[tuple["Batch", Arrays]]:
        """Yield each batch with what nodes give for it, by the names of their outputs.

        Those that hold no floating-point numbers are left out; few batches are computed at once.
        """
        threads = self.threads or usable_cores()
        with Session(str(self.path), {}, names) as session:
            batches = self.batches(session.inputs)
            while window := list(islice(batches, threads)):
                compute = partial(session.compute, names)
                yield from zip(window, map_on_threads(compute, window, threads), strict=True)

    def input_files(self) -> list[str]:
        """List the files of inputs; raises ValueError where there is none."""
        path = expand_home(str(self.inputs))
        files = sorted(path.glob("*.npz")) if path.is_dir() else [path]
        if not files:
            raise ValueError(f"{self.inputs} holds no npz file")
        return [existing_path(file, "npz") for file in files]

    def file_states(self) -> tuple[FileState, ...]:
        """Return the states of the model's file and of those of its inputs."""
        return tuple(file_state(path) for path in (str(self.path), *self.input_files()))

    def batches(self, inputs: Sequence[GraphInput]) -> Iterator["Batch"]:
        """Yield what a session is fed with."""
        for path in self.input_files():
            if not is_zipfile(path):
                raise ValueError(f"{path} is no npz file: numpy.savez writes one")
            with readable(path, "npz"):
                arrays = dict(np.load(path, allow_pickle=False))
            yield from _Samples(path, arrays, inputs, self.batch).batches()


class Batch(NamedTuple):
    """Arrays by the inputs of a graph, how many samples they are, and if an axis counts those."""

    feed: dict[str, NDArray[Any]]
    n_samples: int
    has_sample_axis: bool


@dataclass(frozen=True)
class _Samples:
    """The arrays of one file, held to the inputs of a graph."""

    path: str
    arrays: Mapping[str, NDArray[Any]]
    inputs: Sequence[GraphInput]
    batch: int | None

    def batches(self) -> Iterator[Batch]:
        """Cut the samples into batches; raises ValueError where they do not fit the graph."""
        names = {entry.name for entry in self.inputs}
        for what, missing in (
            ("has no", names - self.arrays.keys()),
            ("has an array that the graph does not take,", self.arrays.keys() - names),
        ):
            if missing:
                raise ValueError(
                    f"{self.path} {what} '{label(min(missing))}': the graph takes "
                    f"{', '.join(sorted(map(label, names)))}"
                )
        arrays = {entry.name: self._fitted(entry) for entry in self.inputs}
        lengths = {name: len(array) for name, array in arrays.items() if array.ndim}
        if len(set(lengths.values())) != 1:
            raise ValueError(
                f"the first axes of the arrays in {self.path} count samples, and differ: {lengths}"
            )
        n_samples, size = next(iter(lengths.values())), self._batch_size()
        has_sample_axis = any(self._has_sample_axis(entry) for entry in self.inputs)
        if n_samples % size and self._fixed_sizes():
            raise ValueError(
                f"{self.path} has {n_samples} samples, and the graph takes {size} at a time"
            )
        for start in range(0, n_samples, size):
            feed = {e.name: self._sliced(e, arrays[e.name], start, size) for e in self.inputs}
            yield Batch(feed, min(size, n_samples - start), has_sample_axis)

    def _fitted(self, entry: GraphInput) -> NDArray[Any]:
        """Return the array of an input in the dtype of the graph."""
        array = self.arrays[entry.name]
        taken = (None, *entry.shape[1:]) if self._has_sample_axis(entry) else entry.shape
        given = array.shape[array.ndim - len(taken) :] if array.ndim <= len(taken) + 1 else ()
        fits = len(given) == len(taken) and all(
            n in (None, axis) for n, axis in zip(taken, given, strict=True)
        )
        is_known = entry.dtype in RUNTIME_DTYPES.values()
        if not fits or not is_known or not np.can_cast(array.dtype, entry.dtype, "same_kind"):
            axes = ", ".join("?" if n is None else str(n) for n in taken)
            raise ValueError(
                f"{self.path} has '{label(entry.name)}' as {array.dtype} {list(array.shape)}, and "
                f"the graph takes {entry.dtype} [{axes}]"
            )
        with np.errstate(over="ignore"):
            fitted = array.astype(entry.dtype, copy=False)
        is_kept = np.isfinite(fitted).all() if fitted.dtype.kind == "f" else (fitted == array).all()
        if not is_kept:
            raise ValueError(
                f"{self.path} has values in '{label(entry.name)}' that {entry.dtype}, which the "
                "graph takes, does not hold"
            )
        return fitted

    def _has_sample_axis(self, entry: GraphInput) -> bool:
        """Whether an input of the graph has the axis that counts samples."""
        return self.arrays[entry.name].ndim == len(entry.shape) and bool(entry.shape)

    def _fixed_sizes(self) -> set[int]:
        """List how many samples the graph takes at a time, where it says."""
        sizes = {
            entry.shape[0] if self._has_sample_axis(entry) else 1
            for entry in self.inputs
            if self.arrays[entry.name].ndim
        }
        return {size for size in sizes if size is not None}

    def _batch_size(self) -> int:
        fixed = self._fixed_sizes()
        if len(fixed) > 1 or (fixed and self.batch and self.batch not in fixed):
            raise ValueError(
                f"the graph answers {' or '.join(map(str, sorted(fixed)))} at a time"
                + (f", not model.batch={self.batch}" if self.batch else "")
            )
        return next(iter(fixed), self.batch or BATCH)

    def _sliced(
        self, entry: GraphInput, array: NDArray[Any], start: int, size: int
    ) -> NDArray[Any]:
        if not array.ndim:
            return array
        return array[start : start + size] if self._has_sample_axis(entry) else array[start, ...]


class Session:
    """A graph in ONNX Runtime, with replaced weights and further outputs, on one thread a call."""

    def __init__(self, path: str, weights: Arrays, outputs: Sequence[str] = ()) -> None:
        self.path, self._weights, self._outputs = path, weights, outputs

    def __enter__(self) -> "Session":
        """Load the model; raises ValueError where ONNX Runtime cannot."""
        onnxruntime = import_module("onnxruntime")
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1  # more change sums
        options.log_severity_level = 3
        options.add_session_config_entry(
            "session.model_external_initializers_file_folder_path", str(_values_folder(self.path))
        )
        try:
            model, given = _edited(self.path, self._weights, self._outputs)
            # It reads them while it runs, and does not keep them alive.
            self._given = [onnxruntime.OrtValue.ortvalue_from_numpy(w) for w in given.values()]
            options.add_external_initializers([*given], self._given)
            self._session = onnxruntime.InferenceSession(
                model, options, providers=["CPUExecutionProvider"]
            )
        except Exception as reason:  # ONNX Runtime has exceptions of its own, one for each code
            if isinstance(reason, ValueError):
                raise
            raise ValueError(
                f"{self.path} cannot be loaded by ONNX Runtime ({_one_line(reason)})"
            ) from None
        self.inputs = [
            GraphInput(
                entry.name,
                RUNTIME_DTYPES.get(entry.type, entry.type),
                tuple(n if isinstance(n, int) else None for n in entry.shape),
            )
            for entry in self._session.get_inputs()
        ]
        return self

    def __exit__(self, *_: object) -> None:
        """Free the model."""
        del self._session, self._given

    def run(self, batch: Batch) -> Arrays:
        """Return the outputs that hold floating-point numbers; raises ValueError."""
        names = [entry.name for entry in self._session.get_outputs()]
        outputs = self.compute(names, batch)
        if not outputs:
            raise ValueError(f"{self.path} has no output of floating-point numbers")
        return {
            name: self._by_sample(name, answers, batch.n_samples)
            for name, answers in outputs.items()
        }

    def compute(self, names: Sequence[str], batch: Batch) -> Arrays:
        """Compute those of some outputs that hold floating-point numbers; raises ValueError."""
        try:
            values = self._session.run(names, batch.feed) if names else []  # of none it gives all
        except Exception as reason:
            raise ValueError(f"{self.path} cannot be run ({_one_line(reason)})") from None
        return {
            name: array
            for name, array in zip(names, values, strict=True)
            if isinstance(array, np.ndarray) and array.dtype.kind == "f"
        }

    def _by_sample(self, name: str, answers: NDArray[Any], n_samples: int) -> NDArray[Any]:
        if answers.shape[:1] == (n_samples,):
            return answers
        if n_samples == 1:
            return answers[None]
        raise ValueError(
            f"output '{label(name)}' has the shape {list(answers.shape)} for {n_samples} samples: "
            "model.batch=1 answers one at a time"
        )


def _values_folder(path: str) -> Path:
    """Return the directory of a model's values: a cache has links to files side by side."""
    folders = {Path(file).resolve().parent for file in model_files(path)}
    return folders.pop() if len(folders) == 1 else Path(path).parent


def _edited(path: str, weights: Arrays, outputs: Sequence[str]) -> tuple[str | bytes, Arrays]:
    """Return a model with further outputs that takes replaced weights, and those to give it.

    Small ones and those of Constant nodes and bodies are written into it.
    """
    if not weights and not outputs and not Path(path).is_symlink():
        return path, {}
    import onnx

    model = onnx.ModelProto()
    model.CopyFrom(read_graph(path).model)
    initializers = {as_text(proto.name) for proto in model.graph.initializer}
    known = {entry.name for entry in model.graph.output}
    further = [name for name in outputs if name not in known]
    model.graph.output.extend(onnx.ValueInfoProto(name=name) for name in further)
    protos, given = constant_protos(model.graph), {}
    folder = _values_folder(path)
    for entry in (entry for proto in protos.values() for entry in proto.external_data):
        target = (Path(path).parent / entry.value).resolve()
        if entry.key == "location" and target.parent == folder:  # no link is followed out of it
            entry.value = target.name
    for name, values in weights.items():
        if name not in protos:
            misses = near_misses(name, list(protos))
            raise ValueError(f"{path} has no weight '{label(name)}': {misses}")
        proto, stored = protos[name], _as_stored(protos[name], values, path)
        for field_name in VALUE_FIELDS:
            proto.ClearField(field_name)
        if name in initializers and stored.dtype.kind == "f" and stored.nbytes >= MIN_GIVEN_BYTES:
            proto.data_location = onnx.TensorProto.EXTERNAL
            proto.external_data.add(key="location", value="given")
            given[name] = stored
        else:
            proto.raw_data = stored.tobytes()  # in C order
    return bytes(model.SerializeToString()), given


def _as_stored(proto: Any, values: NDArray[Any], path: str) -> NDArray[Any]:
    """Convert values to the dtype of a tensor of a model."""
    if tuple(proto.dims) != values.shape:
        raise ValueError(
            f"{path} has '{label(proto.name)}' in the shape {list(proto.dims)}, not "
            f"{list(values.shape)}"
        )
    dtype = np.dtype(kind_name(proto.data_type)).newbyteorder("<")
    with np.errstate(over="ignore"):
        stored = np.ascontiguousarray(values, dtype)
    if not np.isfinite(stored if dtype.kind == "f" else stored.astype(np.float32)).all():
        raise ValueError(f"weight '{label(proto.name)}' comes back with values beyond {dtype.name}")
    return stored


def _one_line(reason: Exception) -> str:
    return printable(" ".join(str(reason).split()))
