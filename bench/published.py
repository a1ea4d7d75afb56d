"""The measurements in the documents, made from the files in docs/results.

    python -m bench.published            # write the tables anew, between their marks
    python -m bench.published --check    # name what differs
    python -m bench.published --measure [NAME...]    # measure anew, as `make results` does

Each file holds the measurements of one command, with the commit, the seed, the machine, the command and its
duration; a plot stands beside it under the same name. A document has a table between `<!-- results: NAME -->`
and `<!-- end of results -->`, where NAME is that of a table below.
"""

from __future__ import annotations

import argparse
import json
import re
import shlex
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from bench import report
from bench.grid import markdown as policies
from bench.many import show as many
from bench.million import tables as million
from bench.paper import tables as figures
from bench.peers import show

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "docs" / "results"
DOCUMENTS = ("README.md", "docs/**/*.md", "bench/*/README.md")
MARKED = re.compile(r"(<!-- results: ([\w-]+) -->\n)(.*?)(<!-- end of results -->)", re.DOTALL)

Lines = list[str]


def save(
    name: str,
    found: dict[str, Any],
    seed: int,
    draw: Callable[[dict[str, Any], Path], None] | None = None,
    begun_s: float = report.BEGUN_S,
) -> Path:
    """Store this process's measurements as docs/results/NAME.json, draw the plot, and rewrite the tables."""
    path = RESULTS / f"{name}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    took_s = round(time.monotonic() - begun_s)
    body = {"command": command(), "took_s": took_s, **report.conditions(seed), **found}
    path.write_text(json.dumps(body, indent=1, default=plain, ensure_ascii=False) + "\n", encoding="utf-8")
    if draw is not None:
        draw(body, path.with_suffix(".png"))
    write()
    return path


def plain(value: Any) -> Any:
    """Numpy's numbers and arrays as Python's."""
    return value.tolist()


PLACES = ("--out", "--kept", "--cache", "--plot")
"""Options that say where files of a measurement lie, which is of no interest on another machine."""


def command() -> str:
    """The command line that starts this process, without the places of its files."""
    spec = sys.modules["__main__"].__spec__
    module = spec.name.removesuffix(".__main__") if spec is not None else Path(sys.argv[0]).stem
    arguments = list[str]()
    given = iter(sys.argv[1:])
    for argument in given:
        if argument in PLACES:
            next(given, None)
        elif not argument.startswith(tuple(f"{option}=" for option in PLACES)):
            arguments.append(argument)
    return shlex.join(["python", "-m", module, *arguments])


def load(name: str, root: Path = ROOT) -> dict[str, Any]:
    """The content of a results file."""
    found: dict[str, Any] = json.loads(
        (root / "docs" / "results" / f"{name}.json").read_text(encoding="utf-8")
    )
    return found


def source_line(found: dict[str, Any]) -> str:
    """The conditions of a measurement, in one line."""
    took = f"{found['took_s'] / 60:.0f} min" if found["took_s"] >= 90 else f"{found['took_s']} s"
    return (
        f"Commit {found['commit']}, seed {found['seed']}, {found['machine']}, load average {found['load_average']:g}:"
        f" `{found['command']}` ({took})."
    )


def documents(root: Path = ROOT) -> list[Path]:
    """Documents that may hold tables."""
    return [path for pattern in DOCUMENTS for path in sorted(root.glob(pattern))]


def stale(root: Path = ROOT) -> dict[Path, str]:
    """Documents whose tables differ from those that the files give, with their new text."""
    found = {}
    for path in documents(root):
        text = path.read_text(encoding="utf-8")
        made = MARKED.sub(lambda match: match[1] + table(match[2], match[3], root) + match[4], text)
        if made != text:
            found[path] = made
    return found


def write(root: Path = ROOT) -> list[Path]:
    """Rewrite the tables of these documents. Returns those that changed."""
    found = stale(root)
    for path, text in found.items():
        path.write_text(text, encoding="utf-8")
    return list(found)


def table(name: str, before: str, root: Path = ROOT) -> str:
    """The text between the marks of this name: from the results file, or as before without one."""
    if name not in TABLES:
        raise SystemExit(f"there is no table {name}: known are {', '.join(TABLES)}")
    file, render = TABLES[name]
    if not (root / "docs" / "results" / f"{file}.json").exists():
        return before or f"Not measured yet: `{COMMANDS[file]}`.\n"
    found = load(file, root)
    return "\n".join([*render(found), "", source_line(found), ""])


def _peers(transport: str, models: int) -> Callable[[dict[str, Any]], Lines]:
    return lambda found: [*show.markdown(show.of(found["rows"], transport, models)), "", show.quiet(found)]


def _many(share: float, pattern: str, is_first: bool = False) -> Callable[[dict[str, Any]], Lines]:
    """is_first: with a sentence about models and machine."""
    return lambda found: [
        *many.markdown(many.of(found["rows"], share, pattern)),
        *(("", many.facts(found)) if is_first else ()),
    ]


def _overload(found: dict[str, Any]) -> Lines:
    return [
        "| load | policy | within the SLO, of capacity | of the offered | refused | refusals' p99 | missed | p99 | idle with work |",
        "|---|---|---|---|---|---|---|---|---|",
        *(
            f"| {row['load']:g} | `{row['policy']}` | {row['of_capacity_%'] / 100:.2f} | {row['of_offered_%']:.1f} % |"
            f" {row['refused_%']:.1f} % | {row['refused_p99_ms']:.1f} ms | {row['missed_%']:.2f} % |"
            f" {row['p99_ms']:.1f} ms | {row['idle_with_work_%']:.2f} % |"
            for row in found["rows"]
        ),
    ]


def _fidelity(found: dict[str, Any]) -> Lines:
    lines = [
        "| load | requests | within the SLO, live | simulated | replayed | p99, live | simulated | replayed |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for row in found["rows"]:
        hows = [row[how] for how in ("live", "measured", "replayed")]
        cells = [
            *(f"{how['good_%']:.1f} %" for how in hows),
            *(f"{how['p99_ms']:.1f} ms" for how in hows),
        ]
        lines.append(f"| {row['load']:g} | {row['live']['requests']:,} | {' | '.join(cells)} |")
    return lines


def _roundtrip(found: dict[str, Any]) -> Lines:
    return [
        "| path | calls | p50 | p99 |",
        "|---|---|---|---|",
        *(
            f"| {row['path']} | {row['calls']:,} | {row['p50_us']:.0f} us | {row['p99_us']:.0f} us |"
            for row in found["rows"]
        ),
        "",
        f"Ratio of the medians, block by block: {found['p50 ratio, median of blocks']:.2f}.",
    ]


def _shared_memory(found: dict[str, Any]) -> Lines:
    def ms(row: dict[str, Any], name: str) -> str:
        return f"{row[name]:.1f} ms" if row.get(name, 0) >= 0.05 else "-"

    names = ("client_cpu_ms", "gateway_cpu_ms", "controller_cpu_ms", "worker_cpu_ms")
    return [
        "| tensor | model | way | requests | p50 | p99 | client | gateway | controller | worker |",
        "|---|---|---|---|---|---|---|---|---|---|",
        *(
            f"| {row['tensor']} | `{row['model']}` | {row['way']} | {row['requests']:,} | {row['p50_ms']:.1f} ms |"
            f" {row['p99_ms']:.1f} ms | {' | '.join(ms(row, name) for name in names)} |"
            for row in found["rows"]
        ),
    ]


def _grid(resident: bool) -> Callable[[dict[str, Any]], Lines]:
    return lambda found: [
        *policies.table(found["rows"], resident),
        "",
        policies.extent(found["plan"]),
        *policies.bounds_line(found),
    ]


def _drawn(found: dict[str, Any]) -> Lines:
    return [*policies.drawn_table(found["rows"]), "", policies.extent(found["plan"])]


def _disturbance(found: dict[str, Any]) -> Lines:
    facts = found["facts"]
    loads = {row["meanwhile"]: row["LOADs"] for row in found["rows"]}
    return [
        "| meanwhile | requests | p50 | p99 | times the undisturbed | median of rounds | goal |",
        "|---|---|---|---|---|---|---|",
        *(
            f"| {row['meanwhile']} | {row['requests']:,} | {row['p50_ms']:.1f} ms | {row['p99_ms']:.1f} ms |"
            f" {row['p99_ratio']:.2f} | {row['median of rounds']:.2f} |"
            f" {'-' if row['goal'] is None else format(row['goal'], 'g')} |"
            for row in found["rows"]
        ),
        "",
        (
            f"{facts['rate, a second']:.0f} requests/s, rounds: {facts['rounds of seconds']} s. Loaded:"
            f" {loads['loading']:,}; registered: {facts['registered']:,}; copied to the shadow, and compared:"
            f" {facts['copied to the shadow, and compared']}."
        ),
    ]


def _dashboard_cost(found: dict[str, Any]) -> Lines:
    facts = found["facts"]
    return [
        "| requests come | who looks | requests/s | without | cost | 95 % interval | nobody against nobody | segments |",
        "|---|---|---|---|---|---|---|---|",
        *(
            f"| {row['case']} | {row['who']} | {row['requests/s']:,.0f} | {row['us/request']:.1f} us | {row['cost_%']:.2f} % |"
            f" {row['from_%']:.2f} to {row['to_%']:.2f} % | {row['control from_%']:.2f} to {row['control to_%']:.2f} % |"
            f" {3 * row['threes']} |"
            for row in found["rows"]
        ),
        "",
        (
            f"Devices, models, requests/s asked for: {facts['devices, models, requests/s asked for']}. A segment is so many seconds:"
            f" {facts['segments, s']}. The controller is {facts['controller']}."
        ),
    ]


def _recovery(found: dict[str, Any]) -> Lines:
    return [
        "| disturbance | policy | steady | kept in the first 2 s | in the 2 s after | worst of those | quiet |",
        "|---|---|---|---|---|---|---|",
        *(
            f"| `{row['kind']}` | `{row['policy']}` | {row['steady/s']:,.0f}/s | {row['kept in 2 s']:.2f} |"
            f" {row['in the 2 s after']:.2f} | {row['worst']:.2f} | {row['quiet']:.2f} |"
            for row in found["rows"]
        ),
    ]


def _spike(found: dict[str, Any]) -> Lines:
    policies = list(dict.fromkeys(row["policy"] for row in found["rows"]))
    lines = [
        "| | " + " | ".join(f"`{name}`: spike, least and mean | lost after" for name in policies) + " |",
        "|---" * (1 + 2 * len(policies)) + "|",
    ]
    for shape in dict.fromkeys(row["shape"] for row in found["rows"]):
        rows = {row["policy"]: row for row in found["rows"] if row["shape"] == shape}
        cells = [
            cell
            for row in (rows[name] for name in policies)
            for cell in (
                f"{row['spike least']:.2f}, {row['mean']:.2f}",
                f"{row['lost']:,} of {row['offered']:,}",
            )
        ]
        lines.append(f"| `{shape}` | {' | '.join(cells)} |")
    return lines


SIMULATED = [name for name in figures.TABLES if name != "fig2"]
"""Figures of the paper whose live form is not published."""

GRID_LEFT_OUT = (
    "d24-m4000-pressed-zoo", "d24-m4000-cold-high", "d100-m4000-pressed-high", "d100-m4000-pressed-zoo-cv4"
)  # fmt: skip
"""Cells that would take about as long as all others together."""

COMMANDS = {
    "peers": "python -m bench.peers --publish",
    "many": "python -m bench.many --publish",
    "overload": "python -m bench.overload --policies edf,adaptive --publish",
    "fidelity": "python -m bench.fidelity --publish --seconds 20",
    "fidelity-http": "python -m bench.fidelity --over http --publish --seconds 20",
    "disturbance": "python -m bench.disturbance --publish --rounds 6 --seconds 5",
    "recovery": "python -m bench.recovery --publish",
    "spike": "python -m bench.spike --seeds 10 --publish",
    "spike-live": "python -m bench.spike --live --rounds 5 --publish",
    "million": "python -m bench.million --publish",
    "million-live": "python -m bench.million --live --publish",
    "dashboard-cost": "python -m bench.dashboard_cost --publish --triples 40 --nice -10",
    "roundtrip": "python -m bench.roundtrip --publish",
    "shared-memory": "python -m bench.shared_memory --publish",
    "grid": "python -m bench.grid run --seed 1001 --seeds 3 --requests 20000 --processes 1"
    f" {' '.join(f'--without {cell}' for cell in GRID_LEFT_OUT)} --publish",
    "grid-drawn": "python -m bench.grid run --drawn 30 --draw 1001 --seed 1001 --seeds 3 --requests 5000"
    " --processes 1 --no-bounds --publish",
    **dict.fromkeys(SIMULATED, f"python -m bench.paper {' '.join(SIMULATED)} --no-live --publish"),
    "fig2": "python -m bench.paper fig2 --publish",
    "fig9-full": "python -m bench.paper fig9 --full --mapping shuffled --devices 56 --policies adaptive --publish",
}
"""By file: the command that makes it."""

TABLES: dict[str, tuple[str, Callable[[dict[str, Any]], Sequence[str]]]] = {
    "peers-http": ("peers", _peers("http", 1)),
    "peers-grpc": ("peers", _peers("grpc", 1)),
    "peers-many": ("peers", _peers("http", 30)),
    "peers-details": ("peers", lambda found: show.details(found["rows"])),
    "many": ("many", _many(0.05, "zipf", is_first=True)),
    "many-bursts": ("many", _many(0.05, "bursts")),
    "many-fifth": ("many", _many(0.2, "zipf")),
    "many-fifth-bursts": ("many", _many(0.2, "bursts")),
    "many-details": ("many", lambda found: many.details(found["rows"])),
    "overload": ("overload", _overload),
    "fidelity": ("fidelity", _fidelity),
    "fidelity-http": ("fidelity-http", _fidelity),
    "disturbance": ("disturbance", _disturbance),
    "recovery": ("recovery", _recovery),
    "spike": ("spike", _spike),
    "spike-live": ("spike-live", _spike),
    "dashboard-cost": ("dashboard-cost", _dashboard_cost),
    "million": ("million", million.simulated),
    "million-live": ("million-live", million.live),
    "roundtrip": ("roundtrip", _roundtrip),
    "shared-memory": ("shared-memory", _shared_memory),
    "grid-resident": ("grid", _grid(resident=True)),
    "grid-pressed": ("grid", _grid(resident=False)),
    "grid-drawn": ("grid-drawn", _drawn),
    **{name: (name, render) for name, render in figures.TABLES.items()},
    "fig9-full": ("fig9-full", figures.TABLES["fig9"]),
}
"""By the name in the marks: the file, and the function that makes a table's lines of it."""


def measure(names: Sequence[str], run: Callable[[list[str]], int]) -> None:
    """Run the commands that make these files (default: all), each once, and print their last duration."""
    unknown = [name for name in names if name not in COMMANDS]
    if unknown:
        raise SystemExit(f"there is no {', '.join(unknown)}: known are {', '.join(COMMANDS)}")
    for command_line in dict.fromkeys(COMMANDS[name] for name in names or COMMANDS):
        made = [name for name in COMMANDS if COMMANDS[name] == command_line]
        known = [load(name)["took_s"] for name in made if (RESULTS / f"{name}.json").exists()]
        took = f"took {sum(known)} s the last time" if known else "was not measured before"
        print(f"{', '.join(made)}: {command_line} ({took})", flush=True)
        if status := run([sys.executable, *shlex.split(command_line)[1:]]):
            raise SystemExit(status)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--check", action="store_true", help="write nothing; status 1 where a table differs")
    parser.add_argument(
        "--measure",
        nargs="*",
        metavar="NAME",
        help="run the commands that make these files (by default all), on a quiet machine",
    )
    asked = parser.parse_args()
    if asked.measure is not None:
        measure(asked.measure, lambda command_line: subprocess.call(command_line, cwd=ROOT))
    for document in stale() if asked.check else write():
        print(f"{document.relative_to(ROOT)}: {'not what docs/results gives' if asked.check else 'written'}")
    if asked.check and stale():
        raise SystemExit(1)


if __name__ == "__main__":
    main()
