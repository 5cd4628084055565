"""Rounding with feedback: values go to the grid in turns, and those to come make up for the error.

With the Gram matrix H of the inputs of a layer, an error E of its weights costs ``tr(E H E^T)`` at
its outputs. GPTQ (Frantar et al., 2022) rounds the columns of a weight one after the other. With
H = R R^T, R upper triangular, column j goes to the number of the grid that is nearest to ::

    w_j + sum_{i<j} (w_i - q_i) R_ij / R_jj

which is w_j moved by what makes up best for the columns before. `nearest` has no class. To add a
way: a class with the methods of `format.Rounding` here, and a yaml in ``conf/rounding/``.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from quantlab.formats.blocks import Block, Group, Layout, PerChannel, UnfitError, find_axis
from quantlab.formats.element import ContradictionError, FloatArray, select_params
from quantlab.formats.format import NamedTensor, Rounded
from quantlab.formats.gram import (
    LayerInputs,
    factor_upper,
    invert_upper,
    multiply,
    row_energies,
    transform_gram,
)
from quantlab.formats.quantizer import BlockQuantizer, MapFn
from quantlab.formats.scales import Array64

COLUMNS = 128  # that are rounded before the others are moved: GPTQModel's blocksize
STRETCH_VALUES = 2**19  # of rows that are rounded together
MIN_ROWS = 64
DAMP_STEP = 0.01  # by which damping grows where it has to: GPTQModel's damp_auto_increment
INDEX_BITS = 32  # of the group of a column, where it must be stored
ORDERS = ("act_group_aware", "desc_act", "natural")


@dataclass(frozen=True)
class Gptq:
    """GPTQ with the settings and defaults of GPTQModel 7.3.4.

    `damp_percent` of the mean diagonal of H is added to it; where H is not positive definite then,
    more. `order` is that of the columns: by descending diagonal of H within groups and group by
    group (``act_group_aware``), over all columns (``desc_act``), or as they stand (``natural``).
    Scales of groups are chosen when their first column is rounded, of weights that are moved by
    then, or beforehand with `static_groups`. With ``desc_act`` and scales that are not chosen
    beforehand a group is made of columns that lie apart, and the group of each column is stored.
    Columns whose inputs are all 0 become 0.

    GPTQ can lose more than rounding to nearest: scales of moved weights may be larger, values may
    saturate, and damping is no part of H. Each row whose outputs would lose more is rounded to
    nearest; where columns have a group that is stored, the whole tensor.
    """

    inputs: LayerInputs
    damp_percent: float = 0.05
    order: str = ORDERS[0]
    static_groups: bool = False
    width: int = 0  # of a row of the tensor that it is opened for
    matrix: Array64 | None = field(default=None, compare=False)  # of `transform`
    name: ClassVar[str] = "gptq"

    def __post_init__(self) -> None:
        """Raise ValueError where a setting is out of range or there are no inputs."""
        if self.order not in ORDERS:
            raise ValueError(
                f"rounding.order must be one of {', '.join(ORDERS)}, got {self.order!r}"
            )
        is_number = isinstance(self.damp_percent, int | float)
        if not is_number or not 0 < self.damp_percent < 1:
            raise ValueError(
                f"rounding.damp_percent must be a number between 0 and 1, got {self.damp_percent!r}"
            )
        if not isinstance(self.static_groups, bool):
            raise ValueError(
                f"rounding.static_groups must be true or false, got {self.static_groups!r}"
            )
        if self.inputs is None:
            raise ContradictionError(
                "rounding=gptq takes the inputs of layers: add rounding.inputs=FILE"
            )

    def open(self, tensor: NamedTensor, block: Block) -> "Gptq":
        """Return the rounding of a tensor; raises UnfitError unless scales are of rows or parts.

        Raises ValueError where the inputs are not those of a weight of this shape.
        """
        width = self.inputs.width(tensor)
        if width is None:
            raise self._no_inputs_error()
        if not _lies_along_inputs(block, tensor, width):
            raise UnfitError(
                "its scales are not those of rows of inputs, which rounding=gptq takes: "
                "block=tensor, block=channel of outputs, or block=group block.axis=input"
            )
        return replace(self, width=width)

    def _no_inputs_error(self) -> UnfitError:
        return UnfitError(f"{self.inputs.name} has no inputs of it, which rounding=gptq takes")

    def transform(self, matrix: Array64) -> "Gptq":
        """Return the rounding of rows whose stretches are multiplied by a matrix afterwards."""
        return replace(self, matrix=matrix)

    def identity(self, tensor: NamedTensor) -> str | None:
        """Return the sha256 of the inputs of a tensor."""
        return self.inputs.identity(tensor)

    def index_bits(self, layout: Layout) -> int:
        """Return the bits that say which group each column is of, if they must be stored."""
        scatters = self.order == "desc_act" and not self.static_groups
        return INDEX_BITS * self.width if scatters and layout.width < self.width else 0

    def round_rows(self, tensor: NamedTensor, quantizer: BlockQuantizer, map_fn: MapFn) -> Rounded:
        """Round the rows of a weight that `quantizer` reads, its inputs along the last axis."""
        gram = self.inputs.gram(tensor)
        if gram is None:
            raise self._no_inputs_error()
        if self.matrix is not None:
            gram = transform_gram(gram, self.matrix)
        rows = _Rows(quantizer, gram, self)
        stretches = map_fn(rows.round_stretch, [*range(0, rows.count, rows.step)])
        x_hat, energies = (np.concatenate(parts) for parts in zip(*stretches, strict=True))
        if rows.stores_index and np.greater(*energies.sum(axis=0)):
            x_hat = rows.round_to_nearest(0, rows.count)
        return Rounded(x_hat.reshape(-1), rows.remark)


class _Rows:
    """The rows of one weight, whose columns are rounded in turns.

    Rows are independent, and are rounded a stretch of `step` rows at a time.
    """

    def __init__(self, quantizer: BlockQuantizer, gram: Array64, settings: Gptq) -> None:
        self.quantizer, self.gram = quantizer, gram
        self.width = len(gram)
        self.count = quantizer.layout.size // self.width
        self.step = max(MIN_ROWS, STRETCH_VALUES // self.width // MIN_ROWS * MIN_ROWS)
        self.group = min(quantizer.layout.width, self.width)
        self.stores_index = settings.index_bits(quantizer.layout) > 0
        self._moves_scales = self.group < self.width and not settings.static_groups
        whole = not self._moves_scales or COLUMNS % self.group == 0
        self._block = COLUMNS if whole else self.group
        self._dead = np.diagonal(gram) == 0
        self._order = _order_columns(self._diagonal, self.group, settings.order)
        self._factor, self.remark = self._factor_damped(settings.damp_percent)
        blocks = (self._factor[span, span] for span in self._spans())
        self._inverses = [invert_upper(block) for block in blocks]

    @property
    def _diagonal(self) -> Array64:
        """The diagonal of H, of columns without inputs the mean of the others."""
        diagonal = np.diagonal(self.gram).copy()
        diagonal[self._dead] = diagonal.sum() / max(1, self.width - self._dead.sum()) or 1.0
        return diagonal

    def _factor_damped(self, damp: float) -> tuple[Array64, str | None]:
        """Factor H in the order of columns, damped until that can be done, and say how far."""
        diagonal = self._diagonal
        first = damp
        while True:
            damped = self.gram[np.ix_(self._order, self._order)]
            np.fill_diagonal(damped, (diagonal + damp * diagonal.mean())[self._order])
            try:
                factor = factor_upper(damped)
            except np.linalg.LinAlgError:
                damp = round(damp + DAMP_STEP, 9)
                if damp >= 1:
                    raise ValueError(
                        "the Gram matrix of its inputs is not positive definite"
                    ) from None
                continue
            is_more = damp > first
            return (
                factor,
                f"H is damped by {damp:g}, as {first:g} is too little" if is_more else None,
            )

    def _spans(self) -> Iterator[slice]:
        """Yield the columns that are rounded before the others are moved."""
        starts = range(0, self.width, self._block)
        return (slice(start, min(start + self._block, self.width)) for start in starts)

    def round_to_nearest(self, first: int, last: int) -> FloatArray:
        """Round rows without feedback, ``(rows, width)``."""
        quantized, _ = self.quantizer.round_trip(first * self.width, last * self.width)
        return quantized.x_hat.reshape(-1, self.width)

    def round_stretch(self, first: int) -> tuple[FloatArray, Array64]:
        """Round a stretch of rows; return also the energies of their errors at the outputs.

        These are, a row, of what GPTQ gives, and of the nearest values. The better of both is
        returned, unless groups are those of the whole tensor.
        """
        last = min(first + self.step, self.count)
        x = self.quantizer.read(first * self.width, last * self.width).reshape(-1, self.width)
        nearest, rounded = self.round_to_nearest(first, last), self._round(x, first)
        energies = np.stack(
            [
                row_energies((x_hat - x).astype(np.float64), self.gram)
                for x_hat in (rounded, nearest)
            ],
            axis=1,
        )
        if not self.stores_index:
            is_worse = energies[:, 0] > energies[:, 1]
            rounded[is_worse] = nearest[is_worse]
        return rounded, energies

    def _round(self, x: FloatArray, first: int) -> FloatArray:
        """Round rows from number `first` on with feedback."""
        weights = np.where(self._dead, 0.0, x.astype(np.float64))[:, self._order]
        errors, rounded = np.zeros_like(weights), np.empty_like(x)
        fixed = None if self._moves_scales else self._fixed_params(first, len(x))
        for span, inverse in zip(self._spans(), self._inverses, strict=True):
            before = multiply(errors[:, : span.start], self._factor[: span.start, span])
            moved = weights[:, span] + multiply(before, inverse)
            numbers = self._order[span] // self.group
            params = self._choose_params(moved) if fixed is None else select_params(fixed, numbers)
            values = self._round_columns(moved, params, inverse)
            rounded[:, self._order[span]] = values.T
            errors[:, span] = weights[:, span] - values.T
        return rounded

    def _fixed_params(self, first: int, rows: int) -> Any:
        """Return parameters that are chosen beforehand, ``(groups, rows)``."""
        start = first * self.width
        blocks, _ = self.quantizer.block_params(start, start + rows * self.width)
        places = np.arange(0, self.width, self.group)[:, None]
        elements = start + np.arange(rows) * self.width + places
        return select_params(blocks.params, self.quantizer.layout.number(elements) - blocks.first)

    def _choose_params(self, moved: Array64) -> Any:
        """Choose the parameters of groups of weights that were moved, ``(columns, rows)``."""
        starts = range(0, moved.shape[1], self.group)
        groups = (moved[:, start : start + self.group].astype(np.float32) for start in starts)
        chosen = [self.quantizer.choose(np.ascontiguousarray(group)).params for group in groups]
        fields = (np.stack(field) for field in zip(*chosen, strict=True))
        numbers = np.arange(moved.shape[1]) // self.group
        return select_params(type(chosen[0])(*fields), numbers)

    def _round_columns(self, moved: Array64, params: Any, inverse: Array64) -> FloatArray:
        """Round columns one after the other, with parameters ``(columns, rows)``."""
        element = self.quantizer.form.element
        columns = np.ascontiguousarray(moved.T)
        rounded = np.empty(columns.shape, np.float32)
        for n, column in enumerate(columns):
            rounded[n] = element.reconstruct(column.astype(np.float32), select_params(params, n))
            error = (column - rounded[n]) / inverse[n, n]
            columns[n + 1 :] -= inverse[n, n + 1 :, None] * error
        return rounded


def _order_columns(diagonal: Array64, group: int, order: str) -> NDArray[np.intp]:
    """Return the columns in the order in which they are rounded, by a diagonal of H."""
    if order == "natural":
        return np.arange(diagonal.size)
    if order == "desc_act":
        return np.argsort(-diagonal, kind="stable")
    whole = diagonal.size // group * group  # a short group stays at the end
    groups = diagonal[:whole].reshape(-1, group)
    within = np.argsort(-groups, axis=1, kind="stable") + np.arange(0, whole, group)[:, None]
    by_largest = np.argsort(-groups.max(axis=1), kind="stable")
    return np.concatenate([within[by_largest].reshape(-1), np.arange(whole, diagonal.size)])


def _lies_along_inputs(block: Block, tensor: NamedTensor, width: int) -> bool:
    """Whether blocks are made of whole rows of inputs, or of parts of one row."""
    shape, axis = tensor.shape, tensor.input_axis
    is_last = axis in (None, len(shape) - 1)
    if isinstance(block, Group) and block.moved_axis(shape) != (None if is_last else axis):
        return False
    if not is_last and isinstance(block, PerChannel):
        return find_axis(block.axis, shape) != axis
    layout = block.layout(shape)
    if layout.n_blocks == 1:
        return True
    of_rows = layout.width % width == 0 or width % layout.width == 0 or layout.row == width
    return of_rows and not layout.shared
