"""Takes models as another worker of the same kind has prepared them, instead of preparing them again.

    wanted -> BundleOffer -> fetched, against the offered SHA-256 -> tried in a process -> taken
                  | none                | wrong, cut, too slow            | fails
                  +---------------------+---------------------------------+--> prepared here

No other process opens the bytes that arrive before the one that tries them has run the model once, and has
put it in its place among the prepared models (models.bundles). Until then they lie in a directory of their
own. A worker that is killed leaves its directory there, which is removed a day later, as the leftovers of
preparations are.
"""

from __future__ import annotations

import shutil
import tempfile
from collections import deque
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from clockwork.config.formats import TRANSFERS_MAX
from clockwork.config.worker import (
    BUNDLE_CHUNK_BYTES,
    BUNDLE_TRIAL_NS,
    BUNDLE_WINDOW,
    BUNDLES_AT_ONCE,
)
from clockwork.errors import InvalidModel
from clockwork.formats.bundles import parse_bundle
from clockwork.formats.fetching import PackageFetcher, Pieces
from clockwork.formats.package import PackageFile, PackageStore, PackageWriter, digest_of
from clockwork.wire import codec
from clockwork.wire.messages import BundleOffer, BundleRefused, BundleWanted, Chunk, Fetch, Status
from clockwork.worker.opening import WorkerModel
from clockwork.worker.preparation import Job, PreparationProcess
from clockwork.worker.stores import BUNDLES_PREFIX


class Taken(NamedTuple):
    """The end of an attempt to take a model. text: why it could not be taken; "": it is in its place, or
    there was nothing to take."""

    model: WorkerModel
    is_taken: bool
    text: str


class BundleTaker:
    """The models that are being taken. Every method belongs to the loop's thread.

    send: sends an encoded message to the controller. wake: has the loop call poll() soon, from any thread.
    make_job: the job of the preparation process that tries a model's bundle, without its folder. admit: the
    reason why a bundle of so many bytes cannot be taken; "": it can. stays: PreparationProcess's, for a
    worker of which FETCHes are predicted.
    """

    def __init__(
        self,
        prepared: Path,
        send: Callable[[bytes], object],
        wake: Callable[[], None],
        make_job: Callable[[WorkerModel], Job],
        admit: Callable[[WorkerModel, int], str] = lambda model, size: "",
        stays: bool = False,
    ) -> None:
        self._admit = admit
        self._send = send
        self._wake = wake
        self._make_job = make_job
        self._waiting: deque[WorkerModel] = deque()  # those of which the controller has not been asked
        self._asked: dict[int, WorkerModel] = {}  # by model id, until they end
        self._offers: dict[int, BundleOffer] = {}  # of these, where a worker has the model
        self._fetching: dict[str, list[WorkerModel]] = {}  # by digest of the bundle
        self._trying: dict[int, tuple[str, list[WorkerModel]]] = {}  # digest and models, by job
        self._ended: list[Taken] = []
        self._landing = _Landing(prepared)
        pieces = Pieces(BUNDLE_CHUNK_BYTES, BUNDLE_WINDOW, TRANSFERS_MAX, syncs=False)
        self._fetcher = PackageFetcher(self._landing, self._send_fetch, wake, pieces)
        self._process = PreparationProcess(wake, limit_ns=BUNDLE_TRIAL_NS, stays=stays)
        self._job_id = 0

    def want(self, model: WorkerModel) -> None:
        """Take a model if another worker has it; poll() returns the end."""
        self._waiting.append(model)
        self._ask()

    def drop(self, model: WorkerModel) -> bool:
        """Forget a model. Returns whether it was being taken."""
        if model in self._waiting:
            self._waiting.remove(model)
            return True
        model_id = model.message.model_id
        if self._asked.pop(model_id, None) is None:
            return False
        self._offers.pop(model_id, None)
        for digest, models in list(self._fetching.items()):
            if model in models:
                models.remove(model)
                if not models:
                    del self._fetching[digest]
                    self._fetcher.cancel(digest)
        self._ask()
        return True

    def reset(self) -> None:
        """Forget all models: they were of another session with the controller."""
        self._waiting.clear()
        self._asked.clear()
        self._offers.clear()
        self._fetching.clear()
        self._fetcher.reset()
        self._ended.clear()

    def on_offer(self, offer: BundleOffer) -> None:
        """Take the controller's answer."""
        model = self._asked.get(offer.model_id)
        if model is None or offer.model_id in self._offers:
            return
        if not offer.files:
            self._end([model], "")
            return
        self._offers[offer.model_id] = offer
        try:
            files = parse_bundle(offer.files)
        except InvalidModel as error:
            self._end([model], str(error))
            return
        if why := self._admit(model, sum(file.bytes for file in files)):
            self._end([model], why, is_local=True)
            return
        digest = digest_of(files)
        self._fetching.setdefault(digest, []).append(model)
        self._fetcher.start(digest, files)

    def on_chunk(self, chunk: Chunk, frame: Any) -> None:
        """Take a piece of a bundle. frame: bytes-like, or None."""
        failed = self._fetcher.on_chunk(chunk, frame)
        if failed is not None:
            self._end(self._fetching.pop(failed.digest, []), failed.text)

    def poll(self) -> list[Taken]:
        """Return the models whose attempts have ended since the last call."""
        for fetched in self._fetcher.poll():
            models = self._fetching.pop(fetched.digest)
            if fetched.status != Status.OK:
                self._end(models, fetched.text, is_local=fetched.is_local)
            else:
                self._job_id += 1
                self._trying[self._job_id] = fetched.digest, models
                job = self._make_job(models[0]) | {"bundle": str(self._landing.directory(fetched.digest))}
                self._process.submit(self._job_id, job)
        for done in self._process.poll():
            digest, tried = self._trying.pop(done.job_id)
            if done.status != Status.OK:  # a process that died has left it
                self._landing.remove(digest)
            models = [
                model
                for model in tried
                if self._asked.get(model.message.model_id) is model  # otherwise it was dropped meanwhile
            ]
            is_local = done.status == Status.INTERNAL
            self._end(models, done.text, is_taken=done.status == Status.OK, is_local=is_local)
        ended, self._ended = self._ended, []
        return ended

    @property
    def count(self) -> int:
        """The number of models that are being taken, or wait."""
        return len(self._waiting) + len(self._asked)

    @property
    def is_idle(self) -> bool:
        """Whether no model is being taken, not even one that was dropped meanwhile."""
        return not (self.count or self._trying)

    def close(self) -> None:
        """Stop the thread and the process, and remove what was not taken."""
        self._fetcher.close()
        self._process.close()
        self._landing.close()

    # ----- inside ------------------------------------------------------------------------------

    def _ask(self) -> None:
        while self._waiting and len(self._asked) < BUNDLES_AT_ONCE:
            model = self._waiting.popleft()
            self._asked[model.message.model_id] = model
            self._send(codec.encode(BundleWanted(model.message.model_id)))

    def _end(
        self, models: Sequence[WorkerModel], text: str, is_taken: bool = False, is_local: bool = False
    ) -> None:
        """End attempts. text: why they failed. is_local: for a reason of this machine, not of the peer."""
        for model in models:
            model_id, told = model.message.model_id, text
            del self._asked[model_id]
            offer = self._offers.pop(model_id, None)
            if text and offer is not None:
                told = f"as worker {offer.holder} has prepared it: {text}"
                self._send(codec.encode(BundleRefused(model_id, "" if is_local else told)))
            self._ended.append(Taken(model, is_taken, told))
        self._wake()  # an answer of the controller may have ended them, and not poll()
        self._ask()

    def _send_fetch(self, fetch: Fetch) -> None:
        self._send(codec.encode(fetch))


class _Landing:
    """The directory in which bundles arrive, made when it is needed: the store of a PackageFetcher."""

    def __init__(self, prepared: Path) -> None:
        self._prepared = prepared
        self._store: PackageStore | None = None

    def writer(self, files: Sequence[PackageFile]) -> PackageWriter:
        """Begin a bundle; called by the fetcher's thread. Raises OSError."""
        if (
            self._store is None or not self._store.root.is_dir()
        ):  # leftovers of long ago are removed by others
            self._prepared.mkdir(parents=True, exist_ok=True)
            self._store = PackageStore(Path(tempfile.mkdtemp(prefix=BUNDLES_PREFIX, dir=self._prepared)))
        return self._store.writer(files)

    def directory(self, digest: str) -> Path:
        """The directory of a bundle that has arrived."""
        assert self._store is not None
        return self._store.directory(digest)

    def remove(self, digest: str) -> None:
        """Remove what a failed trial has left of a bundle."""
        if self._store is not None:
            shutil.rmtree(self._store.directory(digest), ignore_errors=True)

    def close(self) -> None:
        if self._store is not None:
            shutil.rmtree(self._store.root, ignore_errors=True)
