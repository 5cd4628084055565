"""One array measured, for notebooks and scripts."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import product
from numbers import Integral
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from quantlab.conf import (
    instantiate_with,
    load_option,
    needs_setting,
    option_names,
    own_settings,
)
from quantlab.formats import uniform
from quantlab.formats.blocks import UnfitError
from quantlab.formats.element import ContradictionError, FloatArray
from quantlab.formats.format import Codec, Format, Reconstruction, TensorRange, compose
from quantlab.formats.gram import LayerInputs
from quantlab.models.model import Evaluation, Model
from quantlab.records import record
from quantlab.report.bar import Bar
from quantlab.report.terminal import run_summary
from quantlab.report.texts import Texts
from quantlab.sources.calibration import ArrayInputs
from quantlab.sources.file import require_select, select_weights
from quantlab.sources.readers import reader_of
from quantlab.sources.tensor import Tensor
from quantlab.stats.measure import measure as measure_tensor
from quantlab.stats.measure import reconstruct
from quantlab.stats.metrics import Metric
from quantlab.stats.parallel import usable_cores

NAME = "x"
TOP_K = 10  # answers that must keep their order


class Measurement(Mapping[str, Any]):
    """The figures of one array, under their keys in results.csv.

    ``dict(result)`` holds them all; a notebook shows them with plots.
    """

    def __init__(
        self, tensor: dict[str, Any], mode: str, n_bits: int | None, name: str = NAME
    ) -> None:
        self._tensor, self._mode, self._n_bits, self._name = tensor, mode, n_bits, name
        self._figures = record.figures(tensor)

    def __getitem__(self, key: str) -> Any:
        """Look up a figure; None if it does not exist, and `reasons` says why."""
        return self._figures[key]

    def __iter__(self) -> Iterator[str]:
        """Iterate over the keys."""
        return iter(self._figures)

    def __len__(self) -> int:
        """Count the figures."""
        return len(self._figures)

    def __repr__(self) -> str:
        """Format every figure, a line each."""
        run = {"mode": self._mode, "n_bits": self._n_bits, "tensors": {self._name: self._tensor}}
        return run_summary(run, Bar(), Texts("en"))

    def _repr_html_(self) -> str:
        from quantlab.report import page  # Matplotlib, which only a notebook needs

        name = f"{self._name}, {self._mode}"
        return page.measurement(name, self._n_bits, self._tensor, Texts("en"))


def measure(
    x: Any,
    mode: Any = "sym",
    n_bits: int | None = None,
    block: Any = "tensor",
    scale: str = "float32",
    range: Any = "absmax",
    metrics: Mapping[str, Metric] | None = None,
    select: str = "weights",
    model: Model | None = None,
    transform: Any = "none",
    inputs: Any = None,
    rounding: Any = "nearest",
) -> Any:
    """Measure what it costs to store an array, or each array of a mapping.

    Parameters
    ----------
    x
        Real numbers of any shape and dtype, a NumPy, PyTorch or JAX array; they are measured as
        float32. A mapping of names to arrays, such as a state_dict, gives a table.
    mode
        A name in ``conf/mode``, such as ``"sym"``, ``"asym"``, ``"log"``, ``"nf4"``, ``"mx/fp4"``,
        ``"ggml/q4_k"``; or an element grid or quantizer of your own, as docs/extending.md has it.
    n_bits
        Width of the codes; without it 8, or the width that the mode fixes.
    block
        ``"tensor"``, ``"channel"`` for a scale each index of the first axis, the size of groups, or
        an object of `quantlab.formats.blocks`.
    scale
        The type that scales are stored in: ``"float32"``, ``"float16"`` or ``"bfloat16"``.
    range
        ``"absmax"``, ``"mse"``, ``"percentile"`` or ``"entropy"``, or an object of
        `quantlab.formats.ranges`, or a `quantlab.sources.calibration.Calibrated`.
    metrics
        Further metrics by their names: functions of `quantlab.stats.metrics.Evidence`.
    select
        Of a mapping, ``"weights"`` are the arrays with two axes or more that are longer than 1, if
        there are any; ``"all"`` measures norms, biases and constants too.
    model
        Of a mapping, an object with ``answers(weights)``, as docs/answers.md has it, or
        `quantlab.models.onnx.OnnxModel`: it answers with all arrays that are measured replaced.
    transform
        ``"none"`` or ``"hadamard"``, or an object of `quantlab.formats.transform` or of
        `quantlab.sources.calibration`: what rows go through before they are quantized, and back
        afterwards.
    inputs
        What flows into the layer of which `x` is the weight, an array ``(tokens, in)``, or a
        mapping of the names in `x` to such arrays: ``out_sqnr_db`` is then the SQNR of its output.
    rounding
        ``"nearest"``, ``"gptq"``, which takes `inputs`, or an object of
        `quantlab.formats.rounding`.

    Returns
    -------
    Measurement or pandas.DataFrame
        The figures; of a mapping one row an array, its name first. With a `model`,
        ``table.attrs["answers"]`` is a table of its answers, one row an output.

    Raises
    ------
    ValueError
        If `x` is empty, not finite or no real numbers, or a choice is unknown or contradicts
        another.

    Examples
    --------
    >>> result = measure([0.0, 0.5, -3.5], n_bits=4)
    >>> result["scale"], result["max_err"], result["n_codes"]
    (0.5, 0.0, 3)
    """
    of_layers = None if inputs is None else _layer_inputs(inputs, x)
    form = form_of(mode, n_bits, block, scale, range, transform, rounding, of_layers)
    if model is not None and not isinstance(x, Mapping):
        raise ValueError("model answers with a mapping of names to arrays: give its weights as x")
    tensors = _name_arrays(x, select)
    results = {t.name: _measure(t, mode, form, metrics, of_layers) for t in tensors}
    if not isinstance(x, Mapping):
        return results[NAME]
    import pandas as pd

    table = pd.DataFrame([{"tensor": name, **result} for name, result in results.items()])
    if model is not None:
        table.attrs["answers"] = pd.DataFrame(_answers(model, form, tensors))
    return table


def _layer_inputs(inputs: Any, x: Any) -> ArrayInputs:
    """Name the inputs of the arrays in `x`, or of the one that it is.

    Raises ValueError where one is a mapping and the other is not, or no name is in both.
    """
    if isinstance(inputs, Mapping) != isinstance(x, Mapping):
        raise ValueError(
            "inputs must be a mapping of names to arrays where x is one, and an array where x is "
            "an array"
        )
    arrays = inputs if isinstance(inputs, Mapping) else {NAME: inputs}
    if isinstance(x, Mapping) and not arrays.keys() & x.keys():
        raise ValueError(
            f"inputs are of {', '.join(map(repr, arrays)) or 'nothing'}, which x has not: give "
            "them the names of the weights"
        )
    return ArrayInputs({name: Tensor(name, as_array(x, "inputs")) for name, x in arrays.items()})


def roundtrip(
    x: Any,
    mode: Any = "sym",
    n_bits: int | None = None,
    block: Any = "tensor",
    scale: str = "float32",
    range: Any = "absmax",
    transform: Any = "none",
    inputs: Any = None,
    rounding: Any = "nearest",
) -> FloatArray:
    """Reconstruct an array from its codes: the float32 values whose figures `measure` returns.

    Parameters, and what is raised, are those of `measure`.

    Examples
    --------
    >>> roundtrip([0.0, 0.6, -3.5], n_bits=4)
    array([ 0. ,  0.5, -3.5], dtype=float32)
    """
    tensor = Tensor(NAME, as_array(x))
    of_layers = None if inputs is None else _layer_inputs(inputs, tensor)
    form = form_of(mode, n_bits, block, scale, range, transform, rounding, of_layers)
    return reconstruct(tensor, _open(form, tensor, mode), usable_cores())


def _open(form: Format | Codec, tensor: Tensor, mode: Any) -> Format | Reconstruction:
    """Open the format of a tensor; raises ValueError, with the reason, where it does not fit."""
    try:
        return form.open(tensor)
    except UnfitError as reason:
        name = mode if isinstance(mode, str) else type(mode).__name__
        raise ValueError(f"{tensor.name} cannot be stored as {name}: {reason}") from None


def _measure(
    tensor: Tensor,
    mode: Any,
    form: Format | Codec,
    metrics: Mapping[str, Metric] | None,
    inputs: ArrayInputs | None,
) -> Measurement:
    mode = mode if isinstance(mode, str) else type(mode).__name__
    gram = inputs.gram(tensor) if inputs else None
    result = _measure_opened(tensor, _open(form, tensor, mode), metrics, gram)
    return Measurement(result, uniform.mode_name(mode), form.n_bits, tensor.name)


def _measure_opened(
    tensor: Tensor,
    opened: Format | Reconstruction,
    metrics: Mapping[str, Metric] | None = None,
    gram: Any = None,
) -> dict[str, Any]:
    """Return the `Result` of a tensor in a format that was opened for it."""
    threads = usable_cores()
    result = measure_tensor(tensor, opened, threads=threads, extra_metrics=metrics, gram=gram)
    stored = {"stored_dtype": opened.dtype} if isinstance(opened, Reconstruction) else {}
    return result | {"predicted": None} | stored


def measure_grid(
    x: Any,
    mode: Any = "sym",
    n_bits: Any = None,
    block: Any = "tensor",
    scale: Any = "float32",
    range: Any = "absmax",
    transform: Any = "none",
    select: str = "weights",
) -> Any:
    """Measure every tensor in every combination of choices: a sweep without files.

    Parameters
    ----------
    x
        An array, a mapping of names to arrays, or the path of a file of tensors: npy, npz,
        safetensors, GGUF or ONNX.
    mode, n_bits, block, scale, range, transform
        As `measure` takes them, each one value or a list. A combination that contradicts itself,
        such as ``"nf4"`` in 8 bits, is left out.
    select
        ``"weights"`` or ``"all"`` tensors of a file or mapping, see `measure`.

    Returns
    -------
    pandas.DataFrame
        One row a tensor and format that it can be stored in: ``tensor``, the choices, of which
        `scale` is called ``scale_dtype``, and the figures under their keys in results.csv.

    Raises
    ------
    ValueError
        As `measure` does, and if a mode goes with none of the other choices, or no tensor can be
        stored in any of the formats.

    Examples
    --------
    >>> table = measure_grid([0.0, 0.5, -3.5], mode=["sym", "asym"], n_bits=[3, 4])
    >>> table[["mode", "n_bits", "n_codes"]].values.tolist()
    [['sym', 3, 2], ['sym', 4, 3], ['asym', 3, 3], ['asym', 4, 3]]
    """
    import pandas as pd

    choices = {
        "mode": mode, "n_bits": n_bits, "block": block, "scale": scale, "range": range,
        "transform": transform,
    }  # fmt: skip
    formats = list(_compose_grid({key: _as_options(value) for key, value in choices.items()}))
    rows = []
    reason = "there is no tensor"
    for tensor in _list_tensors(x, select):
        for options, form in formats:
            try:
                opened = form.open(tensor)
            except UnfitError as unfit:
                reason = f"{tensor.name}: {unfit}"
                continue
            figures = record.figures(_measure_opened(tensor, opened))
            rows.append({"tensor": tensor.name} | figures | options | {"n_bits": form.n_bits})
    if not rows:
        raise ValueError(f"no tensor can be stored in any of the formats ({reason})")
    table = pd.DataFrame(rows)
    first = ["tensor", *formats[0][0]]
    return table[[*first, *(key for key in table if key not in first)]]


def _as_options(value: Any) -> list[Any]:
    return list(value) if isinstance(value, list | tuple) else [value]


def _compose_grid(
    choices: Mapping[str, Sequence[Any]],
) -> Iterator[tuple[dict[str, Any], Format | Codec]]:
    """Yield the combinations that make a format; raises ValueError where a mode is in none."""
    for mode in choices["mode"]:
        contradiction: ContradictionError | None = None
        is_possible = False
        for values in product(*({**choices, "mode": [mode]}).values()):
            options = dict(zip(choices, values, strict=True))
            try:
                form = form_of(**options)
            except ContradictionError as reason:
                contradiction = reason
                continue
            is_possible = True
            names = {"scale": "scale_dtype"}  # the scale itself is a figure
            yield {names.get(k, k): _option_name(value) for k, value in options.items()}, form
        if contradiction and not is_possible:
            raise contradiction


def _option_name(value: Any) -> Any:
    """Name an option, an object by its repr, or by its class where that would be an address."""
    if isinstance(value, str | Integral) or value is None:
        return value
    return repr(value) if "__repr__" in vars(type(value)) else type(value).__name__


def _list_tensors(x: Any, select: str) -> Iterable[Tensor]:
    """Open the tensors of a file, or name arrays."""
    if not isinstance(x, str | Path):
        return _name_arrays(x, select)
    source = reader_of(Path(x))(str(x), select=select)
    source.require_tensors()
    return source.tensors()


def _name_arrays(x: Any, select: str) -> list[Tensor]:
    """Name an array, or the selected ones of a mapping."""
    if not isinstance(x, Mapping):
        return [Tensor(NAME, as_array(x))]
    require_select(select)
    chosen = x if select == "all" else select_weights({name: np.shape(a) for name, a in x.items()})
    return [Tensor(name, as_array(array, name)) for name, array in x.items() if name in chosen]


def _answers(model: Model, form: Format | Codec, tensors: Iterable[Tensor]) -> list[dict[str, Any]]:
    """Compare the answers of a model with tensors replaced, a row each output."""
    weights = {
        tensor.name: reconstruct(tensor, form.open(tensor), usable_cores()) for tensor in tensors
    }
    return [
        {key: answer[key] for key in ("output", "kind", "rows", "samples")} | answer["figures"]
        for answer in Evaluation(model, TOP_K).compare(weights)
    ]


def as_array(x: Any, name: str = NAME) -> NDArray[Any]:
    """Convert real numbers to a NumPy array; raises ValueError, naming it, if they are none."""
    if isinstance(x, str | PathLike):
        raise ValueError(
            f"{name} must be an array or a mapping of names to arrays, got {str(x)!r}: "
            "quantlab.measure_grid takes a file"
        )
    if np.ma.isMaskedArray(x):
        raise ValueError(
            f"{name} is a masked array: measure {name}.compressed(), or {name}.data to ignore the "
            "mask"
        )
    if hasattr(x, "detach"):  # PyTorch, which has no bfloat16 in NumPy: float32 holds it exactly
        x = x.detach().cpu()
        x = x.float() if str(x.dtype) == "torch.bfloat16" else x
    array = np.asarray(x)
    real = np.can_cast(array.dtype, np.float32, "same_kind") or array.dtype.name == "bfloat16"
    if not real:
        raise ValueError(f"{name} must hold real numbers, got dtype {array.dtype}")
    return array


def form_of(
    mode: Any = "sym",
    n_bits: int | None = None,
    block: Any = "tensor",
    scale: str = "float32",
    range: Any = "absmax",
    transform: Any = "none",
    rounding: Any = "nearest",
    inputs: LayerInputs | None = None,
) -> Format | Codec:
    """Make the format that `measure` measures; raises ValueError if a choice is unknown."""
    return compose(
        load_mode(mode, n_bits),
        _block(block, scale),
        _range(range),
        _transform(transform),
        _rounding(rounding, inputs),
    )


def load_mode(mode: Any, n_bits: int | None = None) -> Any:
    """Make an element grid; without `n_bits` of the width that the mode fixes, or of 8 bits."""
    if not isinstance(mode, str):
        return mode
    width = (_load_option("mode", mode).get("n_bits") or 8) if n_bits is None else n_bits
    return _instantiate_option("mode", mode, n_bits=width)


def _block(block: Any, scale: str) -> Any:
    if isinstance(block, Integral) and not isinstance(block, bool):
        return _instantiate_option("block", "group", size=int(block), scale=scale)
    if hasattr(block, "layout"):
        return block
    return _instantiate_option("block", block, scale=scale)


def _range(range: Any) -> Any:
    is_own = isinstance(range, TensorRange) or hasattr(range, "choose")
    return range if is_own else _instantiate_option("range", range)


def _transform(transform: Any) -> Any:
    if not isinstance(transform, str):
        return transform
    return _instantiate_option("transform", transform) if transform != "none" else None


def _rounding(rounding: Any, inputs: LayerInputs | None) -> Any:
    if not isinstance(rounding, str):
        return rounding
    option = load_option("rounding", rounding)
    if option is None:
        names = ", ".join(option_names("rounding"))
        raise ValueError(f"rounding must be one of {names}, got {rounding!r}")
    own = own_settings("rounding", option | {"inputs": inputs})
    if "_target_" not in own:
        return None
    return instantiate_with(own, **({"inputs": inputs} if "inputs" in own else {}))


def _load_option(group: str, option: Any) -> dict[str, Any]:
    config = load_option(group, option) if isinstance(option, str) else None
    if config is None or needs_setting(group, option):
        names = [name for name in option_names(group) if not needs_setting(group, name)]
        sizes = ", or a size of groups" if group == "block" else ""
        raise ValueError(f"{group} must be one of {', '.join(names)}{sizes}, got {option!r}")
    return config


def _instantiate_option(group: str, option: str, **settings: Any) -> Any:
    from hydra.errors import InstantiationException  # which importing this module does without
    from hydra.utils import instantiate

    config = _load_option(group, option)
    own = {**config.get(group, config), **settings}
    try:
        return instantiate(own_settings(group, own))
    except InstantiationException as error:
        cause = error.__cause__ or error
        kind = ContradictionError if isinstance(cause, ContradictionError) else ValueError
        raise kind(*cause.args) from None
