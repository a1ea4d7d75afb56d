"""How models come, change and go, without sockets, files or clocks: stories, and random sequences with
invariants."""

from __future__ import annotations

import errno
import random
from pathlib import Path
from typing import Any

import pytest

from clockwork.config import SHARE_WHOLE, VERSIONS_MAX
from clockwork.config.controller import ERASE_RETRY_NS
from clockwork.controller.catalog.records import Complaint
from clockwork.controller.catalog.routes import NameRoute
from clockwork.controller.effects import (
    AbortUpload,
    CommitUpload,
    Job,
    ListPackages,
    OpenUpload,
    ReadRecord,
    ReadUpload,
    RemovePackage,
    WriteChange,
    WriteChunk,
)
from clockwork.controller.models import lifecycle
from clockwork.controller.models.lifecycle import TABLE, ModelState, VersionEvent, transition
from clockwork.controller.peers.links import ClientLink
from clockwork.controller.troubles import TroubleKind
from clockwork.errors import InvalidModel
from clockwork.formats.durable import NotUndone
from clockwork.formats.interface import Interface
from clockwork.formats.prepared import TensorSpec
from clockwork.scheduler.types import Fault
from clockwork.wire.messages import (
    Offer,
    Prepared,
    Promote,
    Rollback,
    Route,
    Status,
    Unregister,
    UploadChunk,
)
from tests.unit.registry import CLIENT, CRASHES, Registry, owner_of, summary

FULL = OSError(errno.ENOSPC, "No space left on device")
PAGE = Path(__file__).resolve().parents[2] / "docs" / "life-cycle.md"


@pytest.fixture
def registry() -> Registry:
    """With one worker, and without models."""
    found = Registry()
    found.join(1)
    return found


@pytest.fixture
def served(registry: Registry) -> Registry:
    """With m@1, which is ready."""
    registry.register("m", b"one")
    registry.settle()
    assert registry.states("m") == {1: "ready"}
    return registry


# ----- the table ----------------------------------------------------------------------------------


def test_the_page_shows_the_table_as_it_is() -> None:
    text = PAGE.read_text(encoding="utf-8")
    shown = text.partition("```mermaid\n")[2].partition("\n```")[0]
    assert shown == lifecycle.diagram()


def test_every_state_is_reached_and_all_but_the_last_are_left() -> None:
    targets = {target for changes in TABLE.values() for target, _ in changes.values()}
    assert targets == set(ModelState) - {ModelState.NEW}
    assert [state for state in ModelState if not TABLE[state]] == [ModelState.REMOVED]


def test_what_is_erased_goes_from_every_state_in_which_it_is_known() -> None:
    known = set(ModelState) - {ModelState.NEW, ModelState.REMOVED}
    for state in known:
        assert transition(state, VersionEvent.ERASED)[0] in (ModelState.REMOVING, ModelState.REMOVED)


def test_an_event_that_cannot_come_is_a_defect() -> None:
    with pytest.raises(AssertionError, match=r"'load'.*of a version that is ready"):
        transition(ModelState.READY, VersionEvent.LOAD)


def test_a_worker_that_began_anew_is_noted_although_the_model_is_gone(registry: Registry) -> None:
    registry.registrar.faulted(99, Fault.TRIAL_STUCK, "w1", False)
    registry.carry_out()
    [noted] = registry.troubles
    assert (noted.kind, noted.subject) == (TroubleKind.WORKER_STUCK, "w1")
    assert noted.text.startswith("a model that is gone: making it ready on worker w1 took longer")


def test_a_worker_that_began_anew_while_it_gave_memory_back_is_noted_without_a_model(
    registry: Registry,
) -> None:
    registry.registrar.faulted(0, Fault.TRIAL_STUCK, "w1", False)
    registry.carry_out()
    [noted] = registry.troubles
    assert (noted.kind, noted.subject) == (TroubleKind.WORKER_STUCK, "w1")
    assert noted.text.startswith("releasing the memory of models on worker w1 took longer")


# ----- coming -------------------------------------------------------------------------------------


def test_an_upload_is_stored_read_and_saved_before_anybody_prepares_it(registry: Registry) -> None:
    waiter = registry.register("m", b"one")
    assert isinstance(registry.store(), OpenUpload)
    assert registry.ready_uploads() == [waiter]
    registry.send_chunk(waiter)
    done = [type(registry.store()) for _ in range(3)]
    assert done == [WriteChunk, CommitUpload, ReadUpload]
    assert registry.states("m") == {}
    assert registry.asked == []
    assert isinstance(registry.store(), WriteChange)
    assert registry.states("m") == {1: "preparing"}
    registry.prepare()
    assert registry.states("m") == {1: "ready"}
    assert registry.traffic["m"] == [(1, SHARE_WHOLE)]
    assert registry.answered(waiter) == ["m@1 is ready"]
    assert registry.events == ["m@1 preparing", "m@1 ready"]


def test_content_that_is_there_is_not_uploaded_and_is_the_same_version(served: Registry) -> None:
    again = served.register("m", b"one")
    assert served.answered(again) == ["m@1 is ready"]
    other = served.register("other", b"one")
    served.store()
    assert served.ready_uploads() == []
    served.settle()
    assert served.answered(other) == ["other@1 is ready"]


def test_content_that_kernels_multiply_otherwise_is_another_version(served: Registry) -> None:
    """Also for a record that an earlier release wrote, which had one form."""
    served.table.versions["m"][1].record.options.pop("dtype")
    assert served.answered(served.register("m", b"one", dtype="fp32")) == ["m@1 is ready"]
    served.register("m", b"one", dtype="tf32")
    while not served.asked:
        served.store()
    assert served.asked[-1][1].options["dtype"] == "tf32"
    served.settle()
    assert 2 in served.states("m")
    assert (
        "dtype is fp32, tf32, fp16; not 'int4'"
        in served.answered(served.register("m", b"one", dtype="int4"))[0]
    )


def test_a_record_that_cannot_be_written_leaves_no_version_and_no_package(registry: Registry) -> None:
    waiter = registry.register("m", b"one")
    registry.store()
    registry.send_chunk(waiter)
    for _ in range(3):
        registry.store()
    registry.store(FULL)
    assert "No space left" in registry.answered(waiter)[0]
    registry.settle()
    assert (registry.states("m"), registry.packages, registry.records) == ({}, set(), {})


@pytest.mark.parametrize("jobs", [0, 1])
def test_a_client_that_gives_up_ends_its_upload(registry: Registry, jobs: int) -> None:
    waiter = registry.register("m", b"one")
    for _ in range(jobs):
        registry.store()
    registry.registrar.cancel(CLIENT, waiter.request_id)
    registry.carry_out()
    assert [type(job) for job in registry.jobs][-2:] == [AbortUpload, RemovePackage]
    registry.needs.clear()
    registry.settle()
    assert (registry.answered(waiter), registry.states("m")) == ([], {})


@pytest.mark.parametrize("size", [0, 4])
def test_an_upload_that_breaks_its_sizes_is_refused(registry: Registry, size: int) -> None:
    waiter = registry.register("m", b"one")
    registry.store()
    registry.registrar.chunk(CLIENT, UploadChunk(waiter.request_id, 0, 0), bytes(size))
    registry.carry_out()
    assert registry.answered(waiter) == ["upload of 'm' breaks its window, sizes or chunk size"]
    registry.settle()
    assert (registry.states("m"), registry.packages) == ({}, set())


def test_a_number_is_not_given_twice(served: Registry) -> None:
    served.order(Unregister(0, "m"))
    served.settle()
    waiter = served.register("m", b"one")
    served.settle()
    assert served.answered(waiter) == ["m@2 is ready"]


def test_a_worker_that_prepared_another_package_does_not_serve_and_is_blamed(registry: Registry) -> None:
    registry.register("m", b"one")
    registry.store()
    registry.send_chunk(registry.ready_uploads()[0])
    while registry.jobs:
        registry.store()
    _, prepare = registry.asked.pop()
    registry.registrar.prepared(1, Prepared(prepare.model_id, Status.OK, "", summary("0" * 64)), 0)
    registry.carry_out()
    assert registry.states("m") == {1: "failed"}
    assert "it prepared another package" in registry.blamed[0]
    assert registry.known == set()


def test_a_record_of_an_earlier_version_is_read_once_and_written_again(served: Registry) -> None:
    served.records["m", 1].is_read = False
    again = served.restart()
    again.join(1)
    again.join(2)
    again.prepare()
    again.prepare()
    assert [type(job) for job in again.jobs] == [ReadRecord, ReadRecord]
    again.store()
    assert again.states("m") == {1: "ready"}, "one worker is enough, as it was ready before"
    again.settle()
    assert again.records["m", 1].is_read
    assert not again.jobs


def test_a_start_finds_what_is_unloaded_and_forgets_a_route_of_nothing(served: Registry) -> None:
    served.order(Promote(0, "m", 1))
    served.settle()
    served.order(Offer(0, "m", False))
    served.settle()
    served.routes["gone"] = NameRoute("gone")
    again = served.restart()
    again.join(1)
    assert (again.states("m"), again.asked) == ({1: "unloaded"}, [])
    again.settle()
    assert set(again.routes) == {"m"}
    again.order(Offer(0, "m", True))
    again.settle()
    assert again.traffic["m"] == [(1, SHARE_WHOLE)]


def test_what_has_all_come_is_a_version_whoever_waits_for_it(registry: Registry) -> None:
    waiter = registry.register("m", b"one")
    registry.store()
    registry.send_chunk(waiter)
    registry.store()
    registry.registrar.client_gone(CLIENT)
    registry.settle()
    assert (registry.answered(waiter), registry.states("m")) == ([], {1: "ready"})


def test_a_version_that_no_worker_can_prepare_is_erased_and_then_refused(registry: Registry) -> None:
    waiter = registry.register("m", b"one")
    registry.store()
    registry.send_chunk(waiter)
    for _ in range(4):
        registry.store()
    registry.prepare(Status.INVALID_MODEL, text="it is broken")
    assert registry.states("m") == {1: "failed"}
    assert registry.answered(waiter) == []
    registry.store()
    assert registry.answered(waiter) == ["m@1 cannot be served: it is broken"]
    registry.settle()
    assert (registry.states("m"), registry.records, registry.packages) == ({}, {}, set())


def test_a_preparation_is_its_who_had_the_version_registered_or_loaded(registry: Registry) -> None:
    waiter = registry.register("m", b"one", client=b"a")
    registry.store()
    registry.send_chunk(waiter)
    for _ in range(4):
        registry.store()
    assert [message.owner for _, message in registry.asked] == [owner_of(b"a")]
    registry.settle()
    registry.join(2)
    assert [message.owner for _, message in registry.asked] == [owner_of(b"a")], "also on a worker to come"
    registry.settle()
    registry.order(Offer(0, "m", False), b"b")
    registry.settle()
    registry.order(Offer(0, "m", True), b"c")
    registry.store()
    assert [message.owner for _, message in registry.asked] == [owner_of(b"c")] * 2
    registry.settle()
    again = registry.restart()
    again.join(1)
    assert [message.owner for _, message in again.asked] == [0], "nobody's since the start"


def test_clients_of_one_key_are_one_owner_and_without_keys_each_is_one() -> None:
    keyed = [ClientLink(identity, 1, "", 0, "key") for identity in (b"a", b"b")]
    plain = [ClientLink(identity, 1, "", 0) for identity in (b"a", b"b")]
    numbers = [link.owner for link in (*keyed, *plain)]
    assert numbers[0] == numbers[1]
    assert len(set(numbers)) == 3
    assert all(0 < number < 1 << 62 for number in numbers)


@pytest.mark.parametrize(
    ("order", "said"),
    [
        ([Status.INTERNAL, Status.INTERNAL], "no worker could prepare m@1 now: no memory; try again"),
        ([Status.INVALID_MODEL, Status.INTERNAL], "m@1 cannot be served: no memory"),
        ([Status.INTERNAL, Status.INVALID_MODEL], "m@1 cannot be served: no memory"),
    ],
)
def test_a_version_is_invalid_only_where_a_worker_finds_it_at_fault(
    registry: Registry, order: list[Status], said: str
) -> None:
    registry.join(2)
    waiter = registry.register("m", b"one")
    registry.store()
    registry.send_chunk(waiter)
    for _ in range(4):
        registry.store()
    for status in order:
        registry.prepare(status, text="no memory")
    registry.store()
    assert registry.answered(waiter) == [said]


@pytest.mark.parametrize("has_wide", [True, False])
def test_a_version_is_served_by_the_workers_whose_threads_meet_its_slo(
    registry: Registry, has_wide: bool
) -> None:
    if has_wide:
        registry.join(2)
    waiter = registry.register("m", b"one", slo_ns=20_000_000)
    registry.store()
    registry.send_chunk(waiter)
    while registry.jobs:
        registry.store()
    while registry.asked:
        worker, prepare = registry.asked.pop(0)
        point = {"shape": [[2]], "batch": 1, "exec_ns": 12_000_000 if worker == 2 else 40_000_000}
        fields = summary(prepare.digest) | {"profile": [point], "by_threads": [[4, 12_000_000]]}
        registry.registrar.prepared(worker, Prepared(prepare.model_id, Status.OK, "", fields), 0)
        registry.carry_out()
    why = (
        "its SLO of 20 ms is below its execution time of 40 ms; with 4 threads it takes 12 ms: "
        "serve it by workers with --threads 4"
    )
    workers = registry.table.by_id[prepare.model_id].workers
    assert workers == ({1: why, 2: "ready"} if has_wide else {1: why})
    registry.settle()
    assert registry.answered(waiter) == ["m@1 is ready" if has_wide else f"m@1 cannot be served: {why}"]


def test_a_start_waits_for_what_it_found_and_asking_changes_nothing(served: Registry) -> None:
    served.register("n", b"two")
    served.settle()
    again = served.restart()
    again.join(1)
    for _ in range(3):
        assert again.registrar.versions.readiness() == "2 models are not served yet, among them m@1"
    again.prepare()
    assert again.registrar.versions.readiness() == "n@1 is not served yet"
    again.prepare(Status.INTERNAL)
    assert again.registrar.versions.readiness() == ""
    again.register("later", b"three")
    assert again.registrar.versions.readiness() == ""


def test_a_start_waits_for_awaited_models_until_they_are_registered_and_served(served: Registry) -> None:
    again = served.restart()
    versions = again.registrar.versions
    versions.await_names(["m", "n", "o"])  # of the three names only m is known
    again.join(1)
    again.prepare()
    assert versions.readiness() == "2 awaited models are not registered yet, among them n"
    again.register("n", b"two")
    again.settle()
    assert again.states("n") == {1: "ready"}
    assert versions.readiness() == "o, which is awaited, is not registered yet"
    waiter = again.register("o", b"three")
    again.store()
    again.send_chunk(waiter)
    for _ in range(4):
        again.store()
    assert versions.readiness() == "o@1 is not served yet"
    again.prepare(Status.INTERNAL)
    assert versions.readiness() == ""
    again.order(Unregister(0, "n"))
    again.settle()
    assert versions.readiness() == "", "a start that is over stays so"


# ----- going --------------------------------------------------------------------------------------


def test_unloaded_is_a_state_in_which_nobody_knows_a_version_and_from_which_it_comes_back(
    served: Registry,
) -> None:
    waiter = served.order(Offer(0, "m", False))
    assert served.states("m") == {1: "ready"}
    served.store()
    assert served.states("m") == {1: "unloading"}
    assert (served.traffic["m"], served.leaving) == ([], [1])
    assert served.answered(waiter) == []
    served.let_go()
    assert served.states("m") == {1: "unloaded"}
    assert served.answered(waiter) == ["replied {'unloaded': 'm'}"]
    assert served.table.by_id == {}
    assert served.table.absence("m") == "model 'm' is unloaded"
    waiter = served.order(Offer(0, "m", True))
    served.store()
    assert served.states("m") == {1: "preparing"}
    served.prepare()
    assert served.traffic["m"] == [(2, SHARE_WHOLE)], "workers may still know it by its earlier id"
    assert served.answered(waiter) == ["m@1 is ready"]
    assert served.records["m", 1].offered


def test_a_version_is_removed_when_its_last_request_is_answered(served: Registry) -> None:
    waiter = served.order(Unregister(0, "m"))
    served.store()
    served.store()
    assert (served.states("m"), served.records, served.packages) == ({1: "removing"}, {}, set())
    assert served.answered(waiter) == []
    served.let_go()
    assert served.states("m") == {}
    assert served.answered(waiter) == ["replied {'removed': 'm'}"]


def test_orders_of_one_name_wait_for_each_other(served: Registry) -> None:
    first = served.order(Offer(0, "m", False))
    second = served.order(Unregister(0, "m"))
    third = served.order(Unregister(0, "m"))
    assert len(served.jobs) == 1
    served.settle()
    assert served.answered(first) == ["replied {'unloaded': 'm'}"]
    assert served.answered(second) == ["replied {'removed': 'm'}"]
    assert served.answered(third) == ["no model 'm' is registered"]


@pytest.mark.parametrize("message", [Offer(0, "m", False), Unregister(0, "m"), Promote(0, "m", 1)])
def test_a_change_that_cannot_be_written_changes_nothing(served: Registry, message: object) -> None:
    waiter = served.order(message)
    served.store(FULL)
    assert "m is as it was" in served.answered(waiter)[0]
    assert served.states("m") == {1: "ready"}
    assert served.traffic["m"] == [(1, SHARE_WHOLE)]
    assert served.table.named == {}
    assert served.troubles[-1].kind is TroubleKind.STORAGE_FAILED


def test_a_package_that_two_names_share_goes_with_the_second(served: Registry) -> None:
    served.register("twin", b"one")
    served.settle()
    served.order(Unregister(0, "m"))
    served.settle()
    assert len(served.packages) == 1
    served.order(Unregister(0, "twin"))
    served.settle()
    assert served.packages == set()


def test_too_old_versions_are_retired_but_for_those_of_the_route(registry: Registry) -> None:
    for number in range(VERSIONS_MAX + 2):
        registry.register("m", b"%d" % number)
        registry.settle()
        if number == 0:
            registry.order(Promote(0, "m", 1))
            registry.settle()
    assert list(registry.states("m")) == [1, *range(3, VERSIONS_MAX + 3)]


def test_a_package_goes_with_the_last_of_two_versions_that_are_erased_together(served: Registry) -> None:
    served.register("twin", b"one")
    served.settle()
    served.order(Unregister(0, "m"))
    served.order(Unregister(0, "twin"))
    assert all(not job.change.packages for job in served.jobs if isinstance(job, WriteChange))
    served.settle()
    assert served.packages == set()


def test_a_package_stays_until_the_backup_does_not_name_it(served: Registry) -> None:
    served.has_backup = False
    served.order(Unregister(0, "m"))
    served.settle()
    assert served.states("m") == {}
    served.registrar.backed_up(served.changes - 1, "", "")
    served.carry_out()
    assert (len(served.packages), len(served.jobs)) == (1, 0)
    served.registrar.backed_up(served.changes, "No space left on device", "")
    served.carry_out()
    assert served.troubles[-1].subject == "backup of the catalogue"
    served.settle()
    assert served.packages == set()


def test_a_package_that_is_registered_again_before_the_backup_stays(served: Registry) -> None:
    served.has_backup = False
    served.order(Unregister(0, "m"))
    served.settle()
    served.register("n", b"one")
    served.registrar.backed_up(served.changes, "", "")
    served.settle()
    assert served.packages == {served.digest(b"one")}
    assert served.states("n") == {1: "ready"}


def test_a_package_that_cannot_be_removed_is_tried_again(served: Registry) -> None:
    served.order(Unregister(0, "m"))
    served.store()
    served.store(OSError(errno.EIO, "Input/output error"))
    assert served.troubles[-1].subject == "packages"
    assert "Input/output error" in served.troubles[-1].text
    served.now_ns += ERASE_RETRY_NS
    served.registrar.beat(served.now_ns, 0)
    served.carry_out()
    served.settle()
    assert served.packages == set()


def test_packages_that_a_crash_kept_from_being_removed_go_once_there_is_a_backup() -> None:
    registry = Registry()
    registry.packages = {"left"}
    registry.registrar.restore([], [], [], [], ["left"])
    registry.carry_out()
    assert not registry.jobs
    registry.registrar.backed_up(0, "", "")
    registry.carry_out()
    registry.settle()
    assert registry.packages == set()


def test_what_is_lost_without_a_name_is_a_trouble_of_the_catalogue(registry: Registry) -> None:
    registry.registrar.restore([], [Complaint("", 0, "it was damaged", True)], [], [])
    registry.carry_out()
    assert [(one.kind, one.subject) for one in registry.troubles] == [
        (TroubleKind.FILE_REPAIRED, "catalogue")
    ]


def listed(registry: Registry) -> None:
    """Have storage say which packages it has, and have what nobody needs removed."""
    registry.registrar.ended(ListPackages(), sorted(registry.packages), None, 0)
    registry.carry_out()
    for job in [job for job in registry.jobs if isinstance(job, RemovePackage)]:
        registry.jobs.remove(job)
        registry.jobs.appendleft(job)
        registry.store()


def test_packages_that_no_record_has_are_removed_and_no_others(served: Registry) -> None:
    waiter = served.register("m", b"two")
    served.store()
    served.send_chunk(waiter)
    while len(served.packages) == 1:
        served.store()  # the second upload is stored, and no version yet
    served.packages |= {"left by a crash", "left by a removal that failed"}
    listed(served)
    assert served.packages == {served.digest(b"one"), served.digest(b"two")}
    served.settle()
    assert served.states("m") == {1: "ready", 2: "ready"}


def test_a_package_that_is_whole_again_is_prepared_where_it_could_not_be(served: Registry) -> None:
    served.join(2)
    served.prepare(Status.INTERNAL, text="a chunk could not be read there")
    assert served.asked == []
    served.registrar.package_mended(served.digest(b"other"))
    served.carry_out()
    assert served.asked == []
    for _ in range(2):  # the second time it is being prepared already
        served.registrar.package_mended(served.digest(b"one"))
        served.carry_out()
        assert [worker for worker, _ in served.asked] == [2]
    served.prepare(Status.INTERNAL, text="a chunk could not be read there")
    served.order(Unregister(0, "m"))
    served.store()
    served.registrar.package_mended(served.digest(b"one"))
    served.carry_out()
    assert served.asked == [], "a version that leaves is prepared"


def test_no_package_is_removed_while_a_record_may_come_back(served: Registry) -> None:
    served.packages.add("of a record that may come back")
    again = Registry()
    again.packages, again.records = served.packages, served.records
    again.registrar.restore([*again.records.values()], [Complaint("lost", 1, "it is damaged", False)], [], [])
    listed(again)
    assert len(again.packages) == 2
    served.order(Unregister(0, "m"))
    served.store(NotUndone(errno.EIO, "Input/output error"))
    listed(served)
    assert len(served.packages) == 2


def test_whoever_waits_for_the_last_worker_to_answer_waits_no_more_when_it_leaves(served: Registry) -> None:
    served.join(2)
    waiter = served.order(Offer(0, "m", False))
    served.settle()
    waiter = served.order(Offer(0, "m", True))
    served.store()
    served.prepare()
    assert served.states("m") == {1: "ready"}, "it was before: one worker is enough"
    assert served.answered(waiter) == []
    served.leave(2)
    assert served.answered(waiter) == ["m@1 is ready"]


# ----- set aside ----------------------------------------------------------------------------------


def test_what_is_set_aside_is_unloaded_says_why_and_the_disk_follows(served: Registry) -> None:
    served.set_aside(1)
    assert served.states("m") == {1: "unloading"}
    assert served.table.by_id[1].faults == {"crashed": 1}
    assert (served.troubles[-1].kind, served.troubles[-1].subject) == (TroubleKind.MODEL_SET_ASIDE, "m@1")
    served.settle()
    assert (served.records["m", 1].offered, served.records["m", 1].aside) == (False, CRASHES)
    refused = served.register("m", b"one")
    assert f"m@1 is set aside: {CRASHES}" in served.answered(refused)[0]
    served.order(Offer(0, "m", True))
    served.settle()
    assert (served.states("m"), served.records["m", 1].aside) == ({1: "ready"}, "")


@pytest.mark.parametrize("is_gone", [False, True])
def test_a_version_that_is_set_aside_while_a_change_of_it_is_written_leaves_nobody_waiting(
    served: Registry, is_gone: bool
) -> None:
    waiter = served.register("m", b"one", slo_ns=50_000_000)
    served.set_aside(1)
    if is_gone:
        served.let_go()
    served.store()
    assert f"m@1 is set aside: {CRASHES}" in served.answered(waiter)[0]
    served.settle()
    assert (served.states("m"), served.records["m", 1].aside) == ({1: "unloaded"}, CRASHES)


def test_a_version_that_is_set_aside_while_it_is_unloaded_is_both(served: Registry) -> None:
    waiter = served.order(Offer(0, "m", False))
    served.set_aside(1)
    served.let_go()
    assert served.states("m") == {1: "unloaded"}
    served.settle()
    assert served.answered(waiter) == ["replied {'unloaded': 'm'}"]
    assert (served.records["m", 1].offered, served.records["m", 1].aside) == (False, CRASHES)


def test_a_version_that_is_set_aside_while_it_is_erased_does_not_come_back(served: Registry) -> None:
    waiter = served.order(Unregister(0, "m"))
    served.set_aside(1)
    served.settle()
    assert served.answered(waiter) == ["replied {'removed': 'm'}"]
    assert (served.states("m"), served.records) == ({}, {})


# ----- releases -----------------------------------------------------------------------------------


def test_traffic_goes_where_a_route_says_once_that_is_written_and_back(served: Registry) -> None:
    served.register("m", b"two")
    served.settle()
    assert served.traffic["m"] == [(2, SHARE_WHOLE)]
    waiter = served.order(Promote(0, "m", 1))
    assert served.traffic["m"] == [(2, SHARE_WHOLE)]
    served.store()
    assert served.traffic["m"] == [(1, SHARE_WHOLE)]
    assert served.answered(waiter) == ["the route of m"]
    served.order(Route(0, "m", [[2, 1000]], []))
    served.settle()
    assert served.traffic["m"] == [(1, SHARE_WHOLE - 1000), (2, 1000)]
    served.order(Rollback(0, "m"))
    served.settle()
    assert served.traffic["m"] == [(1, SHARE_WHOLE)]


# ----- upgrades -----------------------------------------------------------------------------------


def rolled_back(registry: Registry) -> list[tuple[int, int]] | str:
    """Return the route of m after a rollback, as (version, parts); or why it stays."""
    waiter = registry.order(Rollback(0, "m"))
    registry.settle()
    (told,) = registry.answered(waiter)
    return traffic(registry) if told == "the route of m" else told


def traffic(registry: Registry) -> list[tuple[int, int]]:
    return [(registry.table.by_id[model].record.version, parts) for model, parts in registry.traffic["m"]]


def upgrade(registry: Registry, content: bytes, **options: Any) -> str:
    """Return the outcome of a registration of m."""
    waiter = registry.register("m", content, **options)
    registry.settle()
    (told,) = registry.answered(waiter)
    return told


def arrive(registry: Registry) -> None:
    """Have all uploads become versions, which no worker prepares yet."""
    while registry.jobs or registry.ready_uploads():
        for waiter in registry.ready_uploads():
            registry.send_chunk(waiter)
        while registry.jobs:
            registry.store()


NOTHING = "there is no earlier route of m to go back to"


def test_a_rollback_goes_back_version_by_version_to_who_served(served: Registry) -> None:
    for content in (b"two", b"three"):
        upgrade(served, content)
    assert traffic(served) == [(3, SHARE_WHOLE)]
    again = served.restart()
    again.join(1)
    again.settle()
    for registry in (served, again):
        assert rolled_back(registry) == [(2, SHARE_WHOLE)]
        assert rolled_back(registry) == [(1, SHARE_WHOLE)]
        assert rolled_back(registry) == NOTHING


def test_a_rollback_passes_over_versions_that_are_gone(served: Registry) -> None:
    for content in (b"two", b"three"):
        upgrade(served, content)
    served.order(Unregister(0, "m@2"))
    served.settle()
    assert rolled_back(served) == [(1, SHARE_WHOLE)]
    served.order(Promote(0, "m", 0))
    served.settle()
    served.order(Unregister(0, "m@3"))  # a version that has the traffic itself
    served.settle()
    assert traffic(served) == [(1, SHARE_WHOLE)]
    assert rolled_back(served) == NOTHING
    upgrade(served, b"four")
    assert traffic(served) == [(4, SHARE_WHOLE)]
    assert rolled_back(served) == [(1, SHARE_WHOLE)]


def test_a_version_that_never_served_is_nothing_to_come_back_from(served: Registry) -> None:
    upgrade(served, b"two")
    served.register("m", b"three")
    arrive(served)
    served.prepare(Status.INVALID_MODEL)
    served.settle()
    assert served.states("m") == {1: "ready", 2: "ready"}
    assert rolled_back(served) == [(1, SHARE_WHOLE)]


def test_a_canary_begins_with_no_traffic_and_a_rollback_ends_it(served: Registry) -> None:
    assert upgrade(served, b"two", traffic="part") == "m@2 is ready"
    assert traffic(served) == [(1, SHARE_WHOLE)]
    served.order(Route(0, "m", [[2, 1000]], []))
    served.settle()
    assert rolled_back(served) == [(1, SHARE_WHOLE)]
    assert rolled_back(served) == NOTHING
    assert upgrade(served, b"three") == "m@3 is ready"
    assert traffic(served) == [(1, SHARE_WHOLE)], "the name has a route since"


def test_a_first_version_cannot_be_without_traffic(registry: Registry) -> None:
    assert "no version of m serves that its traffic could stay with" in upgrade(
        registry, b"one", traffic="part"
    )
    assert registry.states("m") == {}
    assert not registry.packages


def test_what_is_not_said_is_as_the_version_has_it_that_serves(registry: Registry) -> None:
    upgrade(registry, b"one", slo_ns=70_000_000, batching="off", batch_max=4, origin="here")
    upgrade(registry, b"two", batch_max=0)
    upgrade(registry, b"three", slo_ns=0)
    found = {number: model.record.options for number, model in registry.table.versions["m"].items()}
    kept = {
        "slo_ns": 70_000_000,
        "batching": "off",
        "batch_max": 0,
        "dtype": "fp32",
        "version": 0,
        "origin": "",
    }
    assert found[2] == kept
    assert found[3] == kept | {"slo_ns": 0}
    # A statement that is missing does not make the same content another version.
    assert upgrade(registry, b"three") == "m@3 is ready"


def interface(x: TensorSpec, *outputs: TensorSpec) -> Interface:
    return Interface([x], list(outputs), {})


X, Y = TensorSpec("x", 1, ("N", 2)), TensorSpec("x", 1, ("N", 2))


@pytest.mark.parametrize(
    ("declared", "why"),
    [
        (interface(X, Y), ""),
        # the new version accepts more
        (interface(TensorSpec("x", 1, ("", "")), TensorSpec("x", 1, ("N", 3))), ""),
        (interface(TensorSpec("z", 1, ("N", 2)), Y), "it takes the inputs ['z'], not ['x']"),
        (interface(TensorSpec("x", 10, ("N", 2)), Y), "its input 'x' is float16, not float32"),
        (interface(TensorSpec("x", 1, ("N", 3)), Y), "its input 'x' is ['N', 3], not ['N', 2]"),
        (interface(TensorSpec("x", 1, (1, 2)), Y), "its input 'x' is [1, 2], not ['N', 2]"),
        (interface(TensorSpec("x", 1, ("N",)), Y), "its input 'x' is ['N'], not ['N', 2]"),
        (interface(X, TensorSpec("y", 1, ("N", 2))), "it has no output 'x', but ['y']"),
        (interface(X, TensorSpec("x", 7, ("N", 2))), "its output 'x' is int64, not float32"),
        (interface(X, Y, TensorSpec("y", 1, ())), "it has the outputs ['x', 'y'], not ['x']"),
    ],
)
def test_a_version_that_does_not_fit_the_names_clients_takes_no_traffic_of_theirs(
    declared: Interface, why: str
) -> None:
    for options in ({}, {"traffic": "part"}, {"traffic": "none"}, {"forced": True}):
        registry = Registry()
        registry.join(1)
        for content, one in ((b"one", interface(X, Y)), (b"two", declared)):
            registry.interfaces[registry.digest(content)] = one
        upgrade(registry, b"one")
        waiter = registry.register("m", b"two", **options)
        arrive(registry)
        if why and options in ({}, {"traffic": "part"}):
            (told,) = registry.answered(waiter)
            assert told.startswith(
                f"the requests that m@1 serves would not fit this model: {why}; register it with --no-route"
            )
            assert (registry.states("m"), len(registry.packages)) == ({1: "ready"}, 1)
        else:
            assert registry.states("m") == {1: "ready", 2: "preparing"}


@pytest.mark.parametrize(
    ("message", "sentence"),
    [
        (Promote(0, "m", 7), "m has no version 7; it has 1"),
        (Promote(0, "x", 1), "no model 'x' is registered"),
        (Rollback(0, "m"), "there is no earlier route of m to go back to"),
        (Route(0, "m", [[1, 1], [1, 2]], []), "version 1 is named twice"),
        (Unregister(0, "m@9"), "m has no version '9'; it has 1"),
        (Offer(0, "x", True), "no model 'x' is registered"),
    ],
)
def test_what_cannot_be_is_refused_and_nothing_is_written(
    served: Registry, message: object, sentence: str
) -> None:
    waiter = served.order(message)
    assert served.answered(waiter) == [sentence]
    assert not served.jobs


def test_a_part_of_a_route_is_not_removed_alone_and_an_unloaded_version_gets_none(served: Registry) -> None:
    served.register("m", b"two")
    served.order(Promote(0, "m", 1))
    served.settle()
    waiter = served.order(Unregister(0, "m@1"))
    assert "m@1 has a part in the route of m" in served.answered(waiter)[0]
    served.order(Offer(0, "m@2", False))
    served.settle()
    waiter = served.order(Promote(0, "m", 2))
    assert served.answered(waiter) == ["m@2 is unloaded"]


# ----- whatever happens ---------------------------------------------------------------------------

NAMES = ("a", "b")
CLIENTS = (b"one", b"two")


def may_fail(job: Job) -> bool:
    """A version without waiting clients that no worker tries again is left out: it would be on disk, or not,
    until the next start."""
    if isinstance(job, WriteChange):
        return not any(record.aside for record in job.change.save)
    return not isinstance(job, AbortUpload | RemovePackage)


def act(registry: Registry, rng: random.Random, gone: set[object]) -> None:
    """Make one random possible event happen. gone: gets the orders whose clients give up."""
    name, client = rng.choice(NAMES), rng.choice(CLIENTS)
    version = rng.choice((1, 1, 2, 3, 4))
    text = rng.choice((name, f"{name}@{version}"))
    kind = rng.choice(
        ("register", "send", "send", "store", "store", "store", "prepare", "prepare", "fail", "let go", "join", "leave",
         "set aside", "order", "cancel", "gone", "beat")
    )  # fmt: skip
    if kind == "register":
        slo_ns = rng.choice((0, 0, 10_000_000, 20_000_000))
        registry.register(name, b"%d" % rng.randrange(4), client, slo_ns=slo_ns)
    elif kind == "send" and (ready := registry.ready_uploads()):
        registry.send_chunk(rng.choice(ready))
    elif kind == "store" and registry.jobs:
        fails = rng.random() < 0.1 and may_fail(registry.jobs[0])
        registry.store(rng.choice((FULL, InvalidModel("damaged"))) if fails else None)
    elif kind == "prepare" and registry.asked:
        registry.prepare(place=rng.randrange(len(registry.asked)))
    elif kind == "fail" and registry.asked and rng.random() < 0.5:
        status = rng.choice((Status.INVALID_MODEL, Status.INTERNAL))
        registry.prepare(status, rng.randrange(len(registry.asked)))
    elif kind == "let go" and registry.leaving:
        registry.let_go(rng.randrange(len(registry.leaving)))
    elif kind == "join":
        worker = rng.randrange(3)
        if worker not in registry.registrar.versions.preparations.worker_ids():
            registry.join(worker)
    elif kind == "leave" and (workers := registry.registrar.versions.preparations.worker_ids()):
        registry.leave(rng.choice(workers))
    elif kind == "set aside" and registry.known & set(registry.table.by_id) and rng.random() < 0.3:
        registry.set_aside(rng.choice(sorted(registry.known & set(registry.table.by_id))))
    elif kind == "order":
        message = rng.choice(
            (Unregister(0, text), Offer(0, text, True), Offer(0, text, False), Promote(0, name, version),
             Promote(0, name, 0), Rollback(0, name), Route(0, name, [[version, 4000]], []))
        )  # fmt: skip
        registry.order(message, client)
    elif kind == "cancel" and registry.needs and rng.random() < 0.3:
        waiter = rng.choice(list(registry.needs))
        gone.add(waiter)
        del registry.needs[waiter]
        registry.registrar.cancel(*waiter)
        registry.carry_out()
    elif kind == "gone" and rng.random() < 0.1:
        gone.update(waiter for waiter in registry.orders if waiter.client == client)
        for waiter in [waiter for waiter in registry.needs if waiter.client == client]:
            del registry.needs[waiter]
        registry.registrar.client_gone(client)
        registry.carry_out()
    elif kind == "beat":
        registry.now_ns += 5_000_000_000
        registry.beat()


@pytest.mark.parametrize("seed", range(150))
def test_everybody_is_answered_once_and_what_is_used_stays(seed: int) -> None:
    """Registry itself checks that no client is answered twice, no package erased that a record has, and no
    version served that was never on disk."""
    rng = random.Random(seed)
    registry, gone = Registry(), set[object]()
    for _ in range(300):
        act(registry, rng, gone)
        registry.check()
    if not registry.registrar.versions.preparations.worker_ids():
        registry.join(0)
    registry.settle()
    for _ in range(3):  # failed erasures and preparations are tried again
        registry.now_ns += 600_000_000_000
        registry.beat()
        registry.settle()
    left = [waiter for waiter in registry.orders if waiter not in gone and registry.answers[waiter] != 1]
    assert left == []
    known = {(model.record.name, model.record.version): model for model in registry.all_versions()}
    assert set(known) == set(registry.records)
    for key, record in registry.records.items():
        state = known[key].state
        assert (record.offered, record.aside) == (known[key].record.offered, known[key].record.aside)
        assert state in ((ModelState.READY, ModelState.FAILED) if record.offered else (ModelState.UNLOADED,))
    assert registry.packages == {record.digest for record in registry.records.values()}
    assert registry.routes == registry.table.named


def test_a_worker_that_joins_prepares_the_models_that_are_asked_for_first(registry: Registry) -> None:
    for name in ("a", "b", "c"):
        registry.register(name, name.encode())
    registry.settle()
    ids = {model.record.name: model.model_id for model in registry.all_versions()}
    registry.join(2, {ids["b"]: 7, ids["c"]: 2})
    assert [(worker, message.name) for worker, message in registry.asked] == [(2, "b"), (2, "c"), (2, "a")]
