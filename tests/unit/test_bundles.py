"""Bundles at the controller: who is offered what, and the relay of pieces between workers, bad ones too."""

from __future__ import annotations

import hashlib
from collections import deque
from typing import Any

import pytest

from clockwork.config.controller import (
    BUNDLE_PIECES_HELD_MAX,
    BUNDLE_PIECES_MAX,
    BUNDLE_WAIT_NS,
    BUNDLES_BESIDE_REQUESTS,
    BUNDLES_CALM_NS,
    BUNDLES_OFFERED_MAX,
)
from clockwork.controller.catalog.records import ModelRecord
from clockwork.controller.effects import Effect, NoteTrouble, SendWorker
from clockwork.controller.models.version import FETCHABLE, ModelVersion
from clockwork.controller.registration.bundles import BundleRelay
from clockwork.controller.registration.preparation_book import PREPARING, READY
from clockwork.controller.registration.table import ModelTable
from clockwork.errors import InvalidInput, InvalidModel
from clockwork.formats.bundles import parse_bundle
from clockwork.formats.package import PackageFile, digest_of, rows_of
from clockwork.wire.messages import BundleOffer, BundleRefused, Chunk, Fetch, Status

CONTENTS = {"prepared.json": b"about", "weights.bin": b"weights", "program.onnx": b"program"}


def bundle(**changes: bytes) -> list[PackageFile]:
    """Return the files of a bundle; changes: contents, by name without its ending."""
    given = {name: changes.get(name.partition(".")[0], content) for name, content in CONTENTS.items()}
    return [
        PackageFile(name, len(content), hashlib.sha256(content).hexdigest())
        for name, content in given.items()
    ]


FILES = bundle()
DIGEST = digest_of(FILES)


class Cluster:
    """Workers of the kind "k" whose number is positive, and of the kind "other" whose number is negative."""

    def __init__(self, *workers: int, models: int = 1) -> None:
        self.effects: deque[Effect] = deque()
        self.table = ModelTable(self.effects)
        self.bundles = BundleRelay(self.effects, self.table)
        self.models: list[ModelVersion] = []
        self.now_ns = 0
        for number in range(models):
            model = self.table.add(ModelRecord(f"m{number}", 1, "0" * 64, [], {}))
            self.table.enlist(model)
            self.models.append(model)
        for worker in workers:
            self.bundles.joined(worker, f"w{worker}", "k" if worker > 0 else "other")
            for model in self.models:
                model.workers[worker] = PREPARING

    def made(self, worker: int, files: list[PackageFile] = FILES, number: int = 0) -> None:
        self.models[number].workers[worker] = READY
        self.bundles.made(worker, self.models[number], files)

    def wanted(self, worker: int, number: int = 0) -> BundleOffer:
        self.bundles.wanted(worker, self.models[number].model_id)
        effect = self.effects.pop()
        assert isinstance(effect, SendWorker)
        assert effect.worker == worker
        assert isinstance(effect.message, BundleOffer)
        return effect.message

    def fetch(self, worker: int, offset: int = 0, length: int = 5, file: int = 0) -> bool:
        return self.bundles.fetch(worker, Fetch(DIGEST, file, offset, length), self.now_ns)

    def chunk(self, holder: int, frame: bytes | None, offset: int = 0, status: Status = Status.OK) -> bool:
        return self.bundles.chunk(holder, Chunk(DIGEST, 0, offset, status), frame, self.now_ns)

    def sent(self) -> list[tuple[int, Any, list[Any]]]:
        """Return the messages to workers since the last call, with their frames."""
        found, others = [], []
        while self.effects:
            effect = self.effects.popleft()
            if isinstance(effect, SendWorker):
                found.append((effect.worker, effect.message, list(effect.frames)))
            else:
                others.append(effect)
        self.effects.extend(others)
        return found


def failure(worker: int, offset: int = 0) -> tuple[int, Chunk, list[bytes]]:
    return worker, Chunk(DIGEST, 0, offset, Status.INTERNAL), [b""]


def test_a_bundle_is_offered_to_workers_of_the_same_kind_alone() -> None:
    cluster = Cluster(1, 2, -3)
    assert cluster.wanted(2).files == []  # nobody has it
    cluster.made(1)
    offer = cluster.wanted(2)
    assert (offer.holder, parse_bundle(offer.files)) == ("w1", FILES)
    assert cluster.wanted(-3).files == []
    assert cluster.wanted(1).files == []  # it does not prepare the model


def test_two_workers_that_both_lack_a_model_are_offered_nothing() -> None:
    cluster = Cluster(1, 2)
    assert cluster.wanted(1).files == cluster.wanted(2).files == []
    cluster.made(1)
    cluster.made(2, bundle(weights=b"measured otherwise"))  # it has prepared the model itself meanwhile
    cluster.bundles.joined(3, "w3", "k")
    cluster.models[0].workers[3] = PREPARING
    assert digest_of(parse_bundle(cluster.wanted(3).files)) == DIGEST
    cluster.bundles.settled(3, 1)
    cluster.models[0].forget_holder(1)
    cluster.bundles.left(1)
    assert cluster.wanted(3).files == []  # what the second has is not what was recorded ...
    cluster.made(2, bundle(weights=b"measured otherwise"))  # ... unless nobody has that
    assert cluster.wanted(3).holder == "w2"


def test_pieces_pass_from_the_holder_to_who_asked_and_offers_are_spread() -> None:
    cluster = Cluster(1, 2, 3, 4)
    cluster.made(1)
    cluster.made(2)
    assert {cluster.wanted(3).holder, cluster.wanted(4).holder} == {"w1", "w2"}
    cluster.bundles.settled(4, 1)
    holder = {"w1": 1, "w2": 2}[cluster.wanted(4).holder]
    assert cluster.fetch(4)
    assert cluster.sent() == [(holder, Fetch(DIGEST, 0, 0, 5), [])]
    assert cluster.chunk(holder, b"about")
    assert cluster.sent() == [(4, Chunk(DIGEST, 0, 0, Status.OK), [b"about"])]
    assert not cluster.chunk(holder, b"about")  # it was not asked for again
    assert not cluster.fetch(1)  # nothing is offered to it
    cluster.made(4)
    cluster.bundles.settled(4, 1)
    assert not cluster.fetch(4)


def test_a_piece_that_two_wait_for_is_read_once() -> None:
    cluster = Cluster(1, 2, 3)
    cluster.made(1)
    for worker in (2, 3):
        cluster.wanted(worker)
        assert cluster.fetch(worker)
    assert cluster.sent() == [(1, Fetch(DIGEST, 0, 0, 5), [])]
    assert cluster.fetch(3, length=4)  # another piece from the same place waits for the first
    assert cluster.sent() == []
    cluster.chunk(1, b"about")
    chunk = Chunk(DIGEST, 0, 0, Status.OK)
    assert cluster.sent() == [(2, chunk, [b"about"]), (3, chunk, [b"about"]), (1, Fetch(DIGEST, 0, 0, 4), [])]


@pytest.mark.parametrize("frame", [b"", b"abou", b"about it", None])
def test_a_piece_of_another_size_is_passed_to_nobody(frame: bytes | None) -> None:
    cluster = Cluster(1, 2)
    cluster.made(1)
    cluster.wanted(2)
    cluster.fetch(2)
    cluster.sent()
    assert cluster.chunk(1, frame)
    assert cluster.sent() == [failure(2)]


def test_a_holder_that_is_refused_is_not_offered_again() -> None:
    cluster = Cluster(1, 2, 3)
    cluster.made(1)
    cluster.wanted(2)
    cluster.bundles.refused(2, BundleRefused(1, "'weights.bin' arrived damaged"))
    (trouble,) = cluster.effects
    assert isinstance(trouble, NoteTrouble)
    assert trouble.subject == "m0@1 as prepared by worker w1"
    assert "worker w2 refused it" in trouble.text
    cluster.effects.clear()
    assert cluster.wanted(3).files == []
    cluster.bundles.refused(2, BundleRefused(1, "again"))  # nothing was offered
    cluster.bundles.refused(2, BundleRefused(77, "of a model that is gone"))
    assert not cluster.effects
    cluster.made(2, bundle(weights=b"prepared anew"))
    assert cluster.wanted(3).holder == "w2"


def test_a_worker_that_lacks_room_holds_nothing_against_the_holder() -> None:
    cluster = Cluster(1, 2, models=2)
    for number in (0, 1):
        cluster.made(1, number=number)
    cluster.wanted(2)
    cluster.bundles.refused(2, BundleRefused(1, ""))
    assert not cluster.effects
    assert cluster.bundles._workers[1].giving == 0
    assert cluster.wanted(2).holder == "w1"


def test_whoever_waits_for_a_worker_that_leaves_is_told() -> None:
    cluster = Cluster(1, 2, 3)
    cluster.made(1)
    for worker in (2, 3):
        cluster.wanted(worker)
    cluster.fetch(2)
    for piece in range(BUNDLE_PIECES_HELD_MAX + 1):
        cluster.fetch(3, offset=10 + piece)
    assert len(cluster.sent()) == BUNDLE_PIECES_HELD_MAX
    cluster.bundles.left(1)
    told = cluster.sent()
    assert failure(2) in told
    assert [told for told in told if told[0] == 3] == [
        failure(3, 10 + piece) for piece in range(BUNDLE_PIECES_HELD_MAX + 1)
    ]
    cluster.fetch(2)
    assert cluster.sent() == [failure(2)]
    assert not cluster.chunk(1, b"about")  # late


def test_a_worker_that_leaves_while_it_fetches_leaves_nothing() -> None:
    cluster = Cluster(1, 2, 3)
    cluster.made(1)
    cluster.wanted(2)
    cluster.fetch(2)
    cluster.bundles.left(2)
    cluster.sent()
    assert cluster.chunk(1, b"about")
    assert cluster.sent() == []
    assert cluster.wanted(3).holder == "w1"
    assert cluster.bundles._workers[1].giving == 1
    assert not cluster.bundles._holders


def test_a_holder_that_does_not_answer_is_given_up() -> None:
    cluster = Cluster(1, 2)
    cluster.made(1)
    cluster.wanted(2)
    cluster.fetch(2)
    cluster.sent()
    cluster.bundles.beat(BUNDLE_WAIT_NS, 0)
    assert cluster.sent() == []
    cluster.bundles.beat(BUNDLE_WAIT_NS + 1, 0)
    assert cluster.sent() == [failure(2)]


def test_what_a_worker_may_ask_for_is_bounded() -> None:
    cluster = Cluster(1, 2, models=BUNDLES_OFFERED_MAX + 1)
    for number in range(BUNDLES_OFFERED_MAX + 1):
        cluster.made(1, number=number)
    for number in range(BUNDLES_OFFERED_MAX):
        assert cluster.wanted(2, number).files
    with pytest.raises(InvalidInput, match="at most 64 prepared models"):
        cluster.bundles.wanted(2, cluster.models[-1].model_id)
    for piece in range(BUNDLE_PIECES_MAX):
        cluster.fetch(2, offset=piece)
    with pytest.raises(InvalidInput, match="at most 64 pieces"):
        cluster.fetch(2, offset=1000)
    assert len(cluster.sent()) == BUNDLE_PIECES_HELD_MAX


def test_a_worker_that_leaves_in_order_is_offered_to_nobody() -> None:
    cluster = Cluster(1, 2)
    cluster.made(1)
    cluster.bundles.drains(1)
    assert cluster.wanted(2).files == []


LONG = "0" * 64
BAD: dict[str, list[list[Any]]] = {
    "no description": [["weights.bin", 1, LONG], ["program.onnx", 1, LONG]],
    "a file twice": [["prepared.json", 1, LONG], ["program.onnx", 1, LONG], ["program.onnx", 1, LONG]],
    "a path": [["prepared.json", 1, LONG], ["../program.onnx", 1, LONG]],
    "an absolute path": [["prepared.json", 1, LONG], ["/etc/passwd", 1, LONG]],
    "another file": [["prepared.json", 1, LONG], ["weights.bin", 1, LONG], ["package.json", 1, LONG]],
    "no hash": [["prepared.json", 1, LONG], ["program.onnx", 1, "0"]],
    "too large": [["prepared.json", 1, LONG], ["program.onnx", 1 << 40, LONG]],
    "a description that is too large": [["prepared.json", 1 << 30, LONG], ["program.onnx", 1, LONG]],
    "none": [],
}


@pytest.mark.parametrize("bad", BAD)
def test_a_list_of_other_files_is_no_bundle(bad: str) -> None:
    with pytest.raises(InvalidModel):
        parse_bundle(BAD[bad])
    assert parse_bundle(rows_of(FILES)) == FILES


MANY = BUNDLES_BESIDE_REQUESTS + 3


def wanting(worker: int = 2) -> Cluster:
    """A cluster in which a worker asks for many models that another has made, while requests come."""
    cluster = Cluster(1, worker, models=MANY)
    for number in range(MANY):
        cluster.made(1, number=number)
    cluster.bundles.beat(0, 7)
    for model in cluster.models:
        cluster.bundles.wanted(worker, model.model_id)
    return cluster


def offered(cluster: Cluster) -> list[int]:
    """Return the models that were offered since the last call, by place."""
    places = {model.model_id: place for place, model in enumerate(cluster.models)}
    return [places[message.model_id] for _, message, _ in cluster.sent() if type(message) is BundleOffer]


def test_beside_requests_a_worker_of_a_shared_machine_is_offered_one_model_after_the_other() -> None:
    cluster = wanting()
    assert offered(cluster) == [0]
    cluster.bundles.settled(2, cluster.models[0].model_id)  # it has it
    assert offered(cluster) == [1]
    cluster.bundles.refused(2, BundleRefused(cluster.models[1].model_id, ""))  # it makes it itself
    assert offered(cluster) == [2]
    cluster.bundles.settled(2, cluster.models[3].model_id)  # another way: it is wanted no more
    cluster.bundles.settled(2, cluster.models[2].model_id)
    assert offered(cluster) == []


def test_what_waits_is_offered_at_once_when_no_more_requests_come() -> None:
    cluster = wanting()
    assert offered(cluster) == [0]
    cluster.bundles.beat(BUNDLES_CALM_NS // 2, 8)  # another request
    cluster.bundles.beat(BUNDLES_CALM_NS, 8)
    assert offered(cluster) == []
    cluster.bundles.beat(BUNDLES_CALM_NS // 2 + BUNDLES_CALM_NS, 8)
    assert offered(cluster) == [1, 2, 3]


def test_a_worker_alone_on_its_machine_waits_for_nobody() -> None:
    cluster = wanting()
    assert offered(cluster) == [0]
    cluster.bundles.shares_machine(2, False)
    assert offered(cluster) == [1, 2, 3]


def test_a_fetch_that_was_planned_does_not_wait() -> None:
    cluster = wanting()
    assert offered(cluster) == [0]
    cluster.models[3].workers[2] = FETCHABLE
    cluster.bundles.settled(2, cluster.models[3].model_id)
    cluster.bundles.wanted(2, cluster.models[3].model_id)
    assert offered(cluster) == [3]


def test_a_worker_whose_holder_leaves_is_told_of_each_model_that_waits() -> None:
    cluster = wanting()
    assert offered(cluster) == [0]
    cluster.bundles.left(1)
    cluster.bundles.refused(2, BundleRefused(cluster.models[0].model_id, "it does not come"))
    offers = [message for _, message, _ in cluster.sent() if type(message) is BundleOffer]
    assert [offer.files for offer in offers] == [[], [], []], "all that waited, as nothing is to be taken"


def test_a_worker_may_not_have_more_wait_than_it_may_be_offered() -> None:
    cluster = Cluster(1, 2, models=BUNDLES_OFFERED_MAX + 1)
    for number in range(BUNDLES_OFFERED_MAX + 1):
        cluster.made(1, number=number)
    cluster.bundles.beat(0, 1)
    for model in cluster.models[:-1]:
        cluster.bundles.wanted(2, model.model_id)
    with pytest.raises(InvalidInput, match=f"at most {BUNDLES_OFFERED_MAX} prepared models"):
        cluster.bundles.wanted(2, cluster.models[-1].model_id)
