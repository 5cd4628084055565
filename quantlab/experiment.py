"""One combination of tensors and format, measured tensor by tensor."""

import hashlib
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, cast

from tqdm import tqdm

from quantlab.formats.blocks import INPUT, Group, UnfitError
from quantlab.formats.element import FloatArray
from quantlab.formats.format import Codec, Format, Reconstruction, StaticRange
from quantlab.formats.ggml import Importance
from quantlab.formats.gram import LayerInputs
from quantlab.models.model import Evaluation, Model
from quantlab.models.onnx import OnnxModel
from quantlab.plans.planned import Planned
from quantlab.records.journal import Journal
from quantlab.records.record import Outcome
from quantlab.sources.file import File
from quantlab.sources.onnx import OnnxFile
from quantlab.sources.pairing import Bound
from quantlab.sources.source import Source
from quantlab.sources.tensor import Tensor
from quantlab.stats import compiled, metrics, rank
from quantlab.stats.measure import measure, reconstruct
from quantlab.stats.metrics import Metric
from quantlab.stats.predict import predict
from quantlab.stats.readings import better_reading
from quantlab.text import label

SMALL_GRAM = 2**26  # bytes of a Gram matrix that are not worth a line
MIN_COSINE = 0.5  # of a stored tensor and its original; below it they are different tensors


@dataclass(frozen=True)
class Experiment:
    """One combination of tensors and format, and the settings of its measurement.

    `rel_threshold` is the magnitude below which a value has no relative error; `threads` changes
    the time and no figure; `importance` is that of the columns of tensors, `inputs` are those of
    their layers; `extra_metrics` are functions of `quantlab.stats.metrics.Evidence`, by the names
    of their figures; `evaluation` has the model that answers with the stored tensors.
    """

    dist: Source
    form: Format | Codec
    k: int
    rel_threshold: float
    threads: int
    importance: Importance | None = None
    inputs: LayerInputs | None = None
    extra_metrics: Mapping[str, Metric] = field(default_factory=dict)
    evaluation: Evaluation | None = None

    def __post_init__(self) -> None:
        """Raise ValueError if a setting is out of range or there is nothing to measure."""
        if self._file:
            self._file.require_tensors()
        if self.evaluation and self.listing:
            raise ValueError("a model answers with all tensors: leave out dist.part and dist.parts")
        rank.require_k(self.k)
        metrics.require_threshold(self.rel_threshold)
        if not isinstance(self.threads, int) or self.threads < 1:
            raise ValueError(
                f"threads must be a whole number of 1 or more, or null for all cores, "
                f"got {self.threads!r}"
            )

    @property
    def _file(self) -> File | None:
        """The source as a file, None where its tensors are drawn."""
        return self.dist if isinstance(self.dist, File) else None

    @property
    def listing(self) -> str | None:
        """The hash of the list of tensors of a divided file, None of any other source."""
        return self._file.listing() if self._file else None

    @cached_property
    def bound(self) -> Format | Codec:
        """The format, bound to the tensors of this source."""
        return self.form.bind(self.dist) if isinstance(self.form, Codec) else self.form

    def run(self, journal: Callable[[Outcome], Journal] | None = None) -> Outcome:
        """Measure each tensor; one that cannot be measured costs none of the others.

        With a `journal`, answers with each tensor alone are kept there as soon as they are done.
        Raises ValueError if the model does not answer as it is, before anything is measured.
        """
        if self.evaluation:
            _require_answers(self.evaluation)
        versions = dict(self.form.versions) if isinstance(self.form, Codec) else {}
        outcome = Outcome(
            skipped=self._skipped(),
            format=self.form.columns(),
            versions=versions,
            listing=self.listing,
        )
        total = self._file.n_bytes() if self._file else None
        with tqdm(
            total=total, unit="B", unit_scale=True, delay=1, disable=None, leave=False
        ) as bar:
            for tensor in self._originals():
                self._try_measure(tensor, outcome, bar)
        sizes = (result["n_elements"] for result in outcome.tensors.values())
        versions |= compiled.versions(max(sizes, default=0))
        if self._file:
            _locate_in_file(outcome, self._file)
        if isinstance(self.bound, Bound):
            outcome = replace(outcome, coverage=self.bound.coverage(outcome.tensors))
        if not outcome.tensors and not outcome.failed:
            self._require_others(outcome.skipped)
        return self._answered(outcome, journal) if self.evaluation else outcome

    @property
    def model_identity(self) -> dict[str, Any] | None:
        """What identifies the model that answers; None where none does."""
        if not self.evaluation:
            return None
        stored = self._stored_model(self.evaluation.model)
        return self.evaluation.identity() | ({"stored": stored.identity()} if stored else {})

    def _answered(self, outcome: Outcome, journal: Callable[[Outcome], Journal] | None) -> Outcome:
        """Add the answers with the tensors that were measured, or the reason why there are none."""
        evaluation = cast("Evaluation", self.evaluation)
        outcome = replace(
            outcome,
            model=self.model_identity,
            versions={**outcome.versions, **getattr(evaluation.model, "versions", {})},
        )
        answers: list[dict[str, Any]] = []
        try:
            done = journal(outcome) if journal and evaluation.each else None
            for answer in self._answers(outcome, evaluation, done):
                answers.append(answer)
        except Exception as reason:  # whatever a model raises costs no tensor that was measured
            return replace(outcome, answers=answers, fault=_model_fault(reason))
        return replace(outcome, answers=answers)

    def _answers(
        self, outcome: Outcome, evaluation: Evaluation, journal: Journal | None
    ) -> Iterator[dict[str, Any]]:
        """Yield the figures of each output, with all tensors replaced and, if asked, with each."""
        weights = {
            tensor.name: reconstruct(tensor, self.bound.open(tensor), self.threads)
            for tensor in self.dist.tensors()
            if tensor.name in outcome.tensors
        }
        compared = evaluation.compare(weights, self._stored_model(evaluation.model))
        if isinstance(self.form, Planned):
            self.form.add_prediction(compared, weights)
        yield from ({"tensor": None, **answer} for answer in compared)
        if not evaluation.each:
            return
        with tqdm(weights.items(), unit="tensor", delay=1, disable=None, leave=False) as bar:
            for name, x_hat in bar:
                answers = journal.find(name) if journal else None
                if answers is None:
                    compared = evaluation.compare({name: x_hat})
                    answers = [{"tensor": name, **figures} for figures in compared]
                    if journal:
                        journal.add(name, answers)
                yield from answers

    def _stored_model(self, model: Model) -> OnnxModel | None:
        """Return the model in a quantized ONNX file, which answers as it is deployed."""
        if isinstance(self.form, OnnxFile) and isinstance(model, OnnxModel):
            return replace(model, path=self.form.path)
        return None

    def _originals(self) -> Iterator[Tensor]:
        """Open each tensor of the source; an embedding that is stored twice comes twice."""
        tied = self.bound.tied if isinstance(self.bound, Bound) else {}
        for tensor in self.dist.tensors():
            yield tensor
            if tensor.name in tied:
                yield replace(tensor, name=tied[tensor.name])

    def _try_measure(self, tensor: Tensor, outcome: Outcome, bar: "tqdm[Any]") -> None:
        """Measure a tensor, or note why it cannot be."""
        try:
            outcome.tensors[tensor.name] = self._measure(tensor, bar)
        except UnfitError as reason:
            outcome.skipped[tensor.name] = str(reason)
        except ValueError as reason:
            outcome.failed[tensor.name] = str(reason)
        except Exception as reason:  # one failing tensor must cost none of the others
            outcome.failed[tensor.name] = f"tensor '{label(tensor.name)}': {reason!r}"

    def _require_others(self, skipped: dict[str, str]) -> None:
        """Raise ValueError unless another part of the source has a tensor to measure."""
        reasons = dict(skipped)
        for tensor in self._file.others() if self._file else ():
            try:
                self.bound.open(tensor)
            except UnfitError as reason:
                reasons[tensor.name] = str(reason)
            except ValueError:  # a failure, which its own run reports
                return
            else:
                return
        raise _nothing_to_measure_error(reasons, isinstance(self.bound, Bound))

    def identify(self) -> tuple[dict[str, dict[str, Any]], dict[str, str]]:
        """Identify the tensors that would be measured; give the reason why others would not."""
        skipped, tensors = self._skipped(), {}
        for tensor in self._originals():
            try:
                stored = self._stored(tensor, self.bound.open(tensor))
            except UnfitError as reason:
                skipped[tensor.name] = str(reason)
            else:
                tensors[tensor.name] = tensor.identity() | stored
        return tensors, skipped

    def _skipped(self) -> dict[str, str]:
        """List the tensors that are left out on either side, with the reason."""
        unmatched = self.bound.unmatched() if isinstance(self.bound, Codec) else {}
        return {**(self._file.skipped() if self._file else {}), **unmatched}

    def _measure(self, tensor: Tensor, bar: "tqdm[Any]") -> dict[str, Any]:
        expected = self.dist.expected
        opened = self.bound.open(tensor)
        self._announce_memory(tensor, bar)
        result = measure(
            tensor,
            opened,
            self.k,
            self.rel_threshold,
            self.threads,
            lambda n_values: bar.update(n_values * tensor.n_bytes / tensor.size),
            landmark=expected.landmark if expected else None,
            importance=self._importance(tensor),
            extra_metrics=self.extra_metrics,
            gram=self.inputs.gram(tensor) if self.inputs else None,
        )
        if (self.importance or self.inputs) and "out_sqnr_db" not in result["measured"]:
            result["measured"]["out_sqnr_db"] = None
            result["reasons"]["out_sqnr_db"] = self._why_no_output()
        predicted = None
        if expected and isinstance(opened, Format) and _is_predictable(opened):
            predicted = predict(opened, expected)
        result |= {
            "sha256": tensor.sha256(),
            "predicted": predicted,
            **self._stored(tensor, opened),
        }
        if isinstance(opened, Reconstruction) and isinstance(self.bound, Bound):
            result["remark"] = _check_same_tensor(tensor, opened, result["measured"])
        elif isinstance(opened, Reconstruction) and opened.remark:
            result["remark"] = opened.remark
        importance = self._importance(tensor)
        if self.importance and importance is not None and not importance.any():
            zeros = f"{self.importance.name} has an importance of 0 for every input of it"
            result["remark"] = "; ".join(filter(None, (result.get("remark"), zeros)))
        return result

    def _announce_memory(self, tensor: Tensor, bar: "tqdm[Any]") -> None:
        """Say how much memory the Gram matrix of the inputs of a tensor takes, where it is much."""
        width = self.inputs.width(tensor) if self.inputs else None
        n_bytes = 8 * width * width if width else 0
        if n_bytes > SMALL_GRAM:
            gram = f"a matrix of {width} x {width}, {n_bytes / 2**20:.0f} MiB"
            bar.write(f"{label(tensor.name)}: its inputs take {gram}", file=sys.stderr)

    def _why_no_output(self) -> str:
        """Say why there is no error of the output of a tensor's layer."""
        if self.importance:
            return f"{self.importance.name} has no importance of it"
        return f"{cast('LayerInputs', self.inputs).name} has no inputs of it"

    def _stored(self, tensor: Tensor, opened: Format | Reconstruction) -> dict[str, Any]:
        """Identify what figures depend on beside the tensor and the settings."""
        identity: dict[str, Any] = {}
        block = getattr(self.form, "block", None)
        if isinstance(block, Group) and block.axis == INPUT:
            identity["input_axis"] = tensor.input_axis
        if isinstance(opened, Reconstruction):
            identity["stored_dtype"] = opened.dtype
            if opened.sha256:
                identity |= {"stored_sha256": opened.sha256, "stored_file": opened.source}
        else:
            identity |= opened.identity(tensor)
        weights = self._importance(tensor)
        if weights is not None:
            identity["importance_sha256"] = hashlib.sha256(weights.data).hexdigest()
        if self.inputs and (inputs := self.inputs.identity(tensor)):
            identity["inputs_sha256"] = inputs
        return identity

    def _importance(self, tensor: Tensor) -> FloatArray | None:
        """Look up the importance of columns, which inputs that are known make needless."""
        if not self.importance or (self.inputs and self.inputs.width(tensor) is not None):
            return None
        return self.importance.of(tensor.name, tensor.shape)


def _is_predictable(form: Format) -> bool:
    """Whether what is quantized is the tensor itself, and its own values choose the range."""
    return not form.transform and not isinstance(form.range, StaticRange)


def _locate_in_file(outcome: Outcome, file: File) -> None:
    """Add the sizes of the tensors that were not measured, and the places of a divided file."""
    unmeasured = {*outcome.skipped, *outcome.failed}
    stored = file.stored_sizes()
    outcome.unmeasured.update((name, stored[name]) for name in stored if name in unmeasured)
    for name, place in file.places().items():
        if name in outcome.tensors:
            outcome.tensors[name]["place"] = place


def _require_answers(evaluation: Evaluation) -> None:
    """Raise ValueError unless the model answers as it is."""
    try:
        evaluation.require_answers()
    except Exception as reason:
        raise ValueError(_model_fault(reason)) from None


def _model_fault(reason: Exception) -> str:
    """Describe what a model raised, which may be anything."""
    text = str(reason) if isinstance(reason, ValueError) else repr(reason)
    return f"the model did not answer: {text}"


def _check_same_tensor(
    tensor: Tensor, stored: Reconstruction, measured: dict[str, Any]
) -> str | None:
    """Describe the faults of a stored tensor, if any; raise ValueError if it is another tensor."""
    better, faults = better_reading(tensor, stored), [stored.remark] if stored.remark else []
    if better:
        faults.append(
            f"read {better.name} it fits the original far better "
            f"({better.sqnr_db:.1f} dB, not {better.declared_db:.1f})"
        )
    cos_sim = measured["cos_sim"]
    if cos_sim is None and measured["max_err"]:
        cos_sim = 0.0  # one of both is all zeros
    if cos_sim is not None and cos_sim < MIN_COSINE:
        hint = "".join(f": {fault}" for fault in faults)
        raise ValueError(
            f"tensor '{label(tensor.name)}' is not the same tensor in {stored.source}: the cosine "
            f"of both is {cos_sim:.3g}{hint}"
        )
    return "; ".join(faults) or None


def _nothing_to_measure_error(reasons: dict[str, str], of_file: bool) -> ValueError:
    examples = "; ".join(f"{label(name)}: {reason}" for name, reason in list(reasons.items())[:3])
    hint = ": dist=... takes the original of the file in mode.path" if of_file else ""
    return ValueError(f"there is no tensor to measure ({examples}){hint}")
