/* A CUDA driver without a GPU: the functions of csrc/cuda_api.h by the same names, over host memory.
 *
 * A stream is a thread with a queue, an event a timestamp, a module a shared object for this machine
 * (csrc/cuda/host_kernels.h makes one of a CUDA C file). Copies are asynchronous, checked against what
 * has been allocated, and as slow as asked; functions fail when told to. A kernel's arguments are an array
 * of pointers to 8-byte values that ends with NULL, which a card's driver does not look at.
 */
#include "fake_driver.h"

#include "../cuda_api.h"

#include <elf.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

#include <algorithm>
#include <condition_variable>
#include <cstdlib>
#include <deque>
#include <iterator>
#include <map>
#include <memory>
#include <mutex>
#include <set>
#include <string>
#include <thread>
#include <vector>

#define EXPORTED extern "C" __attribute__((visibility("default")))

namespace {

constexpr int DEVICES_MAX = 16;
constexpr int ARGUMENTS_MAX = 4096;
constexpr size_t POISONED_MAX = 64 << 20; /* of fresh memory: reading what nobody wrote gives NaN */
constexpr size_t ALIGNMENT = 512;         /* of an allocation, as a card's are */
constexpr size_t HOST_ALIGNMENT = 4096;   /* of pinned memory */

using Kernel = void (*)(void **arguments, const unsigned *grid, const unsigned *block);

int64_t now_ns()
{
    timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return int64_t(now.tv_sec) * 1000000000 + now.tv_nsec;
}

void sleep_until(int64_t at_ns)
{
    timespec at = {at_ns / 1000000000, at_ns % 1000000000};
    while (at_ns > now_ns())
        clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &at, nullptr);
}

enum Function {
#define MEMBER(member, symbol, parameters) F_##symbol,
    CW_CUDA_FUNCTIONS(MEMBER)
#undef MEMBER
        F_copy,
    F_kernel,
    FUNCTIONS
};

const char *const NAMES[] = {
#define MEMBER(member, symbol, parameters) #symbol,
    CW_CUDA_FUNCTIONS(MEMBER)
#undef MEMBER
        "copy",
    "kernel",
};

struct Device {
    int ordinal = 0;
    int retained = 0;
    int broken = 0; /* the sticky error of its context */
    size_t used = 0;
    int64_t calls[FUNCTIONS] = {};
    int64_t free_ns[2] = {}; /* when each of its copy engines is done: in, out */
    std::map<uintptr_t, size_t> allocations;
    std::map<uintptr_t, size_t> pinned; /* that was made here; usable for every device */
};

struct Event {
    Device *device;
    uint64_t issued = 0; /* times that it was recorded, as the caller sees it, and as it has happened */
    uint64_t done = 0;
    int64_t time_ns = 0;
};

using EventRef = std::shared_ptr<Event>;

struct Item {
    enum Kind { COPY_IN, COPY_OUT, KERNEL, RECORD, WAIT } kind;
    void *target = nullptr;
    const void *source = nullptr;
    size_t bytes = 0;
    Kernel kernel = nullptr;
    unsigned grid[3] = {}, block[3] = {};
    std::vector<uint64_t> values = {};
    EventRef event = nullptr;
    uint64_t generation = 0;
};

struct Stream {
    Device *device;
    std::condition_variable wake; /* an item was queued */
    std::deque<Item> items;
    bool busy = false;
    bool stopped = false;
    std::thread thread;
};

struct Module {
    Device *device;
    void *library;
    int file; /* open for as long as it is: the loader knows a library by its path, which holds this number */
};

struct Failure {
    Function function;
    int device; /* of whose calls it is one; -1: of any's */
    int64_t at; /* the count of these calls at which it happens */
    int error;
    bool sticky;
};

struct Driver {
    std::mutex lock;
    std::condition_variable progress; /* an event has happened, or a stream has nothing left to do */
    bool initialised = false;
    int device_count = 1;
    size_t device_bytes = size_t(1) << 30;
    int version = 12040;
    int64_t copy_rate = 0, link_rate = 0, kernel_ns = 0, latency_ns = 0;
    int64_t link_free_ns = 0;
    int64_t calls[FUNCTIONS] = {};
    int64_t unpinned_copies = 0, copied_in_bytes = 0;
    Device devices[DEVICES_MAX];
    std::vector<Failure> failures;
    std::set<Stream *> streams;
    std::map<Event *, EventRef> events;
    std::set<Module *> modules;

    Driver();
};

Function function_named(const char *name)
{
    for (int index = 0; index < FUNCTIONS; index++) {
        if (!strcmp(NAMES[index], name))
            return Function(index);
    }
    return FUNCTIONS;
}

/* What a test can tell the driver of another process: CLOCKWORK_FAKE_DEVICES, and CLOCKWORK_FAKE_FAIL as
 * function:nth:error, which breaks the context, or function:nth:error:device, which counts that one's calls; and
 * CLOCKWORK_FAKE_SPEED as cw_fake_speed() takes it: copies:link:kernel:latency. */
Driver::Driver()
{
    if (const char *count = getenv("CLOCKWORK_FAKE_DEVICES"))
        device_count = std::clamp(atoi(count), 1, DEVICES_MAX);
    if (const char *failure = getenv("CLOCKWORK_FAKE_FAIL")) {
        char name[64];
        long nth;
        int error, device = -1;
        if (sscanf(failure, "%63[^:]:%ld:%d:%d", name, &nth, &error, &device) >= 3 && function_named(name) != FUNCTIONS)
            failures.push_back({function_named(name), device, nth, error, true});
    }
    if (const char *speed = getenv("CLOCKWORK_FAKE_SPEED")) {
        long rates[4] = {};
        sscanf(speed, "%ld:%ld:%ld:%ld", &rates[0], &rates[1], &rates[2], &rates[3]);
        copy_rate = rates[0], link_rate = rates[1], kernel_ns = rates[2], latency_ns = rates[3];
    }
    for (int index = 0; index < DEVICES_MAX; index++)
        devices[index].ordinal = index;
}

/* Never freed: a stream that nobody destroyed outlives main(). */
Driver &driver()
{
    static Driver *one = new Driver;
    return *one;
}

thread_local Device *current = nullptr;

/* Count a call; the error that was asked for, if it is its turn. The lock is held. */
int counted(Function function, Device *device)
{
    Driver &all = driver();
    int64_t count = ++all.calls[function], own_count = device ? ++device->calls[function] : 0;
    for (auto one = all.failures.begin(); one != all.failures.end(); ++one) {
        bool is_its_turn = one->device < 0 ? one->at == count
                                           : device && device->ordinal == one->device && one->at == own_count;
        if (one->function != function || !is_its_turn)
            continue;
        int error = one->error;
        if (one->sticky && device)
            device->broken = error;
        all.failures.erase(one);
        return error;
    }
    return CUDA_SUCCESS;
}

/* What begins a function that needs no context, and one that needs it. */
#define BEGIN(symbol)                                          \
    Driver &all = driver();                                    \
    std::unique_lock<std::mutex> guard(all.lock);              \
    if (int error = counted(F_##symbol, current))              \
        return error;                                          \
    if (!all.initialised && F_##symbol != F_cuInit)            \
    return CUDA_ERROR_NOT_INITIALIZED

#define BEGIN_CONTEXT(symbol)                 \
    BEGIN(symbol);                            \
    if (!current || !current->retained)       \
        return CUDA_ERROR_INVALID_CONTEXT;    \
    if (current->broken)                      \
    return current->broken

bool lies_in(const std::map<uintptr_t, size_t> &ranges, uintptr_t begin, size_t bytes)
{
    auto after = ranges.upper_bound(begin);
    if (after == ranges.begin())
        return false;
    auto range = std::prev(after);
    return begin - range->first <= range->second && bytes <= range->second - (begin - range->first);
}

bool is_pinned(const void *begin, size_t bytes)
{
    for (const Device &device : driver().devices) {
        if (lies_in(device.pinned, reinterpret_cast<uintptr_t>(begin), bytes))
            return true;
    }
    return false;
}

void *take_memory(size_t bytes, size_t alignment)
{
    void *memory = std::aligned_alloc(alignment, (bytes + alignment - 1) / alignment * alignment);
    if (memory && bytes <= POISONED_MAX)
        memset(memory, 0xFF, bytes);
    return memory;
}

/* When a copy that begins now may end: its engine and the link are used by one after another. */
int64_t reserve_copy(Device *device, bool out, size_t bytes)
{
    Driver &all = driver();
    int64_t end = 0;
    auto take = [&](int64_t &free_ns, int64_t rate) {
        if (rate > 0) {
            free_ns = std::max(free_ns, now_ns()) + int64_t(double(bytes) * 1e9 / double(rate));
            end = std::max(end, free_ns);
        }
    };
    take(device->free_ns[out], all.copy_rate);
    take(all.link_free_ns, all.link_rate);
    return end;
}

/* Do one item of a stream. The lock is held, and let go of for the work itself. */
void perform(Stream *stream, Item &item, std::unique_lock<std::mutex> &guard)
{
    Driver &all = driver();
    Device *device = stream->device;
    int64_t latency_ns = all.latency_ns, kernel_ns = all.kernel_ns;
    if (latency_ns) {
        guard.unlock();
        sleep_until(now_ns() + latency_ns);
        guard.lock();
    }
    switch (item.kind) {
    case Item::COPY_IN:
    case Item::COPY_OUT: {
        int64_t end_ns = reserve_copy(device, item.kind == Item::COPY_OUT, item.bytes);
        if (counted(F_copy, device) || device->broken)
            break;
        guard.unlock();
        memcpy(item.target, item.source, item.bytes);
        sleep_until(end_ns);
        guard.lock();
        break;
    }
    case Item::KERNEL: {
        if (counted(F_kernel, device) || device->broken)
            break;
        guard.unlock();
        int64_t end_ns = now_ns() + kernel_ns;
        void *arguments[ARGUMENTS_MAX + 1];
        for (size_t index = 0; index < item.values.size(); index++)
            arguments[index] = &item.values[index];
        arguments[item.values.size()] = nullptr;
        item.kernel(arguments, item.grid, item.block);
        if (kernel_ns)
            sleep_until(end_ns);
        guard.lock();
        break;
    }
    case Item::RECORD:
        item.event->done = item.generation;
        item.event->time_ns = now_ns();
        break;
    case Item::WAIT:
        all.progress.wait(guard, [&] { return item.event->done >= item.generation || stream->stopped; });
        break;
    }
}

void run_stream(Stream *stream)
{
    Driver &all = driver();
    std::unique_lock<std::mutex> guard(all.lock);
    for (;;) {
        stream->wake.wait(guard, [&] { return !stream->items.empty() || stream->stopped; });
        if (stream->items.empty())
            return;
        Item item = std::move(stream->items.front());
        stream->items.pop_front();
        stream->busy = true;
        perform(stream, item, guard);
        stream->busy = false;
        if (item.kind == Item::RECORD || stream->items.empty())
            all.progress.notify_all();
    }
}

int queue(CUstream handle, Item item)
{
    Driver &all = driver();
    Stream *stream = reinterpret_cast<Stream *>(handle);
    if (!all.streams.count(stream))
        return CUDA_ERROR_INVALID_HANDLE;
    if (stream->device != current)
        return CUDA_ERROR_INVALID_CONTEXT;
    stream->items.push_back(std::move(item));
    stream->wake.notify_one();
    return CUDA_SUCCESS;
}

EventRef event_of(CUevent handle)
{
    auto found = driver().events.find(reinterpret_cast<Event *>(handle));
    return found == driver().events.end() ? nullptr : found->second;
}

/* The size of an ELF file in memory, which ends with its section headers or its last segment; 0 if it is none. */
size_t elf_bytes(const void *image, uint16_t *machine)
{
    const Elf64_Ehdr *header = static_cast<const Elf64_Ehdr *>(image);
    if (memcmp(header->e_ident, ELFMAG, SELFMAG) || header->e_ident[EI_CLASS] != ELFCLASS64)
        return 0;
    *machine = header->e_machine;
    size_t end = header->e_shoff + size_t(header->e_shnum) * header->e_shentsize;
    const char *base = static_cast<const char *>(image) + header->e_phoff;
    for (int index = 0; index < header->e_phnum; index++) {
        const Elf64_Phdr *segment = reinterpret_cast<const Elf64_Phdr *>(base + index * header->e_phentsize);
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
void *open_library(const void *image, size_t bytes, int *descriptor)
{
    int file = *descriptor = memfd_create("clockwork-kernels", MFD_CLOEXEC);
    if (file < 0)
        return nullptr;
    const char *from = static_cast<const char *>(image);
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
    const char *name;
};
const ErrorName ERRORS[] = {
#define NAME(error) {error, #error}
    NAME(CUDA_SUCCESS), NAME(CUDA_ERROR_INVALID_VALUE), NAME(CUDA_ERROR_OUT_OF_MEMORY),
    NAME(CUDA_ERROR_NOT_INITIALIZED), NAME(CUDA_ERROR_NO_DEVICE), NAME(CUDA_ERROR_INVALID_DEVICE),
    NAME(CUDA_ERROR_INVALID_IMAGE), NAME(CUDA_ERROR_INVALID_CONTEXT), NAME(CUDA_ERROR_NO_BINARY_FOR_GPU),
    NAME(CUDA_ERROR_INVALID_HANDLE), NAME(CUDA_ERROR_NOT_FOUND), NAME(CUDA_ERROR_NOT_READY),
    NAME(CUDA_ERROR_ILLEGAL_ADDRESS), NAME(CUDA_ERROR_LAUNCH_FAILED), NAME(CUDA_ERROR_UNKNOWN),
#undef NAME
};

} // namespace

/* ----- the driver API ------------------------------------------------------------------------- */

EXPORTED CUresult cuInit(unsigned)
{
    BEGIN(cuInit);
    all.initialised = true;
    return CUDA_SUCCESS;
}

EXPORTED CUresult cuDriverGetVersion(int *version)
{
    Driver &all = driver();
    std::unique_lock<std::mutex> guard(all.lock);
    if (int error = counted(F_cuDriverGetVersion, current))
        return error;
    *version = all.version;
    return CUDA_SUCCESS;
}

EXPORTED CUresult cuGetErrorName(CUresult error, const char **name)
{
    for (const ErrorName &one : ERRORS) {
        if (one.error == error) {
            *name = one.name;
            return CUDA_SUCCESS;
        }
    }
    *name = nullptr;
    return CUDA_ERROR_INVALID_VALUE;
}

EXPORTED CUresult cuDeviceGetCount(int *count)
{
    BEGIN(cuDeviceGetCount);
    *count = all.device_count;
    return CUDA_SUCCESS;
}

EXPORTED CUresult cuDeviceGet(CUdevice *device, int ordinal)
{
    BEGIN(cuDeviceGet);
    if (ordinal < 0 || ordinal >= all.device_count)
        return CUDA_ERROR_INVALID_DEVICE;
    *device = ordinal;
    return CUDA_SUCCESS;
}

EXPORTED CUresult cuDeviceGetName(char *name, int length, CUdevice device)
{
    BEGIN(cuDeviceGetName);
    snprintf(name, size_t(length), "fake GPU %d", device);
    return CUDA_SUCCESS;
}

EXPORTED CUresult cuDeviceGetUuid_v2(CUuuid *uuid, CUdevice device)
{
    BEGIN(cuDeviceGetUuid_v2);
    memset(uuid->bytes, 0xFA, sizeof uuid->bytes);
    uuid->bytes[15] = static_cast<unsigned char>(device);
    return CUDA_SUCCESS;
}

EXPORTED CUresult cuDeviceGetAttribute(int *value, int attribute, CUdevice)
{
    BEGIN(cuDeviceGetAttribute);
    if (attribute != CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR &&
        attribute != CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR)
        return CUDA_ERROR_INVALID_VALUE;
    *value = 0; /* an architecture that no card has: modules are for the host */
    return CUDA_SUCCESS;
}

EXPORTED CUresult cuDeviceTotalMem_v2(size_t *bytes, CUdevice)
{
    BEGIN(cuDeviceTotalMem_v2);
    *bytes = all.device_bytes;
    return CUDA_SUCCESS;
}

EXPORTED CUresult cuDevicePrimaryCtxRetain(CUcontext *context, CUdevice device)
{
    BEGIN(cuDevicePrimaryCtxRetain);
    if (device < 0 || device >= all.device_count)
        return CUDA_ERROR_INVALID_DEVICE;
    all.devices[device].retained++;
    *context = reinterpret_cast<CUcontext>(&all.devices[device]);
    return CUDA_SUCCESS;
}

EXPORTED CUresult cuDevicePrimaryCtxRelease_v2(CUdevice device)
{
    BEGIN(cuDevicePrimaryCtxRelease_v2);
    if (device < 0 || device >= all.device_count || !all.devices[device].retained)
        return CUDA_ERROR_INVALID_CONTEXT;
    Device &one = all.devices[device];
    if (--one.retained)
        return CUDA_SUCCESS;
    /* The context goes with the last who holds it, and its memory with it, even if it was broken. */
    for (auto *ranges : {&one.allocations, &one.pinned}) {
        for (const auto &[begin, bytes] : *ranges)
            std::free(reinterpret_cast<void *>(begin));
        ranges->clear();
    }
    one.used = 0;
    one.broken = CUDA_SUCCESS;
    return CUDA_SUCCESS;
}

EXPORTED CUresult cuCtxSetCurrent(CUcontext context)
{
    BEGIN(cuCtxSetCurrent);
    current = reinterpret_cast<Device *>(context);
    return CUDA_SUCCESS;
}

EXPORTED CUresult cuMemGetInfo_v2(size_t *free, size_t *total)
{
    BEGIN_CONTEXT(cuMemGetInfo_v2);
    *total = all.device_bytes;
    *free = all.device_bytes - std::min(all.device_bytes, current->used);
    return CUDA_SUCCESS;
}

EXPORTED CUresult cuMemAlloc_v2(CUdeviceptr *pointer, size_t bytes)
{
    BEGIN_CONTEXT(cuMemAlloc_v2);
    if (!bytes)
        return CUDA_ERROR_INVALID_VALUE;
    if (bytes > all.device_bytes - std::min(all.device_bytes, current->used))
        return CUDA_ERROR_OUT_OF_MEMORY;
    void *memory = take_memory(bytes, ALIGNMENT);
    if (!memory)
        return CUDA_ERROR_OUT_OF_MEMORY;
    current->used += bytes;
    current->allocations[reinterpret_cast<uintptr_t>(memory)] = bytes;
    *pointer = reinterpret_cast<uintptr_t>(memory);
    return CUDA_SUCCESS;
}

EXPORTED CUresult cuMemFree_v2(CUdeviceptr pointer)
{
    BEGIN_CONTEXT(cuMemFree_v2);
    auto found = current->allocations.find(pointer);
    if (found == current->allocations.end())
        return CUDA_ERROR_INVALID_VALUE;
    current->used -= found->second;
    current->allocations.erase(found);
    std::free(reinterpret_cast<void *>(pointer));
    return CUDA_SUCCESS;
}

EXPORTED CUresult cuMemHostAlloc(void **pointer, size_t bytes, unsigned)
{
    BEGIN_CONTEXT(cuMemHostAlloc);
    void *memory = bytes ? take_memory(bytes, HOST_ALIGNMENT) : nullptr;
    if (!memory)
        return bytes ? CUDA_ERROR_OUT_OF_MEMORY : CUDA_ERROR_INVALID_VALUE;
    current->pinned[reinterpret_cast<uintptr_t>(memory)] = bytes;
    *pointer = memory;
    return CUDA_SUCCESS;
}

EXPORTED CUresult cuMemFreeHost(void *pointer)
{
    BEGIN_CONTEXT(cuMemFreeHost);
    for (Device &device : all.devices) {
        if (device.pinned.erase(reinterpret_cast<uintptr_t>(pointer))) {
            std::free(pointer);
            return CUDA_SUCCESS;
        }
    }
    return CUDA_ERROR_INVALID_VALUE;
}

EXPORTED CUresult cuMemcpyHtoDAsync_v2(CUdeviceptr target, const void *source, size_t bytes, CUstream stream)
{
    BEGIN_CONTEXT(cuMemcpyHtoDAsync_v2);
    if (!lies_in(current->allocations, target, bytes))
        return CUDA_ERROR_INVALID_VALUE;
    if (!is_pinned(source, bytes))
        all.unpinned_copies++;
    Item item{Item::COPY_IN};
    item.target = reinterpret_cast<void *>(target);
    item.source = source;
    item.bytes = bytes;
    all.copied_in_bytes += int64_t(bytes);
    return queue(stream, std::move(item));
}

EXPORTED CUresult cuMemcpyDtoHAsync_v2(void *target, CUdeviceptr source, size_t bytes, CUstream stream)
{
    BEGIN_CONTEXT(cuMemcpyDtoHAsync_v2);
    if (!lies_in(current->allocations, source, bytes))
        return CUDA_ERROR_INVALID_VALUE;
    if (!is_pinned(target, bytes))
        all.unpinned_copies++;
    Item item{Item::COPY_OUT};
    item.target = target;
    item.source = reinterpret_cast<const void *>(source);
    item.bytes = bytes;
    return queue(stream, std::move(item));
}

EXPORTED CUresult cuModuleLoadData(CUmodule *module, const void *image)
{
    BEGIN_CONTEXT(cuModuleLoadData);
    uint16_t machine = 0;
    size_t bytes = elf_bytes(image, &machine);
    if (!bytes)
        return CUDA_ERROR_INVALID_IMAGE;
    if (machine != MACHINE)
        return CUDA_ERROR_NO_BINARY_FOR_GPU;
    int file = -1;
    void *library = open_library(image, bytes, &file);
    if (!library) {
        if (file >= 0)
            close(file);
        return CUDA_ERROR_INVALID_IMAGE;
    }
    Module *made = new Module{current, library, file};
    all.modules.insert(made);
    *module = reinterpret_cast<CUmodule>(made);
    return CUDA_SUCCESS;
}

EXPORTED CUresult cuModuleUnload(CUmodule handle)
{
    BEGIN_CONTEXT(cuModuleUnload);
    Module *module = reinterpret_cast<Module *>(handle);
    if (!all.modules.erase(module))
        return CUDA_ERROR_INVALID_HANDLE;
    dlclose(module->library);
    close(module->file);
    delete module;
    return CUDA_SUCCESS;
}

EXPORTED CUresult cuModuleGetFunction(CUfunction *function, CUmodule handle, const char *name)
{
    BEGIN_CONTEXT(cuModuleGetFunction);
    Module *module = reinterpret_cast<Module *>(handle);
    if (!all.modules.count(module))
        return CUDA_ERROR_INVALID_HANDLE;
    void *found = dlsym(module->library, ("cw_host_" + std::string(name)).c_str());
    if (!found)
        found = dlsym(module->library, name);
    if (!found)
        return CUDA_ERROR_NOT_FOUND;
    *function = static_cast<CUfunction>(found);
    return CUDA_SUCCESS;
}

EXPORTED CUresult cuFuncSetAttribute(CUfunction, int, int)
{
    BEGIN_CONTEXT(cuFuncSetAttribute);
    return CUDA_SUCCESS;
}

EXPORTED CUresult cuLaunchKernel(CUfunction function, unsigned grid_x, unsigned grid_y, unsigned grid_z,
                                 unsigned block_x, unsigned block_y, unsigned block_z, unsigned, CUstream stream,
                                 void **arguments, void **)
{
    BEGIN_CONTEXT(cuLaunchKernel);
    uint64_t threads = uint64_t(block_x) * block_y * block_z;
    if (!function || !threads || threads > 1024 || !grid_x || !grid_y || !grid_z)
        return CUDA_ERROR_INVALID_VALUE;
    Item item{Item::KERNEL};
    item.kernel = reinterpret_cast<Kernel>(reinterpret_cast<void *>(function));
    item.grid[0] = grid_x, item.grid[1] = grid_y, item.grid[2] = grid_z;
    item.block[0] = block_x, item.block[1] = block_y, item.block[2] = block_z;
    for (; *arguments; arguments++) {
        if (item.values.size() == ARGUMENTS_MAX)
            return CUDA_ERROR_INVALID_VALUE;
        uint64_t value;
        memcpy(&value, *arguments, sizeof value);
        item.values.push_back(value);
    }
    return queue(stream, std::move(item));
}

EXPORTED CUresult cuStreamCreate(CUstream *stream, unsigned)
{
    BEGIN_CONTEXT(cuStreamCreate);
    Stream *made = new Stream;
    made->device = current;
    all.streams.insert(made);
    made->thread = std::thread(run_stream, made);
    *stream = reinterpret_cast<CUstream>(made);
    return CUDA_SUCCESS;
}

EXPORTED CUresult cuStreamDestroy_v2(CUstream handle)
{
    BEGIN(cuStreamDestroy_v2);
    Stream *stream = reinterpret_cast<Stream *>(handle);
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

EXPORTED CUresult cuStreamWaitEvent(CUstream stream, CUevent handle, unsigned)
{
    BEGIN_CONTEXT(cuStreamWaitEvent);
    Item item{Item::WAIT};
    item.event = event_of(handle);
    if (!item.event)
        return CUDA_ERROR_INVALID_HANDLE;
    item.generation = item.event->issued;
    return queue(stream, std::move(item));
}

EXPORTED CUresult cuStreamSynchronize(CUstream handle)
{
    BEGIN_CONTEXT(cuStreamSynchronize);
    Stream *stream = reinterpret_cast<Stream *>(handle);
    if (!all.streams.count(stream))
        return CUDA_ERROR_INVALID_HANDLE;
    all.progress.wait(guard, [&] { return stream->items.empty() && !stream->busy; });
    return current->broken;
}

EXPORTED CUresult cuEventCreate(CUevent *event, unsigned)
{
    BEGIN_CONTEXT(cuEventCreate);
    EventRef made = std::make_shared<Event>();
    made->device = current;
    all.events[made.get()] = made;
    *event = reinterpret_cast<CUevent>(made.get());
    return CUDA_SUCCESS;
}

EXPORTED CUresult cuEventDestroy_v2(CUevent handle)
{
    BEGIN(cuEventDestroy_v2);
    return all.events.erase(reinterpret_cast<Event *>(handle)) ? CUDA_SUCCESS : CUDA_ERROR_INVALID_HANDLE;
}

EXPORTED CUresult cuEventRecord(CUevent handle, CUstream stream)
{
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

EXPORTED CUresult cuEventQuery(CUevent handle)
{
    BEGIN_CONTEXT(cuEventQuery);
    EventRef event = event_of(handle);
    if (!event)
        return CUDA_ERROR_INVALID_HANDLE;
    return event->done == event->issued ? CUDA_SUCCESS : CUDA_ERROR_NOT_READY;
}

EXPORTED CUresult cuEventElapsedTime(float *milliseconds, CUevent begin_handle, CUevent end_handle)
{
    BEGIN_CONTEXT(cuEventElapsedTime);
    EventRef begin = event_of(begin_handle), end = event_of(end_handle);
    if (!begin || !end || !begin->issued || !end->issued)
        return CUDA_ERROR_INVALID_HANDLE;
    if (begin->done != begin->issued || end->done != end->issued)
        return CUDA_ERROR_NOT_READY;
    *milliseconds = float(double(end->time_ns - begin->time_ns) / 1e6);
    return CUDA_SUCCESS;
}

/* ----- what tests tell and ask it ----------------------------------------------------------------- */

EXPORTED void cw_fake_setup(int device_count, size_t device_bytes, int driver_version)
{
    Driver &all = driver();
    std::unique_lock<std::mutex> guard(all.lock);
    all.device_count = std::clamp(device_count, 1, DEVICES_MAX);
    all.device_bytes = device_bytes;
    all.version = driver_version;
}

EXPORTED void cw_fake_speed(int64_t copy_rate, int64_t link_rate, int64_t kernel_ns, int64_t latency_ns)
{
    Driver &all = driver();
    std::unique_lock<std::mutex> guard(all.lock);
    all.copy_rate = copy_rate;
    all.link_rate = link_rate;
    all.kernel_ns = kernel_ns;
    all.latency_ns = latency_ns;
}

EXPORTED int cw_fake_fail(const char *name, int64_t nth, int error, int sticky)
{
    Driver &all = driver();
    std::unique_lock<std::mutex> guard(all.lock);
    Function function = function_named(name);
    if (function == FUNCTIONS)
        return -1;
    /* What a stream does cannot give an error back, so that it breaks the context. */
    bool breaks = sticky || function == F_copy || function == F_kernel;
    all.failures.push_back({function, -1, all.calls[function] + nth, error, breaks});
    return 0;
}

EXPORTED int cw_fake_fail_device(const char *name, int device, int64_t nth, int error)
{
    Driver &all = driver();
    std::unique_lock<std::mutex> guard(all.lock);
    Function function = function_named(name);
    if (function == FUNCTIONS || device < 0 || device >= DEVICES_MAX)
        return -1;
    all.failures.push_back({function, device, all.devices[device].calls[function] + nth, error, true});
    return 0;
}

EXPORTED void cw_fake_mend(void)
{
    Driver &all = driver();
    std::unique_lock<std::mutex> guard(all.lock);
    all.failures.clear();
    for (Device &device : all.devices)
        device.broken = CUDA_SUCCESS;
}

EXPORTED int64_t cw_fake_calls(const char *name)
{
    Driver &all = driver();
    std::unique_lock<std::mutex> guard(all.lock);
    Function function = function_named(name);
    return function == FUNCTIONS ? -1 : all.calls[function];
}

EXPORTED void cw_fake_live(cw_fake_counts *counts)
{
    Driver &all = driver();
    std::unique_lock<std::mutex> guard(all.lock);
    *counts = {};
    for (const Device &device : all.devices) {
        counts->contexts += device.retained;
        counts->allocations += int64_t(device.allocations.size());
        counts->device_bytes += int64_t(device.used);
        counts->host_allocations += int64_t(device.pinned.size());
        for (const auto &[begin, bytes] : device.pinned)
            counts->host_bytes += int64_t(bytes);
    }
    counts->streams = int64_t(all.streams.size());
    counts->events = int64_t(all.events.size());
    counts->modules = int64_t(all.modules.size());
    counts->unpinned_copies = all.unpinned_copies;
    counts->copied_in_bytes = all.copied_in_bytes;
}
