// Open requests and their answers.
//
// These rules hold for every policy: each request gets exactly one answer, at the latest at its deadline;
// nothing late is a success.
#pragma once

#include <array>
#include <bit>
#include <cstdint>
#include <vector>

#include "scheduler/models.h"

namespace clockwork {

// Bound on the sendings of a request before a failure that is not its own is answered.
inline constexpr int ATTEMPTS_MAX = 3;

// Bound on the devices that hold a model and are told of a request without a deadline; where there are more,
// an idle one is told.
inline constexpr std::size_t WAKE_MAX = 64;

struct RequestCounts {
    std::uint64_t admitted = 0, answered = 0, refused = 0, missed = 0, failed = 0, displaced = 0;

    void archive(Archive& archive) { archive(admitted, answered, refused, missed, failed, displaced); }
};

class Requests {
public:
    Requests(State& state, Arenas& arenas, Models& models, const Deciders& deciders, const SchedulerOptions& options);

    // Whether another request, with so many bytes of inputs, would exceed the bounds.
    bool is_full(std::uint64_t bytes) const {
        return state_.pendings.size() >= requests_max_ || bytes_ + bytes > bytes_max_;
    }
    Pending* make(const Request& request, Model& model);
    // Open a request: from now on it has to be answered.
    void open(Pending& pending);
    // Refuse a request that was never opened.
    void refuse(Pending& pending, Reason reason, AnswerSentence said, Ns feasible_slo_ns = 0, Ns retry_after_ns = 0);
    // Refuse a request whose SLO is below the time on an idle device. It counts as never possible only if the
    // execution alone takes as long: the delays of the link and the reserve are learnt, and a disturbance may
    // have raised them. More devices would not have helped, so none are wanted for it.
    void refuse_below_idle(Pending& pending, Ns least_ns, Ns slo_ns);
    void refuse(const Request& request, Reason reason, AnswerSentence said, Ns feasible_slo_ns = 0,
                Ns retry_after_ns = 0);
    // Answer an admitted request that did not succeed, and remove it from wherever it waits.
    void fail(Pending& pending, Status status, AnswerSentence said, Reason reason = Reason::NONE,
              Ns feasible_slo_ns = 0, Ns retry_after_ns = 0);
    void answer_ok(Pending& pending, const Flight& flight, const ActionResult& result);
    // Return the lowest priority (the highest number) of any unanswered request; 0 if there is none.
    std::uint32_t lowest_level() const {
        for (std::uint32_t word = 4; word-- > 0;) {
            if (levels_used_[word] != 0) {
                return word * 64 + 63 - static_cast<std::uint32_t>(std::countl_zero(levels_used_[word]));
            }
        }
        return 0;
    }
    // Whether all unanswered requests have the lowest level.
    bool is_one_level() const { return levels_[lowest_level()] == state_.pendings.size(); }

    // Plan a request again after its action failed, or answer it. count: the failure counts as an attempt.
    void again(Pending& pending, Status status, const AnswerSentence& said, bool count = true,
               Reason reason = Reason::NONE);

    // Append a request to its level of the background list: requests without a deadline, which wait for idle
    // time. first: prepend it.
    void to_background(Pending& pending, bool first = false);
    // Remove a request from the background list.
    void leave_background(Pending& pending);
    // Remove the first of the model's background requests; the following ones may wait for the next look.
    void left_background(Model& model);
    void fail_background(Model& model, Status status, const AnswerSentence& said);
    // Wake every device that could serve the model's background requests.
    void wake_devices(Model& model);

    std::uint64_t queued_bytes() const { return bytes_; }
    const RequestCounts& counts() const { return counts_; }
    double devices_wanted(Ns now) const { return demand_.devices_wanted(now, state_.models, state_.arenas); }
    void archive(Archive& archive);
    void check_invariants() const;

private:
    void close(Pending& pending);
    void say(Command& command, const AnswerSentence& said);

    State& state_;
    Arenas& arenas_;
    Models& models_;
    const Deciders& deciders_;
    std::uint64_t requests_max_;
    std::uint64_t bytes_max_;
    std::uint64_t bytes_ = 0;
    RequestCounts counts_;
    Demand demand_;
    std::array<std::uint64_t, 256> levels_{};     // number of unanswered requests by priority
    std::array<std::uint64_t, 4> levels_used_{};  // bit set of the priorities whose number is not zero
    std::vector<Place> places_;
};

}  // namespace clockwork
