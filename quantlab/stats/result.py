"""The outcome of one tensor in one format, as a record has it: plain JSON values.

The JSON Schema of a record is generated from these types; `Annotated` adds its keywords, in pairs.
"""

from typing import Annotated, Any, NotRequired, TypedDict

Count = Annotated[int, ("minimum", 0)]
Sha256 = Annotated[str, ("pattern", "^[0-9a-f]{64}$")]
Figures = dict[str, float | bool | None]  # null where `reasons` says why


def required(keys: str) -> tuple[str, tuple[str, ...]]:
    """Demand keys of a mapping, given with spaces between."""
    return "required", tuple(keys.split())


def numbers(keys: str) -> tuple[str, dict[str, Any]]:
    """Demand that the values of keys, given with spaces between, are numbers and not null."""
    return "properties", {key: {"type": "number"} for key in keys.split()}


class Prediction(TypedDict, total=False):
    """Predicted figures, under the keys of the measured ones; a `landmark` value; and `words`."""

    scale: float | None
    max_err: float | None
    mae: float | None
    rmse: float | None
    sqnr_db: float | None
    landmark: float | None
    landmark_rel_err: float | None
    words: str | None


class Top(TypedDict):
    """The k largest values and the next, at most 21, and what they came back as.

    `indices` count elements in C order.
    """

    indices: list[Count]
    x: list[float]
    x_hat: list[float]


class CodeBins(TypedDict):
    """How often codes occur, in bins of `width` codes; `first` is the least code of the first."""

    first: int
    width: Annotated[int, ("minimum", 1)]
    counts: Annotated[list[Count], ("minItems", 1)]


class ErrorBins(TypedDict):
    """Magnitudes of errors in equal bins up to `upper`: half a step, or the largest error.

    `overflow` errors are larger; every `stride`-th error of the tensor is counted.
    """

    upper: float
    counts: Annotated[list[Count], ("minItems", 1)]
    overflow: Count
    stride: Annotated[int, ("minimum", 1)]


class Result(TypedDict):
    """The figures of one tensor in one format.

    `range` is the least and the greatest value, `underflowed` counts the values that are not 0 but
    are as float32, `error_budget` has shares of the squared error. `predicted` is null where
    nothing is expected of the tensor. Of a tensor in a codec there are its type, its file, the
    sha256 of all that is stored, and a `remark` on what is wrong with it; of inputs of its layer
    the sha256 of those that weigh its error, and of those that it is rounded by. `place` is which
    tensor of a divided source it is. Of groups along the inputs of layers there is the
    `input_axis`, null where it is not known and groups are those of rows.
    """

    shape: list[Count]
    dtype: str
    n_elements: Count
    range: Annotated[list[float], ("minItems", 2), ("maxItems", 2)]
    params: Annotated[Figures, required("scale zero_point qmin qmax")]
    measured: Annotated[
        Figures,
        required(
            "mae max_err rel_err cos_sim n_codes rmse sqnr_db zeroed bound_ratio rmse_over_scale"
        ),
        numbers("mae max_err rmse"),
    ]
    reasons: dict[str, str]
    rank: Annotated[
        Figures,
        required(
            "top_k top_same_set top_same_order top_order_kept top_merged top_swapped top_worst "
            "top_expected top_best top_bits_sufficient"
        ),
        numbers("top_k top_merged top_swapped top_worst top_expected top_best"),
    ]
    top: Top
    codes: CodeBins | None
    underflowed: Count | None
    error_histogram: ErrorBins
    storage: Annotated[
        Figures,
        required(
            "bits_per_value bits_above_bound n_scales scale_min scale_max scales_saturated "
            "scales_vanished"
        ),
        numbers("bits_per_value"),
    ]
    error_budget: Annotated[Figures, required("clip_share zero_share round_share")]
    sha256: Sha256
    predicted: Prediction | None
    stored_dtype: NotRequired[str]
    stored_file: NotRequired[str]
    stored_sha256: NotRequired[Sha256]
    importance_sha256: NotRequired[Sha256]
    inputs_sha256: NotRequired[Sha256]
    calibration_sha256: NotRequired[Sha256]
    transform_sha256: NotRequired[Sha256]
    rounding_sha256: NotRequired[Sha256]
    input_axis: NotRequired[Count | None]
    remark: NotRequired[str | None]
    place: NotRequired[Count]
