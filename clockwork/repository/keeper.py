"""Registers and unregisters models so that a cluster follows its model repositories (see repository.folders).

The keeper has its own thread and client, because a registration takes seconds and must not block the servers'
event loop. Several gateways may follow the same repository, because registering a registered model changes
nothing.
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import dataclasses
import logging
import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from clockwork.client.blocking import Client
from clockwork.config import repository as bounds
from clockwork.errors import (
    ClockworkError,
    ConfigError,
    InvalidModel,
    ModelNotFound,
    RequestTimeout,
    Unavailable,
)
from clockwork.repository.demands import SOURCE_KEY, adapted, package_digest
from clockwork.repository.folders import Contents, Folder, RegistrationState, Version, plan, scan
from clockwork.repository.overrides import FILE, Override
from clockwork.repository.remote import Remote
from clockwork.repository.triton_config import FolderConfig, Queueing
from clockwork.sources.cache import Cache
from clockwork.sources.location import Location, require_library
from clockwork.sources.reading import SourceFailed
from clockwork.system.clock import now_ns, to_ns
from clockwork.system.words import say_count
from clockwork.wire.description import ModelInfo
from clockwork.wire.references import model_reference

log = logging.getLogger("clockwork.gateway")

ALL = "*"  # In place of a name of a model to load at start: all models


class RepositoryKeeper:
    """Follows model repositories.

    roots: the repositories; of two models with the same name, the first repository's is served. cache: keeps
    the files of remote repositories; None: no repository is remote.

    mode: "poll" scans every poll_s; "none" scans once; "explicit" registers the models that load() names, and
    at start those in ``first`` ("*": all). Raises ConfigError for a folder that cannot be read, and where the
    library that reads a remote repository is missing. An unreachable remote repository is no error.
    """

    def __init__(
        self,
        roots: Sequence[Path | Location],
        mode: str,
        poll_s: float,
        connect: Callable[[], Client],
        first: Sequence[str] = (),
        cache: Cache | None = None,
    ) -> None:
        self._waiting = list(first)  # names of models to load at start
        self._repositories: list[Folder | Remote] = []
        for root in roots:
            if isinstance(root, Location):
                require_library(root)
                assert cache is not None, "fetched files need a place"
                self._repositories.append(Remote(root, poll_s, mode == "poll", cache))
            else:
                self._repositories.append(Folder(root))
        self._remotes = [repository for repository in self._repositories if isinstance(repository, Remote)]
        self._mode = mode
        self._poll_s = poll_s
        self._origin = bounds.REPOSITORY_ORIGIN + ":".join(map(str, self._repositories))
        # The results of the last scans.
        self._folders = {
            repository: scan(repository)
            for repository in self._repositories
            if isinstance(repository, Folder)
        }
        self._unread: dict[Folder, str] = {}  # folders that the last scan could not read, with the reason
        # Repositories that were reported to the controller as unreadable
        self._reported: set[Folder | Remote] = set()
        self._lock = threading.Lock()  # guards the fields below; not held during calls to the cluster
        self._overrides: dict[str, Override] = {}  # the override of each model's last load
        self._loaded: set[str] = set()  # models that were loaded since the last scan of all repositories
        self._before = self._scan()
        self._client = connect()
        self._done: dict[tuple[str, int], RegistrationState] = {}
        self._busy: set[tuple[str, int]] = set()
        self._ended = threading.Condition(self._lock)  # a registration has ended
        # Versions that the first scan found, and whose registration the cluster has not answered yet.
        self._starting = {
            key: None for key in self._before.versions if mode != "explicit" or {"*", key[0]} & {*first}
        }
        # Remote repositories whose first listing has not been acted upon.
        self._awaited = set(self._remotes if mode != "explicit" or first else ())
        self._broken: dict[str, str] = {}
        self._held: frozenset[tuple[str, int]] = frozenset()  # versions that the last plan holds
        # Versions of the cluster whose unregistration failed and is to be tried again.
        self._leaving: set[tuple[str, int]] = set()
        self._has_told = False  # whether the outcome of the start was logged
        self._stop = threading.Event()
        self._pool = concurrent.futures.ThreadPoolExecutor(bounds.REGISTERING_MAX, "repository")
        self.queueing: dict[str, Queueing] = {}
        """By model: its configuration's defaults for requests without a priority or a timeout."""

        self.labels: dict[tuple[str, int], Mapping[str, Sequence[str]]] = {}
        """By model and version in the cluster: the names of classes by output."""

        self.loads = concurrent.futures.ThreadPoolExecutor(bounds.LOADING_MAX, "load")
        """Threads for calls of load(), which may take minutes."""
        self._thread = threading.Thread(target=self._run, name="repository", daemon=True)

    def start(self) -> None:
        for remote in self._remotes:
            remote.start()
        self._thread.start()

    def close(self) -> None:
        """End all threads. The controller finishes a registration that is under way."""
        self._stop.set()
        with self._lock:
            self._ended.notify_all()
        # Queued work is cancelled before the client is closed. Closing the client ends the calls of the
        # pools' threads, which would then begin queued work.
        self._pool.shutdown(wait=False, cancel_futures=True)
        self.loads.shutdown(wait=False, cancel_futures=True)
        self._client.close()
        for remote in self._remotes:
            remote.close()
        self._pool.shutdown()
        self.loads.shutdown()
        if self._thread.ident is not None:
            self._thread.join()
        for override in self._overrides.values():
            override.close()

    # ----- for the servers, any thread --------------------------------------------------------

    def why_not_ready(self) -> str:
        """Return the reason why the start is not over; "" once every version found is served or has failed.

        An unreachable remote repository does not delay the end of the start.
        """
        with self._lock:
            awaited = [remote for remote in self._remotes if remote in self._awaited and not remote.trouble]
            if awaited:
                return f"the model repository {awaited[0]} has not been listed yet"
            for name, version in self._starting:
                count = len(self._starting)
                if count == 1:
                    return f"{name}@{version} of the model repository is not served yet"
                return f"{count} models of the repository are not served yet, among them {name}@{version}"
        return ""

    def missing(self) -> list[dict[str, str]]:
        """Return rows of the repository index for versions that are not registered, with the reasons."""
        with self._lock:
            rows = [
                (name, str(version), "UNAVAILABLE", done.error)
                for (name, version), done in sorted(self._done.items())
                if done.error and (name, version) not in self._busy
            ]
            for name, version in sorted(self._busy):
                rows.append((name, str(version), "LOADING", self._progress(name, version)))
            broken = dict(self._broken)
            known = {name for name, _ in (*self._done, *self._busy)}
        rows += [(name, "", "UNAVAILABLE", why) for name, why in broken.items()]
        rows += [(str(remote), "", "UNAVAILABLE", why) for remote in self._remotes if (why := remote.trouble)]
        if self._mode == "explicit":
            names = {name for name, _ in self._before.versions} - known - set(broken)
            rows += [(name, "", "", "") for name in sorted(names)]
        return [dict(zip(("name", "version", "state", "reason"), row)) for row in rows]

    def _progress(self, name: str, version: int) -> str:
        return next(filter(None, (remote.progress(name, version) for remote in self._remotes)), "")

    def load(self, name: str, parameters: Mapping[str, Any]) -> bool:
        """Register the versions of a model from its present files, and return when they are ready.

        parameters: the load's, which may have a configuration and files. These hold until the next load of
        the model. A load without parameters, where none hold, has an effect only in explicit mode.

        Returns False where nothing was done, or where no repository has the model. Raises InvalidInput for
        unknown parameters, InvalidModel for a broken folder, SourceFailed for a remote repository that does
        not answer, and the errors of registering.
        """
        with self._lock:
            earlier = self._overrides.get(name)
        if not parameters and earlier is None and self._mode != "explicit":
            return False
        override = Override(name, parameters) if parameters else None
        try:
            found = self._look_for(name) if override is None else self._look_with(override)
            self._override(name, override)
            try:
                is_done = self._load(name, found)
            except BaseException:
                self._override(name, earlier)
                raise
            finally:
                self._before = self._scan()
        except BaseException:
            if override is not None:
                override.close()
            raise
        if earlier is not None:
            earlier.close()
        return is_done

    def _look_with(self, override: Override) -> Contents:
        """Scan a model's folder with the configuration and files of a load. Raises ModelNotFound."""
        name = override.name
        if not override.brings_files:
            found = self._look_for(name)
            base = next(
                (version.repository for key, version in found.versions.items() if key[0] == name), None
            )
            if base is None and name in found.broken:  # the load may replace the broken files
                base = next((folder for folder in self._folders if name in folder.folders()), None)
            if base is None:
                raise ModelNotFound(
                    f"no model repository has {name!r}; a load of a new model brings its files ({FILE}1/model.onnx)"
                )
            override.stand_on(base)
        return scan(override)

    def _look_for(self, name: str) -> Contents:
        """Scan the repositories in order until one has the model, and return its contents."""
        found = Contents({}, {})
        for repository in self._repositories:
            found = self._look_now(repository)
            if name in found.broken or any(name == known for known, _ in found.versions):
                break
        return found

    def _override(self, name: str, override: Override | None) -> None:
        with self._lock:
            self._loaded.add(name)
            if override is None:
                self._overrides.pop(name, None)
            elif len(self._overrides) >= bounds.OVERRIDES_MAX and name not in self._overrides:
                raise Unavailable(
                    f"{bounds.OVERRIDES_MAX} models have a configuration from their last load, which is the most; load one without"
                )
            else:
                self._overrides[name] = override

    def _load(self, name: str, found: Contents) -> bool:
        if name in found.broken:
            raise InvalidModel(found.broken[name])
        wanted = [version for key, version in sorted(found.versions.items()) if key[0] == name]
        if not wanted:
            return False
        for version in wanted:
            key = (name, version.version)
            with self._ended:
                while key in self._busy and not self._stop.is_set():
                    self._ended.wait()
                known = self._done.get(key)
                is_due = known is None or known.error or known.fingerprint != version.fingerprint
                if is_due:
                    self._busy.add(key)
            if is_due:
                self._register(version)
                with self._lock:
                    done = self._done[key]
                if done.error:
                    text = f"{name} version {version.version}: {done.error}"
                    raise Unavailable(text) if done.again else InvalidModel(text)
        with self._lock:
            gone = [key for key in self._done if key[0] == name and key not in found.versions]
        for key in gone:
            self._unregister(key)
        self._retire_again(name)
        return True

    def _tell_start(self) -> None:
        """Log once, when the start is over, the outcome for the models found."""
        if self._stop.is_set() or self.why_not_ready():
            return
        with self._lock:
            if self._has_told:
                return
            self._has_told = True
            versions = {key: done for key, done in self._done.items() if done.fingerprint}
            failed = [f"{name}@{version}" for (name, version), done in sorted(versions.items()) if done.error]
            failed += [f"{name} (its folder is wrong)" for name in sorted(self._broken)]
        text = f"{say_count(len(versions) - sum(bool(done.error) for done in versions.values()), 'model')} of the repository served"
        if failed:
            more = len(failed) - bounds.FAILED_SHOWN
            text += f", {len(failed)} failed: {', '.join(failed[: bounds.FAILED_SHOWN])}{f' and {more} more' if more > 0 else ''}"
        log.info("model repository: the start is over: %s", text)

    # ----- the thread -------------------------------------------------------------------------

    def _run(self) -> None:
        before: Contents | None = None
        found = self._before
        is_complete = not self._remotes  # whether all repositories have been listed
        has_taken_over, is_tidy = False, False
        listed: list[Remote] = []  # awaited repositories whose listing is part of ``found``
        while True:
            try:
                if not has_taken_over:
                    self._take_over()
                    has_taken_over = True
                if self._mode != "explicit":
                    self._follow(found, before, is_complete)
                else:
                    self._load_waiting(found)
                    if is_complete and not self._waiting and not is_tidy:
                        self._tidy(found)
                        is_tidy = True
                self._report()
            except ClockworkError as error:
                if self._stop.is_set():
                    return
                log.warning("model repository: %s", error)
            except Exception as error:  # a defect of the gateway must not end the thread
                if self._stop.is_set():
                    return
                log.error("model repository: a look at it failed", exc_info=error)
            with self._lock:
                self._awaited.difference_update(listed)
            self._tell_start()
            if self._mode == "explicit" and is_tidy and not self._waiting:
                return
            if self._mode == "none" and has_taken_over and is_complete and not self._unsettled(found):
                return
            if self._stop.wait(self._poll_s):
                return
            before = found
            with self._lock:
                self._loaded.clear()
            if self._mode == "poll":
                self._look_at_folders()
            with self._lock:
                listed = [remote for remote in self._awaited if remote.is_known]
            is_complete = all(remote.is_known for remote in self._remotes)
            self._before = found = self._scan()
            if self._mode != "explicit":
                with self._lock:
                    tried = {key for key, done in self._done.items() if done.fingerprint}
                    keys = [key for remote in listed for key in remote.look().versions]
                    self._starting |= {
                        key: None for key in keys if key not in tried and key in found.versions
                    }

    def _take_over(self) -> None:
        """Take over the versions that an earlier run registered from these repositories."""
        for info in self._client.models():
            if info.raw.get("origin") == self._origin:
                done = RegistrationState(
                    (), served=info.version, digest=info.digest, is_ready=info.state == "ready"
                )
                with self._lock:
                    self._done.setdefault((info.name, info.version), done)

    def _load_waiting(self, found: Contents) -> None:
        """Load the models of --load-model.

        A model that no repository has waits while any repository is not listed yet.
        """
        is_known = all(remote.is_known for remote in self._remotes)
        names = [name for name in self._waiting if name != ALL]
        if ALL in self._waiting:
            with self._lock:
                known = {name for (name, _), done in self._done.items() if done.fingerprint}
            names += sorted({name for name, _ in found.versions} - known - set(names))
        left = [ALL] if ALL in self._waiting and not is_known else []
        now = now_ns()
        for name in names:
            with self._lock:
                later = any(key[0] == name and done.again_ns > now for key, done in self._done.items())
            try:
                if later or not (self._load(name, found) or is_known):
                    left.append(name)
                elif not any(name == known for known, _ in found.versions):
                    log.warning("model repository: there is no %s to be loaded", name)
            except Unavailable:  # _register() has recorded the failure
                left.append(name)
            except (ClockworkError, OSError) as error:
                log.warning("model repository: %s: %s", name, error)
        self._waiting = left
        with self._lock:
            self._starting.clear()

    def _unsettled(self, found: Contents) -> bool:
        with self._lock:
            if self._busy or self._leaving or any(done.again for done in self._done.values()):
                return True
            done = dict(self._done)
        return bool(plan(done, found, None, now_ns()).unregister)

    def _follow(self, found: Contents, before: Contents | None, is_complete: bool) -> None:
        with self._lock:
            for name in found.broken.keys() - self._broken.keys():
                log.warning("model repository: %s: %s", name, found.broken[name])
            self._broken = dict(found.broken)
            self._starting = {key: None for key in self._starting if key in found.versions}
            busy = set(self._busy)
            done = dict(self._done)
            # Models that were loaded since the scan may differ from its result.
            busy |= {key for key in (*done, *found.versions) if key[0] in self._loaded}
        wanted = plan(done, found, before, now_ns(), is_complete)
        for version in wanted.register:
            key = (version.name, version.version)
            with self._lock:
                is_free = key not in busy and key not in self._busy and version.name not in self._loaded
                if is_free:
                    self._busy.add(key)
            if is_free:
                (version.repository.pool or self._pool).submit(self._register, version)
        self._retire_again()
        for key in wanted.unregister:
            with self._lock:
                is_free = key not in busy and key[0] not in self._loaded
            if is_free:
                self._unregister(key)
        for name, number in sorted({*wanted.held} - self._held):
            log.info("model repository: %s version %d serves until its successor is ready", name, number)
        self._held = frozenset(wanted.held)

    def _tidy(self, found: Contents) -> None:
        """In explicit mode, unregister the models of an earlier run whose folders are gone."""
        here = {name for name, _ in found.versions} | {*found.broken}
        with self._lock:
            gone = [key for key, done in self._done.items() if key[0] not in here and not done.fingerprint]
        for key in gone:
            self._unregister(key)

    def _report(self) -> None:
        """Report unreadable repositories to the controller, after each scan because the controller may have
        restarted."""
        for repository in self._repositories:
            why = self._failure_of(repository)
            if why:
                self._reported.add(repository)
                self._client.report_source(str(repository), why)
            elif repository in self._reported:
                self._client.report_source(str(repository), "")
                self._reported.discard(repository)

    def _failure_of(self, repository: Folder | Remote) -> str:
        """Return the reason why a repository or a version in it cannot be read; "": all can be read."""
        if isinstance(repository, Folder):
            return self._unread.get(repository, "")
        with self._lock:
            failed = {key: done.error for key, done in self._done.items() if done.failures}
        versions = repository.look().versions
        fetches = (
            f"{name} version {version}: {why}"
            for (name, version), why in failed.items()
            if (name, version) in versions
        )
        return repository.failure or next(fetches, "")

    def _look_at_folders(self) -> None:
        """Scan the repositories on this machine.

        The versions of an unreadable repository stay, as it may come back.
        """
        for folder in self._folders:
            try:
                self._folders[folder] = scan(folder)
            except ConfigError as error:
                if folder not in self._unread:
                    log.warning("%s; models registered from it are still served", error)
                self._unread[folder] = str(error)
            else:
                self._unread.pop(folder, None)

    def _look_now(self, repository: Folder | Remote) -> Contents:
        if isinstance(repository, Remote):
            return repository.look_now()
        self._folders[repository] = scan(repository)
        return self._folders[repository]

    def _scan(self) -> Contents:
        """Return the contents of all repositories, from the last scans of folders and the last remote
        listings."""
        versions: dict[tuple[str, int], Version] = {}
        broken: dict[str, str] = {}
        numbers: dict[str, frozenset[int]] = {}
        all_found = [
            repository.look() if isinstance(repository, Remote) else self._folders[repository]
            for repository in self._repositories
        ]
        there = {name for found in all_found for name in (*found.broken, *(key[0] for key in found.versions))}
        with self._lock:
            for name, override in list(self._overrides.items()):
                if not override.brings_files and name not in there:
                    del self._overrides[name]  # the folder that the override covers is gone
            overrides = list(self._overrides.values())
        for found in (*map(scan, overrides), *all_found):
            taken = {name for name, _ in versions} | set(broken)
            versions.update({key: version for key, version in found.versions.items() if key[0] not in taken})
            broken.update({name: why for name, why in found.broken.items() if name not in taken})
            numbers.update({name: all_ for name, all_ in found.numbers.items() if name not in taken})
        return Contents(versions, broken, numbers)

    def _register(self, version: Version) -> None:
        """Register a version with the cluster, and note the outcome."""
        key = (version.name, version.version)
        config = version.config
        with self._lock:
            earlier = self._done.get(key)
        # The earlier files serve until the new files are registered.
        done = RegistrationState(version.fingerprint)
        if earlier is not None:
            done = dataclasses.replace(
                earlier,
                fingerprint=version.fingerprint,
                error="",
                again=False,
                failures=0,
                refusals=0,
                again_ns=0,
            )
        before = (
            earlier
            if earlier is not None and earlier.fingerprint == done.fingerprint
            else RegistrationState(())
        )
        is_answered = True
        for note in config.notes:
            log.info("model repository: %s: %s", version.name, note)
        try:
            with version.copy() as source, adapted(version, source) as (path, optional):
                has_same_files = self._is_made_otherwise(version, done, source, path, optional)
                if has_same_files:
                    self._make_room(version, done)
                info = self._enter(version, path, optional)
                old, old_digest = done.served, done.digest
                self._note(done, version, info)
                is_gone = old not in (0, info.version) and self._retire(version.name, old)
                if is_gone and old == version.version and (has_same_files or info.digest == old_digest):
                    # The weights are the same, so the version is registered again under its own number.
                    other = info.version
                    info = self._enter(version, path, optional)
                    self._note(done, version, info)
                    if other != info.version:
                        self._retire(version.name, other)
            self.queueing[version.name] = config.queueing
            self.labels[version.name, info.version] = version.labels
            log.info("model repository: %s version %d is registered", version.name, version.version)
            with self._lock:
                self._leaving.discard((version.name, info.version))
            if info.version != version.version:
                log.warning(
                    "model repository: %s version %d has new files, and is version %d of the cluster",
                    version.name, version.version, info.version,
                )  # fmt: skip
        except SourceFailed as error:
            done.error, done.again = str(error), True
            done.failures = 1 + before.failures
            self._put_off(done, done.failures)
            if done.failures == 1 and not self._stop.is_set():
                log.warning(
                    "model repository: %s version %d: %s; it is tried again",
                    version.name,
                    version.version,
                    error,
                )
        except (RequestTimeout, Unavailable, ConnectionError) as error:
            done.error, done.again = str(error), True
            is_answered = isinstance(error, Unavailable)
            if is_answered:  # retries back off, because each may cost an upload and a preparation
                done.refusals = 1 + before.refusals
                self._put_off(done, done.refusals)
        except (ClockworkError, OSError) as error:
            done.error = str(error)
            log.warning("model repository: %s version %d: %s", version.name, version.version, error)
        except Exception as error:  # a defect of the gateway, or an unforeseen file
            done.error = f"{type(error).__name__}: {error}"
            log.error("model repository: %s version %d", version.name, version.version, exc_info=error)
        finally:
            with self._lock:
                self._done[key] = done
                self._busy.discard(key)
                self._ended.notify_all()
                if is_answered:
                    self._starting.pop(key, None)
        self._tell_start()

    def _note(self, done: RegistrationState, version: Version, info: ModelInfo) -> None:
        done.served, done.is_ready = info.version, True
        done.making, done.digest = version.making, info.digest

    def _is_made_otherwise(
        self, version: Version, done: RegistrationState, source: Path, path: Path, optional: list[str] | None
    ) -> bool:
        """Whether the version in the cluster has the folder's files, prepared by another configuration.

        source: the version's file or folder. path, optional: as in _enter(). A version that an earlier run
        registered is compared by the digests of packages.
        """
        if not done.served:
            return False
        if done.making is not None:
            return done.making != version.making and done.making.files == version.making.files
        try:
            info = self._client.model(model_reference(version.name, done.served))
        except ModelNotFound:
            return False
        options = info.raw.get("options") or {}
        if info.digest == package_digest(path, optional):
            return any(options.get(key) != value for key, value in _preparation_of(version.config).items())
        return package_digest(source, optional) in (info.digest, info.metadata.get(SOURCE_KEY))

    def _enter(self, version: Version, path: Path, optional: list[str] | None) -> ModelInfo:
        """Register a version with the cluster, and return once it is ready.

        path: its file or folder. optional: its optional inputs, in the form of Client.register().
        """
        config = version.config
        return self._client.register(
            version.name,
            path,
            optional_inputs=optional,
            # All options are given, so that none is inherited from the version before.
            slo=config.slo_s or 0,
            **_preparation_of(config),
            force=True,
            version=version.version,
            origin=self._origin,
        )

    def _make_room(self, version: Version, done: RegistrationState) -> None:
        """Unregister a version whose configuration alone has changed, if newer versions of its model serve.

        While the old registration stays, the new one would get the highest number, and requests that name no
        version would get the answers of old weights. After unregistration the version gets its own number
        again.
        """
        with self._lock:
            newest = max(
                (
                    number
                    for (name, number), done in self._done.items()
                    if name == version.name and done.served
                ),
                default=0,
            )
        if done.served == version.version < newest and self._retire(version.name, done.served):
            done.served = 0

    def _put_off(self, done: RegistrationState, count: int) -> None:
        """Set a version's next try, after a pause that doubles with each failure. count: failed tries."""
        done.again_ns = now_ns() + to_ns(min(bounds.RETRY_MAX_S, self._poll_s * 2 ** min(count - 1, 20)))

    def _unregister(self, key: tuple[str, int]) -> None:
        with self._lock:
            done = self._done.pop(key, None)
        if done is not None and done.served:
            log.info("model repository: %s version %d is gone", *key)
            self._retire(key[0], done.served)

    def _retire(self, name: str, served: int) -> bool:
        """Unregister a version of the cluster, and return whether it is gone; a failure is retried after the
        next scan."""
        self.labels.pop((name, served), None)
        try:
            with contextlib.suppress(ModelNotFound):  # the version is already unregistered
                self._client.unregister(model_reference(name, served))
        except ClockworkError as error:  # refused, for example because a route names the version
            with self._lock:
                is_new = (name, served) not in self._leaving
                self._leaving.add((name, served))
            if is_new and not self._stop.is_set():
                log.warning("model repository: %s", error)
            return False
        with self._lock:
            self._leaving.discard((name, served))
        return True

    def _retire_again(self, only: str = "") -> None:
        with self._lock:
            busy = {name for name, _ in self._busy}
            leaving = sorted(key for key in self._leaving if key[0] not in busy and only in ("", key[0]))
        for name, served in leaving:
            self._retire(name, served)


def _preparation_of(config: FolderConfig) -> dict[str, Any]:
    """Return the options of a registration that decide how workers prepare a version."""
    return {
        "batching": "off" if config.batch_max == 0 else "auto",
        "batch_max": config.batch_max or 0,
        "dtype": "fp32",
    }
