# cython: language_level=3, cdivision=True
"""The CPU device's memory: a page arena, and the models whose weights come from mapped files.

The lock of the arena's hub guards owners of pages and residency; see csrc/device/lane.h.
"""

import mmap
import os

cimport cython
from cpython.buffer cimport PyBUF_WRITE
from cpython.memoryview cimport PyMemoryView_FromMemory
from libc.stdio cimport snprintf
from libc.string cimport memcpy, memset
from posix.mman cimport (
    MADV_DONTNEED, MADV_WILLNEED, MAP_FAILED, MAP_PRIVATE, PROT_READ, madvise, mlock, mmap as map_memory, munmap)

from clockwork.device._orders cimport Order
from clockwork.device._ort cimport (
    HUGE_PAGE_BYTES, MADV_POPULATE_READ, TEXT_BYTES, map_touched, round_up, ort_dtype_of_onnx, ort_failed,
    ort_release_session_options, ort_release_value, ort_wrap_tensor, runtime)

from clockwork.errors import InvalidModel

cdef size_t OS_PAGE = mmap.PAGESIZE


cdef enum:
    PROBE_PAGES = 4096  # the most pages of a call of mincore()


cdef bint probe(char* base, size_t size, unsigned char* cached) noexcept nogil:
    """Find the pages of a file's mapping that the OS has cached (lowest bit). Returns True if all are.

    At most PROBE_PAGES pages. An error counts as cached: the copy then faults the pages in.
    """
    cdef size_t page, pages = (size + OS_PAGE - 1) // OS_PAGE
    if mincore(base, size, cached):
        memset(cached, 1, pages)
    for page in range(pages):
        if not cached[page] & 1:
            return False
    return True


cdef void touch_cached(char* base, size_t size) noexcept nogil:
    """Enter a mapping's cached pages in the page tables, so that a LOAD does not fault them in.

    Measured: 7 ms for 100 MB, whose first copy then takes 9 ms instead of 17 ms.
    """
    cdef unsigned char cached[PROBE_PAGES]
    cdef size_t at = 0, piece, page, first, pages
    while at < size:
        piece = min(size - at, <size_t>(PROBE_PAGES * OS_PAGE))
        pages = (piece + OS_PAGE - 1) // OS_PAGE
        probe(base + at, piece, cached)
        page = 0
        while page < pages:
            first = page
            while page < pages and cached[page] & 1:
                page += 1
            if page > first:
                # Only advice: kernels before 5.14 lack it, and the copy faults the pages in.
                madvise(base + at + first * OS_PAGE, (page - first) * OS_PAGE, MADV_POPULATE_READ)
            else:
                page += 1
        at += piece


cdef void read_ahead(char* base, size_t size) noexcept nogil:
    """Have the OS read all uncached pages of a mapping at once, at the disk's full rate."""
    cdef unsigned char cached[PROBE_PAGES]
    cdef size_t at = 0, piece
    while at < size:
        piece = min(size - at, <size_t>(PROBE_PAGES * OS_PAGE))
        if not probe(base + at, piece, cached):
            madvise(base + at, size - at, MADV_WILLNEED)
            return
        at += piece


@cython.no_gc_clear  # its end still needs the runtime
cdef class SessionOptions:
    """The options of sessions that know the operators of some libraries."""

    def __cinit__(self, Runtime runtime, int threads, tuple libraries):
        self.runtime = runtime
        self.handle = runtime.make_options(threads, libraries)

    def __dealloc__(self):
        if self.runtime is not None:
            ort_release_session_options(self.runtime.api, self.handle)


@cython.no_gc_clear  # its end still needs the runtime
cdef class SessionProgram:
    """A session without weights, shared by all models of an architecture. libraries: of its operators."""

    def __cinit__(self, PagedCore arena, str path, tuple libraries):
        cdef char text[TEXT_BYTES]
        cdef bytes name = os.fsencode(path)
        cdef const char* c_name = name
        cdef bint opened
        self.runtime = arena.runtime
        cdef SessionOptions options = arena.options_for(libraries)
        with nogil:
            opened = self.runtime.open(options.handle, c_name, NULL, 0, &self.session, text)
        if not opened:
            raise InvalidModel(f"{path}: {text.decode(errors='replace')}")

    def __dealloc__(self):
        if self.runtime is not None:
            with nogil:
                self.runtime.close(&self.session)
                self.runtime.trim()

    @property
    def input_count(self):
        return self.session.input_count

    @property
    def output_count(self):
        return self.session.output_count


@cython.no_gc_clear  # its end still needs the runtime
cdef class PagedModel(KnownModel):
    """A prepared model: its program, its mapped weights, and its residency.

    runs: page counts. weights: (dtype, shape, run, offset, bytes) each, in the program's order. program is
    None for the packed holding, whose session LOAD opens from packed_path. workspace_bytes: the budget of an
    execution. lengths: (number of symbols in which requests of a batch may differ, the symbol of each axis or
    -1 for each input, the same for each output); the program takes the rows' sizes as inputs behind its own.
    rowless_shapes: the shape of each optional input, None for other inputs; None if the model has no optional
    input. output_count: the number of the model's outputs.
    """

    def __cinit__(self, int64_t model_id, SessionProgram program, list dtypes, list runs, list weights,
                  str packed_path, int64_t packed_bytes, size_t workspace_bytes, size_t output_count,
                  tuple lengths=None, list rowless_shapes=None):
        cdef CpuWeight* weight
        cdef CpuModel* state = &self.state
        self.model_id = model_id
        self.at = state
        state.model_dtypes = &state.input_dtypes
        self.set_runs(runs)
        self.program = program
        self.runtime = runtime()
        self.packed_bytes = packed_bytes
        state.workspace_bytes, state.output_count = workspace_bytes, output_count
        state.packed = program is None
        state.session = &state.own if program is None else &program.session
        state.input_dtypes = dtypes
        state.run_bytes.resize(len(runs))
        state.weights.resize(len(weights))
        if lengths is not None:
            state.lengths.count, state.lengths.inputs, state.lengths.outputs = lengths
            state.model_lengths = &state.lengths
        if rowless_shapes is not None:
            state.rowless.resize(len(rowless_shapes))
            for index, shape in enumerate(rowless_shapes):
                if shape is not None:
                    state.rowless[<size_t>index].is_optional, state.rowless[<size_t>index].dims = True, shape
            state.model_rowless = &state.rowless
        state.weight_values.resize(len(weights))
        if packed_path is not None:
            state.path = os.fsencode(packed_path)
        for index, (dtype, shape, run, offset, size) in enumerate(weights):
            weight = &state.weights[<size_t>index]
            weight.dtype, weight.dims, weight.run, weight.offset, weight.bytes = dtype, shape, run, offset, size
            if weight.run < state.run_bytes.size():
                state.run_bytes[weight.run] = max(state.run_bytes[weight.run], weight.offset + weight.bytes)

    def map_weights(self, str path, size_t size, bint copy):
        """Map the laid-out weights; with copy, hold them in this process's memory instead.

        Returns the number of locked bytes. A process without the right to lock still holds them in RAM.
        """
        cdef char* base
        cdef int descriptor
        cdef size_t mapped
        if size == 0:
            return 0
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            if copy:
                mapped = round_up(size, HUGE_PAGE_BYTES)
                with nogil:
                    base = map_touched(mapped)
                if base == NULL:
                    raise MemoryError(f"no memory to keep {path} ({size} bytes)")
                self.state.source, self.state.source_bytes, self.state.copied = base, mapped, True
                view = PyMemoryView_FromMemory(base, mapped, PyBUF_WRITE)
                with open(descriptor, "rb", buffering=0, closefd=False) as file:
                    done = 0
                    while done < size:
                        count = file.readinto(view[done:size])
                        if not count:
                            raise InvalidModel(f"{path} ended at byte {done} of {size}")
                        done += count
                return size if mlock(base, mapped) == 0 else 0
            base = <char*>map_memory(NULL, size, PROT_READ, MAP_PRIVATE, descriptor, 0)
            if base == <char*>MAP_FAILED:
                raise MemoryError(f"no memory to map {path} ({size} bytes)")
            self.state.source, self.state.source_bytes = base, size
            with nogil:
                touch_cached(base, size)
            return 0
        finally:
            os.close(descriptor)

    def lock_file(self, str path, size_t size):
        """Keep a file in the OS's cache as long as the model is known. Returns the number of locked bytes."""
        self.map_weights(path, size, False)
        if size == 0:
            return 0
        return size if mlock(self.state.source, size) == 0 else 0

    def __dealloc__(self):
        cdef CpuModel* state = &self.state
        if self.runtime is not None:
            close_weights(self.runtime.api, state)
            if state.packed:
                with nogil:
                    self.runtime.close(&state.own)
        if state.source != NULL:
            munmap(state.source, state.source_bytes)


cdef void close_weights(const OrtApi* api, CpuModel* model) noexcept nogil:
    """Release the tensors over a model's pages, but not the pages."""
    cdef size_t index
    for index in range(model.weight_values.size()):
        ort_release_value(api, model.weight_values[index])
        model.weight_values[index] = NULL


@cython.no_gc_clear  # its end still needs the runtime
cdef class PagedCore(DeviceCore):
    """Pages and known models, guarded by the lock of a hub."""

    def __cinit__(self, size_t arena_bytes, size_t page_bytes, int threads, int run_ahead, size_t slot_bytes_most,
                  int64_t spin_ns, int64_t spare_ns, int executor_count, *lanes):
        """spare_ns: see ArenaMemory.map(). lanes: further arguments of a subclass."""
        self.runtime = runtime()
        self.api = self.runtime.api
        # First: the page lists of an arena far beyond the machine's memory would fill that memory.
        if not self.memory_of_pages.map(arena_bytes // page_bytes, page_bytes, spare_ns):
            raise MemoryError(f"no memory for an arena of {arena_bytes} bytes")
        self.set_bounds(arena_bytes // page_bytes, page_bytes, run_ahead, spin_ns, executor_count)
        self.slot_bytes_most = slot_bytes_most
        self.options, self.threads = {}, threads
        self.options_for(())

    def __dealloc__(self):
        self.free_memory()

    cdef int free_memory(self) except -1:
        """Release all resources, once. No thread may use the lock any more."""
        self.lanes.hub.close()
        self.memory_of_pages.unmap()
        return 0

    cdef SessionOptions options_for(self, tuple libraries):
        """Return the options of sessions with these libraries' operators. The arena keeps them."""
        found = self.options.get(libraries)
        if found is None:
            found = self.options[libraries] = SessionOptions(self.runtime, self.threads, libraries)
        return found

    def open_with(self, PagedModel model, tuple libraries):
        """Set the libraries of operators for the session of a packed model."""
        model.state.options = self.options_for(libraries).handle

    def memory(self):
        """Return bytes by purpose, and counts of pages."""
        cdef int64_t held
        cdef PagedModel model
        cdef size_t mapped = 0, packed = 0
        with nogil:
            held = self.held_pages()
        for model in list(self.models.values()):
            mapped += model.state.source_bytes
            if model.state.packed and model.at.resident:
                packed += model.packed_bytes
        return {
            "arena_bytes": self.memory_of_pages.bytes(),
            "touched_bytes": self.memory_of_pages.held_bytes(),
            "late_pages": self.memory_of_pages.late_count(),
            "resident_bytes": held * self.page_bytes,
            "packed_bytes": packed,
            "workspace_bytes": self.runtime.workspace_bytes(),
            "store_bytes": mapped,
            "models": len(self.models),
        }

    # ----- pages -------------------------------------------------------------------------------

    def add_model(self, KnownModel model):
        """Make a model known, after reserving memory for its pages. Any thread. Raises MemoryError."""
        cdef int64_t end
        cdef bint done
        with nogil:
            end = self.count_pages(<CpuModel*>model.at, 1)
            done = self.memory_of_pages.touch_below(end)
        if not done:
            self.count_pages(<CpuModel*>model.at, -1)
            raise MemoryError(f"no memory for the pages of model {model.model_id} in the arena")
        DeviceCore.add_model(self, model)

    def remove_model(self, model_id):
        """See DeviceCore."""
        cdef KnownModel model = DeviceCore.remove_model(self, model_id)
        if model is not None:
            self.count_pages(<CpuModel*>model.at, -1)
        return model

    cdef int64_t count_pages(self, CpuModel* model, int64_t times) noexcept nogil:
        """Add a model's pages to the totals, or (-1) subtract them. Returns pages_ahead()."""
        cdef int64_t pages = 0, end
        cdef size_t run
        for run in range(model.claim.run_pages.size()):
            pages += model.claim.run_pages[run]
        self.lanes.hub.lock()
        self.known_pages += times * pages
        if not model.packed:
            self.bound_pages += times * pages
        end = self.pages_ahead()
        self.lanes.hub.unlock()
        return end

    cdef int64_t pages_ahead(self) noexcept nogil:
        """Return the end of the pages that LOADs may use before the next call. The lock is held.

        The controller assigns the lowest free pages, so a model is loaded at worst behind all resident
        models. The result grows when a model is added, and when a model is unloaded below others; a LOAD does
        not change it. Packed models need no memory in their pages, but may lie below models that do.
        """
        if self.bound_pages == 0:
            return 0
        return self.pages.end_of_held() + self.known_pages - self.pages.held_count()

    cdef void evict(self, DeviceModel* at) noexcept nogil:
        cdef int64_t end
        DeviceCore.evict(self, at)
        self.lanes.hub.lock()
        end = self.pages_ahead()
        self.lanes.hub.unlock()
        self.memory_of_pages.want(end)

    def keep_memory(self):
        """Back pages with memory as UNLOADs make that necessary, and take it from spare ones, until stop().
        The target of a thread."""
        with nogil:
            self.memory_of_pages.keep()

    def stop(self):
        """See DeviceCore."""
        self.memory_of_pages.stop()
        DeviceCore.stop(self)

    cdef void spare_memory(self, CpuModel* model) noexcept nogil:
        """Release the memory of a model's pages, unless it is needed again soon."""
        cdef size_t run
        for run in range(model.claim.run_pages.size()):
            self.memory_of_pages.spare(model.claim.run_starts[run], model.claim.run_pages[run])

    cdef bint take_memory(self, CpuModel* model) noexcept nogil:
        """Back the pages of a model with memory. False if memory ran out."""
        cdef size_t run
        for run in range(model.claim.run_pages.size()):
            if not self.memory_of_pages.take(model.claim.run_starts[run], model.claim.run_pages[run]):
                return False
        return True

    cdef bint bring_weights(self, Order* order) noexcept nogil:
        cdef bint done = self.fill(<CpuModel*>order.residency, order.text)
        order.execute.end()
        return done

    cdef bint fill(self, CpuModel* model, char* text) noexcept nogil:
        """Copy the runs and describe them, or open the packed session."""
        cdef size_t run, index
        cdef char* source = model.source
        cdef char* base
        cdef CpuWeight* weight
        if model.packed:
            # The session has its own memory, so the pages charged for it release theirs, if they are not
            # needed again soon. They get memory again when a bound model is loaded there: touching it takes
            # as long as a load, and the next model may be packed.
            self.spare_memory(model)
            if not self.runtime.open(model.options, model.path.c_str(), NULL, 0, &model.own, text):
                return False
            if model.own.input_count != model.fed_count():
                snprintf(text, TEXT_BYTES, "the packed session takes %zu inputs, the model %zu",
                         model.own.input_count, model.fed_count())
                return False
            if model.own.output_count != model.output_count:
                snprintf(text, TEXT_BYTES, "the packed session gives %zu outputs, the model %zu",
                         model.own.output_count, model.output_count)
                return False
            return True
        if not self.take_memory(model):
            snprintf(text, TEXT_BYTES, "no memory to give the arena its pages back")
            return False
        if not model.copied:
            read_ahead(source, model.source_bytes)
        for run in range(model.claim.run_pages.size()):
            memcpy(self.memory_of_pages.page(model.claim.run_starts[run]), source, model.run_bytes[run])
            source += model.claim.run_pages[run] * self.page_bytes
        for index in range(model.weights.size()):
            weight = &model.weights[index]
            base = self.memory_of_pages.page(model.claim.run_starts[weight.run]) + weight.offset
            if ort_failed(self.api, ort_wrap_tensor(
                    self.api, self.runtime.memory, base, weight.bytes, weight.dims.data(), weight.dims.size(),
                    ort_dtype_of_onnx(weight.dtype),
                    &model.weight_values[index]), text, TEXT_BYTES):
                return False
        return True

    cdef void drop_weights(self, DeviceModel* at) noexcept nogil:
        cdef CpuModel* model = <CpuModel*>at
        close_weights(self.api, model)
        if model.packed:
            self.runtime.close(&model.own)
