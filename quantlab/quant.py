"""The quantizers of lab 03, block A, under the address that notebooks have: ``quantlab.quant``."""

from quantlab.formats.uniform import (
    Asymmetric,
    Params,
    Symmetric,
    choose_scale_asymmetric,
    choose_scale_symmetric,
    code_range,
    dequantize,
    dequantize_asym,
    dequantize_int8_to_fp32,
    quantize,
    quantize_asym,
    quantize_fp32_to_int8,
    value_range,
)

__all__ = [
    "Asymmetric",
    "Params",
    "Symmetric",
    "choose_scale_asymmetric",
    "choose_scale_symmetric",
    "code_range",
    "dequantize",
    "dequantize_asym",
    "dequantize_int8_to_fp32",
    "quantize",
    "quantize_asym",
    "quantize_fp32_to_int8",
    "value_range",
]
