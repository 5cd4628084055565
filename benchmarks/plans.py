"""What a plan takes for 1,000 tensors in 40 formats: seconds, gap, and the size of its page.

Sizes and SQNR are drawn from a seed: 10^5 to 10^8 values a tensor, widths of 2 to 9 bits, 6.02 dB a
bit less up to 6 dB. Asked for: the choice in at most 5 s, the page in at most 1 MB. Beside the
choice stands its baseline, the relaxed problem, which is sorting.
"""

import random
import time

from quantlab.formats.format import FormatSpec
from quantlab.plans.mixture import plan_within_budget, relaxed_front
from quantlab.plans.options import Assignment, Option, Original
from quantlab.plans.page import render_page
from quantlab.plans.problem import Problem
from quantlab.report.choices import FormatResult
from quantlab.report.texts import Texts

TENSORS, FORMATS = 1_000, 40


def main() -> None:
    """Print the table."""
    problem = _draw_problem(random.Random(1))
    n_values = problem.n_values
    print(f"{TENSORS:,} tensors x {FORMATS} formats")
    print("bits per value   relaxed, s   exact, s        gap   MB of plan.html")
    for bits in (2.5, 4.0, 6.0, 8.0):
        start = time.perf_counter()
        plan = plan_within_budget(problem, int(bits * n_values))
        exact = time.perf_counter() - start
        start = time.perf_counter()
        relaxed_front(problem.slots)
        relaxed = time.perf_counter() - start
        html = render_page(plan, "quantlab plan", "0" * 64, Texts("en"))
        print(f"{bits:14.1f}{relaxed:13.2f}{exact:11.2f}{plan.gap:11.1e}{len(html) / 1e6:18.2f}")


def _draw_problem(rng: random.Random) -> Problem:
    widths = [rng.uniform(2, 9) for _ in range(FORMATS)]
    names = [f"format {number}" for number in range(FORMATS)]
    specs = [FormatSpec(name, None, None, None, None, None, name=name) for name in names]
    tensors, slots = [], []
    for n in range(TENSORS):
        size = int(10 ** rng.uniform(5, 8))
        name = f"model.layers.{n // 10}.mlp.{n % 10}.weight"
        tensor = Original("file/safetensors", name, "bfloat16", (size,), 16 * size)
        options = [Option.of([Assignment(tensor, 16 * size)])]
        for spec, width in zip(specs, widths, strict=True):
            sqnr_db = 6.02 * width - rng.uniform(0, 6)
            row = {"sqnr_db": sqnr_db, "max_err": 1.0}
            noise = 10 ** (-sqnr_db / 10)
            assignment = Assignment(tensor, int(width * size), noise, FormatResult(spec, row))
            options.append(Option.of([assignment], spec))
        tensors.append(tensor)
        slots.append(options)
    return Problem(tensors, slots)


if __name__ == "__main__":
    main()
