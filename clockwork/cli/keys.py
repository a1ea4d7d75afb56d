"""The command `keys`: keys and roles of a cluster that listens beyond one machine."""

from __future__ import annotations

from pathlib import Path

import click

from clockwork.cli.common import PATH, CommandGroup, print_line, print_table
from clockwork.errors import ConfigError
from clockwork.wire.roles import Role


@click.group(cls=CommandGroup)
def keys() -> None:
    """Keys for clusters that listen beyond one machine.

    Each key has a role: a client sends requests, a worker executes, an operator changes the models, a gateway
    sends requests for others. docs/security.md has the table.
    """


@keys.command("new")
@click.argument("directory", type=PATH)
def new_keys(directory: Path) -> None:
    """Write the keys of a new cluster into DIRECTORY: the controller's and one of each role.

    \b
    controller.key   for the controller (secret)
    client.key       to infer, and to ask about models (secret)
    worker.key       for workers (secret)
    operator.key     to register, load, unload, route and remove models (secret)
    gateway.key      for gateways: the rights of a client, and metrics (secret)
    allowed.keys     keys that the controller accepts; beside controller.key, or at --allowed

    \b
    Example:
      clockwork keys new keys/
      clockwork controller --listen tcp://0.0.0.0:5555 --worker-listen tcp://0.0.0.0:5556 \\
          --key keys/controller.key
    """
    from clockwork.wire.keys import write_keys
    from clockwork.wire.transport import new_key_pair

    try:
        written = write_keys(directory, new_key_pair(), {role: new_key_pair() for role in Role})
    except OSError as error:
        raise ConfigError(f"{directory} cannot be written: {error.strerror}") from None
    for path in written:
        print_line(f"wrote {path}")


@keys.command("add")
@click.argument("directory", type=PATH)
@click.argument("name")
@click.option(
    "--role", type=click.Choice([role.value for role in Role]), required=True, help="The key's role."
)
def add_key(directory: Path, name: str, role: str) -> None:
    """Write one more key, NAME.key, and let it in: a running controller takes it within a second.

    DIRECTORY has the cluster's controller.key. With a key for each team, machine or program, each can be
    revoked separately.

    \b
    Example:
      clockwork keys add keys/ alice --role operator
    """
    from clockwork.wire import keys as files
    from clockwork.wire.transport import new_key_pair

    for path in files.add_key(directory, Role(role), name, new_key_pair()):
        print_line(f"wrote {path}")


@keys.command("revoke")
@click.argument("directory", type=PATH)
@click.argument("which", metavar="NAME")
def revoke_key(directory: Path, which: str) -> None:
    """Shut a key out. A running controller ends its connections within a second.

    NAME: as in `keys list`, or the key's file, or the public key itself. DIRECTORY must be the one that the
    controller reads; if its list is a copy, copy it again.

    \b
    Example:
      clockwork keys revoke keys/ alice
    """
    from clockwork.wire import keys as files

    for name in files.revoke_key(directory, which):
        print_line(f"revoked {name}")


@keys.command("list")
@click.argument("directory", type=PATH)
def list_keys(directory: Path) -> None:
    """List the keys that the controller of DIRECTORY accepts.

    \b
    Example:
      clockwork keys list keys/
    """
    from clockwork.wire import keys as files

    listed = directory / files.ALLOWED_FILE
    legacy = files.read_controller_keys(directory / files.CONTROLLER_KEY_FILE).allowed
    rows = files.read_allowed_keys(listed) if listed.exists() or not legacy else {}
    table = [[row.name, row.role.value, row.public] for row in rows.values()]
    table += [["", "any", public] for public in legacy if public not in rows]
    print_table(["name", "role", "public key"], table)
