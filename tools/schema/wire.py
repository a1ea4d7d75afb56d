"""Emits csrc/wire: enums, bounds, and the records of messages with their readers and writers."""

from __future__ import annotations

import textwrap
from collections.abc import Callable

from clockwork.wire.forms import (
    INT64_MAX,
    INT64_MIN,
    Flag,
    Form,
    Integer,
    ListOf,
    Record,
    Row,
    Text,
    forms_of,
)
from clockwork.wire.messages import (
    ACTIONS,
    NATIVE,
    PYTHON_ALONE,
    TAG_OF,
    ActionKind,
    DeclaredAction,
    Result,
    Status,
    bytes_max_of,
)
from tools.schema.declared import (
    BOUNDS,
    ENUMS,
    Struct,
    c_type,
    details,
    fields_of_messages,
    rows,
    struct_of,
    types,
)
from tools.schema.text import (
    LINE,
    block,
    comment,
    cpp,
    cython,
    cython_type,
    enum_of,
    fill,
    first_paragraph,
    indented,
    snake,
    upper,
)

# ----- enums and bounds ----------------------------------------------------------------------------

KINDS = """
$status

inline constexpr std::size_t STATUS_COUNT = $status_bound;  // above every number of Status

// Whether a number is that of a Status.
inline constexpr bool is_status(std::int64_t number) {
    return 0 <= number && number < std::int64_t{STATUS_COUNT} && ($statuses >> number & 1) != 0;
}

// Why a request was refused; NONE for an answer that is no refusal.
$reason

inline constexpr std::size_t REASONS = $reason_count;

$action_kind

inline constexpr std::size_t ACTION_KINDS = $action_kind_count;

$lane_kind

inline constexpr std::size_t LANES = $lane_kind_count;

$lane_of

inline constexpr bool executes(ActionKind kind) { return lane_of(kind) == LaneKind::EXECUTE; }

// Whether it gives memory back, so that in its lane nothing passes it, and it passes nothing.
$frees

// Whether it reads or copies weights, which takes the time of their bytes.
inline constexpr bool transfers(ActionKind kind) { return !executes(kind) && !frees(kind); }

$command_kind

// The action that a command orders, if it orders any.
inline constexpr std::optional<ActionKind> action_of(CommandKind kind) {
    switch (kind) {
        $orders
        default: return std::nullopt;
    }
}

// Faults of a model's execution or load.
$fault

// Sentences of answers; SENTENCES in clockwork/scheduler/types.py has their words.
$answer_text

// Tags of messages.
enum Tag : std::int64_t {
    $tags
};

"""


def by_action(signature: str, value: Callable[[DeclaredAction], str], default: str) -> list[str]:
    cases = [f"case ActionKind::{kind.name}: return {value(ACTIONS[kind])};" for kind in ActionKind]
    head = f"inline constexpr {signature}(ActionKind kind)"
    return block(head, [*block("switch (kind)", cases), f"return {default};"])


def kinds_h() -> str:
    status = forms_of(Result)["status"]
    assert isinstance(status, Integer)
    orders = [
        f"case CommandKind::{upper(command)}: return ActionKind::{kind.name};"
        for kind, command in types.ORDERS.items()
    ]
    tags = sorted((number, tag(kind)) for kind, number in TAG_OF.items() if kind not in PYTHON_ALONE)
    body = fill(
        KINDS,
        **{snake(name): enum_of(name, members) for name, members in ENUMS.items()},
        **{f"{snake(name)}_count": len(members) for name, members in ENUMS.items()},
        status_bound=status.most + 1,
        statuses=f"{sum(1 << code for code in Status):#x}u",
        lane_of=by_action(
            "LaneKind lane_of", lambda action: f"LaneKind::{action.lane.name}", "LaneKind::EXECUTE"
        ),
        frees=by_action("bool frees", lambda action: str(action.frees).lower(), "false"),
        orders=orders,
        tags=[f"{name} = {number}," for number, name in tags],
    )
    about = "Statuses, reasons, actions, the scheduler's commands, and tags."
    return cpp(
        about, [f"#include <{name}>" for name in ("cstddef", "cstdint", "optional")], "clockwork", body
    )


def bounds_h() -> str:
    body = []
    for kind, modules in BOUNDS.items():
        for module, names in modules.items():
            for name in names.split():
                value = getattr(module, name)
                if isinstance(value, int):
                    body.append(f"inline constexpr {kind} {name} = {value};")
                else:
                    numbers = textwrap.wrap(", ".join(map(str, value)), LINE - 5)
                    body += block(f"inline constexpr std::array<{kind}, {len(value)}> {name} =", numbers, ";")
    about = "Bounds and constants that Python has as well: of clockwork.config, clockwork.wire.messages and clockwork.wire.shared."
    return cpp(about, ["#include <array>", "#include <cstdint>"], "clockwork", [*body, ""])


# ----- readers -------------------------------------------------------------------------------------

FAIL = "    return false;"


def tag(kind: type) -> str:
    return f"TAG_{upper(kind)}"


def number(value: int) -> str:
    return {INT64_MIN: "INT64_MIN", INT64_MAX: "INT64_MAX"}.get(value, str(value))


def read(form: Form, target: str, level: int, is_nested: bool = False) -> list[str]:
    """Statements that read the next value into `target`."""
    match form:
        case Integer():
            return [f"if (!reader.integer({target}, {number(form.least)}, {number(form.most)}))", FAIL]
        case Text():
            return [f"if (!reader.text({target}, {form.bytes_max}))", FAIL]
        case Row():
            lines = [f"if (!reader.row({len(form.fields)}))", FAIL]
            for place, (name, part) in enumerate(form.fields.items()):
                lines += [
                    f"reader.place({level + 1}, {place});",
                    *read(part, f"{target}.{name}", level + 1, is_nested),
                ]
            return lines
        case ListOf():
            count, at, value = f"count{level}", f"at{level}", f"value{level}"
            vector = f"message.{form.pool}" if is_nested else target
            lines = [f"std::uint32_t {count} = 0;", f"if (!reader.list({count}, {form.count_max}))", FAIL]
            if is_nested:
                lines.append(f"{target} = {{static_cast<std::uint32_t>({vector}.size()), {count}}};")
            element = [f"{c_type(form.element, True)}& {value} = {vector}.emplace_back();"]
            element += [f"reader.place({level + 1}, {at});", *read(form.element, value, level + 1, True)]
            return lines + block(f"for (std::uint32_t {at} = 0; {at} < {count}; ++{at})", element)
    raise NotImplementedError(f"no reader of {form}")


def reader(kind: type, struct: str) -> list[str]:
    fields = forms_of(kind)
    lines = [f"if (!reader.begin({len(fields)}, {bytes_max_of(kind)}))", FAIL]
    for place, (name, form) in enumerate(fields.items()):
        found = read(form, f"message.{name}", 0)
        lines.append(f"reader.place(0, {place});")
        lines += ["{", *indented(found), "}"] if isinstance(form, ListOf) else found
    head = f"bool read_{snake(kind.__name__)}(FieldReader& reader, {struct}& message)"
    return block(head, [*lines, "return reader.end();"])


READ = """
bool $name::read(std::string_view header, HeaderFlaw& flaw) {
    clear();
    FieldReader reader(header, flaw);
    std::int64_t tag = 0;
    if (!reader.tag(tag))
        return false;
    $body
}
"""


def read_method(struct: Struct) -> list[str]:
    first, form = next(iter(struct.fields.items()))
    peek = [f"{first} = reader.peek_id();"] if form == Integer(0, INT64_MAX) else []
    if struct.is_action:
        cases = []
        for kind, action in ACTIONS.items():
            call = f"return read_{snake(action.message.__name__)}(reader, *this);"
            cases += [f"case {tag(action.message)}:", f"    kind = ActionKind::{kind.name};", f"    {call}"]
        body = [*peek, *block("switch (tag)", [*cases, "default:", "    break;"]), f"{first} = 0;"]
        body.append("return reader.other();")
    else:
        body = [f"if (tag != TAG_{snake(struct.name).upper()})", "    return reader.other();", *peek]
        body.append(f"return read_{snake(struct.name)}(reader, *this);")
    return fill(READ, name=struct.name, body=body)


# ----- writers -------------------------------------------------------------------------------------


def integer_bytes(value: int) -> int:
    bounds = {1: (-32, 0x7F), 2: (-1 << 7, 0xFF), 3: (-1 << 15, 0xFFFF), 5: (-1 << 31, 0xFFFFFFFF)}
    return next((size for size, (least, most) in bounds.items() if least <= value <= most), 9)


def fixed_bytes(form: Form) -> int:
    """The most bytes that a value takes, without texts and the elements of lists."""
    match form:
        case Integer():
            return max(integer_bytes(form.least), integer_bytes(form.most))
        case Flag():
            return 1
        case Text():
            return 5
        case ListOf():
            return 1 if form.count_max < 16 else 3 if form.count_max <= 0xFFFF else 5
        case Row():
            return 1 + sum(map(fixed_bytes, form.fields.values()))
        case Record():
            return 1 + sum(1 + len(key) + fixed_bytes(part) for key, part in form.fields.items())
    raise NotImplementedError(f"no writer of {form}")


def room(struct: Struct) -> list[str]:
    """Statements that bound the bytes of a header."""
    terms, loops = [str(5 + 5 + sum(map(fixed_bytes, struct.fields.values())))], []
    vectors = {name: form.element for name, form in struct.fields.items() if isinstance(form, ListOf)}
    for name, form in struct.fields.items():
        if isinstance(form, Text):
            terms.append(f"{name}.size()")
        if isinstance(form, Record):
            texts = [f"{name}.{key}" for key, part in form.fields.items() if isinstance(part, Text)]
            terms += [f"({text} ? {text}->size() : 0)" for text in texts]
    for name, element in (vectors | struct.pools).items():
        terms.append(f"{fixed_bytes(element)} * {name}.size()")
        parts = element.fields.items() if isinstance(element, Row) else ()
        if sizes := " + ".join(f"each.{key}.size()" for key, part in parts if isinstance(part, Text)):
            loops += [f"for (const {c_type(element)}& each : {name})", f"    room += {sizes};"]
    lines = [f"std::size_t room = {terms[0]}"] + [f"                   + {term}" for term in terms[1:]]
    return [*lines[:-1], lines[-1] + ";", *loops]


def write(form: Form, source: str, level: int, is_nested: bool = False) -> list[str]:
    """Statements that write `source`."""
    match form:
        case Integer():
            return [f"packer.integer({source});"]
        case Flag():
            return [f"packer.flag({source});"]
        case Text():
            return [
                f"put(packer, cut({source}, {form.bytes_max}));" if form.is_cut else f"put(packer, {source});"
            ]
        case Row():
            lines = [f"packer.array({len(form.fields)});"]
            for name, part in form.fields.items():
                lines += write(part, f"{source}.{name}", level + 1, is_nested)
            return lines
        case Record():
            count = " + ".join(f"{source}.{key}.has_value()" for key in form.fields)
            lines = [f"packer.map(std::size_t{{0}} + {count});"]
            for key, part in form.fields.items():
                assert key in form.optional, f"{key} is not optional"
                written = [f'put(packer, "{key}");', *write(part, f"*{source}.{key}", level + 1)]
                lines += block(f"if ({source}.{key})", written)
            return lines
        case ListOf():
            value, at = f"value{level}", f"at{level}"
            element = f"const {c_type(form.element, True)}& {value}"
            written = write(form.element, value, level + 1, True)
            if not is_nested:
                return [f"packer.array({source}.size());", *block(f"for ({element} : {source})", written)]
            end = f"{source}.first + {source}.count"
            loop = f"for (std::uint32_t {at} = {source}.first; {at} < {end}; ++{at})"
            return [
                f"packer.array({source}.count);",
                *block(loop, [f"{element} = {form.pool}[{at}];", *written]),
            ]
    raise NotImplementedError(f"no writer of {form}")


def body_of(kind: type) -> list[str]:
    fields = forms_of(kind)
    lines = [f"packer.array({len(fields) + 1});", f"packer.integer({tag(kind)});"]
    return lines + [line for name, form in fields.items() for line in write(form, name, 0)]


def write_method(struct: Struct) -> list[str]:
    lines = [*room(struct), "writer.clear();", "Packer packer = writer.begin(room);"]
    most = str(bytes_max_of(struct.messages[0]))
    if struct.is_action:
        most, cases = "bytes_max", []
        for kind, action in ACTIONS.items():
            body = [*body_of(action.message), f"bytes_max = {bytes_max_of(action.message)};", "break;"]
            cases += block(f"case ActionKind::{kind.name}:", body)
        lines += ["std::size_t bytes_max = 0;", *block("switch (kind)", cases)]
    else:
        lines += body_of(struct.messages[0])
    lines += ["writer.end(packer);", f"return writer.size() <= {most};"]
    return block(f"bool {struct.name}::write(Writer& writer) const", lines)


# ----- records -------------------------------------------------------------------------------------

INITIALS = {
    "std::int64_t": " = 0", "std::uint32_t": " = 0", "bool": " = false", "ActionKind": " = ActionKind::LOAD",
}  # fmt: skip
ABOUT = (
    "Messages that C++ reads or writes. read(): false where the header differs from the declaration, whose first place the"
    " flaw then has; an id that is the first field is there even so, if it can be read, and 0 else. Texts point into the"
    " header. write(): replaces what the writer has; false where the header is larger than its receiver takes, which"
    " the caller must not send then. Neither allocates once the vectors have grown. A record may be used again."
)
INCLUDES = """
#include <cstdint>
#include <optional>
#include <string_view>
#include <vector>

#include "msgpack.h"
#include "wire/fields.h"
#include "wire/header_flaw.h"
#include "wire/kinds.h"
"""


def structs() -> list[Struct]:
    actions = tuple(action.message for action in ACTIONS.values())
    about = (
        "The order of any action. The fields that count depend on its kind, as the message of it declares."
    )
    others = [
        struct_of(kind.__name__, first_paragraph(kind), (kind,)) for kind in NATIVE if kind not in actions
    ]
    return [struct_of("ActionMessage", about, actions), *others]


def records() -> dict[str, dict[str, str]]:
    """The fields of each record, by name: their C++ types."""
    found = {"ListRange": {"first": "std::uint32_t", "count": "std::uint32_t"}}
    for name, fields in rows().items():
        found[name] = {key: c_type(form, True) for key, form in fields.items()}
    for name, record in details().items():
        found[name] = {key: f"std::optional<{c_type(part)}>" for key, part in record.fields.items()}
    for struct in structs():
        found[struct.name] = {"kind": "ActionKind"} if struct.is_action else {}
        found[struct.name] |= {name: c_type(form) for name, form in struct.fields.items()}
        found[struct.name] |= {
            name: f"std::vector<{c_type(form, True)}>" for name, form in struct.pools.items()
        }
    return found


def named_lists() -> list[str]:
    """The records of lists whose elements have names."""
    body = []
    for kind, name, form in fields_of_messages():
        if isinstance(form, ListOf) and form.names:
            fill_list = f"void fill({c_type(form)}& list) const {{ list = {{{', '.join(form.names)}}}; }}"
            fields = [*(field(c_type(form.element), key) for key in form.names), "", fill_list]
            body += comment(f"The elements of {kind.__name__}.{name}.")
            body += [*block(f"struct {kind.__name__}{name.capitalize()}", fields, ";"), ""]
    return body


def field(kind: str, name: str) -> str:
    return f"{kind} {name}{INITIALS.get(kind, '')};"


def messages_h() -> str:
    body = comment("Elements of a vector of the same record, `count` of them from `first` on.")
    methods = {struct.name: struct for struct in structs()}
    for name, fields in records().items():
        lines = [field(kind, key) for key, kind in fields.items()]
        if struct := methods.get(name):
            body += named_lists() if struct.is_action else []
            body += comment(struct.about)
            lines += ["", "void clear();"]
            lines += ["bool read(std::string_view header, HeaderFlaw& flaw);"] * struct.is_read
            lines += ["bool write(Writer& writer) const;"] * struct.is_written
        body += [*block(f"struct {name}", lines, ";"), ""]
    return cpp(ABOUT, fill(INCLUDES), "clockwork::wire", body)


def clear(struct: Struct) -> list[str]:
    lines = []
    for name, form in struct.fields.items():
        emptied = INITIALS.get(c_type(form), "{}").removeprefix(" = ")
        lines.append(f"{name}.clear();" if isinstance(form, ListOf) else f"{name} = {emptied};")
    return block(f"void {struct.name}::clear()", [*lines, *(f"{name}.clear();" for name in struct.pools)])


def messages_cpp() -> str:
    body = ["namespace {", ""]
    body += block(
        "void put(Packer& packer, std::string_view text)", ["packer.text(text.size());", "packer.raw(text);"]
    )
    owners = {kind: struct for struct in structs() for kind in struct.messages}
    for kind in NATIVE:
        if owners[kind].is_read:
            body += ["", *reader(kind, owners[kind].name)]
    body += ["", "}  // namespace", ""]
    for struct in structs():
        body += [*clear(struct), ""]
        body += [*read_method(struct), ""] if struct.is_read else []
        body += [*write_method(struct), ""] if struct.is_written else []
    includes = ['#include "wire/messages.h"', "", "#include <cstddef>", "", '#include "wire/fields.h"']
    return cpp("", includes, "clockwork::wire", [*body, ""])


ALIASES = {"AnswerText": "Text"}
PXD = """
from libc.stdint cimport int64_t, uint8_t, uint32_t
from libcpp cimport bool as cbool
from libcpp.optional cimport optional
from libcpp.string_view cimport string_view
from libcpp.vector cimport vector

from clockwork.wire._headers cimport CHeaderFlaw, CWriter


cdef extern from "wire/kinds.h" namespace "clockwork" nogil:
    $enums
    CLaneKind lane_of(CActionKind kind)
    cbool frees(CActionKind kind)
    const size_t C_STATUS_COUNT "clockwork::STATUS_COUNT"
    const size_t C_REASONS "clockwork::REASONS"
    const size_t C_ACTION_KINDS "clockwork::ACTION_KINDS"

cdef extern from "wire/messages.h" namespace "clockwork::wire" nogil:
    $records
"""


def messages_pxd() -> str:
    enums = []
    for name, members in ENUMS.items():
        alias = name if name == "CommandKind" else f'C{ALIASES.get(name, name)} "clockwork::{name}"'
        enums += [f"cdef enum class {alias}(uint8_t):", *indented(members), ""]
    methods, lines = {struct.name: struct for struct in structs()}, []
    for name, fields in records().items():
        lines += [f'cdef cppclass C{name} "clockwork::wire::{name}":']
        lines += [f"    {cython_type(kind)} {key}" for key, kind in fields.items()]
        if struct := methods.get(name):
            lines += ["    void clear()"]
            lines += ["    cbool read(string_view header, CHeaderFlaw &flaw) except +"] * struct.is_read
            lines += ["    cbool write(CWriter &writer) except +"] * struct.is_written
        lines.append("")
    return cython("The records of csrc/wire/messages.h.", PXD, enums=enums, records=lines)
