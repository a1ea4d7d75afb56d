"""The grid's cells: models, devices and requests, as a function of rate and seed.

A cell is a line of key=value pairs, so that anyone can add one on the command line:

    devices=8,models=20,slo=3x,gain=20,exec=4ms,arrivals=poisson,zipf=0,fits=1,priorities=1

devices     how many, one to a worker, or as many as share an arena
executors   how many devices share an arena; 1: each has its own
models      how many
slo         2x (times the model's own time for one request) or 100ms; several classes as 2x/5x/15x, drawn per
            request, so that one model has them all
gain        what a batch saves: beta/alpha of exec(b) = alpha b + beta (0.5: little, 20: much), or zoo: the
            curves of the OSDI '20 paper's Table 1, striped over the models
exec        time for one request, unless zoo
arrivals    poisson; cv4: each model a Gamma renewal process with a coefficient of variation of 4; bursts: the
            models sleep, and every now and then one gets BURST_REQUESTS in a row
zipf        exponent of popularity; 0: all alike
fits        the share of all models' pages that all arenas together hold; 1: every arena holds every model
            from the start; v100: 1,376 pages of 16 MiB an arena, the paper's
stored      the share of all models that each worker's disk holds, at least two copies of each in all; the
            others are brought by another worker over a link of STORE_BANDWIDTH; 1: each holds every model
priorities  levels, drawn per request
speeds      1/0.5: the devices' speeds in turn, the fastest 1; 1: all alike

`drawn` makes cells at random, as a check that the grid's own were not chosen in anyone's favour.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import math
import random
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from bench.grid.arrivals import (
    Arrivals,
    TimedArrivals,
    burst_arrivals,
    gamma_arrivals,
    poisson_arrivals,
)
from clockwork.formats.profiles import PAPER_PAGE_BYTES, ModelProfile, paper_varieties
from clockwork.workloads import zipf
from clockwork.workloads.arrivals import Arrivals as Timed

PAGE_BYTES = PAPER_PAGE_BYTES
V100_PAGES = 1376
"""Pages of a V100 with 32 GB in the paper's worker."""

SYNTHETIC_WEIGHTS_BYTES = 102_200_000
SYNTHETIC_LOAD_NS = 8_320_000
"""Load time of ResNet50 v2 in the paper's Table 1."""

BATCHES = (1, 2, 4, 8, 16, 32, 64)
"""Profile points of a synthetic model. They lie on a line, so interpolation is exact."""

EXEC_NOISE = 0.0003
"""Relative sigma of executions: the paper's ResNet50 has its p99.99 within 0.03 % of the median (Fig. 2)."""
LOAD_NOISE = 0.01
STORE_BANDWIDTH = 100_000_000
"""Bytes/s at which a worker is brought a model."""
LINK_NS = 50_000
LINK_JITTER_NS = 10_000

CV = 4.0
BURST_REQUESTS = 20
BURST_GAP_S = 0.002

DECILES = 10

WINDOW_SLOS = 50
"""Shortest window, as a multiple of the longest SLO."""
WINDOW_MIN_S = 1.0


@dataclasses.dataclass(frozen=True)
class Class:
    """Requests that are judged together: they share an SLO and a priority."""

    slo: str
    priority: int  # priority of the requests; 0: the default level


@dataclasses.dataclass(frozen=True)
class Cell:
    """A cell, with the fields of its specification. Derived values are properties."""

    name: str
    devices: int = 1
    models: int = 1
    slo: str = "3x"
    gain: str = "1"
    exec_ns: int = 4_000_000
    arrivals: str = "poisson"
    zipf: float = 0.0
    fits: str = "1"
    priorities: int = 1
    speeds: tuple[float, ...] = (1.0,)
    executors: int = 1
    stored: float = 1.0

    @property
    def arenas(self) -> int:
        """The number of arenas, each with a link for its loads."""
        return math.ceil(self.devices / self.executors)

    @property
    def resident(self) -> bool:
        """Whether every arena holds every model from the start."""
        return self.fits == "1"

    @property
    def cold(self) -> bool:
        """Whether nothing is resident at the start and nothing is warmed up: cold bursts."""
        return self.arrivals == "bursts"

    @property
    def classes(self) -> list[Class]:
        levels = range(1, self.priorities + 1) if self.priorities > 1 else [0]
        return [Class(slo, level) for slo in self.slo.split("/") for level in levels]

    @property
    def page_count(self) -> int:
        """Pages of each arena."""
        if self.fits == "v100":
            return V100_PAGES
        pages = [profile.pages(PAGE_BYTES) for profile in profiles(self)]
        if self.resident:
            return sum(pages)
        # Below a handful of models a device cannot load one while it runs another.
        return max(math.ceil(float(self.fits) * sum(pages) / self.arenas), 4 * max(pages))

    @property
    def store_bytes(self) -> int:
        """Bytes of models that each worker's disk holds; 0: all."""
        if self.stored == 1:
            return 0
        pages = [profile.pages(PAGE_BYTES) for profile in profiles(self)]
        return math.ceil(self.stored * sum(pages)) * PAGE_BYTES

    def shares(self) -> list[float]:
        """Each model's share of the requests, the most popular first."""
        return zipf(self.models, self.zipf)

    def decile(self, model: int) -> int:
        """The model's group by popularity, of ten equal groups, or of as many as models if these are
        fewer.
        """
        return model * DECILES // self.models if self.models >= DECILES else model

    @property
    def groups(self) -> int:
        return min(self.models, DECILES)

    def slos_ns(self) -> list[list[int]]:
        """The SLO in ns, by model and class."""
        return [
            [slo_ns(group.slo, profile.exec_ns[1]) for group in self.classes] for profile in profiles(self)
        ]

    @property
    def slo_max_ns(self) -> int:
        return max(max(row) for row in self.slos_ns())

    def window_s(self, rate: float, requests: int) -> float:
        """The length of a window in seconds: enough requests, and long compared with the longest SLO."""
        return max(requests / rate, WINDOW_SLOS * self.slo_max_ns / 1e9, WINDOW_MIN_S)

    def draw(self, seed: int, count: int) -> Arrivals:
        """The first `count` requests of this cell's process; the same for every policy and every rate."""
        shares, classes = self.shares(), len(self.classes)
        if self.arrivals == "poisson":
            return poisson_arrivals(seed, count, shares, classes)
        if self.arrivals == "cv4":
            return gamma_arrivals(seed, count, shares, CV, classes)
        return burst_arrivals(seed, count, shares, BURST_REQUESTS, BURST_GAP_S, classes)

    def requests(self, offered: TimedArrivals) -> Timed:
        """The requests as the simulator's arrivals, with the SLO and priority of their class."""
        slos = np.asarray(self.slos_ns(), np.int64)
        priorities = np.array([group.priority for group in self.classes], np.uint8)
        return Timed.of(
            offered.t_ns,
            offered.model,
            slos[offered.model, offered.group],
            priorities[offered.group],
            offered.group,
        )

    @property
    def spec(self) -> str:
        """The specification of this cell, without its name."""
        written = {key: write(self) for key, write in WRITTEN.items()}
        if self.speeds == (1.0,):
            del written["speeds"]
        if self.executors == 1:
            del written["executors"]
        if self.stored == 1:
            del written["stored"]
        return ",".join(f"{key}={value}" for key, value in written.items())


WRITTEN: dict[str, Callable[[Cell], object]] = {
    "devices": lambda cell: cell.devices,
    "models": lambda cell: cell.models,
    "slo": lambda cell: cell.slo,
    "gain": lambda cell: cell.gain,
    "exec": lambda cell: f"{cell.exec_ns / 1e6:g}ms",
    "arrivals": lambda cell: cell.arrivals,
    "zipf": lambda cell: f"{cell.zipf:g}",
    "fits": lambda cell: cell.fits,
    "priorities": lambda cell: cell.priorities,
    "speeds": lambda cell: "/".join(f"{speed:g}" for speed in cell.speeds),
    "executors": lambda cell: cell.executors,
    "stored": lambda cell: f"{cell.stored:g}",
}


def milliseconds(text: str) -> int:
    """Parse a time: 4ms -> 4,000,000."""
    if not text.endswith("ms"):
        raise ValueError(f"{text!r} is no time: write 4ms")
    return round(float(text[:-2]) * 1e6)


def slo_ns(text: str, exec_ns: int) -> int:
    """An SLO of a specification in ns, for a model that takes exec_ns for a single request."""
    return round(float(text[:-1]) * exec_ns) if text.endswith("x") else milliseconds(text)


@functools.lru_cache(maxsize=64)
def profiles(cell: Cell) -> Sequence[ModelProfile]:
    """The profiles of the cell's models, the most popular first."""
    classes = cell.classes
    if cell.gain == "zoo":
        zoo = paper_varieties()
        return [
            dataclasses.replace(
                profile,
                name=f"{profile.name}-{index}",
                program=profile.name,
                slo_ns=slo_ns(classes[0].slo, profile.exec_ns[1]),
            )
            for index, profile in zip(range(cell.models), itertools.cycle(zoo))
        ]
    gain = float(cell.gain)
    alpha = cell.exec_ns / (1 + gain)
    curve = {batch: round(alpha * (batch + gain)) for batch in BATCHES}
    return [
        ModelProfile(
            name=f"model-{index}",
            exec_ns=curve,
            weights_bytes=SYNTHETIC_WEIGHTS_BYTES,
            load_ns=SYNTHETIC_LOAD_NS,
            program="synthetic",
            slo_ns=slo_ns(classes[0].slo, curve[1]),
        )
        for index in range(cell.models)
    ]


def parse(text: str) -> Cell:
    """A cell from its name or its specification. Raises ValueError, naming the cells."""
    if text in CELLS:
        return CELLS[text]
    if "=" not in text:
        raise ValueError(f"no cell {text!r}; there are {', '.join(CELLS)}; or write key=value,...")
    return specified(text, text)


def specified(name: str, spec: str) -> Cell:
    """A cell from its specification. Raises ValueError for an invalid specification."""
    given: dict[str, str] = {}
    for pair in spec.split(","):
        key, _, value = pair.strip().partition("=")
        if key not in WRITTEN or not value:
            raise ValueError(f"{pair!r}: the keys of a cell are {', '.join(WRITTEN)}")
        given[key] = value
    cell = Cell(
        name=name,
        devices=int(given.get("devices", 1)),
        models=int(given.get("models", 1)),
        slo=given.get("slo", "3x"),
        gain=given.get("gain", "1"),
        exec_ns=milliseconds(given.get("exec", "4ms")),
        arrivals=given.get("arrivals", "poisson"),
        zipf=float(given.get("zipf", 0)),
        fits=given.get("fits", "1"),
        priorities=int(given.get("priorities", 1)),
        speeds=tuple(float(speed) for speed in given.get("speeds", "1").split("/")),
        executors=int(given.get("executors", 1)),
        stored=float(given.get("stored", 1)),
    )
    if min(cell.devices, cell.models, cell.priorities, cell.exec_ns, cell.executors) < 1:
        raise ValueError(f"{spec!r}: devices, models, priorities, exec and executors are at least 1")
    if cell.devices % cell.executors:
        raise ValueError(f"{spec!r}: each arena has as many executors, which divide the devices")
    if cell.arrivals not in ("poisson", "cv4", "bursts"):
        raise ValueError(f"arrivals={cell.arrivals}: poisson, cv4 or bursts")
    if cell.gain != "zoo" and float(cell.gain) < 0:
        raise ValueError(f"gain={cell.gain} is below 0")
    if cell.fits not in ("1", "v100") and not 0 < float(cell.fits) < 1:
        raise ValueError(f"fits={cell.fits}: 1, v100, or a share between 0 and 1")
    if not 0 < cell.stored <= 1 or (cell.stored < 1 and cell.stored * cell.arenas < 2):
        raise ValueError(f"stored={cell.stored:g}: up to 1, and enough for two copies of each model in all")
    if cell.stored < 1 and cell.resident:
        raise ValueError(f"{spec!r}: where disks hold some of the models, an arena cannot hold all (fits)")
    if max(cell.speeds) != 1 or min(cell.speeds) <= 0:
        raise ValueError(f"speeds={given['speeds']}: above 0, the fastest 1")
    for row in cell.slos_ns()[:1]:
        if min(row) < 1:
            raise ValueError(f"slo={cell.slo} is below 1 ns")
    return cell


_TABLE: Mapping[str, str] = {
    # One device: no choice of device, only of order and batch.
    "d1-m1-tight-low": "devices=1,models=1,slo=2.5x,gain=1",
    "d1-m1-medium-high": "devices=1,models=1,slo=4x,gain=20",
    "d1-m6-tight-high": "devices=1,models=6,slo=2.5x,gain=20",
    "d1-m6-loose-low-cv4": "devices=1,models=6,slo=20x,gain=1,arrivals=cv4",
    "d1-m6-mixed-high": "devices=1,models=6,slo=3x/8x/20x,gain=20",
    "d1-m20-loose-low": "devices=1,models=20,slo=20x,gain=0.5",
    "d1-m20-loose-high-cv4": "devices=1,models=20,slo=20x,gain=20,arrivals=cv4",
    "d1-m20-medium-zoo": "devices=1,models=20,slo=100ms,gain=zoo",
    "d1-m200-pressed-zoo": "devices=1,models=200,slo=100ms,gain=zoo,zipf=0.9,fits=0.3",
    "d1-m4000-pressed-zoo": "devices=1,models=4000,slo=250ms,gain=zoo,zipf=0.9,fits=v100",
    # Eight devices: few models (long batches pay) and many (waits for batches collide).
    "d8-m1-tight-high": "devices=8,models=1,slo=1.5x,gain=20",
    "d8-m1-medium-low": "devices=8,models=1,slo=4x,gain=1",
    "d8-m6-tight-low": "devices=8,models=6,slo=2x,gain=2",
    "d8-m6-medium-high-cv4": "devices=8,models=6,slo=3x,gain=20,arrivals=cv4",
    "d8-m20-tight-low": "devices=8,models=20,slo=1.5x,gain=1",
    "d8-m20-tight-high": "devices=8,models=20,slo=2x,gain=20",
    "d8-m20-tight-zoo": "devices=8,models=20,slo=25ms,gain=zoo",
    "d8-m20-mixed-high": "devices=8,models=20,slo=2x/5x/15x,gain=20",
    "d8-m20-priorities-low": "devices=8,models=20,slo=4x,gain=2,priorities=2",
    "d8-m200-loose-high": "devices=8,models=200,slo=15x,gain=20,zipf=0.9",
    "d8-m200-medium-zoo-cv4": "devices=8,models=200,slo=50ms,gain=zoo,zipf=0.9,arrivals=cv4",
    "d8-m200-pressed-high": "devices=8,models=200,slo=5x,gain=20,zipf=0.9,fits=0.4",
    "d8-m200-pressed-low-cv4": "devices=8,models=200,slo=15x,gain=1,zipf=0.9,fits=0.4,arrivals=cv4",
    "d8-m200-cold-zoo": "devices=8,models=200,slo=100ms,gain=zoo,arrivals=bursts,fits=0.3",
    "d8-m4000-pressed-zoo": "devices=8,models=4000,slo=100ms,gain=zoo,zipf=0.9,fits=v100",
    # Twenty-four devices: Symphony's own setting, and a less favourable one.
    "d24-m1-tight-high": "devices=24,models=1,slo=2x,gain=20",
    "d24-m6-medium-high": "devices=24,models=6,slo=3x,gain=20",
    "d24-m6-loose-high-cv4": "devices=24,models=6,slo=12x,gain=20,arrivals=cv4",
    "d24-m20-tight-low": "devices=24,models=20,slo=2x,gain=0.5,zipf=0.9",
    "d24-m200-tight-high": "devices=24,models=200,slo=2x,gain=20",
    "d24-m200-mixed-low": "devices=24,models=200,slo=2x/4x/10x,gain=2,zipf=0.9,priorities=2",
    "d24-m200-medium-zoo": "devices=24,models=200,slo=50ms,gain=zoo,zipf=0.9",
    "d24-m4000-pressed-zoo": "devices=24,models=4000,slo=100ms,gain=zoo,zipf=0.9,fits=v100",
    "d24-m4000-cold-high": "devices=24,models=4000,slo=10x,gain=20,arrivals=bursts,fits=0.1",
    # A hundred devices; slower models, so that a second has not too many requests.
    "d100-m1-tight-high": "devices=100,models=1,slo=2x,gain=20,exec=20ms",
    "d100-m6-loose-low": "devices=100,models=6,slo=12x,gain=1,exec=20ms",
    "d100-m20-medium-high": "devices=100,models=20,slo=3x,gain=20,exec=20ms",
    "d100-m200-tight-high-cv4": "devices=100,models=200,slo=2x,gain=20,exec=20ms,zipf=0.9,arrivals=cv4",
    "d100-m4000-pressed-high": "devices=100,models=4000,slo=4x,gain=20,exec=20ms,zipf=0.9,fits=0.4",
    "d100-m4000-pressed-zoo-cv4": "devices=100,models=4000,slo=100ms,gain=zoo,zipf=0.9,fits=v100,arrivals=cv4",
    # Executors that share an arena: one arena, and four.
    "e4-m20-tight-low": "devices=4,models=20,slo=1.5x,gain=1,executors=4",
    "e4-m200-pressed-high": "devices=4,models=200,slo=5x,gain=20,zipf=0.9,fits=0.4,executors=4",
    "e16-m20-mixed-high": "devices=16,models=20,slo=2x/5x/15x,gain=20,executors=16",
    "e16-m200-medium-zoo": "devices=16,models=200,slo=50ms,gain=zoo,zipf=0.9,executors=16",
    "e16-m200-cold-zoo": "devices=16,models=200,slo=100ms,gain=zoo,arrivals=bursts,fits=0.3,executors=16",
    "e64-m200-tight-high": "devices=64,models=200,slo=2x,gain=20,exec=20ms,executors=16",
    # Workers whose disks hold a part of the models.
    "d8-m200-stored-zoo": "devices=8,models=200,slo=100ms,gain=zoo,zipf=0.9,fits=0.4,stored=0.4",
    "d24-m200-stored-high-cv4": "devices=24,models=200,slo=5x,gain=20,zipf=0.9,fits=0.7,arrivals=cv4,stored=0.2",
}

CELLS: dict[str, Cell] = {name: specified(name, spec) for name, spec in _TABLE.items()}
"""The cells by name. Quick mode runs all of them with fewer requests and seeds."""

_RATIOS = ("1.5x", "2x", "3x", "5x", "8x", "15x", "25x")
_TIMES = ("25ms", "50ms", "100ms", "250ms")


def drawn(seed: int, count: int) -> list[Cell]:
    """Cells at random: one to forty devices, alike or not, one to 400 models, SLOs from 1.5 times a request
    upward, mixed in a third of the cells, and memory for a twentieth to all of the models.
    """
    draws = random.Random(seed)
    found = []
    for index in range(count):
        devices = draws.choice((1, 2, 4, 8, 16, 40))
        models = draws.choice((1, 4, 12, 40, 120, 400))
        gain = draws.choice(("0.5", "2", "8", "20", "zoo"))
        scale = _TIMES if gain == "zoo" else _RATIOS
        slos = draws.sample(scale, draws.choice((1, 1, 1, 1, 2, 3)))
        fits = draws.choice(("1", "1", "0.05", "0.1", "0.2", "0.4", "0.7")) if models >= 12 else "1"
        arrivals = draws.choice(("poisson", "poisson", "cv4", "cv4", "bursts" if fits != "1" else "poisson"))
        pairs = {
            "devices": devices,
            "models": models,
            "slo": "/".join(sorted(slos, key=scale.index)),
            "gain": gain,
            "exec": draws.choice(("4ms", "10ms", "20ms")),
            "arrivals": arrivals,
            "zipf": draws.choice(("0", "0.6", "0.9", "1.1")),
            "fits": fits,
            "priorities": draws.choice((1, 1, 1, 2)),
            "speeds": draws.choice(("1", "1", "1/0.5", "1/0.7/0.4")) if devices > 1 else "1",
        }
        spec = ",".join(f"{key}={value}" for key, value in pairs.items())
        found.append(specified(f"drawn-{seed}-{index + 1:02}", spec))
    return found
