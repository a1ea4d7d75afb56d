// Policy `edf`: earliest deadline first over explicit plans; admission is a promise.
//
// Each device has a plan: the batches promised on it, in the order of their deadlines. A request is admitted only if
// it fits into some device's plan (into a batch of its model, or as a batch of its own) so that it and everything
// promised before still finishes in time as predicted; otherwise it is refused at once. Batches are bound late: the
// next one is sent when the device is about to be free, and until then requests may join it.
//
// A request without a deadline is never refused for time and never delays a promise. It runs where a device would be
// idle; one that has waited BACKGROUND_AGE_NS gets a share (BACKGROUND_SHARE) of a device that is never idle.
#pragma once

#include <vector>

#include "scheduler/spare.h"

namespace clockwork {

// Batches looked at behind one whose model is still being loaded.
inline constexpr std::size_t SKIP_SCAN_MAX = 16;

class Edf final : public Spare {
public:
    using Spare::Spare;

    // Its admission counts one hop, from host memory to the device.
    bool plans_fetches() const override { return false; }

protected:
    void arrive(Pending& pending) override;
    void dispatch(Device& device) override;

private:
    Batch* pick(Device& device, Ns free);
    bool may_skip(const Device& device, Ns free, std::size_t place) const;
    bool trim(Device& device, Batch& batch, Ns free);
    void top_up(Device& device, Batch& batch, Ns free);
    bool gains(const Device& device, const Batch& batch, const Pending& pending, Ns free) const;
    void append(Device& device, Batch& batch, Pending& pending);

    std::vector<Pending*> left_;
    std::vector<Batch*> others_;
    std::vector<Pending*> candidates_;
};

}  // namespace clockwork
