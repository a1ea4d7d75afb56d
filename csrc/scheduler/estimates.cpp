#include "scheduler/estimates.h"

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <stdexcept>

namespace clockwork {

namespace {

// Number of shapes up to which a linear search is as fast as a hash table.
constexpr std::size_t WALK_MAX = 8;

// Bound on durations that leaves room to add a few of them: a batch of a billion rows must not overflow.
constexpr __int128 DURATION_MAX = Ns{1} << 61;

Ns floor_div(Ns a, Ns b) {
    Ns quotient = a / b;
    return quotient - (a % b != 0 && (a < 0) != (b < 0));
}

bool is_above(Ns value, Ns told) { return static_cast<double>(value) > STALE_RATIO * static_cast<double>(told); }

template <typename Value>
auto find_batch(Value& sorted, std::uint32_t batch) {
    return std::lower_bound(sorted.begin(), sorted.end(), batch,
                            [](const auto& entry, std::uint32_t key) { return entry.first < key; });
}

}  // namespace

void Window::push(Ns sample, BusyShare beside) {
    if (count_ == WINDOW) {
        std::move(samples_.begin() + 1, samples_.end(), samples_.begin());
        std::move(besides_.begin() + 1, besides_.end(), besides_.begin());
        --count_;
    }
    besides_[count_] = beside;
    samples_[count_++] = sample;
}

bool Window::push(Ns sample, Ns took_ns, Ns now, BusyShare beside) {
    newest_ns_ = now;
    bool is_one = is_outlier(sample);
    if (is_one) {
        // Half of the duration is allowed for, because a result arrives somewhat later than its execution
        // ends.
        if (now - took_ns / 2 < outlier_ns_) {
            return true;
        }
        outlier_ns_ = now;
    }
    push(sample, beside);
    return is_one;
}

double Window::lesson(Ns sample, BusyShare beside) const {
    if (count_ == 0) {
        return 0;
    }
    double sum = 0;
    for (std::uint32_t index = 0; index < count_; ++index) {
        sum += besides_[index];
    }
    double more = share_of(beside - sum / count_);
    if (std::abs(more) < DRAG_APART) {
        return 0;
    }
    double longer = static_cast<double>(sample) / static_cast<double>(sorted()[(count_ - 1) / 2]) - 1;
    return std::clamp(longer, -DRAG_CLIP, DRAG_CLIP) * more;
}

void Window::convert(double before, double drag) {
    for (std::uint32_t index = 0; index < count_; ++index) {
        double share = share_of(besides_[index]);
        if (share > 0) {
            auto sample = static_cast<double>(samples_[index]);
            samples_[index] = std::max<Ns>(static_cast<Ns>(sample * (1 - drag * share) / (1 - before * share)), 1);
        }
    }
}

void Window::reset(Ns told) {
    count_ = 0;
    push(told);
    push(told);
}

bool Window::fall() {
    if (count_ <= FALL_COUNT) {
        return false;
    }
    Ns limit = robust() / FALL_RATIO;
    auto first = samples_.begin() + (count_ - FALL_COUNT), end = samples_.begin() + count_;
    if (std::any_of(first, end, [limit](Ns sample) { return sample >= limit; })) {
        return false;
    }
    std::copy(first, end, samples_.begin());
    std::copy(besides_.begin() + (count_ - FALL_COUNT), besides_.begin() + count_, besides_.begin());
    count_ = FALL_COUNT;
    return true;
}

Ns Window::least() const { return *std::min_element(samples_.begin(), samples_.begin() + count_); }

// Returns the two largest samples; the second is 0 where there is only one sample.
std::pair<Ns, Ns> Window::two_largest() const {
    Ns first = samples_[0], second = 0;
    for (std::uint32_t index = 1; index < count_; ++index) {
        Ns sample = samples_[index];
        if (sample > first) {
            second = first;
            first = sample;
        } else if (sample > second) {
            second = sample;
        }
    }
    return {first, second};
}

std::array<Ns, WINDOW> Window::sorted() const {
    std::array<Ns, WINDOW> sorted = samples_;
    std::sort(sorted.begin(), sorted.begin() + count_);
    return sorted;
}

bool Window::is_outlier(Ns sample) const {
    return count_ > 0 && sample / OUTLIER_RATIO > least() && sample / OUTLIER_RATIO > sorted()[(count_ - 1) / 2];
}

Ns Window::robust(Ns usual_ns) const {
    auto [first, second] = two_largest();
    if (count_ < 2 || first / OUTLIER_RATIO <= least()) {
        return count_ < 2 ? first : second;
    }
    std::array<Ns, WINDOW> ordered = sorted();
    Ns median = ordered[(count_ - 1) / 2];
    auto is_beyond = [median](Ns sample) { return sample / OUTLIER_RATIO > median; };
    std::uint32_t usual = count_;
    while (is_beyond(ordered[usual - 1])) {
        --usual;
    }
    bool are_last = is_beyond(samples_[count_ - 1]) && is_beyond(samples_[count_ - 2]) && outlier_ns_ >= usual_ns;
    bool counts = count_ - usual > OUTLIERS_MAX || are_last;
    return counts ? second : ordered[std::max(usual, 2U) - 2];
}

Ns Window::percentile() const {
    auto [first, second] = two_largest();
    if (count_ < 2) {
        return first;
    }
    Ns above = 99 * (count_ - 1) % 100;  // hundredths of the way from the second largest to the largest
    return second + (first - second) * above / 100;
}

bool Surprises::forget() {
    bool was_erratic = worst_ns() > 0;
    *this = {};
    return was_erratic;
}

bool Surprises::look_at(Ns took_ns, Ns expected_ns, Ns now) {
    // An erratic curve expects its worst time: there, another overdue execution is one of a tenth of that.
    bool is_surprise = is_overdue(took_ns, worst_ns() > 0 ? worst_ns_ / (OVERDUE_RATIO * OVERDUE_RATIO) : expected_ns);
    if (!is_surprise) {
        return count_ > 0 && ++behaved_ >= ERRATIC_BEHAVED && forget();
    }
    if (count_ > 0 && now - took_ns < newest_ns_) {
        // Executions that ran at the same time as the last overdue one do not count: several devices that
        // stall together are not the model's doing.
        return false;
    }
    bool changed = now - newest_ns_ > ERRATIC_NS && forget();
    Ns before = worst_ns();
    bool is_other = count_ == 0 || behaved_ > 0;
    count_ = std::min(count_ + is_other, ERRATIC_COUNT);
    behaved_ = 0;
    worst_ns_ = std::max(worst_ns_, took_ns);
    newest_ns_ = now;
    return changed || worst_ns() != before;
}

bool Surprises::forget_stale(Ns now) {
    // Another execution that takes as long may be under way on another device.
    return worst_ns() > 0 && now - newest_ns_ > STALE_NS + worst_ns_ && forget();
}

void Curve::seed(std::uint32_t batch, Ns ns) {
    if (batch < 1 || batch > BATCH_TABLE_MAX || ns <= 0) {
        return;
    }
    auto place = find_batch(seeds_, batch);
    if (place != seeds_.end() && place->first == batch) {
        place->second = ns;
    } else {
        seeds_.insert(place, {batch, ns});
    }
    profiled_ = true;
    raw_.clear();
    planned_.clear();
}

Ns Curve::seed_of(std::uint32_t batch) const {
    auto place = find_batch(seeds_, batch);
    return place != seeds_.end() && place->first == batch ? place->second : 0;
}

double Curve::saving(std::uint32_t rows_max) const {
    double alone = static_cast<double>(seed_of(1)), most = 1;
    for (const auto& [batch, ns] : seeds_) {
        if (batch <= rows_max) {
            most = std::max(most, alone * batch / static_cast<double>(ns));
        }
    }
    return most;
}

Ns Curve::beyond(std::uint32_t batch) {
    if (batch > BATCH_TABLE_MAX) {
        __int128 ns = static_cast<__int128>(exec_ns(BATCH_TABLE_MAX)) * batch / BATCH_TABLE_MAX;
        return static_cast<Ns>(std::min(ns, DURATION_MAX));
    }
    build(batch);
    return raw_[batch];
}

bool Curve::measure(std::uint32_t batch, Ns ns, Ns now, BusyShare beside, double* lesson) {
    if (batch > BATCH_TABLE_MAX) {
        return false;
    }
    ns = without_neighbours(ns, drag_, beside);
    bool is_robust = rule_ == EstimateRule::ROBUST, is_published = batch < raw_.size();
    bool changed = is_robust && is_published && surprises_.took(scaled(ns), raw_[batch], now);
    auto place = find_batch(windows_, batch);
    if (place == windows_.end() || place->first != batch) {
        // The earlier estimate counts as two samples: a single sample, high or low, does not yet outweigh the
        // profile and the neighbouring sizes.
        Ns seed = 0;
        if (!seeds_.empty()) {
            seed = alone_ns(batch);
            seed = scale_ == 1 ? seed : static_cast<Ns>(static_cast<double>(seed) / scale_);
        }
        place = windows_.insert(find_batch(windows_, batch), {batch, Window{}});
        if (seed > 0 && is_robust) {
            place->second.push(seed);
            place->second.push(seed);
        }
    }
    if (lesson != nullptr) {
        *lesson = place->second.lesson(std::max<Ns>(ns, 1), beside);
    }
    bool is_outlier = place->second.push(std::max<Ns>(ns, 1), scaled(ns), now, beside);
    changed |= is_robust && was_outlier_ && !is_outlier;  // outliers of other batch sizes no longer count
    was_outlier_ = is_outlier;
    usual_ns_ = is_outlier ? usual_ns_ : now;
    if (is_robust) {
        place->second.fall();
    }
    if (batch >= raw_.size()) {
        build(batch);
        return true;
    }
    Ns value = std::max(published(value_of(place->second)), surprises_.worst_ns());
    auto old_ns = static_cast<double>(raw_[batch]), new_ns = static_cast<double>(value);
    bool is_other = !is_robust && new_ns != old_ns;
    if (changed || is_other || new_ns > old_ns * (1 + RAISE_RATIO) || new_ns < old_ns * (1 - LOWER_RATIO)) {
        build(static_cast<std::uint32_t>(raw_.size()) - 1);
        return true;
    }
    return false;
}

// The profile's time of a batch, interpolated between its points. There must be a profile.
Ns Curve::seeded_ns(std::uint32_t batch) const {
    auto above = find_batch(seeds_, batch);
    if (above == seeds_.end()) {
        return seeds_.back().second * batch / seeds_.back().first;
    }
    if (above->first == batch || above == seeds_.begin()) {
        return above->second;
    }
    auto below = above - 1;
    return below->second + (above->second - below->second) * (batch - below->first) / (above->first - below->first);
}

// The profile's time of a batch; without a profile, the least measured time.
Ns Curve::told_ns(std::uint32_t batch, const Window& window) const {
    return seeds_.empty() ? window.least() : seeded_ns(batch);
}

Ns Curve::hoped_ns(std::uint32_t batch) {
    Ns expected = alone_ns(batch);
    auto place = find_batch(windows_, batch);
    bool is_measured = place != windows_.end() && place->first == batch;
    if (rule_ != EstimateRule::ROBUST || batch > BATCH_TABLE_MAX || (seeds_.empty() && !is_measured)) {
        return expected;
    }
    auto is_above = [&](Ns ns) {
        return static_cast<double>(expected) > STALE_BESIDE * static_cast<double>(scaled(ns));
    };
    if (!seeds_.empty() && !is_above(seeded_ns(batch))) {
        return expected;  // the result cannot exceed the greater of both: the window need not be searched
    }
    Ns told = seeds_.empty() ? place->second.least() : seeded_ns(batch);
    Ns hoped = is_measured ? place->second.least() : told;
    bool is_raised = is_above(std::max(told, hoped));
    return is_raised ? scaled(hoped) : expected;
}

bool Curve::is_confirmed(std::uint32_t batch, Ns now) const {
    auto place = find_batch(windows_, batch);
    return place != windows_.end() && place->first == batch && !is_stale(place->second, now);
}

double Curve::drift(std::uint32_t batch, const Window& window) const {
    return static_cast<double>(value_of(window)) / static_cast<double>(told_ns(batch, window));
}

// The least ratio of measured times to the profile.
double Curve::least_drift() const {
    double least = STALE_RATIO;
    for (const auto& [batch, window] : windows_) {
        least = std::min(least, drift(batch, window));
    }
    return least;
}

bool Curve::is_raised() const {
    double limit = std::min(STALE_RATIO, STALE_BESIDE * least_drift());
    return surprises_.worst_ns() > 0 ||
           (rule_ == EstimateRule::ROBUST && std::any_of(windows_.begin(), windows_.end(), [&](const auto& entry) {
                return drift(entry.first, entry.second) > limit;
            }));
}

bool Curve::forget_stale(Ns now) {
    // Fresh windows give the ratio to the profile for the whole curve; without any, the ratio is that of the
    // profile, or less if it was ever less.
    double fresh = INFINITY, least = least_drift();
    for (const auto& [batch, window] : windows_) {
        if (!is_stale(window, now)) {
            fresh = std::min(fresh, drift(batch, window));
        }
    }
    bool is_fresh = fresh < INFINITY;
    double usual = is_fresh ? fresh : std::min(least, 1.0);
    double limit = is_fresh ? STALE_BESIDE * fresh : std::min(STALE_RATIO, STALE_BESIDE * least);
    bool changed = surprises_.forget_stale(now);
    for (auto& [batch, window] : windows_) {
        if (is_stale(window, now) && drift(batch, window) > limit) {
            window.reset(std::max<Ns>(static_cast<Ns>(static_cast<double>(told_ns(batch, window)) * usual), 1));
            changed = true;
        }
    }
    if (changed && !raw_.empty()) {
        build(static_cast<std::uint32_t>(raw_.size()) - 1);
    }
    return changed;
}

void Curve::set_scale(double scale) {
    scale_ = scale;
    raw_.clear();
    planned_.clear();
}

void Curve::set_drag(double drag) {
    for (auto& entry : windows_) {
        entry.second.convert(drag_, drag);
    }
    drag_ = drag;
    raw_.clear();
    planned_.clear();
}

// Computes the published values of batches up to at least batch_max.
void Curve::build(std::uint32_t batch_max) {
    std::vector<std::pair<std::uint32_t, Ns>> points;
    points.reserve(seeds_.size() + windows_.size());
    for (const auto& [batch, window] : windows_) {
        points.emplace_back(batch, value_of(window));
    }
    // A profile point that was never executed here scales like its nearest measured neighbour.
    std::vector<std::pair<std::uint32_t, double>> drifts;
    for (const auto& [batch, ns] : points) {
        if (Ns seed = seed_of(batch); seed > 0) {
            drifts.emplace_back(batch, static_cast<double>(ns) / static_cast<double>(seed));
        }
    }
    std::size_t measured = points.size();
    for (const auto& [batch, ns] : seeds_) {
        auto end = points.begin() + static_cast<std::ptrdiff_t>(measured);
        bool known = std::any_of(points.begin(), end, [b = batch](const auto& point) { return point.first == b; });
        if (known) {
            continue;
        }
        double ratio = 1.0;
        std::int64_t nearest = INT64_MAX;
        for (const auto& [other, drift] : drifts) {
            std::int64_t distance = std::abs(std::int64_t{other} - std::int64_t{batch});
            if (distance < nearest) {
                nearest = distance;
                ratio = drift;
            }
        }
        points.emplace_back(batch, static_cast<Ns>(static_cast<double>(ns) * ratio));
    }
    if (points.empty()) {
        throw std::invalid_argument("an estimate of something that was never measured");
    }
    std::sort(points.begin(), points.end());
    std::uint32_t first = points.front().first, last = points.back().first;
    std::uint32_t size = std::max({batch_max, last <= 256 ? last : 0u, 8u});
    raw_.assign(size + 1, 0);
    for (std::size_t index = 0; index + 1 < points.size(); ++index) {
        auto [low, low_ns] = points[index];
        auto [high, high_ns] = points[index + 1];
        for (std::uint32_t batch = low; batch < std::min(high, size + 1); ++batch) {
            raw_[batch] = low_ns + floor_div((high_ns - low_ns) * (batch - low), high - low);
        }
    }
    for (std::uint32_t batch = 1; batch < std::min(first, size + 1); ++batch) {
        raw_[batch] = points.front().second;
    }
    for (std::uint32_t batch = last; batch <= size; ++batch) {
        raw_[batch] = points.back().second * batch / last;
    }
    planned_.assign(size + 1, 0);
    for (std::uint32_t batch = 1; batch <= size; ++batch) {
        raw_[batch] = std::max({published(raw_[batch]), raw_[batch - 1], surprises_.worst_ns()});
        planned_[batch] = with_margin(raw_[batch]);
    }
}

void Shapes::set(std::uint32_t shape, std::uint64_t elements) {
    if (shape >= elements_.size()) {
        elements_.resize(shape + 1, 0);
    }
    elements_[shape] = elements;
}

void ProgramEstimates::seed(const std::vector<ProfilePoint>& points) {
    for (const ProfilePoint& point : points) {
        Curve* known = curve(point.shape);
        if (known == nullptr) {
            known = &add(point.shape);
        }
        if (!known->is_measured()) {
            known->seed(point.batch, point.exec_ns);
        }
    }
}

Curve& ProgramEstimates::add(std::uint32_t shape) {
    curves_.emplace_back(shape, std::make_unique<Curve>(rule));
    curves_.back().second->set_scale(scale_);
    curves_.back().second->set_drag(drag_.told());
    if (curves_.size() > WALK_MAX) {
        if (index_.empty()) {
            for (const auto& entry : curves_) {
                index_[entry.first] = entry.second.get();
            }
        }
        index_[shape] = curves_.back().second.get();
    }
    return *curves_.back().second;
}

bool ProgramEstimates::set_scale(double scale) {
    if (scale == scale_) {
        return false;
    }
    scale_ = scale;
    for (const auto& entry : curves_) {
        entry.second->set_scale(scale);
    }
    return true;
}

Curve* ProgramEstimates::find(std::uint32_t shape) const {
    if (!index_.empty()) {
        auto found = index_.find(shape);
        return found != index_.end() ? found->second : nullptr;
    }
    for (const auto& entry : curves_) {
        if (entry.first == shape) {
            return entry.second.get();
        }
    }
    return nullptr;
}

Ns ProgramEstimates::bound_ns(const Shapes& shapes, std::uint32_t shape, std::uint32_t batch) const {
    Curve* reference = nullptr;
    std::uint64_t reference_count = 0;
    std::uint64_t wanted = shapes.elements(shape);
    bool has_profile =
        std::any_of(curves_.begin(), curves_.end(), [](const auto& entry) { return entry.second->is_profiled(); });
    for (const auto& [known, curve] : curves_) {
        std::uint64_t count = shapes.elements(known);
        if (count < wanted && has_profile && !curve->is_profiled()) {
            continue;  // otherwise callers could raise the bound step by step, each shape by the one before
        }
        bool is_better =
            reference_count < wanted ? count > reference_count : wanted <= count && count < reference_count;
        if (is_better) {
            reference = curve.get();
            reference_count = count;
        }
    }
    if (reference == nullptr) {
        return 0;
    }
    double ratio = static_cast<double>(wanted) / static_cast<double>(reference_count);
    ratio = std::max(ratio, 1.0);
    if (ratio > BOUND_RATIO_MAX) {
        return 0;
    }
    return with_margin(static_cast<Ns>(static_cast<double>(reference->exec_ns(batch)) * ratio * ratio));
}

void ProgramEstimates::begin_drag(double first, double most) {
    bool is_fresh =
        std::none_of(curves_.begin(), curves_.end(), [](const auto& entry) { return entry.second->is_measured(); });
    if (is_fresh) {
        drag_.begin(first, most);
        tell_drag();
    }
}

void ProgramEstimates::tell_drag() {
    for (const auto& entry : curves_) {
        entry.second->set_drag(drag_.told());
    }
}

bool ProgramEstimates::measure(std::uint32_t shape, std::uint32_t batch, Ns ns, std::uint32_t* forgotten, Ns now,
                               BusyShare beside) {
    Curve* known = curve(shape);
    if (known == nullptr) {
        if (curves_.size() >= SHAPES_MAX) {
            auto oldest = std::find_if(curves_.begin(), curves_.end(),
                                       [](const auto& entry) { return !entry.second->is_profiled(); });
            if (oldest == curves_.end()) {
                return false;
            }
            *forgotten = oldest->first;
            index_.erase(oldest->first);
            curves_.erase(oldest);
        }
        known = &add(shape);
    }
    if (!drag_.has_neighbours()) {
        return known->measure(batch, ns, now);
    }
    double lesson = 0;
    bool changed = known->measure(batch, ns, now, beside, &lesson);
    if (drag_.learn(now, lesson)) {
        tell_drag();
        return true;
    }
    return changed;
}

namespace {

std::uint64_t load_key(std::uint32_t program, std::uint32_t page_count) {
    return std::uint64_t{program} << 32 | page_count;
}

}  // namespace

LoadEstimates::LoadEstimates() {
    ratios_.push(1000);
    ratios_.push(1000);
}

LoadTimes& LoadEstimates::use(std::uint32_t program, std::uint32_t page_count) {
    LoadTimes& times = times_[load_key(program, page_count)];
    ++times.users;
    return times;
}

void LoadEstimates::release(std::uint32_t program, std::uint32_t page_count) {
    auto found = times_.find(load_key(program, page_count));
    if (found != times_.end() && --found->second.users == 0) {
        times_.erase(found);
    }
}

LoadTimes* LoadEstimates::find(std::uint32_t program, std::uint32_t page_count) {
    auto found = times_.find(load_key(program, page_count));
    return found != times_.end() ? &found->second : nullptr;
}

namespace {

// Whether a window is far above the profile, or without one far above its least sample.
bool is_raised_window(const Window& window, Ns told) {
    return !window.empty() && is_above(window.robust(), told > 0 ? told : window.least());
}

bool reset_stale(Window& window, Ns told, Ns now) {
    if (!is_raised_window(window, told) || !window.is_stale(now, 0)) {
        return false;
    }
    window.reset(told > 0 ? told : window.least());
    return true;
}

}  // namespace

Ns LoadEstimates::hoped_ns(const LoadTimes& own, Ns seed_ns, std::uint32_t page_count, Ns now) const {
    Ns expected = load_ns(own, seed_ns, page_count);
    const Window& window = own.ns > 0 ? own.window : ratios_;
    if (window.is_stale(now, expected) && (own.ns > 0 || seed_ns > 0)) {
        Ns least = own.ns > 0 ? window.least() : seed_ns * window.least() / 1000;
        if (static_cast<double>(expected) > STALE_BESIDE * static_cast<double>(std::max(least, seed_ns))) {
            return least;
        }
    }
    return expected;
}

bool LoadEstimates::is_raised(const LoadTimes& own, Ns seed_ns) const {
    return unseeded_.is_raised() || is_raised_window(ratios_, 1000) || is_raised_window(page_ns_, 0) ||
           is_raised_window(own.window, seed_ns);
}

void LoadEstimates::forget_stale(LoadTimes& own, Ns seed_ns, Ns now) {
    if (reset_stale(ratios_, 1000, now)) {
        ratio_ = 1000;
    }
    reset_stale(page_ns_, 0, now);
    unseeded_.forget_stale(now);
    if (reset_stale(own.window, seed_ns, now)) {
        own.ns = own.window.robust();
    }
}

void LoadEstimates::measure(LoadTimes& own, Ns seed_ns, std::uint32_t page_count, Ns ns, Ns now) {
    ns = std::max<Ns>(ns, 1);
    if (Ns seed = own.ns == 0 ? first_ns(seed_ns, page_count) : 0; seed > 0) {
        own.window.push(seed);
        own.window.push(seed);
    }
    own.window.push(ns, ns, now);
    own.window.fall();
    own.ns = own.window.robust();
    if (seed_ns > 0) {
        ratios_.push(ns * 1000 / seed_ns, ns, now);
        ratios_.fall();
        ratio_ = std::min<Ns>(std::max<Ns>(ratios_.robust(), 500), 4000);
    }
    if (seed_ns == 0) {
        unseeded_.add(page_count, ns, now);
    } else if (page_count > 0) {
        page_ns_.push(ns / page_count, ns, now);
        page_ns_.fall();
    }
}

ProgramEstimates& Estimates::use_program(std::uint32_t program, std::uint32_t kind) {
    ProgramEstimates& found = programs_[std::uint64_t{program} << 32 | kind];
    ++found.users;
    found.rule = rule_;
    return found;
}

void Estimates::release_program(std::uint32_t program, std::uint32_t kind) {
    auto found = programs_.find(std::uint64_t{program} << 32 | kind);
    if (found != programs_.end() && --found->second.users == 0) {
        programs_.erase(found);
    }
}

LoadEstimates& Estimates::loads(std::uint32_t kind) { return loads_[kind]; }

}  // namespace clockwork
