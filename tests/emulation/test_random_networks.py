"""Random networks through the compiler, compared with ONNX Runtime: fusion, broadcasting, layouts, padding
and batches.

If a seed is wrong, `python -m tests.emulation.seeds 1 --from SEED --cut` prints the wrong part of its
network.
"""

from __future__ import annotations

import collections

import pytest

from clockwork.models.compile import compiler, nvrtc
from tests.emulation import seeds
from tests.emulation.seeds import PASS, WRONG

needs_compiler = pytest.mark.skipif(
    not compiler.is_installed(), reason="tinygrad is not installed (the extra [compile])"
)
needs_nvrtc = pytest.mark.skipif(
    not nvrtc.is_installed(), reason="NVRTC is not installed (the extra [compile])"
)

QUICK, QUICK_BY_CARD = range(4), range(2, 3)
MANY, MANY_BY_CARD = range(1000, 1400), range(2000, 2120)


def check(chosen: range, card: bool) -> None:
    found = dict(seeds.ask(chosen, card))
    assert {*found} == {*chosen}
    assert {seed: text for seed, text in found.items() if text.startswith(WRONG)} == {}
    counts = collections.Counter(text.split(":")[0] for text in found.values())
    assert counts[PASS] >= 0.8 * len(chosen), counts


@needs_compiler
@pytest.mark.slow
def test_a_few_random_networks_answer_as_onnx_runtime_does() -> None:
    check(QUICK, card=False)


@needs_compiler
@needs_nvrtc
@pytest.mark.slow
def test_a_few_random_networks_answer_by_the_kernels_of_a_card() -> None:
    check(QUICK_BY_CARD, card=True)


@needs_compiler
@pytest.mark.long
@pytest.mark.timeout(1800)
def test_many_random_networks_answer_as_onnx_runtime_does() -> None:
    check(MANY, card=False)


@needs_compiler
@needs_nvrtc
@pytest.mark.long
@pytest.mark.timeout(1800)
def test_many_random_networks_answer_by_the_kernels_of_a_card() -> None:
    check(MANY_BY_CARD, card=True)
