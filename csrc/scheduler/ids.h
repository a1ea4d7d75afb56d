// Times and ids of the scheduler.
#pragma once

#include <cstdint>

namespace clockwork {

using Ns = std::int64_t;
using RequestId = std::uint64_t;
using ActionId = std::uint64_t;
using LoadId = std::uint64_t;
using ModelId = std::int64_t;
using WorkerId = std::int32_t;

inline constexpr Ns MS = 1'000'000;
inline constexpr Ns SECOND = 1'000'000'000;

}  // namespace clockwork
