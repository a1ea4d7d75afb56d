"""Workers whose stores have room for a part of the models: every model is served, and none is lost."""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from clockwork import Client
from clockwork.errors import Unavailable
from clockwork.models import zoo
from clockwork.wire import messages
from tests.patience import eventually
from tests.process.cluster import Cluster, Program, Reference, running_cluster, same, total_sent
from tests.process.peers import echo_model
from tests.process.test_bundles import LIES, LyingPeer, leftovers

ROWS = np.random.default_rng(0).standard_normal((4, 64)).astype(np.float32)
MIB = 1 << 20
MODEL_BYTES = 4_800_000  # more than a fine-tune takes with its description
STORE_BYTES = 16 * MODEL_BYTES


def models(count: int) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Fine-tunes of one architecture, and what each answers."""
    base = zoo.build("mlp")
    made = {f"model-{index}": zoo.fine_tune(base, index) for index in range(count)}
    return made, {name: Reference(model)(ROWS) for name, model in made.items()}


def start(cluster: Cluster, names: str, size: int = STORE_BYTES, *more: str) -> list[Program]:
    """Start workers with stores of their own."""
    return [cluster.start_worker("--store-bytes", str(size), *more, name=name, store=name) for name in names]


def register(client: Client, made: dict[str, Any]) -> None:
    for name, model in made.items():
        client.register(name, model)


def keepers(client: Client, name: str) -> list[str]:
    """The workers that have a model."""
    return [worker for worker, state in client.model(name).raw["workers"].items() if state == "ready"]


def are_kept(client: Client, names: Sequence[str], least: int, by: str = "") -> bool:
    """Whether each model has so many copies. by: names of the workers that count; "": all."""
    return all(len([w for w in keepers(client, name) if not by or w in by]) >= least for name in names)


def check_answers(client: Client, expected: dict[str, np.ndarray]) -> None:
    for name, rows in expected.items():
        assert same(client.infer(name, ROWS), rows), name


def disk_bytes(store: Path) -> int:
    """The bytes of the prepared models and programs in a store."""
    total = 0
    for part in ("prepared", "programs"):
        for folder, _, names in os.walk(store / part):  # a folder that is dropped meanwhile is left out
            for name in names:
                with contextlib.suppress(FileNotFoundError):
                    total += os.stat(os.path.join(folder, name)).st_size
    return total


def stats_of(client: Client, name: str) -> dict[str, Any]:
    (found,) = [worker for worker in client.status()["workers"] if worker["name"] == name]
    return dict(found["stats"])


def test_a_worker_that_fetches_has_the_process_that_tries_models_before_the_first(tmp_path: Path) -> None:
    def trials(worker: Program) -> int:
        pids = [
            pid
            for path in Path(f"/proc/{worker.pid}/task").glob("*/children")
            for pid in path.read_text().split()
        ]
        return sum(b"early" in Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0") for pid in pids)

    with running_cluster(tmp_path / "data", workers=0) as cluster:
        (worker,) = start(cluster, "a")
        whole = cluster.start_worker(name="whole", store="whole")
        eventually(lambda: trials(worker) == 1, "a process waits for bundles")
        assert trials(whole) == 0


def test_three_workers_serve_models_of_which_none_has_all(tmp_path: Path) -> None:
    made, expected = models(24)
    options = ("--stored-copies", "1")
    with (
        running_cluster(tmp_path / "data", workers=0, controller_options=options) as cluster,
        cluster.client() as client,
    ):
        start(cluster, "abc")
        register(client, made)
        check_answers(client, expected)
        for name in "abc":
            assert disk_bytes(tmp_path / "data" / name) <= STORE_BYTES
            eventually(lambda: stats_of(client, name)["store_models"] > 0, "each worker has a part")  # noqa: B023
            assert stats_of(client, name)["store_models"] < len(made)
        assert are_kept(client, list(made), 1)
        assert client.status()["troubles"]["open"] == []
        status, text = cluster.run("status")
        assert status == 0
        assert "store" in text


def test_each_model_gets_its_copies_and_gets_them_again_when_a_worker_is_killed(tmp_path: Path) -> None:
    made, expected = models(8)
    with running_cluster(tmp_path / "data", workers=0) as cluster, cluster.client() as client:
        workers = start(cluster, "abc")
        register(client, made)
        eventually(lambda: are_kept(client, list(made), 2), "two workers have each model")
        eventually(
            lambda: sum(stats_of(client, name)["models_taken"] for name in "abc") >= len(made),
            "the second copy is fetched, and not prepared",
        )
        cluster.kill(workers[0])
        eventually(lambda: are_kept(client, list(made), 2, by="bc"), "the copies are made again")
        check_answers(client, expected)
        for name in "bc":
            assert disk_bytes(tmp_path / "data" / name) <= STORE_BYTES
    assert [leftovers(tmp_path / "data" / name) for name in "bc"] == [[], []]


def test_full_stores_give_up_second_copies_for_new_models_and_never_last_ones(tmp_path: Path) -> None:
    """Two stores with room for four models each, of which three are planned."""
    made, expected = models(9)
    *names, last = made
    refused = made.pop(last)
    del expected[last]
    with running_cluster(tmp_path / "data", workers=0) as cluster, cluster.client() as client:
        start(cluster, "ab", 4 * MODEL_BYTES)
        register(client, {name: made[name] for name in names[:3]})
        eventually(lambda: are_kept(client, names[:3], 2), "the stores are full of second copies")
        assert client.status()["stores"]["scarce"] == 0
        register(client, {name: made[name] for name in names[3:]})
        eventually(
            lambda: client.status()["stores"]["scarce"] == len(names),
            "each second copy has made room for a first",
        )
        assert are_kept(client, names, 1)
        assert client.status()["stores"]["lost"] == 0
        check_answers(client, expected)
        for name in "ab":
            assert disk_bytes(tmp_path / "data" / name) <= 4 * MODEL_BYTES
        with pytest.raises(Unavailable, match=r"it takes \d+ bytes, and .* store"):
            client.register(last, refused)
        eventually(
            lambda: "stores_full" in {trouble["kind"] for trouble in client.status()["troubles"]["open"]},
            "that the stores are full is a trouble",
        )
        status, text = cluster.run("status")
        assert status == 0
        assert "8 scarce, 8 cramped" in text
        client.unregister(names[0])
        client.register(last, refused)
        assert are_kept(client, [*names[1:], last], 1)


def test_a_worker_that_leaves_gives_away_what_only_it_has(tmp_path: Path) -> None:
    made, expected = models(9)
    options = ("--stored-copies", "1")
    with (
        running_cluster(tmp_path / "data", workers=0, controller_options=options) as cluster,
        cluster.client() as client,
    ):
        workers = start(cluster, "abc", STORE_BYTES, "--drain", "60s")
        register(client, made)
        alone = [name for name in made if keepers(client, name) == ["a"]]
        assert alone
        assert workers[0].stop() == 0
        assert are_kept(client, list(made), 1, by="bc")
        check_answers(client, expected)


def test_the_last_of_these_workers_leaves_at_once(tmp_path: Path) -> None:
    made, _ = models(1)
    with running_cluster(tmp_path / "data", workers=0) as cluster, cluster.client() as client:
        (worker,) = start(cluster, "a", STORE_BYTES, "--drain", "3600s")
        register(client, made)
        assert worker.stop() == 0


def test_a_store_that_has_become_too_small_is_trimmed_at_the_start(tmp_path: Path) -> None:
    made, expected = models(8)
    small = 4 * MODEL_BYTES
    with running_cluster(tmp_path / "data", workers=0) as cluster, cluster.client() as client:
        _, second = start(cluster, "ab")
        register(client, made)
        eventually(lambda: are_kept(client, list(made), 2), "both workers have each model")
        second.stop()
        store = tmp_path / "data" / "b"
        assert disk_bytes(store) > small
        start(cluster, "b", small)
        eventually(lambda: disk_bytes(store) <= small, "what does not fit is removed")
        eventually(
            lambda: "sought" not in str([client.model(name).raw["workers"] for name in made]),
            "all is looked up",
        )
        eventually(lambda: 0 < stats_of(client, "b")["store_models"] < len(made), "the rest stays")
        check_answers(client, expected)


def test_a_store_that_is_too_full_drops_copies_that_others_have(tmp_path: Path) -> None:
    """The second worker is brought each model as the second copy. Then a third has all as well."""
    made, expected = models(8)
    with running_cluster(tmp_path / "data", workers=0) as cluster, cluster.client() as client:
        cluster.start_worker(name="whole", store="whole")
        (second,) = start(cluster, "b")
        register(client, made)
        eventually(lambda: are_kept(client, list(made), 2), "it is brought each model")
        cluster.start_worker(name="also-whole", store="also-whole")
        eventually(lambda: are_kept(client, list(made), 3), "all have each model")
        second.stop()
        start(cluster, "b", 4 * MODEL_BYTES)  # for four of them; planned are three
        eventually(lambda: total_sent(client.status(), "drop") > 0, "the controller has a copy dropped")
        eventually(
            lambda: len([name for name in made if "b" in keepers(client, name)]) == 3, "three are left"
        )
        eventually(lambda: len(list((tmp_path / "data/b/prepared").glob("[!.]*"))) == 3, "on the disk, too")
        check_answers(client, expected)


def test_a_worker_finds_again_what_lies_in_its_store(tmp_path: Path) -> None:
    made, expected = models(4)
    with running_cluster(tmp_path / "data", workers=0) as cluster, cluster.client() as client:
        (worker,) = start(cluster, "a")
        register(client, made)
        cluster.kill(worker)
        store = tmp_path / "data" / "a"
        (store / "prepared" / ".incoming-bundles-x").mkdir()
        (store / "prepared" / ".preparing-x").mkdir()
        before = sorted(path.name for path in (store / "prepared").glob("[!.]*"))
        start(cluster, "a")
        eventually(lambda: are_kept(client, list(made), 1), "it has all models")
        assert sorted(path.name for path in (store / "prepared").glob("[!.]*")) == before
        assert not list((store / "prepared").glob(".[ip]*-x"))
        assert stats_of(client, "a")["models_taken"] == 0
        check_answers(client, expected)


@pytest.mark.parametrize("lie", ["one-bit", "cut", "lost", "right-bytes-that-are-no-model"])
def test_a_lying_holder_of_a_fetched_model_is_found_out(lie: str, tmp_path: Path) -> None:
    with running_cluster(tmp_path / "data", workers=0) as cluster, cluster.client() as client:
        liar = LyingPeer(cluster, LIES)
        try:
            client.register(lie, echo_model(note=lie))
            start(cluster, "b")
            eventually(lambda: "b" in keepers(client, lie), "the honest worker prepares the model in the end")
            subjects = {trouble["subject"] for trouble in client.status()["troubles"]["open"]}
        finally:
            liar.close()
        assert subjects == {f"{lie}@1 as prepared by worker liar"}
        x = np.arange(2, dtype=np.float32).reshape(1, 2)
        assert np.array_equal(client.infer(lie, x), x)
        assert stats_of(client, "b")["models_taken"] == 0
    assert leftovers(tmp_path / "data" / "b") == []


class SilentPeer(LyingPeer):
    """Says that it has prepared each model, and never gives any of it."""

    asked_for = 0

    def obey(self, message: Any, frames: list[bytes]) -> None:
        if isinstance(message, messages.Fetch):
            self.asked_for += 1
        else:
            super().obey(message, frames)


def test_a_worker_that_is_killed_during_a_fetch_starts_with_a_clean_store(tmp_path: Path) -> None:
    with running_cluster(tmp_path / "data", workers=0) as cluster, cluster.client() as client:
        peer = SilentPeer(cluster, {})
        try:
            client.register("m", echo_model())
            (worker,) = start(cluster, "b")
            eventually(lambda: peer.asked_for > 0, "the model is being fetched")
            cluster.kill(worker)
        finally:
            peer.close()
        start(cluster, "b")
        eventually(lambda: keepers(client, "m") == ["b"], "it is prepared, as nobody else has it")
        assert leftovers(tmp_path / "data" / "b") == []
        x = np.arange(2, dtype=np.float32).reshape(1, 2)
        assert np.array_equal(client.infer("m", x), x)


def test_a_removed_model_leaves_the_stores(tmp_path: Path) -> None:
    made, expected = models(3)
    with running_cluster(tmp_path / "data", workers=0) as cluster, cluster.client() as client:
        start(cluster, "ab")
        register(client, made)
        eventually(lambda: are_kept(client, list(made), 2), "both workers have each model")
        check_answers(client, expected)
        client.unregister("model-0")
        stores = [tmp_path / "data" / name / "prepared" for name in "ab"]
        eventually(
            lambda: all(len(list(store.glob("[!.]*"))) == len(made) - 1 for store in stores),
            "the files of the others are left",
        )
        del expected["model-0"]
        check_answers(client, expected)


def test_a_bad_bound_is_an_error_that_names_it(tmp_path: Path) -> None:
    with running_cluster(tmp_path / "data", workers=1) as cluster:
        for options, text in (
            (("--store-bytes", "1KiB"), "a store of 1024 bytes: --store-bytes is 1048576 to"),
            (("--store-bytes", "1GiB", "--device", "emulated"), "--store-bytes is for CPU devices"),
            (
                ("--store-bytes", "1GiB", "--store", str(tmp_path / "data" / "controller")),
                "is a controller's directory",
            ),
        ):
            program = cluster.program(["worker", "--connect", cluster.worker_endpoint, *options])
            assert program.wait() != 0
            assert text in program.text


def test_two_workers_cannot_share_a_store_with_a_bound(tmp_path: Path) -> None:
    with running_cluster(tmp_path / "data", workers=0) as cluster:
        (first,) = start(cluster, "a")
        second = cluster.program([
            "worker", "--connect", cluster.worker_endpoint, "--store-bytes", "1GiB", "--executors", "1",
            "--store", str(tmp_path / "data" / "a"),
        ])  # fmt: skip
        assert second.wait() == 1
        assert "each worker with --store-bytes needs a directory of its own" in second.text
        first.send(signal.SIGTERM)
        assert first.wait() == 0
