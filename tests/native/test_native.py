"""Native code under sanitizers: lanes with many threads, headers and the whole exchange with hostile
bytes."""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path

import pytest

from tests.native.building import ADDRESS, THREAD, CannotBuild, Flavour, build
from tests.patience import PATIENCE_S

SEED = 20201104
CORPUS = Path(__file__).resolve().parents[1] / "fuzz" / "corpus"
BOTH = pytest.mark.parametrize(
    "flavour",
    [
        pytest.param(ADDRESS, marks=[pytest.mark.slow, pytest.mark.timeout(1500)]),
        pytest.param(THREAD, marks=[pytest.mark.long, pytest.mark.timeout(1500)]),
    ],
    ids=lambda flavour: flavour.name,
)
"""Builds of the exchange take most of the time: 34 files, some 100 s of one processor."""


def run(
    program: str, flavour: Flavour, *arguments: str, within_s: float = PATIENCE_S, **environment: str
) -> str:
    """Run a program and return its output. It must exit with 0, and no sanitizer may report anything."""
    try:
        path = build(program, flavour)
    except CannotBuild as error:
        pytest.skip(str(error))
    done = subprocess.run(
        [str(path), *arguments],
        capture_output=True,
        text=True,
        timeout=within_s,
        env={
            **os.environ,
            "TSAN_OPTIONS": "halt_on_error=1",
            "ASAN_OPTIONS": "detect_leaks=1",
            **environment,
        },
    )
    assert done.returncode == 0, f"{program} {' '.join(arguments)}\n{done.stderr[-6000:]}"
    return done.stdout


@pytest.mark.parametrize("flavour", [THREAD, ADDRESS], ids=lambda flavour: flavour.name)
@pytest.mark.slow
def test_lanes_claims_and_the_link_under_many_threads(flavour: Flavour) -> None:
    assert "40 rounds" in run("threads_lanes", flavour, str(SEED), "40")


@pytest.mark.parametrize("flavour", [THREAD, ADDRESS], ids=lambda flavour: flavour.name)
@pytest.mark.slow
def test_executors_of_an_arena_under_many_threads(flavour: Flavour) -> None:
    assert "40 rounds" in run("threads_executors", flavour, str(SEED), "40")


@pytest.mark.parametrize("flavour", [THREAD, ADDRESS], ids=lambda flavour: flavour.name)
@pytest.mark.slow
def test_a_workers_road_beside_a_lane_that_answers_and_a_thread_that_asks(flavour: Flavour) -> None:
    assert "20 rounds" in run("threads_road", flavour, str(SEED), "20")


@pytest.mark.parametrize("flavour", [THREAD, ADDRESS], ids=lambda flavour: flavour.name)
@pytest.mark.slow
def test_an_arenas_memory_comes_and_goes_under_three_threads(flavour: Flavour) -> None:
    assert "20 rounds" in run("threads_arena", flavour, str(SEED), "20")


@pytest.mark.parametrize("flavour", [THREAD, ADDRESS], ids=lambda flavour: flavour.name)
@pytest.mark.slow
def test_the_recorder_is_read_while_it_is_written(flavour: Flavour) -> None:
    said = run("threads_recorder", flavour, str(SEED), "20000")
    steps, read, _ = (int(number) for number in re.findall(r"\d+", said))
    assert steps == 20_000
    assert read > 1_000


@pytest.mark.slow  # building it takes a minute
def test_parts_of_the_exchange_keep_their_books() -> None:
    assert "11 tests" in run("exchange_parts", ADDRESS)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_workers_road_allocates_nothing_for_an_infer() -> None:
    assert run("road_allocations", ADDRESS, within_s=60) == "0.000 allocations per INFER\n"


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_parts_of_a_workers_road_keep_their_books() -> None:
    assert "6 tests" in run("worker_parts", ADDRESS, within_s=60)


@pytest.mark.slow
def test_the_work_of_images_is_found_within_their_bytes() -> None:
    corpus = CORPUS / "jpeg"
    said = run("fuzz_jpeg", ADDRESS, str(corpus), SEEDS="20000")
    assert f"{len(list(corpus.iterdir()))} inputs, 20000 seeds" in said


@BOTH
def test_headers_are_read_within_their_bytes(flavour: Flavour) -> None:
    corpus = CORPUS / "native-headers"
    said = run("fuzz_headers", flavour, str(corpus), within_s=300, SEEDS="20000")
    assert f"{len(list(corpus.iterdir()))} inputs, 20000 seeds" in said


@BOTH
def test_the_exchange_answers_the_good_beside_the_bad(flavour: Flavour) -> None:
    """Under every policy; the thread that compares shadows' answers runs beside it."""
    corpus = CORPUS / "exchange"
    said = run("fuzz_exchange", flavour, str(corpus), within_s=400, SEEDS="2000", COUNT="1")
    assert f"{len(list(corpus.iterdir()))} inputs, 2000 seeds" in said
    answers = int(said.split("seeds", 1)[1].split()[0])
    assert answers > 2000, "hardly any script has reached an answer"
