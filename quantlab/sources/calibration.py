"""Static scales: the range of a tensor is that of another tensor of its name, in a file.

Scales of activations are chosen on one set of inputs, and judged on another.
"""

from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import ClassVar

from quantlab.formats.blocks import Block, Shape, UnfitError
from quantlab.formats.element import Bounds, Element, RoundScale
from quantlab.formats.format import NamedTensor, TensorRange
from quantlab.formats.ranges import AbsMax, BlockValues, Entropy, Mse, Percentile, Range
from quantlab.sources.file import FileEntry, existing_path
from quantlab.sources.readers import reader_of
from quantlab.sources.tensor import Tensor
from quantlab.text import label

RULES: dict[str, Range] = {rule.name: rule for rule in (AbsMax(), Percentile(), Mse(), Entropy())}


@dataclass(frozen=True)
class CalibratedRange:
    """The range that a rule chooses for the blocks of a calibration `tensor`."""

    rule: Range
    tensor: Tensor
    name: ClassVar[str] = "calibrated"

    def choose(
        self, bounds: Bounds, values: BlockValues, element: Element, store: RoundScale
    ) -> Bounds:
        """Choose the range of blocks of the calibration tensor."""
        return self.rule.choose(bounds, values, element, store)


@dataclass(frozen=True)
class Calibrated(TensorRange):
    """The range of the tensor of the same name in the file `path`, by a rule.

    Values beyond it saturate. Raises ValueError where the file cannot be read, or the rule is none
    of `RULES`; `p` is that of the rule percentile.
    """

    path: str
    rule: str = "absmax"
    p: float = 99.9
    name: ClassVar[str] = "calibrated"

    def __post_init__(self) -> None:
        """Read the list of tensors, so that a bad file is refused before anything runs."""
        _ = self._rule, self._entries

    @cached_property
    def _rule(self) -> Range:
        if self.rule not in RULES:
            raise ValueError(f"range.rule must be one of {', '.join(RULES)}, got {self.rule!r}")
        return Percentile(self.p) if self.rule == Percentile.name else RULES[self.rule]

    @cached_property
    def _entries(self) -> dict[str, FileEntry]:
        path = existing_path(self.path)
        return {entry.name: entry for entry in reader_of(Path(path))(path).entries}

    def open(self, tensor: NamedTensor, block: Block) -> CalibratedRange:
        """Return the range of a tensor.

        Raises UnfitError where the file has no floating-point tensor of its name, ValueError where
        that is of another model: of other axes, of rows of another length, or of other blocks.
        """
        entry, file_name = self._entries.get(tensor.name), Path(self.path).name
        if entry is None:
            raise UnfitError(f"{file_name} has no tensor of this name to calibrate it")
        if entry.skip_reason:
            raise UnfitError(f"{file_name} has no range of it: {entry.skip_reason}")
        _require_same_blocks(tensor, entry.shape, block, self.path)
        opened = entry.open()
        # Whatever is wrong with its values is said of this file.
        return CalibratedRange(self._rule, replace(opened, name=f"{tensor.name} in {self.path}"))


def _require_same_blocks(tensor: NamedTensor, shape: Shape, block: Block, path: str) -> None:
    """Raise ValueError unless a calibration tensor of a shape has the blocks of a tensor."""
    sentence = (
        f"tensor '{label(tensor.name)}' has the shape {list(tensor.shape)}, and {list(shape)} in "
        f"{path}"
    )
    if len(shape) != len(tensor.shape) or shape[-1:] != tensor.shape[-1:]:
        raise ValueError(f"{sentence}: calibrate with the same model")
    n_scales = block.layout(shape).n_blocks
    if n_scales != block.layout(tensor.shape).n_blocks:
        raise ValueError(
            f"{sentence}, which has {n_scales} scales of block={block.name}: static scales are "
            "along an axis that counts neither samples nor tokens"
        )
