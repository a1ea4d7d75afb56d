"""An attack beside honest clients, as a row of a table."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import re
import threading
from collections.abc import Callable
from concurrent.futures import Executor, ProcessPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from bench.attacks import (
    gateway_bytes,
    gateway_seats,
    memory,
    messages,
    operators,
    predictions,
    preparation,
    seats,
)
from bench.attacks.site import MIB, SAME_WIDTH, SEED, Attacked, Site, attacked
from bench.honest import Honest, over_grpc, over_http
from bench.reference import Plain, relative_error
from clockwork.models import zoo
from clockwork.system.clock import SECOND, now_ns

TOLERANCE = 1e-4
PAUSE_S = 0.002
CALM_S = {True: 0.3, False: 5.0}
"""Seconds of honest requests before the attack, and at least since its beginning; True: the quick form."""

TRANSPORTS = ("ZeroMQ", "shared", "HTTP", "gRPC")
"""The transports of the honest clients."""

ATTACKS = {
    **messages.ATTACKS,
    **memory.ATTACKS,
    **preparation.ATTACKS,
    **gateway_bytes.ATTACKS,
    **gateway_seats.ATTACKS,
    **operators.ATTACKS,
    **predictions.ATTACKS,
    **seats.ATTACKS,
}
"""All attacks by name."""


def peak_bytes(pid: int) -> int:
    """Peak memory of a process since forget_peak()."""
    found = re.search(r"VmHWM:\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text())
    assert found is not None
    return int(found[1]) * 1024


def forget_peak(pid: int) -> None:
    Path(f"/proc/{pid}/clear_refs").write_text("5")


def throw(name: str, site: Site, quick: bool) -> str:
    """Carry out an attack; called in the attacker's process."""
    return ATTACKS[name].throw(site, quick)


def row(name: str, here: Attacked, quick: bool, attacker: Executor) -> dict[str, Any]:
    """A row of the table: an attack from a process of its own on a site without other users."""
    attack = ATTACKS[name]
    process = {
        "controller": here.cluster.controller,
        "gateway": here.gateway,
        "worker": here.cluster.workers[0],
    }[attack.on]
    model = zoo.digits()
    with contextlib.ExitStack() as stack:
        sending = stack.enter_context(here.cluster.client())
        sharing = stack.enter_context(here.cluster.client(shared_memory=True))

        def checked(by: str, infer: Callable[[np.ndarray], np.ndarray]) -> Honest:
            plain = Plain(model)
            return Honest(
                by,
                infer,
                lambda x, y: bool(relative_error(y, plain.run({"image": x})[0]) < TOLERANCE),
            )

        honest = [
            checked("ZeroMQ", lambda x: np.asarray(sending.infer("digits", x, slo=20.0))),
            Honest(
                "shared",
                lambda x: np.asarray(sharing.infer("same", x, slo=20.0)),
                np.array_equal,
                (1, SAME_WIDTH),
            ),
            checked("HTTP", over_http(here.site.http_port, here.site.token)),
            checked("gRPC", stack.enter_context(over_grpc(here.site.grpc_port, here.site.token))),
        ]
        end = threading.Event()
        threads = [threading.Thread(target=sender.work, args=(end, SEED, PAUSE_S)) for sender in honest]
        for thread in threads:
            thread.start()
        try:
            end.wait(CALM_S[quick])
            calm = [sender.begin_anew() for sender in honest]
            forget_peak(process.pid)
            before, begun_ns = peak_bytes(process.pid), now_ns()
            became = attacker.submit(throw, name, here.site, quick).result()
            took_ns = now_ns() - begun_ns
            # The attack phase is at least as long as the calm phase, so that both p99 are of as many
            # requests. Requests under way when the attack ends count, too.
            end.wait(max(0.1, CALM_S[quick] - took_ns / SECOND))
        finally:
            end.set()
            for thread in threads:
                thread.join()
        attacked = [sender.begin_anew() for sender in honest]
    for child in (here.cluster.controller, *here.cluster.workers, here.gateway):
        if child.poll() is not None:
            raise RuntimeError(f"{name}: a process ended with status {child.returncode}")
    found: dict[str, Any] = {
        "attack": name,
        "on": attack.on,
        "grew_MiB": round((peak_bytes(process.pid) - before) / MIB, 1),
        "took_s": round(took_ns / SECOND, 2),
    }
    for word, measured in (("calm", calm), ("attacked", attacked)):
        for transport, took_s in zip(TRANSPORTS, measured):
            found[f"{transport}_{word}_p99_ms"] = round(1e3 * float(np.percentile(took_s or [0.0], 99)), 1)
            found[f"{transport}_{word}_max_ms"] = round(1e3 * max(took_s, default=0.0), 1)
    return found | {
        "answers": sum(sender.answers for sender in honest),
        "wrong": sum(len(sender.wrong) for sender in honest),
        "first_wrong": next((sender.wrong[0] for sender in honest if sender.wrong), None),
        "attacker": became,
    }


def short(row: dict[str, Any]) -> dict[str, Any]:
    """A row for people: each transport's p99 before and during the attack and its longest wait, in ms."""
    ends = ("_p99_ms", "_max_ms")
    kept = {key: value for key, value in row.items() if not key.endswith(ends) and value is not None}
    attacker = kept.pop("attacker")
    for name in TRANSPORTS:
        calm, attacked = row[f"{name}_calm_p99_ms"], row[f"{name}_attacked_p99_ms"]
        kept[f"{name} p99 ms (longest)"] = f"{calm:g} > {attacked:g} ({row[f'{name}_attacked_max_ms']:g})"
    return kept | {"attacker": attacker}


def measure(
    names: list[str], quick: bool = False, apart: bool = True, niceness: int = 0
) -> list[dict[str, Any]]:
    """A row for each attack.

    apart: each attack has a cluster of its own, without memory that another attack left. niceness: that of
    the attacker; at 19 it takes hardly any processor time from the cluster.
    """
    rows = []
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn"), os.nice, (niceness,)) as attacker:
        for together in [[name] for name in names] if apart else [names]:
            with attacked([ATTACKS[name] for name in together], quick) as here:
                attacker.submit(os.getpid).result()  # returns once the process has started
                rows += [row(name, here, quick, attacker) for name in together]
    return rows
