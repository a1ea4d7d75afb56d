"""The catalogue that a controller reads at start: damage is named, comes back from the backup, and is never
believed."""

from __future__ import annotations

import hashlib
import json
import os
import random
import shutil
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from clockwork.controller.catalog import database
from clockwork.controller.catalog.backup import back_up
from clockwork.controller.catalog.database import FILE, LOG, RESERVE, VERSIONS
from clockwork.controller.catalog.options import check_options
from clockwork.controller.catalog.records import Change, Complaint, ModelRecord
from clockwork.controller.catalog.recovery import BACKUP
from clockwork.controller.catalog.routes import NameRoute, whole
from clockwork.controller.catalog.store import Catalog
from clockwork.errors import ConfigError
from clockwork.formats.checksums import ASIDE, seal, unseal
from clockwork.formats.durable import run_alone
from clockwork.formats.package import PackageFile, digest_of, rows_of
from tests.catalogues import apply, open_catalog, sealed, sql
from tests.disks import mount, small_disk, small_files
from tests.patience import eventually

FILES = [PackageFile("model.onnx", 4, hashlib.sha256(b"data").hexdigest())]


def record(name: str, version: int = 1, **changes: Any) -> ModelRecord:
    options = check_options({"slo_ns": 50_000_000, "origin": "somewhere"})
    made = ModelRecord(name, version, digest_of(FILES), FILES, options)
    for key, value in changes.items():
        setattr(made, key, value)
    return made


RECORD = record("m")
ROUTE = NameRoute("m", whole(1), [whole(1)])
Found = tuple[list[ModelRecord], list[NameRoute], list[Complaint]]


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A closed catalogue with a version and a route, and its backup."""
    with open_catalog(tmp_path / "data") as catalog:
        writer = catalog.store.writer(FILES)
        writer.write(0, 0, b"data")
        writer.commit()
        apply(catalog, Change(save=[RECORD], by="somebody"))
        apply(catalog, Change(route=ROUTE, by="somebody else"))
        back_up(catalog.root)
    return tmp_path / "data"


def found_in(root: Path) -> Found:
    with open_catalog(root) as catalog:
        (records, complaints), (routes, more) = catalog.records(), catalog.routes()
        return records, routes, complaints + more


def flip(path: Path, bit: int) -> None:
    data = bytearray(path.read_bytes())
    data[bit // 8] ^= 1 << bit % 8
    path.write_bytes(data)


def test_what_was_written_is_read(root: Path) -> None:
    assert found_in(root) == ([RECORD], [ROUTE], [])
    changed = record("m", offered=False, aside="it overran", is_read=True)
    with open_catalog(root) as catalog:
        apply(catalog, Change(save=[changed, record("m", 2)]))
        apply(catalog, Change(remove=[record("m", 2)], unroute="m", packages=["0" * 64]))
    with open_catalog(root) as catalog:
        assert catalog.records() == ([changed], [])
        assert catalog.routes() == ([], [])
        assert catalog.unused() == ["0" * 64]


def test_it_says_who_changed_what(root: Path) -> None:
    assert sql(root, "SELECT number, made_by, name, what FROM changes ORDER BY number") == [
        (1, "somebody", "m", '["+m@1"]'),
        (2, "somebody else", "m", '["+m"]'),
    ]
    assert sql(root, "SELECT changed_by FROM versions UNION ALL SELECT changed_by FROM routes") == [
        ("somebody",),
        ("somebody else",),
    ]


def test_of_changes_the_newest_are_kept(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(database, "CATALOG_CHANGES_KEPT", 3)
    with open_catalog(root) as catalog:
        for _ in range(5):
            apply(catalog, Change(route=ROUTE))
    assert sql(root, "SELECT number FROM changes ORDER BY number") == [(5,), (6,), (7,)]


def test_changes_that_share_a_transaction_hold_together_and_are_numbered_in_order(root: Path) -> None:
    with open_catalog(root) as catalog:
        steps = [catalog.change(Change(save=[record(name)])) for name in "abc"]
        commits = [commit for one in steps for commit in next(one)]
        assert len(set(map(id, commits))) == 1
        numbers = []
        for commit, one in zip(commits, steps, strict=True):
            assert not isinstance(commit, int)
            commit.sync()
            with pytest.raises(StopIteration) as end:
                next(one)
            numbers.append(end.value.value)
        assert numbers == [3, 4, 5]
    assert [one.name for one in found_in(root)[0]] == ["a", "b", "c", "m"]


def test_a_removed_package_is_not_removed_again(root: Path) -> None:
    with open_catalog(root) as catalog:
        apply(catalog, Change(remove=[RECORD], packages=[RECORD.digest]))
        run_alone(catalog.remove(RECORD.digest))
        apply(catalog, Change(unroute="m"))
    with open_catalog(root) as catalog:
        assert catalog.unused() == []


def test_a_package_that_is_used_again_is_not_removed(root: Path) -> None:
    with open_catalog(root) as catalog:
        apply(catalog, Change(remove=[RECORD], packages=[RECORD.digest]))
        apply(catalog, Change(save=[record("n")]))
    with open_catalog(root) as catalog:
        assert catalog.unused() == []


# ----- damage ------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(60))
def test_a_flipped_bit_is_found_or_changes_nothing_and_the_backup_brings_it_back(
    root: Path, seed: int
) -> None:
    data = (root / FILE).read_bytes()
    flip(root / FILE, random.Random(seed).randrange(8 * len(data)))
    rotten = (root / FILE).read_bytes()
    records, routes, complaints = found_in(root)
    assert (records, routes) == ([RECORD], [ROUTE])
    if complaints:
        (complaint,) = complaints
        assert (complaint.name, complaint.mended) == ("", True)
        assert "was damaged" in complaint.text
        (aside,) = root.glob(f"{ASIDE}*-{FILE}")
        assert aside.name in complaint.text
        assert len(aside.read_bytes()) == len(rotten)
    assert found_in(root) == ([RECORD], [ROUTE], [])  # and that is no news any more


def row_bits(path: Path, text: bytes) -> list[int]:
    """The bits of the file that hold this text."""
    data = path.read_bytes()
    start = data.index(text)
    return list(range(8 * start, 8 * (start + len(text))))


@pytest.mark.parametrize("seed", range(10))
def test_a_bit_of_a_row_that_sqlite_takes_for_whole_is_found_by_its_checksum(root: Path, seed: int) -> None:
    bit = random.Random(seed).choice(row_bits(root / FILE, RECORD.digest.encode()))
    flip(root / FILE, bit)
    records, _, (complaint,) = found_in(root)
    assert records == [RECORD]
    assert complaint.mended


@pytest.mark.parametrize("seed", range(40))
def test_damage_of_both_is_put_together_or_named(root: Path, seed: int) -> None:
    rng = random.Random(seed)
    for name in (FILE, BACKUP):
        flip(root / name, rng.randrange(8 * (root / name).stat().st_size))
    records, routes, complaints = found_in(root)
    lost = [one for one in complaints if not one.mended]
    assert records in ([RECORD], [])
    assert routes in ([ROUTE], [])
    if not (records and routes):
        assert lost


def test_a_lost_version_is_named(root: Path) -> None:
    (root / BACKUP).unlink()
    flip(root / FILE, row_bits(root / FILE, RECORD.digest.encode())[9])
    records, routes, complaints = found_in(root)
    assert (records, routes) == ([], [ROUTE])
    assert [(one.name, one.version, one.mended) for one in complaints] == [("", 0, False), ("m", 1, False)]
    assert "m@1 is lost" in complaints[1].text


def test_what_changed_after_the_backup_holds_and_what_was_removed_stays_away(root: Path) -> None:
    with open_catalog(root) as catalog:
        apply(catalog, Change(save=[record("n"), record("o")]))
        apply(catalog, Change(save=[record("m", aside="new")], unroute="m"))
        apply(catalog, Change(remove=[record("o")]))
    sql(root, "UPDATE about SET value = 'rotten' WHERE subject = 'id'")
    records, routes, (complaint,) = found_in(root)
    assert records == [record("m", aside="new"), record("n")]
    assert routes == []
    assert complaint.mended


def test_a_missing_database_comes_back(root: Path) -> None:
    (root / FILE).unlink()
    records, routes, (complaint,) = found_in(root)
    assert (records, routes) == ([RECORD], [ROUTE])
    assert "is missing" in complaint.text


def killed(root: Path, place: Path, change: Change) -> Path:
    """A copy of the directory as a controller leaves it that is killed after a change."""
    with open_catalog(root) as catalog:
        apply(catalog, change)
        return Path(shutil.copytree(root, place))


def test_the_log_of_a_killed_controller_is_read(root: Path, tmp_path: Path) -> None:
    copy = killed(root, tmp_path / "copy", Change(save=[record("n")]))
    assert (copy / LOG).stat().st_size
    assert found_in(copy) == ([RECORD, record("n")], [ROUTE], [])


@pytest.mark.parametrize("seed", range(40))
def test_rot_of_the_log_loses_nothing_in_silence(root: Path, tmp_path: Path, seed: int) -> None:
    copy = killed(root, tmp_path / "copy", Change(save=[record("n")]))
    flip(copy / LOG, random.Random(seed).randrange(8 * (copy / LOG).stat().st_size))
    records, routes, complaints = found_in(copy)
    assert routes == [ROUTE]
    assert records == [RECORD, record("n")] or (records == [RECORD] and complaints), complaints


@pytest.mark.parametrize("seed", range(10))
def test_rot_of_the_log_costs_nothing_that_the_backup_has(root: Path, tmp_path: Path, seed: int) -> None:
    with open_catalog(root) as catalog:
        apply(catalog, Change(save=[record("n")]))
        back_up(root)
        copy = Path(shutil.copytree(root, tmp_path / "copy"))
    flip(copy / LOG, random.Random(seed).randrange(8 * (copy / LOG).stat().st_size))
    assert found_in(copy)[:2] == ([RECORD, record("n")], [ROUTE])


def test_a_rebuilding_that_was_cut_short_is_finished(root: Path) -> None:
    os.rename(root / BACKUP, root / "catalog.rebuilt")
    (root / FILE).unlink()
    assert found_in(root) == ([RECORD], [ROUTE], [])


@pytest.mark.parametrize("what", ["directory", "text", "nothing", "dangling link"])
def test_what_is_no_database_is_set_aside_or_refused(root: Path, tmp_path: Path, what: str) -> None:
    os.rename(root / FILE, tmp_path / "outside")
    match what:
        case "directory":
            (root / FILE).mkdir()
        case "text":
            (root / FILE).write_text("remember the milk" * 1000)
        case "nothing":
            (root / FILE).write_bytes(b"")
        case "dangling link":
            (root / FILE).symlink_to(tmp_path / "nowhere" / "at all")
    if what == "directory":
        with pytest.raises(ConfigError, match="cannot be used"):
            Catalog(root).open()
        return
    records, routes, (complaint,) = found_in(root)
    assert (records, routes, complaint.mended) == ([RECORD], [ROUTE], True)


# ----- rows that no release wrote ----------------------------------------------------------------

COLUMNS = VERSIONS.columns
HOSTILE: dict[str, dict[str, Any]] = {
    "a name that leads out": {"name": "../../evil"},
    "an absolute name": {"name": "/etc/evil"},
    "version zero": {"version": 0},
    "a negative version": {"version": -1},
    "a version that is a text": {"version": "one"},
    "a digest that leads out": {"digest": "../../../../etc"},
    "another package's digest": {"digest": "0" * 64},
    "a file that leads out": {"files": json.dumps([["../../etc/passwd", 4, "0" * 64]])},
    "an absolute file": {"files": json.dumps([["/etc/passwd", 4, "0" * 64]])},
    "a file of a negative size": {"files": json.dumps([["model.onnx", -4, "0" * 64]])},
    "a file of a huge size": {"files": json.dumps([["model.onnx", 10**40, "0" * 64]])},
    "files that are none": {"files": '{"model.onnx": 4}'},
    "files that are no JSON": {"files": "["},
    "deep files": {"files": "[" * 100_000},
    "options that are none": {"options": "[]"},
    "an option that is not known": {"options": '{"colour": 1}'},
    "a number without an end": {"options": '{"batch_max": ' + "9" * 10_000 + "}"},
    "a huge SLO": {"slo_ns": 1 << 62},
    "an SLO that is a text": {"slo_ns": "soon"},
    "an interface that is none": {"declares": "7"},
}


@pytest.mark.parametrize("what", HOSTILE)
def test_a_row_that_no_release_wrote_is_named_and_not_used(root: Path, what: str) -> None:
    row = dict(zip(COLUMNS, RECORD.to_row("", 1), strict=True)) | HOSTILE[what]
    values = tuple(row[column] for column in COLUMNS)
    sql(root, "DELETE FROM versions")
    with closing(sqlite3.connect(root / FILE, isolation_level=None)) as connection:
        database.put(connection, database.SQLITE, VERSIONS, values)
    (root / BACKUP).unlink()
    for _ in range(2):
        records, _, (complaint,) = found_in(root)
        assert (records, complaint.mended) == ([], False)
        assert complaint.text.isprintable()


# ----- formats -----------------------------------------------------------------------------------


@pytest.mark.parametrize("data", [b"\xb1", b"3", b"", b"1" * 100, b"\0"])
def test_a_damaged_format_is_a_sentence(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "format").write_bytes(data)
    with pytest.raises(ConfigError, match=r"data directory .*format"):
        Catalog(tmp_path).open()
    assert [path.name for path in sorted(tmp_path.iterdir())] == ["format", "lock"]


def test_a_later_schema_is_refused_before_anything_is_changed(root: Path) -> None:
    with closing(sqlite3.connect(root / FILE, isolation_level=None)) as connection:
        database.put(connection, database.SQLITE, database.ABOUT, ("schema", "1000"))
    before = (root / FILE).read_bytes()
    with pytest.raises(ConfigError, match=r"has schema 1000, .* a later release has written it"):
        Catalog(root).open()
    assert (root / FILE).read_bytes() == before


def test_migrations_are_made_in_order_and_once(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def with_migrations(*more: str) -> None:
        steps = tuple((one,) for one in more)
        monkeypatch.setattr(database, "MIGRATIONS", (*present, *steps))

    present = database.MIGRATIONS
    with_migrations("CREATE TABLE second (number INTEGER)", "INSERT INTO second VALUES (3)")
    for _ in range(2):
        assert found_in(root) == ([RECORD], [ROUTE], [])
    assert sql(root, "SELECT number FROM second") == [(3,)]
    schema = len(present) + 2
    assert sql(root, "SELECT value FROM about WHERE subject = 'schema'") == [(str(schema),)]
    with_migrations("", "", "ALTER TABLE second ADD COLUMN extra INTEGER", "no statement")
    before = sql(root, "SELECT name, sql FROM sqlite_master")
    with pytest.raises(
        ConfigError, match=f"schema {schema + 2}"
    ):  # none of two is made where the second fails
        Catalog(root).open()
    assert sql(root, "SELECT name, sql FROM sqlite_master") == before


def former(root: Path) -> Path:
    """A directory as the releases before the database left it, after a change that was cut short."""
    for folder in ("models", "routes", "undo"):
        (root / folder).mkdir(parents=True)
    (root / "format").write_text("1")
    (root / "models" / "m@1.json").write_bytes(sealed(record("m", offered=False)))
    (root / "models" / "n@1.json").write_bytes(sealed(record("n")))
    (root / "models" / "o@1.json").write_bytes(sealed(record("o")))
    (root / "models" / ".n@1.json.7.tmp").write_bytes(b"half")
    (root / "undo" / "old%models%m@1.json").write_bytes(sealed(RECORD))
    (root / "undo" / "new%models%o@1.json").write_bytes(b"")
    body = {"name": "m", "split": ROUTE.split and ROUTE.split.to_wire(), "earlier": [whole(1).to_wire()]}
    (root / "routes" / "m.json").write_bytes(seal(body))
    return root


def test_the_files_of_an_earlier_release_are_taken_over_and_kept_until_the_second_start(
    tmp_path: Path,
) -> None:
    root = former(tmp_path / "data")
    before = {path: path.read_bytes() for path in root.rglob("*") if path.is_file() and path.name != "format"}
    assert found_in(root) == ([RECORD, record("n")], [ROUTE], [])
    assert {path: path.read_bytes() for path in before} == before
    assert (root / "format").read_text() == "2"  # so that an earlier release refuses it
    with open_catalog(root) as catalog:
        assert catalog.records() == ([RECORD, record("n")], [])
        assert catalog.routes() == ([ROUTE], [])
        apply(catalog, Change(remove=[record("n")]))
    assert not [path for path in before if path.exists()]
    assert not (root / "models").exists()
    assert found_in(root) == ([RECORD], [ROUTE], [])


def test_a_damaged_file_of_an_earlier_release_is_named(tmp_path: Path) -> None:
    root = former(tmp_path / "data")
    flip(root / "models" / "n@1.json", 100)
    (root / "models" / "p@1.json").symlink_to(root / "format")
    records, _, complaints = found_in(root)
    assert records == [RECORD]
    assert [(one.name, one.version, one.mended) for one in complaints] == [("n", 1, False), ("p", 1, False)]
    assert "models/n@1.json" in complaints[0].text


def test_records_of_earlier_versions_have_no_seal(tmp_path: Path) -> None:
    root = former(tmp_path / "data")
    body, _ = unseal(sealed(record("n")))
    del body["aside"]
    body["options"].pop("origin")
    (root / "models" / "n@1.json").write_text(json.dumps(body))
    records, _, complaints = found_in(root)
    assert complaints == []
    assert records[1].options == RECORD.options | {"origin": ""}
    assert rows_of(records[1].files) == rows_of(FILES)


# ----- the backup --------------------------------------------------------------------------------


def test_the_backup_follows_by_itself_and_damage_of_it_is_named(root: Path) -> None:
    flip(root / BACKUP, row_bits(root / BACKUP, RECORD.digest.encode())[3])
    said: list[tuple[int, str, str]] = []
    with open_catalog(root) as catalog:
        catalog.keep_backup(lambda *one: said.append(one))
        eventually(lambda: (2, "", "") in said, "it is written anew")
        assert said[0][0] == 0
        assert "differ" in said[0][2]
        number = apply(catalog, Change(save=[record("n")]))
        eventually(lambda: (number, "", "") in said, "the change is in it")
        copy = root / "elsewhere"
        copy.mkdir()
        shutil.copy(root / BACKUP, copy / FILE)
        assert found_in(copy)[0] == [RECORD, record("n")]
        apply(catalog, Change(save=[record("o")]))
    (root / FILE).unlink()
    assert [one.name for one in found_in(root)[0]] == ["m", "n", "o"]  # closing had it follow, too


def test_a_damaged_database_does_not_replace_a_good_backup(root: Path) -> None:
    before = (root / BACKUP).read_bytes()
    said: list[tuple[int, str, str]] = []
    with open_catalog(root) as catalog:
        sql(root, "UPDATE versions SET digest = 'rotten'")
        catalog.keep_backup(lambda *one: said.append(one))
        apply(catalog, Change(route=ROUTE))
        eventually(lambda: any("damaged on the disk" in why for _, why, _ in said), "it is said")
        assert (root / BACKUP).read_bytes() == before
    records, _, (complaint,) = found_in(root)
    assert (records, complaint.mended) == ([RECORD], True)


def test_room_is_held_for_removals(root: Path) -> None:
    with open_catalog(root):
        assert (root / RESERVE).stat().st_blocks * 512 >= database.CATALOG_RESERVE_BYTES


# ----- disks that refuse -------------------------------------------------------------------------


def test_a_read_only_disk_is_a_sentence(root: Path, tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk", 4 << 20) as place:
        data = Path(shutil.copytree(root, place / "data"))
        mount(place, "remount,ro")
        with pytest.raises(ConfigError, match=r"cannot be used: Read-only file system"):
            Catalog(data).open()
        mount(place, "remount,rw")
        assert found_in(data) == ([RECORD], [ROUTE], [])


def test_files_that_may_not_grow_refuse_changes_and_take_them_again(root: Path) -> None:
    with open_catalog(root) as catalog:
        large = record("n")
        large.options["origin"] = "x" * 4000
        with small_files(2 * 4096):
            with pytest.raises(OSError, match="Input/output error"):
                apply(catalog, Change(save=[large, record("o")]))
            with pytest.raises(OSError, match="Input/output error"):
                apply(catalog, Change(remove=[RECORD]))
        apply(catalog, Change(save=[record("p")]))
    assert found_in(root) == ([RECORD, record("p")], [ROUTE], [])
