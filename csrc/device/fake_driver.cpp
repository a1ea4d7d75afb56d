/* A CUDA driver without a GPU: the functions of csrc/device/cuda_api.h by the same names, over host memory.
 *
 * A stream is a thread with a queue, an event a timestamp, a module a shared object for this machine
 * (csrc/device/host_kernels.h makes one of a CUDA C file). Copies are asynchronous, checked against what
 * has been allocated, and as slow as asked; functions fail when told to. A kernel's arguments are an array
 * of pointers to 8-byte values that ends with NULL, which a card's driver does not look at.
 */
#include "device/fake_machine.h"

#include <elf.h>
#include <sys/mman.h>
#include <unistd.h>

#include <cstdio>
#include <cstring>

using namespace fake;

namespace {

void* take_memory(size_t bytes, size_t alignment) {
    void* memory = std::aligned_alloc(alignment, (bytes + alignment - 1) / alignment * alignment);
    if (memory && bytes <= POISONED_MAX)
        memset(memory, 0xFF, bytes);
    return memory;
}

EventRef event_of(CUevent handle) {
    auto found = driver().events.find(reinterpret_cast<Event*>(handle));
    return found == driver().events.end() ? nullptr : found->second;
}

/* The size of an ELF file in memory, which ends with its section headers or its last segment; 0 if it is none. */
size_t elf_bytes(const void* image, uint16_t* machine) {
    const Elf64_Ehdr* header = static_cast<const Elf64_Ehdr*>(image);
    if (memcmp(header->e_ident, ELFMAG, SELFMAG) || header->e_ident[EI_CLASS] != ELFCLASS64)
        return 0;
    *machine = header->e_machine;
    size_t end = header->e_shoff + size_t(header->e_shnum) * header->e_shentsize;
    const char* base = static_cast<const char*>(image) + header->e_phoff;
    for (int index = 0; index < header->e_phnum; index++) {
        const Elf64_Phdr* segment = reinterpret_cast<const Elf64_Phdr*>(base + index * header->e_phentsize);
        end = std::max(end, size_t(segment->p_offset + segment->p_filesz));
    }
    return end;
}

#if defined(__x86_64__)
constexpr uint16_t MACHINE = EM_X86_64;
#elif defined(__aarch64__)
constexpr uint16_t MACHINE = EM_AARCH64;
#endif

/* Open a shared object that lies in memory; nullptr if it cannot be. The file is the caller's, to be closed after it. */
void* open_library(const void* image, size_t bytes, int* descriptor) {
    int file = *descriptor = memfd_create("clockwork-kernels", MFD_CLOEXEC);
    if (file < 0)
        return nullptr;
    const char* from = static_cast<const char*>(image);
    while (bytes) {
        ssize_t written = write(file, from, bytes);
        if (written <= 0)
            return nullptr;
        from += written;
        bytes -= size_t(written);
    }
    return dlopen(("/proc/self/fd/" + std::to_string(file)).c_str(), RTLD_NOW | RTLD_LOCAL);
}

struct ErrorName {
    int error;
    const char* name;
};
const ErrorName ERRORS[] = {
#define NAME(error) {error, #error}
    NAME(CUDA_SUCCESS),
    NAME(CUDA_ERROR_INVALID_VALUE),
    NAME(CUDA_ERROR_OUT_OF_MEMORY),
    NAME(CUDA_ERROR_NOT_INITIALIZED),
    NAME(CUDA_ERROR_NO_DEVICE),
    NAME(CUDA_ERROR_INVALID_DEVICE),
    NAME(CUDA_ERROR_INVALID_IMAGE),
    NAME(CUDA_ERROR_INVALID_CONTEXT),
    NAME(CUDA_ERROR_NO_BINARY_FOR_GPU),
    NAME(CUDA_ERROR_INVALID_HANDLE),
    NAME(CUDA_ERROR_NOT_FOUND),
    NAME(CUDA_ERROR_NOT_READY),
    NAME(CUDA_ERROR_ILLEGAL_ADDRESS),
    NAME(CUDA_ERROR_LAUNCH_FAILED),
    NAME(CUDA_ERROR_NOT_SUPPORTED),
    NAME(CUDA_ERROR_UNKNOWN),
#undef NAME
};

}  // namespace

/* ----- the driver API ------------------------------------------------------------------------- */

EXPORTED CUresult cuInit(unsigned) {
    BEGIN(cuInit);
    const char* loading = getenv("CUDA_MODULE_LOADING");
    all.loads_lazily = !loading || strcmp(loading, "EAGER");
    all.initialised = true;
    return CUDA_SUCCESS;
}

EXPORTED CUresult cuDriverGetVersion(int* version) {
    Driver& all = driver();
    std::unique_lock<std::mutex> guard(all.lock);
    if (int error = counted(F_cuDriverGetVersion, current))
        return error;
    *version = all.version;
    return CUDA_SUCCESS;
}

EXPORTED CUresult cuGetErrorName(CUresult error, const char** name) {
    for (const ErrorName& one : ERRORS) {
        if (one.error == error) {
            *name = one.name;
            return CUDA_SUCCESS;
        }
    }
    *name = nullptr;
    return CUDA_ERROR_INVALID_VALUE;
}

EXPORTED CUresult cuDeviceGetCount(int* count) {
    BEGIN(cuDeviceGetCount);
    *count = all.device_count;
    return CUDA_SUCCESS;
}

EXPORTED CUresult cuDeviceGet(CUdevice* device, int ordinal) {
    BEGIN(cuDeviceGet);
    if (ordinal < 0 || ordinal >= all.device_count)
        return CUDA_ERROR_INVALID_DEVICE;
    *device = ordinal;
    return CUDA_SUCCESS;
}

EXPORTED CUresult cuDeviceGetName(char* name, int length, CUdevice device) {
    BEGIN(cuDeviceGetName);
    snprintf(name, size_t(length), "fake GPU %d", device);
    return CUDA_SUCCESS;
}

EXPORTED CUresult cuDeviceGetUuid_v2(CUuuid* uuid, CUdevice device) {
    BEGIN(cuDeviceGetUuid_v2);
    memset(uuid->bytes, 0xFA, sizeof uuid->bytes);
    uuid->bytes[15] = static_cast<unsigned char>(device);
    return CUDA_SUCCESS;
}

EXPORTED CUresult cuDeviceGetAttribute(int* value, int attribute, CUdevice) {
    BEGIN(cuDeviceGetAttribute);
    if (attribute != CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR &&
        attribute != CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR)
        return CUDA_ERROR_INVALID_VALUE;
    *value = 0; /* an architecture that no card has: modules are for the host */
    return CUDA_SUCCESS;
}

EXPORTED CUresult cuDeviceTotalMem_v2(size_t* bytes, CUdevice) {
    BEGIN(cuDeviceTotalMem_v2);
    *bytes = all.device_bytes;
    return CUDA_SUCCESS;
}

EXPORTED CUresult cuDevicePrimaryCtxRetain(CUcontext* context, CUdevice device) {
    BEGIN(cuDevicePrimaryCtxRetain);
    if (device < 0 || device >= all.device_count)
        return CUDA_ERROR_INVALID_DEVICE;
    all.devices[device].retained++;
    *context = reinterpret_cast<CUcontext>(&all.devices[device]);
    return CUDA_SUCCESS;
}

EXPORTED CUresult cuDevicePrimaryCtxRelease_v2(CUdevice device) {
    BEGIN(cuDevicePrimaryCtxRelease_v2);
    if (device < 0 || device >= all.device_count || !all.devices[device].retained)
        return CUDA_ERROR_INVALID_CONTEXT;
    Device& one = all.devices[device];
    if (--one.retained)
        return CUDA_SUCCESS;
    /* The context goes with the last who holds it, and its memory with it, even if it was broken. */
    for (auto* ranges : {&one.allocations, &one.pinned}) {
        for (const auto& [begin, bytes] : *ranges)
            std::free(reinterpret_cast<void*>(begin));
        ranges->clear();
    }
    one.used = 0;
    one.broken = CUDA_SUCCESS;
    return CUDA_SUCCESS;
}

EXPORTED CUresult cuCtxSetCurrent(CUcontext context) {
    BEGIN(cuCtxSetCurrent);
    current = reinterpret_cast<Device*>(context);
    return CUDA_SUCCESS;
}

EXPORTED CUresult cuMemGetInfo_v2(size_t* free, size_t* total) {
    BEGIN_CONTEXT(cuMemGetInfo_v2);
    *total = all.device_bytes;
    *free = all.device_bytes - std::min(all.device_bytes, current->used);
    return CUDA_SUCCESS;
}

EXPORTED CUresult cuMemAlloc_v2(CUdeviceptr* pointer, size_t bytes) {
    BEGIN_STALLING(cuMemAlloc_v2, false);
    if (!bytes)
        return CUDA_ERROR_INVALID_VALUE;
    if (bytes > all.device_bytes - std::min(all.device_bytes, current->used))
        return CUDA_ERROR_OUT_OF_MEMORY;
    void* memory = take_memory(bytes, ALIGNMENT);
    if (!memory)
        return CUDA_ERROR_OUT_OF_MEMORY;
    current->used += bytes;
    current->allocations[reinterpret_cast<uintptr_t>(memory)] = bytes;
    *pointer = reinterpret_cast<uintptr_t>(memory);
    return CUDA_SUCCESS;
}

EXPORTED CUresult cuMemFree_v2(CUdeviceptr pointer) {
    BEGIN_STALLING(cuMemFree_v2, false);
    auto found = current->allocations.find(pointer);
    if (found == current->allocations.end())
        return CUDA_ERROR_INVALID_VALUE;
    current->used -= found->second;
    current->allocations.erase(found);
    std::free(reinterpret_cast<void*>(pointer));
    return CUDA_SUCCESS;
}

EXPORTED CUresult cuMemHostAlloc(void** pointer, size_t bytes, unsigned) {
    BEGIN_STALLING(cuMemHostAlloc, true);
    void* memory = bytes ? take_memory(bytes, HOST_ALIGNMENT) : nullptr;
    if (!memory)
        return bytes ? CUDA_ERROR_OUT_OF_MEMORY : CUDA_ERROR_INVALID_VALUE;
    current->pinned[reinterpret_cast<uintptr_t>(memory)] = bytes;
    *pointer = memory;
    return CUDA_SUCCESS;
}

EXPORTED CUresult cuMemFreeHost(void* pointer) {
    BEGIN_STALLING(cuMemFreeHost, true);
    for (Device& device : all.devices) {
        if (device.pinned.erase(reinterpret_cast<uintptr_t>(pointer))) {
            std::free(pointer);
            return CUDA_SUCCESS;
        }
    }
    return CUDA_ERROR_INVALID_VALUE;
}

EXPORTED CUresult cuMemcpyHtoDAsync_v2(CUdeviceptr target, const void* source, size_t bytes, CUstream stream) {
    BEGIN_CONTEXT(cuMemcpyHtoDAsync_v2);
    if (!lies_in(current->allocations, target, bytes))
        return CUDA_ERROR_INVALID_VALUE;
    if (!is_pinned(source, bytes))
        all.unpinned_copies++;
    Item item{Item::COPY_IN};
    item.target = reinterpret_cast<void*>(target);
    item.source = source;
    item.bytes = bytes;
    all.copied_in_bytes += int64_t(bytes);
    return queue(stream, std::move(item));
}

EXPORTED CUresult cuMemcpyDtoHAsync_v2(void* target, CUdeviceptr source, size_t bytes, CUstream stream) {
    BEGIN_CONTEXT(cuMemcpyDtoHAsync_v2);
    if (!lies_in(current->allocations, source, bytes))
        return CUDA_ERROR_INVALID_VALUE;
    if (!is_pinned(target, bytes))
        all.unpinned_copies++;
    Item item{Item::COPY_OUT};
    item.target = target;
    item.source = reinterpret_cast<const void*>(source);
    item.bytes = bytes;
    return queue(stream, std::move(item));
}

EXPORTED CUresult cuModuleLoadData(CUmodule* module, const void* image) {
    BEGIN_STALLING(cuModuleLoadData, false);
    uint16_t machine = 0;
    size_t bytes = elf_bytes(image, &machine);
    if (!bytes)
        return CUDA_ERROR_INVALID_IMAGE;
    if (machine != MACHINE)
        return CUDA_ERROR_NO_BINARY_FOR_GPU;
    int file = -1;
    void* library = open_library(image, bytes, &file);
    if (!library) {
        if (file >= 0)
            close(file);
        return CUDA_ERROR_INVALID_IMAGE;
    }
    Module* made = new Module{current, library, {}, file};
    all.modules.insert(made);
    *module = reinterpret_cast<CUmodule>(made);
    return CUDA_SUCCESS;
}

EXPORTED CUresult cuModuleUnload(CUmodule handle) {
    BEGIN_STALLING(cuModuleUnload, false);
    Module* module = reinterpret_cast<Module*>(handle);
    if (!all.modules.erase(module))
        return CUDA_ERROR_INVALID_HANDLE;
    dlclose(module->library);
    close(module->file);
    delete module;
    return CUDA_SUCCESS;
}

EXPORTED CUresult cuModuleGetFunction(CUfunction* function, CUmodule handle, const char* name) {
    BEGIN_CONTEXT(cuModuleGetFunction);
    Module* module = reinterpret_cast<Module*>(handle);
    if (!all.modules.count(module))
        return CUDA_ERROR_INVALID_HANDLE;
    void* found = dlsym(module->library, ("cw_host_" + std::string(name)).c_str());
    if (!found)
        found = dlsym(module->library, name);
    if (!found)
        return CUDA_ERROR_NOT_FOUND;
    auto [code, is_new] = module->kernels.try_emplace(name, Code{reinterpret_cast<Kernel>(found), !all.loads_lazily});
    *function = reinterpret_cast<CUfunction>(&code->second);
    return CUDA_SUCCESS;
}

EXPORTED CUresult cuFuncSetAttribute(CUfunction, int, int) {
    BEGIN_CONTEXT(cuFuncSetAttribute);
    return CUDA_SUCCESS;
}

EXPORTED CUresult cuLaunchKernel(CUfunction function, unsigned grid_x, unsigned grid_y, unsigned grid_z,
                                 unsigned block_x, unsigned block_y, unsigned block_z, unsigned shared_bytes,
                                 CUstream stream, void** arguments, void**) {
    BEGIN_CONTEXT(cuLaunchKernel);
    const unsigned grid[3] = {grid_x, grid_y, grid_z}, block[3] = {block_x, block_y, block_z};
    Item item{Item::KERNEL};
    if (int error = make_launch(function, grid, block, shared_bytes, arguments, guard, &item))
        return error;
    return queue(stream, std::move(item));
}

EXPORTED CUresult cuStreamCreate(CUstream* stream, unsigned) {
    BEGIN_CONTEXT(cuStreamCreate);
    Stream* made = new Stream;
    made->device = current;
    all.streams.insert(made);
    made->thread = std::thread(run_stream, made);
    *stream = reinterpret_cast<CUstream>(made);
    return CUDA_SUCCESS;
}

EXPORTED CUresult cuStreamDestroy_v2(CUstream handle) {
    BEGIN(cuStreamDestroy_v2);
    Stream* stream = reinterpret_cast<Stream*>(handle);
    if (!all.streams.erase(stream))
        return CUDA_ERROR_INVALID_HANDLE;
    stream->stopped = true; /* what is queued still runs */
    stream->wake.notify_one();
    all.progress.notify_all();
    guard.unlock();
    stream->thread.join();
    delete stream;
    return CUDA_SUCCESS;
}

EXPORTED CUresult cuStreamWaitEvent(CUstream stream, CUevent handle, unsigned) {
    BEGIN_CONTEXT(cuStreamWaitEvent);
    Item item{Item::WAIT};
    item.event = event_of(handle);
    if (!item.event)
        return CUDA_ERROR_INVALID_HANDLE;
    item.generation = item.event->issued;
    return queue(stream, std::move(item));
}

EXPORTED CUresult cuStreamWriteValue32_v2(CUstream stream, CUdeviceptr target, uint32_t value, unsigned) {
    BEGIN_CONTEXT(cuStreamWriteValue32_v2);
    if (target % sizeof value || (!lies_in(current->allocations, target, sizeof value) &&
                                  !is_pinned(reinterpret_cast<const void*>(target), sizeof value)))
        return CUDA_ERROR_INVALID_VALUE;
    Item item{Item::WRITE};
    item.target = reinterpret_cast<void*>(target);
    item.generation = value;
    return queue(stream, std::move(item));
}

EXPORTED CUresult cuStreamSynchronize(CUstream handle) {
    BEGIN_CONTEXT(cuStreamSynchronize);
    Stream* stream = reinterpret_cast<Stream*>(handle);
    if (!all.streams.count(stream))
        return CUDA_ERROR_INVALID_HANDLE;
    all.progress.wait(guard, [&] { return stream->items.empty() && !stream->busy; });
    return current->broken;
}

EXPORTED CUresult cuEventCreate(CUevent* event, unsigned) {
    BEGIN_CONTEXT(cuEventCreate);
    EventRef made = std::make_shared<Event>();
    made->device = current;
    all.events[made.get()] = made;
    *event = reinterpret_cast<CUevent>(made.get());
    return CUDA_SUCCESS;
}

EXPORTED CUresult cuEventDestroy_v2(CUevent handle) {
    BEGIN(cuEventDestroy_v2);
    return all.events.erase(reinterpret_cast<Event*>(handle)) ? CUDA_SUCCESS : CUDA_ERROR_INVALID_HANDLE;
}

EXPORTED CUresult cuEventRecord(CUevent handle, CUstream stream) {
    BEGIN_CONTEXT(cuEventRecord);
    Item item{Item::RECORD};
    item.event = event_of(handle);
    if (!item.event)
        return CUDA_ERROR_INVALID_HANDLE;
    if (item.event->device != current)
        return CUDA_ERROR_INVALID_CONTEXT;
    item.generation = ++item.event->issued;
    return queue(stream, std::move(item));
}

EXPORTED CUresult cuEventQuery(CUevent handle) {
    BEGIN_CONTEXT(cuEventQuery);
    EventRef event = event_of(handle);
    if (!event)
        return CUDA_ERROR_INVALID_HANDLE;
    return event->done == event->issued ? CUDA_SUCCESS : CUDA_ERROR_NOT_READY;
}

EXPORTED CUresult cuEventElapsedTime(float* milliseconds, CUevent begin_handle, CUevent end_handle) {
    BEGIN_CONTEXT(cuEventElapsedTime);
    EventRef begin = event_of(begin_handle), end = event_of(end_handle);
    if (!begin || !end || !begin->issued || !end->issued)
        return CUDA_ERROR_INVALID_HANDLE;
    if (begin->done != begin->issued || end->done != end->issued)
        return CUDA_ERROR_NOT_READY;
    *milliseconds = float(double(end->time_ns - begin->time_ns) / 1e6);
    return CUDA_SUCCESS;
}
