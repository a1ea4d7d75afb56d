"""Readers of untrusted bytes in Python, under seeded changes of valid examples; `make fuzz` searches for
hours."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.fuzz import mutate
from tests.fuzz.targets import TARGETS

SEED = 20201104
CORPUS = Path(__file__).resolve().parent / "corpus"


@pytest.mark.parametrize(
    "count", [300, pytest.param(100_000, marks=[pytest.mark.long, pytest.mark.timeout(900)])]
)
@pytest.mark.parametrize("target", sorted(TARGETS))
def test_a_reader_answers_or_says_what_is_wrong(target: str, count: int, tmp_path: Path) -> None:
    taken = []
    for number, data in enumerate(mutate.changed(target, SEED, count, tmp_path)):
        try:
            taken.append(TARGETS[target](data))
        except Exception as error:
            pytest.fail(f"seed {SEED}, input {number}: {data[:2000]!r}: {error!r}")
    assert set(taken) == {True, False}, "the good examples are taken, and some changes of them are not"
    for path in sorted((CORPUS / target).glob("*")):
        TARGETS[target](path.read_bytes())


@pytest.mark.parametrize("target", sorted(TARGETS))
def test_the_examples_are_good(target: str, tmp_path: Path) -> None:
    """A reader that refuses the examples would refuse all changes of them, and the test would prove
    nothing."""
    make, good = mutate.values(tmp_path).get(target, (bytes, []))
    for data in [*mutate.RAW.get(target, []), *(make(one) for one in good)]:
        assert TARGETS[target](data), data
