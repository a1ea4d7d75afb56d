#include "scheduler/learning.h"

#include <algorithm>

namespace clockwork {

// ----- clocks -------------------------------------------------------------------------------------

void Learning::set_clock(Executor& executor, std::uint32_t mhz) {
    executor.clock_mhz = mhz;
    Kind& clock = kinds_[executor.arena->kind];
    if (clock.first_mhz == 0) {
        clock.first_mhz = mhz;
    }
    follow_clocks(executor.arena->kind);
}

void Learning::follow_clocks(std::uint32_t kind) {
    Kind& clock = kinds_[kind];
    if (clock.first_mhz == 0) {
        return;
    }
    std::uint32_t slowest = 0;
    for (const Executor* executor : state_.executors) {
        if (executor->arena->kind == kind && executor->clock_mhz > 0 &&
            (slowest == 0 || executor->clock_mhz < slowest)) {
            slowest = executor->clock_mhz;
        }
    }
    if (slowest == 0) {
        return;
    }
    for (Executor* executor : state_.executors) {
        if (executor->arena->kind == kind) {
            bool is_known = executor->clock_mhz > 0;
            executor->pace = is_known ? static_cast<double>(slowest) / executor->clock_mhz : 1;
            state_.touch(*executor);
        }
    }
    clock.scale = static_cast<double>(clock.first_mhz) / slowest;
    for (const Model* model : state_.models) {
        for (const KindSpec* spec : model->specs) {
            if (spec->kind == kind && spec->program->set_scale(clock.scale)) {
                changed_shapes_.clear();
                spec->program->for_each_shape([&](std::uint32_t shape) { changed_shapes_.push_back(shape); });
                tell_changed(*spec->program);
            }
        }
    }
}

// Converts a duration to the clock that estimates are stored for.
Ns Learning::at_first_clock(const Executor& executor, Ns took_ns) const {
    const Kind& clock = kinds_[executor.arena->kind];
    if (clock.first_mhz == 0 || executor.clock_mhz == 0 || executor.clock_mhz == clock.first_mhz) {
        return took_ns;
    }
    return static_cast<Ns>(static_cast<double>(took_ns) * executor.clock_mhz / clock.first_mhz);
}

void Learning::tell_changed(ProgramEstimates& program) {
    for (std::uint32_t shape : changed_shapes_) {
        deciders_.policy->estimates_changed(program, shape);
    }
}

// ----- neighbours ---------------------------------------------------------------------------------

void Learning::set_neighbours(std::uint32_t kind, std::uint32_t executors, double slowdown) {
    kinds_[kind].drag_most = drag_most(executors);
    kinds_[kind].drag = drag_of(slowdown, kinds_[kind].drag_most);
}

// ----- samples ------------------------------------------------------------------------------------

void Learning::executed(const Flight& flight, Ns took_ns) {
    ProgramEstimates& program = *flight.residency->spec->program;
    const Batch& batch = *flight.batch;
    std::uint32_t forgotten = UINT32_MAX;
    double drag = program.drag();
    bool changed = program.measure(batch.shape, batch.size, at_first_clock(*flight.executor, took_ns), &forgotten,
                                   state_.now, flight.beside);
    if (forgotten != UINT32_MAX) {
        deciders_.policy->estimates_forgotten(program, forgotten);
    }
    if (changed) {
        if (Curve* curve = program.curve(batch.shape); curve != nullptr && curve->is_raised()) {
            note_raised();
        }
        changed_shapes_.assign(1, batch.shape);
        if (program.drag() != drag) {
            changed_shapes_.clear();
            program.for_each_shape([&](std::uint32_t shape) { changed_shapes_.push_back(shape); });
        }
        tell_changed(program);
    }
}

void Learning::loaded(KindSpec& spec, Ns took_ns) {
    spec.loads->measure(*spec.load_times, spec.load_ns, spec.page_count, took_ns, state_.now);
}

void Learning::fetched(KindSpec& spec, Ns took_ns) {
    spec.fetches->measure(*spec.fetch_times, 0, spec.page_count, took_ns, state_.now);
}

void Learning::load_ended(const KindSpec& spec) {
    if (spec.loads->is_raised(*spec.load_times, spec.load_ns)) {
        note_raised();
    }
}

void Learning::fetch_ended(const KindSpec& spec) {
    if (spec.fetches->is_raised(*spec.fetch_times, 0)) {
        note_raised();
    }
}

// ----- what is stale ------------------------------------------------------------------------------

void Learning::note_raised() { stale_at_ns_ = std::min(stale_at_ns_, state_.now + STALE_EVERY_NS); }

void Learning::look_for_stale() {
    Ns now = state_.now;
    bool is_raised = false;
    for (const Model* model : state_.models) {
        for (KindSpec* spec : model->specs) {
            changed_shapes_.clear();
            is_raised |=
                spec->program->forget_stale(now, [&](std::uint32_t shape) { changed_shapes_.push_back(shape); });
            tell_changed(*spec->program);
            if (spec->loads->is_raised(*spec->load_times, spec->load_ns)) {
                spec->loads->forget_stale(*spec->load_times, spec->load_ns, now);
                is_raised |= spec->loads->is_raised(*spec->load_times, spec->load_ns);
            }
            if (spec->fetches->is_raised(*spec->fetch_times, 0)) {
                spec->fetches->forget_stale(*spec->fetch_times, 0, now);
                is_raised |= spec->fetches->is_raised(*spec->fetch_times, 0);
            }
        }
    }
    stale_at_ns_ = is_raised ? now + STALE_EVERY_NS : NEVER_NS;
}

}  // namespace clockwork
