// Requests that are open, and their answers.
//
// Whatever a policy decides, these rules hold: each request gets exactly one answer, at the latest at its deadline;
// nothing late is a success.
#pragma once

#include <array>
#include <bit>
#include <cstdint>
#include <vector>

#include "scheduler/models.h"

namespace clockwork {

// Defaults of SchedulerOptions; a test holds them to clockwork.config.
inline constexpr std::uint64_t QUEUED_REQUESTS_MAX = 65'536;
inline constexpr std::uint64_t QUEUED_BYTES_MAX = std::uint64_t{4} << 30;

// Times that a request is sent, before a failure that is not its own is answered.
inline constexpr int ATTEMPTS_MAX = 3;

// Devices that hold a model and are told of a request without a deadline; where there are more, it is one that is idle.
inline constexpr std::size_t WAKE_MAX = 64;

struct RequestCounts {
    std::uint64_t admitted = 0, answered = 0, refused = 0, missed = 0, failed = 0, displaced = 0;

    void archive(Archive& archive) { archive(admitted, answered, refused, missed, failed, displaced); }
};

class Requests {
public:
    Requests(State& state, Arenas& arenas, Models& models, const Deciders& deciders, const SchedulerOptions& options);

    // Whether one more may be open, with so many bytes of inputs.
    bool is_full(std::uint64_t bytes) const {
        return state_.pendings.size() >= requests_max_ || bytes_ + bytes > bytes_max_;
    }
    Pending* make(const Request& request, Model& model);
    // From now on this request has to be answered.
    void open(Pending& pending);
    // A request that was never opened.
    void refuse(Pending& pending, Reason reason, Said said, Ns feasible_slo_ns = 0, Ns retry_after_ns = 0);
    // Of a request whose SLO is below what an idle device takes. It is never possible only if the execution alone takes
    // as long: the way there and back and the reserve are learnt, and a disturbance may have lengthened them. More devices
    // would not have helped, so none are wanted for it.
    void refuse_below_idle(Pending& pending, Ns least_ns, Ns slo_ns);
    void refuse(const Request& request, Reason reason, Said said, Ns feasible_slo_ns = 0, Ns retry_after_ns = 0);
    // Answers an admitted request that did not succeed, and takes it out of wherever it is.
    void fail(Pending& pending, Status status, Said said, Reason reason = Reason::NONE, Ns feasible_slo_ns = 0,
              Ns retry_after_ns = 0);
    void answer_ok(Pending& pending, const Flight& flight, const ActionResult& result);
    // The lowest priority (the highest number) of any unanswered request; 0 if there is none.
    std::uint32_t lowest_level() const {
        for (std::uint32_t word = 4; word-- > 0;) {
            if (levels_used_[word] != 0) {
                return word * 64 + 63 - static_cast<std::uint32_t>(std::countl_zero(levels_used_[word]));
            }
        }
        return 0;
    }
    // Whether all unanswered requests are of that level.
    bool is_one_level() const { return levels_[lowest_level()] == state_.pendings.size(); }

    // Plan a request once more whose action came to nothing, or answer it. count: it was its action's failure.
    void again(Pending& pending, Status status, const Said& said, bool count = true, Reason reason = Reason::NONE);

    // To the end (or the front) of its level of what has no deadline and waits until a device would be idle.
    void to_background(Pending& pending, bool first = false);
    // Takes it out of there.
    void leave_background(Pending& pending);
    // The model's first of them leaves; enough of them have, for now.
    void left_background(Model& model);
    void fail_background(Model& model, Status status, const Said& said);
    // Have every device that could serve the model's background requests look at them.
    void wake_devices(Model& model);

    std::uint64_t queued_bytes() const { return bytes_; }
    const RequestCounts& counts() const { return counts_; }
    double devices_wanted(Ns now) const { return demand_.devices_wanted(now, state_.models, state_.arenas); }
    void archive(Archive& archive);
    void check_invariants() const;

private:
    void close(Pending& pending);
    void say(Command& command, const Said& said);

    State& state_;
    Arenas& arenas_;
    Models& models_;
    const Deciders& deciders_;
    std::uint64_t requests_max_;
    std::uint64_t bytes_max_;
    std::uint64_t bytes_ = 0;
    RequestCounts counts_;
    Demand demand_;
    std::array<std::uint64_t, 256> levels_{};     // unanswered requests by priority
    std::array<std::uint64_t, 4> levels_used_{};  // which of them are not zero
    std::vector<Place> places_;
};

}  // namespace clockwork
