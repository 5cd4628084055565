"""llama.cpp: a line ``PATTERN=TYPE`` a tensor, for llama-quantize's ``--tensor-type-file``.

Patterns are regular expressions, which llama-quantize reads up to a space or an equals sign, turns
to lower case and searches in the names as they are: each is a whole name, in which a dot stands for
any byte that would not survive. A tensor that it leaves by itself (norms, biases; see its function
``tensor_allows_quantization``) has no line; one that it would quantize and the plan does not has
the type that it is stored in.
"""

import itertools
import re
from collections.abc import Iterable

from quantlab.formats.ggml import NUMBERS
from quantlab.plans.options import Assignment, Original
from quantlab.plans.runtimes.runtime import FileSize, Runtime
from quantlab.sources.gguf import field_bytes, read_header_size
from quantlab.sources.names import gguf_name
from quantlab.text import label

AS_STORED = {"float32": "f32", "float16": "f16", "bfloat16": "bf16"}
GGUF_FILE = "file/gguf"  # the source and the mode whose names and types are llama.cpp's
ADDED_FIELDS = ("general.file_type", "general.quantization_version")  # of uint32
GGUF_SUFFIX = ".gguf"
MIN_AXES = 2  # of a tensor that is quantized
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
    hint = "'mode=glob(ggml/*)'"
    scope = "a GGUF file with dist=file/gguf, whose matrices are named *.weight"
    # Its last argument is required and decides nothing.
    call = "llama-quantize --tensor-type-file {quoted} F16.gguf PLANNED.gguf q8_0"

    def refuse_tensor(self, tensor: Original) -> str | None:
        """Return the reason why llama-quantize does not quantize a tensor, None if it does."""
        if not tensor.is_float:
            return "dtype"
        if len(_significant_axes(tensor)) < MIN_AXES:
            return "axes"
        name = _tensor_name(tensor)
        if name is None:
            return "name"
        return "rule" if not name.endswith("weight") or any(p in name for p in NEVER) else None

    def config(self, assignment: Assignment) -> str | None:
        """Return the type of ggml, in lower case."""
        row, spec = assignment.row, assignment.spec
        if row is None or spec is None:
            return None
        of_ggml = spec.mode.startswith("ggml/") or spec.mode == GGUF_FILE
        kind = str(row.get("stored_dtype")).lower()
        return kind if of_ggml and (kind in NUMBERS or kind in AS_STORED.values()) else None

    def recipe(self, assignments: Iterable[Assignment]) -> bytes:
        """Return the lines; raises ValueError if a measured tensor has no name in llama.cpp."""
        return "".join(f"{self._line(part)}\n" for part in assignments if self._has(part)).encode()

    def _has(self, assignment: Assignment) -> bool:
        """Return True if a tensor has a line; raises ValueError if it has no name."""
        tensor = assignment.tensor
        refusal = self.refuse_tensor(tensor)
        if refusal == "name" and tensor.reason is None:
            # The file has it under another name, and llama-quantize would choose its type.
            raise ValueError(
                f"llama.cpp has no name for '{label(tensor.name)}': sweep the GGUF file, with "
                "dist=file/gguf, or leave the tensor out with dist.exclude"
            )
        return refusal is None and (assignment.spec is not None or tensor.dtype in AS_STORED)

    def _line(self, assignment: Assignment) -> str:
        tensor = assignment.tensor
        kind = self.config(assignment) or AS_STORED[tensor.dtype]
        return f"^{_pattern(str(_tensor_name(tensor)))}$={kind}"

    def file_size(self, assignments: Iterable[Assignment], path: str) -> FileSize | None:
        """Return the size of what llama-quantize writes of a GGUF file, without ``--imatrix``.

        It joins shards, copies the metadata, and adds two where they are missing.
        """
        if not path.endswith(GGUF_SUFFIX):
            return None
        header = read_header_size(path)
        planned = {part.tensor.name: part.bits // 8 for part in assignments}
        fields = header.fields | {key: field_bytes(key) for key in ADDED_FIELDS}
        tensors = (planned.get(name, n_bytes) for name, n_bytes in header.tensors.items())
        return FileSize(header.file_size(sum(fields.values()), tensors))


def _pattern(name: str) -> str:
    """Escape a name; a byte that llama-quantize would not read as it is becomes a dot."""
    safe = re.compile(r"[a-z0-9_-]")
    return "".join(
        letter if safe.match(letter) else r"\." if letter == "." else "." * len(letter.encode())
        for letter in name
    )


def _tensor_name(tensor: Original) -> str | None:
    return tensor.name if tensor.dist == GGUF_FILE else gguf_name(tensor.name)


def _significant_axes(tensor: Original) -> tuple[int, ...]:
    """Return the axes without those of length 1 in front, as GGUF counts them."""
    return tuple(itertools.dropwhile(lambda length: length == 1, tensor.shape))
