# distutils: language = c++
"""Decoding of headers to messages, by the forms that messages.py declares.

No value of a header is built before it is known to be within its bounds: each value is read by the form of
its place, so that depth, length and number are those of the declaration, whatever the bytes are.
"""

from cpython.buffer cimport PyBUF_SIMPLE, PyBuffer_Release, PyObject_GetBuffer
from cpython.bytes cimport PyBytes_FromStringAndSize
from cpython.object cimport PyObject
from cpython.unicode cimport PyUnicode_DecodeUTF8

from clockwork.config.wire import UNKNOWN_DEPTH_MAX, UNKNOWN_FIELDS_MAX, UNKNOWN_VALUES_MAX
from clockwork.wire.forms import Anything, Either, Facts, Flag, Integer, ListOf, Real, Record, Row, Text
from clockwork.wire.telling import tell

cdef uint32_t TOLD_BYTES = 400  # the bytes of an unfit text that are read for an error


class Odd(ValueError):
    """A header that differs from its declaration. The sentence names the field, its bounds and the value."""


class OddKind(Odd):
    """A header of a kind of message that is unknown in its direction."""


cdef enum:
    F_INTEGER, F_REAL, F_TEXT, F_FLAG, F_LIST, F_ROW, F_RECORD, F_EITHER, F_ANYTHING, F_FACTS


cdef dict NUMBERS = {
    Integer: F_INTEGER, Real: F_REAL, Text: F_TEXT, Flag: F_FLAG, ListOf: F_LIST, Row: F_ROW, Record: F_RECORD,
    Either: F_EITHER, Anything: F_ANYTHING, Facts: F_FACTS,
}


cdef class _Form:
    """A form of forms.py, compiled. The fields that count depend on its number."""

    cdef int number
    cdef int64_t least, most
    cdef double real_least, real_most
    cdef uint32_t size_max   # bound: of a text in bytes, of a list in elements, of a free value in values
    cdef uint32_t depth_max
    # forms of the parts: of a list's element; of a record's fields; of an Either's integer and text
    cdef tuple parts
    cdef tuple names         # names of a record's fields
    cdef dict places         # for a record: place of each name
    cdef tuple required
    cdef bint is_open        # whether unknown keys of a record are skipped
    cdef str text            # the form in an error's sentence

    def __init__(self, form):
        self.number = NUMBERS[type(form)]
        self.text = str(form)
        self.parts = self.names = ()
        if self.number == F_INTEGER:
            self.least, self.most = form.least, form.most
        elif self.number == F_REAL:
            self.real_least, self.real_most = form.least, form.most
        elif self.number == F_TEXT:
            self.size_max = form.bytes_max
        elif self.number == F_LIST:
            self.parts, self.size_max = (_Form(form.element),), form.count_max
        elif self.number == F_ROW or self.number == F_RECORD:
            self.names = tuple(form.fields)
            self.parts = tuple([_Form(field) for field in form.fields.values()])
            if self.number == F_RECORD:
                self.places = {name: place for place, name in enumerate(self.names)}
                self.is_open = form.is_open
                self.required = tuple([name for name in self.names if name not in form.optional])
        elif self.number == F_EITHER:
            self.parts = (_Form(form.integer), _Form(form.text))
        elif self.number == F_ANYTHING or self.number == F_FACTS:
            self.depth_max, self.size_max = form.depth_max, form.count_max


cdef int UNKNOWN_MAX = UNKNOWN_FIELDS_MAX
cdef _Form UNKNOWN = _Form(Anything(UNKNOWN_DEPTH_MAX, UNKNOWN_VALUES_MAX))


cdef class Layout:
    """The layout of a message kind's header. fields: the form of each, in order. bytes_max: of the header.

    defaults: of the last fields, which an earlier release leaves out. further_max: fields of a later release
    behind them that are skipped."""

    cdef object kind
    cdef tuple names
    cdef tuple forms
    cdef tuple defaults
    cdef size_t bytes_max
    cdef size_t further_max

    def __init__(self, kind, fields, bytes_max, defaults=(), further_max=0):
        self.defaults = tuple(defaults)
        self.further_max = further_max
        self.kind = kind
        self.names = tuple([f"{kind.__name__}.{name}" for name in fields])
        self.forms = tuple([_Form(field) for field in fields.values()])
        self.bytes_max = bytes_max


def read(header, dict layouts):
    """The message in a header (bytes-like), of one of the kinds that ``layouts`` has by tag. Raises Odd."""
    cdef Py_buffer buffer
    PyObject_GetBuffer(header, &buffer, PyBUF_SIMPLE)
    try:
        return _read_message(<const char *>buffer.buf, buffer.len, layouts)
    finally:
        PyBuffer_Release(&buffer)


def complaint(header, Layout layout, str kind, uint32_t count, path, size_t offset):
    """read()'s sentence about a header whose first flaw another reader has found; see codec.HeaderFlaw."""
    cdef bytes data = bytes(header)
    cdef Reader *reader
    cdef Head head
    if kind == "too_large":
        return _too_large(layout, len(data))
    if kind == "fields":
        return _other_fields(layout, count)
    if kind == "longer":
        return _longer(layout)
    cdef str text = layout.names[path[0]]
    cdef _Form form = <_Form>layout.forms[path[0]]
    for number in path[1:]:
        if form.number == F_LIST:
            text, form = f"{text}[{number}]", <_Form>form.parts[0]
        else:
            text, form = f"{text}.{form.names[number]}", <_Form>form.parts[number]
    if kind == "cut_off":
        return _cut_off(text)
    if kind == "not_utf8":
        return _not_utf8(text)
    assert kind == "form" and offset < <size_t>len(data), (kind, offset)
    reader = new Reader(<const char *>data + offset, len(data) - offset)
    try:
        reader.head(head)
        return _other(text, form, _tell(reader, head))
    finally:
        del reader


cdef str _too_large(Layout layout, size_t size):
    return f"a {layout.kind.__name__} of {size} bytes is larger than {layout.bytes_max}"


cdef str _other_fields(Layout layout, uint32_t count):
    return f"{layout.kind.__name__} has {len(layout.forms)} fields, got {count}"


cdef str _longer(Layout layout):
    return f"{layout.kind.__name__} ends before its header does"


cdef str _cut_off(str path):
    return f"{path} is no msgpack, or cut off"


cdef str _not_utf8(str path):
    return f"{path} is a text that is not UTF-8"


cdef str _other(str path, _Form form, str told):
    return f"{path} is {form.text}, got {told}"


cdef object _read_message(const char *data, Py_ssize_t size, dict layouts):
    cdef Reader *reader = new Reader(data, size)
    try:
        return _read_fields(reader, size, layouts)
    finally:
        del reader


cdef object _read_fields(Reader *reader, size_t size, dict layouts):
    cdef Head head
    cdef uint32_t count, place
    cdef Place where
    cdef list fields
    if not reader.head(head) or head.kind != ARRAY or head.size == 0:
        raise Odd("a header is an array that begins with a message tag")
    count = head.size - 1
    if not reader.head(head) or head.kind != INTEGER:
        raise Odd("a header is an array that begins with a message tag")
    found = layouts.get(head.integer)
    if found is None:
        raise OddKind(f"message tag {head.integer} is unknown in this direction")
    cdef Layout layout = <Layout>found
    if size > layout.bytes_max:
        raise Odd(_too_large(layout, size))
    cdef size_t known = len(layout.forms), missing = 0
    if count > known + layout.further_max or count + <size_t>len(layout.defaults) < known:
        raise Odd(_other_fields(layout, count))
    fields = []
    where.outer = NULL
    for place in range(min(count, known)):
        where.name = <void *><PyObject *>layout.names[place]
        fields.append(_read(reader, <_Form>layout.forms[place], &where))
    if count < known:
        missing = known - count
        fields += layout.defaults[len(layout.defaults) - <Py_ssize_t>missing:]
    for place in range(known, count):
        _skip(reader, layout.kind.__name__)
    if not reader.done():
        raise Odd(_longer(layout))
    return tuple.__new__(layout.kind, fields)


cdef object _read(Reader *reader, _Form form, const Place *where):
    cdef Head head
    cdef Place inner
    cdef uint32_t left
    if not reader.head(head):
        raise Odd(_cut_off(_path(where)))
    cdef int number = form.number
    if number == F_EITHER:
        form = <_Form>form.parts[1 if head.kind == TEXT else 0]
        number = form.number
    if number == F_INTEGER:
        if head.kind == INTEGER and form.least <= head.integer <= form.most:
            return head.integer
    elif number == F_TEXT:
        if head.kind == TEXT and head.size <= form.size_max:
            return _text(reader, head, where)
    elif number == F_LIST:
        if head.kind == ARRAY and head.size <= form.size_max:
            return _read_list(reader, <_Form>form.parts[0], head.size, where)
    elif number == F_ROW:
        if head.kind == ARRAY and head.size == <size_t>len(form.parts):
            return _read_row(reader, form, where)
    elif number == F_FLAG:
        if head.kind == FLAG:
            return head.integer != 0
    elif number == F_REAL:
        if head.kind == REAL and form.real_least <= head.real <= form.real_most:
            return head.real
        if head.kind == INTEGER and form.real_least <= head.integer <= form.real_most:
            return head.integer
    elif number == F_RECORD:
        if head.kind == MAP and head.size <= <size_t>len(form.parts) + <size_t>(UNKNOWN_MAX if form.is_open else 0):
            return _read_record(reader, form, head.size, where)
    elif number == F_ANYTHING or head.kind == MAP:
        left = form.size_max
        return _read_free(reader, head, form.depth_max, &left, form, where)
    raise Odd(_other(_path(where), form, _tell(reader, head)))


cdef list _read_list(Reader *reader, _Form element, uint32_t count, const Place *where):
    cdef Place inner
    cdef uint32_t place
    cdef list found = []
    inner.outer, inner.name = where, NULL
    for place in range(count):
        inner.number = place
        found.append(_read(reader, element, &inner))
    return found


cdef list _read_row(Reader *reader, _Form form, const Place *where):
    cdef Place inner
    cdef Py_ssize_t place
    cdef list found = []
    inner.outer = where
    for place in range(len(form.parts)):
        inner.name = <void *><PyObject *>form.names[place]
        found.append(_read(reader, <_Form>form.parts[place], &inner))
    return found


cdef dict _read_record(Reader *reader, _Form form, uint32_t count, const Place *where):
    cdef Place inner
    cdef Head head
    cdef uint32_t pair
    cdef dict found = {}
    inner.outer = where
    for pair in range(count):
        if not reader.head(head):
            raise Odd(_cut_off(_path(where)))
        key = _text(reader, head, where) if head.kind == TEXT and head.size <= TOLD_BYTES else None
        place = form.places.get(key)
        if place is None and key is not None and form.is_open:
            _skip(reader, _path(where))
            continue
        if place is None or key in found:
            what = tell(key) if key is not None else _tell(reader, head)
            raise Odd(f"{_path(where)} is {form.text}, each once, got the key {what}")
        name = form.names[place]
        inner.name = <void *><PyObject *>name
        found[name] = _read(reader, <_Form>form.parts[place], &inner)
    for name in form.required:
        if name not in found:
            raise Odd(f"{_path(where)} is {form.text}, got none of the key {name}")
    return found


cdef int _skip(Reader *reader, str text) except -1:
    """Skip a value of a later release, within its bounds."""
    cdef Head head
    cdef Place where
    cdef uint32_t left = UNKNOWN.size_max
    name = f"{text}: an unknown value"
    where.outer = NULL
    where.name = <void *><PyObject *>name
    if not reader.head(head):
        raise Odd(_cut_off(name))
    _read_free(reader, head, UNKNOWN.depth_max, &left, UNKNOWN, &where)
    return 0


cdef object _read_free(Reader *reader, Head &head, uint32_t depth, uint32_t *left, _Form form, const Place *where):
    """Read any value, within the rest of its bounds. depth: further levels of containers."""
    cdef Head item
    cdef uint32_t place
    cdef list elements
    cdef dict pairs
    if left[0] == 0:
        raise Odd(f"{_path(where)} is {form.text}, got more")
    left[0] -= 1
    if head.kind == INTEGER:
        return head.integer
    if head.kind == TEXT:
        return _text(reader, head, where)
    if head.kind == REAL:
        return head.real
    if head.kind == FLAG:
        return head.integer != 0
    if head.kind == NIL:
        return None
    if head.kind == NATURAL:
        return head.natural
    if head.kind == BYTES:
        return _bytes(reader, head.size)
    if depth == 0:
        raise Odd(f"{_path(where)} is {form.text}, got it nested deeper")
    if head.kind == ARRAY:
        elements = []
        for place in range(head.size):
            if not reader.head(item):
                raise Odd(_cut_off(_path(where)))
            elements.append(_read_free(reader, item, depth - 1, left, form, where))
        return elements
    pairs = {}
    for place in range(head.size):
        if not reader.head(item) or item.kind != TEXT:
            raise Odd(f"{_path(where)} is {form.text}, got a key that is no text")
        key = _text(reader, item, where)
        if not reader.head(item):
            raise Odd(_cut_off(_path(where)))
        pairs[key] = _read_free(reader, item, depth - 1, left, form, where)
    return pairs


cdef str _text(Reader *reader, Head &head, const Place *where):
    cdef string_view found = reader.take(head.size)
    try:
        return PyUnicode_DecodeUTF8(<char *>found.data(), found.size(), NULL)
    except UnicodeDecodeError:
        raise Odd(_not_utf8(_path(where))) from None


cdef bytes _bytes(Reader *reader, uint32_t size):
    cdef string_view found = reader.take(size)
    return PyBytes_FromStringAndSize(found.data(), found.size())


cdef str _path(const Place *where):
    """The path of a place, for example parts[3][0].shape."""
    parts = []
    while where != NULL:
        if where.name == NULL:
            parts.append(f"[{where.number}]")
        else:
            parts.append("." + <str><PyObject *>where.name)
        where = where.outer
    return "".join(reversed(parts))[1:]


cdef str _tell(Reader *reader, Head &head):
    """An unexpected value for an error's sentence; of a text the beginning."""
    if head.kind == TEXT or head.kind == BYTES:
        found = _bytes(reader, min(head.size, TOLD_BYTES))
        told = tell(found.decode(errors="replace") if head.kind == TEXT else found)
        return told if head.size <= TOLD_BYTES else f"{told} ({head.size} bytes)"
    if head.kind == ARRAY:
        return f"a list of {head.size}"
    if head.kind == MAP:
        return f"a map of {head.size}"
    return tell(
        None if head.kind == NIL else head.integer != 0 if head.kind == FLAG else head.integer if head.kind == INTEGER
        else head.natural if head.kind == NATURAL else head.real
    )
