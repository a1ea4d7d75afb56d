// Shadow traffic: requests that are copied to another version, whose answers are compared with the first one's and
// dropped. The comparing is done by a thread of its own, of low priority.
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

// Copies that wait for their answer, or whose answer waits for the other one.
inline constexpr std::size_t SHADOWS_MAX = 256;

// Bytes that are kept for their sake: inputs and answers. They are shared with others as long as those are there.
inline constexpr std::size_t SHADOW_BYTES_MAX = 128 << 20;

// Pairs of answers that wait to be compared, and the bytes of both.
inline constexpr std::size_t COMPARISONS_MAX = 256;
inline constexpr std::size_t COMPARISON_BYTES_MAX = 128 << 20;

// A copy waits for idle time no longer than this, nor longer than its SLO. It must not grow as old as those requests
// without a deadline that get a part of a busy device's time.
inline constexpr Ns SHADOW_WAIT_MAX_NS = 900 * MS;

// The comparing thread's: it takes what others leave of a processor.
inline constexpr int COMPARISON_NICE = 10;

// What became of the copies of one route, since it has that shadow.
struct ShadowResults {
    std::uint64_t copied = 0;      // sent to the shadow
    std::uint64_t dropped = 0;     // not copied, or not compared, because of a bound
    std::uint64_t unanswered = 0;  // the shadow had no idle time for it, or failed
    std::uint64_t moot = 0;        // the request itself was not answered
    std::uint64_t compared = 0;
    std::uint64_t differing = 0;  // of these: in the names, dtypes or shapes of outputs
    std::uint64_t beyond = 0;     // of these: by more than the tolerance, or differing
    double absolute_max = 0;      // the largest difference of two elements
    double relative_max = 0;      // the same as a part of the largest magnitude in the tensor of the one that answers
};

// Both threads'.
class ShadowTally {
public:
    explicit ShadowTally(double tolerance) : tolerance(tolerance) {}

    const double tolerance;  // of the relative difference

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

// One tensor of an answer.
struct OutputKept {
    std::int64_t dtype = 0;
    std::vector<std::int64_t> dims;
    Frame frame;
};

// An answer as it came; its names are the interface's, in the order of its outputs.
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
    bool differs = false;  // in names, dtypes, shapes or sizes; the numbers are then 0
    double absolute = 0;
    double relative = 0;
};

// How far `other` is from `first`, of one dtype and shape. A NaN that only one of them has is infinitely far; strings,
// and types of eight bits or fewer that are not plain integers, are 1 apart where their bytes differ.
Difference compare(std::int64_t dtype, std::string_view first, std::string_view other);
// The largest differences of any tensor; they are matched by name.
Difference compare(AnswerKept& first, AnswerKept& other);

// Compares what it is given, in order, on a thread that begins with the first of it.
class Comparer {
public:
    Comparer() = default;
    ~Comparer();
    Comparer(const Comparer&) = delete;

    // Counts it as dropped if too much waits.
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
