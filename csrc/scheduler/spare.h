// Work for a device whose plan has none: another's, what has no deadline, and shapes to be measured.
#pragma once

#include <vector>

#include "scheduler/admission.h"

namespace clockwork {

// Other devices, and batches of each, that an idle device looks at for work.
inline constexpr std::size_t STEAL_SCAN_MAX = 16;

// Models with background requests that an idle device looks at.
inline constexpr std::size_t BACKGROUND_SCAN_MAX = 64;

// One part in BACKGROUND_SHARE of a busy device's time goes to background requests that waited BACKGROUND_AGE_NS.
inline constexpr Ns BACKGROUND_AGE_NS = SECOND;
inline constexpr Ns BACKGROUND_SHARE = 10;

// An idle device that could do nothing for the background requests there are looks again after this.
inline constexpr Ns BACKGROUND_RETRY_NS = 100'000'000;

// A device that has been idle this long may measure a shape.
inline constexpr Ns PROFILE_IDLE_NS = 20'000'000;

inline constexpr int PROFILE_ATTEMPTS_MAX = 3;

// A shape whose bound is above this is not measured: a device is not held for it.
inline constexpr Ns PROFILE_NS_MAX = SECOND;

// How idle time is used.
class Spare : public Admission {
public:
    using Admission::Admission;

protected:
    // Something to do for a device that would be idle: another's work, then background, then measuring. The batch is
    // in its plan; null if there is none.
    Batch* fill(Device& device, Ns free);
    // Give a background batch that waited long a place in a plan that never ends, where it breaks no promise.
    void promote(Device& device);

private:
    Batch* steal(Device& device, Ns free);
    Batch* from_background(Device& device, Ns free);
    void load_background(Device& device, Model& model);
    Batch* background_batch(Device& device, Residency& residency, Ns free, std::size_t index);
    Batch* enter(Device& device, Batch* batch, std::size_t index);
    void measure(Device& device);
    void find_background();

    std::size_t round_ = 0;  // where the next search for work to take over begins
    std::vector<Model*> scan_;
    std::vector<Place> elsewhere_;
};

}  // namespace clockwork
