// Durations for people: about three digits, in the unit that fits. clockwork.system.clock.duration() gives
// the same text.
#pragma once

#include <cstdint>
#include <cstdio>
#include <string>

namespace clockwork {

inline std::string duration_text(std::int64_t ns) {
    const double value = static_cast<double>(ns);
    char text[40];
    if (ns < 1'000'000) {
        std::snprintf(text, sizeof(text), ns < 10'000 ? "%.1f us" : "%.0f us", value / 1e3);
    } else if (ns < 1'000'000'000) {
        std::snprintf(text, sizeof(text), ns < 10'000'000 ? "%.2f ms" : "%.1f ms", value / 1e6);
    } else {
        std::snprintf(text, sizeof(text), "%.2f s", value / 1e9);
    }
    return text;
}

}  // namespace clockwork
