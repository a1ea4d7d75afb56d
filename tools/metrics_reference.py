"""Writes the table of docs/metrics.md from the declarations in clockwork/gateway/metrics.py.

    python tools/metrics_reference.py [--check]

--check: exit with status 1 if the table is outdated, and change nothing.
"""

from __future__ import annotations

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from clockwork.gateway.metrics import reference  # noqa: E402

DOCUMENT = ROOT / "docs" / "metrics.md"
BEGIN = "<!-- reference: written by tools/metrics_reference.py -->\n"
END = "<!-- end of reference -->\n"


def updated(text: str) -> str:
    """Return the document with a current table."""
    before, _, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not end:
        sys.exit(f"{DOCUMENT} does not hold {BEGIN.strip()} and {END.strip()}")
    return f"{before}{BEGIN}{reference()}{END}{after}"


def main() -> None:
    text = DOCUMENT.read_text(encoding="utf-8")
    if "--check" in sys.argv[1:]:
        if updated(text) != text:
            sys.exit(f"{DOCUMENT} is not current: run python tools/metrics_reference.py")
    else:
        DOCUMENT.write_text(updated(text), encoding="utf-8")


if __name__ == "__main__":
    main()
