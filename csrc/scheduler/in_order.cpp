#include "scheduler/in_order.h"

#include <algorithm>

namespace clockwork {

namespace {

bool goes_before(const Queue& queue, const Waiting& waiting, const Pending& pending) {
    return queue.level != pending.request.priority ? queue.level < pending.request.priority
                                                   : waiting.deadline_ns <= pending.deadline_ns;
}

}  // namespace

// Collects the model's devices, and the queues that they serve before the request. False: too many.
bool InOrder::collect(const Pending& pending) {
    devices_.clear();
    cursors_.clear();
    std::size_t queued = 0;
    for (const Residency* residency : pending.model->residencies) {
        const Arena& arena = *residency->arena;
        if (!arena.usable() || residency->doomed || residency->is_stuck) {
            continue;
        }
        if (devices_.size() == ORDERED_DEVICES_MAX) {
            return false;
        }
        devices_.push_back({&arena, std::max(arena.free_ns(state_.now), state_.now + arena.worker->there_ns)});
        queues_.for_each_model(arena, [&](std::uint32_t slot) {
            for (const auto& queue : queues_.of(state_.at<Model>(slot))) {
                if (queue->ready && !queue->empty() && goes_before(*queue, queue->front(), pending) &&
                    std::none_of(cursors_.begin(), cursors_.end(),
                                 [&](const Cursor& cursor) { return cursor.queue == queue.get(); })) {
                    cursors_.push_back({queue.get()});
                }
            }
            return ++queued <= ORDERED_REQUESTS_MAX;
        });
        if (queued > ORDERED_REQUESTS_MAX) {
            return false;
        }
    }
    return true;
}

bool InOrder::serves(const Pending& pending) {
    if (!collect(pending)) {
        return false;
    }
    auto is_later = [](const Cursor& cursor, const Cursor& other) {
        return cursor.queue->level != other.queue->level ? cursor.queue->level > other.queue->level
                                                         : other.first() < cursor.first();
    };
    std::make_heap(cursors_.begin(), cursors_.end(), is_later);
    for (std::uint32_t seen = 0; !cursors_.empty(); ++seen) {
        if (seen == ORDERED_REQUESTS_MAX) {
            return false;
        }
        std::pop_heap(cursors_.begin(), cursors_.end(), is_later);
        Cursor& cursor = cursors_.back();
        serve(*cursor.queue->model, cursor.queue->shape, cursor.first());
        if (++cursor.place < cursor.queue->size() && goes_before(*cursor.queue, cursor.first(), pending)) {
            std::push_heap(cursors_.begin(), cursors_.end(), is_later);
        } else {
            cursors_.pop_back();
        }
    }
    return serve(*pending.model, pending.request.shape,
                 {pending.deadline_ns, pending.key_ns, nullptr, pending.size, false});
}

// Adds a request to a batch that has room for it, or gives it to the device that is free first. False: it
// would be late.
bool InOrder::serve(const Model& model, std::uint32_t shape, const Waiting& waiting) {
    Device* best = nullptr;
    const KindSpec* spec = nullptr;
    Ns begin = NEVER_NS;
    for (Device& device : devices_) {
        const Residency* residency = device.arena->find(&model);
        if (residency == nullptr || residency->doomed || residency->is_stuck) {
            continue;
        }
        const KindSpec& here = *residency->spec;
        std::uint32_t rows = device.rows + waiting.size;
        if (device.model == &model && device.shape == shape && !waiting.alone && rows <= here.batch_max) {
            Ns longer = here.alone_ns(shape, rows) - device.took_ns;
            bool saves = longer < here.alone_ns(shape, waiting.size) * BATCH_SAVES / 100;
            if (saves && device.free_ns + longer + device.arena->worker->back_ns <= device.due_ns) {
                device.free_ns += longer;
                device.took_ns += longer;
                device.rows = rows;
                return true;
            }
        }
        bool is_resident = residency->state == ResidencyState::RESIDENT;
        if (Ns free = is_resident ? device.free_ns : std::max(device.free_ns, residency->ready_ns); free < begin) {
            begin = free;
            best = &device;
            spec = &here;
        }
    }
    if (best == nullptr) {
        return false;
    }
    Ns takes = spec->alone_ns(shape, waiting.size);
    if (begin + takes + best->arena->worker->back_ns > waiting.deadline_ns) {
        return false;
    }
    std::uint32_t rows = waiting.alone ? spec->batch_max : waiting.size;  // nothing joins it
    *best = {best->arena, begin + takes, &model, shape, rows, takes, waiting.deadline_ns};
    return true;
}

}  // namespace clockwork
