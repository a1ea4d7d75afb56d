# cython: language_level=3, cdivision=True
"""CUDA's driver as a table of functions, and its cold half for Python: devices, contexts, memory and modules.

No action calls this module. Every call releases the GIL, because a driver may take long.
"""

import os

from cpython.buffer cimport PyBUF_SIMPLE, PyBuffer_FillInfo, PyBuffer_Release, PyObject_GetBuffer

from clockwork.errors import ClockworkError


class CudaError(ClockworkError):
    """A failed call of the driver. The text names the call and the driver's name of the error.

    code: the error's number."""

    def __init__(self, text, code=0):
        super().__init__(text)
        self.code = code


OUT_OF_MEMORY = CUDA_ERROR_OUT_OF_MEMORY

cdef enum:
    WRITES_WORDS = 12000


# Handles made by a table, or by another library (CuPy) and given by address. No handle frees its resource.

cdef class CudaContext:
    def __cinit__(self, size_t address=0):
        self.handle = <CUcontext>address

    @property
    def address(self):
        return <size_t>self.handle


cdef class CudaModule:
    pass


cdef class CudaKernel:
    """A kernel, which is valid as long as its module."""

    def __cinit__(self, size_t address=0):
        self.handle = <CUfunction>address

    @property
    def address(self):
        return <size_t>self.handle


cdef class DeviceBytes:
    """Device memory."""

    def __cinit__(self, CUdeviceptr address):
        self.address = address


cdef class PinnedBytes:
    """Pinned memory of the host, usable for copies to every device. A writable buffer."""

    def __cinit__(self, size_t address, size_t size):
        self.data = <char*>address
        self.size = size

    @property
    def address(self):
        return <size_t>self.data

    def __getbuffer__(self, Py_buffer* buffer, int flags):
        PyBuffer_FillInfo(buffer, self, self.data, self.size, False, flags)


cdef class DriverTable:
    """The driver, opened from a library of this name or path. Raises CudaError, naming what is missing."""

    def __cinit__(self, str path):
        cdef char text[TEXT_BYTES]
        cdef bytes name = os.fsencode(path)
        cdef const char* c_name = name
        cdef bint opened
        cdef CUresult result
        with nogil:
            opened = self.api.open(c_name, text, TEXT_BYTES)
        if not opened:
            raise CudaError((<bytes>text).decode(errors="replace"))
        self.path = path
        with nogil:
            result = self.api.init(0)
        self.check(result, b"cuInit")
        self.check(self.api.driver_version(&self.version), b"cuDriverGetVersion")

    @property
    def writes_words(self):
        """Whether streams can write words of memory. Before CUDA 12 a driver may have the function and refuse
        it."""
        return self.version >= WRITES_WORDS and self.api.write_word != NULL

    cdef int check(self, CUresult result, const char* call) except -1:
        cdef char text[TEXT_BYTES]
        if self.api.failed(result, call, text, TEXT_BYTES):
            raise CudaError((<bytes>text).decode(errors="replace"), result)
        return 0

    @property
    def has_graphs(self):
        """Whether the driver has the functions that record and launch graphs."""
        return self.api.has_graphs()

    def device_count(self):
        cdef int count = 0
        self.check(self.api.device_count(&count), b"cuDeviceGetCount")
        return count

    def describe(self, int ordinal):
        """Return a device's (name, UUID, PCI address, capability, memory, shared memory).

        The UUID has 16 bytes, the compute capability is times ten, memory and a block's most shared memory
        are in bytes."""
        cdef CUdevice device = 0
        cdef char name[256]
        cdef char bus[32]
        cdef CUuuid uuid
        cdef size_t size = 0
        self.check(self.api.device(&device, ordinal), b"cuDeviceGet")
        self.check(self.api.device_name(name, sizeof(name), device), b"cuDeviceGetName")
        self.check(self.api.device_uuid(&uuid, device), b"cuDeviceGetUuid")
        self.check(self.api.device_bus(bus, sizeof(bus), device), b"cuDeviceGetPCIBusId")
        major = self.attribute_of(device, CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR)
        minor = self.attribute_of(device, CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR)
        shared = self.attribute_of(device, CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN)
        self.check(self.api.device_memory(&size, device), b"cuDeviceTotalMem")
        return ((<bytes>name).decode(errors="replace"), uuid.bytes[:16], (<bytes>bus).decode().lower(),
                10 * major + minor, size, shared)

    cdef int attribute_of(self, CUdevice device, int attribute) except? -1:
        cdef int value = 0
        self.check(self.api.device_attribute(&value, attribute, device), b"cuDeviceGetAttribute")
        return value

    def retain_context(self, int ordinal):
        """Retain and return the device's primary context, until release_context()."""
        cdef CUdevice device = 0
        cdef CudaContext context = CudaContext()
        cdef CUresult result
        self.check(self.api.device(&device, ordinal), b"cuDeviceGet")
        with nogil:
            result = self.api.retain_context(&context.handle, device)
        self.check(result, b"cuDevicePrimaryCtxRetain")
        return context

    def release_context(self, int ordinal):
        cdef CUdevice device = 0
        cdef CUresult result
        self.check(self.api.device(&device, ordinal), b"cuDeviceGet")
        with nogil:
            result = self.api.release_context(device)
        self.check(result, b"cuDevicePrimaryCtxRelease")

    def make_current(self, CudaContext context not None):
        """Make a context current in the calling thread."""
        self.check(self.api.set_context(context.handle), b"cuCtxSetCurrent")

    # ----- in the current context ---------------------------------------------------------------

    def memory_info(self):
        """Return (free, total) bytes of the device."""
        cdef size_t free = 0, total = 0
        self.check(self.api.memory_info(&free, &total), b"cuMemGetInfo")
        return free, total

    def allocate(self, size_t size):
        cdef CUdeviceptr pointer = 0
        cdef CUresult result
        with nogil:
            result = self.api.allocate(&pointer, size)
        self.check(result, b"cuMemAlloc")
        return DeviceBytes(pointer)

    def release(self, DeviceBytes memory not None):
        cdef CUresult result
        with nogil:
            result = self.api.release(memory.address)
        self.check(result, b"cuMemFree")

    def allocate_host(self, size_t size):
        cdef void* pointer = NULL
        cdef CUresult result
        with nogil:
            result = self.api.allocate_host(&pointer, size, CU_MEMHOSTALLOC_PORTABLE)
        self.check(result, b"cuMemHostAlloc")
        return PinnedBytes(<size_t>pointer, size)

    def release_host(self, PinnedBytes memory not None):
        cdef CUresult result
        with nogil:
            result = self.api.release_host(memory.data)
        self.check(result, b"cuMemFreeHost")

    def time_copy(self, DeviceBytes target not None, PinnedBytes source not None):
        """Copy from pinned memory in one piece, and wait. Returns the time in ns by the device's events."""
        cdef CUstream stream = NULL
        cdef CUevent begin = NULL, end = NULL
        cdef CUresult result
        cdef float elapsed_ms = 0
        self.check(self.api.make_stream(&stream, CU_STREAM_NON_BLOCKING), b"cuStreamCreate")
        try:
            self.check(self.api.make_event(&begin, CU_EVENT_DEFAULT), b"cuEventCreate")
            self.check(self.api.make_event(&end, CU_EVENT_DEFAULT), b"cuEventCreate")
            self.check(self.api.record_event(begin, stream), b"cuEventRecord")
            self.check(self.api.copy_in(target.address, source.data, source.size, stream), b"cuMemcpyHtoDAsync")
            self.check(self.api.record_event(end, stream), b"cuEventRecord")
            with nogil:
                result = self.api.finish_stream(stream)
            self.check(result, b"cuStreamSynchronize")
            self.check(self.api.elapsed(&elapsed_ms, begin, end), b"cuEventElapsedTime")
        finally:
            if begin != NULL:
                self.api.free_event(begin)
            if end != NULL:
                self.api.free_event(end)
            self.api.free_stream(stream)
        return round(1e6 * elapsed_ms)

    def load_module(self, image):
        cdef CudaModule module = CudaModule()
        cdef CUresult result
        cdef Py_buffer data
        PyObject_GetBuffer(image, &data, PyBUF_SIMPLE)
        try:
            with nogil:
                result = self.api.load_module(&module.handle, data.buf)
        finally:
            PyBuffer_Release(&data)
        self.check(result, b"cuModuleLoadData")
        return module

    def unload_module(self, CudaModule module not None):
        cdef CUresult result
        with nogil:
            result = self.api.unload_module(module.handle)
        self.check(result, b"cuModuleUnload")

    def link(self, bytes ptx not None):
        """Compile PTX to a cubin for the current context's device, which takes seconds."""
        cdef char log[LOG_BYTES]
        cdef int[2] options = [CU_JIT_ERROR_LOG_BUFFER, CU_JIT_ERROR_LOG_BUFFER_SIZE_BYTES]
        cdef void* values[2]
        cdef CUlinkState state = NULL
        cdef const char* text = ptx  # ends with the zero that the driver needs
        cdef size_t size = len(ptx) + 1
        cdef void* cubin = NULL
        cdef CUresult result
        log[0] = 0
        values[0], values[1] = <void*>log, <void*><size_t>LOG_BYTES
        self.check(self.api.make_link(2, options, values, &state), b"cuLinkCreate")
        try:
            with nogil:
                result = self.api.add_to_link(state, CU_JIT_INPUT_PTX, <void*>text, size, NULL, 0, NULL, NULL)
            self.check_link(result, b"cuLinkAddData", log)
            with nogil:
                result = self.api.finish_link(state, &cubin, &size)
            self.check_link(result, b"cuLinkComplete", log)
            return (<char*>cubin)[:size]
        finally:
            self.api.free_link(state)

    cdef int check_link(self, CUresult result, const char* call, const char* log) except -1:
        """Raise as check(), with the message of the driver's compiler."""
        try:
            return self.check(result, call)
        except CudaError as error:
            said = (<bytes>log).decode(errors="replace").strip()
            raise CudaError(f"{error}: {said}" if said else str(error), error.code) from None

    def function(self, CudaModule module not None, str name):
        cdef CudaKernel found = CudaKernel()
        cdef bytes text = name.encode()
        self.check(self.api.function(&found.handle, module.handle, text), b"cuModuleGetFunction")
        return found

    def needs(self, CudaKernel kernel not None):
        """Return a kernel's (most threads of a block, bytes of static shared memory, registers)."""
        cdef int threads = 0, shared = 0, registers = 0
        self.check(self.api.function_attribute(
            &threads, CU_FUNC_ATTRIBUTE_MAX_THREADS_PER_BLOCK, kernel.handle), b"cuFuncGetAttribute")
        self.check(self.api.function_attribute(
            &shared, CU_FUNC_ATTRIBUTE_SHARED_SIZE_BYTES, kernel.handle), b"cuFuncGetAttribute")
        self.check(self.api.function_attribute(
            &registers, CU_FUNC_ATTRIBUTE_NUM_REGS, kernel.handle), b"cuFuncGetAttribute")
        return threads, shared, registers

    def parameters(self, CudaKernel kernel not None):
        """Return the bytes of each parameter of a kernel; None if the driver cannot tell."""
        cdef size_t offset = 0, size = 0
        cdef CUresult result
        if self.api.parameter == NULL:
            return None
        sizes = []
        while len(sizes) < PARAMETERS_MAX:
            result = self.api.parameter(kernel.handle, len(sizes), &offset, &size)
            if result == CUDA_ERROR_INVALID_VALUE:
                break  # the kernel has no further parameter
            if result != CUDA_SUCCESS:
                return None
            sizes.append(size)
        return sizes

    def allow_shared(self, CudaKernel kernel not None, int size):
        """Allow a kernel this much dynamic shared memory; more than 48 KiB must be requested."""
        self.check(self.api.set_function(
            kernel.handle, CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES, size), b"cuFuncSetAttribute")

    def local_bytes(self, CudaKernel kernel not None):
        """Return the bytes of a kernel's local memory, which each thread has beside its registers."""
        cdef int size = 0
        self.check(self.api.function_attribute(
            &size, CU_FUNC_ATTRIBUTE_LOCAL_SIZE_BYTES, kernel.handle), b"cuFuncGetAttribute")
        return size

    def reserve_local(self, size_t size):
        """Reserve at least this much local memory for every thread that can run at a time.

        Otherwise the first launch that needs more has the driver replace the local memory of all threads, for
        which it waits until no kernel runs and holds back all others."""
        cdef size_t has = 0
        cdef CUresult result
        self.check(self.api.limit(&has, CU_LIMIT_STACK_SIZE), b"cuCtxGetLimit")
        if size > has:
            with nogil:
                result = self.api.set_limit(CU_LIMIT_STACK_SIZE, size)
            self.check(result, b"cuCtxSetLimit")
