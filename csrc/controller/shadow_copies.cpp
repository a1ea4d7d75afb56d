#include "controller/shadow_copies.h"

#include <algorithm>
#include <functional>

namespace clockwork {

// Copies take at most half of the queue of requests.
bool ShadowCopies::has_room(std::uint64_t bytes) const {
    return count_ < SHADOWS_MAX && bytes_ + bytes <= SHADOW_BYTES_MAX && requests_.size() < queued_max_ / 2;
}

bool ShadowCopies::can_copy(const ServedRoute& route, const wire::InferRequest& request,
                            const AcceptedRequest& accepted, const FrameBytes& frames, std::size_t came,
                            std::int64_t machine) {
    if (accepted.is_shared || !has_room(accepted.bytes))
        return false;
    Flaw flaw;
    const ModelInterface& shadow = *route.shadow->interface;
    came_ = came;
    if (frames.size() == came && !shadow.has_optional())
        return check_request(shadow, request, frames, machine, accepted_, flaw);
    request_ = request;
    request_.tensors.resize(came);
    frames_.assign(frames.begin(), frames.begin() + static_cast<std::ptrdiff_t>(came));
    add_defaults(shadow, request_, frames_);
    return check_request(shadow, request_, frames_, machine, accepted_, flaw);
}

void ShadowCopies::copy(HeldRequest& first, const ServedRoute& route, const AcceptedRequest& accepted,
                        std::int64_t priority, Ns slo_ns, Ns now) {
    HeldRequest& copy = make(first, route, accepted.bytes);
    for (const TensorRef* ref : accepted_.tensors) {
        const std::size_t frame = static_cast<std::size_t>(ref->frame);
        if (frame >= came_) {
            auto start = request_.dims.begin() + ref->shape.first;
            copy.tensors.push_back({ref->dtype, static_cast<std::uint32_t>(copy.dims.size()), ref->shape.count});
            copy.dims.insert(copy.dims.end(), start, start + ref->shape.count);
            copy.frames.emplace_back().copy_of(frames_[frame]);
            continue;
        }
        auto has_frame = [&](const TensorRef* taken) { return taken->frame == ref->frame; };
        auto place =
            std::find_if(accepted.tensors.begin(), accepted.tensors.end(), has_frame) - accepted.tensors.begin();
        const HeldTensor& tensor = first.tensors[static_cast<std::size_t>(place)];
        auto start = first.dims.begin() + tensor.first;
        copy.tensors.push_back({tensor.dtype, static_cast<std::uint32_t>(copy.dims.size()), tensor.rank});
        copy.dims.insert(copy.dims.end(), start, start + tensor.rank);
        copy.frames.emplace_back().share(first.frames[static_cast<std::size_t>(place)]);
    }
    ArrivalTerms terms;
    terms.rows = accepted_.rows;
    terms.shape = shapes_.of(accepted_.shape);
    terms.bytes = accepted.bytes;
    terms.priority = priority;
    send(copy, terms, slo_ns, now);
}

HeldRequest& ShadowCopies::make(HeldRequest& first, const ServedRoute& route, std::uint64_t bytes) {
    HeldRequest& copy = requests_.hold(nullptr, 0, *route.shadow);
    ShadowPair* pair = pairs_.make();
    pair->first = &first;
    pair->copy = &copy;
    pair->tally = route.tally;
    first.pair = copy.pair = pair;
    ++count_;
    bytes_ += bytes;
    copy.copied_bytes = bytes;
    return copy;
}

void ShadowCopies::send(HeldRequest& copy, const ArrivalTerms& terms, Ns slo_ns, Ns now) {
    copy.pair->tally->change([](ShadowResults& all) { ++all.copied; });
    Ns wait = slo_ns != 0 ? std::min(slo_ns, SHADOW_WAIT_MAX_NS) : SHADOW_WAIT_MAX_NS;
    due_.push_back({now + wait, copy.id});
    std::push_heap(due_.begin(), due_.end(), std::greater<>());
    waiting_.push_back({copy.id, terms});
    feed(now);
}

void ShadowCopies::feed(Ns now) {
    while (sent_ < width && !waiting_.empty()) {
        Waiting next = waiting_.front();
        waiting_.pop_front();
        HeldRequest* copy = requests_.find(next.id);
        if (copy == nullptr)
            continue;  // the copy was given up before
        copy->has_arrived = true;
        ++sent_;
        requests_.arrive(*copy, next.terms, now);
    }
}

// Gives up a copy before its answer.
void ShadowCopies::give_up(HeldRequest& copy, Ns now) {
    if (copy.has_arrived) {
        requests_.cancel(copy, now);
        return;
    }
    if (copy.pair != nullptr)
        unpair(copy);
    release(copy);
}

void ShadowCopies::keep_answer(HeldRequest& held, TurnResults& results, const KeptResult& result, std::size_t part) {
    ShadowPair* pair = held.pair;
    AnswerKept answer;
    answer.interface = held.model->interface;
    const wire::ListRange& outputs = result.header.parts.at(part);
    const TensorRef* refs = result.header.tensors.data() + outputs.first;
    for (std::size_t index = 0; index < std::min<std::size_t>(outputs.count, answer.interface->outputs.size());
         ++index) {
        OutputKept& kept = answer.tensors.emplace_back();
        auto start = result.header.dims.begin() + refs[index].shape.first;
        kept.dtype = refs[index].dtype;
        kept.dims.assign(start, start + refs[index].shape.count);
        kept.frame.share(results.frame(result, refs[index]));
    }
    bool is_first = held.client != nullptr;
    held.pair = nullptr;
    (is_first ? pair->first : pair->copy) = nullptr;
    if (pair->answer.interface != nullptr) {
        AnswerKept& other = pair->answer;
        if (is_first)
            comparer_.add(pair->tally, std::move(answer), std::move(other));
        else
            comparer_.add(pair->tally, std::move(other), std::move(answer));
        give_back(pair);
        return;
    }
    std::size_t bytes = answer.bytes();
    if (bytes_ + bytes > SHADOW_BYTES_MAX) {
        pair->tally->change([](ShadowResults& all) { ++all.dropped; });
        if (pair->copy != nullptr)
            moot_.push_back(pair->copy->id);
        give_back(pair);
        return;
    }
    pair->answer = std::move(answer);
    pair->bytes = bytes;
    bytes_ += bytes;
}

void ShadowCopies::unpair(HeldRequest& held) {
    ShadowPair* pair = held.pair;
    bool is_first = held.client != nullptr;
    pair->tally->change([is_first](ShadowResults& all) { ++(is_first ? all.moot : all.unanswered); });
    if (is_first && pair->copy != nullptr)
        moot_.push_back(pair->copy->id);
    give_back(pair);
}

void ShadowCopies::give_back(ShadowPair* pair) {
    if (pair->first != nullptr)
        pair->first->pair = nullptr;
    if (pair->copy != nullptr)
        pair->copy->pair = nullptr;
    bytes_ -= pair->bytes;
    pairs_.give_back(pair);
}

void ShadowCopies::release(HeldRequest& copy) {
    --count_;
    sent_ -= copy.has_arrived;
    bytes_ -= copy.copied_bytes;
    requests_.release(copy);
}

Ns ShadowCopies::next_ns() {
    while (!due_.empty() && requests_.find(due_.front().id) == nullptr) {
        std::pop_heap(due_.begin(), due_.end(), std::greater<>());
        due_.pop_back();
    }
    return due_.empty() ? NEVER_NS : due_.front().at_ns;
}

void ShadowCopies::cancel_due(Ns now) {
    while (!due_.empty() && next_ns() <= now) {
        moot_.push_back(due_.front().id);
        std::pop_heap(due_.begin(), due_.end(), std::greater<>());
        due_.pop_back();
    }
    for (RequestId id : moot_) {
        if (HeldRequest* copy = requests_.find(id); copy != nullptr)
            give_up(*copy, now);
    }
    moot_.clear();
    feed(now);
}

void ShadowCopies::forget_shapes() {
    for (const Waiting& copy : waiting_)
        moot_.push_back(copy.id);
    waiting_.clear();
}

}  // namespace clockwork
