"""What the documents say was measured, from the files in docs/results.

    python -m bench.published            # write the tables anew, between their marks
    python -m bench.published --check    # name what differs

Each file holds what one command measured, with the commit, the seed, the machine, the command and how long it took; a
plot stands beside it under the same name. A document has a table between `<!-- results: NAME -->` and
`<!-- end of results -->`, where NAME is that of a table below. `make results` measures anew.
"""

from __future__ import annotations

import argparse
import json
import re
import shlex
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from bench import report
from bench.peers import show

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "docs" / "results"
DOCUMENTS = ("README.md", "docs/*.md", "bench/*/README.md")
MARKED = re.compile(r"(<!-- results: ([\w-]+) -->\n)(.*?)(<!-- end of results -->)", re.DOTALL)

Lines = list[str]


def save(name: str, found: dict[str, Any], seed: int, took_s: float) -> Path:
    """Keep what this process measured as docs/results/NAME.json, draw its plot, and write the tables anew."""
    path = RESULTS / f"{name}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    body = {"command": command(), "took_s": round(took_s), **report.conditions(seed), **found}
    path.write_text(json.dumps(body, indent=1, default=float, ensure_ascii=False) + "\n", encoding="utf-8")
    if name in PLOTS:
        PLOTS[name](body, path.with_suffix(".png"))
    for document, text in stale(ROOT).items():
        document.write_text(text, encoding="utf-8")
    return path


def command() -> str:
    """What to type to run what runs."""
    spec = sys.modules["__main__"].__spec__
    module = spec.name.removesuffix(".__main__") if spec is not None else Path(sys.argv[0]).stem
    return shlex.join(["python", "-m", module, *sys.argv[1:]])


def load(name: str, root: Path = ROOT) -> dict[str, Any]:
    """What a file holds."""
    found: dict[str, Any] = json.loads(
        (root / "docs" / "results" / f"{name}.json").read_text(encoding="utf-8")
    )
    return found


def source_line(found: dict[str, Any]) -> str:
    """Under which conditions it was measured, in one line."""
    minutes = max(1, round(found["took_s"] / 60))
    return (
        f"Commit {found['commit']}, seed {found['seed']}, {found['machine']}, load average {found['load_average']:g}:"
        f" `{found['command']}` ({minutes} min)."
    )


def documents(root: Path = ROOT) -> list[Path]:
    """Documents that may hold tables."""
    return [path for pattern in DOCUMENTS for path in sorted(root.glob(pattern))]


def stale(root: Path = ROOT) -> dict[Path, str]:
    """Documents whose tables are not what the files give, with the text that they should have."""
    found = {}
    for path in documents(root):
        text = path.read_text(encoding="utf-8")
        made = MARKED.sub(lambda match: match[1] + table(match[2], root) + match[4], text)
        if made != text:
            found[path] = made
    return found


def table(name: str, root: Path = ROOT) -> str:
    """What stands between the marks of this name."""
    if name not in TABLES:
        raise SystemExit(f"there is no table {name}: known are {', '.join(TABLES)}")
    file, render = TABLES[name]
    if not (root / "docs" / "results" / f"{file}.json").exists():
        return f"Not measured yet: `{COMMANDS[file]}`.\n"
    found = load(file, root)
    return "\n".join([*render(found), "", source_line(found), ""])


def _peers(transport: str, models: int) -> Callable[[dict[str, Any]], Lines]:
    return lambda found: show.markdown(show.of(found["rows"], transport, models))


COMMANDS = {"peers": "python -m bench.peers --publish"}
"""By file, what makes it."""

TABLES: dict[str, tuple[str, Callable[[dict[str, Any]], Sequence[str]]]] = {
    "peers-http": ("peers", _peers("http", 1)),
    "peers-grpc": ("peers", _peers("grpc", 1)),
    "peers-many": ("peers", _peers("http", 30)),
    "peers-details": ("peers", lambda found: show.details(found["rows"])),
}
"""By the name in the marks: the file, and what makes lines of it."""

PLOTS: dict[str, Callable[[dict[str, Any], Path], None]] = {"peers": show.draw}
"""By file."""


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--check", action="store_true", help="write nothing; status 1 where a table differs")
    asked = parser.parse_args()
    for document, text in stale().items():
        print(f"{document.relative_to(ROOT)} is not what docs/results gives" if asked.check else document)
        if not asked.check:
            document.write_text(text, encoding="utf-8")
    if asked.check and stale():
        raise SystemExit(1)


if __name__ == "__main__":
    main()
