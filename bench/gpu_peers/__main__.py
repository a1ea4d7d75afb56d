"""A compiled model on the CUDA device beside ONNX Runtime on the same card, in every configuration of both.

    python -m bench.gpu_peers resnet50.onnx --batch 1 --batch 16 [--dtype tf32] [--kernels 20] [--json]
    python -m bench.gpu_peers compiled/ --onnx bert.onnx --batch 8 --dtype fp16

MODEL is an ONNX file, which is first compiled for the card, once for each dtype (minutes; the extra
[compile]), or a package that `clockwork compile` has made, whose dtype --dtype then names.

Compared are fp32 with ONNX Runtime with use_tf32=0; tf32 with its default, and TensorRT's; fp16 with its fp16
model, made by its own converter, and TensorRT's fp16. Peers run with and without CUDA graphs, and also on
tensor cores in the layout NHWC. Peers that are not installed are named. All sides get the same inputs, which
lie on the card. All are timed in the same two ways: by the card's events on the stream that executes, and by
this machine's clock from the first launch until the end has been noticed. Clockwork's events are inside its
graph; a peer's are around a call of ONNX Runtime, and so include its work on the host before the first
launch. "times the best" is Clockwork's median over that of the best peer of its dtype, by events and by the
clock; the truth of a small model is between them. "apart by" is the largest difference from ONNX Runtime on
the CPU, relative to the largest value.

"beside" names concurrent work: none (alone), LOADs of another model without a pause, or registrations without
a pause; "registered" counts those that ran from beginning to end. Clockwork registers modules, graphs and
weights of another program, checks it and times it, in RESERVEs between two executions, so that a request's
wait for a RESERVE is in neither time (bench.gpu_registration measures it). For ONNX Runtime another session
of the file is made and dropped on a thread of the process that executes, and holds Python's lock for a part
of that. Each row has 100,000 executions, so that a p99.99 has ten beyond it: a batch of 1 of a model that
takes 1 ms takes half an hour or more (--runs 10000 for a tenth). Kernels are timed one by one, each 20 times
in a row on the data in memory. ONNX Runtime's kernel times are those of its own profile, which on a GPU are
the times of launching.

The benchmark runs on the driver that CLOCKWORK_CUDA_DRIVER names. On the fake one, with --cpu, ONNX Runtime
executes on the processor, which shows that the comparison works; its times mean nothing for a GPU.
"""

from __future__ import annotations

from pathlib import Path

from rich.console import Console

from bench import report
from bench.gpu_peers.measure import measure
from bench.gpu_peers.ours import SEED
from bench.gpu_peers.theirs import ON_A_CPU, PEERS
from clockwork.wire.messages import PRODUCT_DTYPES
from clockwork.wire.packages import MODEL_FILE

RUNS = 100_000

LEFT_OUT = {f"{clock} p{mark}_us" for clock in ("event", "host") for mark in ("99", "99.9")}
"""Columns that the table leaves out; JSON has them."""


@report.in_a_sentence()
def main() -> None:
    parser = report.command_line(__doc__)
    parser.add_argument("model", type=Path, help="an ONNX file, or a package that is compiled")
    parser.add_argument("--onnx", type=Path, help="the file that ONNX Runtime runs, if MODEL is a package")
    parser.add_argument("--batch", type=int, action="append", help="may be given several times  [1]")
    parser.add_argument(
        "--dtype",
        choices=PRODUCT_DTYPES,
        action="append",
        help="dtype of products; may be given several times  [all]",
    )
    parser.add_argument("--runs", type=int, default=RUNS, help=f"executions for each row  [{RUNS}]")
    parser.add_argument("--kernels", type=int, default=20, help="number of kernels listed for each side")
    parser.add_argument(
        "--cpu", action="store_true", help="ONNX Runtime on the processor, to try the benchmark"
    )
    asked = parser.parse_args()
    onnx = asked.onnx or (asked.model / MODEL_FILE if asked.model.is_dir() else asked.model)
    if not onnx.is_file():
        parser.error(f"there is no {onnx}")
    dtypes = asked.dtype or (PRODUCT_DTYPES if asked.model.is_file() else ("fp32",))
    if asked.model.is_dir() and len(dtypes) > 1:
        parser.error("a package is of one dtype")
    runs = 20 if asked.quick else asked.runs
    peers = ON_A_CPU if asked.cpu else PEERS
    console = Console(stderr=True)
    with console.status("compiling") as status:

        def tell(text: str) -> None:
            status.update(text)
            if not console.is_terminal:
                console.print(text)

        batches = asked.batch or [1]
        rows, lists, facts = measure(asked.model, onnx, batches, dtypes, peers, runs, asked.kernels, tell)
    if asked.json:
        report.show("beside ONNX Runtime", SEED, [*rows, *lists], facts, True)
        return
    shown = [{name: value for name, value in row.items() if name not in LEFT_OUT} for row in rows]
    report.show("beside ONNX Runtime", SEED, shown, facts, False)
    if lists:
        report.show("kernels, the longest first", SEED, lists, {}, False)


if __name__ == "__main__":
    main()
