# distutils: language = c++
"""Conversions for the exchange: declarations and bounds to C++; flaws, shapes and counts to Python."""

from libc.stdint cimport int64_t, uint32_t, uint64_t
from libcpp.memory cimport make_shared
from libcpp.string cimport string
from libcpp.vector cimport vector

from clockwork.wire._headers cimport C_HEADER_FINE, C_HEADER_FLAW_COUNT, C_HEADER_FLAW_NAMES
from clockwork.wire._messages cimport C_STATUS_COUNT

from clockwork.controller.ports.flaws import Flaw
from clockwork.system.limits import memory_bytes
from clockwork.wire.messages import Status
from clockwork.formats.prepared import UNKNOWN_RANK
from clockwork.wire.tensors import DTYPES, STRING
from clockwork.wire.codec import HeaderFlaw

FLAW_NAMES = tuple([word_of(C_FLAW_NAMES()[place]) for place in range(C_FLAW_COUNT())])
HEADER_FLAW_NAMES = tuple([word_of(C_HEADER_FLAW_NAMES()[place]) for place in range(C_HEADER_FLAW_COUNT())])
CUT_REASONS = ("asked", "crowd", "silent", "received", "received_all", "unread", "unread_all", "memory")


cdef string_view view_of(bytes text):
    return string_view(<const char *>text, len(text))


cdef str word_of(string_view text):
    return text.data()[:text.size()].decode()


cdef class ModelInterface:
    """A model's inputs and outputs, as PreparedModel declares them; models of a program may share this."""

    def __init__(self, inputs, outputs, batches, verified, lengths={}, defaults={}):
        """inputs, outputs: of TensorSpec. batches, lengths: as PreparedModel's. defaults: of optional inputs.

        verified: the outputs' shapes are those that the model returned, and every answer is checked against
        them; else it is checked against their dtypes alone.
        """
        self._model = make_shared[CModelInterface]()
        cdef CModelInterface *model = self._model.get()
        cdef CInputSpec taken
        cdef COutputSpec given
        symbols = {}
        for spec in inputs:
            taken = CInputSpec()
            taken.name = spec.name.encode()
            taken.declared = ("[" + ", ".join([str(dimension or "?") for dimension in spec.shape]) + "]").encode()
            taken.dtype = spec.dtype
            taken.bits = bits_of(spec.dtype)
            taken.any_rank = spec.shape == UNKNOWN_RANK
            for dimension in spec.shape if not taken.any_rank else ():
                taken.dims.push_back(dimension_of(dimension))
                taken.limits.push_back(lengths.get(dimension, C_EXACT))
                taken.symbols.push_back(-1)
                if type(dimension) is str and dimension:
                    taken.symbols[taken.symbols.size() - 1] = symbols.setdefault(dimension, len(symbols))
            if spec.name in defaults:
                taken.optional, taken.value = True, defaults[spec.name].data
            model.inputs.push_back(taken)
        model.index_inputs()
        for spec in outputs:
            model.outputs.push_back(spec.name.encode())
            given = COutputSpec()
            given.declared = str(list(spec.shape)).encode()
            given.dtype = spec.dtype
            given.bits = bits_of(spec.dtype)
            given.any_rank = not verified or spec.shape == UNKNOWN_RANK
            for dimension in spec.shape if not given.any_rank else ():
                given.dims.push_back(dimension_of(dimension))
            model.given.push_back(given)
        for symbol in symbols:
            model.symbols.push_back(symbol.encode())
        model.batches = batches


cdef int64_t bits_of(dtype) except? -2:
    """The bits of an element of a declared dtype, as the exchange encodes them."""
    kind = DTYPES.get(dtype)
    if kind is None:
        return C_BITS_UNKNOWN
    return C_BITS_OF_STRING if dtype == STRING else kind.bits


cdef int64_t dimension_of(dimension) except? -3:
    """A declared dimension, as the exchange encodes it."""
    if type(dimension) is str:
        return C_DIMENSION_ANY
    return dimension if 0 <= dimension < 1 << 63 else C_DIMENSION_NONE


cdef object flaw_of(const CWrong &wrong):
    """The flaw that the exchange has found, for flaws.py."""
    cdef const CFlaw *flaw = &wrong.flaw
    cdef const CHeaderFlaw *header = &wrong.header
    cdef const CModelInterface *model = wrong.interface.get()
    cdef const CTensorRef *ref
    cdef uint32_t place
    if header.kind != C_HEADER_FINE:
        path = tuple([header.path()[place] for place in range(header.depth)])
        kind = HEADER_FLAW_NAMES[<int>header.kind]
        return Flaw("malformed", wrong.id, header=HeaderFlaw(header.tag, kind, header.count, path, header.offset))
    said = {"expected": flaw.expected, "got": flaw.got, "bytes": flaw.bytes}
    if wrong.tensors != NULL and flaw.ref < wrong.tensors.size():
        ref = &wrong.tensors.at(flaw.ref)
        said["name"] = word_of(ref.name)
        said["dtype"], said["frame"] = ref.dtype, ref.frame
        said["shape"] = tuple([wrong.dims.at(ref.shape.first + place) for place in range(ref.shape.count)])
    if wrong.is_request and model != NULL:
        said["inputs"] = tuple([model.inputs.at(place).name.decode() for place in range(<uint32_t>model.inputs.size())])
        if flaw.tensor < model.inputs.size():
            said["tensor"], said["declared"] = model.inputs.at(flaw.tensor).name.decode(), model.inputs.at(flaw.tensor).declared.decode()
        if flaw.code == C_FLAW_SYMBOL:
            said["symbol"] = model.symbols.at(flaw.symbol).decode()
            said["other"] = model.inputs.at(flaw.other).name.decode()
    elif model != NULL and flaw.tensor < model.given.size():
        said["tensor"], said["declared"] = model.outputs.at(flaw.tensor).decode(), model.given.at(flaw.tensor).declared.decode()
    return Flaw(FLAW_NAMES[<int>flaw.code], wrong.id, wrong.model_id, **said)


cdef tuple shapes_of(const vector[int64_t] &shape):
    """AcceptedRequest::shape as a shape key: the dimensions of each input."""
    cdef size_t place = 0, axis
    cdef list found = []
    while place < shape.size():
        found.append(tuple([shape.at(place + 1 + axis) for axis in range(<size_t>shape.at(place))]))
        place += 1 + <size_t>shape.at(place)
    return tuple(found)


cdef CSentences sentences_of(templates, reasons) except *:
    cdef vector[string] texts, names, words
    by_number = {status.value: status.name for status in Status}
    for text in templates:
        texts.push_back(text.encode())
    for number in range(C_STATUS_COUNT):
        names.push_back(by_number.get(number, "").encode())
    for text in reasons:
        words.push_back(text.encode())
    return CSentences(texts, names, words)


cdef CConnectionBounds connection_bounds(bounds) except *:
    cdef CConnectionBounds found
    found.ungreeted = bounds.ungreeted
    found.greeted = bounds.greeted
    found.hello_ns = bounds.hello_ns
    found.idle_ns = bounds.idle_ns
    found.hello_bytes = bounds.hello_bytes
    found.hello_bytes_all = bounds.hello_bytes_all
    found.received_bytes = bounds.received_bytes
    found.received_bytes_all = bounds.received_bytes_all
    found.unread_bytes = bounds.unread_bytes
    found.unread_bytes_all = bounds.unread_bytes_all
    found.unread_ns = bounds.unread_ns
    found.memory_bytes = int(bounds.memory_share * memory_bytes())
    return found


cdef dict describe_connections(const CConnections &connections):
    cdef size_t place
    return {
        "open": connections.size(),
        "ungreeted": connections.ungreeted(),
        "greeted": connections.greeted(),
        "unread_bytes": connections.unread_bytes(),
        "received_bytes": connections.behind_bytes(),
        "cut": {
            reason: connections.cut_counts()[place] for place, reason in enumerate(CUT_REASONS)
            if connections.cut_counts()[place]
        },
    }


cdef dict durations_of(const CDurations &durations):
    """Durations as the query "metrics" has them: the counts accumulate from bucket to bucket."""
    cdef uint64_t seen = 0
    cdef size_t place
    cdef list buckets = []
    for place in range(durations.size()):
        seen += durations.data()[place]
        buckets.append(seen)
    return {"count": seen, "sum_ns": durations.sum_ns, "buckets": buckets}
