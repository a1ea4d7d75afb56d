/* The fake driver's internals: devices, streams that are threads, events that are timestamps, and failures
 * that tests ask for. fake_machine.cpp runs them and takes orders from tests (fake_driver.h); fake_driver.cpp
 * is the driver API. */
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
constexpr int INSTANCES_MAX = 7;       /* bound on the MIG instances of a card */
constexpr int SHARED_BYTES = 48 << 10; /* shared memory of a block that has not opted in for more */
constexpr int REGISTERS = 65536;       /* registers of a multiprocessor, and bound for a block */
constexpr int THREADS_MAX = 1024;      /* bound on the threads of a block */
constexpr size_t LOCAL_BYTES = 1024;   /* local memory of each thread that a context has at first */
constexpr int ARGUMENTS_MAX = 4096;
constexpr size_t STEPS_MAX = 1 << 14;
/* bound on the poisoned bytes of fresh memory: reading them gives NaN */
constexpr size_t POISONED_MAX = 64 << 20;
constexpr size_t ALIGNMENT = 512;       /* alignment of an allocation, as a card's */
constexpr size_t HOST_ALIGNMENT = 4096; /* alignment of pinned memory */

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
    bool held = false; /* held by a call that stalls: other calls that need its context wait */
    int broken = 0;    /* the sticky error of its context */
    size_t used = 0;
    size_t local_bytes = LOCAL_BYTES; /* local memory of each thread that its context has */
    int64_t calls[FUNCTIONS] = {};
    int64_t free_ns[2] = {}; /* time at which each copy engine is done: in, out */
    bool copies = false;     /* whether its single copy engine, if it has one, is busy */
    std::map<uintptr_t, size_t> allocations;
    std::map<uintptr_t, size_t> pinned; /* pinned memory made here; usable for every device */
};

struct Event {
    Device* device;
    /* number of times that it was recorded, as the caller sees it, and as it has happened */
    uint64_t issued = 0;
    uint64_t done = 0;
    int64_t time_ns = 0;
};

using EventRef = std::shared_ptr<Event>;

struct Item {
    /* MANUAL RECORD_IN_GRAPH: the event counts as recorded when it happens, and not from the launch on.
     * GRAPH: the end of the launch, for which the next launch of the same graph waits. */
    enum Kind { COPY_IN, COPY_OUT, KERNEL, WRITE, RECORD, RECORD_IN_GRAPH, WAIT, GRAPH } kind = KERNEL;
    int64_t place = 0; /* number of items issued before it, and the time of issue */
    int64_t issued_ns = 0;
    void* target = nullptr;
    const void* source = nullptr;
    size_t bytes = 0;
    Kernel kernel = nullptr;
    const int* widths = nullptr; /* alignments, as in Code */
    unsigned grid[3] = {}, block[3] = {};
    std::vector<uint64_t> values = {};
    EventRef event = nullptr;
    uint64_t generation = 0;
    std::shared_ptr<const std::vector<Item>> nodes = nullptr; /* nodes of a graph */
};

struct Stream {
    Device* device;
    std::condition_variable wake; /* notified when an item was queued */
    std::deque<Item> items;
    int64_t copied_ns = 0;    /* end of the copy before the current item, if only marks came since; else 0 */
    const Item* at = nullptr; /* the current item, which is no longer in its queue */
    bool busy = false;
    bool stopped = false;
    std::thread thread;
};

/* The object behind a CUfunction. */
struct Code {
    Module* module = nullptr;
    Kernel kernel = nullptr; /* null: the kernel is for a card, and does nothing here */
    bool is_loaded = false;
    int registers = 32;
    int shared_bytes = 0;        /* static shared memory */
    int dynamic_bytes = 0;       /* bound on the dynamic shared memory of a launch */
    int threads = 1024;          /* bound on the threads of a block, by its own bound and by its registers */
    int local_bytes = 0;         /* local memory of each thread */
    bool is_known = false;       /* whether its parameters are known */
    std::vector<int> sizes;      /* bytes of each parameter */
    const int* widths = nullptr; /* required alignment of the address in each parameter */
};

struct Module {
    Device* device = nullptr;
    int architecture = 0; /* 86: for compute capability 8.6; 0: for the host */
    /* all kernels of a card's module; for the host, those that were asked for */
    std::map<std::string, Code> kernels;
    void* library = nullptr;
    /* open as long as the module exists: the loader knows a library by its path, which has this number */
    int file = -1;
};

struct Graph; /* defined in fake_graphs.cpp */
struct GraphExec;

/* A device as a process sees it. */
struct Shown {
    int card;
    int instance; /* MIG instance; -1: the whole card */
};

struct Failure {
    Function function;
    int device; /* the device whose calls count; -1: any device */
    int64_t at; /* the count of these calls at which the failure happens */
    int error;
    bool sticky;
};

struct Driver {
    std::mutex lock;
    std::condition_variable
        progress; /* notified when an event has happened, a stream is idle, or a stalling call has ended */
    bool initialised = false;
    int device_count = 1;
    size_t device_bytes = size_t(1) << 30;
    int version = 12040;
    int instances[DEVICES_MAX] = {}; /* number of instances of each card in MIG mode */
    std::vector<Shown> shown;        /* visible devices by ordinal */
    int pinned_node = -1;            /* node that the thread that last pinned memory preferred */
    int capability = 0;              /* compute capability of every device; 0: no card */
    int64_t copy_rate = 0, link_rate = 0, kernel_ns = 0, latency_ns = 0, stall_ns = 0;
    int64_t link_free_ns = 0;
    bool keeps_kernels = false; /* whether kernels are kept from ending */
    int copy_engines = 2;
    std::atomic<int64_t> call_ns = 0;
    std::mutex call_lock; /* held for the duration of a call */
    int64_t items_issued = 0;
    std::deque<cw_fake_step> steps; /* operations that streams have done, at most STEPS_MAX */
    int64_t calls[FUNCTIONS] = {};
    int64_t unpinned_copies = 0, copied_in_bytes = 0;
    Device devices[DEVICES_MAX];
    std::vector<Failure> failures;
    std::set<Stream*> streams;
    std::map<Event*, EventRef> events;
    std::set<Module*> modules;
    std::set<Code*> codes; /* the code of all modules */
    std::set<Graph*> graphs;
    std::set<GraphExec*> graph_execs;
    bool loads_lazily = false;

    Driver();
};

/* Never freed: a stream that nobody destroyed outlives main(). */
Driver& driver();

extern thread_local Device* current;

/* Index of a function by its name; FUNCTIONS if there is none. */
Function function_named(const char* name);

/* Counts a call; returns the error that a test asked for, if this call is to fail. The lock is held. */
int counted(Function function, Device* device);

/* Waits for the duration of a call, while other calls wait. */
void spend_call();

/* Whether a range lies in one of these. */
bool lies_in(const std::map<uintptr_t, size_t>& ranges, uintptr_t begin, size_t bytes);

bool is_pinned(const void* begin, size_t bytes);

/* Decides which devices a process sees, by CUDA_VISIBLE_DEVICES. The lock is held. */
void show_devices();

bool is_shown(CUdevice device);

/* An attribute of a card; an error if it is unknown. */
int attribute_of(int capability, int attribute, int* value);

/* Makes and checks the item that launches a kernel; stalls if the kernel is loaded only now. The lock is
 * held. */
int make_launch(CUfunction function, const unsigned grid[3], const unsigned block[3], unsigned shared_bytes,
                void** arguments, std::unique_lock<std::mutex>& guard, Item* item);

/* Local memory of each thread of a kernel. */
size_t local_bytes_of(CUfunction function);

/* Gives the current device the local memory that each thread of a kernel takes; stalls if that is more than
 * it has. The lock is held. */
void have_local(size_t bytes, std::unique_lock<std::mutex>& guard);

/* The body of a stream's thread, until the stream is stopped. */
void run_stream(Stream* stream);

/* Appends an item to a stream. The lock is held. */
int queue(CUstream handle, Item item);

/* Waits while another call stalls the current device. The lock is held. */
void wait_while_held(std::unique_lock<std::mutex>& guard);

/* Stalls if calls are to stall (cw_fake_stall()): every other call about this device, or about every device
 * if ``everywhere``, waits until the work queued there is done and the time has passed. The lock is held on
 * entry and return, and released meanwhile. */
void stall(std::unique_lock<std::mutex>& guard, bool everywhere);

/* A call that stalls a card's driver. If CLOCKWORK_FAKE_STALLS names a file, the call's end appends a line to
 * it, with the function, the device, and begin and end by CLOCK_MONOTONIC. */
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

/* The prologues of a function that needs no context, of one that needs a context, and of one that stalls. */
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
