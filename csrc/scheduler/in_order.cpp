#include "scheduler/in_order.h"

#include <algorithm>

namespace clockwork {

namespace {

bool goes_before(const Queue& queue, const Waiting& waiting, const Pending& pending) {
    return queue.level != pending.request.priority ? queue.level < pending.request.priority
                                                   : waiting.deadline_ns <= pending.deadline_ns;
}

}  // namespace

Ns longer_ns(const KindSpec& spec, std::uint32_t shape, std::uint32_t rows, Ns took_ns, std::uint32_t size) {
    if (rows + size > spec.batch_max) {
        return NEVER_NS;
    }
    Ns longer = spec.alone_ns(shape, rows + size) - took_ns;
    return longer < spec.alone_ns(shape, size) * BATCH_SAVES / 100 ? longer : NEVER_NS;
}

// Collects the model's devices, and the queues that they serve before the request. False: too many.
bool InOrder::collect(const Pending& pending) {
    devices_.clear();
    cursors_.clear();
    std::size_t models = 0;
    for (const Residency* residency : pending.model->residencies) {
        const Arena& arena = *residency->arena;
        if (!is_promised(*residency)) {
            continue;
        }
        for (const Executor* executor = arena.executors.front(); executor != nullptr; executor = executor->after) {
            if (devices_.size() == ORDERED_DEVICES_MAX) {
                return false;
            }
            devices_.push_back({&arena, std::max(executor->free_ns(state_.now), state_.now + arena.worker->there_ns)});
        }
        queues_.for_each_model(arena, [&](std::uint32_t slot) {
            for (const auto& queue : queues_.of(state_.at<Model>(slot))) {
                if (queue->ready && !queue->empty() && goes_before(*queue, queue->front(), pending) &&
                    std::none_of(cursors_.begin(), cursors_.end(),
                                 [&](const Cursor& cursor) { return cursor.queue == queue.get(); })) {
                    cursors_.push_back({queue.get()});
                }
            }
            return ++models <= ORDERED_REQUESTS_MAX;
        });
        if (models > ORDERED_REQUESTS_MAX) {
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
    Ns begin = NEVER_NS, end = NEVER_NS;
    for (Device& device : devices_) {
        const Residency* residency = device.arena->find(&model);
        if (residency == nullptr || !is_promised(*residency)) {
            continue;
        }
        const KindSpec& here = *residency->spec;
        if (device.model == &model && device.shape == shape && !waiting.alone) {
            Ns longer = longer_ns(here, shape, device.rows, device.took_ns, waiting.size);
            if (longer < NEVER_NS && device.free_ns + longer + device.arena->worker->back_ns <= device.due_ns) {
                device.free_ns += longer;
                device.took_ns += longer;
                device.rows += waiting.size;
                return true;
            }
        }
        bool is_resident = residency->state == ResidencyState::RESIDENT;
        Ns free = is_resident ? device.free_ns : std::max(device.free_ns, residency->ready_ns);
        if (Ns ends = free + here.alone_ns(shape, waiting.size); ends < end) {
            begin = free;
            end = ends;
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
