"""A worker with impossible answers harms no request: another worker answers it, and the liar is closed."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from clockwork import Client
from clockwork.config.controller import WORKER_FAULTS_MAX
from clockwork.errors import Refused, Unavailable
from clockwork.wire.messages import Result
from tests.patience import PATIENCE_S, eventually
from tests.process.peers import echo_model, running_controller
from tests.process.threaded_worker import threaded_worker

X = np.arange(2, dtype=np.float32).reshape(1, 2)
VERIFIED = {"outputs_verified": True}
Frames = list[bytes]


def changed(change: Callable[[list[Any]], None]) -> Callable[[Result, Frames], tuple[Result, Frames]]:
    """A lie about the first output: its [dtype, shape, frame]."""

    def lie(result: Result, frames: Frames) -> tuple[Result, Frames]:
        change(result.parts[0][0])
        return result, frames

    return lie


def sized(columns: int, rows: int = 0, ends: tuple[int, ...] = ()) -> Callable[[Result, Frames], Any]:
    """Another shape, with the bytes that it takes."""

    def lie(result: Result, frames: Frames) -> tuple[Result, Frames]:
        ref = result.parts[0][0]
        ref[1] = [ref[1][0] + rows, columns, *ends]
        frames[ref[2]] = bytes(4 * int(np.prod(ref[1])))
        return result, frames

    return lie


LIES: dict[str, Callable[[Result, Frames], tuple[Any, Frames]]] = {
    "no frame": lambda result, frames: (result, []),
    "a frame too many": lambda result, frames: (result, [*frames, b"more"]),
    "a frame that did not come": changed(lambda ref: ref.__setitem__(2, 1000)),
    "too few bytes": lambda result, frames: (result, [frames[0][:-1], *frames[1:]]),
    "too many bytes": lambda result, frames: (result, [frames[0] + b"x", *frames[1:]]),
    "no bytes": lambda result, frames: (result, [b"" for _ in frames]),
    "another type of as many bytes": changed(lambda ref: ref.__setitem__(0, 6)),
    "a type that is none": changed(lambda ref: ref.__setitem__(0, 999)),
    "another dimension where it is fixed": sized(3),
    "another rank": sized(2, ends=(1,)),
    "no rank": changed(lambda ref: ref.__setitem__(1, [])),
    "a row too many": sized(2, rows=1),
    "no rows": sized(2, rows=-1),
    "dimensions beyond all bounds": changed(lambda ref: ref.__setitem__(1, [1 << 61, 1 << 61])),
    "a dimension below 0": changed(lambda ref: ref.__setitem__(1, [-1, 2])),
    "a part too few": lambda result, frames: (result._replace(parts=result.parts[:-1]), frames),
    "a part too many": lambda result, frames: (
        result._replace(parts=[*result.parts, result.parts[0]]),
        frames,
    ),
    "no outputs": lambda result, frames: (result._replace(parts=[[] for _ in result.parts]), frames),
    "an output too many": lambda result, frames: (
        result._replace(parts=[part * 2 for part in result.parts]),
        frames,
    ),
    "an output that is none": changed(lambda ref: ref.pop()),
    "a status that is none": lambda result, frames: (result._replace(status=99), frames),
    "less than no time": lambda result, frames: (result._replace(execute=[5, 6, -1]), frames),
}


NO_MESSAGE = {
    "dimensions beyond all bounds",
    "a dimension below 0",
    "an output that is none",
    "a status that is none",
    "less than no time",
}
"""A result of no valid form: its sender is closed at once."""


def ask(client: Client, count: int = 24) -> None:
    futures = [client.submit("m", X + index, slo=PATIENCE_S) for index in range(count)]
    for index, future in enumerate(futures):
        assert np.array_equal(future.result(PATIENCE_S), X + index)


@pytest.mark.parametrize("lie", LIES)
def test_whatever_a_worker_says_an_honest_client_is_answered_right(tmp_path: Path, lie: str) -> None:
    with (
        running_controller(tmp_path, policy="edf") as controller,
        threaded_worker(controller, 1, VERIFIED) as liar,
        Client(controller.client_endpoint, timeout=PATIENCE_S) as client,
    ):
        client.register("m", echo_model())
        ask(client, 1)  # so that the liar has the model loaded, and is asked first
        with threaded_worker(controller, 2, VERIFIED) as honest:
            eventually(
                lambda: len(client.model("m").raw["preparations"]) == 2, "the other one is asked to serve"
            )
            eventually(lambda: client.status()["workers"][1]["models"]["ready"] == 1, "and does")
            liar.lie = LIES[lie]
            find_out(client, lie)
            ask(client)
            assert honest.batches


def find_out(client: Client, lie: str) -> None:
    def is_found_out() -> bool:
        ask(client)
        complaints = client.status()["complaints"]
        return complaints["worker fault"] + complaints["worker malformed"] > 0

    eventually(is_found_out, "the lie is noticed")
    status = client.status()
    names = [one["name"] for one in status["workers"]]
    let_go = [one["subject"] for one in status["troubles"]["open"] if one["kind"] == "worker_let_go"]
    faults = status["complaints"]["worker fault"]
    if not faults:
        assert lie in NO_MESSAGE
        assert names == ["fake2"]
    else:  # a request that a device failed is tried on another: the liar need not be asked again
        assert let_go == (["fake1"] if faults == WORKER_FAULTS_MAX else [])
        assert ("fake1" in names) == (faults < WORKER_FAULTS_MAX)
    counts = status["counts"]
    assert counts["failed"] == counts["refused"] == counts["missed"] == 0
    assert client.model("m").state == "ready"


@pytest.mark.slow
def test_a_worker_that_was_let_go_is_not_taken_in_again_until_it_is_started_anew(tmp_path: Path) -> None:
    with (
        running_controller(tmp_path, policy="edf") as controller,
        Client(controller.client_endpoint, timeout=PATIENCE_S) as client,
    ):
        with threaded_worker(controller, 1, VERIFIED, LIES["no frame"]) as liar:
            client.register("m", echo_model())
            with pytest.raises((Refused, Unavailable)):
                client.infer("m", X, slo=PATIENCE_S)
            eventually(lambda: liar.is_let_go, "it is let go")
        assert client.model("m").state == "unserved"
        with (
            pytest.raises(AssertionError, match="it is let go until it is started anew"),
            threaded_worker(controller, 1, VERIFIED),
        ):
            pass
        with threaded_worker(controller, 2, VERIFIED):  # the worker restarts with a new epoch
            eventually(lambda: client.model("m").state == "ready", "it serves")
            ask(client)


def test_one_odd_answer_is_forgiven_and_asked_for_again(tmp_path: Path) -> None:
    """A flipped bit need not cost a worker; its request is answered all the same."""
    told = []

    def once(result: Result, frames: Frames) -> tuple[Any, Frames]:
        told.append(result)
        return LIES["too few bytes"](result, frames) if len(told) == 1 else (result, frames)

    with (
        running_controller(tmp_path, policy="edf") as controller,
        threaded_worker(controller, 1, VERIFIED, once) as worker,
        Client(controller.client_endpoint, timeout=PATIENCE_S) as client,
    ):
        client.register("m", echo_model())
        assert np.array_equal(client.infer("m", X, slo=PATIENCE_S), X)
        assert len(told) == 2
        assert not worker.is_let_go
        ask(client)
