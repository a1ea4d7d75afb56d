"""A program of its own: lowers an ONNX file of fixed shapes for sm_80 with 16-bit operands, and runs every kernel on
tinygrad's emulation of the card's instructions, tensor cores included.

    python -m tests.unit.emulate_tensor_cores MODEL.onnx INPUT.npy OUTPUT.npy

Prints how many of the kernels use tensor cores, and how many there are.
"""

from __future__ import annotations

import sys

import numpy as np
from tinygrad import dtypes
from tinygrad.codegen import to_program
from tinygrad.engine.realize import get_call_arg_uops
from tinygrad.helpers import Context, Target
from tinygrad.runtime.ops_python import PythonProgram, PythonRenderer
from tinygrad.uop.ops import Ops, UOp

from clockwork.models.compile import interpret, lower
from clockwork.models.compile.variant import Spec
from clockwork.wire.tensors import Array


def main(model: str, source: str, target: str) -> None:
    interpret.use_half()
    lowering = lower._Lowering(Spec(model, "sm_80", "", "fp16"), lambda done, total: None)
    with Context(NOOPT=1):
        lowering._fold()
    given = np.load(source)
    memory: dict[UOp, Array] = {}

    def of(buffer: UOp) -> Array:
        if buffer not in memory:
            if buffer in lowering._inputs:
                memory[buffer] = given.reshape(-1).view(np.uint8).copy()
            elif buffer in lowering._derived or buffer in lowering._runner.weights:
                memory[buffer] = lowering._constant(buffer)[1].reshape(-1).view(np.uint8).copy()
            else:
                memory[buffer] = np.zeros(int(buffer.max_numel()) * buffer.dtype.itemsize, np.uint8)
        return memory[buffer]

    products = 0
    renderer = PythonRenderer(Target("PYTHON", "PYTHON", "sm_80"))
    for call in lowering._launched:
        program = to_program(call.src[0], renderer)
        steps = [
            one for part in program.src if part.op is Ops.LINEAR for one in part.src if one.op is Ops.WMMA
        ]
        assert {one.dtype for one in steps} <= {dtypes.float32}, "sums have 32 bits"
        products += bool(steps)
        places = [lower._place(one).buffer for one in get_call_arg_uops(call)]
        PythonProgram(None, program.to_elf())(
            *(memoryview(of(places[index])) for index in program.arg.globals),
            global_size=program.arg.global_size,
            local_size=program.arg.local_size,
        )
    (output,) = lowering._outputs
    np.save(target, memory[output].view(np.float32).reshape(lowering._output_shapes[0]))
    print(products, len(lowering._launched))


if __name__ == "__main__":
    with Context(TC_OPT=2):
        main(*sys.argv[1:4])
