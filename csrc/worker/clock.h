// The worker's clock: the machine's monotonic clock, unless a test gives it an offset and a drift.
#pragma once

#include <cstdint>

#include "scheduler/types.h"

namespace clockwork::worker {

// Converts between machine time, which devices use, and the time that messages carry, as
// clockwork/worker/clock.py does.
struct Clock {
    Ns epoch_ns = 0;
    Ns offset_ns = 0;
    std::int64_t drift_ppb = 0;

    bool is_shifted() const { return offset_ns != 0 || drift_ppb != 0; }

    Ns to_worker(Ns machine_ns) const {
        return machine_ns + offset_ns + floor_div(__int128(machine_ns - epoch_ns) * drift_ppb, 1'000'000'000);
    }

    // Returns NEVER_NS unchanged.
    Ns to_machine(Ns worker_ns) const {
        if (worker_ns >= NEVER_NS || !is_shifted())
            return worker_ns;
        const __int128 elapsed_ns = __int128(worker_ns) - offset_ns - epoch_ns;
        const __int128 machine_ns = epoch_ns + wide_div(elapsed_ns * 1'000'000'000, 1'000'000'000 + drift_ppb);
        return machine_ns < -NEVER_NS ? -NEVER_NS : machine_ns > NEVER_NS ? NEVER_NS : Ns(machine_ns);
    }

private:
    static __int128 wide_div(__int128 value, std::int64_t by) {
        const __int128 found = value / by;
        return value % by < 0 ? found - 1 : found;
    }
    static Ns floor_div(__int128 value, std::int64_t by) { return Ns(wide_div(value, by)); }
};

}  // namespace clockwork::worker
