// What every policy is to those who drive it: the controller's binding and the simulator's world.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "scheduler/types.h"

namespace clockwork {

// Bounds and constants that the caller may set; what each means is said where it is used.
struct SchedulerOptions {
    std::string policy = "adaptive";  // paper, fifo, edf, deferred, adaptive
    std::string memory;               // "": the policy's own; "paper" or "adaptive": whose loads and evictions
    std::uint64_t queued_requests_max = 0;  // 0: the default of config.QUEUED_REQUESTS_MAX
    std::uint64_t queued_bytes_max = 0;
    // Named numbers for one policy ("schedule_ahead_ms", "batch_cap", "queue_delay_ms", ...). An unknown name is
    // an error of make_scheduler(), with the names that there are.
    std::vector<std::pair<std::string, double>> values;
};

// A model on a device: what was loaded under which id, and the first page of each run.
struct Held {
    ModelId model_id = 0;
    LoadId load_id = 0;
    bool loading = false;  // the LOAD is under way
    std::vector<std::uint32_t> starts;
};

// Events in, orders out. Deterministic: the same calls give the same orders. Not thread safe.
//
// Each event is noted by one call, then settle() decides, once for all that came together: timers that are due,
// then every device that something happened to. now_ns never goes back. Orders may also be given by the calls of
// events (an answer, for one); all go to `out`, in order. Nothing but settle() plans or sends work.
class Scheduler {
public:
    virtual ~Scheduler() = default;

    virtual void arrived(Ns now, const Request& request) = 0;
    virtual void cancelled(Ns now, RequestId request_id) = 0;
    virtual void action_done(Ns now, const ActionResult& result) = 0;
    virtual void worker_joined(Ns now, WorkerId worker, const std::vector<DeviceSpec>& devices) = 0;
    virtual void worker_left(Ns now, WorkerId worker) = 0;
    virtual void worker_draining(Ns now, WorkerId worker) = 0;
    virtual void link_measured(Ns now, WorkerId worker, Ns there_ns, Ns back_ns) = 0;
    virtual void model_ready(Ns now, WorkerId worker, const ModelSpec& spec) = 0;
    virtual void model_removed(Ns now, ModelId model_id) = 0;
    // A number for a shape that requests or profiles will name, and how many elements its inputs have.
    virtual void shape_known(std::uint32_t shape, std::uint64_t elements) = 0;
    virtual void settle(Ns now) = 0;

    // Have a model loaded without a request for it: for set-ups that begin warm. False if the device is not there,
    // has the model, or has no room without evicting anything.
    virtual bool preload(Ns now, WorkerId worker, std::int32_t device, ModelId model_id) {
        (void)now, (void)worker, (void)device, (void)model_id;
        return false;
    }

    // What it thinks a device holds, in any order; false if it is not there. For tests: the simulator compares.
    virtual bool picture(WorkerId worker, std::int32_t device, std::vector<Held>& held) const {
        (void)worker, (void)device, (void)held;
        return false;
    }

    // Throws std::logic_error where the books do not balance. For tests; may be slow.
    virtual void check_invariants() const = 0;

    Commands out;
};

// Throws std::invalid_argument, naming the value and what there is.
std::unique_ptr<Scheduler> make_scheduler(const SchedulerOptions& options);

}  // namespace clockwork
