"""A catalogue whose process is killed at random moments under changes: nothing is lost, and nothing in part.

    python -m tests.process.killed_catalog DIR N SEED [URL]

Each of N rounds starts a process that opens the catalogue in DIR, makes random changes by the seed, and
tells of each that is acknowledged. It is killed (SIGKILL) at a random moment, and the catalogue that is found
must be that after the last acknowledged change, or after the next one, which was under way. URL: of a
catalogue in PostgreSQL.
"""

from __future__ import annotations

import hashlib
import os
import random
import signal
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

from clockwork.controller.catalog import backup
from clockwork.controller.catalog.options import check_options
from clockwork.controller.catalog.records import Change, ModelRecord
from clockwork.controller.catalog.routes import NameRoute, whole
from clockwork.controller.catalog.store import Catalog
from clockwork.formats.package import PackageFile, digest_of
from tests.catalogues import apply, open_catalog

State = tuple[tuple[ModelRecord, ...], tuple[NameRoute, ...], tuple[str, ...]]
"""Records, routes and unused packages, each in order."""

CHANGES_AT_MOST = 40  # acknowledged changes after which a process is killed
DELAY_MAX_S = 0.003
NAMES = "abcdef"


def record(name: str, version: int, rng: random.Random) -> ModelRecord:
    content = f"{name}{version}".encode()
    files = [PackageFile("model.onnx", len(content), hashlib.sha256(content).hexdigest())]
    options = check_options({"slo_ns": rng.randrange(1, 1 << 40), "origin": "x" * rng.randrange(3000)})
    return ModelRecord(name, version, digest_of(files), files, options, rng.random() < 0.8)


def next_change(state: State, rng: random.Random) -> Change:
    """A random change that a controller in this state could make."""
    records, routes, _ = state
    name = rng.choice(NAMES)
    mine = [one for one in records if one.name == name]
    route = next((one for one in routes if one.name == name), None)
    newest = mine[-1].version if mine else 0
    match rng.randrange(5) if mine else 0:
        case 0:
            return Change(save=[record(name, newest + 1, rng)], route=NameRoute(name, whole(newest + 1)))
        case 1:
            return Change(save=[record(name, one.version, rng) for one in mine])
        case 2:
            gone = [one.digest for one in mine]
            return Change(remove=mine, packages=gone, unroute=name if route is not None else "")
        case 3:
            return Change(remove=mine[:1], packages=[mine[0].digest])
    return Change(route=NameRoute(name, whole(newest), [whole(rng.randrange(1, 99))]))


def after(state: State, change: Change) -> State:
    """The state that a change leaves."""
    records = {(one.name, one.version): one for one in state[0]}
    routes = {one.name: one for one in state[1]}
    unused = dict.fromkeys(state[2]) | dict.fromkeys(change.packages)
    for one in change.save:
        records[one.name, one.version] = one
        unused.pop(one.digest, None)
    for one in change.remove:
        del records[one.name, one.version]
    if change.route is not None:
        routes[change.route.name] = change.route
    routes.pop(change.unroute, None)
    return (
        tuple(records[key] for key in sorted(records)),
        tuple(routes[name] for name in sorted(routes)),
        tuple(sorted(unused)),
    )


def found_in(catalog: Catalog) -> State:
    (records, complaints), (routes, more) = catalog.records(), catalog.routes()
    assert complaints + more == []
    return tuple(records), tuple(routes), tuple(sorted(catalog.unused()))


def changing(root: Path, url: str, seed: str, to: int) -> NoReturn:
    """Make changes until the process is killed, and write a byte for each that is acknowledged."""
    backup.BACKUP_PAUSE_S = 0.0
    rng = random.Random(seed)
    with open_catalog(root, url=url) as catalog:
        state = found_in(catalog)
        catalog.keep_backup(lambda *_: None)
        while True:
            change = next_change(state, rng)
            apply(catalog, change)
            os.write(to, b".")
            state = after(state, change)


def kill_once(root: Path, url: str, state: State, seed: str) -> tuple[State, int]:
    """Have a process make changes and be killed. Returns the state found, and the number of changes."""
    rng = random.Random(f"kill {seed}")
    ours, theirs = os.pipe()
    child = os.fork()
    if not child:
        try:
            changing(root, url, seed, theirs)
        finally:
            os._exit(1)
    os.close(theirs)
    acknowledged = 0
    wanted = rng.randrange(CHANGES_AT_MOST)
    while acknowledged < wanted and (got := os.read(ours, 4096)):
        acknowledged += len(got)
    time.sleep(rng.random() * DELAY_MAX_S)  # the random moment
    os.kill(child, signal.SIGKILL)
    while got := os.read(ours, 4096):
        acknowledged += len(got)
    os.close(ours)
    _, status = os.waitpid(child, 0)
    assert os.WIFSIGNALED(status), f"the process ended by itself (seed {seed}, status {status})"
    with open_catalog(root, url=url) as catalog:
        found = found_in(catalog)
    changes = random.Random(seed)
    for _ in range(acknowledged):
        state = after(state, next_change(state, changes))
    following = after(state, next_change(state, changes))
    assert found in (state, following), f"after {acknowledged} changes of seed {seed}"
    return found, acknowledged


def kill_often(root: Path, url: str, count: int, seed: int) -> int:
    """Kill so many processes. Returns how many changes were acknowledged."""
    state: State = ((), (), ())
    total = 0
    for number in range(count):
        state, acknowledged = kill_once(root, url, state, f"{seed}.{number}")
        total += acknowledged
    return total


def main(arguments: Sequence[str]) -> int:
    root, count, seed = Path(arguments[0]), int(arguments[1]), int(arguments[2])
    total = kill_often(root, arguments[3] if len(arguments) > 3 else "", count, seed)
    print(f"{count} processes were killed, {total} changes were acknowledged, and each of them was found")
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
