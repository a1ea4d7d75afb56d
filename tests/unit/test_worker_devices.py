"""Which devices `--device` and `--devices` ask for."""

from __future__ import annotations

import pytest

from clockwork.errors import ConfigError
from clockwork.worker.settings import device_names


def test_kinds_and_names() -> None:
    assert device_names("cpu") == ("cpu",)
    assert device_names("emulated", 3) == ("emulated",) * 3
    assert device_names("cuda") == ("cuda:0",)
    assert device_names("cuda", 2) == ("cuda:0", "cuda:1")
    assert device_names("cuda:1, cuda:3") == ("cuda:1", "cuda:3")
    assert device_names("MIG-12ab,cuda:GPU-34cd") == ("cuda:MIG-12ab", "cuda:GPU-34cd")


@pytest.mark.parametrize(
    ("text", "count", "said"),
    [
        ("", 1, "device '' is unknown"),
        ("tpu", 1, "device 'tpu' is unknown"),
        ("cpu:1", 1, "device 'cpu:1' is unknown"),
        ("cuda:", 1, "device 'cuda:' is unknown"),
        ("cuda,cpu", 1, "of one kind, not cuda and cpu"),
        ("cuda,cuda:0", 1, "names one GPU twice"),
        ("cuda:1", 2, "--devices 2 is for `--device cuda`"),
    ],
)
def test_what_makes_no_sense_is_named(text: str, count: int, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        device_names(text, count)
