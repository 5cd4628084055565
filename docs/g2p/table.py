"""Print what formats cost and what they keep, the least KL first: ``table.py SWEEP``."""

import re
import sys
from collections.abc import Iterator

import quantlab

HEADS = ("format", "bits per value", "SQNR, dB", "of outputs, dB", "KL, bits", "same phoneme")


def format_rows(directory: str) -> Iterator[tuple[str, ...]]:
    """Yield a row a format; decibels are those of the median weight."""
    figures = quantlab.load(directory).groupby("format")[["sqnr_db", "out_sqnr_db"]].median()
    answers = quantlab.answers(directory).set_index("format").sort_values("kl")
    for name, answer in answers.iterrows():
        decibels = [f"{value:.2f}" for value in figures.loc[str(name)]]
        kept = f"{answer.kl:.3g}", f"{answer.top1_same:.1%}"
        short = re.sub(r"\S+\.inputs=\S+ ", "", str(name))
        yield short, f"{answer.bits_per_value:.2f}", *decibels, *kept


if __name__ == "__main__":
    for cells in (HEADS, ["---"] * len(HEADS), *format_rows(sys.argv[1])):
        sys.stdout.write(f"| {' | '.join(cells)} |\n")
