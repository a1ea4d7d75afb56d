"""The rate at which fine-tunes of a few architectures are registered, and the cost of each.

    python -m bench.registration [--quick] [--json] [--models 600] [--architectures 20] [--megabytes 1.5]
        [--at-once 16] [--through client|command]

A cluster of a controller and one CPU worker registers the first model of each architecture, which is
optimised and measured. Then the others, fine-tunes that lie on disk, are registered in one run, several at
once: by the client in this process, or by `clockwork models add --each`. Measured are the models of each
second of that run; the processor time of each process for a model; the memory of a model that is registered
and not loaded; and the time of a restart, until all models are ready.
"""

from __future__ import annotations

import contextlib
import math
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import onnx

from bench import report
from bench.cluster import Cluster, cpu_s
from clockwork.client.blocking import Client
from clockwork.models import zoo
from clockwork.system.clock import SECOND, now_ns

SEED = 11
MEAN_BYTES = 1.94e6
"""Mean size of the architectures at a scale of 1."""

PAGE_BYTES = 64 << 10
ARENA_BYTES = 16 << 20
"""Small, because the arena counts to the memory of the worker."""


def architectures(count: int, scale: float = 1.0) -> list[onnx.ModelProto]:
    """Networks of 0.5 to 4 MB times ``scale``, all different; three in four convolve, for a millisecond or
    two."""
    found = []
    factor = math.sqrt(scale)
    for index in range(count):
        if index % 4 == 3:
            width = round(factor * (256 + 32 * (index // 2)))
            found.append(zoo.build("mlp", seed=index, width=width, depth=3))
        else:
            widths = [8 * max(1, round(factor * width / 8)) for width in (16 + 8 * (index % 2), 48, 96)]
            options = {"blocks": (1, 1, 1, 1), "image": 64 + 16 * (index % 3)}
            last = round(factor * (128 + 2 * index))
            found.append(zoo.build("residual_cnn", seed=index, widths=(*widths, last), **options))
    return found


def register_all(
    client: Client, models: Mapping[str, Any], at_once: int, halfway: Callable[[], None] = lambda: None
) -> None:
    """Register models, several at once. models: arguments of Client.register(), by name. halfway: is called
    once half of them are registered."""
    with ThreadPoolExecutor(at_once) as pool:
        for index, _ in enumerate(pool.map(client.register, models, models.values()), 1):
            if index == len(models) // 2:
                halfway()


def children_of(pid: int) -> list[int]:
    """The present children of a process."""
    found = []
    for task in Path(f"/proc/{pid}/task").iterdir():
        found += map(int, (task / "children").read_text().split())
    return found


def ended_children_s(pid: int) -> float:
    """Processor time of the children of a process that have ended."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[13]) + int(fields[14])) / os.sysconf("SC_CLK_TCK")


def anonymous_bytes(pid: int) -> int:
    """Resident memory of a process without mapped files: mapped weights are the OS's cache."""
    text = Path(f"/proc/{pid}/status").read_text()
    return next(int(line.split()[1]) << 10 for line in text.splitlines() if line.startswith("RssAnon"))


def register_folder(cluster: Cluster, folder: Path) -> None:
    """Register a folder's files by the command."""
    command = [sys.executable, "-m", "clockwork", "models", "add", "--endpoint", cluster.endpoint]
    done = subprocess.run([*command, "--each", str(folder)], capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"models add failed: {done.stderr}\n{cluster.log()}")


def spent_s(cluster: Cluster) -> dict[str, float]:
    """Processor time so far, by process; the client is the benchmark's own process or a child of it."""
    (worker,) = cluster.workers
    preparing = sum(map(cpu_s, children_of(worker.pid))) + ended_children_s(worker.pid)
    ended = resource.getrusage(resource.RUSAGE_CHILDREN)
    return {
        "client": time.process_time() + ended.ru_utime + ended.ru_stime,
        "controller": cpu_s(cluster.controller.pid),
        "worker": cpu_s(worker.pid),
        "preparation": preparing,
    }


def write_models(
    folder: Path, models: int, families: int, megabytes: float, seed: int
) -> tuple[list[dict[str, Path]], int]:
    """Write the models to a folder. Return the files of the first of each architecture and of the others, by
    name, and the mean size in bytes."""
    bases = architectures(families, megabytes * 1e6 / MEAN_BYTES)
    files: list[dict[str, Path]] = [{}, {}]
    written = 0
    for index in range(models):
        base = bases[index % families]
        model = base if index < families else zoo.fine_tune(base, seed=seed + index)
        path = folder / ("first" if index < families else "others") / f"model-{index}.onnx"
        path.parent.mkdir(exist_ok=True)
        written += path.write_bytes(model.SerializeToString())
        files[index >= families][path.stem] = path
    return files, written // models


def measure(
    models: int, families: int, megabytes: float, at_once: int, through: str = "client", seed: int = SEED
) -> dict[str, Any]:
    """Facts about the registration of ``models`` fine-tunes of ``families`` architectures."""
    arguments = ("--arena", str(ARENA_BYTES), "--page-size", str(PAGE_BYTES))
    with tempfile.TemporaryDirectory(prefix="clockwork-bench-") as folder:
        (first, others), mean_bytes = write_models(Path(folder), models, families, megabytes, seed)
        cluster = Cluster(worker_arguments=arguments)
        with contextlib.closing(cluster):
            cluster.start()
            with cluster.client() as client:
                begin_ns = now_ns()
                register_all(client, first, 1)
                first_s = (now_ns() - begin_ns) / SECOND
                pids = (cluster.controller.pid, cluster.workers[0].pid)
                held: list[int] = []
                spent = spent_s(cluster)
                begin_ns = now_ns()
                if through == "command":
                    register_folder(cluster, Path(folder) / "others")
                else:
                    # In the first half, buffers grow to their size.
                    register_all(client, others, at_once, lambda: held.extend(map(anonymous_bytes, pids)))
                taken_s = (now_ns() - begin_ns) / SECOND
                after = spent_s(cluster)
                grown = [anonymous_bytes(pid) - before for pid, before in zip(pids, held)]
                ready = client.status()["models"].get("ready", 0)
            if ready != models:
                raise AssertionError(f"{ready} of {models} models are ready")
            cluster.stop()
            restart_s = cluster.start() / SECOND
    count = len(others)
    each = {name: round(1e3 * (after[name] - spent[name]) / count, 2) for name in spent}
    return {
        "models": models,
        "architectures": families,
        "mean size, MB": round(mean_bytes / 1e6, 2),
        "registered by": f"the client, {at_once} at once" if through == "client" else "models add --each",
        "first of each architecture, s": round(first_s, 2),
        "models/s": round(count / taken_s, 1),
        "processor time of a model, ms": each,
        "processor time of a model in all, ms": round(sum(each.values()), 2),
        "memory of a model in the second half, KB": {
            name: round(bytes_ / (count - count // 2) / 1e3, 2)
            for name, bytes_ in zip(("controller", "worker"), grown)
        },
        "restart until all are ready, s": round(restart_s, 2),
    }


def main() -> None:
    parser = report.command_line(__doc__)
    parser.add_argument("--models", type=int, default=600)
    parser.add_argument("--architectures", type=int, default=20)
    parser.add_argument("--megabytes", type=float, default=1.5, help="mean size of a model")
    parser.add_argument("--at-once", type=int, default=16, help="registrations that are under way at once")
    parser.add_argument("--through", choices=("client", "command"), default="client")
    arguments = parser.parse_args()
    facts = (
        measure(12, 2, 0.1, 4, arguments.through)
        if arguments.quick
        else measure(
            arguments.models,
            arguments.architectures,
            arguments.megabytes,
            arguments.at_once,
            arguments.through,
        )
    )
    report.show("registration of fine-tunes", SEED, [], facts, arguments.json)


if __name__ == "__main__":
    main()
