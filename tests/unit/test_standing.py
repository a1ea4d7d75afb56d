"""The active and the standbys: the notes of controllers, takeovers, and the sentence about them."""

from __future__ import annotations

import json
import os
from collections import deque
from pathlib import Path

import pytest

from clockwork.config.controller import (
    NOTE_BYTES_MAX,
    NOTES_MAX,
    STANDBY_MISSED_NS,
    STANDBY_SIGN_BYTES_MAX,
    TAKEOVERS_KEPT,
    TAKEOVERS_OFTEN,
    TAKEOVERS_OFTEN_NS,
)
from clockwork.controller.effects import ClearTrouble, Effect, NoteTrouble, Publish
from clockwork.controller.fellows import Fellows
from clockwork.controller.lease.table import read_sign, sign_of, why_ended
from clockwork.controller.peers.directory import (
    NOTES_FOLDER,
    TAKEOVERS_FILE,
    Presence,
    fellows_in,
    forget_dead,
    read_takeovers,
    takeover_from,
    write_takeovers,
)
from clockwork.controller.standing import (
    NO_TAKEOVERS,
    ControllerRole,
    ControllerStanding,
    Standby,
    StandbyWatch,
    Takeover,
    Takeovers,
    Why,
    takeovers_of,
    text_of,
)
from clockwork.controller.storage.thread import StorageThread
from clockwork.controller.troubles import TroubleKind
from clockwork.system.clock import SECOND
from clockwork.system.notes import Note, read_notes
from clockwork.takeover.lease import Lease
from clockwork.takeover.obedience import Leader
from clockwork.wire.description import describe_standing
from tests.patience import eventually

A, B = "tcp://10.0.0.1:5555", "tcp://10.0.0.1:5565"


def test_a_note_is_read_while_its_process_lives_and_goes_with_its_end(tmp_path: Path) -> None:
    assert read_notes(tmp_path / "none") == []
    note = Note(tmp_path / "notes", {"a": 1})
    note.write({"a": "a longer text"})
    note.write({"a": 2})
    (found,) = read_notes(tmp_path / "notes")
    assert (found.body, found.is_alive) == ({"a": 2}, True)
    note.close(is_kept=True)
    note.close()
    (found,) = read_notes(tmp_path / "notes")
    assert (found.body, found.is_alive) == ({"a": 2}, False)
    other = Note(tmp_path / "notes", {})
    other.close()
    assert len(list((tmp_path / "notes").iterdir())) == 1


@pytest.mark.parametrize("body", [b"", b"[1]", b"{", b"\xff", b"[" * NOTE_BYTES_MAX])
def test_a_note_that_is_none_is_left_out(tmp_path: Path, body: bytes) -> None:
    (tmp_path / "one").write_bytes(body)
    assert read_notes(tmp_path) == []


def test_no_more_notes_are_read_than_the_bound(tmp_path: Path) -> None:
    for number in range(NOTES_MAX + 1):
        (tmp_path / f"{number:03}").write_text("{}")
    assert len(read_notes(tmp_path)) == NOTES_MAX


@pytest.mark.parametrize(
    "wrong", [{"role": "king"}, {"role": 1}, {"read": "x"}, {"address": None}, {"ended_ns": True}]
)
def test_a_note_of_another_form_is_no_controllers(tmp_path: Path, wrong: dict[str, object]) -> None:
    presence = Presence(tmp_path, A, ControllerRole.STANDBY)
    assert len(fellows_in(tmp_path)) == 1
    (path,) = (tmp_path / NOTES_FOLDER).iterdir()
    path.write_text(json.dumps(json.loads(path.read_text()) | wrong))
    assert fellows_in(tmp_path) == []
    presence.close()


def test_a_note_of_an_earlier_or_a_later_release_is_read(tmp_path: Path) -> None:
    """An upgrade has controllers of both in one directory, each of which must see the other stand by."""
    presence = Presence(tmp_path, A, ControllerRole.STANDBY)
    (now,) = fellows_in(tmp_path)
    (path,) = (tmp_path / NOTES_FOLDER).iterdir()
    body = json.loads(path.read_text())
    del body["follows"]
    path.write_text(json.dumps(body))
    assert fellows_in(tmp_path) == [now._replace(follows="")]
    path.write_text(json.dumps(body | {"follows": "", "unknown": [1]}))
    assert fellows_in(tmp_path) == [now]
    presence.close()


def test_a_standby_names_the_active_of_another_directory_until_it_is_active_itself(tmp_path: Path) -> None:
    presence = Presence(tmp_path, B, ControllerRole.STANDBY)
    names = []
    for told in ("alice at a", "carol at c", ""):
        presence.follow(told)
        names.append(fellows_in(tmp_path)[0].follows)
    presence.follow("alice at a")
    presence.serve(B)
    assert [*names, fellows_in(tmp_path)[0].follows] == ["alice at a", "carol at c", "", ""]
    presence.close()


@pytest.mark.parametrize("how", list(Why))
def test_a_takeover_says_how_the_active_ended(tmp_path: Path, how: Why) -> None:
    active, standby = (
        Presence(tmp_path, A, ControllerRole.ACTIVE),
        Presence(tmp_path, B, ControllerRole.STANDBY),
    )
    third = Presence(tmp_path, "third", ControllerRole.STANDBY)
    if how is Why.STOPPED:
        third.has_ended()  # and another gets the lock
    if how in (Why.ENDED, Why.HANDED_OVER):
        active.close(how)
    else:
        assert active._note is not None
        active._note.close(is_kept=True)  # as the system does it at the process's end
    found = takeover_from(fellows_in(tmp_path), 7, B)
    assert found == Takeover(7, how, A, B)
    forget_dead(fellows_in(tmp_path))
    assert {fellow.address for fellow in fellows_in(tmp_path)} == {B, "third"}
    assert takeover_from(fellows_in(tmp_path), 7, B) == Takeover(7, Why.KILLED, "", B), (
        "of one without a note"
    )
    standby.close()
    third.close()


def test_takeovers_are_kept_and_counted(tmp_path: Path) -> None:
    assert read_takeovers(tmp_path) == NO_TAKEOVERS
    takeovers = NO_TAKEOVERS
    for number in range(TAKEOVERS_KEPT + 2):
        takeovers = takeovers.after(Takeover(number, Why.KILLED if number else Why.HANDED_OVER, A, B))
    write_takeovers(tmp_path, takeovers)
    assert read_takeovers(tmp_path) == takeovers
    assert takeovers.counts == {Why.KILLED: TAKEOVERS_KEPT + 1, Why.HANDED_OVER: 1}
    assert [found.at_ns for found in takeovers.recent] == list(range(2, TAKEOVERS_KEPT + 2))
    for body in (
        b"",
        b"{}",
        b"[]",
        b'{"counts": [], "recent": 1}',
        b'{"counts": {}, "recent": [[1, "x", "", ""]]}',
    ):
        (tmp_path / TAKEOVERS_FILE).write_bytes(body)
        assert read_takeovers(tmp_path) == NO_TAKEOVERS


def test_the_active_changes_often_only_where_nobody_wanted_it() -> None:
    def takeovers(why: Why, step_ns: int) -> Takeovers:
        found = NO_TAKEOVERS
        for number in range(TAKEOVERS_OFTEN):
            found = found.after(Takeover(number * step_ns, why, A, B))
        return found

    last_ns = (TAKEOVERS_OFTEN - 1) * SECOND
    assert takeovers(Why.KILLED, SECOND).are_often(last_ns)
    assert takeovers(Why.STOPPED, SECOND).are_often(TAKEOVERS_OFTEN_NS)
    assert not takeovers(Why.KILLED, SECOND).are_often(TAKEOVERS_OFTEN_NS + 1), "the first is long ago"
    assert not takeovers(Why.HANDED_OVER, SECOND).are_often(last_ns)
    assert not takeovers(Why.ENDED, SECOND).are_often(last_ns)


def test_a_standby_is_missed_after_a_while_where_there_is_to_be_one() -> None:
    alone = ControllerStanding(ControllerRole.ACTIVE, A, 0, True)
    watch = StandbyWatch()
    assert not watch.lacks(alone, 5)
    assert not watch.lacks(alone, 4 + STANDBY_MISSED_NS)
    assert watch.lacks(alone, 5 + STANDBY_MISSED_NS)
    assert not watch.lacks(alone._replace(standbys=(Standby(B, "", 0, 0),)), 6 + STANDBY_MISSED_NS)
    assert not watch.lacks(alone, 7 + STANDBY_MISSED_NS), "it counts anew"
    assert not watch.lacks(alone._replace(expects_standbys=False), 9 + 3 * STANDBY_MISSED_NS)


def test_the_sentence_about_the_controllers() -> None:
    standing = ControllerStanding(ControllerRole.ACTIVE, A, 3 * SECOND, False)
    now_ns = 10 * SECOND
    assert describe_standing(None) == describe_standing(standing.describe(now_ns)) == ""
    assert describe_standing(standing._replace(expects_standbys=True).describe(now_ns)) == (
        f"active at {A} for 7 s; no standby"
    )
    full = standing._replace(
        standbys=(
            Standby(B, "process 7", 2, 9 * SECOND),
            Standby("C", "", 0, now_ns),
            Standby("D", "", -1, now_ns),
        ),
        takeovers=NO_TAKEOVERS.after(Takeover(4 * SECOND, Why.HANDED_OVER, B, A)),
    )
    assert describe_standing(full.describe(now_ns)) == (
        f"active at {A} for 7 s; standby at {B} (2 changes behind, heard 1.0 s ago); standby at C (up to date, heard "
        f"0.0 s ago); standby at D (reads when needed, heard 0.0 s ago); took over 6 s ago from {B}, which was handed "
        "over"
    )


def test_an_active_tells_of_its_standbys(tmp_path: Path) -> None:
    """From the first look on: what changes is published, and troubles come and go."""
    effects: deque[Effect] = deque()
    storage = StorageThread()
    defects: list[Exception] = []
    presence = Presence(tmp_path, "unbound", ControllerRole.ACTIVE)
    takeover = Takeover(1, Why.KILLED, B, "unbound")
    fellows = Fellows(effects, storage, tmp_path, presence, lambda: 9, A, takeover, True)

    def look(now_ns: int, wanted: int) -> list[Effect]:
        fellows.beat(now_ns)

        def is_seen() -> bool:
            storage.drain(defects.append)
            return len(effects) >= wanted and not fellows._is_looking

        eventually(is_seen, "the look has ended")
        found = list(effects)
        effects.clear()
        return found

    (first,) = look(SECOND, 1)
    assert isinstance(first, Publish)
    assert (first.topic, first.body["active"], first.body["standbys"]) == ("controllers", A, [])
    assert first.body["last"]["after"] == A
    (noted,) = look(SECOND + STANDBY_MISSED_NS, 1)
    assert isinstance(noted, NoteTrouble)
    assert noted.kind is TroubleKind.NO_STANDBY
    standby = Presence(tmp_path, B, ControllerRole.STANDBY)
    standby.heard(7)
    published, cleared = look(3 * SECOND + STANDBY_MISSED_NS, 2)
    assert isinstance(published, Publish)
    assert [(row["address"], row["behind"]) for row in published.body["standbys"]] == [(B, 2)]
    assert cleared == ClearTrouble(TroubleKind.NO_STANDBY, "controllers")
    assert look(5 * SECOND + STANDBY_MISSED_NS, 0) == []
    assert read_takeovers(tmp_path).recent[-1].before == B, "it is kept for the next active"
    standby.close()
    presence.close()
    storage.close()
    assert not defects
    assert os.listdir(tmp_path / NOTES_FOLDER) == []


class Machines:
    """A lease that tells of controllers on other machines."""

    def __init__(self, takeovers: Takeovers) -> None:
        self.takeovers = takeovers
        self.read: list[int] = []  # number of the newest change that each standby has read

    def standing_by(self, newest: int) -> list[Standby]:
        return [Standby(B, "10.0.0.2", newest - read, 0) for read in self.read]


def test_an_active_tells_of_standbys_on_other_machines(tmp_path: Path) -> None:
    """The lease has the takeovers of all machines: those of the data directory are left as they are."""
    effects: deque[Effect] = deque()
    storage = StorageThread()
    defects: list[Exception] = []
    presence = Presence(tmp_path, A, ControllerRole.STANDBY)
    machines = Machines(NO_TAKEOVERS.after(Takeover(1, Why.STOPPED, B, A)))
    fellows = Fellows(effects, storage, tmp_path, presence, lambda: 9, A, None, True, machines)

    def look(now_ns: int) -> list[Effect]:
        fellows.beat(now_ns)

        def is_seen() -> bool:
            storage.drain(defects.append)
            return not fellows._is_looking

        eventually(is_seen, "the look has ended")
        found = list(effects)
        effects.clear()
        return found

    (first,) = look(SECOND)
    assert isinstance(first, Publish)
    assert (first.body["standbys"], first.body["last"]["why"]) == ([], "stopped")
    (noted,) = look(SECOND + STANDBY_MISSED_NS)
    assert isinstance(noted, NoteTrouble)
    assert noted.kind is TroubleKind.NO_STANDBY
    machines.read = [7, 9]  # two machines that listen at the same words
    published, cleared = look(3 * SECOND + STANDBY_MISSED_NS)
    assert isinstance(published, Publish)
    assert [(row["process"], row["behind"]) for row in published.body["standbys"]] == [
        ("10.0.0.2", 2),
        ("10.0.0.2", 0),
    ]
    assert cleared == ClearTrouble(TroubleKind.NO_STANDBY, "controllers")
    assert look(5 * SECOND + STANDBY_MISSED_NS) == []
    machines.read = [9]
    (published,) = look(7 * SECOND + STANDBY_MISSED_NS)
    assert isinstance(published, Publish), "one of two at the same words has gone"
    machines.takeovers = machines.takeovers.after(Takeover(2, Why.ENDED, B, A))
    (published,) = look(9 * SECOND + STANDBY_MISSED_NS)
    assert isinstance(published, Publish)
    assert published.body["takeovers"]["ended"] == published.body["takeovers"]["stopped"] == 1
    presence.close()
    storage.close()
    assert not defects
    assert not (tmp_path / TAKEOVERS_FILE).exists()


def test_a_standby_is_known_by_the_name_of_its_connection() -> None:
    for address in (A, "tcp://[fd00:1234:5678:9abc:def0:1:2:3]:5555", "ipc:///run/clockwork", ""):
        assert read_sign(sign_of(address, 123)) == (address, 123)
    assert read_sign("clockwork") == read_sign("psql") == read_sign("") == ("", -1)
    long = sign_of("tcp://" + 100 * "a", 5)
    assert len(long) == STANDBY_SIGN_BYTES_MAX
    assert read_sign(long)[0].startswith("tcp://aaa")


def test_a_lease_tells_why_it_could_be_claimed() -> None:
    held = Lease(Leader(7, "alice", (A,), "c"), 5, 3)
    given_up = Lease(Leader(7, "", (A,), "c"), 0, 0)
    assert why_ended(held, "", is_by_lock=True) is Why.KILLED
    assert why_ended(held, "7 handed_over", is_by_lock=False) is Why.STOPPED, "it did not come to that"
    assert why_ended(given_up, "7 handed_over", is_by_lock=False) is Why.HANDED_OVER
    assert why_ended(given_up, "7 ended", is_by_lock=False) is Why.ENDED
    assert why_ended(given_up, "6 handed_over", is_by_lock=False) is Why.ENDED, "an earlier one's word"


def test_takeovers_are_read_as_they_were_stored_or_not_at_all() -> None:
    takeovers = NO_TAKEOVERS.after(Takeover(4, Why.KILLED, A, B))
    assert takeovers_of(text_of(takeovers)) == takeovers
    for text in ("", "{", "[]", '{"counts": {}}', '{"counts": {}, "recent": [[1, "x", "", ""]]}'):
        assert takeovers_of(text) == NO_TAKEOVERS
