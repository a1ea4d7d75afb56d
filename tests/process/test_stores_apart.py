"""Workers with bounded stores on hosts of their own, behind links that are slow and fail."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from bench.cluster import Cluster
from bench.live_stores import Hosts
from bench.networks import Networks, NoNetworks
from tests.patience import PATIENCE_S, eventually
from tests.process.cluster import same
from tests.process.test_bounded_stores import (
    MODEL_BYTES,
    ROWS,
    are_kept,
    check_answers,
    models,
    register,
    stats_of,
)
from tests.process.test_bundles import leftovers

SLOW_BYTES_PER_S = 4_000_000
"""A rate of links at which a FETCH of a model takes some hundred milliseconds."""


@pytest.fixture
def networks() -> Iterator[Networks]:
    try:
        found = Networks(3, SLOW_BYTES_PER_S)
    except NoNetworks as why:
        pytest.skip(f"no network namespaces with links: {why}")
    with found:
        yield found


def connected(cluster: Cluster) -> list[str]:
    with cluster.client() as client:
        return sorted(worker["name"] for worker in client.status()["workers"])


def test_a_link_that_fails_in_the_middle_of_a_fetch_costs_no_answer(
    networks: Networks, tmp_path: Path
) -> None:
    made, expected = models(6)
    # all three workers are to have all models, so that the third is brought them when it joins
    flags = ("--insecure", "--stored-copies", "3")
    store = ("--store-bytes", str(16 * MODEL_BYTES))
    with (
        Cluster(0, data=tmp_path, controller_arguments=flags, site=Hosts(networks)) as cluster,
        cluster.client(timeout=PATIENCE_S) as client,
    ):
        for name in ("0", "1"):
            cluster.add_worker(name, store)
        eventually(lambda: connected(cluster) == ["0", "1"], "two workers join")
        register(client, made)
        eventually(lambda: are_kept(client, list(made), 2), "both have all models")
        cluster.add_worker("2", store)
        eventually(
            lambda: "2" in connected(cluster) and stats_of(client, "2")["store_fetching"], "a FETCH begins"
        )
        networks.cut(2)
        answers = [(name, client.submit(name, ROWS, slo=PATIENCE_S)) for name in [*made] * 4]
        for name, answer in answers:
            assert same(answer.result(PATIENCE_S), expected[name]), name
        eventually(lambda: connected(cluster) == ["0", "1"], "the third worker is lost")
        check_answers(client, expected)
        networks.mend(2)
        eventually(lambda: connected(cluster) == ["0", "1", "2"], "the third worker is back")
        eventually(lambda: are_kept(client, list(made), 3), "it has all models")
        check_answers(client, expected)
    assert leftovers(tmp_path / "2") == []


def test_a_network_is_gone_with_its_block(networks: Networks) -> None:
    device = Path("/sys/class/net/host0")
    assert not device.exists()  # the hub is a namespace of its own
    networks.close()
    networks.close()
    with pytest.raises(FileNotFoundError):
        networks.received_bytes(0)
