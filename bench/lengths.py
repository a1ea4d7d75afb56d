"""Gain from batches of requests of different length on a CPU.

    python -m bench.lengths [--quick] [--json] [--simulated] [--median 12] [--sigma 0.6] [--slo 0.25]
        [--seconds 8] [--rounds 2]

Sentences of lognormal length, 5 to 128 tokens, are requests for the zoo's encoder, a network of the size of
MiniLM-L6. It is registered twice: once it batches requests by class of length as registration finds it
(`shared`), once only requests of equal length (`batching="same-shape"`, `same-shape`). Both get the same
rates, from the same seed. Goodput counts answers within the SLO.

Live: both are registered on one worker with one device of one thread, with two examples, a sentence of median
length and the longest. Each has had a request of every length before. They are measured in turn, so that
noise of the machine affects both. A sample of the answers under load is compared with ONNX Runtime's for each
request alone.

Simulated: executions of both are timed in processor time, in turn, at 16 lengths and 5 batch sizes, and the
scheduler is simulated with these times. Use it on a machine that has other work.
"""

from __future__ import annotations

import asyncio
import statistics
import tempfile
import time
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from bench import report
from bench.cluster import Cluster
from clockwork.client.aio import AsyncClient
from clockwork.errors import ClockworkError
from clockwork.formats.profiles import ModelProfile
from clockwork.models import zoo
from clockwork.models.compile.padding import make_padded_by_row
from clockwork.models.runtime import ModelSession
from clockwork.sim.world import Cluster as SimulatedCluster
from clockwork.sim.world import Open, simulate
from clockwork.system.clock import MS, SECOND, now_ns
from clockwork.wire.tensors import length_class
from clockwork.workloads.generators import poisson

SEED = 5
SHORTEST, LONGEST = 5, 128
WAYS = {"shared": "auto", "same-shape": "same-shape"}
SHARES = (0.5, 1.0, 1.5, 2.0, 3.0)
"""Offered rates, as parts of the goodput of `same-shape` under overload (live) or of the rate without
batches.
"""

CHECKED = 20
"""Answers that are compared, for each way and rate."""

TOLERANCE = 1e-4
TIMED_LENGTHS = (5, 6, 8, 10, 12, 14, 16, 20, 24, 28, 32, 40, 48, 64, 96, 128)
TIMED_BATCHES = (1, 2, 4, 8, 16)
DRAWS = 200
"""Batches of each size and class over which the longest request is averaged."""


def lengths(count: int, median: float, sigma: float, rng: np.random.Generator) -> np.ndarray:
    """Lengths of sentences in tokens."""
    return np.clip(np.rint(rng.lognormal(np.log(median), sigma, count)), SHORTEST, LONGEST).astype(int)


def sentence(length: int, vocabulary: int, rng: np.random.Generator, rows: int = 1) -> dict[str, np.ndarray]:
    return {
        "ids": rng.integers(1, vocabulary, (rows, length)),
        "mask": np.ones((rows, length), np.int64),
    }


# ----- live ------------------------------------------------------------------------------------


class Trial:
    """Offers requests to one of two registrations of a model, and counts the answers."""

    def __init__(
        self, endpoint: str, model: onnx.ModelProto, vocabulary: int, median: float, sigma: float
    ) -> None:
        self._endpoint = endpoint
        self._reference = ModelSession(model.SerializeToString(), optimise=True)
        self._vocabulary = vocabulary
        self._median, self._sigma = median, sigma
        self.checksum = 0
        self.worst = 0.0

    def warm_up(self, way: str) -> None:
        """Send a request of every length, so that the scheduler has seen each."""
        asyncio.run(self._warm_up(way))

    async def _warm_up(self, way: str) -> None:
        rng = np.random.default_rng(SEED)
        async with AsyncClient(self._endpoint, timeout=60.0, name="bench") as client:
            for length in range(SHORTEST, LONGEST + 1):
                await client.infer(way, sentence(length, self._vocabulary, rng))

    def offer(self, way: str, rate: float, seconds: float, slo: float, seed: int) -> dict[str, Any]:
        """The counts of a Poisson stream of requests at this rate."""
        return asyncio.run(self._offer(way, rate, seconds, slo, seed))

    async def _offer(self, way: str, rate: float, seconds: float, slo: float, seed: int) -> dict[str, Any]:
        rng = np.random.default_rng(seed)
        count = max(CHECKED, int(rate * seconds))
        due_ns = np.cumsum(rng.exponential(SECOND / rate, count)).astype(np.int64)
        drawn = lengths(count, self._median, self._sigma, rng)
        inputs = [sentence(length, self._vocabulary, rng) for length in drawn]
        took_ns: list[int] = []
        answers: dict[int, np.ndarray] = {}

        async def ask(client: AsyncClient, index: int) -> None:
            sent_ns = now_ns()
            try:
                answer = (await client.infer(way, inputs[index], slo=slo))["embedding"]
            except ClockworkError:
                return  # the request was refused, or too late
            took_ns.append(now_ns() - sent_ns)
            answers[index] = answer

        async with AsyncClient(self._endpoint, timeout=60.0, name="bench") as client:
            await client.status()
            begun_ns = now_ns()
            tasks = []
            for index in range(count):
                pause = (begun_ns + int(due_ns[index]) - now_ns()) / SECOND
                if pause > 0:
                    await asyncio.sleep(pause)
                tasks.append(asyncio.create_task(ask(client, index)))
            await asyncio.gather(*tasks)
        for index in sorted(answers)[:: max(1, len(answers) // CHECKED)]:
            [expected] = self._reference.run(list(inputs[index].values()))
            error = float(np.abs(answers[index] - expected).max() / np.abs(expected).max())
            self.worst = max(self.worst, error)
            if error > TOLERANCE:
                raise AssertionError(f"{way} gave an answer that is apart by {error:.1e}")
            self.checksum = zlib.crc32(np.round(answers[index], 3).tobytes(), self.checksum)
        in_time = sum(answer_ns <= slo * SECOND for answer_ns in took_ns)
        return {"good": in_time, "seconds": due_ns[-1] / SECOND, "took_ns": took_ns}


def live(
    median: float,
    sigma: float,
    slo: float,
    seconds: float,
    rounds: int,
    shares: Sequence[float] = SHARES,
    **options: Any,
) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """A row for each rate, and facts. options: those of the model."""
    model = zoo.build("transformer", sequence=None, **options)
    vocabulary = options.get("vocabulary", 30522)
    rng = np.random.default_rng(SEED)
    examples = [sentence(length, vocabulary, rng) for length in (round(median), LONGEST)]
    facts: dict[str, Any] = {}
    rows: list[dict[str, Any]] = []
    with Cluster(worker_arguments=("--devices", "1")) as cluster:
        with cluster.client() as client:
            for way, batching in WAYS.items():
                info = client.register(way, model, examples=examples, batching=batching)
                facts[way] = f"{info.holding}, batches of up to {info.batch_max}, {info.lengths_note}"
        trial = Trial(cluster.endpoint, model, vocabulary, median, sigma)
        for way in WAYS:
            trial.warm_up(way)
        flooded = [trial.offer("same-shape", 1000, seconds / 2, slo, SEED + turn) for turn in range(rounds)]
        capacity = statistics.median(
            trial_counts["good"] / (trial_counts["seconds"] + slo) for trial_counts in flooded
        )
        facts["goodput of same-shape when far more is offered, /s"] = round(capacity, 1)
        for share in shares:
            rate = capacity * share
            found: dict[str, list[dict[str, Any]]] = {way: [] for way in WAYS}
            for turn in range(rounds):
                for way in WAYS if turn % 2 else reversed(WAYS):
                    found[way].append(trial.offer(way, rate, seconds, slo, SEED + turn))
            goodput = {
                way: sum(trial_counts["good"] for trial_counts in found[way])
                / sum(trial_counts["seconds"] for trial_counts in found[way])
                for way in WAYS
            }
            row = row_of(rate, goodput)
            for way in WAYS:
                times = report.percentiles(
                    [taken for trial_counts in found[way] for taken in trial_counts["took_ns"]]
                )
                row |= {f"{way} {mark}_ms": round(times[f"{mark}_us"] / 1000, 1) for mark in ("p50", "p99")}
            rows.append(row)
    facts["largest relative error of a checked answer"] = trial.worst
    facts["checksum"] = trial.checksum
    return rows, facts


def row_of(rate: float, goodput: Mapping[str, float]) -> dict[str, Any]:
    return {
        "offered/s": round(rate, 1),
        **{f"{way}/s": round(goodput[way], 1) for way in WAYS},
        "ratio": round(goodput["shared"] / max(goodput["same-shape"], 1e-9), 2),
    }


# ----- simulated -------------------------------------------------------------------------------

Times = dict[tuple[int, int], float]
"""Milliseconds of an execution, by length and batch."""


def time_both(runs: int, **options: Any) -> dict[str, Times]:
    """Processor times of executions with masks and without, which take turns."""
    model = zoo.build("transformer", sequence=None, **options)
    vocabulary = options.get("vocabulary", 30522)
    rng = np.random.default_rng(SEED)
    found: dict[str, Times] = {way: {} for way in WAYS}
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "model.onnx"
        onnx.save(model, path)
        plain = ModelSession(path, optimise=True)
        make_padded_by_row(model, [(1, LONGEST), (1, LONGEST)], ["S"])
        onnx.save(model, path)
        masked = ModelSession(path, optimise=True)
    for length in TIMED_LENGTHS:
        for batch in TIMED_BATCHES:
            inputs = list(sentence(length, vocabulary, rng, batch).values())
            times: dict[str, list[float]] = {way: [] for way in WAYS}
            for _ in range(runs):
                for way, session, given in (
                    ("same-shape", plain, inputs),
                    ("shared", masked, [*inputs, np.full(batch, length)]),
                ):
                    begun_ns = time.thread_time_ns()
                    session.run(given)
                    times[way].append((time.thread_time_ns() - begun_ns) / MS)
            for way in WAYS:
                found[way][length, batch] = statistics.median(times[way])
    return found


def profile_of(name: str, drawn: np.ndarray, times: Times) -> ModelProfile:
    """Requests that share batches, of these lengths, as a model of their own.

    The scheduler has a queue for each shape as for each model. A batch's time is that of the longest of its
    requests, on average.
    """
    rng = np.random.default_rng(SEED)
    exec_ns: dict[int, int] = {}
    for batch in TIMED_BATCHES:
        longest = rng.choice(drawn, (DRAWS, batch)).max(axis=1)
        taken = np.interp(longest, TIMED_LENGTHS, [times[length, batch] for length in TIMED_LENGTHS]).mean()
        exec_ns[batch] = max(int(taken * MS), *exec_ns.values(), 1)
    return ModelProfile(name, exec_ns, 1 << 20, 8 * MS)


def simulated(
    median: float,
    sigma: float,
    slo: float,
    seconds: float,
    runs: int,
    shares: Sequence[float] = SHARES,
    **options: Any,
) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """A row for each rate, and facts. options: those of the model."""
    times = time_both(runs, **options)
    drawn = lengths(100_000, median, sigma, np.random.default_rng(SEED))
    counted_as = {"same-shape": drawn, "shared": np.array([length_class(int(tokens)) for tokens in drawn])}
    single_ms = [times["same-shape"][length, 1] for length in TIMED_LENGTHS]
    alone = 1000 / float(np.interp(drawn, TIMED_LENGTHS, single_ms).mean())
    rows = []
    for share in shares:
        goodput = {}
        for way in WAYS:
            found, counts = np.unique(counted_as[way], return_counts=True)
            workload = Open(
                poisson(
                    list(counts / counts.sum() * alone * share),
                    int(seconds * SECOND),
                    seed=SEED,
                    slo_ns=int(slo * SECOND),
                )
            )
            answered = simulate(
                [profile_of(f"class-{kind}", drawn[counted_as[way] == kind], times[way]) for kind in found],
                SimulatedCluster(exec_noise=0.003, link_jitter_ns=10_000),
                [workload], resident=True, seed=SEED,
            )  # fmt: skip
            goodput[way] = float(sum(answered.classes.good)) / seconds
        rows.append(row_of(alone * share, goodput))
    by_masks = [times["shared"][key] / times["same-shape"][key] - 1 for key in times["shared"]]
    return rows, {
        "requests one by one, /s": round(alone, 1),
        "what masks cost, median": f"{100 * statistics.median(by_masks):.1f} %",
        **{
            f"a row of {length} tokens, ms": " ".join(
                f"{times['shared'][length, batch] / batch:.2f} (of {batch})" for batch in TIMED_BATCHES
            )
            for length in (8, 12, 16, 24, 32, 64)
        },
    }


def main() -> None:
    parser = report.command_line(__doc__)
    parser.add_argument("--simulated", action="store_true", help="simulate the scheduler over measured times")
    parser.add_argument("--median", type=float, default=12.0, help="median of the lengths, in tokens")
    parser.add_argument(
        "--sigma", type=float, default=0.6, help="standard deviation of the lengths' logarithms"
    )
    parser.add_argument("--slo", type=float, default=0.25, help="SLO in seconds")
    parser.add_argument("--seconds", type=float, default=8.0, help="seconds for which each rate is offered")
    parser.add_argument(
        "--rounds",
        type=int,
        default=2,
        help="rounds of a live run; a simulated run times each execution seven times",
    )
    given = parser.parse_args()
    small = {"layers": 1, "width": 64, "heads": 2, "vocabulary": 100} if given.quick else {}
    seconds, shares = (1.0, SHARES[1:2]) if given.quick else (given.seconds, SHARES)
    if given.simulated:
        runs = 1 if given.quick else 7
        rows, facts = simulated(given.median, given.sigma, given.slo, seconds, runs, shares, **small)
    else:
        rounds = 1 if given.quick else given.rounds
        rows, facts = live(given.median, given.sigma, given.slo, seconds, rounds, shares, **small)
    report.show("requests of different length", SEED, rows, facts, given.json)


if __name__ == "__main__":
    main()
