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

_ENTRIES = ("first_entries", "entry_rows", "entry_owners")
"""Arguments that are None where no list of entries to leave out is given."""
# Types of pointer arguments that are neither float32 nor of the inputs' dtype.
_POINTERS = {
    "skip": "*i32",
    **dict.fromkeys(_ENTRIES, "*i32"),
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
    """Scores of a thread in one pass of the loop over the stream, told by its exponentials, if any; 0 for the
    kernels that work by rows."""
    issued_per_pass: int
    """Instructions of that pass, inner loops as often as they run."""
    special_per_pass: int
    copies_per_pass: int
    """Copies to shared memory, 16 bytes or less each."""
    has_stream: bool
    """Whether it goes over a stream of rows, the next of which should be copied while it works on those there."""

    @property
    def copies_ahead(self) -> int:
        """Instructions that copy to shared memory without waiting."""
        return self.instructions["LDGSTS"]

    @property
    def spills(self) -> int:
        """Local-memory loads and stores."""
        return self.instructions["LDL"] + self.instructions["STL"]

    def blocks_per_multiprocessor(self, architecture: int) -> int:
        registers = -(-self.registers // 8) * 8 * 32 * self.num_warps
        by_memory = _SHARED_MEMORY_OF_SM[architecture] // (self.shared_memory + 1024)
        return min(65_536 // registers, 64 // self.num_warps, by_memory)


def _read_loop(assembly: str, inner_trips: int, tile: int) -> tuple[Counter[str], int, int, int, int]:
    """(all instructions; in the loop over the stream scores, all issued, special functions and copies) of a thread.
    `tile`: its scores in a tile, where no exponential tells them; 0: it has none."""
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
    names = [opcode.split(".")[0] for opcode in opcodes]
    length = lambda loop: loop[1] - loop[0]  # noqa: E731
    exponentials = {loop: opcodes[slice(*loop)].count("MUFU.EX2") for loop in loops}
    if any(exponentials.values()):
        start, stop = min((loop for loop, count in exponentials.items() if count), key=length)
        tile = exponentials[start, stop]
    elif tile:
        start, stop = max((loop for loop in loops if _multiplies(names[slice(*loop)])), key=length)
    else:
        return Counter(names), 0, 0, 0, 0
    body = Counter(names[start:stop])
    special = body["MUFU"]
    for begin, end in (loop for loop in loops if start <= loop[0] and loop[1] < stop):
        # Over the columns of a product, several times a pass, or a wait; or over what most tiles have none of: entries
        # left out, rounds of top-k.
        inner = names[begin:end]
        trips = inner_trips if _multiplies(inner) or "SYNCS" in inner else 0
        for name, count in Counter(inner).items():
            body[name] += count * (trips - 1)
    return Counter(names), tile, body.total(), special, body["LDGSTS"]


def _multiplies(names: Sequence[str]) -> bool:
    return any("MMA" in name for name in names)


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
    has_stream = "BS" in constants
    tile = launch.block_owner * launch.block_stream // (32 * launch.num_warps) if has_stream else 0
    loop = _read_loop(assembly, trips, tile)
    return Compiled(int(registers[1]), kernel.metadata.shared, launch.num_warps, *loop, has_stream)


def fits(compiled: Compiled, architecture: int) -> bool:
    """No spill, tensor instructions of the architecture, tiles copied ahead, and room for the block."""
    return (
        compiled.spills == 0
        and compiled.instructions[TENSOR_INSTRUCTION[architecture]] > 0
        and (compiled.copies_ahead > 0 or not compiled.has_stream)
        and compiled.shared_memory <= SHARED_MEMORY[architecture]
    )


def has_seen(variant: Variant) -> bool:
    """Whether the kernel takes a list of entries to leave out."""
    return _ENTRIES[0] in variant.kernel.arg_names


def _specialise(
    variant: Variant, launch: Launch, width: int, dtype: str, seen: bool
) -> tuple[dict[str, str], dict[str, object]]:
    arguments = variant.kernel.arg_names
    content = width // 2 if "K" in arguments else width
    widths = {"K": width, **dict.fromkeys(("D", "M", "M_V", "M_T"), content)}
    widths["V"] = content if variant.of_content else width
    constants: dict[str, object] = {**variant.flags, **variant.block_arguments(launch, widths)}
    signature = {}
    for name in arguments:
        if name in variant.absent or (name in _ENTRIES and not seen):
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
