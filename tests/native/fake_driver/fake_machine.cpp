/* The fake driver at work; see fake_machine.h. */
#include "fake_machine.h"

#include <signal.h>
#include <time.h>

#include <cstdio>
#include <cstring>
#include <iterator>
#include <numeric>

namespace fake {

namespace {

int64_t now_ns() {
    timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return int64_t(now.tv_sec) * 1000000000 + now.tv_nsec;
}

void sleep_until(int64_t at_ns) {
    timespec at = {at_ns / 1000000000, at_ns % 1000000000};
    while (at_ns > now_ns())
        clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &at, nullptr);
}

const char* const NAMES[] = {
#define MEMBER(member, symbol, parameters) #symbol,
    CW_CUDA_FUNCTIONS(MEMBER) CW_CUDA_OPTIONAL_FUNCTIONS(MEMBER)
#undef MEMBER
        "copy",
    "kernel",
    "jit",
};

}  // namespace

Function function_named(const char* name) {
    for (int index = 0; index < FUNCTIONS; index++) {
        if (!strcmp(NAMES[index], name))
            return Function(index);
    }
    return FUNCTIONS;
}

/* Settings that a test gives to the driver of another process, in its environment: CLOCKWORK_FAKE_DEVICES;
 * CLOCKWORK_FAKE_FAIL as function:nth:error, which breaks the context, or function:nth:error:device, which
 * counts that device's calls; CLOCKWORK_FAKE_SPEED as copies:link:kernel:latency, see cw_fake_speed();
 * CLOCKWORK_FAKE_ENGINES as engines:call, see cw_fake_engines(); CLOCKWORK_FAKE_STALL, see cw_fake_stall();
 * CLOCKWORK_FAKE_CARD, see cw_fake_card(); CLOCKWORK_FAKE_MIG as card:instances, see cw_fake_mig(). */
Driver::Driver() {
    if (const char* count = getenv("CLOCKWORK_FAKE_DEVICES"))
        device_count = std::clamp(atoi(count), 1, DEVICES_MAX);
    if (const char* failure = getenv("CLOCKWORK_FAKE_FAIL")) {
        char name[64];
        long nth;
        int error, device = -1;
        if (sscanf(failure, "%63[^:]:%ld:%d:%d", name, &nth, &error, &device) >= 3 && function_named(name) != FUNCTIONS)
            failures.push_back({function_named(name), device, nth, error, true});
    }
    if (const char* speed = getenv("CLOCKWORK_FAKE_SPEED")) {
        long rates[4] = {};
        sscanf(speed, "%ld:%ld:%ld:%ld", &rates[0], &rates[1], &rates[2], &rates[3]);
        copy_rate = rates[0], link_rate = rates[1], kernel_ns = rates[2], latency_ns = rates[3];
    }
    if (const char* engines = getenv("CLOCKWORK_FAKE_ENGINES")) {
        long taken_ns = 0;
        sscanf(engines, "%d:%ld", &copy_engines, &taken_ns);
        call_ns = taken_ns;
    }
    if (const char* card = getenv("CLOCKWORK_FAKE_CARD"))
        capability = atoi(card);
    if (const char* mig = getenv("CLOCKWORK_FAKE_MIG")) {
        int card = 0, count = 0;
        if (sscanf(mig, "%d:%d", &card, &count) == 2 && card >= 0 && card < DEVICES_MAX)
            instances[card] = std::clamp(count, 0, INSTANCES_MAX);
    }
    if (const char* stall = getenv("CLOCKWORK_FAKE_STALL"))
        stall_ns = atol(stall);
    for (int index = 0; index < DEVICES_MAX; index++)
        devices[index].ordinal = index;
}

/* Never freed: a stream that nobody destroyed outlives main(). */
Driver& driver() {
    static Driver* one = new Driver;
    return *one;
}

thread_local Device* current = nullptr;

/* Counts a call; returns the error that a test asked for, if this call is to fail. The lock is held. */
int counted(Function function, Device* device) {
    Driver& all = driver();
    int64_t count = ++all.calls[function], own_count = device ? ++device->calls[function] : 0;
    for (auto one = all.failures.begin(); one != all.failures.end(); ++one) {
        bool is_its_turn =
            one->device < 0 ? one->at == count : device && device->ordinal == one->device && one->at == own_count;
        if (one->function != function || !is_its_turn)
            continue;
        int error = one->error;
        if (one->sticky && device)
            device->broken = error;
        all.failures.erase(one);
        if (error < 0)
            raise(-error);
        return error;
    }
    return CUDA_SUCCESS;
}

void spend_call() {
    Driver& all = driver();
    if (!all.call_ns)
        return;
    std::lock_guard<std::mutex> guard(all.call_lock);
    int64_t until_ns = now_ns() + all.call_ns;
    while (now_ns() < until_ns) {
    }
}

bool lies_in(const std::map<uintptr_t, size_t>& ranges, uintptr_t begin, size_t bytes) {
    auto after = ranges.upper_bound(begin);
    if (after == ranges.begin())
        return false;
    auto range = std::prev(after);
    return begin - range->first <= range->second && bytes <= range->second - (begin - range->first);
}

bool is_pinned(const void* begin, size_t bytes) {
    for (const Device& device : driver().devices) {
        if (lies_in(device.pinned, reinterpret_cast<uintptr_t>(begin), bytes))
            return true;
    }
    return false;
}

namespace {

/* Whether a copy was issued before all other copies of its device that wait only for copies. */
bool is_next_copy(const Device* device, const Item& item) {
    auto is_earlier = [&](const Item& one) {
        return (one.kind == Item::COPY_IN || one.kind == Item::COPY_OUT) && one.place < item.place;
    };
    auto waits = [](const Item& one) {
        return one.kind == Item::KERNEL || one.kind == Item::WAIT || one.kind == Item::GRAPH;
    };
    return std::none_of(driver().streams.begin(), driver().streams.end(), [&](const Stream* stream) {
        if (stream->device != device || (stream->at && waits(*stream->at)))
            return false;
        auto end = std::find_if(stream->items.begin(), stream->items.end(), waits);
        return (stream->at && is_earlier(*stream->at)) || std::any_of(stream->items.begin(), end, is_earlier);
    });
}

/* The end of a copy that begins now: its engine and the link serve copies in sequence. */
int64_t reserve_copy(Stream* stream, const Item& item) {
    Driver& all = driver();
    Device* device = stream->device;
    bool out = item.kind == Item::COPY_OUT;
    /* Consecutive copies leave no gap, however late this thread woke up. */
    int64_t begin_ns = item.issued_ns < stream->copied_ns ? stream->copied_ns : now_ns(), end = 0;
    auto take = [&](int64_t& free_ns, int64_t rate) {
        if (rate > 0) {
            free_ns = std::max(free_ns, begin_ns) + int64_t(double(item.bytes) * 1e9 / double(rate));
            end = std::max(end, free_ns);
        }
    };
    take(device->free_ns[out && all.copy_engines > 1], all.copy_rate);
    take(all.link_free_ns, all.link_rate);
    stream->copied_ns = end;
    return end;
}

/* Whether a kernel would access an address that is misaligned for its type. */
bool is_misaligned(const Item& item) {
    for (size_t index = 0; item.widths && index < item.values.size(); index++) {
        if (item.values[index] % uint64_t(item.widths[index]))
            return true;
    }
    return false;
}

/* Executes an item of a stream. The lock is held, and released during the work itself. */
void perform(Stream* stream, Item& item, std::unique_lock<std::mutex>& guard) {
    Driver& all = driver();
    Device* device = stream->device;
    int64_t latency_ns = all.latency_ns, kernel_ns = all.kernel_ns;
    auto log = [&](int64_t kind, int64_t begin_ns, size_t bytes) {
        if (all.steps.size() == STEPS_MAX)
            all.steps.pop_front();
        all.steps.push_back({kind, begin_ns, now_ns(), int64_t(bytes), item.issued_ns});
    };
    if (latency_ns && item.kind != Item::GRAPH) {
        guard.unlock();
        sleep_until(now_ns() + latency_ns);
        guard.lock();
    }
    if (item.kind == Item::KERNEL || item.kind == Item::WAIT)
        stream->copied_ns = 0;
    switch (item.kind) {
        case Item::COPY_IN:
        case Item::COPY_OUT: {
            bool takes_turns = all.copy_engines == 1;
            if (takes_turns) {
                all.progress.wait(guard, [&] { return !device->copies && is_next_copy(device, item); });
                device->copies = true;
            }
            int64_t begin_ns = now_ns();
            int64_t end_ns = reserve_copy(stream, item);
            if (!counted(F_copy, device) && !device->broken) {
                guard.unlock();
                memcpy(item.target, item.source, item.bytes);
                sleep_until(end_ns);
                guard.lock();
                log(item.kind == Item::COPY_IN ? CW_FAKE_COPY_IN : CW_FAKE_COPY_OUT, begin_ns, item.bytes);
            }
            if (takes_turns)
                device->copies = false;
            break;
        }
        case Item::KERNEL: {
            if (counted(F_kernel, device) || device->broken)
                break;
            if (is_misaligned(item)) {
                device->broken = CUDA_ERROR_MISALIGNED_ADDRESS;
                break;
            }
            guard.unlock();
            int64_t begin_ns = now_ns(), end_ns = begin_ns + kernel_ns;
            void* arguments[ARGUMENTS_MAX + 1];
            for (size_t index = 0; index < item.values.size(); index++)
                arguments[index] = &item.values[index];
            arguments[item.values.size()] = nullptr;
            if (item.kernel)
                item.kernel(arguments, item.grid, item.block);
            if (kernel_ns)
                sleep_until(end_ns);
            guard.lock();
            all.progress.wait(guard, [&] { return !all.keeps_kernels || stream->stopped; });
            log(CW_FAKE_KERNEL, begin_ns, 0);
            break;
        }
        case Item::WRITE:
            if (device->broken)
                break;
            log(CW_FAKE_WRITE, now_ns(), 0);
            __atomic_store_n(static_cast<uint32_t*>(item.target), uint32_t(item.generation), __ATOMIC_RELEASE);
            break;
        case Item::RECORD:
        case Item::RECORD_IN_GRAPH:
            item.event->done = item.kind == Item::RECORD ? item.generation : ++item.event->issued;
            item.event->time_ns = now_ns();
            break;
        case Item::WAIT:
            all.progress.wait(guard, [&] { return item.event->done >= item.generation || stream->stopped; });
            break;
        case Item::GRAPH:
            all.progress.wait(guard, [&] { return item.event->done + 1 >= item.generation || stream->stopped; });
            for (Item node : *item.nodes)
                perform(stream, node, guard);
            item.event->done = item.generation;
            break;
    }
}

}  // namespace

void run_stream(Stream* stream) {
    Driver& all = driver();
    std::unique_lock<std::mutex> guard(all.lock);
    for (;;) {
        stream->wake.wait(guard, [&] { return !stream->items.empty() || stream->stopped; });
        if (stream->items.empty())
            return;
        Item item = std::move(stream->items.front());
        stream->items.pop_front();
        stream->busy = true;
        stream->at = &item;
        perform(stream, item, guard);
        stream->busy = false;
        stream->at = nullptr;
        if (all.copy_engines == 1 || item.kind == Item::RECORD || item.kind == Item::GRAPH || stream->items.empty())
            all.progress.notify_all();
    }
}

void wait_while_held(std::unique_lock<std::mutex>& guard) {
    driver().progress.wait(guard, [] { return !current->held; });
}

Stalled::Stalled(const char* function, int device) : function_(function), device_(device), begin_ns_(now_ns()) {}

Stalled::~Stalled() {
    const char* path = getenv("CLOCKWORK_FAKE_STALLS");
    FILE* file = path ? fopen(path, "a") : nullptr;
    if (!file)
        return;
    fprintf(file, "%s %d %lld %lld\n", function_, device_, (long long)begin_ns_, (long long)now_ns());
    fclose(file);
}

void stall(std::unique_lock<std::mutex>& guard, bool everywhere) {
    Driver& all = driver();
    if (!all.stall_ns)
        return;
    auto is_meant = [&](const Device& device) { return everywhere ? device.retained > 0 : &device == current; };
    auto is_any = [&](auto is_so) { return std::any_of(std::begin(all.devices), std::end(all.devices), is_so); };
    all.progress.wait(guard, [&] { return !is_any([&](Device& one) { return is_meant(one) && one.held; }); });
    std::vector<Device*> meant;
    for (Device& device : all.devices) {
        if (is_meant(device)) {
            device.held = true;
            meant.push_back(&device);
        }
    }
    all.progress.wait(guard, [&] {
        return std::none_of(all.streams.begin(), all.streams.end(), [&](const Stream* stream) {
            return stream->device->held && (stream->busy || !stream->items.empty());
        });
    });
    int64_t until_ns = now_ns() + all.stall_ns;
    guard.unlock();
    sleep_until(until_ns);
    guard.lock();
    for (Device* device : meant)
        device->held = false;
    all.progress.notify_all();
}

int queue(CUstream handle, Item item) {
    Driver& all = driver();
    Stream* stream = reinterpret_cast<Stream*>(handle);
    if (!all.streams.count(stream))
        return CUDA_ERROR_INVALID_HANDLE;
    if (stream->device != current)
        return CUDA_ERROR_INVALID_CONTEXT;
    item.place = all.items_issued++;
    item.issued_ns = now_ns();
    stream->items.push_back(std::move(item));
    stream->wake.notify_one();
    return CUDA_SUCCESS;
}

}  // namespace fake

using namespace fake;

/* ----- what tests tell and ask it ----------------------------------------------------------------- */

EXPORTED void cw_fake_speed(int64_t copy_rate, int64_t link_rate, int64_t kernel_ns, int64_t latency_ns) {
    Driver& all = driver();
    std::unique_lock<std::mutex> guard(all.lock);
    all.copy_rate = copy_rate;
    all.link_rate = link_rate;
    all.kernel_ns = kernel_ns;
    all.latency_ns = latency_ns;
}

EXPORTED void cw_fake_engines(int copy_engines, int64_t call_ns) {
    Driver& all = driver();
    std::unique_lock<std::mutex> guard(all.lock);
    all.copy_engines = copy_engines;
    all.call_ns = call_ns;
}

EXPORTED void cw_fake_keep_kernels(int keep) {
    Driver& all = driver();
    std::unique_lock<std::mutex> guard(all.lock);
    all.keeps_kernels = keep;
    all.progress.notify_all();
}

EXPORTED int cw_fake_steps(cw_fake_step* steps, int most) {
    Driver& all = driver();
    std::unique_lock<std::mutex> guard(all.lock);
    size_t count = std::min(size_t(most), all.steps.size());
    std::copy(all.steps.end() - std::ptrdiff_t(count), all.steps.end(), steps);
    all.steps.clear();
    return int(count);
}

EXPORTED void cw_fake_stall(int64_t stall_ns) {
    Driver& all = driver();
    std::unique_lock<std::mutex> guard(all.lock);
    all.stall_ns = stall_ns;
}

EXPORTED int cw_fake_fail(const char* name, int64_t nth, int error, int sticky) {
    Driver& all = driver();
    std::unique_lock<std::mutex> guard(all.lock);
    Function function = function_named(name);
    if (function == FUNCTIONS)
        return -1;
    /* An operation of a stream cannot return an error, so it breaks the context. */
    bool breaks = sticky || function == F_copy || function == F_kernel;
    all.failures.push_back({function, -1, all.calls[function] + nth, error, breaks});
    return 0;
}

EXPORTED int cw_fake_fail_device(const char* name, int device, int64_t nth, int error) {
    Driver& all = driver();
    std::unique_lock<std::mutex> guard(all.lock);
    Function function = function_named(name);
    if (function == FUNCTIONS || device < 0 || device >= DEVICES_MAX)
        return -1;
    all.failures.push_back({function, device, all.devices[device].calls[function] + nth, error, true});
    return 0;
}

EXPORTED void cw_fake_mend(void) {
    Driver& all = driver();
    std::unique_lock<std::mutex> guard(all.lock);
    all.failures.clear();
    for (Device& device : all.devices)
        device.broken = CUDA_SUCCESS;
}

EXPORTED int64_t cw_fake_calls(const char* name) {
    Driver& all = driver();
    std::unique_lock<std::mutex> guard(all.lock);
    if (!*name)
        return std::accumulate(all.calls, all.calls + F_copy, int64_t(0)) - all.calls[F_cuEventQuery];
    Function function = function_named(name);
    return function == FUNCTIONS ? -1 : all.calls[function];
}

EXPORTED void cw_fake_live(cw_fake_counts* counts) {
    Driver& all = driver();
    std::unique_lock<std::mutex> guard(all.lock);
    *counts = {};
    for (const Device& device : all.devices) {
        counts->contexts += device.retained;
        counts->allocations += int64_t(device.allocations.size());
        counts->device_bytes += int64_t(device.used);
        counts->host_allocations += int64_t(device.pinned.size());
        for (const auto& [begin, bytes] : device.pinned)
            counts->host_bytes += int64_t(bytes);
    }
    counts->streams = int64_t(all.streams.size());
    counts->events = int64_t(all.events.size());
    counts->modules = int64_t(all.modules.size());
    counts->graphs = int64_t(all.graphs.size());
    counts->graph_execs = int64_t(all.graph_execs.size());
    counts->unpinned_copies = all.unpinned_copies;
    counts->copied_in_bytes = all.copied_in_bytes;
}
