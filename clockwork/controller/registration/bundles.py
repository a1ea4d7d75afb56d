"""Prepared models from one worker for others of the same kind: what each has, and the relay between them.

A worker that has prepared a model tells the list of its bundle's files with their SHA-256
(formats.bundles). The first list of a kind of worker is recorded, and offered to each worker of that kind
that is about to prepare the model. That worker asks for pieces; the relay asks the holder for them and passes
them on as they come. The receiver compares every byte with the recorded list. Where anything is wrong, it
prepares the model itself (or its FETCH fails), and the holder is asked for that bundle no more.

A worker that shares its machine with others would take their processors from them. While requests come, it
is offered one model after the other, and the rest of what it wants waits. FETCHes, which the scheduler has
planned, do not.

The bytes pass the controller because every worker is connected to it already, by a key of its own: a
connection between two workers would be another port to open, to bound and to attack. Bounded are the pieces
that a worker waits for, the pieces that a holder reads at once, and the time that a piece may take. A piece
that several workers wait for is asked for once. Pure: every method is an event, and effects are appended to
``effects``.
"""

from __future__ import annotations

import dataclasses
import logging
from collections import deque
from collections.abc import Sequence
from typing import Any

import msgpack

from clockwork.config.controller import (
    BUNDLE_PIECES_HELD_MAX,
    BUNDLE_PIECES_MAX,
    BUNDLE_WAIT_NS,
    BUNDLES_BESIDE_REQUESTS,
    BUNDLES_CALM_NS,
    BUNDLES_OFFERED_MAX,
)
from clockwork.controller.effects import Effect, NoteTrouble, SendWorker
from clockwork.controller.models.version import FETCHABLE, Bundle, ModelVersion
from clockwork.controller.registration.preparation_book import PREPARING
from clockwork.controller.registration.table import ModelTable
from clockwork.controller.troubles import TroubleKind
from clockwork.errors import InvalidInput
from clockwork.formats.package import PackageFile, digest_of, rows_of
from clockwork.wire.messages import BundleOffer, BundleRefused, Chunk, Fetch, Status
from clockwork.wire.telling import printable

log = logging.getLogger("clockwork.controller")


@dataclasses.dataclass(slots=True)
class _Worker:
    name: str
    kind: str  # equal for workers that can use each other's bundles; "": none can use this worker's
    is_draining: bool = False
    yields: bool = True  # whether others may be on its machine
    offers: dict[int, _Offer] = dataclasses.field(default_factory=dict)  # by model id, until it is settled
    wanting: deque[int] = dataclasses.field(default_factory=deque)  # models that wait for an offer
    asked: int = 0  # pieces that it waits for
    giving: int = 0  # offers of others that name it as the holder


@dataclasses.dataclass(slots=True)
class _Offer:
    """A bundle that a worker may fetch, and the worker that it comes from."""

    bundle: Bundle
    holder: int


@dataclasses.dataclass(slots=True)
class _Piece:
    """A piece that a holder is reading. workers: those that wait for it."""

    length: int
    since_ns: int
    workers: list[int]


@dataclasses.dataclass(slots=True)
class _Holder:
    """The pieces that a worker has been asked for, by (digest, file, offset), and those that wait for it."""

    pieces: dict[tuple[str, int, int], _Piece] = dataclasses.field(default_factory=dict)
    waiting: deque[tuple[int, Fetch]] = dataclasses.field(default_factory=deque)


class BundleRelay:
    def __init__(self, effects: deque[Effect], table: ModelTable) -> None:
        self._effects = effects
        self._table = table
        self._workers: dict[int, _Worker] = {}
        self._holders: dict[int, _Holder] = {}
        self._request_count = 0
        self._calm_ns = 0  # from then on no request has come for BUNDLES_CALM_NS
        self._is_calm = True

    # ----- workers come and go -----------------------------------------------------------------

    def joined(self, worker: int, name: str, kind: str) -> None:
        """Note a worker. kind: equal for workers that can use each other's bundles; "": it has none."""
        self._workers[worker] = _Worker(name, kind)

    def drains(self, worker: int) -> None:
        """Offer no more bundles of a worker that leaves; it finishes those under way."""
        if worker in self._workers:
            self._workers[worker].is_draining = True

    def shares_machine(self, worker: int, yields: bool) -> None:
        """Note whether other processes of the cluster may be on a worker's machine; they may until this says
        otherwise."""
        if worker in self._workers:
            self._workers[worker].yields = yields
            self._offer_waiting(worker)

    def left(self, worker: int) -> None:
        """Forget a worker. Others that wait for a piece of its bundles are told that it does not come."""
        left = self._workers.pop(worker, None)
        for offer in left.offers.values() if left is not None else ():
            self._end(offer)
        self._fail(worker)

    def kind_of(self, worker: int) -> str:
        """The kind of a worker; "": no other can use its bundles."""
        return self._workers[worker].kind if worker in self._workers else ""

    # ----- what they have ----------------------------------------------------------------------

    def made(self, worker: int, model: ModelVersion, files: Sequence[PackageFile]) -> bool:
        """Note the bundle of a model that a worker has ready. files: of the bundle; none: it has no bundle.

        Another worker of the same kind may have prepared the model as well, and differently: then it is no
        holder, unless the recorded bundle has none left. Returns whether it takes the place of another
        bundle."""
        kind = self.kind_of(worker)
        if not kind or not files:
            return False
        digest, before = digest_of(files), model.bundles.get(kind)
        known = before
        if known is None or not known.holders:
            known = model.bundles[kind] = Bundle(digest, msgpack.packb(rows_of(files)), [])
        if known.digest == digest:
            known.holders.append(worker)
        return before is not None and before.digest != known.digest

    def settled(self, worker: int, model_id: int) -> None:
        """Withdraw the offer of a model that a worker has, or does not need any more."""
        if worker in self._workers:
            if model_id in self._workers[worker].wanting:
                self._workers[worker].wanting.remove(model_id)
            self._withdraw(worker, model_id)
            self._offer_waiting(worker)

    def _withdraw(self, worker: int, model_id: int) -> _Offer | None:
        offer = self._workers[worker].offers.pop(model_id, None)
        if offer is not None:
            self._end(offer)
        return offer

    def _end(self, offer: _Offer) -> None:
        if offer.holder in self._workers:
            self._workers[offer.holder].giving -= 1

    # ----- what they want ----------------------------------------------------------------------

    def wanted(self, worker: int, model_id: int) -> None:
        """Offer a worker the bundle of a model, or none, perhaps later. Raises InvalidInput if too many are
        offered."""
        asking, model = self._workers[worker], self._table.by_id.get(model_id)
        if len(asking.offers) + len(asking.wanting) >= BUNDLES_OFFERED_MAX:
            raise InvalidInput(f"a worker is offered at most {BUNDLES_OFFERED_MAX} prepared models at once")
        if model is not None and model.workers.get(worker) == PREPARING and model_id not in asking.wanting:
            asking.wanting.append(model_id)
            self._offer_waiting(worker)
        else:
            self._offer(worker, model_id)

    def _offer_waiting(self, worker: int) -> None:
        """Offer a worker what it waits for, as far as it may take it now."""
        asking = self._workers[worker]
        while asking.wanting and (
            self._is_calm or not asking.yields or len(asking.offers) < BUNDLES_BESIDE_REQUESTS
        ):
            self._offer(worker, asking.wanting.popleft())

    def _offer(self, worker: int, model_id: int) -> None:
        asking, model = self._workers[worker], self._table.by_id.get(model_id)
        bundle = None
        if model is not None and model.workers.get(worker) in (PREPARING, FETCHABLE):
            bundle = model.bundles.get(asking.kind)
        holders = (
            [] if bundle is None else [other for other in bundle.holders if self._may_give(other, worker)]
        )
        if bundle is None or not holders:
            self._effects.append(SendWorker(worker, BundleOffer(model_id, "", [])))
            return
        holder = min(holders, key=lambda other: self._workers[other].giving)
        self._withdraw(worker, model_id)
        self._workers[holder].giving += 1
        asking.offers[model_id] = _Offer(bundle, holder)
        offer = BundleOffer(model_id, self._workers[holder].name, msgpack.unpackb(bundle.rows))
        self._effects.append(SendWorker(worker, offer))

    def _may_give(self, holder: int, worker: int) -> bool:
        giving = self._workers.get(holder)
        return giving is not None and not giving.is_draining and holder != worker

    def refused(self, worker: int, message: BundleRefused) -> None:
        """Take the bundle from its holder that a worker could not use as it came."""
        offer = self._withdraw(worker, message.model_id)
        self._offer_waiting(worker)
        model = self._table.by_id.get(message.model_id)
        if offer is None or model is None or not message.text:
            return
        name, text = self._workers[worker].name, printable(message.text, 300)
        log.warning("%s takes no prepared %s: %s", name, model.label, text)
        holder = self._workers.get(offer.holder)
        if holder is not None and offer.holder in offer.bundle.holders:
            offer.bundle.holders.remove(offer.holder)
            subject = f"{model.label} as prepared by worker {holder.name}"
            text = f"worker {name} refused it: {text}"
            self._effects.append(NoteTrouble(TroubleKind.FILE_REPAIRED, subject, text))

    # ----- the relay ---------------------------------------------------------------------------

    def fetch(self, worker: int, fetch: Fetch, now_ns: int) -> bool:
        """Have a piece of an offered bundle sent. False: no bundle of that digest is offered to the worker.

        Raises InvalidInput if the worker waits for too many."""
        asking = self._workers[worker]
        offers = asking.offers.values()
        offer = next((offer for offer in offers if offer.bundle.digest == fetch.digest), None)
        if offer is None:
            return False
        if asking.asked >= BUNDLE_PIECES_MAX:
            raise InvalidInput(f"a worker waits for at most {BUNDLE_PIECES_MAX} pieces of prepared models")
        asking.asked += 1
        if offer.holder not in self._workers:
            self._give(worker, fetch, Status.INTERNAL, b"")
            return True
        self._holders.setdefault(offer.holder, _Holder()).waiting.append((worker, fetch))
        self._advance(offer.holder, now_ns)
        return True

    def chunk(self, holder: int, chunk: Chunk, frame: Any, now_ns: int) -> bool:
        """Pass a piece on to those that wait for it. False: nobody does."""
        held = self._holders.get(holder)
        piece = held.pieces.pop((chunk.digest, chunk.file, chunk.offset), None) if held is not None else None
        if piece is None:
            return False
        size = memoryview(frame).nbytes if frame is not None else 0
        is_right = chunk.status == Status.OK and size == piece.length
        status = Status.OK if is_right else Status.INTERNAL
        for worker in piece.workers:
            self._give(
                worker, Fetch(chunk.digest, chunk.file, chunk.offset, 0), status, frame if is_right else b""
            )
        self._advance(holder, now_ns)
        return True

    def beat(self, now_ns: int, request_count: int) -> None:
        """Give up holders that do not answer, and see whether requests come. request_count: of all requests
        that have ended so far. Called now and then."""
        if request_count != self._request_count:
            self._request_count, self._calm_ns = request_count, now_ns + BUNDLES_CALM_NS
        self._is_calm = now_ns >= self._calm_ns
        for worker in self._workers:
            self._offer_waiting(worker)
        for holder, held in list(self._holders.items()):
            if any(now_ns - piece.since_ns > BUNDLE_WAIT_NS for piece in held.pieces.values()):
                self._fail(holder)

    def _advance(self, holder: int, now_ns: int) -> None:
        """Ask a holder for the next pieces, as many as it may read at once."""
        held = self._holders[holder]
        while held.waiting:
            worker, fetch = held.waiting[0]
            place = (fetch.digest, fetch.file, fetch.offset)
            piece = held.pieces.get(place)
            if piece is not None and piece.length == fetch.length:
                piece.workers.append(worker)
            elif piece is not None or len(held.pieces) >= BUNDLE_PIECES_HELD_MAX:
                return
            else:
                held.pieces[place] = _Piece(fetch.length, now_ns, [worker])
                self._effects.append(SendWorker(holder, fetch))
            held.waiting.popleft()
        if not held.pieces:
            del self._holders[holder]

    def _fail(self, holder: int) -> None:
        """Tell all that wait for a holder's pieces that these do not come."""
        held = self._holders.pop(holder, _Holder())
        for (digest, file, offset), piece in held.pieces.items():
            for worker in piece.workers:
                self._give(worker, Fetch(digest, file, offset, 0), Status.INTERNAL, b"")
        for worker, fetch in held.waiting:
            self._give(worker, fetch, Status.INTERNAL, b"")

    def _give(self, worker: int, fetch: Fetch, status: Status, frame: Any) -> None:
        """Answer a worker's Fetch, if it is still there."""
        asking = self._workers.get(worker)
        if asking is not None:
            asking.asked -= 1
            chunk = Chunk(fetch.digest, fetch.file, fetch.offset, status)
            self._effects.append(SendWorker(worker, chunk, [frame]))
