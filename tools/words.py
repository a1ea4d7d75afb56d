"""Hold comments, docstrings and names to the rules of CONTRIBUTING.md ("Words").

    python tools/words.py [PATH...]      # by default, every room that is listed in KEPT

Refused are

- a docstring or comment that begins with What, Who, Of or That: its subject is to be a noun;
- the identifier `one`: a name says what the thing is;
- a comment or docstring with a line of more than 110 columns, unless that is a single word (a URL).
"""

from __future__ import annotations

import io
import re
import subprocess
import sys
import tokenize
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]

COLUMNS_MAX = 110

KEPT = (
    "bench",
    "clockwork/cli",
    "clockwork/client",
    "clockwork/config",
    "clockwork/controller",
    "clockwork/device",
    "clockwork/errors.py",
    "clockwork/formats",
    "clockwork/gateway",
    "clockwork/launch",
    "clockwork/models",
    "clockwork/observe",
    "clockwork/profiles.py",
    "clockwork/protocol",
    "clockwork/repository",
    "clockwork/scheduler",
    "clockwork/sim",
    "clockwork/sources",
    "clockwork/system",
    "clockwork/web",
    "clockwork/wire",
    "clockwork/worker",
    "clockwork/workloads",
    "csrc/controller",
    "csrc/device",
    "csrc/duration.h",
    "csrc/id_table.h",
    "csrc/jpeg.h",
    "csrc/msgpack.h",
    "csrc/random.h",
    "csrc/recording",
    "csrc/scheduler",
    "csrc/sim",
    "csrc/string_work.h",
    "csrc/wire",
    "csrc/worker",
    "csrc/zmq_api.h",
    "examples",
    "setup.py",
    "tools",
    "tools/words.py",
)
"""Folders and files that are held to the rules."""

SUFFIXES = frozenset({".py", ".pyi", ".pyx", ".pxd", ".h", ".cpp", ".c"})
NATIVE = frozenset({".h", ".cpp", ".c"})
MADE = ("_pb2.py",)
"""Endings of the names of files that protoc makes."""

PRAGMA = re.compile(r"#\s*(type|fmt|noqa|mypy)\b")
OPENING = re.compile(r"(What|Who|Of|That)\b(?!')")
NAME = re.compile(r"(?<![\w.\"'])one(?![\w\"'])")
STRING = re.compile(r'"(?:[^"\\\n]|\\.)*"|\'(?:[^\'\\\n]|\\.)*\'')
BLOCK = re.compile(rf"{STRING.pattern}|//[^\n]*|/\*(?P<comment>.*?)\*/", re.DOTALL)
DOCSTRING = re.compile(r'^[ \t]*[rR]?"""(.*?)"""', re.MULTILINE | re.DOTALL)

Finding = tuple[int, str]


def sources(paths: list[str]) -> list[Path]:
    """The tracked sources below these paths."""
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--", *paths], cwd=ROOT, capture_output=True, text=True, check=True
    )
    found = (ROOT / name for name in listed.stdout.split("\0") if name)
    return [
        path for path in found if path.suffix in SUFFIXES and not path.name.endswith(MADE) and path.is_file()
    ]


def check(path: Path) -> Iterator[Finding]:
    """Every line of a file that breaks a rule, and how."""
    text = path.read_text(encoding="utf-8")
    if path.suffix in NATIVE:
        for found in BLOCK.finditer(text):
            if found["comment"] is not None:
                yield from words(text.count("\n", 0, found.start()) + 1, found[0], found["comment"])
        yield from check_lines(BLOCK.sub(without_comment, text), "//")
    elif path.suffix in (".py", ".pyi"):
        yield from check_python(text)
    else:
        for found in DOCSTRING.finditer(text):
            yield from words(text.count("\n", 0, found.start()) + 1, found[0], found[1])
        yield from check_lines(DOCSTRING.sub(lambda found: "\n" * found[0].count("\n"), text), "#")


def without_comment(found: re.Match[str]) -> str:
    """A match of BLOCK: a comment becomes its line breaks, all else stays."""
    return found[0] if found["comment"] is None else "\n" * found[0].count("\n")


def check_lines(text: str, mark: str) -> Iterator[Finding]:
    """Check comments and names of a language whose comments go from `mark` to the end of a line."""
    was_comment = False
    for number, line in enumerate(text.splitlines(), 1):
        code, found, comment = STRING.sub(lambda string: '"' * len(string[0]), line).partition(mark)
        is_alone = not code.strip()
        if found:
            yield from columns(number, line)
            if not (was_comment and is_alone):
                yield from opening(number, comment)
        was_comment = bool(found) and is_alone
        if NAME.search(code):
            yield number, "`one` is no name"


def check_python(text: str) -> Iterator[Finding]:
    last_comment = 0  # the line of the last comment that had a line of its own
    is_fresh = True  # whether a statement may begin here
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        number = token.start[0]
        if token.type == tokenize.COMMENT:
            is_alone = not token.line[: token.start[1]].strip()
            if not PRAGMA.match(token.string):
                yield from columns(number, token.line)
            if last_comment != number - 1 or not is_alone:
                yield from opening(number, token.string[1:])
            last_comment = number if is_alone else 0
        elif token.type == tokenize.STRING and is_fresh and '"""' in token.string:
            docstring = token.string.lstrip("rR").removeprefix('"""')
            yield from words(number, " " * token.start[1] + token.string, docstring)
        elif token.type == tokenize.NAME and token.string == "one":
            yield number, "`one` is no name"
        if token.type not in (tokenize.COMMENT, tokenize.NL):
            is_fresh = token.type in (tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT)


def words(number: int, source: str, text: str) -> Iterator[Finding]:
    """Check a docstring or a comment of several lines. `number` is the line at which its source begins."""
    yield from opening(number, text.lstrip("*"))
    for offset, line in enumerate(source.splitlines()):
        yield from columns(number + offset, line)


def columns(number: int, line: str) -> Iterator[Finding]:
    length = len(line.rstrip("\n"))
    if length > COLUMNS_MAX and len(line.lstrip(" #/").split()) > 1:
        yield number, f"{length} columns, more than {COLUMNS_MAX}"


def opening(number: int, words: str) -> Iterator[Finding]:
    if found := OPENING.match(words.lstrip()):
        yield number, f"begins with {found[1]}: give it a noun as its subject"


def main(arguments: list[str]) -> int:
    """Print every finding; the exit status is 1 where there is any."""
    count = 0
    for path in sources(arguments or list(KEPT)):
        for number, finding in sorted(check(path)):
            print(f"{path.relative_to(ROOT)}:{number}: {finding}")
            count += 1
    return 1 if count else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
