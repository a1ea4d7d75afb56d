// What a worker can be ordered to do, and which lane of a device does it.
#pragma once

#include <cstddef>
#include <cstdint>

namespace clockwork {

enum class ActionKind : std::uint8_t { LOAD, UNLOAD, INFER, PROFILE, FETCH, DROP, RESERVE };

enum class Lane : std::uint8_t { LOAD, EXECUTE, FETCH };  // LOAD, UNLOAD; INFER, PROFILE, RESERVE; FETCH, DROP

inline constexpr std::size_t LANES = 3;

inline constexpr Lane lane_of(ActionKind kind) {
    switch (kind) {
        case ActionKind::LOAD:
        case ActionKind::UNLOAD: return Lane::LOAD;
        case ActionKind::FETCH:
        case ActionKind::DROP: return Lane::FETCH;
        default: return Lane::EXECUTE;
    }
}

inline constexpr bool executes(ActionKind kind) { return lane_of(kind) == Lane::EXECUTE; }

}  // namespace clockwork
