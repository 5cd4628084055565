"""What rounding=gptq takes, in time and memory, beside GPTQModel's own code.

`python benchmarks/rounding.py [PYTHON]`: PYTHON is that of an environment with torch and gptqmodel.
"""

import subprocess
import sys
from importlib import import_module

import numpy as np
from meters import anonymous_mib, least_seconds, peak_mib

SIZE = 2048  # rows and columns of the weight, half as many as there are tokens
ROUNDS = 3


def draw() -> tuple[np.ndarray, np.ndarray]:
    """Draw a weight and inputs, some channels larger than others."""
    rng = np.random.default_rng(0)
    weight, inputs = (rng.standard_normal((n, SIZE), np.float32) for n in (SIZE, 2 * SIZE))
    return weight, inputs * np.exp(0.5 * rng.standard_normal(SIZE)).astype(np.float32)


def ours() -> None:
    """Print the time and the memory of quantlab's, the Gram matrix included."""
    from quantlab.formats.blocks import Group
    from quantlab.formats.format import Format
    from quantlab.formats.rounding import Gptq
    from quantlab.formats.uniform import GptqSymmetric
    from quantlab.sources.calibration import ArrayInputs
    from quantlab.sources.tensor import Tensor
    from quantlab.stats.measure import reconstruct

    weight, inputs = (Tensor("w", values) for values in draw())

    def quantize() -> None:
        rounding = Gptq(ArrayInputs({"w": inputs}))
        form = Format(GptqSymmetric(4), Group(128), rounding=rounding)
        reconstruct(weight, form.open(weight), threads=2)

    before = anonymous_mib()
    beyond = peak_mib(quantize) - before
    seconds = least_seconds(quantize, ROUNDS)
    print(f"quantlab  {seconds:8.1f} s, {beyond:.0f} MiB beyond weight and inputs", flush=True)


def theirs() -> None:
    """Print the time of GPTQModel's, the Hessian included."""
    torch = import_module("torch")
    config = import_module("gptqmodel.quantization").QuantizeConfig
    gptq = import_module("gptqmodel.quantization.gptq").GPTQ
    weight, inputs = (torch.from_numpy(values) for values in draw())
    torch.set_num_threads(2)

    def quantize() -> None:
        layer = torch.nn.Linear(SIZE, SIZE, bias=False)
        layer.weight.data = weight.clone()
        task = gptq(layer, config(bits=4, group_size=128, sym=True))
        task.quantizer.configure(perchannel=True)
        task.add_batch(inputs[None], None, 0)
        task.quantize()

    print(f"GPTQModel {least_seconds(quantize, ROUNDS):8.1f} s", flush=True)


if __name__ == "__main__":
    if sys.argv[1:] == ["theirs"]:
        theirs()
    else:
        ours()
        for python in sys.argv[1:]:
            subprocess.run([python, __file__, "theirs"], check=True)
