"""What a compiled kernel is made of, read from its cubin without a GPU: registers, memory, spills, instructions."""

import re
import subprocess
import tempfile
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from uatmc_kernels._dispatch import is_interpreted
from uatmc_kernels.triton._launches import Launch
from uatmc_kernels.triton._variants import VARIANTS, Variant

if is_interpreted():
    raise SystemExit("error: TRITON_INTERPRET=1: interpreted kernels are not compiled; unset it")

ARCHITECTURES = {80: "A100", 90: "H100", 100: "B200"}
WIDTHS = (32, 64, 128, 256)
_TORCH_DTYPES = {"bf16": torch.bfloat16, "fp32": torch.float32}
DTYPES = tuple(_TORCH_DTYPES)
TENSOR_INSTRUCTION = {80: "HMMA", 90: "HGMMA", 100: "UTCHMMA"}
SHARED_MEMORY = {80: 101_376, 90: 232_448, 100: 232_448}
"""Bytes a thread block may use: sm_80's launches are those of 8.6 and 8.9 as well, which have less than an A100. Every
architecture has 64 Ki registers and room for 64 warps in a multiprocessor."""
_SHARED_MEMORY_OF_SM = {80: 167_936, 90: 233_472, 100: 233_472}
_TOOLS = Path(triton.__file__).parent / "backends/nvidia/bin"
_LABEL = re.compile(r"^(\.L\w+):")
_INSTRUCTION = re.compile(r"^\s+/\*[0-9a-f]{4,}\*/\s+(?:@!?U?P\w+\s+)?([A-Z][\w.]*)")
_BRANCH = re.compile(r"\bBRA.*?(\.L\w+)")

# Types of pointer arguments that are neither float32 nor of the inputs' dtype.
_POINTERS = {
    "skip": "*i32",
    "keys": "*i64",
    "entry_owners": "*i32",
    "best_out": "*i64",
    "counts_out": "*i32",
    "epsilon": "fp32",
}
_FLOAT32 = ("positive", "weights", "tangent_positive", "thresholds", "bonus", "mean_change", "item_offset")


@dataclass(frozen=True)
class Compiled:
    registers: int
    shared_memory: int
    num_warps: int
    instructions: Counter[str]
    """In the whole program."""
    scores_per_pass: int
    """Scores of a thread in one pass of the loop over the stream, told by its exponentials; 0 without any."""
    issued_per_pass: int
    """Instructions of that pass, inner loops as often as they run."""
    special_per_pass: int

    @property
    def spills(self) -> int:
        """Local-memory loads and stores."""
        return self.instructions["LDL"] + self.instructions["STL"]

    def blocks_per_multiprocessor(self, architecture: int) -> int:
        registers = -(-self.registers // 8) * 8 * 32 * self.num_warps
        by_memory = _SHARED_MEMORY_OF_SM[architecture] // (self.shared_memory + 1024)
        return min(65_536 // registers, 64 // self.num_warps, by_memory)


def _read_loop(assembly: str, inner_trips: int) -> tuple[Counter[str], int, int, int]:
    """(all instructions; exponentials, issued and special-function instructions in the loop over the stream)."""
    opcodes: list[str] = []
    labels: dict[str, int] = {}
    loops: list[tuple[int, int]] = []
    for line in assembly.splitlines():
        if label := _LABEL.match(line):
            labels[label[1]] = len(opcodes)
        elif instruction := _INSTRUCTION.match(line):
            target = _BRANCH.search(line)
            if target is not None and target[1] in labels:
                loops.append((labels[target[1]], len(opcodes) + 1))
            opcodes.append(instruction[1])
    # Behind the exit are waits that are tried again, and come back into the middle of a loop.
    program_end = max(place for place, opcode in enumerate(opcodes) if opcode == "EXIT")
    loops = [loop for loop in loops if loop[1] <= program_end]
    with_exponentials = [loop for loop in loops if "MUFU.EX2" in opcodes[slice(*loop)]]
    instructions = Counter(opcode.split(".")[0] for opcode in opcodes)
    if not with_exponentials:
        return instructions, 0, 0, 0
    start, stop = min(with_exponentials, key=lambda loop: loop[1] - loop[0])
    # Loops inside go over the columns of a product: they run several times a pass, and hold no exponential.
    inner = [loop for loop in loops if start <= loop[0] and loop[1] < stop]
    issued = stop - start + sum((end - begin) * (inner_trips - 1) for begin, end in inner)
    body = Counter(opcode.split(".")[0] for opcode in opcodes[start:stop])
    return instructions, opcodes[start:stop].count("MUFU.EX2"), issued, body["MUFU"]


def compile_variant(
    variant: Variant, launch: Launch, width: int, dtype: str, architecture: int, seen: bool
) -> Compiled:
    """Compiles what the launcher would compile on that GPU for contiguous rows of this width.

    `width` is K, of which half is content, for the score passes; D = M for the kernels that work by rows.
    """
    signature, constants = _specialise(variant, launch, width, dtype, seen)
    names = list(signature)
    aligned = {(i,): [["tt.divisibility", 16]] for i, name in enumerate(names) if signature[name].startswith("*")}
    source = ASTSource(fn=variant.kernel, signature=signature, constexprs=constants, attrs=aligned)
    kernel = triton.compile(source, target=GPUTarget("cuda", architecture, 32), options=launch.options)
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(kernel.asm["cubin"])
        file.flush()
        usage = _tool("cuobjdump", "--dump-resource-usage", file.name)
        assembly = _tool("nvdisasm", "-c", file.name)
    registers = re.search(r"REG:(\d+)", usage)
    assert registers is not None, usage
    trips = -(-width // constants["KC"]) if "KC" in constants else 1  # type: ignore[operator]
    loop = _read_loop(assembly, trips)
    return Compiled(int(registers[1]), kernel.metadata.shared, launch.num_warps, *loop)


def fits(compiled: Compiled, architecture: int) -> bool:
    """No spill, tensor instructions of the architecture, and room for the block."""
    return (
        compiled.spills == 0
        and compiled.instructions[TENSOR_INSTRUCTION[architecture]] > 0
        and compiled.shared_memory <= SHARED_MEMORY[architecture]
    )


def has_seen(variant: Variant) -> bool:
    """Whether the kernel takes a list of entries to leave out."""
    return "keys" in variant.kernel.arg_names


def _specialise(
    variant: Variant, launch: Launch, width: int, dtype: str, seen: bool
) -> tuple[dict[str, str], dict[str, object]]:
    arguments = variant.kernel.arg_names
    content = width // 2 if "K" in arguments else width
    widths = {"K": width, "D": content, "M": content, "M_V": content, "M_T": content, "V": width}
    constants: dict[str, object] = {**variant.flags, **variant.block_arguments(launch, widths)}
    signature = {}
    for name in arguments:
        if name in variant.absent or (name in ("keys", "entry_owners") and not seen):
            constants[name] = None
        elif name.endswith("_STRIDE"):
            constants[name] = width if "K" in arguments else content
        elif name in widths:
            constants[name] = widths[name]
        elif name == "PRECISION":
            constants[name] = variant.precision(_TORCH_DTYPES[dtype])
        if name in constants:
            signature[name] = "constexpr"
        elif name in _POINTERS:
            signature[name] = _POINTERS[name]
        elif name.startswith("num_") or name in ("per_split", "k", "tiles_per_program"):
            signature[name] = "i32"
        elif name in _FLOAT32 or (name.endswith("_out") and name not in ("delta_out", "content_out")):
            signature[name] = "*fp32"
        else:
            signature[name] = f"*{dtype}"
    return signature, constants


def _tool(name: str, *arguments: str) -> str:
    command: Sequence[str] = (str(_TOOLS / name), *arguments)
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


__all__ = ["ARCHITECTURES", "DTYPES", "VARIANTS", "WIDTHS", "Compiled", "compile_variant", "fits", "has_seen"]
