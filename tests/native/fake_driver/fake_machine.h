/* The fake driver's insides: devices, streams that are threads, events that are timestamps, and failures that were asked
 * for. fake_machine.cpp has them run and takes orders from tests (fake_driver.h); fake_driver.cpp is the driver API. */
#ifndef CLOCKWORK_FAKE_MACHINE_H
#define CLOCKWORK_FAKE_MACHINE_H

#include "device/cuda_api.h"
#include "fake_driver.h"

#include <algorithm>
#include <atomic>
#include <condition_variable>
#include <cstdlib>
#include <deque>
#include <map>
#include <memory>
#include <mutex>
#include <set>
#include <string>
#include <thread>
#include <vector>

#define EXPORTED extern "C" __attribute__((visibility("default")))

namespace fake {

constexpr int DEVICES_MAX = 16;
constexpr int INSTANCES_MAX = 7;       /* of a card in MIG mode */
constexpr int SHARED_BYTES = 48 << 10; /* of a block that has asked for no more */
constexpr int REGISTERS = 65536;       /* of a multiprocessor, and the most of a block */
constexpr int THREADS_MAX = 1024;      /* of a block */
constexpr size_t LOCAL_BYTES = 1024;   /* of each thread, for which a context has memory at first */
constexpr int ARGUMENTS_MAX = 4096;
constexpr size_t STEPS_MAX = 1 << 14;
constexpr size_t POISONED_MAX = 64 << 20; /* of fresh memory: reading what nobody wrote gives NaN */
constexpr size_t ALIGNMENT = 512;         /* of an allocation, as a card's are */
constexpr size_t HOST_ALIGNMENT = 4096;   /* of pinned memory */

using Kernel = void (*)(void** arguments, const unsigned* grid, const unsigned* block);

enum Function {
#define MEMBER(member, symbol, parameters) F_##symbol,
    CW_CUDA_FUNCTIONS(MEMBER) CW_CUDA_OPTIONAL_FUNCTIONS(MEMBER)
#undef MEMBER
        F_copy,
    F_kernel,
    F_jit,
    FUNCTIONS
};

struct Module;

struct Device {
    int ordinal = 0;
    int retained = 0;
    bool held = false; /* by a call that stalls: every other call that needs its context waits */
    int broken = 0;    /* the sticky error of its context */
    size_t used = 0;
    size_t local_bytes = LOCAL_BYTES; /* of each thread, for which its context has memory */
    int64_t calls[FUNCTIONS] = {};
    int64_t free_ns[2] = {}; /* when each of its copy engines is done: in, out */
    bool copies = false;     /* its one copy engine, where it has one, is at a copy */
    std::map<uintptr_t, size_t> allocations;
    std::map<uintptr_t, size_t> pinned; /* that was made here; usable for every device */
};

struct Event {
    Device* device;
    uint64_t issued = 0; /* times that it was recorded, as the caller sees it, and as it has happened */
    uint64_t done = 0;
    int64_t time_ns = 0;
};

using EventRef = std::shared_ptr<Event>;

struct Item {
    /* RECORD_IN_GRAPH: the event counts as recorded when it happens, and not from the launch on. GRAPH: what the event is
     * recorded behind, and what waits for that of the launch before it. */
    enum Kind { COPY_IN, COPY_OUT, KERNEL, WRITE, RECORD, RECORD_IN_GRAPH, WAIT, GRAPH } kind = KERNEL;
    int64_t place = 0; /* how many were issued before it, and when it was */
    int64_t issued_ns = 0;
    void* target = nullptr;
    const void* source = nullptr;
    size_t bytes = 0;
    Kernel kernel = nullptr;
    const int* widths = nullptr; /* as in Code */
    unsigned grid[3] = {}, block[3] = {};
    std::vector<uint64_t> values = {};
    EventRef event = nullptr;
    uint64_t generation = 0;
    std::shared_ptr<const std::vector<Item>> nodes = nullptr; /* of a graph */
};

struct Stream {
    Device* device;
    std::condition_variable wake; /* an item was queued */
    std::deque<Item> items;
    int64_t copied_ns = 0; /* when the copy before what it does was to end, if nothing but marks came since; else 0 */
    const Item* at = nullptr; /* what it does, which is no longer among its items */
    bool busy = false;
    bool stopped = false;
    std::thread thread;
};

/* What a CUfunction is. */
struct Code {
    Module* module = nullptr;
    Kernel kernel = nullptr; /* null: it is for a card, and does nothing here */
    bool is_loaded = false;
    int registers = 32;
    int shared_bytes = 0;        /* static */
    int dynamic_bytes = 0;       /* the most that a launch may add to it */
    int threads = 1024;          /* the most of a block, by its own bound and by its registers */
    int local_bytes = 0;         /* of each thread */
    bool is_known = false;       /* whether its parameters are */
    std::vector<int> sizes;      /* of each, in bytes */
    const int* widths = nullptr; /* what the address in each has to be a multiple of */
};

struct Module {
    Device* device = nullptr;
    int architecture = 0;                /* 86: for compute capability 8.6; 0: for the host */
    std::map<std::string, Code> kernels; /* all that a card's has; of the host's those that were asked for */
    void* library = nullptr;
    int file = -1; /* open for as long as it is: the loader knows a library by its path, which holds this number */
};

struct Graph; /* these two in fake_graphs.cpp */
struct GraphExec;

/* A device as a process sees it. */
struct Shown {
    int card;
    int instance; /* of MIG; -1: the whole card */
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
    std::condition_variable
        progress; /* an event has happened, a stream has nothing left to do, a call stalls no more */
    bool initialised = false;
    int device_count = 1;
    size_t device_bytes = size_t(1) << 30;
    int version = 12040;
    int instances[DEVICES_MAX] = {}; /* of each card that is in MIG mode */
    std::vector<Shown> shown;        /* by ordinal */
    int pinned_node = -1;            /* that the last one to pin memory preferred */
    int capability = 0;              /* of every device; 0: it is no card */
    int64_t copy_rate = 0, link_rate = 0, kernel_ns = 0, latency_ns = 0, stall_ns = 0;
    int64_t link_free_ns = 0;
    bool keeps_kernels = false; /* from ending */
    int copy_engines = 2;
    std::atomic<int64_t> call_ns = 0;
    std::mutex call_lock; /* held for as long as a call takes */
    int64_t items_issued = 0;
    std::deque<cw_fake_step> steps; /* that streams have done, at most STEPS_MAX of them */
    int64_t calls[FUNCTIONS] = {};
    int64_t unpinned_copies = 0, copied_in_bytes = 0;
    Device devices[DEVICES_MAX];
    std::vector<Failure> failures;
    std::set<Stream*> streams;
    std::map<Event*, EventRef> events;
    std::set<Module*> modules;
    std::set<Code*> codes; /* of all modules */
    std::set<Graph*> graphs;
    std::set<GraphExec*> graph_execs;
    bool loads_lazily = false;

    Driver();
};

/* Never freed: a stream that nobody destroyed outlives main(). */
Driver& driver();

extern thread_local Device* current;

/* FUNCTIONS if there is none of that name. */
Function function_named(const char* name);

/* Count a call; the error that was asked for, if it is its turn. The lock is held. */
int counted(Function function, Device* device);

/* Take the time that a call takes, while every other call waits. */
void spend_call();

/* Whether a range lies in one of these. */
bool lies_in(const std::map<uintptr_t, size_t>& ranges, uintptr_t begin, size_t bytes);

bool is_pinned(const void* begin, size_t bytes);

/* Decide what a process sees, as CUDA_VISIBLE_DEVICES says. The lock is held. */
void show_devices();

bool is_shown(CUdevice device);

/* An attribute of a card; an error if it is none that is known. */
int attribute_of(int capability, int attribute, int* value);

/* The item that launches a kernel, checked; it stalls where the kernel is loaded only now. The lock is held. */
int make_launch(CUfunction function, const unsigned grid[3], const unsigned block[3], unsigned shared_bytes,
                void** arguments, std::unique_lock<std::mutex>& guard, Item* item);

/* Of each thread of a kernel. */
size_t local_bytes_of(CUfunction function);

/* Have the current device have the memory that each thread of a kernel takes, which stalls where it has less. The lock is
 * held. */
void have_local(size_t bytes, std::unique_lock<std::mutex>& guard);

/* What a stream's thread does until the stream is stopped. */
void run_stream(Stream* stream);

/* Have a stream do something after what it has to do. The lock is held. */
int queue(CUstream handle, Item item);

/* Wait while another call stalls the current device. The lock is held. */
void wait_while_held(std::unique_lock<std::mutex>& guard);

/* Where calls are to stall (cw_fake_stall()): have every other call about this device wait, or about every device
 * where ``everywhere``, until what is queued there is done and the time has passed. The lock is held, and let go of
 * meanwhile. */
void stall(std::unique_lock<std::mutex>& guard, bool everywhere);

/* A call that stalls a card's driver: where CLOCKWORK_FAKE_STALLS names a file, a line is appended to it at the end of
 * the call, with the function, the device, and begin and end by CLOCK_MONOTONIC. */
class Stalled {
public:
    Stalled(const char* function, int device);
    ~Stalled();
    Stalled(const Stalled&) = delete;
    Stalled& operator=(const Stalled&) = delete;

private:
    const char* function_;
    int device_;
    int64_t begin_ns_;
};

/* What begins a function that needs no context, one that needs it, and one that stalls. */
#define BEGIN(symbol)                               \
    Driver& all = driver();                         \
    spend_call();                                   \
    std::unique_lock<std::mutex> guard(all.lock);   \
    if (int error = counted(F_##symbol, current))   \
        return error;                               \
    if (!all.initialised && F_##symbol != F_cuInit) \
    return CUDA_ERROR_NOT_INITIALIZED

#define BEGIN_CONTEXT(symbol)              \
    BEGIN(symbol);                         \
    if (!current || !current->retained)    \
        return CUDA_ERROR_INVALID_CONTEXT; \
    wait_while_held(guard);                \
    if (current->broken)                   \
    return current->broken

#define BEGIN_STALLING(symbol, everywhere)    \
    BEGIN_CONTEXT(symbol);                    \
    Stalled noted(#symbol, current->ordinal); \
    stall(guard, everywhere)

}  // namespace fake

#endif
