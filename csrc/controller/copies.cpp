// The exchange's part in shadow traffic: copies of requests, from their arrival to the pair of answers.
#include <algorithm>
#include <functional>
#include <utility>

#include "controller/exchange.h"

namespace clockwork {

// The queue of requests stays at least half free of what was copied.
bool Exchange::has_room(std::uint64_t bytes) const {
    return shadow_count_ < SHADOWS_MAX && shadow_bytes_ + bytes <= SHADOW_BYTES_MAX &&
           held_.size() < bounds_.queued_requests / 2;
}

// Of the request that was accepted last, and has arrived; the copy's model takes it as copy_accepted_ says.
void Exchange::copy(HeldRequest& first, Route& copier, Ns slo_ns) {
    HeldRequest& copy = make_copy(first, copier);
    for (const TensorRef* ref : copy_accepted_.tensors) {
        auto place = std::find(accepted_.tensors.begin(), accepted_.tensors.end(), ref) - accepted_.tensors.begin();
        const HeldTensor& tensor = first.tensors[static_cast<std::size_t>(place)];
        auto start = first.dims.begin() + tensor.first;
        copy.tensors.push_back({tensor.dtype, static_cast<std::uint32_t>(copy.dims.size()), tensor.rank});
        copy.dims.insert(copy.dims.end(), start, start + tensor.rank);
        copy.frames.emplace_back().share(first.frames[static_cast<std::size_t>(place)]);
    }
    send_copy(copy, copy_accepted_.rows, shape_number(copy_accepted_.shape), accepted_.bytes, slo_ns,
              request_.priority);
}

HeldRequest& Exchange::make_copy(HeldRequest& first, Route& copier) {
    HeldRequest& copy = hold(nullptr, 0, *copier.shadow);
    ShadowPair* pair = pairs_.make();
    pair->first = &first;
    pair->copy = &copy;
    pair->tally = copier.tally;
    first.pair = copy.pair = pair;
    return copy;
}

// It has no deadline for the scheduler, which serves such requests in time that no other has use for; it is given up
// when its answer would have been due. The scheduler gets few at once: it makes batches of what waits, and who
// comes meanwhile waits for the end of a batch.
void Exchange::send_copy(HeldRequest& copy, std::uint32_t rows, std::uint32_t shape, std::uint64_t bytes, Ns slo_ns,
                         std::int64_t priority) {
    ++shadow_count_;
    shadow_bytes_ += bytes;
    copy.copied_bytes = bytes;
    copy.pair->tally->change([](ShadowResults& all) { ++all.copied; });
    Ns wait = slo_ns != 0 ? std::min(slo_ns, SHADOW_WAIT_MAX_NS) : SHADOW_WAIT_MAX_NS;
    shadows_due_.push_back({now_ + wait, copy.id});
    std::push_heap(shadows_due_.begin(), shadows_due_.end(), std::greater<>());
    copies_waiting_.push_back({copy.id, rows, shape, bytes, priority});
    feed_shadows();
}

void Exchange::feed_shadows() {
    while (copies_sent_ < shadow_width && !copies_waiting_.empty()) {
        WaitingCopy next = copies_waiting_.front();
        copies_waiting_.pop_front();
        std::uint32_t slot = held_.find(next.id);
        if (slot == IdTable::NONE)
            continue;  // it was given up
        HeldRequest& copy = *held_pool_.at(slot);
        copy.has_arrived = true;
        ++copies_sent_;
        arrive(copy, next.rows, next.shape, next.bytes, 0, NEVER_NS, next.priority);
    }
}

// Ends a copy before its answer.
void Exchange::give_up(HeldRequest& copy) {
    if (copy.has_arrived) {
        cancel(copy);
        return;
    }
    if (copy.pair != nullptr)
        unpair(copy);
    release(copy);
}

// Keeps one's answer until the other's is there, or has both compared. What it may not keep is dropped.
void Exchange::keep_answer(HeldRequest& one, Outputs& result, std::size_t part) {
    ShadowPair* pair = one.pair;
    AnswerKept answer;
    answer.interface = one.model->interface;
    std::size_t tensors = result.header.parts.at(part);
    const TensorRef* refs = result.header.tensors.data() + part * tensors;
    for (std::size_t index = 0; index < std::min(tensors, answer.interface->outputs.size()); ++index) {
        OutputKept& kept = answer.tensors.emplace_back();
        auto start = result.header.dims.begin() + refs[index].first;
        kept.dtype = refs[index].dtype;
        kept.dims.assign(start, start + refs[index].rank);
        kept.frame.share(
            ports_[WORKERS].haul().frame(result.first_frame + static_cast<std::size_t>(refs[index].frame)));
    }
    bool is_first = one.client != nullptr;
    one.pair = nullptr;
    (is_first ? pair->first : pair->copy) = nullptr;
    if (pair->answer.interface != nullptr) {
        AnswerKept& other = pair->answer;
        if (is_first) {
            comparer_.add(pair->tally, std::move(answer), std::move(other));
        } else {
            comparer_.add(pair->tally, std::move(other), std::move(answer));
        }
        give_back(pair);
        return;
    }
    std::size_t bytes = answer.bytes();
    if (shadow_bytes_ + bytes > SHADOW_BYTES_MAX) {
        pair->tally->change([](ShadowResults& all) { ++all.dropped; });
        if (pair->copy != nullptr)
            shadows_moot_.push_back(pair->copy->id);
        give_back(pair);
        return;
    }
    pair->answer = std::move(answer);
    pair->bytes = bytes;
    shadow_bytes_ += bytes;
}

// One of a pair has ended without an answer.
void Exchange::unpair(HeldRequest& one) {
    ShadowPair* pair = one.pair;
    bool is_first = one.client != nullptr;
    pair->tally->change([is_first](ShadowResults& all) { ++(is_first ? all.moot : all.unanswered); });
    if (is_first && pair->copy != nullptr)
        shadows_moot_.push_back(pair->copy->id);
    give_back(pair);
}

void Exchange::give_back(ShadowPair* pair) {
    if (pair->first != nullptr)
        pair->first->pair = nullptr;
    if (pair->copy != nullptr)
        pair->copy->pair = nullptr;
    shadow_bytes_ -= pair->bytes;
    pairs_.give_back(pair);
}

// When the next copy is given up; NEVER_NS where there is none.
Ns Exchange::next_shadow_ns() {
    while (!shadows_due_.empty() && held_.find(shadows_due_.front().id) == IdTable::NONE) {
        std::pop_heap(shadows_due_.begin(), shadows_due_.end(), std::greater<>());
        shadows_due_.pop_back();
    }
    return shadows_due_.empty() ? NEVER_NS : shadows_due_.front().at_ns;
}

void Exchange::cancel_shadows() {
    while (!shadows_due_.empty() && next_shadow_ns() <= now_) {
        shadows_moot_.push_back(shadows_due_.front().id);
        std::pop_heap(shadows_due_.begin(), shadows_due_.end(), std::greater<>());
        shadows_due_.pop_back();
    }
    for (RequestId id : shadows_moot_) {
        if (std::uint32_t slot = held_.find(id); slot != IdTable::NONE)
            give_up(*held_pool_.at(slot));
    }
    shadows_moot_.clear();
    feed_shadows();
}

}  // namespace clockwork
