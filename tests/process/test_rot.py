"""Bits that flip on a disk: every answer is right or a clear failure, and damaged files are repaired from a
good copy.

Each case flips bits at seeded places in files of a data directory and of a worker's store, starts a cluster
on them and compares every answer with plain ONNX Runtime's.
"""

from __future__ import annotations

import json
import random
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from clockwork import Client
from clockwork.errors import ClockworkError
from clockwork.formats.checksums import seal, unseal
from clockwork.formats.package import DamagedPackage, check_package
from tests.device.cuda_rig import CudaRig
from tests.device.fake import DRIVER
from tests.device.rig import affine, expected_affine
from tests.patience import eventually
from tests.process.cluster import ROOT, Cluster, running_cluster, same

OLD = ROOT / "tests" / "data" / "stores" / "0.1.0"
ABOUT = json.loads((OLD / "expected.json").read_text())
PROFILE = "07c2f66e50877d192c824e804f443600246540e09c0cbe7da107299fba1fe720"
REQUESTS = {
    one["model"]: (np.array(one["inputs"], np.float32), np.array(one["answer"], np.float32))
    for one in ABOUT["requests"]
    if not one["model"].startswith("away")
}
WORKER = ("--page-size", "4096")


def flip(path: Path, seed: int) -> str:
    """Flip a bit of a file; return where, as a text."""
    data = bytearray(path.read_bytes())
    bit = random.Random(seed).randrange(8 * len(data))
    data[bit // 8] ^= 1 << bit % 8
    path.write_bytes(data)
    return f"bit {bit} of {path.name} (seed {seed})"


def start(cluster: Cluster) -> None:
    cluster.start_worker(*WORKER, arena="1MiB", store="worker", name="worker")


def settled(client: Client) -> bool:
    """Whether every registered model is ready or has failed."""
    return all(model.state in ("ready", "failed", "unloaded") for model in client.models())


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data directory and a store as this version writes them, with models of both holdings."""
    data = tmp_path_factory.mktemp("whole")
    shutil.copytree(OLD, data, dirs_exist_ok=True)
    shutil.rmtree(data / "emulated")
    (data / "controller" / "models" / "profile@1.json").unlink()
    shutil.rmtree(data / "controller" / "packages" / PROFILE)
    for _ in range(2):  # the second time with the changed findings of the first
        with running_cluster(data, workers=0) as cluster, cluster.client() as client:
            start(cluster)
            for name in ("packed", "split@1", "split@2"):
                client.load(name)
        shutil.rmtree(data / "tmp")
        hold(data / "worker")
    assert stored(data, "worker/prepared/*/weights.bin")
    assert stored(data, "worker/prepared/*/packed.data")
    return data


def hold(store: Path) -> None:
    """Set the holdings of models; measurements of such small models could choose either."""
    for path in store.glob("prepared/*/prepared.json"):
        body, _ = unseal(path.read_bytes())
        wanted = "packed" if body["digest"] == ABOUT["digests"]["packed@1"] else "bound"
        for finding in store.glob(f"programs/{body['program']}/finding-*.json"):
            found, _ = unseal(finding.read_bytes())
            finding.write_bytes(seal(found | {"holding": wanted}))
        if body["holding"] != wanted:
            shutil.rmtree(path.parent)


@pytest.fixture
def data(whole: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(whole, tmp_path / "data"))


def stored(data: Path, pattern: str) -> list[Path]:
    found = sorted(path for path in data.glob(pattern) if path.is_file() and not path.name.startswith("."))
    assert found, pattern
    return found


def ask(client: Client, model: str) -> str:
    """Return the outcome of a request: "right", or the error. Never a wrong answer."""
    inputs, expected = REQUESTS[model]
    try:
        answer = client.infer(model, inputs)
    except ClockworkError as error:
        return f"{type(error).__name__}: {error}"
    assert same(answer, expected), f"{model} answered {answer}"
    return "right"


def all_right(client: Client) -> bool:
    said = {model: ask(client, model) for model in REQUESTS}
    print({model: text for model, text in said.items() if text != "right"})
    return set(said.values()) == {"right"}


def stats_of(client: Client) -> dict[str, Any]:
    return dict(client.status()["workers"][0]["stats"])


def cases(*patterns: str, slow: tuple[str, ...] = (), seeds: int = 4) -> list[Any]:
    """(pattern, seed); all but the first seed of the first patterns take long together, two more take
    minutes."""
    return [
        pytest.param(
            pattern,
            seed,
            marks=[pytest.mark.long] if seed > 1 else [pytest.mark.slow] if seed or pattern in slow else [],
        )
        for pattern in (*patterns, *slow)
        for seed in range(seeds)
    ]


@pytest.mark.parametrize(("pattern", "seed"), cases(
    "worker/prepared/*/weights.bin", "worker/prepared/*/packed.data", "worker/prepared/*/prepared.json",
    slow=("worker/prepared/*/packed.onnx", "worker/programs/*/program.onnx", "worker/programs/*/finding-*.json"),
))  # fmt: skip
def test_a_prepared_model_that_is_damaged_is_prepared_again(data: Path, pattern: str, seed: int) -> None:
    where = [flip(path, seed) for path in stored(data, pattern)]
    print(where)
    with running_cluster(data, workers=0) as cluster, cluster.client() as client:
        start(cluster)
        first = [ask(client, model) for model in REQUESTS]
        print(first)
        eventually(lambda: all_right(client), "all answers are right")
        if "finding" not in pattern:
            stats = eventually(lambda: (one := stats_of(client))["damaged"] and one, "it is counted")
            assert stats["damage"]
            assert "damaged" in stats["damage"] or "cannot" in stats["damage"]
    if "prepared/" in pattern:
        assert list((data / "worker" / "prepared").glob(".damaged-*"))


@pytest.mark.parametrize("pattern", [
    pytest.param("prepared/*/weights.bin", marks=pytest.mark.slow),
    pytest.param("programs/*/modules/*", marks=pytest.mark.slow),
    *(pytest.param(one, marks=pytest.mark.long) for one in
      ("prepared/*/prepared.json", "programs/*/program.json", "packages/*/weights.bin")),
])  # fmt: skip
def test_what_a_gpu_would_be_given_is_held_against_its_checksums(tmp_path: Path, pattern: str) -> None:
    """On the fake driver. Models of one program share its modules, and each has weights of its own."""
    rig = CudaRig(tmp_path / "packages")
    models = [affine(seed, width=100) for seed in range(3)]
    x = np.random.default_rng(0).standard_normal((2, 100)).astype(np.float32)

    def served(client: Client) -> bool:
        """Check that each answer is right, or none."""
        count = 0
        for index, one in enumerate(models):
            try:
                answer = client.infer(f"m{index}", x)
            except ClockworkError as error:
                print(error)
                continue
            assert same(answer, expected_affine(one, x))
            count += 1
        return count == len(models)

    def start_gpu(cluster: Cluster) -> None:
        environment = DRIVER
        cluster.start_worker(
            "--device", "cuda", arena="1MiB", environment=environment, store="worker", name="worker"
        )

    data = tmp_path / "data"
    with running_cluster(data, workers=0) as cluster, cluster.client() as client:
        start_gpu(cluster)
        for index, one in enumerate(models):
            client.register(f"m{index}", rig.package(one, [([x[:1]], [expected_affine(one, x[:1])])]))
        assert served(client)
    shutil.rmtree(data / "tmp")
    where = [
        flip(path, 113) for path in stored(data, f"worker/{pattern}")
    ]  # a weight's exponent, if the byte is in a weight
    print(where)
    if "packages" in pattern:  # packages are read only if the prepared files are gone
        shutil.rmtree(data / "worker" / "prepared")
    with running_cluster(data, workers=0) as cluster, cluster.client() as client:
        start_gpu(cluster)
        served(client)
        eventually(lambda: served(client), "all answers are right")
        if "packages" not in pattern:  # checks by the preparation count, not the worker's own
            eventually(lambda: stats_of(client)["damaged"], "it is counted")
    place = pattern.split("/")[0]
    assert list((data / "worker" / place).glob(".damaged-*"))


def test_a_model_is_checked_in_idle_time_and_then_not_again(data: Path) -> None:
    with running_cluster(data, workers=0) as cluster, cluster.client() as client:
        start(cluster)
        eventually(lambda: settled(client), "models are ready")
        eventually(lambda: stats_of(client)["models_unchecked"] == 0, "all have been checked")
        assert stats_of(client)["damaged"] == 0
        for path in stored(data, "worker/prepared/*/weights.bin"):
            path.write_bytes(path.read_bytes())  # the file gets the same bytes, so nothing is to be found
        assert all_right(client)


def test_what_is_damaged_and_asked_for_by_nobody_is_found_and_repaired_in_idle_time(data: Path) -> None:
    for path in stored(data, "worker/prepared/*/weights.bin"):
        flip(path, 7)
    with running_cluster(data, workers=0) as cluster, cluster.client() as client:
        start(cluster)
        stats = eventually(
            lambda: (
                (one := stats_of(client)) and one["repaired"] == 2 and not one["models_unchecked"] and one
            ),
            "both are repaired",
        )
        assert stats["damaged"] == 2
        assert all_right(client)


@pytest.mark.parametrize("seed", [0, pytest.param(1, marks=pytest.mark.slow)])
def test_a_damaged_package_of_a_worker_is_fetched_again(data: Path, seed: int) -> None:
    shutil.rmtree(data / "worker" / "prepared")  # so that the damaged file is needed
    for path in stored(data, "worker/packages/*/*"):
        flip(path, seed)
    with running_cluster(data, workers=0) as cluster, cluster.client() as client:
        start(cluster)
        eventually(lambda: settled(client), "models are ready")
        assert all_right(client)
        eventually(lambda: stats_of(client)["damaged"] >= len(REQUESTS), "all are counted")
        troubles = client.status()["troubles"]["open"]
        assert [(one["kind"], one["subject"]) for one in troubles] == [
            ("file_repaired", "store of worker worker")
        ]
    assert list((data / "worker" / "packages").glob(".damaged-*"))


def test_a_repair_that_comes_out_differently_is_announced_anew(data: Path) -> None:
    """The measurement of the program now has another holding: the controller must not plan by the old one."""
    for path in stored(data, "worker/prepared/*/weights.bin"):
        flip(path, 3)
    for path in stored(data, "worker/programs/*/finding-*.json"):
        body, _ = unseal(path.read_bytes())
        path.write_bytes(seal(body | {"holding": "packed"}))
    with running_cluster(data, workers=0) as cluster, cluster.client() as client:
        start(cluster)
        cluster.workers[0].wait_for("prepared differently|starting over")
        eventually(lambda: all_right(client), "all answers are right")
        assert client.model("split@1").raw["holding"] == "packed"


def everything(root: Path) -> list[Path]:
    """Every file with bytes, except the format's mark: without the mark no reader can know the format."""
    found = sorted(path for path in root.rglob("*") if path.is_file() and path.stat().st_size)
    return [path for path in found if path.name != "format"]


def packages_are_whole(root: Path) -> bool:
    packages = [path for path in (root / "packages").iterdir() if not path.name.startswith(".")]
    try:
        return bool([check_package(path) for path in packages]) and len(packages) == len(ABOUT["digests"])
    except DamagedPackage:
        return False


def test_a_damaged_package_of_the_catalogue_is_fetched_from_a_worker(data: Path) -> None:
    for path in stored(data, "controller/packages/*/model.onnx"):
        flip(path, 5)
    with running_cluster(data, workers=0) as cluster, cluster.client() as client:
        eventually(lambda: client.status()["packages_unchecked"] == 0, "all packages have been looked at")
        kinds = [one["kind"] for one in client.status()["troubles"]["open"]]
        assert kinds == ["file_damaged"] * len(ABOUT["digests"])
        start(cluster)
        # No worker needs the package of an unloaded model until it is loaded.
        eventually(lambda: settled(client), "models are ready")
        client.load("away")
        eventually(lambda: packages_are_whole(data / "controller"), "the worker has brought them back")
        eventually(
            lambda: {one["kind"] for one in client.status()["troubles"]["open"]} == {"file_repaired"},
            "and it is said",
        )
        assert all_right(client)
    assert len(list((data / "controller" / "packages").glob(".damaged-*"))) == 4


def test_a_damaged_package_is_taken_from_the_next_upload_of_the_same_content(data: Path, whole: Path) -> None:
    digest = ABOUT["digests"]["packed@1"]
    model = (whole / "controller" / "packages" / digest / "model.onnx").read_bytes()
    flip(data / "controller" / "packages" / digest / "model.onnx", 2)
    shutil.rmtree(data / "worker")
    with running_cluster(data, workers=0) as cluster, cluster.client() as client:
        start(cluster)
        assert client.register("other", model).state == "ready"
        inputs, expected = REQUESTS["packed@1"]
        assert same(client.infer("other", inputs), expected)
        eventually(lambda: packages_are_whole(data / "controller"), "it is whole")


def test_a_damaged_package_of_a_model_that_serves_is_taken_from_its_next_registration(
    data: Path, whole: Path
) -> None:
    digest = ABOUT["digests"]["packed@1"]
    model = (whole / "controller" / "packages" / digest / "model.onnx").read_bytes()
    flip(data / "controller" / "packages" / digest / "model.onnx", 2)
    # so that no worker can send the package, and the model is prepared
    shutil.rmtree(data / "worker" / "packages")
    with running_cluster(data, workers=0) as cluster, cluster.client() as client:
        start(cluster)
        eventually(lambda: client.model("packed").state == "ready", "it serves")
        eventually(lambda: client.status()["packages_unchecked"] == 0, "all packages have been looked at")
        assert not packages_are_whole(data / "controller")
        assert client.register("packed", model).reference == "packed@1", "the version that is there"
        assert packages_are_whole(data / "controller")
        kinds = {one["kind"] for one in client.status()["troubles"]["open"]}
        assert kinds == {"file_repaired"}


@pytest.mark.parametrize("seed", [0, *(pytest.param(seed, marks=pytest.mark.long) for seed in range(1, 4))])
@pytest.mark.parametrize("side", ["controller", "worker", "both"])
def test_every_file_has_a_flipped_bit(data: Path, side: str, seed: int) -> None:
    """If one side has lost a file the other has it; if both have, there is no good copy, and the failure is
    clear."""
    for root in ("controller", "worker") if side == "both" else (side,):
        for number, path in enumerate(everything(data / root)):
            flip(path, 100 * seed + number)
    with running_cluster(data, workers=0) as cluster, cluster.client() as client:
        start(cluster)
        if side == "both":
            eventually(lambda: settled(client), "models are ready or have failed")
            for model in 3 * list(REQUESTS):
                said = ask(client, model)
                assert said == "right" or said.startswith(f"Unavailable: {model} cannot be served: "), said
        else:
            eventually(lambda: all_right(client), "all answers are right")
