import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from quantlab.formats import blocks
from quantlab.formats.blocks import Group, Head, PerChannel, PerTensor
from tests.formats import oracle

shapes = st.lists(st.integers(1, 9), max_size=4).map(tuple) | st.sampled_from(
    [(), (1,), (1, 1), (300,), (3, 100), (100, 3), (4, 1, 7), (2, 5, 32)]
)


@st.composite
def kinds(draw):
    """Draw a shape and a block that it has."""
    shape = draw(shapes)
    axis = draw(st.integers(-len(shape), len(shape) - 1)) if shape else 0
    size = draw(st.sampled_from([1, 2, 3, 7, 32, 1000]))
    width = shape[-1] if shape else 1
    heads = draw(st.sampled_from([n for n in range(1, width + 1) if width % n == 0]))
    block = draw(st.sampled_from([PerTensor(), PerChannel(axis=axis), Group(size), Head(heads)]))
    return shape, block


@st.composite
def stretches(draw):
    """Draw a shape, a block and a stretch of the tensor's elements."""
    shape, block = draw(kinds())
    start = draw(st.integers(0, math.prod(shape) - 1))
    return shape, block, start, draw(st.integers(start + 1, math.prod(shape)))


def members_of(shape, block):
    return oracle.blocks_of(shape, block)


def elements_of(layout, piece):
    """Return which elements are in a piece, by the number of their block."""
    rows = piece.view(np.arange(layout.size)[piece.start : piece.stop])
    found = {}
    for r, row in enumerate(rows):
        for b, elements in enumerate(row):
            number = piece.first + b + (0 if layout.shared else r * layout.per_row)
            found.setdefault(number, []).extend(elements.tolist())
    return found


@given(shapes, st.data())
def test_groups_along_an_axis_are_those_of_the_tensor_with_the_axis_at_the_end(shape, data):
    axis = data.draw(st.integers(-len(shape), len(shape) - 1)) if shape else -1
    moved = tuple(np.moveaxis(np.empty(shape), axis, -1).shape) if shape else shape
    assert Group(7, axis).layout(shape) == Group(7, -1).layout(moved)


def test_an_axis_is_refused_that_is_none_or_that_a_tensor_lacks():
    for axis in (1.5, "rows", True):
        with pytest.raises(ValueError, match=r"block.axis must be a whole number, input, or null"):
            Group(32, axis)
    with pytest.raises(blocks.UnfitError, match=r"block.axis=2 does not exist in its shape"):
        Group(32, 2).layout((3, 4))
    assert Group(32, 2).layout((30,)) == Group(32).layout((30,))


@given(kinds())
def test_as_many_blocks_as_their_definition_has(kind):
    shape, block = kind
    assert block.layout(shape).n_blocks == len(members_of(shape, block))


@given(stretches(), st.sampled_from([0, 2, 4096]))
def test_pieces_hold_a_stretch_and_end_with_it_or_with_its_blocks(stretch, small):
    shape, block, start, stop = stretch
    members, layout = members_of(shape, block), block.layout(shape)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(blocks, "MAX_WHOLE_BLOCK", small)
        pieces = [elements_of(layout, piece) for piece in layout.pieces(start, stop)]
        surveyed = layout.chosen_beforehand
    held = sorted(element for piece in pieces for each in piece.values() for element in each)
    if surveyed:
        assert held == list(range(start, stop))
    else:
        touched = [each for each in members if each[0] < stop and each[-1] >= start]
        assert held == sorted(element for each in touched for element in each)
    for piece in pieces:
        for number, elements in piece.items():
            assert set(elements) <= set(members[number])
            assert surveyed or elements == members[number]


@given(
    kinds(), st.sampled_from([1, 8, 2**16]), st.sampled_from([1, 8, 50]), st.sampled_from([1, 40])
)
def test_batches_hold_every_block_whole_and_once_in_order(kind, part, batch, span):
    shape, block = kind
    layout = block.layout(shape)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(blocks, "PART", part)
        patch.setattr(blocks, "BATCH", batch)
        patch.setattr(blocks, "SPAN", span)
        batches = list(layout.batches())
    found = []
    for each in batches:
        assert each.first == len(found)
        elements = {}
        for piece in each.pieces:
            assert (piece.first, piece.blocks) == (each.first, each.blocks)
            for number, some in elements_of(layout, piece).items():
                elements.setdefault(number, []).extend(some)
        assert list(elements) == list(range(each.first, each.first + each.blocks))
        assert {len(some) for some in elements.values()} == {each.count}
        assert each.blocks == 1 or each.blocks * each.count <= max(batch, part)
        found += [sorted(some) for some in elements.values()]
    assert found == members_of(shape, block)


@given(shapes.filter(len), st.data())
def test_an_axis_counts_from_either_end(shape, data):
    axis = data.draw(st.integers(0, len(shape) - 1))
    layout = PerChannel(axis=axis).layout(shape)
    assert PerChannel(axis=axis - len(shape)).layout(shape) == layout
    assert layout.n_blocks == (shape[axis] if len(shape) > 1 else 1)


def test_groups_do_not_cross_rows_and_the_last_may_be_short():
    layout = Group(4).layout((2, 3, 3))
    assert layout.n_blocks == 6
    assert members_of((2, 3, 3), Group(4)) == [
        [0, 1, 2, 3],
        [4, 5, 6, 7],
        [8],
        [9, 10, 11, 12],
        [13, 14, 15, 16],
        [17],
    ]
    assert Group(100).layout((2, 3)).n_blocks == 2
    assert Group(100).layout((7,)).n_blocks == Group(4).layout(()).n_blocks == 1


def test_the_last_group_of_a_tensor_of_one_dimension_may_be_short():
    assert Group(32).layout((33,)).n_blocks == 2


def test_heads_lie_along_an_axis_of_their_own_or_share_the_last():
    x = np.arange(2 * 3 * 5 * 6).reshape(2, 3, 5, 6)
    own = x[:, 1].ravel().tolist()
    assert members_of(x.shape, Head(3))[1] == own
    turned = np.moveaxis(x, 1, 2)  # as (batch, tokens, heads, dim)
    assert np.sort(np.ravel(turned)[members_of(turned.shape, Head(3))[1]]).tolist() == own
    joined = turned.reshape(2, 5, 18)
    assert np.sort(np.ravel(joined)[members_of(joined.shape, Head(3))[1]]).tolist() == own


def test_heads_that_do_not_divide_are_named():
    with pytest.raises(
        blocks.UnfitError, match=r"^block\.heads=4 does not divide the last axis of "
    ):
        Head(4).layout((2, 3, 6))
    with pytest.raises(
        ValueError, match=r"^block\.heads must be a whole number of 1 or more, got "
    ):
        Head("4")


@pytest.mark.parametrize("size", [0, -1, 1.5, "32", True, None])
def test_a_bad_size_is_named(size):
    message = rf"^block\.size must be a whole number of 1 or more, got {size!r}$"
    with pytest.raises(ValueError, match=message):
        Group(size)


@pytest.mark.parametrize("axis", [0.0, "0", True, None])
def test_an_axis_that_is_no_whole_number_is_named(axis):
    with pytest.raises(ValueError, match=rf"^block\.axis must be a whole number, got {axis!r}$"):
        PerChannel(axis=axis)


@pytest.mark.parametrize("axis", [5, 2, -3])
def test_an_axis_that_does_not_exist_is_named_with_those_that_do(axis):
    message = rf"block\.axis={axis} does not exist in its shape \[3, 4\]: choose one from -2 to 1$"
    with pytest.raises(ValueError, match=message):
        PerChannel(axis=axis).layout((3, 4))


@pytest.mark.parametrize("shape", [(), (9,)])
def test_a_tensor_of_fewer_than_two_dimensions_is_one_block_whatever_the_axis(shape):
    assert PerChannel(axis=5).layout(shape).n_blocks == 1
