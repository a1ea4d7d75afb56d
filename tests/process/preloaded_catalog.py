"""A catalogue whose system calls fail, one after another: tests/native/failing_disk.c is preloaded.

    LD_PRELOAD=failing_disk.so CLOCKWORK_FAILING=catalog. python -m tests.process.preloaded_catalog DIR

For each kind of change, each call of the change and each error: the change fails and nothing has changed, or
it holds; a copy of the files shows what the process has found in the database. Before each call, a forked
process makes the change and is killed there. Prints the numbers of changes by their ends as JSON.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import json
import os
import random
import shutil
import signal
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path

from clockwork.controller.catalog import database
from clockwork.controller.catalog.records import Change
from clockwork.controller.catalog.routes import NameRoute, whole
from clockwork.controller.catalog.store import Catalog
from clockwork.formats.durable import NotUndone
from tests.catalogues import apply, open_catalog
from tests.process.killed_catalog import State, after, found_in, record

ERRORS = (errno.EIO, errno.ENOSPC, errno.EROFS, errno.EINTR, errno.EDQUOT, errno.ENOMEM)
ENDS = -1  # see failing_disk.c

_disk = ctypes.CDLL(None)


def changes() -> dict[str, Callable[[State], Change]]:
    """A change of each kind, of a catalogue of any state."""
    rng = random.Random(0)
    return {
        "save": lambda state: Change(save=[record("a", len(state[0]) + 1, rng)]),
        "save several": lambda state: Change(
            save=[record("b", len(state[0]) + more, rng) for more in range(1, 9)],
            route=NameRoute("b", whole(1)),
        ),
        "remove": lambda state: Change(
            remove=[state[0][0]], packages=[state[0][0].digest], unroute="b" if state[1] else ""
        ),
    }


def is_made(catalog: Catalog, change: Change, call: int, error: int, on: bool) -> tuple[str, int]:
    """Make a change of which a call fails: "made", "refused", or "unsure"; and the number of its calls."""
    _disk.failing_disk_begin(call, error, on)
    try:
        apply(catalog, change)
        end = "made"
    except NotUndone:
        end = "unsure"
    except OSError:
        end = "refused"
    return end, _disk.failing_disk_end()


def copied(root: Path, place: Path) -> State:
    """The state that a controller finds that starts on a copy of the files."""
    shutil.rmtree(place, ignore_errors=True)
    shutil.copytree(root, place)
    with open_catalog(place) as catalog:
        complaints = [*catalog.records()[1], *catalog.routes()[1]]
        assert all(one.mended for one in complaints), complaints
        return (
            tuple(catalog.records()[0]),
            tuple(catalog.routes()[0]),
            tuple(sorted(catalog.unused())),
        )


def fail_each(root: Path, place: Path, counts: Counter[str]) -> None:
    for name, make in changes().items():
        for error in ERRORS:
            for on in (False,) if error == errno.EINTR else (False, True):  # SQLite tries again, for ever
                call = 0
                while True:
                    with open_catalog(root) as catalog:
                        state = found_in(catalog)
                        change = make(state)
                        end, calls = is_made(catalog, change, call, error, on)
                        found = copied(root, place)
                        wanted = {"made": (after(state, change),), "refused": (state,)}
                        where = f"{name}: call {call} of {calls}, {os.strerror(error)}{' and after' if on else ''}"
                        assert found in wanted.get(end, (state, after(state, change))), f"{end}, {where}"
                        assert on or end != "unsure", where
                        counts[end] += 1
                        held = change if end == "made" else None
                        if end != "made":  # and the next change is made
                            apply(catalog, Change(route=NameRoute("z", whole(call + 1))))
                            following = after(state, Change(route=NameRoute("z", whole(call + 1))))
                            assert copied(root, place) == following, where
                        else:
                            assert held is not None
                    if call >= calls:
                        break
                    call += 1


def kill_at_each(root: Path, place: Path, counts: Counter[str]) -> None:
    for name, make in changes().items():
        call = 0
        while True:
            with open_catalog(root) as catalog:
                state = found_in(catalog)
            change = make(state)
            child = os.fork()
            if not child:
                with contextlib.suppress(OSError), open_catalog(root) as catalog:
                    end, _ = is_made(catalog, change, call, ENDS, False)
                    os._exit(0 if end == "made" else 1)
                os._exit(1)
            _, status = os.waitpid(child, 0)
            found = copied(root, place)
            where = f"{name}: killed before call {call}"
            assert found in (state, after(state, change)), where
            if not os.WIFSIGNALED(status):
                assert (os.WEXITSTATUS(status), found) == (0, after(state, change)), where
                break
            assert os.WTERMSIG(status) == signal.SIGKILL
            counts["killed"] += 1
            call += 1


def main(root: Path) -> int:
    counts: Counter[str] = Counter()
    database.CATALOG_BUSY_S = 0.0  # a lock that fails is not another process's
    data = root / "data"
    with open_catalog(data) as catalog:
        for number in range(1, 40):
            apply(catalog, Change(save=[record("a", number, random.Random(number))]))
    kill_at_each(data, root / "copy", counts)
    fail_each(data, root / "copy", counts)
    print(json.dumps(counts))
    return 0


if __name__ == "__main__":
    raise SystemExit(main(Path(sys.argv[1])))
