// Counts the outcomes of requests, by model and in total.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>

#include "controller/course.h"
#include "controller/held_requests.h"
#include "controller/models.h"

namespace clockwork {

class OutcomeCounts {
public:
    void answered(const HeldRequest& held, const Command& command, const wire::Result& done, Ns now) {
        all_.count(Status::OK);
        held.model->outcomes.count(Status::OK);
        held.model->counts->succeeded(now, held.rows,
                                      {now - held.arrived_ns, command.queue_ns, command.load_ns, took_ns(done.execute),
                                       took_ns(done.copy_in), took_ns(done.copy_out)});
    }

    void failed(const HeldRequest& held, const Command& command, Ns now) {
        if (command.status == Status::REFUSED)
            ++refusals_[static_cast<std::size_t>(command.reason)];
        held.model->counts->did_not(now, command.status, command.reason);
        all_.count(command.status);
        held.model->outcomes.count(command.status);
    }

    // Counts an invalid request for a model. Such a request is not among the held requests.
    void invalid(ServedModel& model) {
        model.need_counts();
        all_.count(Status::INVALID_INPUT);
        model.outcomes.count(Status::INVALID_INPUT);
    }

    const Outcomes& all() const { return all_; }
    std::uint64_t refusals(Reason reason) const { return refusals_[static_cast<std::size_t>(reason)]; }

private:
    Outcomes all_;
    std::array<std::uint64_t, REASONS> refusals_{};
};

}  // namespace clockwork
