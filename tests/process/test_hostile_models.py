"""Models of some hundred bytes whose preparation takes memory or time without a bound. Real processes."""

from __future__ import annotations

import re
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
import pytest

from bench.attacks.preparation import endless, preparation_peaks, swelling
from clockwork import Client
from clockwork.errors import ClockworkError, InvalidModel, Unavailable
from clockwork.models import zoo
from tests.patience import PATIENCE_S, eventually
from tests.process.cluster import Cluster, Reference, running_cluster, same

MIB = 1 << 20
BUDGET = 256 * MIB


@pytest.fixture(scope="module")
def budgeted(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """A cluster whose worker prepares models within BUDGET."""
    environment = {"CLOCKWORK_PREPARATION_BYTES": str(BUDGET)}
    with running_cluster(tmp_path_factory.mktemp("cluster"), environment=environment) as cluster:
        yield cluster


@pytest.mark.parametrize(
    ("tensor_bytes", "count"), [(600 * MIB, 1), (50 * MIB, 12)], ids=["at once", "bit by bit"]
)
def test_a_model_is_prepared_within_a_budget_of_memory(
    budgeted: Cluster, tensor_bytes: int, count: int
) -> None:
    with budgeted.client() as client:
        with pytest.raises(InvalidModel, match="preparing the model takes more than") as refused:
            client.register("swelling", swelling(tensor_bytes, count))
        said = re.search(
            r"more than (\d+) bytes of memory, which is the most for a package of (\d+) bytes",
            str(refused.value),
        )
        assert said is not None
        assert int(said[1]) >= BUDGET + 12 * int(said[2])
        (peak,) = preparation_peaks(budgeted.workers[0].pid)
        assert peak < int(said[1]) + 200 * MIB, "beside what the process had before"
        x = np.zeros((1, 64), np.float32)
        mlp = zoo.build("mlp")
        client.register("mlp", mlp)
        assert same(client.infer("mlp", x), Reference(mlp)(x))


def test_what_a_machine_lacks_is_not_the_models_fault(tmp_path: Path) -> None:
    """A budget beyond the machine's free memory is that memory; a model that exceeds it may be tried
    again."""
    environment = {"CLOCKWORK_PREPARATION_BYTES": "64TiB"}
    with running_cluster(tmp_path, environment=environment) as cluster, cluster.client() as client:
        with pytest.raises(Unavailable, match=r"too little free memory to prepare the model: .*; try again"):
            client.register("swelling", swelling(1 << 44))
        assert client.models() == []
        client.register("mlp", zoo.build("mlp"))


def test_models_that_do_not_end_hold_up_no_registration_of_another_client(tmp_path: Path) -> None:
    """Five slow models for three places: each would keep a place for a minute."""
    failures: list[ClockworkError] = []

    def register(client: Client, name: str, model: onnx.ModelProto) -> None:
        try:
            client.register(name, model, timeout=PATIENCE_S)
        except ClockworkError as error:
            failures.append(error)

    with running_cluster(tmp_path) as cluster, cluster.client() as hostile, cluster.client() as honest:
        names = [f"endless{seed}" for seed in range(5)]
        threads = [
            threading.Thread(target=register, args=(hostile, name, endless(seed)))
            for seed, name in enumerate(names)
        ]
        for thread in threads:
            thread.start()
        eventually(lambda: len(honest.models()) == len(names), "all have come")
        honest.register("mlp", zoo.build("mlp"), timeout=PATIENCE_S)
        states = {model.name: model.state for model in honest.models()}
        assert states == {**dict.fromkeys(names, "preparing"), "mlp": "ready"}
        assert not failures
        gives_way = re.compile("takes long to prepare: it gives way to others")
        cluster.workers[0].wait_for(gives_way)  # the fifth preparation has its first turn, too
        for name in names:
            honest.unregister(name)
        for thread in threads:
            thread.join()


@pytest.mark.slow
def test_what_gives_way_ends_by_its_own_limit_all_the_same(tmp_path: Path) -> None:
    """One of four gives way on a machine that is not too busy: then it begins anew."""
    environment = {"CLOCKWORK_PREPARATION_RUN": "20"}
    refusals: list[str] = []

    def register(client: Client, seed: int) -> None:
        with pytest.raises(InvalidModel) as refused:
            client.register(f"endless{seed}", endless(seed), timeout=2 * PATIENCE_S)
        refusals.append(str(refused.value))

    with running_cluster(tmp_path, environment=environment) as cluster, cluster.client() as client:
        threads = [threading.Thread(target=register, args=(client, seed)) for seed in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(refusals) == 4
        assert all("takes longer than 20 s" in text for text in refusals), refusals
        print([line for line in cluster.workers[0].lines if "gives way" in line])
        assert client.models() == []
