"""llama.cpp: a line ``PATTERN=TYPE`` a tensor, for llama-quantize's ``--tensor-type-file``.

Patterns are regular expressions, which llama-quantize reads up to a space or an equals sign, turns
to lower case and searches in the names as they are: each is a whole name, in which a dot stands for
any byte that would not survive. What it leaves as it is by itself (norms, biases; see its function
``tensor_allows_quantization``) has no line; what it would quantize and the plan does not has the
type that it is stored in.
"""

import re
import shlex
from collections.abc import Iterable

from quantlab.formats.ggml import NUMBERS
from quantlab.plans.originals import Original
from quantlab.plans.runtimes.runtime import Runtime, Taken
from quantlab.records.record import Row
from quantlab.sources.names import gguf_name
from quantlab.text import label

AS_STORED = {"float32": "f32", "float16": "f16", "bfloat16": "bf16"}
BY_FILE = "file/gguf"  # the source and the mode whose names and types are llama.cpp's
NEVER = (
    "_norm.weight", "ffn_gate_inp.weight", "ffn_gate_tid2eid.weight", "altup", "laurel",
    "per_layer_model_proj", "ssm_conv1d", "shortconv.conv.weight", "indexer.k_proj.weight",
    "indexer.q_proj.weight", "time_mix_first.weight", "time_mix_w0.weight", "time_mix_w1.weight",
    "time_mix_w2.weight", "time_mix_v0.weight", "time_mix_v1.weight", "time_mix_v2.weight",
    "time_mix_a0.weight", "time_mix_a1.weight", "time_mix_a2.weight", "time_mix_g1.weight",
    "time_mix_g2.weight", "time_mix_decay_w1.weight", "time_mix_decay_w2.weight",
    "time_mix_lerp_fused.weight", "attn_rel_b.weight", ".position_embd", "position_embd.weight",
    "token_types.weight", "sam.pos_embd", "sam.neck.", "sam.net_", ".rel_pos", ".patch_embd",
    ".patch_merger", "a.rvq.codebook", "mm.a.code_embd",
)  # fmt: skip


class LlamaCpp(Runtime):
    """llama-quantize; its types are those of ``mode=ggml/...`` and of GGUF files."""

    name = "llama.cpp"
    file = "plan.llama.cpp.txt"
    hint = "mode=glob(ggml/*)"

    def takes(self, tensor: Original) -> bool:
        """Return whether llama-quantize quantizes a tensor, its ``tensor_allows_quantization``."""
        name = _name(tensor)
        dims = "".join("n" if each > 1 else "1" for each in tensor.shape).lstrip("1")
        if len(dims) < 2 or name is None or not name.endswith("weight"):
            return False
        return not any(part in name for part in NEVER)

    def settings(self, row: Row) -> str | None:
        """Return the type of ggml, in lower case."""
        of_ggml = row["mode"].startswith("ggml/") or row["mode"] == BY_FILE
        kind = str(row.get("stored_dtype")).lower()
        return kind if of_ggml and (kind in NUMBERS or kind in AS_STORED.values()) else None

    def recipe(self, taken: Iterable[Taken]) -> bytes:
        """Return the lines; raises ValueError where a tensor has no name in llama.cpp."""
        return "".join(f"{self._line(each)}\n" for each in taken if self._is_listed(each)).encode()

    def _is_listed(self, each: Taken) -> bool:
        if len(each.tensor.shape) > 1 and _name(each.tensor) is None:
            raise ValueError(
                f"llama.cpp has no name for '{label(each.tensor.name)}': sweep the GGUF file, with "
                "dist=file/gguf"
            )
        return self.takes(each.tensor) and (each.row is not None or each.tensor.dtype in AS_STORED)

    def _line(self, each: Taken) -> str:
        kind = self.settings(each.row) if each.row else AS_STORED[each.tensor.dtype]
        return f"^{_pattern(str(_name(each.tensor)))}$={kind}"

    def usage(self, path: str) -> str:
        """Return the command; of its last argument nothing is left, but it must be quantized."""
        file = shlex.quote(path)
        return f"llama-quantize --tensor-type-file {file} F16.gguf PLANNED.gguf q8_0"


def _pattern(name: str) -> str:
    safe = re.compile(r"[a-z0-9_-]")
    return "".join(
        each if safe.match(each) else r"\." if each == "." else "." * len(each.encode())
        for each in name
    )


def _name(tensor: Original) -> str | None:
    return tensor.name if tensor.dist == BY_FILE else gguf_name(tensor.name)
