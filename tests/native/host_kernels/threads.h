/* The threads of a block, as coroutines of the calling thread: part of host_kernels.h. */
#ifndef CLOCKWORK_HOST_KERNELS_THREADS_H
#define CLOCKWORK_HOST_KERNELS_THREADS_H

#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <ucontext.h>

#include <memory>
#include <vector>

#if defined(__SANITIZE_ADDRESS__)
extern "C" {
void __sanitizer_start_switch_fiber(void** saved, const void* bottom, size_t bytes);
void __sanitizer_finish_switch_fiber(void* saved, const void** bottom, size_t* bytes);
}
#else
static inline void __sanitizer_start_switch_fiber(void**, const void*, size_t) {}
static inline void __sanitizer_finish_switch_fiber(void*, const void**, size_t*) {}
#endif

struct cw_dim3 {
    unsigned x, y, z;
};

/* The position of the running thread in its launch. */
static cw_dim3 gridDim, blockDim, blockIdx, threadIdx;

/* Code of the emulation itself, which is not checked with the kernels. */
#define CW_UNCHECKED __attribute__((no_sanitize("address", "undefined")))

namespace cw {

constexpr unsigned WARP = 32;
constexpr unsigned BLOCK_MAX = 1024;
constexpr size_t GUARD_BYTES = 4096;      /* guard below a stack: an overflow ends the process */
constexpr size_t STACK_BYTES = 256 << 10; /* stack of a waiting thread; untouched pages take no memory */

struct Kernel {
    const char* name;
    void* function;
    void (*call)(void* function, void** arguments);
    void** arguments;
};

/* A stack with the coroutine that runs on it, or the caller's stack. */
struct Coroutine {
    void* pointer = nullptr; /* stack pointer, while another stack runs */
    const void* bottom = nullptr;
    size_t bytes = 0;
    void* saved = nullptr; /* AddressSanitizer's stack, while another stack runs */
    ucontext_t context;    /* used where the C library switches stacks */
    cw_dim3 thread;        /* the thread that runs on it */
    unsigned number = 0;   /* number of that thread in its block */
    void* mapped = nullptr;

    ~Coroutine() {
        if (mapped)
            munmap(mapped, GUARD_BYTES + STACK_BYTES);
    }
};

struct Warp {
    unsigned waiting = 0, ended = 0; /* numbers of threads */
    int line = 0;                    /* source line of the product for which they wait */
    const void* product = nullptr;
    Coroutine* lanes[WARP];
};

/* The block that runs. */
struct Block {
    Kernel kernel;
    unsigned threads = 0, begun = 0, ended = 0;
    cw_dim3 next; /* the next thread to begin */
    unsigned waiting = 0;
    int line = 0; /* source line of the barrier at which they wait */
    std::vector<Coroutine*> at_barrier;
    std::vector<Coroutine*> idle; /* coroutines without a thread */
    std::vector<Warp> warps;
    Coroutine* ready[BLOCK_MAX]; /* ring of coroutines whose wait is over */
    unsigned first_ready = 0, ready_count = 0;
    Coroutine *running = nullptr, *left = nullptr; /* running coroutine, and the one that ran before */
    Coroutine caller;
    std::vector<std::unique_ptr<Coroutine>> coroutines; /* kept for the next launch */
};

static Block block;

[[noreturn, gnu::format(printf, 1, 2)]] static inline void die(const char* format, ...) {
    va_list values;
    va_start(values, format);
    const char* name = block.kernel.name ? block.kernel.name : "?";
    fprintf(stderr, "kernel %s, block (%u, %u, %u), thread (%u, %u, %u): ", name, blockIdx.x, blockIdx.y, blockIdx.z,
            threadIdx.x, threadIdx.y, threadIdx.z);
    vfprintf(stderr, format, values);
    fprintf(stderr, "\n");
    va_end(values);
    abort();
}

static void run_threads();

#if defined(__x86_64__)

/* Saves the registers that a function must preserve, and continues on the other stack. */
extern "C" void cw_switch_stacks(void** from, void* to) __attribute__((visibility("hidden")));
__asm__(
    ".pushsection .text\n"
    ".local cw_switch_stacks\n"
    ".type cw_switch_stacks, @function\n"
    "cw_switch_stacks:\n"
    "    endbr64\n"
    "    push %rbp\n    push %rbx\n    push %r12\n    push %r13\n    push %r14\n    push %r15\n"
    "    mov %rsp, (%rdi)\n"
    "    mov %rsi, %rsp\n"
    "    pop %r15\n    pop %r14\n    pop %r13\n    pop %r12\n    pop %rbx\n    pop %rbp\n"
    "    ret\n"
    ".size cw_switch_stacks, .-cw_switch_stacks\n"
    ".popsection\n");

static inline void change(Coroutine* from, Coroutine* to) { cw_switch_stacks(&from->pointer, to->pointer); }

static inline void prepare(Coroutine* coroutine, void (*entry)()) {
    uintptr_t* top = reinterpret_cast<uintptr_t*>(reinterpret_cast<uintptr_t>(coroutine->bottom) + coroutine->bytes);
    *--top = 0; /* entry() has no caller, and finds its stack as after a call */
    *--top = reinterpret_cast<uintptr_t>(entry);
    for (int number = 0; number < 6; number++)
        *--top = 0;
    coroutine->pointer = top;
}

#else

static inline void change(Coroutine* from, Coroutine* to) { swapcontext(&from->context, &to->context); }

static inline void prepare(Coroutine* coroutine, void (*entry)()) {
    getcontext(&coroutine->context);
    coroutine->context.uc_stack.ss_sp = const_cast<void*>(coroutine->bottom);
    coroutine->context.uc_stack.ss_size = coroutine->bytes;
    coroutine->context.uc_link = nullptr;
    makecontext(&coroutine->context, entry, 0);
}

#endif

/* Called after every switch. Only AddressSanitizer knows the caller's stack. */
CW_UNCHECKED static inline void arrive(void* saved) {
    const void* bottom = nullptr;
    size_t bytes = 0;
    __sanitizer_finish_switch_fiber(saved, &bottom, &bytes);
    if (block.left == &block.caller) {
        block.caller.bottom = bottom;
        block.caller.bytes = bytes;
    }
}

CW_UNCHECKED static inline void resume(Coroutine* to) {
    Coroutine* from = block.running;
    from->thread = threadIdx;
    block.left = from;
    block.running = to;
    __sanitizer_start_switch_fiber(&from->saved, to->bottom, to->bytes);
    change(from, to);
    arrive(from->saved);
    threadIdx = from->thread;
}

static void begin() {
    arrive(nullptr);
    run_threads();
}

CW_UNCHECKED static inline void make_ready(Coroutine* coroutine) {
    block.ready[(block.first_ready + block.ready_count++) % BLOCK_MAX] = coroutine;
}

static inline Coroutine* make_coroutine() {
    void* place = mmap(nullptr, GUARD_BYTES + STACK_BYTES, PROT_READ | PROT_WRITE,
                       MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_STACK, -1, 0);
    if (place == MAP_FAILED || mprotect(place, GUARD_BYTES, PROT_NONE))
        die("no memory for the stack of a thread");
    block.coroutines.push_back(std::make_unique<Coroutine>());
    Coroutine* made = block.coroutines.back().get();
    made->mapped = place;
    made->bottom = static_cast<char*>(place) + GUARD_BYTES;
    made->bytes = STACK_BYTES;
    prepare(made, begin);
    return made;
}

/* Chooses the next coroutine when the running thread must wait: a thread whose wait is over, or else a new
 * thread. */
CW_UNCHECKED static inline Coroutine* next_to_run() {
    if (block.ready_count) {
        Coroutine* next = block.ready[block.first_ready];
        block.first_ready = (block.first_ready + 1) % BLOCK_MAX;
        block.ready_count--;
        return next;
    }
    if (block.begun < block.threads) {
        if (block.idle.empty())
            return make_coroutine();
        Coroutine* next = block.idle.back();
        block.idle.pop_back();
        return next;
    }
    if (block.ended == block.threads)
        return &block.caller;
    for (const Warp& warp : block.warps)
        if (warp.waiting)
            die("%u of %u threads of a warp wait for a product (line %d) that the others do not reach", warp.waiting,
                WARP, warp.line);
    die("%u of %u threads wait at a barrier (line %d) that the others do not reach", block.waiting, block.threads,
        block.line);
}

/* The body of every coroutine: runs threads of the block as long as some have not begun. A kernel whose
 * threads do not wait runs as a loop of calls. */
CW_UNCHECKED static void run_threads() {
    Coroutine* self = block.running;
    for (;;) {
        while (!block.ready_count && block.begun < block.threads) {
            threadIdx = block.next;
            self->number = block.begun++;
            if (++block.next.x == blockDim.x) {
                block.next.x = 0;
                if (++block.next.y == blockDim.y) {
                    block.next.y = 0;
                    block.next.z++;
                }
            }
            block.kernel.call(block.kernel.function, block.kernel.arguments);
            block.ended++;
            Warp& warp = block.warps[self->number / WARP];
            warp.ended++;
            if (block.waiting)
                die("it ends while %u threads of its block wait at a barrier (line %d)", block.waiting, block.line);
            if (warp.waiting)
                die("it ends while %u threads of its warp wait for a product (line %d)", warp.waiting, warp.line);
        }
        Coroutine* next = next_to_run();
        block.idle.push_back(self);
        resume(next);
    }
}

/* The __syncthreads() in a source line. */
CW_UNCHECKED static inline void wait_for_block(int line) {
    if (block.ended)
        die("it waits at a barrier (line %d) after %u threads of its block have ended", line, block.ended);
    if (!block.waiting)
        block.line = line;
    else if (block.line != line)
        die("it waits at a barrier (line %d) while others of its block wait at another (line %d)", line, block.line);
    if (++block.waiting < block.threads) {
        block.at_barrier.push_back(block.running);
        resume(next_to_run());
        return;
    }
    block.waiting = 0;
    for (Coroutine* coroutine : block.at_barrier)
        make_ready(coroutine);
    block.at_barrier.clear();
}

/* Waits for the 32 threads of a warp. The last thread to arrive calls ``together`` for all of them. */
template <typename Together>
CW_UNCHECKED static inline void wait_for_warp(const void* product, int line, Together together) {
    unsigned number = block.running->number;
    Warp& warp = block.warps[number / WARP];
    if (block.threads - number / WARP * WARP < WARP)
        die("its warp has %u threads, and a product (line %d) needs %u", block.threads % WARP, line, WARP);
    if (warp.ended)
        die("it reaches a product (line %d) after %u threads of its warp have ended", line, warp.ended);
    if (!warp.waiting) {
        warp.product = product;
        warp.line = line;
    } else if (warp.product != product || warp.line != line)
        die("it reaches a product (line %d) while others of its warp wait for another (line %d)", line, warp.line);
    warp.lanes[number % WARP] = block.running;
    if (++warp.waiting < WARP) {
        resume(next_to_run());
        return;
    }
    together();
    warp.waiting = 0;
    for (Coroutine* lane : warp.lanes)
        if (lane != block.running)
            make_ready(lane);
}

static inline void run_blocks(const Kernel& kernel, const unsigned* grid, const unsigned* sides) {
    gridDim = {grid[0], grid[1], grid[2]};
    blockDim = {sides[0], sides[1], sides[2]};
    block.kernel = kernel;
    block.threads = blockDim.x * blockDim.y * blockDim.z;
    if (!block.threads || block.threads > BLOCK_MAX)
        die("blocks of %u threads; a card has 1 to %u", block.threads, BLOCK_MAX);
    for (blockIdx.z = 0; blockIdx.z < gridDim.z; blockIdx.z++)
        for (blockIdx.y = 0; blockIdx.y < gridDim.y; blockIdx.y++)
            for (blockIdx.x = 0; blockIdx.x < gridDim.x; blockIdx.x++) {
                block.begun = block.ended = 0;
                block.next = {0, 0, 0};
                block.warps.assign((block.threads + WARP - 1) / WARP, {});
                block.running = &block.caller;
                resume(next_to_run());
            }
}

}  // namespace cw

#endif
