"""A model that answers, and what its answers lose when other weights stand in it."""

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import zip_longest
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from quantlab.models.figures import KINDS, Kind, OriginalAnswers, OutputComparison, find_kind
from quantlab.sources.file import existing_path, file_sha256, readable
from quantlab.text import first_few, label

Arrays = Mapping[str, NDArray[Any]]
MAX_CACHED_BYTES = 2**28  # of the answers of an original; where there are more it answers again
MAPPINGS = "answers(weights) must yield mappings of the names of outputs to arrays"
CHUNK_ANSWERS = 2**16  # that are compared at once
SENTENCE_OUTPUTS = 4


class Model(Protocol):
    """A model of one's own: a class that a yaml in ``model/`` names.

    Beside `answers` it may have `identity()`: JSON values that tell the model and its inputs from
    others. A run is repeated where they have changed.
    """

    def answers(self, weights: Arrays) -> Iterable[Arrays]:
        """Yield the outputs of each batch by their names, the first axis counting samples.

        `weights` replace those of their names; they are float32 arrays of the same shapes.
        """


class _Original(NamedTuple):
    """The answers of a model as it is. Models of one `key`, or one and the same, have the same.

    They are ranked for comparisons of one k and of one kind each.
    """

    model: Model
    key: str | None
    comparing: tuple[int, dict[str, Kind]]
    chunks: Sequence[Mapping[str, OriginalAnswers]]


_cached: list[_Original] = []  # of the last model


@dataclass(frozen=True)
class Evaluation:
    """A model, and how its answers are compared.

    `outputs` say what the rows of an output are where that cannot be found out; `labels` is an npy
    of places along the last axis, one a sample or a row; with `each`, tensors are replaced one at a
    time too. The `k` largest answers of a row must keep their order. `config` is that of the model:
    with the identity of a model it tells its answers from those of others.
    """

    model: Model
    k: int
    outputs: Mapping[str, Kind] = field(default_factory=dict)
    labels: str | None = None
    each: bool = False
    config: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Raise ValueError if a setting makes no sense or the labels cannot be read."""
        for name, kind in self.outputs.items():
            if kind not in KINDS:
                raise ValueError(
                    f"model.outputs.{name} must be one of {', '.join(KINDS)}, got {kind!r}"
                )
        if not isinstance(self.each, bool):
            raise ValueError(f"model.each must be true or false, got {self.each!r}")
        if self.labels is not None:
            _read_labels(self.labels)

    @cached_property
    def _model_identity(self) -> dict[str, Any]:
        return dict(getattr(self.model, "identity", dict)())

    def identity(self) -> dict[str, Any]:
        """Return what the figures depend on beside the settings, as JSON values."""
        labels = {"labels_sha256": file_sha256(self.labels)} if self.labels else {}
        return self._model_identity | labels

    def require_answers(self) -> None:
        """Raise whatever the model raises as it is, such as ValueError where inputs do not fit."""
        next(self._original(), None)

    def compare(self, weights: Arrays, stored: Model | None = None) -> list[dict[str, Any]]:
        """Compare the answers with the original's: with replaced weights, or of a `stored` model.

        A `stored` model answers with the weights that it has. Return the figures of each output.
        Raises ValueError where outputs, samples or labels do not fit, or an output is not finite.
        """
        comparisons: dict[str, OutputComparison] = {}
        labels = None if self.labels is None else _read_labels(self.labels)
        n_samples = 0
        answers = _join_batches(stored.answers({}) if stored else self.model.answers(weights))
        for original, after in zip_longest(self._original(), answers):
            if original is None or after is None or original.keys() != after.keys():
                raise ValueError(
                    f"the model answers {_names(after)}, and as it is {_names(original)}"
                )
            stop = n_samples + len(next(iter(after.values())))
            for name, before in original.items():
                comparison = comparisons.setdefault(name, OutputComparison(name, before.kind))
                if before.kind != comparison.kind:
                    raise ValueError(
                        f"output '{label(name)}' has {comparison.kind} in one batch and "
                        f"{before.kind} in another: model.outputs.NAME=values says what it has"
                    )
                own_labels = None if labels is None else labels[n_samples:stop]
                comparison.add(before, after[name], own_labels)
            n_samples = stop
        self._require_complete(comparisons, labels, n_samples)
        return [comparison.to_json() for comparison in comparisons.values()]

    def _original(self) -> Iterator[Mapping[str, OriginalAnswers]]:
        """Yield the answers of the model as it is, computed once where they are few."""
        comparing = self.k, dict(self.outputs)
        key = None
        if self.config and self._model_identity:
            key = json.dumps([dict(self.config), self._model_identity], sort_keys=True)
        for cached in _cached:
            is_same = cached.model is self.model or (key and key == cached.key)
            if is_same and cached.comparing == comparing:
                yield from cached.chunks
                return
        answers = self._answer_as_is()
        chunks, n_bytes = [], 0
        for chunk in answers:
            chunks.append(chunk)
            n_bytes += sum(output.n_bytes for output in chunk.values())
            if n_bytes > MAX_CACHED_BYTES:
                break
        else:
            _cached[:] = [_Original(self.model, key, comparing, chunks)]
        yield from chunks  # after the model is closed, where they are all
        yield from answers

    def _answer_as_is(self) -> Iterator[Mapping[str, OriginalAnswers]]:
        """Yield the answers of the model as it is."""
        n_samples = 0
        for batch in _join_batches(self.model.answers({})):
            yield {
                name: OriginalAnswers(
                    name,
                    answers,
                    self.outputs.get(name) or find_kind(name, answers),
                    self.k,
                    n_samples,
                )
                for name, answers in batch.items()
            }
            n_samples += len(next(iter(batch.values())))

    def _require_complete(
        self,
        comparisons: Mapping[str, OutputComparison],
        labels: NDArray[Any] | None,
        n_samples: int,
    ) -> None:
        if not n_samples:
            raise ValueError("the model answers nothing: give model.inputs at least one sample")
        if unknown := [name for name in self.outputs if name not in comparisons]:
            raise ValueError(
                f"model.outputs.{unknown[0]}: the model has no such output; it has "
                f"{_names(comparisons)}"
            )
        if labels is not None and len(labels) != n_samples:
            raise ValueError(
                f"model.labels={self.labels} has {len(labels)} labels for {n_samples} samples"
            )
        if labels is not None and not any(output.n_labels for output in comparisons.values()):
            raise ValueError(
                f"model.labels={self.labels} has the shape {list(labels.shape)}, a label a row of "
                "no output that ranks answers"
            )


def _join_batches(batches: Iterable[Arrays]) -> Iterator[Arrays]:
    """Join batches to chunks of `CHUNK_ANSWERS` or more, unless their shapes differ.

    Where batches are small, most of the time of a comparison would be that of calls. Raises
    ValueError unless a batch is a mapping of names to arrays.
    """
    chunk: list[Arrays] = []
    for batch in batches:
        is_mapping = isinstance(batch, Mapping) and bool(batch)
        if not is_mapping or not all(isinstance(a, np.ndarray) and a.ndim for a in batch.values()):
            raise ValueError(f"{MAPPINGS}, got {type(batch).__name__}")
        if chunk and _row_shapes(batch) != _row_shapes(chunk[0]):
            yield _join(chunk)
            chunk = []
        chunk.append(batch)
        if sum(answers.size for part in chunk for answers in part.values()) >= CHUNK_ANSWERS:
            yield _join(chunk)
            chunk = []
    if chunk:
        yield _join(chunk)


def _row_shapes(batch: Arrays) -> dict[str, tuple[int, ...]]:
    return {name: answers.shape[1:] for name, answers in batch.items()}


def _join(batches: Sequence[Arrays]) -> Arrays:
    return {name: np.concatenate([batch[name] for batch in batches]) for name in batches[0]}


def _names(outputs: Iterable[str] | None) -> str:
    names = [label(name) for name in outputs or ()]
    return ", ".join(first_few(names, SENTENCE_OUTPUTS, lambda n: f"{n} more")) or "nothing"


def _read_labels(path: str) -> NDArray[Any]:
    """Read labels, whole numbers from 0 up; raises ValueError, naming the file."""
    existing = existing_path(path, "labels")
    with readable(existing, "npy"):
        labels = np.load(existing, allow_pickle=False)
    is_whole = isinstance(labels, np.ndarray) and labels.dtype.kind in "iu" and labels.ndim > 0
    if not is_whole or (labels.size and labels.min() < 0):
        raise ValueError(f"model.labels={path} must hold whole numbers from 0 up, one a sample")
    return np.asarray(labels)
