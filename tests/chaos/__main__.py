"""``python -m tests.chaos --seeds 20``: run seeds; a failure is reported with its seed and the command that
repeats it."""

from __future__ import annotations

import argparse
import concurrent.futures
import json
import os
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
from collections import Counter, defaultdict
from collections.abc import Sequence
from pathlib import Path
from types import FrameType
from typing import Any

import rich.console
import rich.progress
import rich.table

from clockwork.launch.local import die_with
from tests.chaos import seed as seeds
from tests.chaos import template as templates
from tests.chaos.oracle import Rule
from tests.chaos.processes import World, isolate
from tests.chaos.scenario import Kind, scenario
from tests.chaos.up import KINDS as UP_KINDS
from tests.chaos.up import UpWorld

SEED_LIMIT_S = 150.0
"""Time limit of a seed's process; an ordinary seed takes six to twelve seconds."""

ENDING_S = 20.0


def one_seed(arguments: argparse.Namespace) -> int:
    """Run a single seed in this process; its report goes to a file."""
    die_with(os.getppid())  # the parent's thread that waits for this seed
    isolate()
    root = Path(tempfile.mkdtemp(prefix=f"clockwork-chaos-{arguments.one}-"))
    try:
        made = scenario(arguments.one, templates.WORKERS, arguments.kind, kinds_of(arguments.up))
        world = UpWorld if arguments.up else World
        report = seeds.run(made, templates.Template(arguments.template), root, kind=world)
        seeds.write(report, arguments.report)
    finally:
        shutil.rmtree(root, ignore_errors=True)
    return 0


def kinds_of(up: bool) -> Sequence[Kind]:
    return UP_KINDS if up else tuple(Kind)


def _interrupt(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt


def in_a_process(
    seed: int, template: Path, reports: Path, kind: Kind | None, up: bool = False
) -> dict[str, Any]:
    """Run a seed in a process of its own, which cannot hang or end the others; return its report."""
    path = reports / f"seed-{seed}.json"
    path.unlink(missing_ok=True)
    command = [
        sys.executable, "-m", "tests.chaos", "--one", str(seed), "--template", str(template), "--report", str(path),
        *(["--kind", kind] if kind else []), *(["--up"] if up else []),
    ]  # fmt: skip
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
        try:
            output, _ = process.communicate(timeout=SEED_LIMIT_S)
        except subprocess.TimeoutExpired:
            process.terminate()
            try:
                output, _ = process.communicate(timeout=ENDING_S)
            except subprocess.TimeoutExpired:
                process.kill()
                output, _ = process.communicate()
            output = f"not over within {SEED_LIMIT_S:g} s\n{output}"
    if not path.exists():
        kinds = [
            {"kind": fault.kind} for fault in scenario(seed, templates.WORKERS, kind, kinds_of(up)).faults
        ]
        body = {"seed": seed, "faults": kinds, "outcomes": {}, "breaches": [[Rule.HARNESS, output[-6000:]]]}
        path.write_text(json.dumps(body, indent=1))
    return dict(json.loads(path.read_text()))


def summary(reports: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Summarise all seeds by kind of fault and by rule."""
    kinds: dict[str, dict[str, Any]] = {}
    for kind in Kind:
        seen = [fault for report in reports for fault in report["faults"] if fault["kind"] == kind]
        done = [fault for fault in seen if not fault.get("skipped")]
        failed = [
            report["seed"]
            for report in reports
            if report["breaches"] and any(fault["kind"] == kind for fault in report["faults"])
        ]
        kinds[kind] = {
            "faults": len(done),
            "skipped": len(seen) - len(done),
            "how": next((fault["how"] for fault in done if fault.get("how")), ""),
            "detected_ms": _spread(
                [fault["detected_ms"] for fault in done if fault.get("detected_ms") is not None]
            ),
            "recovered_ms": _spread([fault["recovered_ms"] for fault in done if "recovered_ms" in fault]),
            "recovered_unhindered_ms": _spread(
                [fault["recovered_unhindered_ms"] for fault in done if "recovered_unhindered_ms" in fault]
            ),
            "whole_ms": _spread([fault["whole_ms"] for fault in done if fault.get("whole_ms") is not None]),
            "failed_seeds": failed,
        }
    rules: dict[str, list[int]] = defaultdict(list)
    outcomes: Counter[str] = Counter()
    for report in reports:
        for rule in dict.fromkeys(rule for rule, _ in report["breaches"]):
            rules[rule].append(report["seed"])
        for name, count in report["outcomes"].items():
            outcomes[name.split(" ", 1)[1]] += count
    return {
        "seeds": len(reports),
        "failed": sum(bool(report["breaches"]) for report in reports),
        "requests": sum(outcomes.values()),
        "outcomes": dict(sorted(outcomes.items())),
        "rules": dict(rules),
        "kinds": kinds,
    }


def _spread(values: Sequence[float]) -> dict[str, float] | None:
    if not values:
        return None
    return {"median": statistics.median(values), "most": max(values), "count": len(values)}


def show(found: dict[str, Any], console: rich.console.Console) -> None:
    table = rich.table.Table(
        "fault",
        "times",
        "failed",
        "noticed by",
        "noticed, ms",
        "served again, ms",
        "unhindered, ms",
        "whole, ms",
    )
    for kind, one in found["kinds"].items():
        if one["faults"] or one["skipped"]:
            spreads = [
                one[name] for name in ("detected_ms", "recovered_ms", "recovered_unhindered_ms", "whole_ms")
            ]
            cells = [
                f"{spread['median']:.0f} to {spread['most']:.0f}" if spread else "" for spread in spreads
            ]
            times = f"{one['faults']}" + (f" (+{one['skipped']} skipped)" if one["skipped"] else "")
            table.add_row(kind, times, str(len(one["failed_seeds"]) or ""), one["how"], *cells)
    console.print(table)
    console.print(
        "Median to largest. Noticed: from the fault. Served again: from its detection to the last request that suffered; "
        "unhindered: without the time for which a process of the cluster waited for a processor. Whole: from the fault "
        "until both workers serve every model."
    )
    console.print(f"{found['seeds']} seeds, {found['requests']} requests: {found['outcomes']}")
    for rule, failed in found["rules"].items():
        console.print(f"{rule}: {len(failed)} seeds: {' '.join(map(str, failed))}")


def main() -> int:
    """Run the command; return 1 if any seed failed."""
    parser = argparse.ArgumentParser(prog="python -m tests.chaos", description=__doc__.split(":")[0])
    parser.add_argument(
        "--seeds", type=int, default=27, help="how many (default 27: each kind of fault once)"
    )
    parser.add_argument("--first", type=int, default=0, help="the first seed (default 0)")
    parser.add_argument("--jobs", type=int, default=1, help="clusters at once (default 1)")
    parser.add_argument("--kind", type=Kind, choices=list(Kind), help="only faults of this kind")
    parser.add_argument(
        "--out", type=Path, default=Path("chaos"), help="directory of the reports (default chaos)"
    )
    parser.add_argument(
        "--up", action="store_true", help="clusters of `clockwork up`, which restarts what dies"
    )
    parser.add_argument("--one", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--template", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--report", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    signal.signal(signal.SIGTERM, _interrupt)
    if arguments.one is not None:
        return one_seed(arguments)
    console = rich.console.Console(width=None if sys.stdout.isatty() else 160)
    arguments.out.mkdir(parents=True, exist_ok=True)
    scratch = Path(tempfile.mkdtemp(prefix="clockwork-chaos-template-"))
    reports: list[dict[str, Any]] = []
    try:
        templates.make(scratch)
        columns = (*rich.progress.Progress.get_default_columns(), rich.progress.MofNCompleteColumn())
        with (
            rich.progress.Progress(*columns, console=console, disable=not sys.stdout.isatty()) as progress,
            concurrent.futures.ThreadPoolExecutor(arguments.jobs) as pool,
        ):
            task = progress.add_task("seeds", total=arguments.seeds)
            numbers = range(arguments.first, arguments.first + arguments.seeds)
            pending = [
                pool.submit(in_a_process, n, scratch, arguments.out, arguments.kind, arguments.up)
                for n in numbers
            ]
            try:
                for done in concurrent.futures.as_completed(pending):
                    report = done.result()
                    reports.append(report)
                    progress.advance(task)
                    if report["breaches"]:
                        _complain(report, arguments, progress.console)
            except KeyboardInterrupt:
                pool.shutdown(wait=False, cancel_futures=True)  # seeds that run are waited for
                console.print("interrupted: what follows is of the seeds that are done")
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    reports.sort(key=lambda report: report["seed"])
    found = summary(reports)
    (arguments.out / "summary.json").write_text(json.dumps(found, indent=1))
    show(found, console)
    return 1 if found["failed"] else 0


def _complain(report: dict[str, Any], arguments: argparse.Namespace, console: rich.console.Console) -> None:
    faults = ", ".join(f"{fault['kind']} {fault.get('note', '')}".strip() for fault in report["faults"])
    more = (f" --kind {arguments.kind}" if arguments.kind else "") + (" --up" if arguments.up else "")
    console.print(
        f"seed {report['seed']} ({faults}); repeat: python -m tests.chaos --first {report['seed']} --seeds 1{more}"
    )
    counts = Counter(rule for rule, _ in report["breaches"])
    for rule, count in counts.items():
        first = next(text for name, text in report["breaches"] if name == rule)
        console.print(f"    {rule} ({count} times): {first[:600]}", markup=False, highlight=False)


if __name__ == "__main__":
    sys.exit(main())
