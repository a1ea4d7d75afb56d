#include "controller/request_intake.h"

#include <algorithm>
#include <utility>

#include "wire/fields.h"

namespace clockwork {

IntakeResult RequestIntake::take(const Arrival& arrival, Ns now) {
    Haul& haul = port_.haul();
    ClientLink* client = clients_.find(haul.identity(arrival).view());
    if (client == nullptr) {
        port_.count_taken(arrival);
        return IntakeResult::PYTHON;
    }
    client->connection->taken += arrival.bytes;
    port_.connections().heard(*client->connection, now);
    if (arrival.count < 2)
        return IntakeResult::PYTHON;
    switch (wire::tag_of(haul.header(arrival).view())) {
        case TAG_INFER_REQUEST: return infer(*client, arrival, now);
        case TAG_CANCEL: return cancel(*client, arrival, now);
        default: return IntakeResult::PYTHON;
    }
}

IntakeResult RequestIntake::infer(ClientLink& client, const Arrival& arrival, Ns now) {
    if (!request_.read(port_.haul().header(arrival).view(), wrong_.header)) {
        wrong_.begin(request_.request_id);
        return IntakeResult::WRONG;
    }
    Target target = routes_.target_of(request_.model);
    if (target.model == nullptr)
        return refuse({.code = Flaw::UNSERVED}, target);
    if (requests_.find(client, request_.request_id) != nullptr)
        return refuse({.code = Flaw::IN_USE}, target);
    ServedModel& model = *target.model;
    read_frames(port_.haul(), arrival, frames_);
    const std::size_t came = frames_.size();
    add_defaults(*model.interface, request_, frames_);
    Flaw flaw;
    if (!check_request(*model.interface, request_, frames_, shared_machine, accepted_, flaw)) {
        counts_.invalid(model);
        return refuse(flaw, target);
    }
    ServedRoute* copier = target.copied_by;
    bool can_copy = copier != nullptr && shadows_.can_copy(*copier, request_, accepted_, frames_, came, shared_machine);
    HeldRequest& held = hold(client, model, arrival, came);
    Ns slo_ns = request_.slo_ns != 0 ? request_.slo_ns : model.slo_ns;
    ArrivalTerms terms;
    terms.rows = accepted_.rows;
    terms.shape = shapes_.of(accepted_.shape);
    terms.bytes = accepted_.bytes;
    terms.copied_bytes = accepted_.copied_bytes;
    // A deadline must not precede its arrival, and an SLO may be as long as NEVER_NS.
    terms.deadline_ns = slo_ns != 0 ? std::min(now + slo_ns, NEVER_NS) : NEVER_NS;
    terms.priority = request_.priority;
    requests_.arrive(held, terms, now);
    if (can_copy)
        shadows_.copy(held, *copier, accepted_, request_.priority, slo_ns, now);
    else if (copier != nullptr)
        copier->tally->change([](ShadowResults& all) { ++all.dropped; });
    return IntakeResult::DONE;
}

// Holds the request that was accepted last, with its tensors. came: its received frames, before those of
// defaults.
HeldRequest& RequestIntake::hold(ClientLink& client, ServedModel& model, const Arrival& arrival, std::size_t came) {
    HeldRequest& held = requests_.hold(&client, request_.request_id, model);
    held.has_room = accepted_.has_room;
    for (const TensorRef* ref : accepted_.tensors) {
        auto start = request_.dims.begin() + ref->shape.first;
        held.tensors.push_back({ref->dtype, static_cast<std::uint32_t>(held.dims.size()), ref->shape.count});
        held.dims.insert(held.dims.end(), start, start + ref->shape.count);
        const std::size_t frame = static_cast<std::size_t>(ref->frame);
        if (frame < came)
            held.frames.push_back(std::move(port_.haul().frame(arrival.first + 2 + frame)));
        else
            held.frames.emplace_back().copy_of(frames_[frame]);
    }
    return held;
}

// Cancels an inference. Python handles other cancellations.
IntakeResult RequestIntake::cancel(ClientLink& client, const Arrival& arrival, Ns now) {
    if (!cancel_.read(port_.haul().header(arrival).view(), wrong_.header)) {
        wrong_.begin(cancel_.request_id);
        return IntakeResult::WRONG;
    }
    HeldRequest* held = requests_.find(client, cancel_.request_id);
    if (held == nullptr)
        return IntakeResult::PYTHON;
    requests_.cancel(*held, now);
    return IntakeResult::DONE;
}

// Records the flaw of the request that was read last.
IntakeResult RequestIntake::refuse(const Flaw& flaw, const Target& target) {
    wrong_.begin(request_.request_id);
    wrong_.flaw = flaw;
    wrong_.tensors = &request_.tensors;
    wrong_.dims = &request_.dims;
    if (target.model != nullptr) {
        wrong_.model_id = target.model->model_id;
        wrong_.interface = target.model->interface;
    }
    return IntakeResult::WRONG;
}

}  // namespace clockwork
