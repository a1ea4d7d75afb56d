#include "scheduler/page_times.h"

#include <algorithm>
#include <vector>

#include "scheduler/estimates.h"

namespace clockwork {

namespace {

double median(std::vector<double>& values) {
    auto middle = values.begin() + static_cast<std::ptrdiff_t>(values.size() / 2);
    std::nth_element(values.begin(), middle, values.end());
    return *middle;
}

}  // namespace

void PageTimes::add(std::uint32_t page_count, Ns ns, Ns now) {
    samples_[next_] = {std::max(page_count, 1u), std::max<Ns>(ns, 1)};
    next_ = (next_ + 1) % SAMPLES_MAX;
    count_ = std::min(count_ + 1, SAMPLES_MAX);
    newest_ns_ = now;
    fit();
}

Ns PageTimes::expected_ns(std::uint32_t page_count) const {
    return empty() ? 0 : std::max<Ns>(static_cast<Ns>(fixed_ns_ + page_ns_ * std::max(page_count, 1u)), 1);
}

bool PageTimes::is_below(const Sample& sample) const {
    return static_cast<double>(expected_ns(sample.page_count)) > STALE_RATIO * static_cast<double>(sample.ns);
}

bool PageTimes::is_raised() const {
    return std::any_of(samples_.begin(), samples_.begin() + count_,
                       [this](const Sample& sample) { return is_below(sample); });
}

void PageTimes::forget_stale(Ns now) {
    if (!is_raised() || now - newest_ns_ <= STALE_NS) {
        return;
    }
    auto kept = std::remove_if(samples_.begin(), samples_.begin() + count_,
                               [this](const Sample& sample) { return !is_below(sample); });
    count_ = next_ = static_cast<std::uint32_t>(kept - samples_.begin());
    fit();
}

void PageTimes::fit() {
    std::vector<double> slopes, rests;
    for (std::uint32_t place = 0; place < count_; ++place) {
        for (std::uint32_t other = 0; other < place; ++other) {
            double pages = static_cast<double>(samples_[place].page_count) - samples_[other].page_count;
            if (pages != 0) {
                slopes.push_back(static_cast<double>(samples_[place].ns - samples_[other].ns) / pages);
            }
        }
    }
    page_ns_ = slopes.empty() ? 0 : std::max(median(slopes), 0.0);
    for (std::uint32_t place = 0; place < count_; ++place) {
        rests.push_back(static_cast<double>(samples_[place].ns) - page_ns_ * samples_[place].page_count);
    }
    fixed_ns_ = median(rests);
    if (slopes.empty() || fixed_ns_ < 0) {  // all of it is for the pages
        for (std::uint32_t place = 0; place < count_; ++place) {
            rests[place] = static_cast<double>(samples_[place].ns) / samples_[place].page_count;
        }
        page_ns_ = median(rests);
        fixed_ns_ = 0;
    }
}

}  // namespace clockwork
