"""What a plan takes for 1,000 tensors in 40 formats: seconds, gap, and the size of its page.

Sizes and SQNR are drawn from a seed: 10^5 to 10^8 values a tensor, widths of 2 to 9 bits, 6.02 dB a
bit less up to 6 dB. Asked for: the choice in at most 5 s, the page in at most 1 MB. Beside the
choice stands its baseline, the relaxed problem, which is sorting.
"""

import random
import time

from quantlab.plans.choose import within_budget
from quantlab.plans.options import Part, Slot, option
from quantlab.plans.originals import Original
from quantlab.plans.page import page
from quantlab.plans.relaxed import front
from quantlab.plans.slots import Slots
from quantlab.report.texts import Texts

TENSORS, FORMATS = 1_000, 40


def main() -> None:
    """Print the table."""
    found = _slots(random.Random(1))
    n_values = sum(each.size for each in found.tensors)
    print(f"{TENSORS:,} tensors x {FORMATS} formats")
    print("bits per value   relaxed, s   exact, s        gap   MB of plan.html")
    for bits in (2.5, 4.0, 6.0, 8.0):
        start = time.perf_counter()
        plan = within_budget(found, int(bits * n_values))
        exact = time.perf_counter() - start
        start = time.perf_counter()
        front([slot.options for slot in found.slots])
        relaxed = time.perf_counter() - start
        html = page(plan, "quantlab plan", "0" * 64, Texts("en"))
        print(f"{bits:14.1f}{relaxed:13.2f}{exact:11.2f}{plan.gap:11.1e}{len(html) / 1e6:18.2f}")


def _slots(rng: random.Random) -> Slots:
    widths = [rng.uniform(2, 9) for _ in range(FORMATS)]
    tensors, slots = [], []
    for n in range(TENSORS):
        size = int(10 ** rng.uniform(5, 8))
        name = f"model.layers.{n // 10}.mlp.{n % 10}.weight"
        tensor = Original("file/safetensors", name, "bfloat16", (size,), 16 * size)
        options = [option(Part(16 * size, 0.0, "bfloat16", None))]
        for number, width in enumerate(widths):
            sqnr_db = 6.02 * width - rng.uniform(0, 6)
            row = {"sqnr_db": sqnr_db, "max_err": 1.0}
            name, noise = f"format {number}", 10 ** (-sqnr_db / 10)
            options.append(option(Part(int(width * size), noise, name, row)))
        tensors.append(tensor)
        slots.append(Slot((tensor,), tuple(options)))
    return Slots(tensors, slots, [], [])


if __name__ == "__main__":
    main()
