"""Write the files of a clone as the inputs of magika's classifier: ``write_inputs.py OUT.npz``.

As the package reads a file: its first and its last 1024 bytes without the blanks around, and 256
where it has fewer.
"""

import subprocess
import sys
from pathlib import Path

import numpy as np

SIZE, PADDING, BLOCK, MIN_BYTES = 1024, 256, 4096, 8
STEP = 4  # of the files of a clone, which is enough of them


def read_ends(path: Path) -> np.ndarray | None:
    """Return the first and last bytes of a file, int32; None where it is too short."""
    content = path.read_bytes()
    first, last = content[:BLOCK].lstrip()[:SIZE], content[-BLOCK:].rstrip()[-SIZE:]
    if min(len(first), len(last)) < MIN_BYTES:
        return None
    ends = np.full(2 * SIZE, PADDING, np.int32)
    ends[: len(first)] = list(first)
    ends[2 * SIZE - len(last) :] = list(last)
    return ends


if __name__ == "__main__":
    listed = subprocess.run(["git", "ls-files"], capture_output=True, text=True, check=True)
    rows = [read_ends(Path(name)) for name in listed.stdout.splitlines()[::STEP]]
    np.savez_compressed(sys.argv[1], bytes=np.stack([row for row in rows if row is not None]))
