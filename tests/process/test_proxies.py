"""One of two gateways behind HAProxy or nginx, as deploy/ configures them, is killed, and drained."""

from __future__ import annotations

import shutil
from collections import Counter

import pytest

from bench import proxies

pytestmark = pytest.mark.slow

TOLD_BY_GRPC = {"UNAVAILABLE", "CANCELLED"}
"""Statuses of calls that were under way at a gateway, where the proxy does not send them again."""


@pytest.mark.parametrize("proxy", proxies.FILES)
@pytest.mark.timeout(600)
def test_callers_get_their_answers_while_one_of_two_gateways_ends(proxy: str) -> None:
    if shutil.which(proxy, path=proxies.PROGRAMS) is None:
        pytest.skip(f"{proxy} is not installed")
    rows = proxies.measure([proxy], rounds=1, callers=2, pause_s=0.02, size=200_000)
    found = {(row["protocol"], row["a gateway is"]): row for row in rows}
    assert set(found) == {(protocol, how) for protocol in ("http", "grpc") for how in ("killed", "drained")}
    for (protocol, how), row in found.items():
        outcomes: Counter[str] = Counter(row["as"] or {})
        assert row["calls"] > row["failed"], f"{protocol}, {how}: nobody was answered"
        if protocol == "http":
            assert not outcomes, f"HTTP, {how}: {outcomes}"
        else:  # each of the callers has one call under way
            assert set(outcomes) <= TOLD_BY_GRPC, f"gRPC, {how}: {outcomes}"
            assert outcomes.total() <= 2, f"gRPC, {how}: {outcomes}"
