"""Live requests outside of their SLO: what the machine did, and what the scheduler did.

A controller, a worker that emulates the 12 V100s with the simulation's models and noise, and a native client
that sends the workload `trace` at its times, through real sockets. Requests have no inputs: those of the
paper's rate are gigabytes a second. Latency counts from the time at which a request was due. The controller
records all that its scheduler sees and does, and processes beside it watch the machine
(bench/million/machine.py). So each request outside of its SLO is attributed:

- machine: a core stood still, from one SLO before it was due until its answer, for at least as long as the
  request lacked;
- contention: the same with the time for which threads of client, controller or worker were ready and waited
  for a core;
- client: the client sent the request later than it was due, by at least that time;
- scheduler: anything else.

A request lacks its lateness; a refused one what the refusal says that its SLO should have been longer, and
one that missed its deadline, or was refused without that number, is taken to lack UNKNOWN_NS.
"""

from __future__ import annotations

import argparse
import concurrent.futures
import dataclasses
import os
import tempfile
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from bench import published, report
from bench.cluster import Cluster, thread_cpu_s
from bench.million import cases, counting, machine, recordings
from bench.million.run import POLICIES, brief, save, saved
from bench.paper.common import MS, SECOND
from bench.pump import ScheduledClient, library
from clockwork.device.emulation import EmulatedSettings
from clockwork.errors import ConfigError
from clockwork.formats.profiles import PAPER_PAGE_BYTES
from clockwork.launch.profiles import register_profiles
from clockwork.system.clock import now_ns
from clockwork.wire import codec
from clockwork.wire.messages import TO_CLIENT, Answer, Failure, Status

WARMUP_S = 20.0
TOLD_S = 1.0
DRAIN_NS = 2 * SECOND
RECORDING_BYTES = "4GiB"
EXPLAINED_MAX = 200
"""Requests that are explained from the recording; the others are listed without sentences."""
UNKNOWN_NS = 5 * MS
"""Stall from which a request that nothing else explains is attributed to it."""
STALL_NS = 5 * MS
STALLS_MAX = 1000
"""Stalls of STALL_NS and more that the result has one by one."""
MARKS = (50.0, 99.0, 99.9, 99.99, 99.999)

MACHINE, CONTENTION, CLIENT, SCHEDULER = VERDICTS = ("machine", "contention", "client", "scheduler")


@dataclasses.dataclass(frozen=True)
class Setting:
    policy: str
    requests: int
    rate: float
    seed: int
    warmup_s: float = WARMUP_S
    models: int = 0  # the first of the paper's, 0: all

    @property
    def name(self) -> str:
        return f"live-{self.policy}-{self.requests}-{self.rate:.0f}-{self.seed}"


def schedule(setting: Setting) -> tuple[Any, Any]:
    """Times and models of all requests, the warm-up included."""
    ns = int((setting.warmup_s + setting.requests / setting.rate) * SECOND)
    arrivals = cases.offered("trace", setting.rate, setting.seed, 0)(ns).collect(
        2 * setting.requests + 100_000
    )
    model = arrivals.model % setting.models if setting.models else arrivals.model
    return arrivals.t_ns, model


def worker_arguments(seed: int) -> tuple[str, ...]:
    """The flags of a worker that emulates the V100s of the simulation."""
    simulated = cases.cluster()
    emulated = EmulatedSettings(
        seed=seed, exec_noise=simulated.exec_noise, load_noise=simulated.load_noise, outlier=simulated.outlier
    )
    settings = [f"--emulate={name}={value}" for name, value in dataclasses.asdict(emulated).items() if value]
    return (
        "--device", "emulated", "--devices", str(cases.DEVICES), "--page-size", str(PAPER_PAGE_BYTES),
        "--arena", str(simulated.page_count * PAPER_PAGE_BYTES), *settings,
    )  # fmt: skip


def measure(setting: Setting, console: Console) -> dict[str, Any]:
    """The result of a policy: counts, latencies, the machine, and each request outside of its SLO."""
    library()  # compiled before anything is timed
    profiles = cases.models(with_inputs=False)[: setting.models or None]
    t_ns, model = schedule(setting)
    columns = (TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn(), TimeRemainingColumn())
    with (
        tempfile.TemporaryDirectory(prefix="clockwork-million-") as directory,
        Progress(*columns, console=console) as progress,
    ):
        recording = Path(directory) / "live.rec"
        flags = ("--policy", setting.policy, "--record", str(recording), "--record-max", RECORDING_BYTES)
        with Cluster(1, worker_arguments(setting.seed), controller_arguments=flags) as cluster:
            row = progress.add_task(f"{setting.policy}: register", total=len(profiles))
            with cluster.client() as client:
                register_profiles(
                    client, profiles, progress=lambda stage, done, total: progress.update(row, completed=done)
                )
            found = served(setting, cluster, profiles, t_ns, model, progress)
        bad = found.pop("bad")
        row = progress.add_task(f"{setting.policy}: explain", total=None)
        explain_all(recording, bad[:EXPLAINED_MAX])
        progress.update(row, total=1, completed=1)
    return {**found, "listed": bad}


def rounded_ms(times_ns: np.ndarray, mark: float) -> float | None:
    found = report.percentile_ms(times_ns, mark)
    return None if found is None else round(found, 2)


def served(
    setting: Setting, cluster: Cluster, profiles: Sequence[Any], t_ns: Any, model: Any, progress: Progress
) -> dict[str, Any]:
    """Offer the requests, watch the machine, and judge what was not in time."""
    pids = {"controller": cluster.controller.pid, "worker": cluster.workers[0].pid, "client": os.getpid()}
    begin_ns = now_ns() + 3 * SECOND  # the watch begins before the first request
    names = [profile.name for profile in profiles]
    client = ScheduledClient(cluster.endpoint, names, t_ns + begin_ns, model, cases.SLO_NS)
    try:
        with machine.Watch(list(pids.values())) as watch:
            used = {who: sum(thread_cpu_s(pid).values()) for who, pid in pids.items()}
            row = progress.add_task(f"{setting.policy}: requests", total=len(t_ns))
            end_ns = int(client.due_ns[-1]) + cases.SLO_NS + DRAIN_NS
            with concurrent.futures.ThreadPoolExecutor(1) as pool:
                sending = pool.submit(client.run, end_ns)
                while not concurrent.futures.wait([sending], timeout=TOLD_S).done:
                    progress.update(row, completed=int(client.schedule.ended))
                headers = sending.result()
            progress.update(row, completed=int(client.schedule.ended))
            used = {who: sum(thread_cpu_s(pid).values()) - used[who] for who, pid in pids.items()}
            with cluster.client() as asked:
                worker = asked.status()["workers"][0]
    finally:
        client.close()
    counted = client.due_ns >= begin_ns + int(setting.warmup_s * SECOND)
    latency_ns = client.ended_ns - client.due_ns
    ended = client.ended_ns > 0
    rows = [row for row in judged(headers, client, names, watch, begin_ns) if counted[row["request"] - 1]]
    rows += [
        fate(int(place), client, names, begin_ns, "unanswered", {}, watch)
        for place in np.flatnonzero(~ended & counted)
    ]
    failed = {row["request"] - 1 for row in rows if row["outcome"] != "late"}
    answered = ended & counted
    answered[list(failed)] = False
    lag_ns = (client.sent_ns - client.due_ns)[counted & (client.sent_ns > 0)]
    seconds = watch.facts["seconds"]
    verdicts = Counter(row["verdict"] for row in rows)
    offered = int(counted.sum())
    spent = watch.facts["processors, busy, s"]
    return {
        "policy": setting.policy,
        "rate/s": round(setting.rate, 1),
        "requests": offered,
        "outside": len(rows),
        "in a million": round(1e6 * len(rows) / max(1, offered), 3),
        **{f"outside, {verdict}": verdicts[verdict] for verdict in VERDICTS},
        "scheduler, at most in a million, 95 %": round(
            1e6 * counting.upper(verdicts[SCHEDULER]) / max(1, offered), 3
        ),
        **dict(Counter(row["outcome"] for row in rows)),
        **{f"p{mark:g}_ms": rounded_ms(latency_ns[answered], mark) for mark in MARKS},
        "max_ms": rounded_ms(latency_ns[answered], 100),
        "sent late, p99.9, ms": rounded_ms(lag_ns, 99.9),
        "sent late, most, ms": rounded_ms(lag_ns, 100),
        **{f"{who}, cores": round(cpu_s / seconds, 3) for who, cpu_s in used.items()},
        "all other processes, cores": round((spent - sum(used.values())) / seconds, 3),
        "ends noticed late, us": {
            name: round(worker["stats"][f"late_{name}_ns"] / 1e3, 1)
            for name in ("p50", "p99", "max")
            if f"late_{name}_ns" in worker["stats"]
        },
        "machine": watch.facts,
        "stalls": [
            {
                "at_s": round((span.begin_ns - begin_ns) / SECOND, 4),
                "ms": round(span.lost_ns / MS, 2),
                "where": span.where,
            }
            for span in watch.machine.spans
            if span.lost_ns >= STALL_NS
        ][:STALLS_MAX],
        "bad": rows,
    }


def judged(
    headers: Sequence[bytes],
    client: ScheduledClient,
    names: Sequence[str],
    watch: machine.Watch,
    begin_ns: int,
) -> list[dict[str, Any]]:
    """A row for each failure and each late answer, in the order of time."""
    rows = []
    for header in headers:
        message = codec.decode(header, TO_CLIENT)
        if type(message) is Answer:
            told: dict[str, Any] = {"number": int(message.times[-1])}
            rows.append(fate(message.request_id - 1, client, names, begin_ns, "late", told, watch))
        elif type(message) is Failure:
            told = {
                "number": int(message.details.get("request", 0)),
                "reason": str(message.details.get("reason", "")),
                "feasible_slo_ns": int(message.details.get("feasible_slo_ns", 0)),
                "text": message.text,
            }
            outcome = Status(message.status).name.lower()
            rows.append(fate(message.request_id - 1, client, names, begin_ns, outcome, told, watch))
    return sorted(rows, key=lambda row: row["request"])


def fate(
    place: int, client: ScheduledClient, names: Sequence[str], begin_ns: int, outcome: str, told: dict[str, Any],
    watch: machine.Watch,
) -> dict[str, Any]:  # fmt: skip
    """A request outside of its SLO, the stalls of its time, and the verdict."""
    due_ns, sent_ns = int(client.due_ns[place]), int(client.sent_ns[place])
    ended_ns = int(client.ended_ns[place]) or due_ns + cases.SLO_NS
    from_ns = due_ns - cases.SLO_NS
    lost = {
        MACHINE: watch.machine.overlap_ns(from_ns, ended_ns),
        CONTENTION: watch.waits.overlap_ns(from_ns, ended_ns),
    }
    lag_ns = max(0, sent_ns - due_ns)
    lacked_ns = lacking_ns(outcome, ended_ns - due_ns, told.get("feasible_slo_ns", 0), lag_ns)
    verdict = SCHEDULER
    if lost[MACHINE] >= max(lacked_ns, MS):
        verdict = MACHINE
    elif lost[MACHINE] + lost[CONTENTION] >= max(lacked_ns, MS):
        verdict = CONTENTION
    elif lag_ns >= max(lacked_ns, MS):
        verdict = CLIENT
    return {
        "request": place + 1,
        "at_s": round((due_ns - begin_ns) / SECOND, 6),
        "model": names[int(client.model[place])],
        "outcome": outcome,
        **told,
        "after_ms": round((ended_ns - due_ns) / MS, 3),
        "lacked_ms": round(lacked_ns / MS, 3),
        "sent_late_ms": round(lag_ns / MS, 3),
        "core_stood_still_ms": round(lost[MACHINE] / MS, 3),
        "thread_waited_ms": round(lost[CONTENTION] / MS, 3),
        "ordinary_process_waited_ms": round(watch.shared.overlap_ns(from_ns, ended_ns) / MS, 3),
        "verdict": verdict,
    }


def lacking_ns(outcome: str, latency_ns: int, feasible_slo_ns: int, lag_ns: int) -> int:
    """The time that a request lacked; UNKNOWN_NS where nothing says it."""
    if outcome == "late":
        return latency_ns - cases.SLO_NS
    if feasible_slo_ns:
        return max(0, feasible_slo_ns - (cases.SLO_NS - lag_ns))
    return UNKNOWN_NS


def explain_all(recording: Path, rows: list[dict[str, Any]]) -> None:
    """Add the sentences of `clockwork explain` to the rows whose requests the recording has."""
    wanted = {row["number"]: row for row in rows if row.get("number")}
    for number, found in recordings.explained(recording, wanted, lambda number: number).items():
        wanted[number]["result_took_ms"] = round(found.result_ns / MS, 3)
        wanted[number]["said"] = list(found.sentences)


# ----- the command -----------------------------------------------------------------------------


def rate_of(given: argparse.Namespace, out: Path, console: Console) -> float:
    """The rate: as given, or the part of the simulated capacity without inputs, which is kept in a file."""
    if given.rate:
        return float(given.rate)
    found = saved(out, "capacity")
    if found is None:
        console.print("the capacity without inputs is not known yet: simulated", highlight=False)
        found = {
            "rate": max(
                cases.capacity("trace", policy, given.seed, 0, cases.CAPACITY_REQUESTS, with_inputs=False)
                for policy in POLICIES
            )
        }
        save(out, "capacity", found)
    return float(given.load) * float(found["rate"])


QUICK = {"requests": 600, "warmup_s": 0.5, "models": 40, "rate": 300.0}


def main(given: argparse.Namespace, console: Console) -> None:
    """The program with --live: each policy in turn, saved as soon as it is done."""
    out = given.out or Path(
        "bench/results/million-live-quick" if given.quick else "bench/results/million-live"
    )
    out.mkdir(parents=True, exist_ok=True)
    policies = tuple(given.policies.split(",")) if given.policies else POLICIES[:1]
    rate = QUICK["rate"] if given.quick else rate_of(given, out, console)
    rows = []
    for policy in policies:
        setting = Setting(policy, given.requests or 1_000_000, rate, given.seed)
        if given.quick:
            setting = Setting(policy, seed=given.seed, **QUICK)  # type: ignore[arg-type]
        found = None if given.quick else saved(out, setting.name)
        if found is not None and found["commit"] != report.commit():
            raise ConfigError(f"{out} has results of commit {found['commit']}: give another --out")
        if found is None:
            found = {**report.conditions(given.seed), **measure(setting, console)}
            save(out, setting.name, found)
        rows.append(found)
    facts = {
        "devices, models": f"{cases.DEVICES}, {len(cases.models())}",
        "workload": cases.WORKLOADS["trace"],
        "noise of executions, loads, outliers": [cases.EXEC_NOISE, cases.cluster().load_noise, cases.OUTLIER],
    }
    if given.publish:
        kept = [{**row, "listed": brief(row["listed"])} for row in rows]
        published.save("million-live", {"rows": kept, "facts": facts}, given.seed)
    if given.json:
        report.show("live, outside of the SLO", given.seed, rows, facts, True)
        return
    for row in rows:
        for name, value in row.items():
            if name not in ("listed", "stalls", "versions"):
                print(f"  {name}: {value}")
        for request in row["listed"][:LISTED_MAX]:
            said = request.pop("said", ())
            print(f"  {', '.join(f'{name} {value}' for name, value in request.items())}")
            for sentence in said:
                print(f"      {sentence}")


LISTED_MAX = 5
"""Requests of a policy that the terminal shows; the file has all."""
