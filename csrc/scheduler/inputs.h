// Delay of inputs on their way to a worker, by byte, learnt from the arrivals of batches; and the time that a
// worker takes to copy inputs from its clients' memory.
//
// Messages to one worker arrive in the order of their sending. So the time of a batch counts from its sending
// or from the arrival of the batch before it, whichever is later: waiting behind other bytes is not charged.
// The estimate is the lower median of the last samples, so that a stall of the link, or of a process at its
// ends, does not move it. The samples are forgotten a second after the last, and the estimate is bounded, so
// that a single observation cannot make batches seem impossible for longer.
//
// A link that varies brings half of its batches later than by the median. How much later than predicted they
// arrive is learnt as well, and plans count on it: a batch that is sent for the last moment and arrives after
// it has taken the link's time for nothing.
#pragma once

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <vector>

#include "scheduler/archive.h"
#include "scheduler/lateness.h"
#include "scheduler/types.h"

namespace clockwork {

// Least bytes of a sample; for fewer, other delays dominate.
inline constexpr std::uint64_t INPUTS_SAMPLE_BYTES = 256 << 10;

// Samples in the median, which needs two; each of them counts for INPUTS_KEPT_NS.
inline constexpr std::size_t INPUTS_SAMPLES = 8;
inline constexpr Ns INPUTS_KEPT_NS = SECOND;

// Upper bound of the time per byte: 10 MB/s.
inline constexpr double INPUTS_BYTE_NS_MAX = 100;

// The wait behind inputs is at most this much longer than predicted.
inline constexpr double INPUTS_WAIT_PART = 1.5;

// Bound on the remembered batches under way; older ones are taken to have arrived.
inline constexpr std::size_t INPUTS_UNDER_WAY = 1024;

// Time per byte: the median of the last samples.
class ByteTime {
public:
    void add(Ns now, double byte_ns);
    // Returns 0 while nothing is known.
    double byte_ns(Ns now) const { return now - learnt_ns_ <= INPUTS_KEPT_NS ? byte_ns_ : 0; }
    // The time of this many bytes; the common case is none.
    Ns takes_ns(Ns now, std::uint64_t bytes) const {
        return bytes > 0 ? static_cast<Ns>(byte_ns(now) * static_cast<double>(bytes)) : 0;
    }
    void archive(Archive& archive);

private:
    struct Sample {
        double byte_ns = 0;
        Ns seen_ns = 0;
    };

    std::array<Sample, INPUTS_SAMPLES> samples_{};
    std::uint64_t sample_count_ = 0;
    double byte_ns_ = 0;
    Ns learnt_ns_ = 0;
};

// Typical bytes of the last batches: a larger batch raises the value by half of the difference, a smaller one
// lowers it slowly, since the next may be as large.
class BatchBytes {
public:
    void add(std::uint64_t bytes) {
        if (bytes > 0 || most_ > 0) {
            follow(static_cast<double>(bytes));
        }
    }
    // The time of a typical batch.
    Ns takes_ns(Ns now, const ByteTime& time) const {
        return most_ > 0 ? static_cast<Ns>(time.byte_ns(now) * most_) : 0;
    }
    void archive(Archive& archive);

private:
    void follow(double bytes);

    double most_ = 0;
};

// Time per byte of a worker's copies from its clients' memory. A worker copies for several clients at once,
// so no batch is thought to wait for the copies of another; where the copies of two batches overlap, the
// later is charged from the end of the earlier. Batches that fail give no sample, since the memory that they
// refer to may be gone.
class CopyTime {
public:
    // Notes that a batch with this many bytes to copy is sent.
    void depart(std::uint64_t bytes) { batches_.add(bytes); }

    // Notes that copies which could begin at begin_ns had ended at ready_ns.
    void arrived(Ns now, std::uint64_t bytes, Ns begin_ns, Ns ready_ns);

    double byte_ns(Ns now) const { return time_.byte_ns(now); }
    Ns takes_ns(Ns now, std::uint64_t bytes) const { return time_.takes_ns(now, bytes); }
    Ns batch_ns(Ns now) const { return batches_.takes_ns(now, time_); }
    void archive(Archive& archive);

private:
    ByteTime time_;
    BatchBytes batches_;
    Ns ready_ns_ = 0;  // end of the last copies
};

// Bound on the batches that are remembered after their arrival.
inline constexpr std::uint64_t INPUTS_ARRIVED = 64;

class InputsWay {
public:
    // Notes that a batch of inputs is sent; there_ns: the delay of the link. Returns its number, from 1 on.
    // 0 is that of a batch without bytes, which is never asked for.
    std::uint64_t depart(Ns now, std::uint64_t bytes, Ns there_ns);

    // Notes that the batch of this number was at the worker at ready_ns, which is at most now; there_ns: the
    // delay of the link.
    void arrived(Ns now, std::uint64_t number, Ns ready_ns, Ns there_ns);

    // The time per byte; 0 while nothing is known.
    double byte_ns(Ns now) const { return time_.byte_ns(now); }
    Ns takes_ns(Ns now, std::uint64_t bytes) const { return time_.takes_ns(now, bytes); }
    // The time of a typical batch.
    Ns batch_ns(Ns now) const { return batches_.takes_ns(now, time_); }
    // The predicted time at which everything sent has left.
    Ns free_ns() const { return free_ns_; }
    // How much later than predicted inputs arrive, at most; 0 while that is unknown.
    Ns late_ns(Ns now) const { return byte_ns(now) > 0 ? late_.ns(now) : 0; }
    // The time at which a message that is sent now is at the worker, behind everything sent. there_ns: the
    // delay of the link. Inputs take takes_ns() of their bytes more.
    Ns message_ns(Ns now, Ns there_ns) const { return std::max(now, free_ns_) + there_ns; }
    // The same for a message that is late.
    Ns late_message_ns(Ns now, Ns there_ns) const { return message_ns(now, there_ns) + late_ns(now); }
    std::uint64_t bytes_under_way() const { return sent_bytes_ - seen_bytes_; }

    // The time for which a message that was sent at sent_ns may have waited behind inputs, at most; 0 while
    // the time per byte is unknown.
    Ns wait_ns(Ns now, Ns sent_ns) const;

    // Number of the last batch sent.
    std::uint64_t last() const { return last_; }
    void archive(Archive& archive);

private:
    struct Sent {
        Ns sent_ns = 0;
        std::uint64_t end_bytes = 0;  // sum of the bytes of all batches sent up to and including this one
        Ns expected_ns = NEVER_NS;    // predicted time of its arrival; NEVER_NS: it was not known
        Ns ready_ns = NEVER_NS;       // time at which it was at the worker; NEVER_NS: that is not known
    };
    const Sent& at(std::uint64_t number) const { return sent_[number % INPUTS_UNDER_WAY]; }
    // The number of the first batch that is remembered.
    std::uint64_t first() const {
        std::uint64_t arrived = seen_ < INPUTS_ARRIVED ? 1 : seen_ - INPUTS_ARRIVED + 1;
        return std::max(arrived, last_ < INPUTS_UNDER_WAY ? 1 : last_ - INPUTS_UNDER_WAY + 1);
    }
    void learn(Ns now);

    std::vector<Sent> sent_;          // ring by number; allocated with the first batch
    std::uint64_t last_ = 0;          // number of the last batch sent
    std::uint64_t sent_bytes_ = 0;    // sum of the bytes of all batches sent so far
    std::uint64_t seen_ = 0;          // number of the last batch known to have arrived
    std::uint64_t seen_bytes_ = 0;    // sum of the bytes of all batches that have arrived
    Ns seen_ready_ns_ = 0;            // arrival time of the last of them
    std::uint64_t sample_bytes_ = 0;  // bytes of the sample that is being taken
    Ns sample_ns_ = 0;
    ByteTime time_;
    Lateness late_;
    BatchBytes batches_;
    Ns free_ns_ = 0;
};

}  // namespace clockwork
