"""Files that a controller reads at start: damaged files are named and set aside, or mended where one bit
flipped, and never believed."""

from __future__ import annotations

import hashlib
import json
import os
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from clockwork.controller.catalog.options import check_options
from clockwork.controller.catalog.records import Change, ModelRecord
from clockwork.controller.catalog.routes import NameRoute, whole
from clockwork.controller.catalog.store import Catalog
from clockwork.errors import ConfigError
from clockwork.formats.checksums import ASIDE, seal, unseal
from clockwork.formats.durable import run_alone
from clockwork.formats.package import PackageFile, digest_of, rows_of

FILES = [PackageFile("model.onnx", 4, hashlib.sha256(b"data").hexdigest())]
RECORD = ModelRecord(
    "m", 1, digest_of(FILES), FILES, check_options({"slo_ns": 50_000_000, "origin": "somewhere"})
)
ROUTE = NameRoute("m", whole(1), [whole(1)])


@pytest.fixture
def catalog(tmp_path: Path) -> Iterator[Catalog]:
    catalog = Catalog(tmp_path / "data")
    catalog.open()
    writer = catalog.store.writer(FILES)
    writer.write(0, 0, b"data")
    writer.commit()
    run_alone(catalog.change(Change(save=[RECORD])))
    run_alone(catalog.change(Change(route=ROUTE)))
    yield catalog
    catalog.close()


def test_what_was_written_is_read(catalog: Catalog) -> None:
    assert catalog.records() == ([RECORD], [])
    assert catalog.routes() == ([ROUTE], [])


@pytest.mark.parametrize("which", ["models/m@1.json", "routes/m.json"])
def test_a_flipped_bit_is_mended_and_said(catalog: Catalog, which: str) -> None:
    path = catalog.root / which
    data = path.read_bytes()
    read: Callable[[], Any] = catalog.records if which.startswith("models") else catalog.routes
    wanted = RECORD if which.startswith("models") else ROUTE
    rng = random.Random(1)
    for bit in rng.sample(range(8 * len(data)), 200):
        rotten = bytearray(data)
        rotten[bit // 8] ^= 1 << bit % 8
        path.write_bytes(rotten)
        found, complaints = read()
        assert found == [wanted], bit
        # otherwise the seal itself was damaged, and the file reads like a file of an earlier version
        if complaints:
            assert (complaints[0].name, complaints[0].mended) == ("m", True)
            assert path.read_bytes() == data
    assert not list(path.parent.glob(f"{ASIDE}*"))


@pytest.mark.parametrize("seed", range(20))
def test_more_damage_is_set_aside_and_named(catalog: Catalog, seed: int) -> None:
    rng = random.Random(seed)
    path = catalog.root / "models" / "m@1.json"
    data = bytearray(path.read_bytes())
    match seed % 4:
        case 0:
            for bit in rng.sample(range(8 * (len(data) - 30)), 5):
                data[bit // 8] ^= 1 << bit % 8
        case 1:
            del data[rng.randrange(len(data) - 1) :]
        case 2:
            data[:] = bytes(len(data))
        case 3:
            data[:] = rng.randbytes(rng.randrange(2000))
    path.write_bytes(data)
    found, (complaint,) = catalog.records()
    assert found == []
    assert (complaint.name, complaint.version, complaint.mended) == ("m", 1, False)
    assert "models/m@1.json is damaged" in complaint.text
    (aside,) = path.parent.glob(f"{ASIDE}*")
    assert aside.read_bytes() == data
    assert aside.name in complaint.text
    assert catalog.records() == ([], [])  # the record is gone without a further complaint


def body_with(**changes: Any) -> bytes:
    return seal(unseal(RECORD.to_json())[0] | changes)


HOSTILE = {
    "a name that leads out": ("m@1.json", body_with(name="../../evil")),
    "an absolute name": ("m@1.json", body_with(name="/etc/evil")),
    "a name with a NUL": ("m@1.json", body_with(name="m\0")),
    "another's name": ("m@1.json", body_with(name="n")),
    "another's version": ("m@1.json", body_with(version=2)),
    "a name that is none": ("m@1.json", body_with(name=["m"])),
    "version zero": ("m@0.json", body_with(version=0)),
    "a huge version": (f"m@{10**30}.json", body_with(version=10**30)),
    "a version that is a text": ("m@1.json", body_with(version="1")),
    "a version that is true": ("m@1.json", body_with(version=True)),
    "a digest that leads out": ("m@1.json", body_with(digest="../../../../etc")),
    "another package's digest": ("m@1.json", body_with(digest="0" * 64)),
    "a file that leads out": ("m@1.json", body_with(files=[["../../etc/passwd", 4, "0" * 64]])),
    "an absolute file": ("m@1.json", body_with(files=[["/etc/passwd", 4, "0" * 64]])),
    "a file of a negative size": ("m@1.json", body_with(files=[["model.onnx", -4, "0" * 64]])),
    "a file of a huge size": ("m@1.json", body_with(files=[["model.onnx", 10**40, "0" * 64]])),
    "files that are none": ("m@1.json", body_with(files={"model.onnx": 4})),
    "options that are none": ("m@1.json", body_with(options=[])),
    "an option of a wrong type": ("m@1.json", body_with(options={"slo_ns": "soon"})),
    "an option that is not known": ("m@1.json", body_with(options={"colour": 1})),
    "a huge SLO": ("m@1.json", body_with(options={"slo_ns": 10**30})),
    "offered perhaps": ("m@1.json", body_with(offered="perhaps")),
    "an interface that is none": ("m@1.json", body_with(declares=7)),
    "nothing": ("m@1.json", b""),
    "no object": ("m@1.json", b"[1, 2]"),
    "a deep object": ("m@1.json", b'{"a":' * 100_000),
    "a number without an end": ("m@1.json", b'{"version": ' + b"9" * 10_000 + b"}"),
    "no JSON": ("notes.txt", b"remember the milk"),
    "a strange name": ("\x1b[2J@x.json", body_with()),
}


@pytest.mark.parametrize("what", HOSTILE)
def test_a_record_that_no_version_wrote_is_set_aside(catalog: Catalog, what: str) -> None:
    name, data = HOSTILE[what]
    for path in (catalog.root / "models").iterdir():
        path.unlink()
    (catalog.root / "models" / name).write_bytes(data)
    found, (complaint,) = catalog.records()
    assert found == []
    assert not complaint.mended
    assert complaint.text.isprintable()
    assert len(list((catalog.root / "models").glob(f"{ASIDE}*"))) == 1


@pytest.mark.parametrize("folder", ["models", "routes"])
@pytest.mark.parametrize("kind", ["link", "directory", "pipe", "dangling link"])
def test_what_is_no_plain_file_is_set_aside(catalog: Catalog, folder: str, kind: str, tmp_path: Path) -> None:
    path = catalog.root / folder / ("m@1.json" if folder == "models" else "m.json")
    outside = tmp_path / "outside.json"
    os.rename(path, outside)
    match kind:
        case "link":
            path.symlink_to(outside)
        case "dangling link":
            path.symlink_to(tmp_path / "nothing")
        case "directory":
            path.mkdir()
        case "pipe":
            os.mkfifo(path)
    found, (complaint,) = catalog.records() if folder == "models" else catalog.routes()
    assert (found, complaint.name, complaint.mended) == ([], "m", False)
    assert not path.exists()
    assert outside.exists()


@pytest.mark.parametrize("data", [b"\xb1", b"2", b"", b"1" * 100, b"\0"])
def test_a_damaged_format_is_a_sentence(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "format").write_bytes(data)
    with pytest.raises(ConfigError, match=r"data directory .*format"):
        Catalog(tmp_path).open()


def test_records_of_earlier_versions_have_no_seal(catalog: Catalog) -> None:
    body, _ = unseal(RECORD.to_json())
    del body["aside"]
    body["options"].pop("origin")
    (catalog.root / "models" / "m@1.json").write_text(json.dumps(body))
    (record,), complaints = catalog.records()
    assert complaints == []
    assert record.options == RECORD.options | {"origin": ""}
    assert rows_of(record.files) == rows_of(FILES)
