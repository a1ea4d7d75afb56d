"""Times of the CUDA device: a bare copy, launches, LOAD, INFER, and a request from end to end.

The benchmark uses this machine's first GPU, or the fake driver where there is none; then its times mean
nothing for a GPU.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from bench import report
from bench.cluster import Cluster
from bench.gpu import LAUNCHES, WIDTH, Site, compile_kernel
from bench.gpu_serving import LAUNCHES as SERVED_LAUNCHES
from bench.gpu_serving import value_of, write_package
from clockwork import Client
from clockwork.device.cuda_memory import cards, open_driver, target_of, why_unusable
from tests.device.fake import LIBRARY

SEED = 0
PAGES = 6
FAKE_PAGE_BYTES = 1 << 20


@pytest.fixture(scope="module", autouse=True)
def driver() -> Iterator[bool]:
    """Whether the device is a GPU."""
    is_real = not why_unusable()
    if is_real or "CLOCKWORK_CUDA_DRIVER" in os.environ:
        yield is_real
        return
    os.environ["CLOCKWORK_CUDA_DRIVER"] = str(LIBRARY)
    yield False
    del os.environ["CLOCKWORK_CUDA_DRIVER"]


@pytest.fixture(scope="module")
def site(driver: bool, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    page_bytes = 16 << 20 if driver else FAKE_PAGE_BYTES
    with Site(tmp_path_factory.mktemp("gpu") / "site", PAGES, page_bytes) as site:
        yield site


@pytest.fixture
def conditions(benchmark: Any, site: Site) -> None:
    benchmark.group = f"GPU: {site.card.name}"
    benchmark.extra_info.update(report.conditions(SEED))
    benchmark.extra_info |= {
        "card": site.card.name,
        "driver": site.table.version,
        "bytes": site.weights_bytes,
    }


@pytest.mark.usefixtures("conditions")
def test_bare_copy(benchmark: Any, site: Site) -> None:
    """A copy of as many bytes as a LOAD's, from pinned memory, in one piece."""
    copies = site.bare_copies(1 << 30)
    next(copies)
    benchmark.pedantic(next, (copies,), rounds=50)
    copies.close()  # type: ignore[attr-defined]


@pytest.mark.usefixtures("conditions")
def test_load(benchmark: Any, site: Site) -> None:
    """A LOAD, including the way to the lane and back."""
    benchmark.pedantic(site.load, (0,), teardown=lambda _: site.unload(0), rounds=50, warmup_rounds=2)


@pytest.mark.usefixtures("conditions")
@pytest.mark.parametrize("model", range(len(LAUNCHES)), ids=lambda model: f"{LAUNCHES[model]} launches")
def test_infer(benchmark: Any, site: Site, model: int) -> None:
    """Time from the order to the polled completion. The two models differ in their launches."""
    site.load(model)
    benchmark.pedantic(site.infer, (model,), rounds=200, warmup_rounds=10)
    site.unload(model)


@pytest.fixture(scope="module")
def client(driver: bool, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Client]:
    table = open_driver()
    target = target_of(cards(table)[0])
    place = tmp_path_factory.mktemp("served") / "package"
    write_package(place, compile_kernel(target), target, 2, 1 << 20, value_of(0))
    worker = ("--device", "cuda", "--arena", str(16 << 20), "--page-size", str(1 << 20))
    with Cluster(worker_arguments=worker) as cluster, cluster.client(timeout=60) as client:
        client.register("model", place)
        yield client


@pytest.mark.usefixtures("conditions")
def test_request_end_to_end(benchmark: Any, client: Client) -> None:
    """Client.infer(): client, controller, worker, GPU and back; 16 KiB each way."""
    x = np.arange(WIDTH, dtype=np.float32)[None]
    answer = benchmark.pedantic(client.infer, ("model", x), rounds=200, warmup_rounds=10)
    np.testing.assert_allclose(np.asarray(answer), x + SERVED_LAUNCHES * value_of(0), rtol=1e-4)
