"""Predict the KL of a model's answers for plans of several sizes, and measure it.

``predict.py MODEL.onnx INPUTS.npz DIR`` sweeps symmetric formats of 3 to 10 bits in groups
of 32 with each tensor alone, plans by KL and by noise, measures each plan and prints a table.
"""

import subprocess
import sys
from pathlib import Path

import quantlab

SIZES = (4.9, 5.45, 6.45, 8.5)  # bits per value
FORMATS = "mode=sym block=group block.axis=input block.scale=float16 n_bits=3,4,5,6,7,8,10"


def main(path: str, inputs: str, directory: str) -> None:
    """Print bits per value, the predicted and the measured KL, and that of the plan by noise."""
    each = Path(directory, "each")
    source = [f"dist.path={path}", "dist=file/onnx", "model=onnx", f"model.inputs={inputs}"]
    sweep(*source, *FORMATS.split(), "model.each=true", f"hydra.sweep.dir={each}")
    print("bits per value  predicted KL  measured  plan by noise  (bits)")
    for size in SIZES:
        predicted, measured = measure(source, each, size, "kl")
        _, by_noise = measure(source, each, size, "sqnr_db")
        print(f"{size:14g} {predicted:13.3g} {measured:9.3g} {by_noise:14.3g}")


def measure(source: list[str], each: Path, size: float, by: str) -> tuple[float, float]:
    """Plan for a size; return what the answers are predicted to lose, and what they lose."""
    run = each.parent / f"{by}-{size:g}"
    run.mkdir(parents=True, exist_ok=True)
    subprocess.run(
        ["quantlab", "plan", str(each), "--bits", str(size), "--by", by],
        check=True,
        stdout=subprocess.DEVNULL,
    )
    plan = (each / "plan.json").rename(run.with_suffix(".json"))
    sweep(*source, "mode=plan", f"mode.path={plan}", f"hydra.sweep.dir={run}")
    answers = quantlab.answers(run)
    return float(answers["predicted_kl"].max()), float(answers["kl"].max())


def sweep(*overrides: str) -> None:
    """Run a sweep in silence."""
    subprocess.run(["quantlab", "run", "-m", *overrides], check=True, stdout=subprocess.DEVNULL)


if __name__ == "__main__":
    main(*sys.argv[1:])
