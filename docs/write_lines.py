"""Write lines of text as the inputs of a text recogniser: ``write_lines.py OUT.npz``.

The lines of the README in four sizes of letters, 48 pixels high and 320 wide, from -1 to 1 in three
equal channels, as PaddleOCR's recognisers take them.
"""

import sys
from io import BytesIO
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

HEIGHT, WIDTH, LINES, CHARS = 48, 320, 24, 28
SIZES = (15, 17, 19, 21)  # of letters, in points


def draw(text: str, size: float) -> np.ndarray:
    """Return an image of a line, ``(48, 320)`` from 0, black, to 255."""
    figure = Figure(figsize=(WIDTH / 100, HEIGHT / 100), dpi=100)
    figure.text(0.02, 0.5, text, fontsize=size, va="center", parse_math=False)
    buffer = BytesIO()
    figure.savefig(buffer, format="rgba", dpi=100)
    return np.frombuffer(buffer.getvalue(), np.uint8).reshape(HEIGHT, WIDTH, 4)[..., 0]


if __name__ == "__main__":
    words = " ".join(Path("README.md").read_text().replace("`", " ").split())
    texts = [words[start : start + CHARS] for start in range(0, LINES * CHARS, CHARS)]
    images = [draw(text, SIZES[n % len(SIZES)]) for n, text in enumerate(texts)]
    x = np.stack(images).astype(np.float32) / 127.5 - 1
    np.savez_compressed(sys.argv[1], x=np.repeat(x[:, None], 3, axis=1))
