#include "worker/lending.h"

#include <algorithm>
#include <utility>

#include "device/join.h"
#include "wire/shared.h"

namespace clockwork::worker {

Lending::Lending(const LendingBounds& bounds, std::unique_ptr<CopyQueue> copies)
    : bounds_(bounds), snapshots_(std::make_shared<Snapshots>(bounds.snapshots)), copies_(std::move(copies)) {}

Ns Lending::due_ns() const {
    Ns due = NEVER_NS;
    for (const auto& [action_id, arriving] : arriving_)
        due = std::min(due, arriving->due_ns);
    for (const auto& [action_id, leaving] : leaving_)
        due = std::min(due, leaving->due_ns);
    return due;
}

std::string Lending::begin(wire::ActionMessage& action, std::vector<Frame>& frames, Ns due_ns) {
    auto arriving = std::make_unique<Arriving>();
    auto inputs = std::make_unique<HeldInputs>();
    std::vector<std::shared_ptr<InputCopy>> copies;
    std::string flaw;
    bool has_rooms = false;
    std::size_t tensor = 0;
    for (const wire::ListRange& part : action.parts) {
        std::shared_ptr<InputCopy> copy;
        OutputRoom& room = inputs->rooms.emplace_back();
        for (std::uint32_t index = 0; index < part.count; ++index, ++tensor) {
            const wire::TensorRef& ref = action.tensors[tensor];
            Frame* const found = frame_of_tensor(frames, ref.frame, flaw);
            if (found == nullptr)
                return flaw;
            const std::string_view frame = found->view();
            arriving->bytes.push_back(frame);
            if (!wire::is_shared(ref))
                continue;
            MemoryReference reference;
            if (!reference.read(frame))
                return "a reference to memory has " + std::to_string(REFERENCE_BYTES) + " bytes, not " +
                       std::to_string(frame.size());
            if ((ref.dtype & ~SHARED) == device::STRING)
                return "strings in a client's memory: they are sent";
            const std::int64_t process = reference.memory.process;
            if (copy != nullptr && copy->owner != process)
                return "a request refers to memory of the processes " + std::to_string(copy->owner) + " and " +
                       std::to_string(process);
            const std::int64_t bytes =
                shared_bytes(ref.dtype, action.dims.data() + ref.shape.first, ref.shape.count, flaw);
            if (bytes < 0)
                return flaw;
            if (copy == nullptr) {
                copy = std::make_shared<InputCopy>(action.action_id, process, bounds_.copies.piece_bytes, snapshots_);
                copies.push_back(copy);
            }
            copy->inputs.push_back({tensor, bytes, reference, {}});
            if (room.bytes == 0 && reference.room_bytes > 0)
                room = {reference.room, reference.room_bytes};
        }
        has_rooms = has_rooms || room.bytes > 0;
    }
    if (!has_rooms)
        inputs->rooms.clear();
    for (const std::shared_ptr<InputCopy>& copy : copies) {
        flaw = copies_->submit(copy);
        if (!flaw.empty()) {
            drop(*arriving);
            return flaw;
        }
        arriving->copies.push_back(copy);
    }
    arriving->due_ns = due_ns;
    std::swap(arriving->action, action);
    inputs->frames = std::exchange(frames, {});
    // The views are taken again, because small frames hold their bytes themselves
    for (std::size_t index = 0; index < arriving->bytes.size(); ++index)
        arriving->bytes[index] =
            inputs->frames[static_cast<std::size_t>(arriving->action.tensors[index].frame) + 1].view();
    arriving->inputs = std::move(inputs);
    arriving_[arriving->action.action_id] = std::move(arriving);
    return {};
}

bool Lending::leave(const HeldInputs& inputs, std::unique_ptr<Leaving>& leaving, Ns now) {
    Outgoing& outgoing = leaving->outgoing;
    leaving->due_ns = now + bounds_.room_wait_ns;
    const std::size_t count = std::min(inputs.rooms.size(), outgoing.result.parts.size());
    for (std::size_t part = 0; part < count; ++part) {
        const OutputRoom& room = inputs.rooms[part];
        const wire::ListRange& tensors = outgoing.result.parts[part];
        auto copy = std::make_shared<OutputCopy>(outgoing.result.action_id, room.memory, bounds_.copies.piece_bytes,
                                                 outgoing.block);
        std::int64_t written = 0;
        RoomPlaces places(room.bytes);
        for (std::uint32_t tensor = tensors.first; tensor < tensors.first + tensors.count; ++tensor) {
            const std::string_view bytes = outgoing.outputs[tensor];
            const std::int64_t size = static_cast<std::int64_t>(bytes.size());
            const std::int64_t place = places.take(outgoing.result.tensors[tensor].dtype, size);
            if (place == 0)
                continue;
            copy->outputs.push_back({tensor, bytes, place});
            written += size;
        }
        // Outputs are sent where too much is being copied
        if (copy->outputs.empty() || !copies_->submit(copy).empty())
            continue;
        leaving->copies.push_back(std::move(copy));
        leaving->due_ns += bounds_.room_wait_byte_ns * written;
    }
    if (leaving->copies.empty())
        return false;
    const std::int64_t action_id = outgoing.result.action_id;
    leaving_[action_id] = std::move(leaving);
    return true;
}

void Lending::take_copies(LendingNews& news) {
    for (const std::shared_ptr<Copy>& ended : copies_->take_ended()) {
        if (ended->is_dropped)
            continue;
        const std::int64_t action_id = static_cast<const LentCopy&>(*ended).action_id;
        const auto remove_from = [&](auto& held) { std::erase(held.copies, ended); };
        if (const OutputCopy* copy = dynamic_cast<const OutputCopy*>(ended.get())) {
            const auto found = leaving_.find(action_id);
            Leaving& leaving = *found->second;
            remove_from(leaving);
            for (const OutputCopy::Output& output : copy->outputs) {
                if (copy->flaw.empty())
                    leaving.outgoing.places[output.tensor] = output.place;
            }
            if (leaving.copies.empty()) {
                news.left.push_back(std::move(found->second));
                leaving_.erase(found);
            }
            continue;
        }
        InputCopy& copy = static_cast<InputCopy&>(*ended);
        const auto found = arriving_.find(action_id);
        Arriving& arriving = *found->second;
        remove_from(arriving);
        if (!copy.flaw.empty()) {
            news.refused.push_back({action_id, copy.is_defect ? Status::DEVICE_ERROR : Status::INVALID_INPUT,
                                    copy.is_defect ? "the worker failed to copy an input" : copy.flaw});
            drop(arriving);
            arriving_.erase(found);
            continue;
        }
        for (InputCopy::Input& input : copy.inputs) {
            arriving.bytes[input.tensor] = input.bytes > 0 ? std::string_view(input.target.data(), input.bytes) : "";
            arriving.inputs->snapshots.push_back(std::move(input.target));
        }
        if (arriving.copies.empty()) {
            news.arrived.push_back(std::move(found->second));
            arriving_.erase(found);
        }
    }
}

void Lending::run_due(Ns now, LendingNews& news) {
    for (auto entry = arriving_.begin(); entry != arriving_.end();) {
        const auto next = std::next(entry);
        if (entry->second->due_ns <= now) {
            news.refused.push_back({entry->first, Status::TOO_LATE,
                                    "its window closed while its inputs were copied from a client's memory"});
            drop(*entry->second);
            arriving_.erase(entry);
        }
        entry = next;
    }
    for (auto entry = leaving_.begin(); entry != leaving_.end();) {
        const auto next = std::next(entry);
        if (entry->second->due_ns <= now) {
            drop(*entry->second);
            news.left.push_back(std::move(entry->second));
            leaving_.erase(entry);
        }
        entry = next;
    }
}

bool Lending::revoke(std::int64_t action_id) {
    const auto found = arriving_.find(action_id);
    if (found == arriving_.end())
        return false;
    drop(*found->second);
    arriving_.erase(found);
    return true;
}

void Lending::cancel(LendingNews& news) {
    for (const auto& [action_id, arriving] : arriving_)
        news.refused.push_back({action_id, Status::ACTION_CANCELLED, {}});
    for (auto& [action_id, leaving] : leaving_) {
        drop(*leaving);
        news.left.push_back(std::move(leaving));
    }
    leaving_.clear();
    reset();
}

void Lending::reset() {
    for (auto& [action_id, arriving] : arriving_)
        drop(*arriving);
    for (auto& [action_id, leaving] : leaving_)
        drop(*leaving);
    arriving_.clear();
    leaving_.clear();
}

// Stops waiting for an action's copies.
template <typename Held>
void Lending::drop(Held& held) {
    for (const std::shared_ptr<Copy>& copy : held.copies)
        copies_->drop(*copy);
    held.copies.clear();
}

}  // namespace clockwork::worker
