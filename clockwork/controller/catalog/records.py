"""Values of the catalog: a version's record, and a change of the files on disk."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from typing import Any, NamedTuple

from clockwork.config import VERSION_MAX
from clockwork.controller.catalog.options import check_options
from clockwork.controller.catalog.routes import NameRoute
from clockwork.errors import InvalidInput, InvalidModel
from clockwork.formats.interface import Interface
from clockwork.formats.package import PackageFile, check_name, digest_of, parse_files, rows_of
from clockwork.wire.telling import tell

UNREADABLE = (
    OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError, InvalidModel, InvalidInput,
)  # fmt: skip
"""Exceptions of reading what neither this release nor an earlier one wrote."""


@dataclasses.dataclass(slots=True)
class ModelRecord:
    """One version of one model, as it was registered."""

    name: str
    version: int
    digest: str
    files: list[PackageFile]
    options: dict[str, Any]  # options of its Register message
    offered: bool = True  # whether the version serves; see messages.Offer
    aside: str = ""  # why the version was set aside, and so is not offered; "": it was not
    is_read: bool = False  # the package has been read for ``interface``; earlier releases did not read it
    interface: Interface | None = None  # interface that the package declares; None: it cannot be read

    @property
    def label(self) -> str:
        """The version's name for people, ``name@version``, which they may use as well."""
        return f"{self.name}@{self.version}"

    def to_row(self, by: str, now_ns: int) -> tuple[Any, ...]:
        """The record as a row of the catalogue; see database.VERSIONS. by: who has changed it, and when."""
        options = {key: value for key, value in self.options.items() if key != "slo_ns"}
        interface = None if self.interface is None else self.interface.to_dict()
        return (
            self.name,
            self.version,
            self.digest,
            self.options.get("slo_ns", 0),
            int(self.offered),
            self.aside,
            json.dumps(rows_of(self.files)),
            json.dumps(options),
            json.dumps(interface) if self.is_read else "",
            by,
            now_ns,
        )

    @staticmethod
    def from_row(row: Sequence[Any]) -> ModelRecord:
        """Inverse of to_row(). Raises as from_body() does."""
        name, version, digest, slo_ns, offered, aside, files, options, declares, *_ = row
        body = {
            "name": name,
            "version": version,
            "digest": digest,
            "files": json.loads(files),
            "options": json.loads(options) | {"slo_ns": slo_ns},
            "offered": offered == 1,
            "aside": aside,
        }
        if declares:
            body["declares"] = json.loads(declares)
        return ModelRecord.from_body(body)

    @staticmethod
    def from_body(body: dict[str, Any]) -> ModelRecord:
        """Read a record. Raises ValueError, KeyError, TypeError, InvalidModel or InvalidInput."""
        name, version = body["name"], body["version"]
        offered, aside = body.get("offered", True), body.get("aside", "")
        check_name(name)
        if type(version) is not int or not 1 <= version <= VERSION_MAX:
            raise ValueError(f"version {tell(version)} is not from 1 to {VERSION_MAX}")
        if type(offered) is not bool or type(aside) is not str:
            raise ValueError("offered is true or false, aside a text")
        files = parse_files(body["files"])
        if body["digest"] != digest_of(files):
            raise ValueError(f"its files are those of package {digest_of(files)}")
        options, is_read, declares = check_options(body["options"]), "declares" in body, body.get("declares")
        interface = None if declares is None else Interface.from_dict(declares)
        return ModelRecord(name, version, body["digest"], files, options, offered, aside, is_read, interface)


@dataclasses.dataclass(frozen=True, slots=True)
class Change:
    """The changes of the catalog that one order makes: all of them, or none."""

    save: Sequence[ModelRecord] = ()
    remove: Sequence[ModelRecord] = ()
    route: NameRoute | None = None  # the new route of the name
    unroute: str = ""  # the name whose route goes
    packages: Sequence[str] = ()  # digests of packages that are unused after the change
    by: str = "controller"  # who ordered it

    def described(self) -> list[str]:
        """The parts of the change: "+m@1" a version is written, "-m@1" removed; "+m" and "-m" a route."""
        return [
            *(f"+{record.label}" for record in self.save),
            *(f"-{record.label}" for record in self.remove),
            *([f"+{self.route.name}"] if self.route is not None else []),
            *([f"-{self.unroute}"] if self.unroute else []),
        ]


class Complaint(NamedTuple):
    """A part of the catalogue was not as it should be. It has come back from a good copy, or is lost."""

    name: str  # name of the model; "": what is lost is not known by name
    version: int  # 0 for a route
    text: str
    mended: bool
