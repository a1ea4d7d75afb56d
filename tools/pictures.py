"""Draws the pictures of README and docs/watching.md: the dashboard in Chromium over a simulation with a fixed
seed.

    python tools/pictures.py                  # all pictures, into docs/watching/
    python tools/pictures.py devices memory   # these two

The simulation is that of `clockwork demo`, twelve emulated V100s with the paper's models and a load in
bursts, AT_S seconds after its beginning. The content of the pictures follows from the seed, their fonts from
the machine.
"""

from __future__ import annotations

import asyncio
import io
import re
import signal
import subprocess
import sys
import tempfile
from collections.abc import Awaitable, Callable
from pathlib import Path

from PIL import Image

from clockwork.formats.profiles import paper_varieties
from clockwork.observe.palette import MISSED, MODEL_COLORS, OTHER_MODELS
from clockwork.scheduler.recording import decode, encode_header, encode_step
from clockwork.sim.world import Cluster, Open, simulate
from clockwork.workloads.load_generator import LoadSettings, workload_of
from tools.browser import Tab, browser

ROOT = Path(__file__).resolve().parents[1]
FOLDER = ROOT / "docs" / "watching"
SEED = 4
AT_S = 65.6
RATE = 1500.0
KEPT = (
    *MODEL_COLORS,
    OTHER_MODELS.color,
    MISSED.color,
    "#f4f5f7",
    "#ffffff",
    "#0e1115",
    "#161a20",
    "#0068a3",
)
STRIP_PX = 40


def record(path: Path) -> None:
    """Write the recording of the simulation until AT_S."""
    models = sorted(paper_varieties(), key=lambda profile: -profile.exec_ns[1])
    load = LoadSettings(
        models=tuple(profile.name for profile in models), rate=RATE, duration_s=AT_S + 1, slo_s=0.1, zipf=1.1, bursts_s=(3, 9),
        seed=SEED,
    )  # fmt: skip
    cluster = Cluster(devices=12, devices_per_worker=4, page_count=64, exec_noise=0.01, load_noise=0.03)
    whole = path.with_suffix(".whole")
    simulate(models, cluster, [Open(iter(workload_of(load)))], seed=SEED, recording=whole)
    with whole.open("rb") as file, path.open("wb") as cut:
        header, steps = decode(file)
        cut.write(encode_header(header))
        begun_ns = 0
        for step in steps:
            begun_ns = begun_ns or step.events[0].now_ns
            if step.events[0].now_ns - begun_ns > AT_S * 1e9:
                break
            cut.write(encode_step(step.events, step.commands))


async def draw(url: str, dashboard: subprocess.Popen[str], wanted: list[str]) -> None:
    async def ready(tab: Tab) -> None:
        await tab.until("document.body?.dataset.ready && document.querySelectorAll('#rows tr').length > 5")
        await tab.until(
            "[...Bokeh.index].length > 5 && [...Bokeh.index].every((view) => view.has_finished())"
        )
        # Wait for an update of the page's clock, after which nothing moves.
        await tab.run("new Promise((done) => setTimeout(done, 1500))")

    async def desktop(tab: Tab, dark: bool = False) -> None:
        await tab.open(url, 1280, 1106, dark)
        await ready(tab)

    async def follow(tab: Tab) -> None:
        await desktop(tab)
        await tab.run("document.querySelector('[data-outcome=refused]').click()")
        await tab.run("document.querySelector('#rows tr:nth-child(6) button').click()")
        await tab.until("document.querySelectorAll('#sentences p').length > 3")
        await tab.run("document.activeElement.blur()")
        await ready(tab)

    async def section(tab: Tab, place: str, name: str) -> None:
        await desktop(tab)
        await tab.screenshot(raw(name), f"section[aria-labelledby={place}]")

    async def light(tab: Tab) -> None:
        await desktop(tab)
        await tab.screenshot(raw("dashboard"))

    async def dark(tab: Tab) -> None:
        await desktop(tab, dark=True)
        await tab.screenshot(raw("dashboard-dark"))

    async def phone(tab: Tab) -> None:
        await tab.open(url, 390, 844, phone=True)
        await ready(tab)
        await tab.screenshot(raw("phone"))

    async def request(tab: Tab) -> None:
        await follow(tab)
        await tab.screenshot(raw("request"), "section[aria-labelledby=h-requests]")

    async def disconnected(tab: Tab) -> None:
        await desktop(tab)
        dashboard.send_signal(signal.SIGSTOP)
        try:
            await tab.until("document.body.dataset.state === 'disconnected'")
            await tab.size(1280, 420)
            await tab.screenshot(raw("disconnected"))
        finally:
            dashboard.send_signal(signal.SIGCONT)

    pictures: dict[str, Callable[[Tab], Awaitable[None]]] = {
        "dashboard": light,
        "dashboard-dark": dark,
        "phone": phone,
        "devices": lambda tab: section(tab, "h-lanes", "devices"),
        "answers": lambda tab: section(tab, "h-answers", "answers"),
        "predictions": lambda tab: section(tab, "h-predictions", "predictions"),
        "memory": lambda tab: section(tab, "h-memory", "memory"),
        "request": request,
        "disconnected": disconnected,
    }
    unknown = set(wanted) - set(pictures)
    if unknown:
        sys.exit(f"no picture is called {', '.join(sorted(unknown))}; there are {', '.join(pictures)}")
    for name in wanted or pictures:
        async with browser() as tab:
            await pictures[name](tab)
        shrink(raw(name))
        print(f"{raw(name).relative_to(ROOT)}: {raw(name).stat().st_size / 1000:.0f} kB")


def raw(name: str) -> Path:
    return FOLDER / f"{name}.png"


def shrink(path: Path) -> None:
    """Rewrite a PNG with a palette that includes each of the page's own colours, however rare the
    colour is.
    """
    with Image.open(io.BytesIO(path.read_bytes())) as image:
        width, height = image.size
        larger = Image.new("RGB", (width, height + STRIP_PX * len(KEPT)))
        larger.paste(image.convert("RGB"))
        for number, color in enumerate(KEPT):
            larger.paste(color, (0, height + number * STRIP_PX, width, height + (number + 1) * STRIP_PX))
        reduced = larger.quantize(256, Image.Quantize.MEDIANCUT, dither=Image.Dither.NONE)
        reduced.crop((0, 0, width, height)).save(path, optimize=True)


def main(wanted: list[str]) -> None:
    FOLDER.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        recording = Path(folder) / "demo"
        record(recording)
        dashboard = subprocess.Popen(
            [sys.executable, "-m", "clockwork", "dashboard", "--port", "0", "--recording", str(recording), "--from",
             "3600"],
            cwd=ROOT, stdout=subprocess.PIPE, text=True,
        )  # fmt: skip
        try:
            assert dashboard.stdout is not None
            url = next(found[1] for line in dashboard.stdout if (found := re.search(r" is at (\S+)", line)))
            asyncio.run(draw(url, dashboard, wanted))
        finally:
            dashboard.terminate()
            dashboard.wait()


if __name__ == "__main__":
    main(sys.argv[1:])
