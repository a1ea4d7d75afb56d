"""Output of `clockwork load`: progress while a load runs, and its report."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any

from clockwork.cli.common import print_line
from clockwork.system.clock import SECOND, now_ns
from clockwork.wire.telling import visible
from clockwork.workloads.load_generator import LoadReport, LoadTally, Outcome, WatchTally

MODELS_SHOWN = 20  # Rows of the report by model


def describe(report: LoadReport) -> str:
    """The report for people."""

    def times(title: str, summary: dict[str, float]) -> list[str]:
        if not summary:
            return []
        return [
            f"  {title:<22}" + "  ".join(f"{name} {value:.2f}" for name, value in summary.items()) + "  ms"
        ]

    def share(count: int) -> str:
        return f"{count} ({100 * count / max(1, report.offered):.2f} %)"

    def listed(title: str, counts: dict[str, int]) -> list[str]:
        inside = ", ".join(f"{visible(name)} {count}" for name, count in sorted(counts.items()))
        return [f"  {title:<22}{share(sum(counts.values()))}" + (f": {inside}" if inside else "")]

    lines = [
        f"  {'offered':<22}{report.offered} in {report.seconds:.2f} s = {report.offered_rate:.1f}/s",
        f"  {'goodput within SLO':<22}{report.goodput:.1f}/s, {share(report.within_slo)}",
        f"  {'answered':<22}{share(report.answered)}",
        *listed("refused", report.refusals),
        f"  {'missed':<22}{share(report.missed)}",
        *(listed("errors", report.errors) if report.errors else []),
        *([f"  {'timed out':<22}{share(report.timeouts)}"] if report.timeouts else []),
        *times("latency", report.latency_ms),
        *times("refused after", report.refusal_ms),
        *times("generator's own lag", report.lag_ms),
        (
            f"  {'input':<22}{report.input_bytes / max(1, report.offered):.0f} bytes a request,"
            f" {report.input_bytes / 1e6 / report.seconds:.1f} MB/s"
        ),
    ]
    if report.interrupted:
        lines.insert(0, "  interrupted: of what had been sent by then")
    if len(report.models) > 1:
        lines += ["", *_by_model(report.models)]
    return "\n".join(lines)


def _by_model(models: Sequence[dict[str, Any]]) -> list[str]:
    """Rows of those that were asked most; how many more there are."""
    shown = sorted(models, key=lambda row: -row["offered"])[:MODELS_SHOWN]
    width = max(len("model"), *(len(row["model"]) for row in shown))
    titles = ("offered", "good", "late", "refused", "missed", "timeout", "failed", "p50 ms", "p99 ms")
    lines = [f"  {'model':<{width}}" + "".join(f"  {title:>8}" for title in titles)]
    for row in shown:
        counts = [row["offered"], *(row[outcome.name.lower()] for outcome in Outcome)]
        times = ["-" if row[name] is None else f"{row[name]:.2f}" for name in ("p50_ms", "p99_ms")]
        lines.append(f"  {row['model']:<{width}}" + "".join(f"  {cell!s:>8}" for cell in (*counts, *times)))
    if len(models) > len(shown):
        lines.append(f"  and {len(models) - len(shown)} more (--json has them)")
    return lines


@contextlib.contextmanager
def watching() -> Iterator[WatchTally]:
    """Live progress on a terminal, a line a second elsewhere; on stderr either way."""
    from rich.progress import BarColumn, Progress

    from clockwork.cli.terminal import Terminal, description

    console = Terminal(stderr=True)
    if not console.is_terminal:
        next_ns = now_ns() + SECOND

        def say(part: float, tally: LoadTally) -> None:
            nonlocal next_ns
            if now_ns() >= next_ns:
                next_ns = now_ns() + SECOND
                print_line(f"{100 * part:3.0f} %  {tally.line()}", err=True)

        yield say
        return
    with Progress(BarColumn(), description(), console=console, transient=True) as progress:
        task = progress.add_task("", total=1.0)
        yield lambda part, tally: progress.update(task, completed=part, description=tally.line())
