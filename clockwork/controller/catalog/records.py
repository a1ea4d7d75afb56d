"""Values of the catalog: a version's record, and a change of the files on disk."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any, NamedTuple

from clockwork.config import VERSION_MAX
from clockwork.controller.catalog.options import check_options
from clockwork.controller.catalog.routes import NameRoute
from clockwork.formats.checksums import seal
from clockwork.formats.interface import Interface
from clockwork.formats.package import PackageFile, check_name, digest_of, parse_files, rows_of
from clockwork.wire.telling import tell


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

    def to_json(self) -> bytes:
        body: dict[str, Any] = {
            "name": self.name,
            "version": self.version,
            "digest": self.digest,
            "files": rows_of(self.files),
            "options": self.options,
            "offered": self.offered,
            "aside": self.aside,
        }
        if self.is_read:
            body["declares"] = None if self.interface is None else self.interface.to_dict()
        return seal(body)

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

    @property
    def file_name(self) -> str:
        return f"{self.label}.json"


@dataclasses.dataclass(frozen=True, slots=True)
class Change:
    """The changes of the catalog that one order makes: all of them, or none."""

    save: Sequence[ModelRecord] = ()
    remove: Sequence[ModelRecord] = ()
    route: NameRoute | None = None  # the new route of the name
    unroute: str = ""  # the name whose route goes
    packages: Sequence[str] = ()  # digests of packages that are unused after the change


class Complaint(NamedTuple):
    """A file of the catalog was not as it should be. It has been mended, or set aside."""

    name: str  # name of the model, as in the file's name
    version: int  # 0 for a route, or where the file's name has no version
    text: str
    mended: bool
