"""A controller is started again: models that workers have loaded stay there."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from clockwork import Client
from clockwork.models import zoo
from clockwork.wire.description import ClusterStatus
from tests.patience import eventually
from tests.process.cluster import Cluster, Reference, running_cluster, same, total_sent

NAMES = ("first", "second", "third")


@pytest.fixture(scope="module")
def references() -> dict[str, Reference]:
    return {name: Reference(zoo.build("mlp", seed=seed)) for seed, name in enumerate(NAMES)}


def answers_all(client: Client, references: dict[str, Reference], names: tuple[str, ...] = NAMES) -> None:
    x = np.random.default_rng(0).standard_normal((1, 64)).astype(np.float32)
    for name in names:
        assert same(client.infer(name, x), references[name](x)), name


def is_settled(client: Client, names: tuple[str, ...] = NAMES) -> ClusterStatus | None:
    """The status once every model is ready again."""
    status = client.status()
    ready = {model.name for model in client.models() if model.state == "ready"}
    return status if status["workers"] and ready == set(names) else None


def restart(cluster: Cluster) -> None:
    cluster.kill(cluster.controller)
    cluster.start_controller()


@pytest.mark.parametrize("executors", ["1", "2"])
def test_a_restarted_controller_loads_nothing_again(
    tmp_path: Path, references: dict[str, Reference], executors: str
) -> None:
    with running_cluster(tmp_path) as cluster:
        cluster.kill(cluster.workers[0])
        cluster.start_worker("--executors", executors, name="kept")
        with cluster.client() as client:
            for seed, name in enumerate(NAMES):
                client.register(name, zoo.build("mlp", seed=seed))
            answers_all(client, references)
            assert total_sent(client.status(), "load") == len(NAMES)
        for _ in range(2):
            restart(cluster)
            with cluster.client() as client:
                eventually(lambda: is_settled(client), "every model is ready again")
                for name in NAMES:
                    assert [copy["state"] for copy in client.model(name).devices] == ["resident"]
                answers_all(client, references)
                assert total_sent(client.status(), "load") == 0
                client.unregister("second")
                client.register("second", zoo.build("mlp", seed=1))
                answers_all(client, references)


def test_a_controller_of_other_models_takes_the_pages(
    tmp_path: Path, references: dict[str, Reference]
) -> None:
    """A model that it does not ask for is in the way of its loads, and goes."""
    with running_cluster(tmp_path, arena="5MiB") as cluster:  # a model of 18 pages
        with cluster.client() as client:
            client.register("first", zoo.build("mlp", seed=0))
            answers_all(client, references, ("first",))
        cluster.kill(cluster.controller)
        (cluster.data / "controller").rename(cluster.data / "of the first")
        cluster.start_controller()
        with cluster.client() as client:
            eventually(lambda: client.status()["workers"], "the worker is there")
            client.register("second", zoo.build("mlp", seed=1))
            answers_all(client, references, ("second",))
            assert total_sent(client.status(), "load") == 1
        cluster.kill(cluster.controller)
        (cluster.data / "controller").rename(cluster.data / "of the second")
        (cluster.data / "of the first").rename(cluster.data / "controller")
        cluster.start_controller()
        with cluster.client() as client:
            eventually(lambda: is_settled(client, ("first",)), "the first is ready again")
            answers_all(client, references, ("first",))
            assert total_sent(client.status(), "load") == 1, "the second took its pages"
