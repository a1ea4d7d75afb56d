// An arena's memory under its three threads, for ThreadSanitizer: the load lane takes and spares pages,
// while a thread that prepares models and the keeper populate pages, and the keeper takes the memory of pages
// that stay spare. Bytes that a lane has written stay until it spares the page.
//
// Usage: threads_arena SEED ROUNDS.
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <thread>

#include "device/arena_memory.h"
#include "threads.h"

using namespace clockwork::device;

namespace {

constexpr std::int64_t PAGES = 256;
constexpr std::size_t PAGE_BYTES = std::size_t(16) << 10;

bool holds_only(const char* page, char value) {
    for (std::size_t at = 0; at < PAGE_BYTES; at++)
        if (page[at] != value)
            return false;
    return true;
}

void load_lane(ArenaMemory& memory, std::uint64_t seed) {
    char written[PAGES] = {};  // 0: nothing was written
    for (int turn = 0; turn < 400; turn++) {
        const std::int64_t count = 1 + std::int64_t(draw(seed) % 8);
        const std::int64_t start = std::int64_t(draw(seed) % std::uint64_t(PAGES - count));
        for (std::int64_t page = start; page < start + count; page++)
            demand(written[page] == 0 || holds_only(memory.page(page), written[page]), "a page has lost what it held");
        if (draw(seed) % 4 == 0) {
            memory.spare(start, count);
            std::memset(written + start, 0, std::size_t(count));
            continue;
        }
        demand(memory.take(start, count), "there is memory");
        const char value = char(1 + draw(seed) % 100);
        for (std::int64_t page = start; page < start + count; page++)
            std::memset(memory.page(page), value, PAGE_BYTES);
        std::memset(written + start, value, std::size_t(count));
    }
}

void run_round(std::uint64_t seed) {
    ArenaMemory memory;
    demand(memory.map(PAGES, PAGE_BYTES, 100'000), "there is address space");
    demand(memory.held_bytes() == 0, "an arena begins without memory");
    std::thread keeper([&] { memory.keep(); });
    std::thread lane([&memory, own = seed] { load_lane(memory, own); });
    for (std::int64_t end = 0; end <= PAGES; end += 1 + std::int64_t(draw(seed) % 40)) {
        memory.want(std::int64_t(draw(seed) % PAGES));
        demand(memory.touch_below(end), "there is memory");
        demand(memory.held_bytes() <= memory.bytes(), "no page is counted twice");
    }
    lane.join();
    memory.spare(0, PAGES);
    while (memory.held_bytes() > 0)
        std::this_thread::yield();
    memory.stop();
    keeper.join();
    demand(memory.late_count() <= PAGES, "a page is late once at most");
}

// A page that is taken again soon keeps its memory: it is not cleared in between.
void take_again() {
    ArenaMemory memory;
    demand(memory.map(PAGES, PAGE_BYTES, 3'600'000'000'000), "there is address space");
    std::thread keeper([&] { memory.keep(); });
    demand(memory.take(0, 3), "there is memory");
    std::memset(memory.page(1), 7, PAGE_BYTES);
    memory.spare(1, 2);
    demand(memory.held_bytes() == 3 * PAGE_BYTES, "spare pages have memory");
    demand(memory.take(1, 2), "there is memory");
    demand(holds_only(memory.page(1), 7), "the page was cleared");
    memory.spare(100, 1);
    demand(memory.held_bytes() == 3 * PAGE_BYTES, "a page without memory gets none");
    memory.stop();
    keeper.join();
}

}  // namespace

int main(int count, char** arguments) {
    if (count != 3)
        return 2;
    const std::uint64_t seed = std::strtoull(arguments[1], nullptr, 10);
    const int rounds = std::atoi(arguments[2]);
    take_again();
    for (int round = 0; round < rounds; round++)
        run_round(seed + std::uint64_t(round));
    std::printf("%d rounds\n", rounds);
    return 0;
}
