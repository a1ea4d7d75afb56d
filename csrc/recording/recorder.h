// The flight recorder: the events that the scheduler was told and the commands it decided, step by step, in a
// ring of bounded memory.
//
// Recorder writes each step as clockwork/scheduler/recording.py declares it, while the step happens. Ring
// keeps the newest steps as a stream of bytes, whose places are counted from the start of the process.
// Nothing is allocated once the buffers have grown.
#pragma once

#include <cstddef>
#include <cstdint>
#include <initializer_list>
#include <memory>
#include <mutex>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "msgpack.h"
#include "scheduler/types.h"

namespace clockwork {

struct RingState {
    std::uint64_t begin = 0;  // place at which the oldest kept step begins
    std::uint64_t end = 0;    // place after the newest step
    Ns oldest_ns = 0;         // time of the oldest kept step; 0: there is none
    std::uint64_t steps = 0;  // number of steps lost since the start
    std::size_t bytes_max = 0;
};

// The newest steps, bounded in bytes and in time. A single thread appends; any thread may read meanwhile.
class Ring {
public:
    // The least distance, in bytes, between two places that seek() can return.
    static constexpr std::uint64_t MARK_BYTES = 64 << 10;

    // bytes_max 0: nothing is kept.
    Ring(std::size_t bytes_max, Ns span_ns);

    bool is_on() const { return bytes_max_ != 0; }

    // Appends a step, given in parts. A step that is larger than the ring empties it, and is lost.
    void append(Ns at, std::initializer_list<std::string_view> parts);
    void append(Ns at, std::string_view step) { append(at, {step}); }

    // Reads at most so many bytes from place `since` on. Steps that are not kept any more are passed over,
    // and a place behind the end counts as the end. Returns the place of the first byte that was read.
    std::uint64_t read(std::uint64_t since, std::size_t bytes_max, std::string& found) const;
    // Like read(), into the caller's memory of `bytes` bytes; `bytes` is set to the number read.
    std::uint64_t read(std::uint64_t since, char* target, std::size_t& bytes) const;

    // The place of a kept step that was told at time `at` or shortly before; the end if there is none.
    std::uint64_t seek(Ns at) const;
    // The place where a step begins, at `place` or shortly after it.
    std::uint64_t step_from(std::uint64_t place) const;
    // The time of the step that begins at a place; 0 if no kept step begins there.
    Ns step_ns(std::uint64_t place) const;

    RingState state() const;

private:
    struct Mark {
        std::uint64_t place;
        Ns at;
    };

    void put(std::string_view part);
    void drop_oldest();
    struct Step {
        Ns at;
        std::uint64_t end;
    };
    Step step_at(std::uint64_t place) const;
    std::uint8_t byte(std::uint64_t place) const { return static_cast<std::uint8_t>(memory_[place % bytes_max_]); }
    std::uint64_t number(std::uint64_t& place, unsigned bytes) const;
    const Mark& mark(std::size_t place) const { return marks_[(first_mark_ + place) % marks_.size()]; }

    mutable std::mutex mutex_;
    const std::size_t bytes_max_;
    const Ns span_ns_;
    std::unique_ptr<char[]> memory_;  // its memory is touched as it fills
    std::uint64_t begin_ = 0;
    std::uint64_t end_ = 0;
    std::uint64_t steps_ = 0;
    Step oldest_{0, 0};        // the oldest mark, if there is one; otherwise its time is 0
    std::vector<Mark> marks_;  // ring of the marks of kept steps
    std::size_t first_mark_ = 0;
    std::size_t mark_count_ = 0;
};

// Encodes a step as it happens: its events, then settle(), its commands, and end().
class Recorder {
public:
    explicit Recorder(std::shared_ptr<Ring> ring) : ring_(std::move(ring)), is_on_(ring_->is_on()) {}

    // While recording is off, no other function may be called.
    bool is_on() const { return is_on_; }
    Ring& ring() { return *ring_; }

    // ----- events of the step to come ----------------------------------------------------------

    // The time of the step to which an event at `now` belongs. The step's other times are stored as
    // differences from it.
    Ns time_ns(Ns now) {
        if (event_count_ == 0)
            time_ns_ = now;
        return time_ns_;
    }
    // shape: the bytes that encode_shape() wrote.
    void arrived(Ns now, const Request& request, std::string_view shape);
    void cancelled(Ns now, RequestId request_id);
    void action_done(Ns now, const ActionResult& result, std::string_view text);
    // An event that was encoded elsewhere, with time_ns(now).
    void noted(std::string_view event);

    // ----- the step ----------------------------------------------------------------------------

    // Marks the end of the step's events: the scheduler decides on them now.
    void settle(Ns now);
    // A command of the decision. text: only for an ANSWER_FAILED; shape: only for a SEND_PROFILE.
    void ordered(const Command& command, const Commands& all, std::string_view text, std::string_view shape);
    void end();

    // ----- shapes, as they are written ---------------------------------------------------------

    // The bytes of a shape by its number; null for an unknown number.
    const std::string* shape(std::uint32_t number) const {
        return number < shapes_.size() && !shapes_[number].empty() ? &shapes_[number] : nullptr;
    }
    // dims: the rank of each input, followed by its dimensions.
    const std::string& know_shape(std::uint32_t number, const std::vector<std::int64_t>& dims);
    void forget_shapes() { shapes_.clear(); }

private:
    template <typename Event>
    void write(const Event& event);

    std::shared_ptr<Ring> ring_;
    const bool is_on_;
    Ns time_ns_ = 0;  // events of the step to come
    std::size_t event_count_ = 0;
    Writer events_;
    Ns settled_time_ns_ = 0;  // commands of the step that is being decided
    Ns settled_ns_ = 0;
    std::size_t command_count_ = 0;
    Writer step_;
    Writer commands_;
    std::vector<std::string> shapes_;
};

}  // namespace clockwork
