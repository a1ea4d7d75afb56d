// Helpers for programs with several threads: a check that ends the process, and numbers drawn from a seed.
#pragma once

#include <cstdint>
#include <cstdio>
#include <cstdlib>

inline void demand(bool holds, const char* what) {
    if (holds)
        return;
    std::fprintf(stderr, "broken: %s\n", what);
    std::abort();
}

inline std::uint64_t draw(std::uint64_t& state) {
    state = state * 6364136223846793005u + 1442695040888963407u;
    return state >> 33;
}

// While it lives, allocations of this thread belong to the test; see road_allocations.cpp.
struct Uncounted {
    inline static thread_local int depth = 0;
    Uncounted() { ++depth; }
    ~Uncounted() { --depth; }
};
