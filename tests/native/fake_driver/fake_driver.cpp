/* MANUAL A CUDA driver without a GPU: the functions of csrc/device/cuda_api.h by the same names, over host
 * memory.  A stream is a thread with a queue, an event a timestamp; modules are in fake_modules.cpp, and the
 * machine's cards in fake_cards.cpp. Copies are asynchronous, checked against the allocated ranges, and as
 * slow as a test asks; functions fail when told to. A kernel's arguments are an array of pointers to 8-byte
 * values that ends with NULL, which a card's driver does not read. */
#include "fake_machine.h"

#include <linux/mempolicy.h>
#include <sys/syscall.h>
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

/* The NUMA node whose memory this thread prefers; -1: none, or the kernel does not say. */
int preferred_node() {
    int mode = 0;
    unsigned long nodes[16] = {};
    if (syscall(SYS_get_mempolicy, &mode, nodes, sizeof nodes * 8, nullptr, 0UL) || mode != MPOL_PREFERRED)
        return -1;
    for (int node = 0; node < int(sizeof nodes * 8); node++) {
        if (nodes[node / 64] >> node % 64 & 1)
            return node;
    }
    return -1;
}

EventRef event_of(CUevent handle) {
    auto found = driver().events.find(reinterpret_cast<Event*>(handle));
    return found == driver().events.end() ? nullptr : found->second;
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
    NAME(CUDA_ERROR_INVALID_PTX),
    NAME(CUDA_ERROR_INVALID_HANDLE),
    NAME(CUDA_ERROR_NOT_FOUND),
    NAME(CUDA_ERROR_NOT_READY),
    NAME(CUDA_ERROR_ILLEGAL_ADDRESS),
    NAME(CUDA_ERROR_LAUNCH_OUT_OF_RESOURCES),
    NAME(CUDA_ERROR_MISALIGNED_ADDRESS),
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
    show_devices();
    if (all.shown.empty())
        return CUDA_ERROR_NO_DEVICE;
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

EXPORTED CUresult cuDevicePrimaryCtxRetain(CUcontext* context, CUdevice device) {
    BEGIN(cuDevicePrimaryCtxRetain);
    if (!is_shown(device))
        return CUDA_ERROR_INVALID_DEVICE;
    all.devices[device].retained++;
    *context = reinterpret_cast<CUcontext>(&all.devices[device]);
    return CUDA_SUCCESS;
}

EXPORTED CUresult cuDevicePrimaryCtxRelease_v2(CUdevice device) {
    BEGIN(cuDevicePrimaryCtxRelease_v2);
    if (!is_shown(device) || !all.devices[device].retained)
        return CUDA_ERROR_INVALID_CONTEXT;
    Device& one = all.devices[device];
    if (--one.retained)
        return CUDA_SUCCESS;
    /* The last release of the context frees it and its memory, even if it was broken. */
    for (auto* ranges : {&one.allocations, &one.pinned}) {
        for (const auto& [begin, bytes] : *ranges)
            std::free(reinterpret_cast<void*>(begin));
        ranges->clear();
    }
    one.used = 0;
    one.local_bytes = LOCAL_BYTES;
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
    all.pinned_node = preferred_node();
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

EXPORTED CUresult cuLaunchKernel(CUfunction function, unsigned grid_x, unsigned grid_y, unsigned grid_z,
                                 unsigned block_x, unsigned block_y, unsigned block_z, unsigned shared_bytes,
                                 CUstream stream, void** arguments, void**) {
    BEGIN_CONTEXT(cuLaunchKernel);
    const unsigned grid[3] = {grid_x, grid_y, grid_z}, block[3] = {block_x, block_y, block_z};
    Item item{Item::KERNEL};
    if (int error = make_launch(function, grid, block, shared_bytes, arguments, guard, &item))
        return error;
    have_local(local_bytes_of(function), guard);
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
    stream->stopped = true; /* queued work still runs */
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
