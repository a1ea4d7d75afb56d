"""Speed and spread of LOAD and INFER on a CUDA device, beside a bare copy of the same bytes; and the host's
time for an INFER that is recorded as a graph or launched kernel by kernel.

    python -m bench.gpu [--quick] [--json] [--pages N]

The program is written by hand: weights of --pages pages, and a chosen number of launches of a small kernel,
so that the launches themselves take the time. host_us is the least processor time of the execute lane until
all is launched. calls counts the driver's calls of a whole INFER except queries whether something has ended;
the fake driver counts them. The benchmark runs on the driver that CLOCKWORK_CUDA_DRIVER names: the fake one
shows that the benchmark works, and its times mean nothing for a GPU. Compiling the kernel for a card takes
the extra [compile].
"""

from __future__ import annotations

import ctypes
import functools
import itertools
import subprocess
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from bench import report
from clockwork.config import CUDA_PAGE_BYTES
from clockwork.config.device import cuda_driver
from clockwork.device.base import Completion, TensorView
from clockwork.device.cuda import CudaDevice
from clockwork.device.cuda_memory import cards, fingerprint_of, open_driver, open_memory, target_of
from clockwork.formats.package import hash_file
from clockwork.formats.prepared import FORMAT_VERSION, WEIGHTS_FILE, PreparedModel, TensorSpec, WeightSpec
from clockwork.formats.program import (
    HOST,
    Argument,
    Launch,
    Program,
    ProgramWeight,
    TargetModules,
    Variant,
    program_hash,
)
from clockwork.models.layout import lay_out
from clockwork.models.prepare_program import install
from clockwork.wire.messages import NEVER_NS, Infer, Load, Status, Unload

KERNEL = """
extern "C" __global__ void accumulate(const float *x, const unsigned long long *w_entry, float *y, int count)
{
    const float *w = (const float *)*w_entry;
    int at = blockIdx.x * blockDim.x + threadIdx.x;
    if (at < count)
        y[at] = x[at] + w[at];
}
#ifdef CW_HOST_KERNEL
CW_HOST_KERNEL(accumulate)
#endif
"""
MODULE = "modules/accumulate"
FLOAT = 1
WIDTH = 4096
"""Elements of the input, the output and the part of each weight that is read: negligible beside a launch."""

ACTION_SECONDS = 60.0
LAUNCHES = (1, 20, 50, 200)
"""Launches of the programs. The difference of the first and the last gives the cost of a launch."""


def compile_kernel(target: str) -> bytes:
    if target != HOST:
        from clockwork.models.compile import nvrtc

        return nvrtc.build([KERNEL], target)[0]
    header = Path(__file__).parents[1] / "tests/native/host_kernels.h"
    with tempfile.TemporaryDirectory() as directory:
        source, made = Path(directory) / "kernel.cu", Path(directory) / "kernel.so"
        source.write_text(KERNEL)
        command = ["g++", "-std=c++20", "-O2", "-shared", "-fPIC", "-x", "c++", "-include", str(header)]
        subprocess.run([*command, str(source), "-o", str(made)], check=True)
        return made.read_bytes()


class Site:
    """A device with prepared models: models[i] has launches[i] launches. All have the same weights.

    graphs: whether launches are recorded.
    """

    def __init__(
        self,
        scratch: Path,
        pages: int,
        page_bytes: int = CUDA_PAGE_BYTES,
        launches: Sequence[int] = LAUNCHES,
        graphs: bool = True,
    ) -> None:
        self.table = open_driver()
        self.card = cards(self.table)[0]
        self.target = target_of(self.card)
        self.pages, self.page_bytes = pages, page_bytes
        self._scratch = scratch
        (scratch / MODULE).parent.mkdir(parents=True)
        (scratch / MODULE).write_bytes(compile_kernel(self.target))
        weights_bytes = pages * page_bytes
        self.device = CudaDevice(
            "0", 2 * weights_bytes, page_bytes, graphs=graphs, pinned_bytes=len(launches) * weights_bytes
        )
        self._ids = itertools.count(1)
        for index, count in enumerate(launches):
            self.device.open(index, str(self._prepare(count)))
        self.weights_bytes = pages * page_bytes
        self._input = np.ones((1, WIDTH), np.float32).tobytes()

    def __enter__(self) -> Site:
        return self

    def __exit__(self, *_: Any) -> None:
        self.device.close()

    def _prepare(self, launches: int) -> Path:
        """A prepared directory, written by hand, because only this benchmark measures here."""
        elements = self.page_bytes // 4
        spec = TensorSpec("x", FLOAT, ("n", WIDTH)), TensorSpec("y", FLOAT, ("n", WIDTH))
        blocks = (WIDTH // 256, 1, 1)
        list_of = tuple(
            Launch(
                0,
                "accumulate",
                blocks,
                (256, 1, 1),
                0,
                (
                    Argument("output" if number else "input", 0, 0),
                    Argument("table", 0, number % self.pages),
                    Argument("output", 0, 0),
                    Argument("i32", 0, WIDTH),
                ),
            )
            for number in range(launches)
        )
        program = Program(
            name=f"{launches} launches",
            inputs=spec[:1],
            outputs=spec[1:],
            batches=True,
            weights=tuple(
                ProgramWeight(FLOAT, (elements,), index * self.page_bytes, self.page_bytes)
                for index in range(self.pages)
            ),
            targets={self.target: TargetModules(0, (MODULE,))},
            variants=(
                Variant(
                    self.target,
                    1,
                    ((1, WIDTH),),
                    ((1, WIDTH),),
                    0,
                    list_of,
                    tuple(Argument("weight", index, 0) for index in range(self.pages)),
                ),
            ),
            files={MODULE: hash_file(self._scratch / MODULE)[1]},
        )
        name = program_hash(program)
        install(self._scratch, name, program, self._scratch)
        place = self._scratch / "prepared" / str(launches)
        place.mkdir(parents=True)
        layout = lay_out([self.page_bytes] * self.pages, self.page_bytes)
        with open(place / WEIGHTS_FILE, "wb") as file:
            for _ in range(self.pages):
                file.write(np.ones(elements, np.float32).tobytes())
        PreparedModel(
            format_version=FORMAT_VERSION,
            digest=place.name,
            fingerprint=fingerprint_of(self.table, self.card),
            program=name,
            holding="program",
            inputs=list(spec[:1]),
            outputs=list(spec[1:]),
            batches=True,
            batching_note="",
            batch_max=1,
            page_bytes=self.page_bytes,
            runs=layout.runs,
            weights=[
                WeightSpec(FLOAT, (elements,), run, offset, self.page_bytes) for run, offset in layout.places
            ],
            weights_bytes=self.pages * self.page_bytes,
            resident_bytes=self.pages * self.page_bytes,
            load_ns=0,
            profile=[],
            constants_note="",
            metadata={},
            example=[],
        ).write(place)
        return place

    def end(self, action_id: int) -> Completion:
        (done,) = self.device.wait([action_id], ACTION_SECONDS)
        assert done.status == Status.OK, done.text
        return done

    def start_load(self, model: int, expected_ns: int = 0) -> int:
        starts = [model % 2 * self.pages + page for page in range(self.pages)]
        action = Load(next(self._ids), 0, model, 1, starts, 0, NEVER_NS, expected_ns)
        self.device.start(action)
        return action.action_id

    def load(self, model: int, expected_ns: int = 0) -> Completion:
        return self.end(self.start_load(model, expected_ns))

    def unload(self, model: int) -> Completion:
        action = Unload(next(self._ids), 0, model, 1, 0, NEVER_NS, 0)
        self.device.start(action)
        return self.end(action.action_id)

    def start_infer(self, model: int, expected_ns: int = 0) -> int:
        view = TensorView(FLOAT, (1, WIDTH), self._input)
        action = Infer(next(self._ids), 0, model, 1, 0, NEVER_NS, expected_ns, [])
        self.device.start(action, [[view]])
        return action.action_id

    def infer(self, model: int, expected_ns: int = 0) -> Completion:
        return self.end(self.start_infer(model, expected_ns))

    def bare_copies(self, count: int) -> Iterator[int]:
        """Nanoseconds of copies of the same number of bytes in one piece, from pinned memory."""
        memory = open_memory(self.table, self.card)
        memory.make_current()
        host, target = memory.allocate_host(self.weights_bytes), memory.allocate(self.weights_bytes)
        try:
            for _ in range(count):
                yield self.table.time_copy(target, host)
        finally:
            memory.release(target)
            memory.release_host(host)
            memory.close()


def row(what: str, times_ns: list[int]) -> dict[str, Any]:
    marks = report.percentiles(times_ns, (50, 99, 99.99))
    return {"what": what, "count": len(times_ns), **marks, "most_us": round(max(times_ns) / 1e3, 1)}


@functools.cache
def counter() -> Callable[[bytes], int]:
    """A function that returns the number of a driver function's calls; 0 on a GPU."""
    count = getattr(ctypes.CDLL(cuda_driver()), "cw_fake_calls", None)
    if count is None:
        return lambda function: 0
    count.restype = ctypes.c_int64
    return count  # type: ignore[no-any-return]


def driver_calls() -> int:
    """Calls of the fake driver so far, without queries; 0 on a GPU."""
    return counter()(b"")


def times(call: Callable[[], Completion], count: int) -> list[int]:
    return [call().execute[2] for _ in range(count)]


def measure_infer(sites: Mapping[str, Site], model: int, count: int) -> list[dict[str, Any]]:
    """A row for each site; the sites take turns. sites: by their addition to a row's title."""
    took: dict[str, list[tuple[int, int, int]]] = {name: [] for name in sites}
    for site in sites.values():
        site.load(model)
        times(lambda: site.infer(model), 10)  # noqa: B023
    for _ in range(count):
        for name, site in sites.items():
            calls, host_ns = driver_calls(), site.device.launch_ns
            execute_ns = site.infer(model).execute[2]
            took[name].append((execute_ns, site.device.launch_ns - host_ns, driver_calls() - calls))
    rows = []
    for name, site in sites.items():
        site.unload(model)
        execute, host, calls_made = zip(*took[name], strict=True)
        rows.append(
            {
                **row(f"INFER, {LAUNCHES[model]} launches{name}", list(execute)),
                "calls": float(np.mean(calls_made)) or None,
                "host_us": min(host) / 1e3,
            }
        )
    return rows


def measure(
    site: Site, plain: Site, loads: int, inferences: int
) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """Rows and facts. plain: a site whose launches are not recorded."""

    def load_and_unload() -> Completion:
        done = site.load(0)
        site.unload(0)
        return done

    load_and_unload()
    moved = [row("bare copy", list(site.bare_copies(loads))), row("LOAD", times(load_and_unload, loads))]
    sites = {"": site, ", one by one": plain}
    pairs = [measure_infer(sites, model, inferences) for model in range(len(LAUNCHES))]
    recorded, one_by_one = (list(column) for column in zip(*pairs, strict=True))
    bare, load = (moved_row["p50_us"] for moved_row in moved)
    rows = [{**moved_row, "calls": None, "host_us": None} for moved_row in moved] + recorded + one_by_one
    return rows, {
        "weights, MB": site.weights_bytes / 1e6,
        "bare copy, GB/s": site.weights_bytes / bare / 1e3,
        "LOAD, GB/s": site.weights_bytes / load / 1e3,
        "LOAD, share of the bare copy's rate": bare / load,
        "a launch, us": (recorded[-1]["p50_us"] - recorded[0]["p50_us"]) / (LAUNCHES[-1] - LAUNCHES[0]),
        "p99.99 over p50, longest INFER": recorded[-1]["p99.99_us"] / recorded[-1]["p50_us"],
        **{
            f"host time one by one over recorded, {launches} launches": plain_row["host_us"]
            / recorded_row["host_us"]
            for launches, recorded_row, plain_row in zip(LAUNCHES, recorded, one_by_one, strict=True)
        },
    }


@report.in_a_sentence()
def main() -> None:
    parser = report.command_line(__doc__)
    parser.add_argument("--pages", type=int, default=6, help="pages of weights of 16 MiB each")
    asked = parser.parse_args()
    with (
        tempfile.TemporaryDirectory() as scratch,
        Site(Path(scratch) / "recorded", asked.pages) as site,
        Site(Path(scratch) / "plain", asked.pages, graphs=False) as plain,
    ):
        rows, facts = measure(site, plain, *((5, 100) if asked.quick else (100, 10_000)))
        title = f"{site.card.name}, driver {site.table.version}; by the device's own events"
    report.show(title, 0, rows, facts, asked.json)


if __name__ == "__main__":
    main()
