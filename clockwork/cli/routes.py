"""`clockwork models route`, `promote` and `rollback`: commands that split a name's traffic."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import click

from clockwork import config
from clockwork.cli.common import Connect, client_options, print_json, print_line

if TYPE_CHECKING:
    from clockwork.wire.description import RouteInfo, ShadowInfo

_SHARE = re.compile(r"([0-9]{1,19})=([0-9]+(?:\.[0-9]*)?|\.[0-9]+)%?")


def _share(text: str) -> tuple[int, float]:
    """Parse ``2=10%`` into (2, 0.1)."""
    match = _SHARE.fullmatch(text)
    if match is None or float(match[2]) > 100:
        raise click.BadParameter(f"{text[:80]!r} is not like 2=10%: a version and its share in percent")
    return int(match[1]), float(match[2]) / 100


def _shadow(text: str) -> tuple[int, float]:
    """Parse ``2=10%`` into (2, 0.1), and ``2`` into (2, 1.0)."""
    return _share(f"{text}=100%" if text.isdigit() else text)


@click.command()
@click.argument("name")
@click.argument("shares", nargs=-1, type=_share, metavar="[VERSION=SHARE%]...")
@click.option(
    "--shadow",
    type=_shadow,
    metavar="VERSION[=SHARE%]",
    help="Copy this share of the other versions' requests to this version, too.",
)
@click.option("--no-shadow", is_flag=True, help="End copying.")
@click.option(
    "--tolerance",
    type=click.FloatRange(0),
    default=config.SHADOW_TOLERANCE,
    show_default=True,
    help="Count answers of the shadow whose relative difference is larger.",
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@client_options
def route(
    name: str, shares: tuple[tuple[int, float], ...], shadow: tuple[int, float] | None, no_shadow: bool,
    tolerance: float, as_json: bool, connect: Connect,
) -> None:  # fmt: skip
    """Split the traffic of NAME between its versions, or copy some of it to a version. Without either, show
    the route.

    A share is VERSION=SHARE%. Other versions share the rest in the same proportion as before. Requests for
    NAME@VERSION are not affected. A model that has been split gives no traffic to a new version by itself.

    \b
    Examples:
      clockwork models route resnet50 2=10%
      clockwork models route resnet50 --shadow 2
      clockwork models route resnet50 1=80% 2=20% --shadow 3=5% --tolerance 0.01
    """
    twice = {version for version, _ in shares if [number for number, _ in shares].count(version) > 1}
    if twice:
        raise click.UsageError(f"version {min(twice)} is named twice")
    if shadow is not None and no_shadow:
        raise click.UsageError("--shadow and --no-shadow exclude each other")
    with connect() as client:
        if not shares and shadow is None and not no_shadow:
            from clockwork.wire.description import RouteInfo

            info = RouteInfo.from_wire(client.model(name).raw.get("route"))
        else:
            asked = {} if no_shadow else dict([shadow]) if shadow is not None else None
            info = client.route(name, dict(shares), shadow=asked, tolerance=tolerance)
    _show(info, as_json)


@click.command()
@click.argument("name")
@click.argument("version")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@client_options
def promote(name: str, version: str, as_json: bool, connect: Connect) -> None:
    """Route all traffic of NAME to VERSION at once. A shadow ends.

    VERSION `newest`: to the newest version that is ready, and from then on to each newer version, as without
    a route.

    \b
    Examples:
      clockwork models promote resnet50 2
      clockwork models promote resnet50 newest
    """
    if version != "newest" and not (
        version.isascii() and version.isdigit() and 0 < int(version[:19]) < 1 << 63
    ):
        raise click.UsageError(f"{version[:80]!r} is neither the number of a version nor `newest`")
    with connect() as client:
        info = client.promote(name, 0 if version == "newest" else int(version))
    _show(info, as_json)


@click.command()
@click.argument("name")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@client_options
def rollback(name: str, as_json: bool, connect: Connect) -> None:
    """Return the traffic of NAME to its previous route at once: before it was last routed or promoted, or
    before a new version took over.

    \b
    Example:
      clockwork models rollback resnet50
    """
    with connect() as client:
        info = client.rollback(name)
    _show(info, as_json)


def _show(info: RouteInfo, as_json: bool) -> None:
    if as_json:
        print_json(info.raw)
        return
    print_line(f"{info.name}: {say_route(info)}")
    for line in say_shadow(info.shadow):
        print_line(f"  {line}")


def say_shares(shares: dict[int, float]) -> str:
    """Return shares as text: ``90 % to 1, 10 % to 2``."""
    return ", ".join(f"{share * 100:g} % to {version}" for version, share in shares.items()) or "nothing"


def say_route(info: RouteInfo) -> str:
    """Return a name's route as a line of text."""
    text = say_shares(info.shares) + (" (the newest version)" if info.automatic else "")
    return text if info.serving == info.shares else f"{text}; now {say_shares(info.serving)}"


def say_shadow(shadow: ShadowInfo | None) -> list[str]:
    """Return a shadow's counts, and the differences of its answers, in lines."""
    if shadow is None:
        return []
    asked = (
        f"shadow: {shadow.share * 100:g} % of the others' to {shadow.version}: {shadow.copied} copied, "
        f"{shadow.compared} compared, {shadow.unanswered} unanswered, {shadow.dropped} dropped, {shadow.moot} moot"
    )
    found = (
        f"{shadow.beyond} beyond the tolerance of {shadow.tolerance:g}, {shadow.differing} of them in dtype or shape; "
        f"at most {shadow.absolute_max:.3g} off, relatively {shadow.relative_max:.3g}"
    )
    return [asked, found]
