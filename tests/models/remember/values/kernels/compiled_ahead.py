"""Run by test_programs.py: compile the programs for a GPU that is not there; read ptxas' report."""

import re
import subprocess
import sys
import tempfile
from pathlib import Path

import triton
from triton.backends.compiler import GPUTarget
from triton.backends.nvidia.compiler import get_ptxas
from triton.compiler import ASTSource

from triptych.models.remember.values.kernels import programs
from triptych.models.remember.values.kernels.launches import LONGEST_PIECE, tiling

INTEGERS = {"num_reads": "i32", "num_rows": "i32", "num_uses": "i32"}
FLOATS = {"weights_BK", "weights_M", "dots_BK", "dots_CM", "partial_QD"}
#: With more, fewer than 16 warps of 32 threads fit on a multiprocessor (65,536 registers).
MOST_REGISTERS = 128


def compiled(name, capability, dtype, width):
    """Compile a program of a table's dtype and width, as `launches` starts it."""
    program, cut = getattr(programs, name), tiling(width)
    constants = {"WIDTH": width, "BLOCK": cut.block, "TILE": cut.tile}
    constants |= {"READS": 128, "LENGTH": LONGEST_PIECE, "HAS_ROWS": False, "HAS_DOTS": True}
    constants = {key: value for key, value in constants.items() if key in program.arg_names}
    signature, aligned = {}, {}
    for place, argument in enumerate(program.arg_names):
        if argument in constants:
            signature[argument] = "constexpr"
        elif argument in INTEGERS:
            signature[argument] = INTEGERS[argument]
        else:
            pointer = "*fp32" if argument in FLOATS else dtype
            is_id = argument.startswith(("ids", "rows", "starts", "piece", "row_of", "order"))
            is_id = is_id or argument.startswith(("partial_starts", "bags"))
            signature[argument] = "*i64" if is_id else pointer
            aligned[(place,)] = [["tt.divisibility", 16]]
    source = ASTSource(program, signature, constexprs=constants, attrs=aligned)
    options = {"num_warps": cut.warps, "enable_fp_fusion": True}
    return triton.compile(source, target=GPUTarget("cuda", capability, 32), options=options)


def report(ptx, capability):
    """Return registers and spilled bytes of each thread, by ptxas."""
    arch = re.search(r"^\.target (sm_\w+)", ptx, re.MULTILINE).group(1)
    assert arch.startswith(f"sm_{capability}")
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "program.ptx"
        file.write_text(ptx)
        ptxas = get_ptxas(capability).path  # the one that `triton.compile` takes
        words = [ptxas, "-v", f"-arch={arch}", str(file), "-o", str(file.with_suffix(".cubin"))]
        done = subprocess.run(words, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    registers = int(re.search(r"Used (\d+) registers", done.stderr).group(1))
    spills = [int(n) for n in re.findall(r"(\d+) bytes spill", done.stderr)]
    assert len(spills) == 2, done.stderr  # stores and loads
    return registers, sum(spills)


capability = int(sys.argv[1])
for name in ("gather_program", "dots_program", "segment_program", "combine_program"):
    for dtype, width in (("*bf16", 1024), ("*fp32", 1024), ("*bf16", 576)):
        ptx = compiled(name, capability, dtype, width).asm["ptx"]
        registers, spilled = report(ptx, capability)
        loads = set(re.findall(r"ld\.global\.(v\d\.b\d+)", ptx))
        print(name, dtype, width, f"{registers} registers", f"{spilled} B spilled", sorted(loads))
        assert spilled == 0
        assert registers <= MOST_REGISTERS
        assert "v4.b32" in loads, "rows are not read 16 bytes at a time"
print("no spills")
