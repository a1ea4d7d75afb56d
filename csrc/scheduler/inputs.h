// How long inputs take to a worker, by byte, learnt from when batches of them have arrived there; and how long the worker
// takes to copy those that lie in its clients' memory instead.
//
// Messages to one worker arrive in the order of their sending, so what a batch took of the way itself is counted from
// its sending or from the arrival of the one before it, whichever was later: bytes that wait behind others are not
// charged for that. The median of the last samples counts, the lower of two: a hiccup of the way, or of a process at
// its ends, teaches nothing. All is forgotten a second after the last sample, and there is a bound on it, so that no
// batch is thought impossible for longer because of what was seen once.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <vector>

#include "scheduler/archive.h"
#include "scheduler/types.h"

namespace clockwork {

// A sample is of so many bytes at least: of less, delays of other causes are the most.
inline constexpr std::uint64_t INPUTS_SAMPLE_BYTES = 256 << 10;

// The median of so many is believed, if there were two; each of them counts for so long.
inline constexpr std::size_t INPUTS_SAMPLES = 8;
inline constexpr Ns INPUTS_KEPT_NS = SECOND;

// A way is never thought to be slower than this for each byte: 10 MB/s.
inline constexpr double INPUTS_BYTE_NS_MAX = 100;

// Batches under way of which the sending is remembered; the oldest are then taken to have arrived.
inline constexpr std::size_t INPUTS_UNDER_WAY = 1024;

// What each byte takes: the median of the last samples.
class ByteTime {
public:
    void add(Ns now, double byte_ns);
    // 0 as long as nothing is known.
    double byte_ns(Ns now) const { return now - learnt_ns_ <= INPUTS_KEPT_NS ? byte_ns_ : 0; }
    // What so many bytes take: of most batches there are none.
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

// The bytes of most of the last batches, or less: followed up by half of what they are more, and down slowly, since the
// next may be as large.
class BatchBytes {
public:
    void add(std::uint64_t bytes) {
        if (bytes > 0 || most_ > 0) {
            follow(static_cast<double>(bytes));
        }
    }
    // What as many bytes take.
    Ns takes_ns(Ns now, const ByteTime& time) const {
        return most_ > 0 ? static_cast<Ns>(time.byte_ns(now) * most_) : 0;
    }
    void archive(Archive& archive);

private:
    void follow(double bytes);

    double most_ = 0;
};

// How long a worker takes to copy inputs from its clients' memory, by byte. It copies for several clients at the same
// time, so no batch is thought to wait for the copies of another; only where one ended while another was under way, the
// latter is charged from there on. Batches that fail teach nothing, since what they refer to may be nowhere.
class CopyTime {
public:
    // A batch with so many bytes to be copied is sent.
    void depart(std::uint64_t bytes) { batches_.add(bytes); }

    // Copies of so many bytes, which could begin at begin_ns, had ended at ready_ns.
    void arrived(Ns now, std::uint64_t bytes, Ns begin_ns, Ns ready_ns);

    double byte_ns(Ns now) const { return time_.byte_ns(now); }
    Ns takes_ns(Ns now, std::uint64_t bytes) const { return time_.takes_ns(now, bytes); }
    Ns batch_ns(Ns now) const { return batches_.takes_ns(now, time_); }
    void archive(Archive& archive);

private:
    ByteTime time_;
    BatchBytes batches_;
    Ns ready_ns_ = 0;  // when the last copies ended
};

class InputsWay {
public:
    // A batch of inputs is sent. Its number, from 1 on; 0, for one without bytes, is never asked for.
    std::uint64_t depart(Ns now, std::uint64_t bytes);

    // The batch of this number was at the worker at ready_ns, which is at most now; there_ns: the delay of the link.
    void arrived(Ns now, std::uint64_t number, Ns ready_ns, Ns there_ns);

    // What each byte takes; 0 as long as nothing is known.
    double byte_ns(Ns now) const { return time_.byte_ns(now); }
    Ns takes_ns(Ns now, std::uint64_t bytes) const { return time_.takes_ns(now, bytes); }
    // What a batch takes, if it is nearly as large as the largest of the last ones.
    Ns batch_ns(Ns now) const { return batches_.takes_ns(now, time_); }
    // When what was sent is thought to have left.
    Ns free_ns() const { return free_ns_; }
    std::uint64_t bytes_under_way() const { return sent_bytes_ - seen_bytes_; }

    // Number of the last that was sent.
    std::uint64_t last() const { return last_; }
    void archive(Archive& archive);

private:
    struct Sent {
        Ns sent_ns = 0;
        std::uint64_t end_bytes = 0;  // of all that were sent, this one included
    };
    const Sent& at(std::uint64_t number) const { return sent_[number % INPUTS_UNDER_WAY]; }
    void learn(Ns now);

    std::vector<Sent> sent_;          // a ring, by number; there once something was sent
    std::uint64_t last_ = 0;          // number of the last that was sent
    std::uint64_t sent_bytes_ = 0;    // of all until then
    std::uint64_t seen_ = 0;          // number of the last that is known to have arrived
    std::uint64_t seen_bytes_ = 0;    // of all until then
    Ns seen_ready_ns_ = 0;            // when it arrived
    std::uint64_t sample_bytes_ = 0;  // of the sample that is being taken
    Ns sample_ns_ = 0;
    ByteTime time_;
    BatchBytes batches_;
    Ns free_ns_ = 0;
};

}  // namespace clockwork
