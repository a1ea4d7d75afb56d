#include "scheduler/scripted.h"

#include <algorithm>

namespace clockwork {

namespace {

void succeed(int returned) {
    if (returned == 0) {
        throw HookFailed();
    }
}

}  // namespace

Scripted::Scripted(const RuleParts& parts, const SchedulerOptions& options)
    : Rules({.memory = options.hooks->memory,
             .ahead_ns = options.hooks->ahead_ns,
             .presses_late = options.hooks->presses_late}),
      parts_(parts),
      hooks_(*options.hooks) {}

// ----- hooks --------------------------------------------------------------------------------------

Choice Scripted::choose(Executor& executor, Ns /*free_ns*/) {  // the hook asks the executor
    HookChoice found;
    succeed(hooks_.choose(hooks_.policy, this, &executor, &found));
    if (found.queue == nullptr) {
        return {};
    }
    return {found.queue, executor.arena->find(found.queue->model), found.first, found.count};
}

Ns Scripted::rank_ns(const Queue& queue) {
    Ns rank = 0;
    succeed(hooks_.rank_ns(hooks_.policy, this, const_cast<Queue*>(&queue), &rank));
    return rank;
}

Ns Scripted::ready_ns(Queue& queue) {
    if (hooks_.ready_ns == nullptr) {
        return Rules::ready_ns(queue);
    }
    Ns ready = 0;
    succeed(hooks_.ready_ns(hooks_.policy, this, &queue, &ready));
    return ready;
}

Ns Scripted::hopeless_ns(const Queue& queue, const Waiting& waiting) {
    if (hooks_.hopeless_ns == nullptr) {
        return Rules::hopeless_ns(queue, waiting);
    }
    Ns hopeless = 0;
    succeed(hooks_.hopeless_ns(hooks_.policy, this, const_cast<Queue*>(&queue), &waiting, &hopeless));
    return std::min(hopeless, waiting.deadline_ns);
}

bool Scripted::admit(Pending& pending) {
    if (hooks_.admit == nullptr) {
        return Rules::admit(pending);
    }
    HookRefusal refusal;
    Waiting waiting{pending.deadline_ns, pending.key_ns, &pending, pending.size, pending.alone};
    succeed(hooks_.admit(hooks_.policy, this, &parts_.queues.of(pending), &waiting, &refusal));
    if (!refusal.is_refused) {
        return true;
    }
    Ns slo = pending.deadline_ns - pending.request.arrived_ns;
    if (refusal.feasible_slo_ns <= slo) {
        parts_.requests.refuse(pending, Reason::DEADLINE, AnswerText::CANNOT_BE_IN_TIME);
    } else {
        Ns feasible = refusal.feasible_slo_ns;
        parts_.requests.refuse(pending, Reason::DEADLINE, AnswerSentence(AnswerText::COULD_BE_ANSWERED, feasible, slo),
                               feasible);
    }
    return false;
}

// ----- what they see ------------------------------------------------------------------------------

Queue* Scripted::first_ready(Executor& executor) {
    Residency* residency = nullptr;
    return parts_.queues.first_ready(*executor.arena, residency);
}

void Scripted::ready(Executor& executor, std::vector<Queue*>& found) {
    parts_.queues.for_each_ready(
        *executor.arena, [](const Model&, std::uint64_t) { return true; },
        [&found](Queue& queue, const Residency&) { found.push_back(&queue); });
}

void Scripted::devices(const Queue& queue, std::vector<Executor*>& found) const {
    for (const Residency* residency : queue.model->residencies) {
        if (is_usable(residency) && residency->arena->usable()) {
            for (Executor* there = residency->arena->executors.front(); there != nullptr; there = there->after) {
                found.push_back(there);
            }
        }
    }
}

const KindSpec* Scripted::spec(const Executor& executor, const Queue& queue) const {
    const Residency* residency = executor.arena->find(queue.model);
    return is_usable(residency) ? residency->spec : nullptr;
}

std::uint32_t Scripted::batch_max(const KindSpec& spec, const Queue& queue) const {
    return spec.program->curve(queue.shape) != nullptr ? spec.batch_max : 1;
}

Ns Scripted::planned_ns(const KindSpec& spec, const Queue& queue, std::uint32_t rows) const {
    return spec.alone_ns(queue.shape, rows);
}

Ns Scripted::least_ns(const Queue& queue, std::uint32_t rows) const {
    return queue.model->least_alone_ns(queue.shape, rows);
}

Ns Scripted::last_start_ns(const Queue& queue, const Waiting& waiting) const {
    return parts_.last_start_ns(queue, waiting);
}

std::uint32_t Scripted::count_up_to(const Queue& queue, std::uint32_t first, std::uint32_t rows_max) const {
    return queue.count_up_to(first, rows_max);
}

bool Scripted::drop(Queue& queue, const Waiting& waiting) {
    const Waiting* found = queue.find(waiting);
    if (found == nullptr) {
        return false;
    }
    parts_.dropper.drop(queue, *found);
    return true;
}

}  // namespace clockwork
