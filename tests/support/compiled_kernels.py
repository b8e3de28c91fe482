"""Compile all kernels for a GPU, which needn't be there; the interpreter checks no types.

A program of its own: here Triton must not be told to interpret them. It prints each one's name.
"""

from __future__ import annotations

import sys
from typing import Any

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from cmoe.modeling.kernels import launch

COUNTS = dict.fromkeys("NDREF", "i32")
ROUTED = {
    "always": "*i1",
    "gates": "*fp32",
    "probs": "*fp32",
    "chosen": "*i8",
    "row_expert": "*i64",
    "row_scale": "*fp32",
}
TILES = {"BN": 64, "BR": 32, "BF": 64, "BD": 64, "EP": 16, "WIDEN": False}
CASES: tuple[tuple[Any, dict[str, Any]], ...] = (
    (launch._route, {"LIKELIEST": 2, "RENORMALIZED": True, "ALWAYS": False, "always": None}),
    (launch._route, {"LIKELIEST": 1, "RENORMALIZED": False, "ALWAYS": True}),
    (launch._shrink, {"TWO": True, "SAVE": True}),
    (launch._shrink, {"TWO": False, "SAVE": False, "low": None, "low2": None}),
    (launch._expand_swiglu, {}),
    (launch._expand_swiglu_backward, {}),
)

for kernel, options in CASES:
    for kind in sys.argv[2:]:
        constants = {k: v for k, v in (TILES | options).items() if k in kernel.arg_names}
        signature = {
            name: "constexpr" if name in constants else (COUNTS | ROUTED).get(name, f"*{kind}")
            for name in kernel.arg_names
        }
        target = GPUTarget("cuda", int(sys.argv[1]), 32)
        made = triton.compile(
            ASTSource(kernel, signature, constants),
            target=target,
            options={"enable_fp_fusion": True},
        )
        # What one block of the oldest GPU that has bf16 may have.
        assert made.metadata.shared <= 99 * 1024, (kernel.__name__, made.metadata.shared)
        print(kernel.__name__, kind)
