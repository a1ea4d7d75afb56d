// Shadow traffic: requests are copied to another version, whose answers are compared with the first version's
// and dropped. A thread of low priority compares them.
#pragma once

#include <condition_variable>
#include <cstdint>
#include <deque>
#include <memory>
#include <mutex>
#include <thread>
#include <vector>

#include "controller/models.h"
#include "controller/sockets.h"

namespace clockwork {

// The most copies that wait for their answer, or whose answer waits for the other answer.
inline constexpr std::size_t SHADOWS_MAX = 256;

// The most bytes of inputs and answers that are kept for copies. Requests share them while they exist.
inline constexpr std::size_t SHADOW_BYTES_MAX = 128 << 20;

// The most pairs of answers that wait to be compared, and the most bytes of these.
inline constexpr std::size_t COMPARISONS_MAX = 256;
inline constexpr std::size_t COMPARISON_BYTES_MAX = 128 << 20;

// The longest wait of a copy for idle time, also bounded by its SLO. It is shorter than the age at which
// requests without a deadline get a share of a busy device's time.
inline constexpr Ns SHADOW_WAIT_MAX_NS = 900 * MS;

// The niceness of the comparing thread, which uses idle processor time.
inline constexpr int COMPARISON_NICE = 10;

// Counts of a route's copies since it has its shadow.
struct ShadowResults {
    std::uint64_t copied = 0;      // copies sent to the shadow
    std::uint64_t dropped = 0;     // copies not made, or not compared, because of a bound
    std::uint64_t unanswered = 0;  // copies that the shadow had no idle time for, or that failed
    std::uint64_t moot = 0;        // the request itself was not answered
    std::uint64_t compared = 0;
    std::uint64_t differing = 0;  // compared pairs that differ in names, dtypes or shapes of outputs
    std::uint64_t beyond = 0;     // compared pairs beyond the tolerance, or differing
    double absolute_max = 0;      // the largest difference of two elements
    // The same, relative to the largest magnitude in the answering version's tensor
    double relative_max = 0;
};

// The counts of a shadow, shared by the exchange's and the comparing thread.
class ShadowTally {
public:
    explicit ShadowTally(double tolerance) : tolerance(tolerance) {}

    const double tolerance;  // the bound of the relative difference

    template <typename Function>
    void change(Function&& function) {
        std::lock_guard lock(mutex_);
        function(results_);
    }
    ShadowResults read() {
        std::lock_guard lock(mutex_);
        return results_;
    }

private:
    std::mutex mutex_;
    ShadowResults results_;
};

// A tensor of an answer.
struct OutputKept {
    std::int64_t dtype = 0;
    std::vector<std::int64_t> dims;
    Frame frame;
};

// An answer as received. Its names are those of the interface, in the order of its outputs.
struct AnswerKept {
    std::shared_ptr<const ModelInterface> interface;
    std::vector<OutputKept> tensors;

    std::size_t bytes() const {
        std::size_t sum = 0;
        for (const OutputKept& tensor : tensors)
            sum += tensor.frame.size();
        return sum;
    }
};

struct Difference {
    bool differs = false;  // names, dtypes, shapes or sizes differ; both numbers are 0 then
    double absolute = 0;
    double relative = 0;
};

// Returns the difference of two tensors of the same dtype and shape. A NaN in only one of them differs by
// infinity. Strings, and types of at most eight bits that are not plain integers, differ by 1 if their bytes
// differ.
Difference compare(std::int64_t dtype, std::string_view first, std::string_view other);
// Returns the largest differences of two answers' tensors, matched by name.
Difference compare(AnswerKept& first, AnswerKept& other);

// Compares pairs of answers in order, on a thread that starts with the first pair.
class Comparer {
public:
    Comparer() = default;
    ~Comparer();
    Comparer(const Comparer&) = delete;

    // Counts the pair as dropped if too many wait.
    void add(std::shared_ptr<ShadowTally> tally, AnswerKept first, AnswerKept other);

private:
    struct Job {
        std::shared_ptr<ShadowTally> tally;
        AnswerKept first;
        AnswerKept other;
        std::size_t bytes;
    };

    void work();

    std::mutex mutex_;
    std::condition_variable changed_;
    std::deque<Job> jobs_;
    std::size_t bytes_ = 0;
    bool ends_ = false;
    std::thread thread_;
};

}  // namespace clockwork
