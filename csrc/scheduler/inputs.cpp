#include "scheduler/inputs.h"

#include <algorithm>

namespace clockwork {

namespace {

// Steps of BatchBytes, upwards and downwards.
constexpr double BATCH_UP = 0.5;
constexpr double BATCH_DOWN = 0.02;

}  // namespace

void ByteTime::add(Ns now, double byte_ns) {
    samples_[sample_count_++ % INPUTS_SAMPLES] = {std::min(byte_ns, INPUTS_BYTE_NS_MAX), now};
    std::array<double, INPUTS_SAMPLES> found{};
    std::size_t count = 0;
    for (std::size_t place = 0; place < std::min<std::uint64_t>(sample_count_, INPUTS_SAMPLES); ++place) {
        if (now - samples_[place].seen_ns <= INPUTS_KEPT_NS) {
            found[count++] = samples_[place].byte_ns;
        }
    }
    auto middle = found.begin() + static_cast<std::ptrdiff_t>(count > 0 ? (count - 1) / 2 : 0);
    std::nth_element(found.begin(), middle, found.begin() + static_cast<std::ptrdiff_t>(count));
    byte_ns_ = count > 1 ? *middle : 0;
    learnt_ns_ = now;
}

void BatchBytes::follow(double bytes) {
    double more = bytes - most_;
    most_ += more * (more > 0 ? BATCH_UP : BATCH_DOWN);
}

void CopyTime::arrived(Ns now, std::uint64_t bytes, Ns begin_ns, Ns ready_ns) {
    Ns begin = std::max(begin_ns, std::min(ready_ns_, ready_ns));
    ready_ns_ = std::max(ready_ns_, ready_ns);
    if (bytes >= INPUTS_SAMPLE_BYTES) {
        time_.add(now, static_cast<double>(std::max<Ns>(ready_ns - begin, 0)) / static_cast<double>(bytes));
    }
}

std::uint64_t InputsWay::depart(Ns now, std::uint64_t bytes, Ns there_ns) {
    free_ns_ = std::max(free_ns_, now) + takes_ns(now, bytes);
    batches_.add(bytes);
    if (bytes == 0) {
        return 0;
    }
    if (sent_.empty()) {
        sent_.resize(INPUTS_UNDER_WAY);
    }
    if (last_ - seen_ == INPUTS_UNDER_WAY) {
        ++seen_;
        seen_bytes_ = at(seen_).end_bytes;
    }
    sent_bytes_ += bytes;
    ++last_;
    Ns expected = byte_ns(now) > 0 ? free_ns_ + there_ns : NEVER_NS;
    sent_[last_ % INPUTS_UNDER_WAY] = {now, sent_bytes_, expected, NEVER_NS};
    return last_;
}

void InputsWay::arrived(Ns now, std::uint64_t number, Ns ready_ns, Ns there_ns) {
    if (number <= seen_) {
        return;  // a later batch has arrived, so this one has, too
    }
    // A batch that arrived with the one before, as far as its receiver noticed, belongs to the same sample.
    if (ready_ns > seen_ready_ns_ && sample_bytes_ >= INPUTS_SAMPLE_BYTES) {
        learn(now);
    }
    std::uint64_t bytes = at(number).end_bytes - seen_bytes_;
    if (Ns expected = at(number).expected_ns; expected != NEVER_NS) {
        late_.saw(now, takes_ns(now, bytes), ready_ns - expected);
    }
    Ns begin = std::max(at(seen_ + 1).sent_ns + there_ns, seen_ready_ns_);
    sample_ns_ += std::max<Ns>(ready_ns - begin, 0);
    sample_bytes_ += bytes;
    for (std::uint64_t other = seen_ + 1; other <= number; ++other) {
        sent_[other % INPUTS_UNDER_WAY].ready_ns = ready_ns;
    }
    seen_ = number;
    seen_bytes_ = at(number).end_bytes;
    seen_ready_ns_ = std::max(seen_ready_ns_, ready_ns);
    Ns left = std::max(ready_ns - there_ns, seen_ < last_ ? at(seen_ + 1).sent_ns : 0);
    free_ns_ = left + takes_ns(now, sent_bytes_ - seen_bytes_);
}

Ns InputsWay::wait_ns(Ns now, Ns sent_ns) const {
    if (byte_ns(now) == 0) {
        return 0;
    }
    std::uint64_t last = last_;
    while (last >= first() && at(last).sent_ns > sent_ns) {
        --last;
    }
    std::uint64_t before = last;  // the last batch that was there before
    while (before >= first() && at(before).ready_ns > sent_ns) {
        --before;
    }
    if (before == last) {
        return 0;
    }
    std::uint64_t from = before >= first() ? at(before).end_bytes : before == 0 ? 0 : at(first()).end_bytes;
    return static_cast<Ns>(INPUTS_WAIT_PART * byte_ns(now) * static_cast<double>(at(last).end_bytes - from));
}

void InputsWay::learn(Ns now) {
    time_.add(now, static_cast<double>(sample_ns_) / static_cast<double>(sample_bytes_));
    sample_bytes_ = 0;
    sample_ns_ = 0;
}

}  // namespace clockwork
