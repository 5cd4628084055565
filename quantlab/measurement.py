"""One array measured, for notebooks and scripts."""

from collections.abc import Iterator, Mapping
from numbers import Integral
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from quantlab.conf import CONF
from quantlab.formats import uniform
from quantlab.formats.blocks import Block, Group, PerChannel, PerTensor, UnfitError
from quantlab.formats.format import Codec, Format, Reconstruction, compose
from quantlab.formats.ranges import AbsMax, Mse, Percentile, Range
from quantlab.records import record
from quantlab.report.bar import Bar
from quantlab.report.run_summary import run_summary
from quantlab.report.texts import Texts
from quantlab.sources.tensor import Tensor
from quantlab.stats.parallel import usable_cores
from quantlab.stats.stream import measure as measure_tensor

NAME = "x"
BLOCKS: dict[str, type[PerTensor | PerChannel]] = {"tensor": PerTensor, "channel": PerChannel}
RANGES: dict[str, type[Range]] = {"absmax": AbsMax, "mse": Mse, "percentile": Percentile}


class Measurement(Mapping[str, Any]):
    """What the round trip of one array costs: its figures under their keys, as in results.csv.

    ``dict(result)`` holds them all; a notebook shows them as a page does.
    """

    def __init__(
        self, tensor: dict[str, Any], mode: str, n_bits: int | None, name: str = NAME
    ) -> None:
        """Take what a record says of a tensor."""
        self._tensor, self._mode, self._n_bits, self._name = tensor, mode, n_bits, name
        self._figures = record.figures(tensor)

    def __getitem__(self, key: str) -> Any:
        """Return a figure; None where it does not exist, and `reasons` says why."""
        return self._figures[key]

    def __iter__(self) -> Iterator[str]:
        """Go through the keys."""
        return iter(self._figures)

    def __len__(self) -> int:
        """Return how many figures there are."""
        return len(self._figures)

    def __repr__(self) -> str:
        """Return every figure, a line each."""
        run = {"mode": self._mode, "n_bits": self._n_bits, "tensors": {self._name: self._tensor}}
        return run_summary(run, Bar(), Texts("en"))

    def _repr_html_(self) -> str:
        from quantlab.report import page  # Matplotlib, which only a notebook needs

        name = f"{self._name}, {self._mode}"
        return page.measurement(name, self._n_bits, self._tensor, Texts("en"))


def measure(
    x: Any,
    mode: str = "sym",
    n_bits: int | None = None,
    block: str | int = "tensor",
    scale: str = "float32",
    range: str | Range = "absmax",
) -> Any:
    """Measure what it costs to store an array, or each array of a mapping.

    Parameters
    ----------
    x
        Real numbers of any shape and dtype, a NumPy, PyTorch or JAX array; they are measured as
        float32. A mapping of names to arrays, such as a state_dict, gives a table.
    mode
        A name in ``conf/mode``, such as ``"sym"``, ``"asym"``, ``"log"``, ``"nf4"``, ``"mx/fp4"``,
        ``"ggml/q4_k"``.
    n_bits
        Width of the codes; without it 8, or the width that the mode fixes.
    block
        ``"tensor"``, ``"channel"`` for a scale each index of the first axis, or the size of groups.
    scale
        The type that scales are stored in: ``"float32"``, ``"float16"`` or ``"bfloat16"``.
    range
        ``"absmax"``, ``"mse"`` or ``"percentile"``, or an object of `quantlab.formats.ranges`.

    Returns
    -------
    Measurement or pandas.DataFrame
        The figures; of a mapping one row an array, its name first.

    Raises
    ------
    ValueError
        When `x` is empty, not finite or no real numbers, or a choice is unknown or contradicts
        another.

    Examples
    --------
    >>> result = measure([0.0, 0.5, -3.5], n_bits=4)
    >>> result["scale"], result["max_err"], result["n_codes"]
    (0.5, 0.0, 3)
    """
    form = form_of(mode, n_bits, block, scale, range)
    if isinstance(x, Mapping):
        import pandas as pd

        rows = [{"tensor": name, **_measure(each, mode, form, name)} for name, each in x.items()]
        return pd.DataFrame(rows)
    return _measure(x, mode, form, NAME)


def _measure(x: Any, mode: str, form: Format | Codec, name: str) -> Measurement:
    array = Tensor(name, as_array(x, name))
    try:
        opened = form.open(array)
    except UnfitError as reason:
        raise ValueError(f"{name} cannot be stored as {mode}: {reason}") from None
    tensor = measure_tensor(array, opened, threads=usable_cores())
    stored = {"stored_dtype": opened.dtype} if isinstance(opened, Reconstruction) else {}
    named = tensor | {"predicted": None} | stored
    return Measurement(named, uniform.mode_name(mode), form.n_bits, name)


def as_array(x: Any, name: str = NAME) -> NDArray[Any]:
    """Return real numbers as a NumPy array; raises ValueError, naming it, where they are none."""
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
    mode: str = "sym",
    n_bits: int | None = None,
    block: str | int = "tensor",
    scale: str = "float32",
    range: str | Range = "absmax",
) -> Format | Codec:
    """Return the format that `measure` measures; raises ValueError where there is none such."""
    return compose(mode_of(mode, n_bits), _block(block, scale), _range(range))


def mode_of(name: str, n_bits: int | None) -> Any:
    """Return a mode by its yaml, with its own width unless another is asked for."""
    from hydra.errors import InstantiationException  # which importing this module does without
    from hydra.utils import instantiate
    from omegaconf import OmegaConf

    folder = CONF / "mode"
    paths = {each.relative_to(folder).with_suffix("").as_posix(): each for each in _modes(folder)}
    if name not in paths:
        raise ValueError(f"mode must be one of {', '.join(sorted(paths))}, got {name!r}")
    config: Any = OmegaConf.load(paths[name])
    width = config.get("n_bits", 8) if n_bits is None else n_bits
    try:
        return instantiate(config.get("mode", config), n_bits=width)
    except InstantiationException as error:
        raise ValueError(*(error.__cause__ or error).args) from None


def _modes(folder: Path) -> Iterator[Path]:
    """Yield the modes but for those that take a file."""
    return (path for path in folder.rglob("*.yaml") if path.parent.name != "file")


def _block(block: str | int, scale: str) -> Block:
    if isinstance(block, Integral) and not isinstance(block, bool):
        return Group(size=int(block), scale=scale)
    if block not in BLOCKS:
        raise ValueError(f"block must be {' or '.join(BLOCKS)}, or a size of groups, got {block!r}")
    return BLOCKS[block](scale=scale)


def _range(name: str | Range) -> Range:
    if not isinstance(name, str) and hasattr(name, "choose"):
        return name
    if not isinstance(name, str) or name not in RANGES:
        raise ValueError(f"range must be one of {', '.join(RANGES)}, got {name!r}")
    return RANGES[name]()
