// How a lane notices that a stream has come to a mark.
//
// Where the driver has streams write words (CUDA 12 and newer), a word follows the work into pinned memory,
// and the lane reads it without a call of the driver, whose lock would hold up the other lanes. Elsewhere the
// lane polls an event. cuEventSynchronize would either spin all the time, which costs a core for each lane,
// or sleep until an interrupt, which comes tens of microseconds late.
#pragma once

#include <algorithm>
#include <cstdint>

#include "device/cuda_api.h"

namespace clockwork::device {

// part of the prediction around its end in which the lane polls without a nap
inline constexpr std::int64_t WATCH_SHARE = 128;
// part of the prediction for which the lane sleeps first: nothing ends sooner
inline constexpr std::int64_t SLEEP_SHARE = 2;
// before polling, a nap is this part of the time waited so far
inline constexpr std::int64_t EARLY_SHARE = 16;
// before polling, a nap is at most this part of the time until polling begins
inline constexpr std::int64_t NEAR_SHARE = 4;
inline constexpr std::int64_t EARLY_LEAST_NS = 50'000;
inline constexpr std::int64_t SLEEP_MOST_NS = 10'000'000;
// after polling, a nap is this part of the time since polling ended
inline constexpr std::int64_t LATE_SHARE = 64;
inline constexpr std::int64_t LATE_LEAST_NS = 2'000;
inline constexpr std::int64_t LATE_MOST_NS = 1'000'000;
// Interval at which the driver is asked even if words are used: a broken context writes no word.
inline constexpr std::int64_t LOOK_NS = 5'000'000;

// A place in a stream that is reached again and again. A single lane at a time uses it.
struct StreamMark {
    CUevent event = nullptr;  // event at the same place, which carries the device's time
    // word in pinned memory that the stream writes behind the event; null: the driver cannot write words
    std::uint32_t* word = nullptr;
    // number of times the mark was set; the value of the word once the mark is reached
    std::uint32_t count = 0;

    // Queues the write of the word, behind the event, which the caller has queued.
    CUresult set(const CudaApi& api, CUstream stream) {
        count++;
        if (word == nullptr)
            return CUDA_SUCCESS;
        return api.write_word(stream, reinterpret_cast<CUdeviceptr>(word), count, 0);
    }

    // Whether the word was written. A late word of an earlier wait, which was given up, has a lower value.
    bool is_written() const { return __atomic_load_n(word, __ATOMIC_ACQUIRE) == count; }
};

// A wait for a mark. The lane sleeps for half of the predicted time (10 ms at a stretch at most). Then it
// polls between naps, because a prediction may be too long: a nap is a 16th of the time waited and at most a
// quarter of the time left, so that a slightly early end is noticed soon. The lane polls without naps from
// spin_ns and a 128th of the prediction before the predicted end to as much after it. Then it naps again,
// ever longer, so that work that never ends takes no core.
class Watch {
public:
    Watch() : Watch(0, 0, 0) {}

    // expected_ns: the predicted duration from begin_ns on; 0: not known.
    Watch(std::int64_t begin_ns, std::int64_t expected_ns, std::int64_t spin_ns)
        : begin_ns_(begin_ns),
          expected_ns_(std::max<std::int64_t>(expected_ns, 0)),
          lead_ns_(spin_ns + expected_ns_ / WATCH_SHARE),
          look_ns_(begin_ns + LOOK_NS) {}

    // CUDA_SUCCESS: the mark was reached. CUDA_ERROR_NOT_READY: pause_ns() says when to look again. Any other
    // value: the mark will never be reached.
    CUresult look(const CudaApi& api, const StreamMark& mark, std::int64_t now_ns) {
        if (mark.word == nullptr)
            return api.query_event(mark.event);
        if (mark.is_written())
            return CUDA_SUCCESS;
        if (now_ns < look_ns_)
            return CUDA_ERROR_NOT_READY;
        look_ns_ = now_ns + LOOK_NS;
        return api.query_event(mark.event);
    }

    // How long to sleep before the next look; 0: no sleep. A lane that polls by calls of the driver always
    // pauses for a while.
    std::int64_t pause_ns(const StreamMark& mark, std::int64_t now_ns) const {
        const std::int64_t waited_ns = now_ns - begin_ns_, watch_ns = expected_ns_ - lead_ns_;
        if (waited_ns < watch_ns) {
            const std::int64_t left_ns = watch_ns - waited_ns;
            const std::int64_t nap_ns =
                std::max(std::min(waited_ns / EARLY_SHARE, left_ns / NEAR_SHARE), EARLY_LEAST_NS);
            return std::min({left_ns, std::max(nap_ns, expected_ns_ / SLEEP_SHARE - waited_ns), SLEEP_MOST_NS});
        }
        const std::int64_t late_ns = waited_ns - expected_ns_ - lead_ns_;
        if (late_ns < 0)
            return mark.word == nullptr && expected_ns_ > 0 ? LATE_LEAST_NS : 0;
        return std::clamp(late_ns / LATE_SHARE, LATE_LEAST_NS, LATE_MOST_NS);
    }

    std::int64_t expected_end_ns() const { return begin_ns_ + expected_ns_; }

private:
    std::int64_t begin_ns_;
    std::int64_t expected_ns_;
    std::int64_t lead_ns_;
    std::int64_t look_ns_;
};

}  // namespace clockwork::device
