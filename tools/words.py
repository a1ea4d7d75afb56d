"""Hold comments, docstrings, documents and names to the rules of CONTRIBUTING.md ("Words").

    python tools/words.py [PATH...]      # by default, every tracked file

Refused are

- a docstring or comment that begins with What, Who, Of or That: its subject is to be a noun;
- a sentence of a docstring, comment or document (headings and cells of tables included) that begins with
  a question word and is no question, or with "Those that", "One that", "That of" and the like;
- the pronoun that means "any person who": a noun says who that is;
- the identifier `one`, except in tests: a name says what the thing is;
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

FREE_NAMES = ("tests",)
"""Folders in which `one` may be a name: an element of a list of examples often is nothing more definite."""

SUFFIXES = frozenset({".py", ".pyi", ".pyx", ".pxd", ".h", ".cpp", ".c", ".cu", ".md"})
NATIVE = frozenset({".h", ".cpp", ".c", ".cu"})
MADE = ("_pb2.py",)
"""Endings of the names of files that protoc makes."""

PRAGMA = re.compile(r"#\s*(type|fmt|noqa|mypy)\b")
OPENING = re.compile(r"(What|Who|Of|That)\b(?!')")
SENTENCE = re.compile(
    r"(?:^|(?<=[.!?:]\s))(?P<words>What|Who|Whatever|Whoever|(?:Those|One|Ones) (?:that|who|which)|That (?:which|of))\b"
    r"(?!')[^.!?]*(?P<end>[.!?]?)"
)
PRONOUN = re.compile(r"\b[Ww]hoever\b")
NAME = re.compile(r"(?<![\w.\"'])one(?![\w\"'])")
STRING = re.compile(r'"(?:[^"\\\n]|\\.)*"|\'(?:[^\'\\\n]|\\.)*\'')
BLOCK = re.compile(rf"{STRING.pattern}|//[^\n]*|/\*(?P<comment>.*?)\*/", re.DOTALL)
DOCSTRING = re.compile(r'^[ \t]*[rR]?"""(.*?)"""', re.MULTILINE | re.DOTALL)
FENCE = re.compile(r"^\s*```.*?^\s*```\s*$", re.MULTILINE | re.DOTALL)

Finding = tuple[int, str]

NO_NAME = "`one` is no name"


def sources(paths: list[str]) -> list[Path]:
    """The tracked sources and documents below these paths."""
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--", *paths], cwd=ROOT, capture_output=True, text=True, check=True
    )
    found = (ROOT / name for name in listed.stdout.split("\0") if name)
    return [
        path for path in found if path.suffix in SUFFIXES and not path.name.endswith(MADE) and path.is_file()
    ]


def check(path: Path) -> Iterator[Finding]:
    """Every violation in a file: the line and a sentence."""
    text = path.read_text(encoding="utf-8")
    if path.suffix == ".md":
        yield from check_document(text)
    elif path.suffix in NATIVE:
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
    """Return the text for a match of BLOCK: a block comment becomes its line breaks, all else stays."""
    return found[0] if found["comment"] is None else "\n" * found[0].count("\n")


def check_document(text: str) -> Iterator[Finding]:
    """Check the headings, the cells of tables and the paragraphs of a Markdown file."""
    text = FENCE.sub(lambda found: "\n" * found[0].count("\n"), text)
    paragraph: list[str] = []
    for number, line in enumerate([*text.splitlines(), ""], 1):
        bare = re.sub(r"^\s*(?:[-*]|\d+\.)\s+", "", line)
        is_apart = not line.strip() or line.lstrip().startswith(("|", "#", "<")) or line.startswith("    ")
        if is_apart or bare != line:
            yield from sentences(number - len(paragraph), " ".join(paragraph))
            paragraph = []
        if line.startswith(("|", "#")):
            for cell in re.split(r"\s*\|\s*|^#+\s*", line):
                yield from sentences(number, cell)
        elif not is_apart:
            paragraph.append(bare.strip(" *"))


def check_lines(text: str, mark: str) -> Iterator[Finding]:
    """Check comments and names of a language whose comments go from `mark` to the end of a line."""
    comment: list[str] = []
    was_alone = False
    number = 0
    for number, line in enumerate(text.splitlines(), 1):
        code, found, words = STRING.sub(lambda string: '"' * len(string[0]), line).partition(mark)
        is_alone = bool(found) and not code.strip()
        if not (is_alone and was_alone):
            yield from comment_words(number - len(comment), comment)
            comment = []
        if found:
            yield from columns(number, line)
            comment.append(words)
        was_alone = is_alone
        if NAME.search(code):
            yield number, NO_NAME
    yield from comment_words(number + 1 - len(comment), comment)


def check_python(text: str) -> Iterator[Finding]:
    comment: list[str] = []
    last = 0  # line of the last comment with a line of its own
    is_fresh = True  # whether a statement may begin here
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        number = token.start[0]
        if token.type == tokenize.COMMENT:
            is_alone = not token.line[: token.start[1]].strip()
            if not PRAGMA.match(token.string):
                yield from columns(number, token.line)
            if last != number - 1 or not is_alone:
                yield from comment_words(last + 1 - len(comment), comment)
                comment = []
            comment.append(token.string[1:])
            last = number if is_alone else 0
            if not is_alone:
                yield from comment_words(number, comment)
                comment = []
        elif token.type == tokenize.STRING and is_fresh and '"""' in token.string:
            docstring = token.string.lstrip("rR")[3:-3]
            yield from words(number, " " * token.start[1] + token.string, docstring)
        elif token.type == tokenize.NAME and token.string == "one":
            yield number, NO_NAME
        if token.type not in (tokenize.COMMENT, tokenize.NL):
            is_fresh = token.type in (tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT)
    yield from comment_words(last + 1 - len(comment), comment)


def comment_words(number: int, lines: list[str]) -> Iterator[Finding]:
    """Check a comment of consecutive lines, the first of which is line `number`."""
    if lines:
        yield from opening(number, lines[0])
        yield from paragraphs(number, lines)


def words(number: int, source: str, text: str) -> Iterator[Finding]:
    """Check a docstring or a comment of several lines. `number` is the line at which its source begins."""
    yield from opening(number, text.lstrip("*"))
    yield from paragraphs(number, text.splitlines())
    for offset, line in enumerate(source.splitlines()):
        yield from columns(number + offset, line)


def paragraphs(number: int, lines: list[str]) -> Iterator[Finding]:
    """Check the sentences of a text, whose paragraphs are separated by empty lines."""
    paragraph: list[str] = []
    for offset, line in enumerate([*lines, ""]):
        bare = line.strip(" */")
        if bare:
            paragraph.append(bare.removeprefix("- "))
        else:
            yield from sentences(number + offset - len(paragraph), " ".join(paragraph))
            paragraph = []


def sentences(number: int, text: str) -> Iterator[Finding]:
    """Check the sentences of a paragraph, which begins at line `number`."""
    for found in SENTENCE.finditer(text):
        if found["end"] != "?":
            yield number, f"a sentence begins with {found['words']}: give it a noun as its subject"
    if found := PRONOUN.search(text):
        yield number, f"`{found[0]}`: a noun says who that is"


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
    for path in sources(arguments or ["."]):
        has_free_names = path.relative_to(ROOT).parts[0] in FREE_NAMES
        for number, finding in sorted(set(check(path))):
            if has_free_names and finding == NO_NAME:
                continue
            print(f"{path.relative_to(ROOT)}:{number}: {finding}")
            count += 1
    return 1 if count else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
