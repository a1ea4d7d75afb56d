"""An honest client, whose every answer is checked, beside all attacks of strangers on a cluster.

This test covers unexpected messages: `clockwork up` as a user starts it, every attack of attacks.py at once,
and at the end the same processes, no traceback, bounded memory, and no honest request that failed or was
answered wrong.
"""

from __future__ import annotations

import random
import threading
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("aiohttp", reason="the gateway's libraries are not installed ([gateway])")
pytest.importorskip("grpc", reason="the gateway's libraries are not installed ([gateway])")

from bench.honest import ANSWER_S_MAX, Honest, over_http
from clockwork import Client
from clockwork.models import zoo
from tests.process.attacks import ATTACKS, Doors, Stop
from tests.process.cluster import Reference, same
from tests.process.up import Up, running

SEED = 20201104
GROWTH_BYTES_MAX = 1 << 30
"""Bound on the memory of each process: strangers' memory is bounded, and no more than this."""


def children(up: Up) -> dict[int, int]:
    """Bytes of memory of each process that `up` has started."""
    found = {}
    for entry in Path("/proc").iterdir():
        try:
            fields = (entry / "stat").read_text().rpartition(")")[2].split()
            if int(fields[1]) == up.process.pid and fields[0] not in "ZX":
                found[int(entry.name)] = int((entry / "statm").read_text().split()[1]) * 4096
        except (OSError, ValueError):
            continue  # not a process, or it ended meanwhile
    return found


@pytest.mark.timeout(900)
@pytest.mark.parametrize(
    "seconds", [pytest.param(12, marks=pytest.mark.slow), pytest.param(240, marks=pytest.mark.long)]
)
def test_an_honest_client_is_answered_rightly_beside_everything_that_strangers_throw(
    seconds: int, tmp_path: Path
) -> None:
    free = ("--http-port", "0", "--grpc-port", "0", "--metrics-port", "0", "--verbose")
    with running(tmp_path, *free) as up:
        doors = Doors(
            *(up.wait_for(rf"^ +{name} +(tcp://\S+)")[1] for name in ("clients", "workers", "events")),
            *(int(up.wait_for(rf"^ +{name} .*:(\d+)")[1]) for name in ("http", "grpc", "metrics")),
        )
        before = children(up)
        assert len(before) == 3, "a controller, a worker and a gateway"
        model = zoo.digits()
        with Client(doors.clients, timeout=ANSWER_S_MAX) as client:
            references = [Reference(model), Reference(model)]  # a reference session for each thread
            infers = [lambda x: np.asarray(client.infer("digits", x)), over_http(doors.http)]
            honest = [
                Honest(name, infer, lambda x, answer, reference=reference: same(answer, reference(x)))
                for name, infer, reference in zip(("a client", "an HTTP client"), infers, references)
            ]
            stops = {name: Stop() for name in ATTACKS}
            end = Stop()
            broken: list[str] = []

            def attack(name: str) -> None:
                try:
                    ATTACKS[name](doors, random.Random(f"{SEED} {name}"), stops[name])
                except Exception as error:
                    broken.append(f"{name}: {type(error).__name__}: {error}")

            threads = [threading.Thread(target=one.work, args=(end, SEED), daemon=True) for one in honest]
            threads += [threading.Thread(target=attack, args=(name,), daemon=True) for name in ATTACKS]
            for thread in threads:
                thread.start()
            end.wait(seconds)
            most = children(up)
            for stop in (end, *stops.values()):
                stop.set()
            for thread in threads:
                thread.join(2 * ANSWER_S_MAX)
                assert not thread.is_alive(), "an attack, or an honest client, hangs"
            print(f"seed {SEED}:", {name: stop.thrown for name, stop in stops.items()})
            print({one.name: (one.answers, round(one.longest_s, 3)) for one in honest})
            assert not broken
            assert all(stop.thrown > 10 for stop in stops.values()), "an attack has reached nothing"
            wrong = [line for one in honest for line in one.wrong]
            assert not wrong, (len(wrong), wrong[:5], up.lines[-40:])
            assert all(one.answers > seconds for one in honest)
            assert same(
                client.infer("digits", np.zeros((1, 1, 8, 8), np.float32)),
                Reference(model)(np.zeros((1, 1, 8, 8), np.float32)),
            )
        assert list(most) == list(before), ("a process ended", up.lines[-40:])
        assert max(most[pid] - before[pid] for pid in before) < GROWTH_BYTES_MAX
        tracebacks = [number for number, line in enumerate(up.lines) if "Traceback" in line]
        assert not tracebacks, up.lines[tracebacks[0] - 3 : tracebacks[0] + 40]
        assert up.end() == 0, up.lines[-40:]
