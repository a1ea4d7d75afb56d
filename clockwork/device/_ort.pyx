# cython: language_level=3
"""ONNX Runtime through its C API, without the GIL and without importing ``onnxruntime``.

A process has one runtime, made at first use and never released: its environment cannot be made twice
with different settings, and threads of the library may outlive any device.
"""

import glob
import importlib.util
import logging
import os
import threading

from libc.stdlib cimport calloc, free
from libc.string cimport memset, strdup
from libc.stdio cimport snprintf

from clockwork.config.device import workspace_bytes_max
from clockwork.errors import ClockworkError, ConfigError

# y = x * w, x: float[n, 2], w: float[2]; made with onnx.helper, opset 13.
_KNOWN_MODEL = (
    b'\x08\x07:P\n\x0e\n\x01x\n\x01w\x12\x01y"\x03Mul\x12\x01gZ\x14\n\x01x\x12\x0f\n\r\x08\x01\x12\t\n\x03\x12'
    b"\x01n\n\x02\x08\x02Z\x0f\n\x01w\x12\n\n\x08\x08\x01\x12\x04\n\x02\x08\x02b\x14\n\x01y\x12\x0f\n\r\x08\x01"
    b"\x12\t\n\x03\x12\x01n\n\x02\x08\x02B\x04\n\x00\x10\r"
)

log = logging.getLogger("clockwork.device")

_lock = threading.Lock()
_runtime = None


cpdef Runtime runtime():
    """Return the process's runtime. Raises ConfigError if the library is missing or of another layout."""
    global _runtime
    with _lock:
        if _runtime is None:
            _runtime = Runtime(_find_library())
        return _runtime


def without_source(str message):
    """Remove the source locations from a message of ONNX Runtime.

    A location has a path, a line and a function's signature, and may be longer than the cause that follows
    it."""
    cdef bytes whole = message.encode()
    cdef bytearray said = bytearray(len(whole) + 1)
    ort_say(whole, <char*>said, len(said))
    return said[:said.index(0)].decode()


def _find_library():
    """Return the path of the onnxruntime package's shared library without importing the package."""
    spec = importlib.util.find_spec("onnxruntime")
    if spec is None or not spec.submodule_search_locations:
        raise ConfigError("the package onnxruntime is not installed")
    places = [os.path.join(place, "capi") for place in spec.submodule_search_locations]
    found = sorted(path for place in places for path in glob.glob(os.path.join(place, "libonnxruntime.so.*")))
    if not found:
        raise ConfigError(f"no libonnxruntime.so.* in {', '.join(places)}; the wheels from 1.22 on have it")
    return found[-1]


cdef void* symbol_of(str path, const char* symbol, str lacking) except NULL:
    """Return a function of a library, which is never closed. Raises ConfigError if the library lacks it."""
    cdef bytes name = os.fsencode(path)
    cdef void* library = dlopen(name, RTLD_NOW | RTLD_LOCAL)
    if library == NULL:
        raise ConfigError(f"cannot load {path}: {dlerror().decode(errors='replace')}")
    cdef void* found = dlsym(library, symbol)
    if found == NULL:
        raise ConfigError(f"{path} {lacking}")
    return found


def count_heap(bytes library):
    """Charge executions for the heap that a loaded library takes; see csrc/device/heap.h.

    Returns whether that is possible."""
    return c_count_heap(library)


cdef class Runtime:
    """The library's function table, its environment, and the allocator that all sessions share."""

    def __cinit__(self, str path):
        cdef void* symbol = symbol_of(path, b"OrtGetApiBase", "is not ONNX Runtime: it has no OrtGetApiBase")
        cdef const OrtApiBase* base = (<const OrtApiBase* (*)() noexcept nogil>symbol)()
        self.path = path
        self.base = base
        self.version = base.GetVersionString().decode()
        self.api = base.GetApi(ORT_API_VERSION)
        if self.api == NULL:
            raise ConfigError(f"ONNX Runtime {self.version} ({path}) has no version {ORT_API_VERSION} of its API")
        # Each run's status has the message, which the library's log would only repeat.
        self.check(ort_create_env(self.api, ORT_LOG_FATAL, b"clockwork", &self.env))
        self.check(ort_create_cpu_memory_info(self.api, ORT_DEVICE_ALLOCATOR, ORT_MEMORY_DEFAULT, &self.memory))
        self.check(ort_default_allocator(self.api, &self.strings))
        self.workspace = new Workspace(self.memory, workspace_bytes_max())
        self.check(ort_register_allocator(self.api, self.env, self.workspace))
        if not count_heap(b"/libstdc++.so"):
            raise ConfigError("the heap of executions cannot be counted: this process has no libstdc++ that calls malloc()")
        if not counts_operator_new():
            log.warning("the heap of executions is not counted, so no bound holds for it: operator new is not libstdc++'s in "
                        "this process (LD_PRELOAD=%s)", os.environ.get("LD_PRELOAD", ""))
        self._verify()

    cdef int check(self, OrtStatus* status) except -1:
        cdef char text[TEXT_BYTES]
        if ort_failed(self.api, status, text, TEXT_BYTES):
            raise ClockworkError(f"ONNX Runtime {self.version}: {text.decode(errors='replace')}")
        return 0

    cdef OrtSessionOptions* make_options(self, int threads, tuple libraries) except NULL:
        """Make the options of a session: no graph optimisation, the shared workspace, `threads` threads.

        libraries: paths of the libraries of operators."""
        cdef OrtSessionOptions* options = NULL
        self.check(ort_create_session_options(self.api, &options))
        try:
            self.check(ort_set_optimization(self.api, options, ORT_OPTIMIZE_NOTHING))
            self.check(ort_set_intra_threads(self.api, options, threads))
            self.check(ort_set_inter_threads(self.api, options, 1))
            # A session traces a memory pattern in its first run of a shape, which would then differ from
            # later runs.
            self.check(ort_disable_memory_pattern(self.api, options))
            self.check(ort_add_config(self.api, options, b"session.use_env_allocators", b"1"))
            # Idle threads of a session must not take the core from another session's threads.
            self.check(ort_add_config(self.api, options, b"session.force_spinning_stop", b"1"))
            for path in libraries:
                self.add_operators(options, path)
        except ClockworkError:
            ort_release_session_options(self.api, options)
            raise
        return options

    cdef int add_operators(self, OrtSessionOptions* options, str path) except -1:
        """Make the operators of a library known to sessions."""
        cdef void* symbol = symbol_of(
            path, b"RegisterCustomOps", "has no operators for ONNX Runtime: it lacks RegisterCustomOps"
        )
        self.check((<RegisterOperators>symbol)(options, self.base))
        return 0

    def _verify(self):
        """Check the table's layout (csrc/device/ort_api.h) by running a known model. Raises ConfigError."""
        cdef char text[TEXT_BYTES]
        cdef CpuSession session
        cdef float x[4]
        cdef float w[2]
        cdef int64_t x_dims[2]
        cdef int64_t w_dims[1]
        cdef int64_t y_dims[2]
        cdef OrtValue* values[2]
        cdef OrtValue* output = NULL
        cdef OrtTensorInfo* info = NULL
        cdef size_t rank = 0
        cdef int dtype = 0
        cdef void* y = NULL
        cdef bytes model = _KNOWN_MODEL
        cdef OrtSessionOptions* options = self.make_options(1, ())
        x[:] = [1.0, 2.0, 3.0, 4.0]
        w[:] = [10.0, 100.0]
        x_dims[:] = [2, 2]
        w_dims[0] = 2
        y_dims[:] = [0, 0]
        values[0] = values[1] = NULL
        opened = self.open(options, NULL, <const char*>model, len(model), &session, text)
        ort_release_session_options(self.api, options)
        if not opened:
            raise ConfigError(f"ONNX Runtime {self.version} ({self.path}) fails its check: {text.decode(errors='replace')}")
        try:
            names = [session.input_names[0], session.input_names[1], session.output_names[0]]
            self.check(ort_wrap_tensor(self.api, self.memory, x, sizeof(x), x_dims, 2, 1, &values[0]))
            self.check(ort_wrap_tensor(self.api, self.memory, w, sizeof(w), w_dims, 1, 1, &values[1]))
            self.check(ort_run(self.api, session.handle, NULL, <const char* const*>session.input_names,
                               <const OrtValue* const*>values, 2, <const char* const*>session.output_names, 1,
                               &output))
            self.check(ort_tensor_info(self.api, output, &info))
            self.check(ort_tensor_dtype(self.api, info, &dtype))
            self.check(ort_tensor_rank(self.api, info, &rank))
            if rank == 2:
                self.check(ort_tensor_dims(self.api, info, y_dims, 2))
            self.check(ort_tensor_data(self.api, output, &y))
            found = [names, dtype, y_dims[0], y_dims[1], [(<float*>y)[i] for i in range(4)] if rank == 2 else []]
        finally:
            ort_release_tensor_info(self.api, info)
            ort_release_value(self.api, output)
            ort_release_value(self.api, values[0])
            ort_release_value(self.api, values[1])
            self.close(&session)
        expected = [[b"x", b"w", b"y"], 1, 2, 2, [10.0, 200.0, 30.0, 400.0]]
        if found != expected:
            raise ConfigError(
                f"ONNX Runtime {self.version} ({self.path}) fails its check: got {found}, expected {expected}")

    cdef bint open(self, const OrtSessionOptions* options, const char* path, const void* model, size_t bytes,
                   CpuSession* session, char* text) noexcept nogil:
        """Create a session from a file, or from bytes if path is NULL. False, with a message, on failure."""
        cdef const OrtApi* api = self.api
        cdef OrtStatus* status
        memset(session, 0, sizeof(CpuSession))
        if path != NULL:
            status = ort_create_session(api, self.env, path, options, &session.handle)
        else:
            status = ort_create_session_from_array(api, self.env, model, bytes, options, &session.handle)
        if ort_failed(api, status, text, TEXT_BYTES):
            return False
        if self._describe(session, text):
            return True
        self.close(session)
        return False

    cdef bint _describe(self, CpuSession* session, char* text) noexcept nogil:
        cdef const OrtApi* api = self.api
        cdef size_t index
        cdef char* name = NULL
        if (ort_failed(api, ort_input_count(api, session.handle, &session.input_count), text, TEXT_BYTES)
                or ort_failed(api, ort_output_count(api, session.handle, &session.output_count), text, TEXT_BYTES)):
            return False
        # One element more, so that a count of zero needs no special case.
        session.input_names = <char**>calloc(session.input_count + 1, sizeof(char*))
        session.output_names = <char**>calloc(session.output_count + 1, sizeof(char*))
        session.input_dtypes = <int*>calloc(session.input_count + 1, sizeof(int))
        if session.input_names == NULL or session.output_names == NULL or session.input_dtypes == NULL:
            snprintf(text, TEXT_BYTES, "out of memory")
            return False
        for index in range(session.input_count):
            if ort_failed(api, ort_input_name(api, session.handle, index, self.strings, &name), text, TEXT_BYTES):
                return False
            session.input_names[index] = strdup(name)
            ort_allocator_free(api, self.strings, name)
            if not self._tensor_type(session, index, True, &session.input_dtypes[index], text):
                return False
        for index in range(session.output_count):
            if ort_failed(api, ort_output_name(api, session.handle, index, self.strings, &name), text, TEXT_BYTES):
                return False
            session.output_names[index] = strdup(name)
            ort_allocator_free(api, self.strings, name)
            if not self._tensor_type(session, index, False, NULL, text):
                return False
        return True

    cdef bint _tensor_type(self, CpuSession* session, size_t index, bint is_input, int* dtype,
                           char* text) noexcept nogil:
        """Read whether an input or output is a tensor, and its type."""
        cdef const OrtApi* api = self.api
        cdef OrtTypeInfo* type_info = NULL
        cdef const OrtTensorInfo* tensor = NULL
        cdef int kind = 0
        cdef bint failed
        cdef OrtStatus* status
        if is_input:
            status = ort_input_type(api, session.handle, index, &type_info)
        else:
            status = ort_output_type(api, session.handle, index, &type_info)
        if ort_failed(api, status, text, TEXT_BYTES):
            return False
        failed = ort_failed(api, ort_type_kind(api, type_info, &kind), text, TEXT_BYTES)
        if not failed and kind != ORT_TYPE_TENSOR:
            if is_input:
                snprintf(text, TEXT_BYTES, "input '%.200s' is not a tensor", session.input_names[index])
            else:
                snprintf(text, TEXT_BYTES, "output '%.200s' is not a tensor", session.output_names[index])
            failed = True
        if not failed and dtype != NULL:
            failed = (ort_failed(api, ort_type_tensor(api, type_info, &tensor), text, TEXT_BYTES)
                      or ort_failed(api, ort_tensor_dtype(api, tensor, dtype), text, TEXT_BYTES))
            dtype[0] = onnx_dtype_of_ort(dtype[0])
        ort_release_type_info(api, type_info)
        return not failed

    cdef void close(self, CpuSession* session) noexcept nogil:
        """Release a session and its names. Harmless on a zeroed or closed one."""
        cdef size_t index
        ort_release_session(self.api, session.handle)
        if session.input_names != NULL:
            for index in range(session.input_count):
                free(session.input_names[index])
        if session.output_names != NULL:
            for index in range(session.output_count):
                free(session.output_names[index])
        free(session.input_names)
        free(session.output_names)
        free(session.input_dtypes)
        memset(session, 0, sizeof(CpuSession))

    cdef size_t workspace_bytes(self) noexcept nogil:
        return self.workspace.reserved_bytes()

    cdef void trim(self) noexcept nogil:
        """Return the workspace's unused memory to the kernel."""
        self.workspace.trim()

    cdef void charge(self, MemoryAccount* account) noexcept nogil:
        """Charge this thread's allocations to the account from now on; NULL: to none."""
        charge(account)
