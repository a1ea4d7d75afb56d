"""Flags and variables of a gateway, given to the gateway or to `clockwork up`."""

from __future__ import annotations

from typing import Any

import pytest
from click.testing import CliRunner

from clockwork.cli import root
from clockwork.gateway import process
from clockwork.gateway.settings import GatewaySettings, StatusCodes
from clockwork.launch import local


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Return the settings of the gateway that was started."""
    found: list[Any] = []
    monkeypatch.setattr(process, "main", lambda settings: found.append(settings) or 0)
    monkeypatch.setattr(local, "up", lambda settings, say: found.append(settings) or 0)
    return found


def run(*arguments: str, **variables: str) -> str:
    result = CliRunner().invoke(root.cli, arguments, env={"CLOCKWORK_STATUS_CODES": None, **variables})
    return "" if result.exit_code == 0 else result.output


@pytest.mark.parametrize(
    ("arguments", "variables", "codes"),
    [
        ((), {}, StatusCodes.MESH),
        (("--status-codes", "triton"), {}, StatusCodes.TRITON),
        ((), {"CLOCKWORK_STATUS_CODES": "triton"}, StatusCodes.TRITON),
        (("--status-codes", "mesh"), {"CLOCKWORK_STATUS_CODES": "triton"}, StatusCodes.MESH),
    ],
)
def test_the_flag_comes_before_the_variable(
    started: list[Any], arguments: tuple[str, ...], variables: dict[str, str], codes: StatusCodes
) -> None:
    assert run("gateway", *arguments, **variables) == ""
    assert run("up", "--gateway", *arguments, **variables) == ""
    gateway, cluster = started
    assert gateway.status_codes is codes
    at = cluster.gateway_arguments.index("--status-codes")
    assert cluster.gateway_arguments[at + 1] == codes
    assert GatewaySettings().status_codes is StatusCodes.MESH


@pytest.mark.parametrize("command", ["gateway", "up"])
def test_wrong_status_codes_are_told_with_the_right_ones(started: list[Any], command: str) -> None:
    said = " ".join(run(command, CLOCKWORK_STATUS_CODES="x" * 1_000).split())
    assert "is none of mesh, triton (or CLOCKWORK_STATUS_CODES has it)" in said
    assert len(said) < 500
    assert not started
