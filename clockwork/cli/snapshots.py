"""`clockwork snapshot` and `clockwork restore`: the catalogue and its packages in one file."""

from __future__ import annotations

from pathlib import Path

import click

from clockwork.cli.common import FILE, PATH, as_usage, print_line, say_bytes
from clockwork.cli.serve import PackageFlags, package_options
from clockwork.config import data_directory
from clockwork.config.controller import PACKAGE_CACHE_BYTES
from clockwork.controller.catalog.snapshots import CatalogPlace, SavedCatalog, make_snapshot, restore_snapshot
from clockwork.system.words import say_count


@click.command()
@click.argument("file", type=PATH)
@click.option("--data", type=PATH, help="Directory of the controller (or CLOCKWORK_DATA).")
@package_options
def snapshot(file: Path, data: Path | None, kept: PackageFlags) -> None:
    """Write the catalogue and all packages to FILE, also while the controller serves.

    It is for the controller's machine, with the controller's own --data, --catalog and --packages. Every byte
    is checked. FILE is replaced when the new snapshot is whole.

    \b
    Examples:
      clockwork snapshot models.tar --data /var/lib/clockwork
      clockwork snapshot models.tar --catalog postgresql://me@db/clockwork --packages s3://bucket/prefix
    """
    with as_usage():
        made = make_snapshot(_place(data, kept), file)
    print_line(f"{file}: {_say(made)}")


@click.command()
@click.argument("file", type=FILE)
@click.option("--data", type=PATH, help="Directory of the controller to be (or CLOCKWORK_DATA).")
@package_options
def restore(file: Path, data: Path | None, kept: PackageFlags) -> None:
    """Restore a snapshot where there are no models, before a controller is started there.

    Every byte is checked. A restoration that was cut short can be begun again.

    \b
    Examples:
      clockwork restore models.tar --data /var/lib/clockwork
      clockwork restore models.tar --catalog postgresql://me@db/clockwork
    """
    place = _place(data, kept)
    with as_usage():
        made = restore_snapshot(file, place)
    print_line(f"{place.data}: {_say(made)}")


def _place(data: Path | None, kept: PackageFlags) -> CatalogPlace:
    with as_usage():
        kept.check()
    cache_bytes = kept.package_cache or PACKAGE_CACHE_BYTES
    return CatalogPlace((data or data_directory()).absolute(), kept.catalog, kept.packages, cache_bytes)


def _say(made: SavedCatalog) -> str:
    return (
        f"{say_count(made.versions, 'version')} of models and {say_count(made.packages, 'package')} of "
        f"{say_bytes(made.bytes)}, as of change {made.change}"
    )
