"""One name stands for one type: no two public types of csrc/ and clockwork/ share a name."""

from __future__ import annotations

import ast
import re
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[2]

COMMENT_OR_TEXT = re.compile(r'//[^\n]*|/\*.*?\*/|"(?:[^"\\\n]|\\.)*"|\'(?:[^\'\\\n]|\\.)*\'', re.DOTALL)
DIRECTIVE = re.compile(r"^[ \t]*#(?:[^\n]*\\\n)*[^\n]*", re.MULTILINE)
NAMESPACE = re.compile(r"(?:namespace(?:\s+[\w:]+)?|extern\s*\"\")\s*$")
TYPE = re.compile(
    r"(?:^|\s)(?:class|struct|union|enum(?:\s+class)?)\s+(?:alignas\([^)]*\)\s+|\[\[[^\]]*\]\]\s+)*(\w+)"
    r"\s*(?:final\s*)?(?::[^:]|$)"
)
ALIAS = re.compile(r"(?:^|\s)using\s+(\w+)\s*=")
CYTHON = re.compile(
    r"^(?:cdef\s+)?(?:class|struct|union|enum|packed struct)\s+(?:class\s+)?(\w+)", re.MULTILINE
)


def native_types(text: str) -> list[str]:
    """The types that a header defines in namespaces, in their order; nested ones and specialisations are
    not."""
    bare = DIRECTIVE.sub("", COMMENT_OR_TEXT.sub(lambda found: '""' if found[0][0] == '"' else " ", text))
    names = []
    inside = 0  # number of open braces that belong to no namespace
    opened: list[bool] = []  # whether each open brace is a namespace's
    statement = ""
    for piece in re.split(r"([{};])", bare):
        if piece == "{":
            is_namespace = not inside and NAMESPACE.search(statement) is not None
            if not inside and not is_namespace and (found := TYPE.search(statement)):
                names.append(found[1])
            opened.append(is_namespace)
            inside += not is_namespace
            statement = ""
        elif piece == "}":
            inside -= not opened.pop()
            statement = ""
        elif piece == ";":
            if not inside and (found := ALIAS.search(statement)):
                names.append(found[1])
            statement = ""
        else:
            statement = piece
    return names


def python_types(text: str) -> list[str]:
    """The public classes of a module, in their order; classes within others are not."""
    return [
        node.name
        for node in ast.parse(text).body
        if isinstance(node, ast.ClassDef) and not node.name.startswith("_")
    ]


def cython_types(text: str) -> list[str]:
    """The public classes and records of a Cython module, in their order."""
    return [name for name in CYTHON.findall(text) if not name.startswith("_")]


class Mirrors(NamedTuple):
    """Names of types that stand in several languages for the same thing, once at each of these places."""

    reason: str
    places: tuple[str, ...]  # files, or folders with a slash at the end
    names: str  # names with spaces between

    def covers(self, name: str, paths: Sequence[str]) -> bool:
        return (
            name in self.names.split()
            and len(paths) == len(self.places)
            and all(sum(_lies_in(path, place) for path in paths) == 1 for place in self.places)
        )


def _lies_in(path: str, place: str) -> bool:
    return path.startswith(place) if place.endswith("/") else path == place


MIRRORS = (
    Mirrors(
        "the schema of messages, and what tools/schema writes of it",
        ("csrc/wire/", "clockwork/wire/messages.py"),
        "ActionKind Answer Cancel Failure InferRequest LaneKind Ping Pong Reason Result Revoke Status",
    ),
    Mirrors(
        "the scheduler's events, and the records of a recording that tools/schema writes of them",
        ("csrc/recording/records.h", "clockwork/scheduler/types.py"),
        (
            "ActionDone Arrived CopyLost DeviceClock DeviceLost LinkMeasured ModelKept ModelReady ModelRemoved RequestCancelled"
            " RoomWanted TimeWanted WorkerDraining WorkerJoined WorkerLeft"
        ),
    ),
    Mirrors(
        "the scheduler's inputs and outputs, as records of both languages",
        ("csrc/scheduler/", "clockwork/scheduler/types.py"),
        "ModelSpec ProfilePoint Scheduler",
    ),
    Mirrors(
        "the scheduler's enums, which tools/schema writes beside those of messages",
        ("csrc/wire/kinds.h", "clockwork/scheduler/types.py"),
        "Fault",
    ),
    Mirrors(
        "a resident model, for the scheduler and in a recording that is read",
        ("csrc/scheduler/scheduler.h", "clockwork/scheduler/recording.py"),
        "ResidentModel",
    ),
    Mirrors(
        "parts of the scheduler, and their bindings for tests",
        ("csrc/scheduler/", "clockwork/scheduler/_core.pyx"),
        "Curve Estimates LoadEstimates PageAllocator ProgramEstimates",
    ),
    Mirrors(
        "a policy, in C++ and as the base of policies in Python",
        ("csrc/scheduler/policy.h", "clockwork/scheduler/policy.py"),
        "Policy",
    ),
    Mirrors(
        "a batch and a queue, and how policies in Python see them",
        ("csrc/scheduler/", "clockwork/scheduler/_policy.pyx"),
        "Batch Queue",
    ),
    Mirrors(
        "a request for the scheduler, and how policies in Python see it",
        ("csrc/scheduler/types.h", "clockwork/scheduler/types.py", "clockwork/scheduler/_policy.pyx"),
        "Request",
    ),
    Mirrors(
        "a device, and how policies in Python see it",
        ("clockwork/device/base.py", "clockwork/scheduler/_policy.pyx"),
        "Device",
    ),
    Mirrors(
        "a worker, and what the scheduler knows of it",
        ("csrc/scheduler/machines.h", "clockwork/worker/process.py"),
        "Worker",
    ),
    Mirrors(
        "the errors of predictions, and what a report of the simulator has of them",
        ("csrc/scheduler/", "clockwork/sim/world.py"),
        "Errors Histogram",
    ),
    Mirrors(
        "the exchange and the flight recorder's ring, and their bindings",
        ("csrc/", "clockwork/controller/_exchange.pyx"),
        "Exchange Ring",
    ),
    Mirrors(
        "the numbers of shapes, and their binding",
        ("csrc/controller/shape_numbers.h", "clockwork/scheduler/_core.pyx"),
        "ShapeNumbers",
    ),
    Mirrors(
        "a connected peer, for the exchange and for the rest of the controller",
        ("csrc/controller/", "clockwork/controller/peers/links.py"),
        "ClientLink WorkerLink",
    ),
    Mirrors(
        "a model's inputs and outputs, and their binding",
        ("csrc/controller/models.h", "clockwork/controller/_values.pyx"),
        "ModelInterface",
    ),
    Mirrors(
        "a flaw of a message that the exchange has read, and its sentence",
        ("csrc/controller/flaws.h", "clockwork/controller/ports/flaws.py"),
        "Flaw",
    ),
    Mirrors(
        "the first flaw of a header, and its sentence",
        ("csrc/wire/header_flaw.h", "clockwork/wire/codec.py"),
        "HeaderFlaw",
    ),
    Mirrors(
        "bounds that the exchange is given",
        ("csrc/controller/connections.h", "clockwork/config/controller.py"),
        "ConnectionBounds",
    ),
    Mirrors(
        "devices that share a machine, and their binding",
        ("csrc/device/emulated_machine.h", "clockwork/device/_emulated.pyx"),
        "Machine",
    ),
    Mirrors(
        "an emulated device and its settings, natively and for a worker",
        ("csrc/device/emulated.h", "clockwork/device/"),
        "EmulatedDevice EmulatedSettings",
    ),
    Mirrors(
        "parts of devices, and their bindings",
        ("csrc/device/", "clockwork/device/"),
        "Fleet HostLink HostPages WeightsCopy",
    ),
    Mirrors(
        "the parts of a program package, and what a device makes of them",
        ("csrc/device/cuda_model.h", "clockwork/formats/program.py"),
        "Argument Launch Variant",
    ),
    Mirrors(
        "the worker's road, and its binding",
        ("csrc/worker/road.h", "clockwork/worker/_road.pyx"),
        "Road",
    ),
    Mirrors(
        "copies of others' memory, in a worker natively and in a gateway in Python",
        ("csrc/worker/copies.h", "clockwork/system/copies.py"),
        "Copies Copy",
    ),
    Mirrors(
        "a simulated cluster, and its binding",
        ("csrc/sim/world.h", "clockwork/sim/_world.pyx"),
        "World",
    ),
    Mirrors(
        "the codec, and what the library of clients has where no compiler was",
        ("clockwork/wire/_codec.pyx", "clockwork/wire/_plain_codec.py"),
        "Layout Odd OddKind",
    ),
    Mirrors(
        "the calls of libzmq, and what the library of clients has where no compiler was",
        ("clockwork/wire/_zmq.pyx", "clockwork/wire/_plain_zmq.py"),
        "Probe",
    ),
    Mirrors(
        "the wait for a descriptor, and what the library of clients has where no compiler was",
        ("clockwork/system/_wait.pyx", "clockwork/system/_plain_wait.py"),
        "DescriptorPoller",
    ),
)


def _types() -> dict[str, list[str]]:
    """All public types: the files that define each name, in order."""
    found: dict[str, list[str]] = defaultdict(list)
    for pattern, names_of in (
        ("csrc/**/*.h", native_types),
        ("clockwork/**/*.py", python_types),
        ("clockwork/**/*.pyx", cython_types),
    ):
        for path in sorted(ROOT.glob(pattern)):
            for name in names_of(path.read_text(encoding="utf-8")):
                found[name].append(path.relative_to(ROOT).as_posix())
    return found


def _collisions() -> dict[str, list[str]]:
    """The names that stand for several things, with the files that define them."""
    return {
        name: paths
        for name, paths in _types().items()
        if len(paths) > 1 and not any(mirrors.covers(name, paths) for mirrors in MIRRORS)
    }


def test_no_two_types_share_a_name() -> None:
    collisions = _collisions()
    assert not collisions, f"one name for several types: {collisions}"


def test_mirrors_are_there() -> None:
    types = _types()
    wrong = {
        name: types.get(name)
        for mirrors in MIRRORS
        for name in mirrors.names.split()
        if not mirrors.covers(name, types.get(name, []))
    }
    assert not wrong, f"not once at each of the places that MIRRORS gives: {wrong}"


def test_types_of_headers_are_found() -> None:
    text = """
        #define MACRO(x) struct Macro { x };
        namespace clockwork::wire {
        struct Declared;
        // struct Comment {};
        template <typename T> class Pool final : public Base { struct Nested {}; using Inner = int; };
        enum class Kind : std::uint8_t { A, B };
        struct alignas(64) Aligned { int values[2] = {1, 2}; };
        using Alias = int;
        inline void act(struct Pool &pool) { struct Local {}; if (true) { call("}"); } }
        template <> struct Pool<int> {};
        namespace { class Hidden {}; }
        }  // namespace clockwork::wire
    """
    assert native_types(text) == ["Pool", "Kind", "Aligned", "Alias", "Hidden"]


def test_types_of_modules_are_found() -> None:
    assert python_types("class A:\n    class B: ...\nclass _C: ...\n") == ["A"]
    text = "cdef class A(B):\n    pass\ncdef struct S:\n    int x\nclass E(Exception):\n    pass\ncdef class _P:\n    pass\n"
    assert cython_types(text) == ["A", "S", "E"]


def _bound_twice(text: str) -> list[str]:
    """The constants that a module's own statements assign more than once."""
    seen: set[str] = set()
    twice = []
    for node in ast.parse(text).body:
        targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)]
        for target in targets:
            if isinstance(target, ast.Name) and target.id.isupper() and not isinstance(node, ast.AugAssign):
                twice += [target.id] if target.id in seen else []
                seen.add(target.id)
    return twice


def test_no_module_binds_a_constant_twice() -> None:
    """The second value would replace the first for all that read it; no linter says so."""
    assert _bound_twice("A = 1\nB: int = 2\nA = 3\nB += 1\n") == ["A"]
    found = {
        path.relative_to(ROOT).as_posix(): twice
        for room in ("clockwork", "bench", "tools", "tests")
        for path in sorted((ROOT / room).rglob("*.py"))
        if (twice := _bound_twice(path.read_text(encoding="utf-8")))
    }
    assert found == {}
