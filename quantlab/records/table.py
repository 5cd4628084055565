"""The table of a sweep, for pandas."""

from pathlib import Path

import pandas as pd

TEXT = (
    "dist", "mode", "tensor", "dtype", "reasons", "block", "scale_dtype", "range", "stored_dtype",
    "stored_file", "remark", "missed",
)  # fmt: skip


def load(directory: str | Path) -> pd.DataFrame:
    """Return the table of a sweep, one row a tensor and run, from its results.csv.

    Text is ``string``, whole numbers are ``Int64``, yes and no ``boolean``, everything else, and a
    column without any value, is ``float64``. A figure that does not exist is missing, and `reasons`
    says why. What the sweep varied beyond the first four columns stands after them.

    ========================================  ======================================================
    columns                                   unit
    ========================================  ======================================================
    dist, mode, tensor, dtype, block,         names
    scale_dtype, range
    stored_dtype, stored_file                 the type that a library or a file stores, the file
    n_bits                                    bits; missing of files, which have their own
    mae, max_err, rmse, bias, err_p50,        that of the tensor's values
    err_p95, scale, scale_min, scale_max,
    x_min, x_max
    rel_err, zeroed, clipped                  shares from 0 up; 1 is all, or as large as the value
    landmark_rel_err                          share of the landmark, predicted_landmark
    sqnr_db, out_sqnr_db                      dB; that of a layer's output, where an importance
                                              matrix is given
    code_entropy, kl, top_bits_sufficient     bits
    rmse_over_scale                           steps, of `scale` each
    bound_ratio                               halves of a step
    cos_sim, one_minus_cos                    none
    zero_point, qmin, qmax                    codes
    n_codes, n_elements, top_k,               counts
    top_merged, top_swapped
    underflowed                               count of values that float32 turned to 0 before they
                                              were quantized
    bits_per_value, bits_above_bound          bits, all that is stored over the number of values;
                                              what of it lies above Shannon's bound
    block_size                                values that share a scale
    n_scales, scales_saturated,               counts of scales
    scales_vanished
    clip_share, zero_share, round_share       shares of the squared error
    top_worst, top_expected, top_best         shares of the top k
    scale_replaced, zero_point_clipped,       yes or no
    top_same_set, top_same_order,
    top_order_kept
    predicted_scale, predicted_max_err,       as the figure itself; only of tensors that were
    predicted_mae, predicted_rmse,            predicted
    predicted_sqnr_db, predicted_landmark,
    predicted_landmark_rel_err
    reasons                                   why figures are missing
    remark                                    what is wrong with what is stored
    missed                                    criteria of the bar that a row does not meet; missing
                                              where it meets all
    ========================================  ======================================================

    Raises ValueError when the directory holds no table.
    """
    path = Path(directory) / "results.csv"
    if not path.is_file():
        raise ValueError(f"{path} does not exist: quantlab aggregate {directory} writes it")
    table = pd.read_csv(
        path,
        dtype=dict.fromkeys(TEXT, "string"),
        keep_default_na=False,  # a tensor may be called NA
        na_values=[""],
        dtype_backend="numpy_nullable",
        lineterminator="\n",  # a name may hold the other
    )
    floats = {
        column: "float64"
        for column, dtype in table.dtypes.items()
        if dtype == "Float64" or (column not in TEXT and table[column].isna().all())
    }
    return table.astype(floats).fillna({"tensor": ""})
