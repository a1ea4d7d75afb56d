"""Every measured table of a document equals the files in docs/results."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from bench import published
from bench.peers import show

ROOT = Path(__file__).parents[2]


def row(title: str, load: float, of_capacity: float, **more: Any) -> dict[str, Any]:
    return {
        "title": title, "transport": "http", "models": 1, "load": load, "of_capacity": of_capacity, "p50_ms": 20.0,
        "p99_ms": 61.4, "gone_busy_s": 3.84, "other_cores": 0.04, **more,
    }  # fmt: skip


def test_every_table_is_what_its_file_gives() -> None:
    found = [path.relative_to(ROOT) for path in published.stale()]
    assert not found, f"run `python -m bench.published`, which writes anew the tables of {found}"


def test_every_table_and_plot_is_in_a_document() -> None:
    texts = {path: path.read_text(encoding="utf-8") for path in published.documents()}
    marked = [match[2] for text in texts.values() for match in published.MARKED.finditer(text)]
    assert set(marked) == published.TABLES.keys()
    assert sum(text.count("<!-- results: ") for text in texts.values()) == len(marked), "a table has no end"
    shown = {
        (path.parent / place).resolve()
        for path, text in texts.items()
        for place in re.findall(r"\]\(([^)]*results/[^)]*\.png)\)", text)
    }
    there = set(published.RESULTS.glob("*.png"))
    assert there <= shown, "no document shows it"
    missing = {path.stem for path in shown - there}
    assert all(not (published.RESULTS / f"{name}.json").exists() for name in missing), "a plot was not kept"


def test_a_command_is_kept_without_the_places_of_its_files(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        "sys.argv",
        ["bench", "--live", "--out", "/tmp/a b", "--rounds", "5", "--kept=/k", "--cache", "c", "--out"],
    )
    assert published.command().endswith(" --live --rounds 5")


def test_a_file_says_how_it_came_to_be() -> None:
    files = sorted(published.RESULTS.glob("*.json"))
    assert files
    for path in files:
        found = json.loads(path.read_text(encoding="utf-8"))
        for name, kind in {
            "command": str, "commit": str, "seed": int, "machine": str, "took_s": int, "load_average": float
        }.items():  # fmt: skip
            assert isinstance(found[name], kind), f"{path.name}: {name}"
        for commit in found["commit"].split(", "):
            assert re.fullmatch(r"[0-9a-f]{7,40}\+?|v?\d[\w.-]*\+?", commit), path
        assert not re.search(r"[\s=]/", found["command"]), f"{path.name}: a path of one machine"
        # Options may differ; the benchmarks that run may not.
        assert found["command"].split()[:3] == published.COMMANDS[path.stem].split()[:3]


def test_what_is_measured_anew_runs_each_command_once(capsys: pytest.CaptureFixture[str]) -> None:
    ran: list[list[str]] = []

    def run(command_line: list[str]) -> int:
        ran.append(command_line)
        return 0

    published.measure([], run)
    assert len(ran) == len(set(published.COMMANDS.values()))
    assert all(line[1] == "-m" for line in ran)
    said = capsys.readouterr().out
    assert "fig5, fig6, fig7, fig8, fig9, fig11: python -m bench.paper fig5" in said
    assert re.search(r"took \d+ s the last time", said)
    ran.clear()
    with pytest.raises(SystemExit, match="there is no nonsense"):
        published.measure(["nonsense"], run)
    with pytest.raises(SystemExit, match="3"):
        published.measure(["peers", "overload"], lambda command_line: ran.append(command_line) or 3)  # type: ignore[func-returns-value]
    assert len(ran) == 1, "what comes after a failure is not run"


def test_a_changed_number_is_found_and_put_right(tmp_path: Path) -> None:
    (tmp_path / "docs" / "results").mkdir(parents=True)
    found = {
        "rows": [row("Clockwork", 0.6, 0.601), row("Clockwork", 1.5, 0.987), row("Other", 0.6, 0.02, p99_ms=None)],
        "command": "python -m bench.peers --publish", "took_s": 840, "commit": "abc1234", "seed": 8,
        "machine": "a machine", "load_average": 0.25, "capacity/s": [248.2, 251.4],
    }  # fmt: skip
    (tmp_path / "docs" / "results" / "peers.json").write_text(json.dumps(found))
    readme = tmp_path / "README.md"
    before, after = "Before.\n\n<!-- results: peers-http -->\n", "<!-- end of results -->\n\nAfter.\n"
    readme.write_text(f"{before}old\n{after}")
    [(path, text)] = published.stale(tmp_path).items()
    assert path == readme
    assert text == (
        f"{before}"
        "| offered, of capacity | 0.6 | 1.5 | busy after all clients left its highest load |\n"
        "|---|---|---|---|\n"
        "| Clockwork | 0.60, 61 ms | 0.99, 61 ms | 3.8 s |\n"
        "| Other | 0.02 | - | 3.8 s |\n"
        "\n"
        "Plain ONNX Runtime: 248 to 251 requests/s. Other work on the machine: at most 0.04 cores in any cell.\n"
        "\n"
        "Commit abc1234, seed 8, a machine, load average 0.25: `python -m bench.peers --publish` (14 min).\n"
        f"{after}"
    )
    readme.write_text(text)
    assert published.stale(tmp_path) == {}
    readme.write_text(text.replace("0.99", "1.99"))
    assert published.stale(tmp_path) == {readme: text}


def test_a_table_without_a_file_names_the_command(tmp_path: Path) -> None:
    assert (
        published.table("peers-http", "", tmp_path)
        == "Not measured yet: `python -m bench.peers --publish`.\n"
    )
    assert published.table("peers-http", "as it was\n", tmp_path) == "as it was\n"


def test_an_unknown_table_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match="there is no table nonsense"):
        published.table("nonsense", "", tmp_path)


def test_the_plot_of_peers_has_every_cell(tmp_path: Path) -> None:
    rows = [
        row("Clockwork", 0.6, 0.6),
        row("Clockwork", 0.6, 0.6, transport="grpc"),
        row("Other", 1.2, 0.1, p99_ms=None),
    ]
    show.draw({"rows": rows, "slo_ms": 100.0}, tmp_path / "peers.png")
    assert (tmp_path / "peers.png").stat().st_size > 5000
