// Neighbours of an execution: the other executors of its arena, with which it shares memory bandwidth and
// caches.
//
// An execution loses a part of its speed for each other executor that is busy; with all of them busy it loses
// the part `drag`. So an execution whose neighbours were busy for the share `beside` of its time (the mean
// over all other executors) would have taken, without them,
//
//     alone = took * (1 - drag * beside)
//
// exactly, however often the neighbours began and ended meanwhile. Estimates keep samples as of an execution
// without neighbours. Plans take all neighbours as busy, alone / (1 - drag), because no work that is planned
// beside an execution may make it late. An action that is sent is predicted by the neighbours' lanes, and by
// the work that waits for them.
//
// The drag is learnt for each program, within the window of one batch size: batch sizes differ from each
// other by more than the neighbours. A sample is compared with the window's median, both as of no neighbours.
// Where it is longer and had more neighbours than the window's mean, or shorter and fewer, the drag is too
// small. Executions that all have the same neighbours teach nothing. Then the drag fades to the figure that
// the worker measured, and the samples, converted anew, keep the prediction as it was.
#pragma once

#include <algorithm>
#include <array>
#include <cmath>
#include <cstdint>

#include "scheduler/archive.h"
#include "scheduler/margin.h"
#include "scheduler/types.h"

namespace clockwork {

// Bound on the drag: executions beside busy neighbours take at most four times as long, and with n executors
// at most n times, as if they took turns.
inline constexpr double DRAG_MAX = 0.75;

// Samples teach nothing if their neighbours differ by less than this share from the window's mean.
inline constexpr double DRAG_APART = 0.1;

// Part of the drag's error that a sample corrects, if it had all neighbours and the others none; and the
// bound on the relative difference that a sample counts with, so that a stall of the machine moves the drag
// little.
inline constexpr double DRAG_STEP = 0.25;
inline constexpr double DRAG_CLIP = 0.25;

// Estimates follow the drag when it has changed by more than this.
inline constexpr double DRAG_TOLD = 0.02;

// Half-life of what was learnt about the drag, without samples that differ in their neighbours.
inline constexpr Ns DRAG_FADE_NS = 10 * SECOND;

// The share of its neighbours that an execution had, in 255ths.
using BusyShare = std::uint8_t;
inline constexpr BusyShare ALL_BUSY = 255;

inline double share_of(double beside) { return beside / ALL_BUSY; }

// The drag where all neighbours together make an execution take `slowdown` times as long; most: its bound.
inline double drag_of(double slowdown, double most) { return slowdown > 1 ? std::min(1 - 1 / slowdown, most) : 0; }

// The bound on the drag in an arena of so many executors; 0: no execution has neighbours.
inline double drag_most(std::uint32_t executors) { return std::min(1 - 1 / static_cast<double>(executors), DRAG_MAX); }

// The time without its neighbours of an execution that took `ns`.
inline Ns without_neighbours(Ns ns, double drag, double beside) {
    return drag == 0 || beside == 0 ? ns : static_cast<Ns>(static_cast<double>(ns) * (1 - drag * share_of(beside)));
}

// The time with all neighbours of an execution that takes `ns` without.
inline Ns with_neighbours(Ns ns, double drag) {
    return drag == 0 ? ns : static_cast<Ns>(static_cast<double>(ns) / (1 - drag));
}

// The drag of one program's executions on one kind of device.
class Drag {
public:
    // Begins with the drag that a worker measured. most: 0, there are no neighbours, and the drag stays 0.
    void begin(double first, double most) {
        learnt_ = Fading(first, DRAG_FADE_NS);
        first_ = told_ = first;
        most_ = most;
    }
    bool has_neighbours() const { return most_ > 0; }
    // The drag by which estimates are converted.
    double told() const { return told_; }
    // Learns from a sample's lesson (Window::lesson()). True: told() has changed.
    bool learn(Ns now, double lesson) {
        double drag = std::clamp(learnt_.at(now) + DRAG_STEP * lesson, 0.0, most_);
        if (lesson != 0) {
            learnt_.set(now, drag);
        }
        if (std::abs(drag - told_) <= DRAG_TOLD) {
            return false;
        }
        told_ = drag;
        return true;
    }

    void archive(Archive& archive) {
        archive(first_, told_, most_);
        if (archive.is_reading()) {
            learnt_ = Fading(first_, DRAG_FADE_NS);
        }
        archive(learnt_);
        auto is_drag = [this](double drag) { return 0 <= drag && drag <= most_; };
        Archive::need(most_ <= DRAG_MAX && is_drag(first_) && is_drag(told_) && is_drag(learnt_.at(0)),
                      "a drag is out of its range");
    }

private:
    Fading learnt_{0, DRAG_FADE_NS};
    double first_ = 0;
    double told_ = 0;
    double most_ = 0;
};

// Gaps of an executor's work up to this length count as work.
inline constexpr Ns STRETCH_GAP_NS = 20'000;

// The last stretches of time in which an executor executed.
class Stretches {
public:
    void add(Ns from_ns, Ns until_ns) {
        Stretch& last = stretches_[last_ % MANY];
        if (last.until_ns > 0 && from_ns - last.until_ns <= STRETCH_GAP_NS) {
            last.until_ns = std::max(last.until_ns, until_ns);
        } else {
            stretches_[++last_ % MANY] = {from_ns, until_ns};
        }
    }
    // The end of the last stretch; 0: there was none.
    Ns until_ns() const { return stretches_[last_ % MANY].until_ns; }
    // How long the executor executed between two times.
    Ns during(Ns from_ns, Ns until_ns) const {
        Ns sum = 0;
        for (std::uint64_t age = 0; age < MANY; ++age) {
            const Stretch& stretch = stretches_[(last_ + MANY - age) % MANY];
            if (stretch.until_ns <= from_ns) {
                break;
            }
            sum += std::max<Ns>(std::min(stretch.until_ns, until_ns) - std::max(stretch.from_ns, from_ns), 0);
        }
        return sum;
    }

    void archive(Archive& archive) {
        for (Stretch& stretch : stretches_) {
            archive(stretch.from_ns, stretch.until_ns);
        }
        archive(last_);
    }

private:
    static constexpr std::uint64_t MANY = 16;
    struct Stretch {
        Ns from_ns = 0, until_ns = 0;
    };
    std::array<Stretch, MANY> stretches_{};
    std::uint64_t last_ = 0;  // number of the last stretch
};

}  // namespace clockwork
