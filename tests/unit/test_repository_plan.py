"""Plans after looks at a model repository never take a model down while its folder has a version that
serves."""

from __future__ import annotations

import dataclasses
from typing import Any, cast

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

pytest.importorskip(
    "google.protobuf", reason="the gateway's packages are not installed (clockwork-serving[gateway])"
)

from clockwork.repository.folders import Contents, RegistrationState, Repository, Version, plan
from clockwork.repository.triton_config import FolderConfig

Key = tuple[str, int]


class Place:
    """A repository whose files need to settle."""

    is_settled = False


PLACE = cast(Repository, Place())
LATEST = FolderConfig()
ALL = FolderConfig(newest=0)


@dataclasses.dataclass
class Model:
    """A folder of a repository, and the orders that the cluster got for it."""

    # files of each version; None: there is no folder
    files: dict[int, str] | None = dataclasses.field(default_factory=dict)
    config: FolderConfig = LATEST
    is_torn: bool = False  # whether the folder's configuration cannot be read
    before: Contents | None = None
    done: dict[Key, RegistrationState] = dataclasses.field(default_factory=dict)
    busy: dict[Key, Version] = dataclasses.field(default_factory=dict)
    numbers: int = 0  # number of versions given in the cluster

    def look(self) -> Contents:
        """Look at the folder and act as the keeper does; registrations begin, and end with settle()."""
        found = self._contents()
        wanted = plan(self.done, found, self.before)
        for version in wanted.register:
            self.busy.setdefault(("m", version.version), version)
        for key in wanted.unregister:
            if key not in self.busy:
                del self.done[key]
        assert not {*wanted.held} & {*wanted.unregister}
        self.before = found
        return found

    def settle(self, *, again: bool = False) -> None:
        """End the oldest registration under way, with success for good files. again: the cluster cannot take
        it now."""
        if not self.busy:
            return
        key = next(iter(self.busy))
        version = self.busy.pop(key)
        done = RegistrationState(version.fingerprint, served=self.served.get(key, 0))
        ((_, _, content),) = version.fingerprint[:1]
        if again:
            done.error, done.again = "no worker could", True
        elif "bad" in content:
            done.error = "it is no model"
        else:
            self.numbers += 1
            done.served = self.numbers
        self.done[key] = done

    @property
    def served(self) -> dict[Key, int]:
        return {key: one.served for key, one in self.done.items() if one.served}

    def looks(self, count: int = 4) -> list[int]:
        """Look again and again, with every registration ended between.

        Return the numbers of the folders that are served.
        """
        for _ in range(count):
            self.look()
            while self.busy:
                self.settle()
        return sorted(number for _, number in self.served)

    def _contents(self) -> Contents:
        if self.files is None:
            return Contents({}, {})
        chosen = [] if self.is_torn else self.config.chosen(list(self.files))
        if not chosen:
            return Contents({}, {"m": "no version, or a torn configuration"})
        config: Any = ("config.pbtxt", 0, str((self.config.newest, self.config.versions)))
        versions = {
            ("m", number): Version(
                "m",
                number,
                "model.onnx",
                self.config,
                (("model.onnx", 1, self.files[number]), config),
                PLACE,
            )
            for number in chosen
        }
        return Contents(versions, {}, {"m": frozenset(self.files)})


def test_the_old_version_serves_until_the_new_one_is_ready() -> None:
    model = Model({1: "a"})
    assert model.looks() == [1]
    assert model.files is not None
    model.files[2] = "b"
    model.look()
    model.look()
    model.look()
    assert list(model.busy) == [("m", 2)]
    assert list(model.served) == [("m", 1)]
    model.settle()
    model.look()
    assert list(model.served) == [("m", 2)]


def test_the_old_version_serves_on_where_the_new_one_is_broken_and_goes_once_it_is_mended() -> None:
    model = Model({1: "a"})
    model.looks()
    model.files = {1: "a", 2: "bad"}
    assert model.looks(10) == [1]
    model.files[2] = "mended"
    assert model.looks() == [2]


def test_a_version_that_is_taken_away_serves_until_the_one_before_does() -> None:
    model = Model({1: "a", 2: "b"})
    assert model.looks() == [2]
    model.files = {1: "a"}
    model.look()
    model.look()
    model.look()
    assert list(model.served) == [("m", 2)]
    assert model.looks() == [1]


def test_a_version_that_was_taken_away_stays_for_as_long_as_nothing_else_can_serve() -> None:
    model = Model({1: "bad", 2: "b"})
    assert model.looks() == [2]
    model.files = {1: "bad"}
    assert model.looks(10) == [2]
    model.files = {1: "good"}
    assert model.looks() == [1]


def test_a_version_that_was_taken_away_goes_where_another_serves_whatever_else_is_broken() -> None:
    model = Model({1: "bad", 2: "b", 3: "c"}, ALL)
    assert model.looks() == [2, 3]
    model.files = {1: "bad", 2: "b"}
    assert model.looks() == [2]


def test_as_many_versions_stay_as_wanted_ones_are_broken_the_newest_first() -> None:
    model = Model({1: "a", 2: "b", 3: "c"}, FolderConfig(newest=2))
    assert model.looks() == [2, 3]
    assert model.files is not None
    model.files[4] = "bad"
    assert model.looks() == [2, 3]
    model.files[5] = "e"
    assert model.looks() == [3, 5], "4 and 5 are wanted, and 3 stands in for 4"


def test_a_policy_that_is_written_anew_takes_away_nothing_between() -> None:
    model = Model({1: "a", 2: "b"}, ALL)
    assert model.looks() == [1, 2]
    model.config = LATEST  # the configuration of a file that is being written and still empty
    model.look()
    assert sorted(model.served) == [("m", 1), ("m", 2)]
    model.config = FolderConfig(versions=(1,))
    model.look()
    assert sorted(model.served) == [("m", 1), ("m", 2)]
    assert model.looks() == [1]


def test_a_folder_that_is_gone_for_one_look_alone_was_never_gone() -> None:
    model = Model({1: "a"})
    model.looks()
    model.files = None
    model.look()
    model.files = {1: "a of another copy"}
    model.look()
    assert list(model.served) == [("m", 1)]
    assert model.looks() == [1]
    model.files = None
    assert model.looks() == []


NUMBERS = st.integers(1, 4)
CONTENTS = st.sampled_from(["a", "b", "c", "bad one", "bad two"])
CONFIGS = st.sampled_from(
    [LATEST, ALL, FolderConfig(newest=2), *(FolderConfig(versions=(n,)) for n in (1, 3))]
)
STEPS = st.one_of(
    st.tuples(st.just("put"), NUMBERS, CONTENTS),
    st.tuples(st.just("take"), NUMBERS),
    st.tuples(st.just("configure"), CONFIGS),
    st.tuples(st.just("tear"), st.booleans()),
    st.tuples(st.just("remove")),
    st.tuples(st.just("look")),
    st.tuples(st.just("settle"), st.booleans()),
)


def change(model: Model, step: tuple[Any, ...]) -> None:
    match step:
        case ("put", number, content):
            model.files = (model.files or {}) | {number: content}
        case ("take", number):
            if model.files is not None:
                model.files.pop(number, None)
        case ("configure", config):
            model.config = config
        case ("tear", is_torn):
            model.is_torn = is_torn
        case ("remove",):
            model.files = None
        case ("settle", again):
            model.settle(again=again)
        case _:
            model.look()


@given(st.lists(STEPS, max_size=60))
@settings(deadline=None, max_examples=400)
def test_a_name_that_serves_goes_on_serving_whatever_becomes_of_its_folder(
    steps: list[tuple[Any, ...]],
) -> None:
    model = Model({1: "a"})
    model.looks()
    was_there = True  # whether it served at the last look
    for step in steps:
        did_serve = bool(model.served)
        change(model, step)
        is_there = model.files is not None
        if did_serve and (step != ("look",) or is_there or was_there):
            assert model.served
        if step == ("look",):
            was_there = is_there
    # After any sequence of changes, exactly the wanted versions are served.
    served = model.looks(12)
    if model.files is None:
        assert not served
        return
    wanted = [] if model.is_torn else model.config.chosen(list(model.files))
    good = [number for number in wanted if "bad" not in model.files[number]]
    assert {*good} <= {*served} or model.is_torn
    if wanted:
        assert len(served) <= len(wanted)
    if wanted == good and good:
        assert served == good
