#!/usr/bin/env python3
"""Checks the rules of the source tree that no compiler checks; prints file:line for each problem.

Includes go one way, runtime -> loader -> parallel -> kernels; tests, bench and tools are leaves
(tests may include what tools are made of).
Public headers stay free of other projects' headers. No file is longer than 500 lines, and nothing
is compiled for the machine that builds it.
"""
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent

# Folder -> the folders whose headers it may include.
MAY_INCLUDE = {
    "kernels": {"kernels"},
    "parallel": {"parallel", "kernels"},
    "loader": {"loader", "parallel", "kernels"},
    "runtime": {"runtime", "loader", "parallel", "kernels"},
    "tests": {"tests", "tools", "runtime", "loader", "parallel", "kernels"},
    "bench": {"bench", "runtime", "loader", "parallel", "kernels"},
    "tools": {"tools", "runtime", "loader", "parallel", "kernels"},
}
LIBRARIES = {"kernels", "parallel", "loader", "runtime"}

# Headers that only .cpp files of the library include; they are not installed either
# (tools/cmake/GantryInstall.cmake reads this list).
INTERNAL_HEADERS = {
    "kernels/activation/activation_math.h",
    "kernels/base/amx_tile_config.h",
    "kernels/base/check.h",
    "kernels/base/log_format.h",
    "kernels/ceilings/peak_loops.h",
    "kernels/cuda/ceiling_kernels.h",
    "kernels/cuda/cuda_device.h",
    "kernels/cuda/cuda_errors.h",
    "kernels/cuda/cuda_kernels.h",
    "kernels/cuda/device_kernels.h",
    "kernels/cuda/device_matrix.h",
    "kernels/cuda/digest_kernel.h",
    "kernels/cuda/emulated_barriers.h",
    "kernels/cuda/emulated_block.h",
    "kernels/cuda/emulated_streams.h",
    "kernels/cuda/emulated_wgmma.h",
    "kernels/cuda/exchange_kernels.h",
    "kernels/cuda/expert_gemm.h",
    "kernels/cuda/expert_rows_kernel.h",
    "kernels/cuda/float_bits.h",
    "kernels/cuda/gemm_launches.h",
    "kernels/cuda/host_device.h",
    "kernels/cuda/launch_shape.h",
    "kernels/cuda/mma_fragments.h",
    "kernels/cuda/pack_device.h",
    "kernels/cuda/plan_kernel.h",
    "kernels/cuda/quantize_rows_kernel.h",
    "kernels/cuda/route_kernel.h",
    "kernels/cuda/row_kernels.h",
    "kernels/cuda/skinny_gemm.h",
    "kernels/cuda/tiled_gemm.h",
    "kernels/cuda/warp_ops.h",
    "kernels/cuda/weight_fragments.h",
    "kernels/cuda/wgmma_descriptor.h",
    "kernels/cuda/wgmma_gemm.h",
    "kernels/cuda/wgmma_launches.h",
    "kernels/fused_moe/int8_rows.h",
    "kernels/fused_moe/matrix_rows.h",
    "kernels/fused_moe/row_ops.h",
    "kernels/fused_moe/row_ops_vector.h",
    "kernels/grouped_gemm/amx_emulated_tiles.h",
    "kernels/grouped_gemm/amx_tiles.h",
    "kernels/grouped_gemm/amx_int8_panel.h",
    "kernels/grouped_gemm/amx_panel.h",
    "kernels/grouped_gemm/coded_gemm_avx512.h",
    "kernels/grouped_gemm/coded_panel_avx512.h",
    "kernels/grouped_gemm/dequantize_avx512.h",
    "kernels/grouped_gemm/dot_multiply_avx512.h",
    "kernels/grouped_gemm/fetch_codes_avx512.h",
    "kernels/grouped_gemm/int8_panel_ops_avx512.h",
    "kernels/grouped_gemm/pack_pairs.h",
    "kernels/grouped_gemm/pack_words.h",
    "kernels/grouped_gemm/panel_scales_avx512.h",
    "kernels/grouped_gemm/transpose_words_avx512.h",
    "kernels/transpose/transpose_tiles.h",
    "kernels/topk/sparsemixer.h",
    "parallel/back_off.h",
    "parallel/mpi_control.h",
    "parallel/mpi_link.h",
    "parallel/nccl_abi.h",
    "parallel/nccl_agreement.h",
    "parallel/nccl_library.h",
    "parallel/transfer_parts.h",
    "loader/config_reader.h",
    "loader/encoded_job.h",
    "loader/encoded_reader.h",
    "loader/encodings/bnb_scales.h",
    "loader/encodings/code_orders.h",
    "loader/encodings/decoders.h",
    "loader/encodings/module_pattern.h",
    "loader/encodings/quant_rules.h",
    "loader/encodings/quant_scheme_reader.h",
    "loader/encodings/scale_glance.h",
    "loader/encodings/scale_grid.h",
    "loader/expert_formats.h",
    "loader/family_config_parts.h",
    "loader/json_handler.h",
    "loader/json_key_order.h",
    "loader/layer_schemes.h",
    "loader/pack_shard.h",
    "loader/read_job.h",
    "loader/relayout_geometry.h",
    "loader/tensor_cut.h",
    "loader/strict_json.h",
    "runtime/device_exchange.h",
    "runtime/device_exchange_parts.h",
    "runtime/device_forward.h",
    "runtime/device_kernel_plan.h",
    "runtime/device_model.h",
    "runtime/device_scratch.h",
    "runtime/device_weights.h",
    "runtime/forward_call.h",
    "runtime/input_check.h",
    "runtime/layer_operands.h",
    "runtime/rank_results.h",
    "runtime/rms_norm.h",
    "runtime/slot_transfer.h",
    "runtime/router.h",
}

# Public headers for programs that use the other project themselves.
OPT_IN_HEADERS = {"parallel/communicator_mpi.h"}

INCLUDE = re.compile(r'\s*#\s*include\s+([<"])([^>"]+)[>"]')
FOREIGN = re.compile(r"(mpi|nccl|cuda|cublas|hip)[\w/]*\.h|cuda/|(fmt|spdlog|nlohmann)/")
NATIVE = re.compile(r"-march=nativ[e]")
MAX_LINES = 500
CODE = {".h", ".cpp", ".cuh", ".cu"}
TEXT = CODE | {".py", ".sh", ".cmake", ".txt", ".json", ".yml", ".in"}


def include_problems(path, line):
    match = INCLUDE.match(line)
    if not match:
        return
    quoted, header = match[1] == '"', match[2]
    folder, target = path.parts[0], header.split("/")[0]
    public = path.suffix == ".h" and folder in LIBRARIES and str(path) not in INTERNAL_HEADERS
    if quoted and target not in MAY_INCLUDE.get(folder, MAY_INCLUDE):
        yield f"{folder} must not include {header}"
    if public and FOREIGN.match(header) and str(path) not in OPT_IN_HEADERS:
        yield f"a public header must not include {header}"
    if public and header in INTERNAL_HEADERS:
        yield f"a public header must not include the internal {header}"


def problems(path):
    lines = (ROOT / path).read_text(encoding="utf-8").splitlines()
    is_data = path.suffix in {".json", ".txt"} and path.parts[0] == "tests"
    if len(lines) > MAX_LINES and not is_data:
        yield MAX_LINES + 1, f"{len(lines)} lines; the limit is {MAX_LINES}"
    for number, line in enumerate(lines, start=1):
        if path.suffix in CODE and not path.is_relative_to("tests/consumer"):
            for problem in include_problems(path, line):
                yield number, problem
        if NATIVE.search(line):
            yield number, "code must not depend on the machine that builds it: use gantry_isa_sources"


def main():
    git = ["git", "-C", str(ROOT), "ls-files", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(git, check=True, capture_output=True, text=True).stdout
    paths = [Path(p) for p in sorted(set(listed.splitlines())) if (ROOT / p).is_file()]
    failed = False
    for path in (p for p in paths if p.suffix in TEXT):
        for number, problem in problems(path):
            print(f"{path}:{number}: {problem}")
            failed = True
    print(f"check_includes: {len(paths)} files, {'problems above' if failed else 'no problems'}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
