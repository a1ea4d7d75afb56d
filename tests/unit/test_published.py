"""Every table of a document that was measured is what the files in docs/results give."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from bench import published
from bench.peers import show

ROOT = Path(__file__).parents[2]
FILES = sorted(published.RESULTS.glob("*.json"))


def row(title: str, load: float, of_capacity: float, **more: Any) -> dict[str, Any]:
    return {
        "title": title, "transport": "http", "models": 1, "load": load, "of_capacity": of_capacity, "p50_ms": 20.0,
        "p99_ms": 61.4, "gone_busy_s": 3.84, **more,
    }  # fmt: skip


def test_every_table_is_what_its_file_gives() -> None:
    found = [path.relative_to(ROOT) for path in published.stale()]
    assert not found, f"run `python -m bench.published`, which writes anew the tables of {found}"


def test_every_table_and_plot_is_in_a_document() -> None:
    texts = "\n".join(path.read_text(encoding="utf-8") for path in published.documents())
    marked = {match[2] for match in published.MARKED.finditer(texts)}
    assert marked == published.TABLES.keys()
    assert texts.count("<!-- results: ") == texts.count("<!-- end of results -->")


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_a_file_says_how_it_came_to_be(path: Path) -> None:
    found = json.loads(path.read_text(encoding="utf-8"))
    for name, kind in {
        "command": str, "commit": str, "seed": int, "machine": str, "took_s": int, "load_average": float
    }.items():  # fmt: skip
        assert isinstance(found[name], kind), name
    assert found["command"].startswith("python -m bench.")
    assert re.fullmatch(r"[0-9a-f]{7,40}\+?|v?\d[\w.-]*\+?", found["commit"])
    assert path.stem in published.COMMANDS
    assert path.with_suffix(".png").exists() == (path.stem in published.PLOTS)


def test_a_changed_number_is_found_and_put_right(tmp_path: Path) -> None:
    (tmp_path / "docs" / "results").mkdir(parents=True)
    found = {
        "rows": [row("Clockwork", 0.6, 0.601), row("Clockwork", 1.5, 0.987), row("Other", 1.5, 0.02, p99_ms=None)],
        "command": "python -m bench.peers --publish", "took_s": 840, "commit": "abc1234", "seed": 8,
        "machine": "a machine", "load_average": 0.25,
    }  # fmt: skip
    (tmp_path / "docs" / "results" / "peers.json").write_text(json.dumps(found))
    readme = tmp_path / "README.md"
    before, after = "Before.\n\n<!-- results: peers-http -->\n", "<!-- end of results -->\n\nAfter.\n"
    readme.write_text(f"{before}old\n{after}")
    [(path, text)] = published.stale(tmp_path).items()
    assert path == readme
    assert text == (
        f"{before}"
        "| offered, of capacity | 0.6 | 1.5 | busy after all clients left |\n"
        "|---|---|---|---|\n"
        "| Clockwork | 0.60, 61 ms | 0.99, 61 ms | 3.8 s |\n"
        "| Other | - | 0.02 | 3.8 s |\n"
        "\n"
        "Commit abc1234, seed 8, a machine, load average 0.25: `python -m bench.peers --publish` (14 min).\n"
        f"{after}"
    )
    readme.write_text(text)
    assert published.stale(tmp_path) == {}
    readme.write_text(text.replace("0.99", "1.99"))
    assert published.stale(tmp_path) == {readme: text}


def test_a_table_without_a_file_names_the_command(tmp_path: Path) -> None:
    assert published.table("peers-http", tmp_path) == "Not measured yet: `python -m bench.peers --publish`.\n"


def test_an_unknown_table_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match="there is no table nonsense"):
        published.table("nonsense", tmp_path)


def test_the_plot_of_peers_has_every_cell(tmp_path: Path) -> None:
    rows = [
        row("Clockwork", 0.6, 0.6),
        row("Clockwork", 0.6, 0.6, transport="grpc"),
        row("Other", 1.2, 0.1, p99_ms=None),
    ]
    show.draw({"rows": rows, "slo_ms": 100.0}, tmp_path / "peers.png")
    assert (tmp_path / "peers.png").stat().st_size > 5000
