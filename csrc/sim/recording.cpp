// Writes the events and decisions of a simulated world's scheduler, in the format of a controller's flight
// recorder.
#include <string_view>
#include <utility>
#include <vector>

#include "recording/records.h"
#include "sim/world.h"

namespace clockwork::sim {

namespace {

constexpr std::string_view NO_INPUTS = "\x90";  // shape of a request without inputs: an empty array

}  // namespace

void World::record(std::shared_ptr<Ring> ring, Sentences sentences, std::vector<RecordedModel> names) {
    recorder_ = std::make_unique<Recorder>(std::move(ring));
    sentences_ = std::move(sentences);
    names_ = std::move(names);
}

template <typename Event>
void World::record_event(const Event& event) {
    event_.clear();
    event.write(event_, recorder_->time_ns(now_));
    recorder_->noted(event_.view());
}

// ----- events -----------------------------------------------------------------------------------

void World::record_arrived(const clockwork::Request& request) {
    if (recorder_)
        recorder_->arrived(now_, request, NO_INPUTS);
}

void World::record_cancelled(RequestId id) {
    if (recorder_)
        recorder_->cancelled(now_, id);
}

void World::record_done(const ActionResult& result) {
    if (recorder_)
        recorder_->action_done(now_, result, result.status == Status::OK ? std::string_view{} : *result.text);
}

void World::record_joined(const WorkerState& worker) {
    if (!recorder_)
        return;
    std::vector<recorded::DeviceShape> devices;
    for (const DeviceSpec& spec : specs_)
        devices.push_back(
            {"emulated", spec.page_bytes, spec.page_count, spec.run_ahead, spec.arena, spec.slowdown_thousandths});
    record_event(recorded::WorkerJoined{.now_ns = now_,
                                        .worker = worker.id,
                                        .devices = devices,
                                        .host_bytes = cluster_.host_bytes,
                                        .store_bytes = cluster_.store_bytes});
}

void World::record_link(WorkerId worker, Ns there_ns, Ns back_ns) {
    if (recorder_)
        record_event(
            recorded::LinkMeasured{.now_ns = now_, .worker = worker, .there_ns = there_ns, .back_ns = back_ns});
}

void World::record_ready(WorkerId worker, const ModelSpec& spec, bool is_stored) {
    if (!recorder_)
        return;
    const RecordedModel& named = names_.at(static_cast<std::size_t>(spec.model_id));
    std::vector<recorded::Point> profile;
    for (const ProfilePoint& point : spec.profile)
        profile.push_back({NO_INPUTS, point.batch, point.exec_ns});
    record_event(recorded::ModelReady{.now_ns = now_,
                                      .worker = worker,
                                      .model_id = spec.model_id,
                                      .name = named.name,
                                      .version = named.version,
                                      .program = named.program,
                                      .batches = spec.batches,
                                      .batch_max = spec.batch_max,
                                      .slo_ns = spec.slo_ns,
                                      .runs = spec.runs,
                                      .load_ns = spec.load_ns,
                                      .profile = profile,
                                      .is_stored = is_stored});
}

void World::record_left(WorkerId worker) {
    if (recorder_)
        record_event(recorded::WorkerLeft{.now_ns = now_, .worker = worker});
}

// ----- steps ------------------------------------------------------------------------------------

// Records the commands of the step that ends now.
void World::record_step() {
    if (!recorder_)
        return;
    recorder_->settle(now_);
    const Commands& out = scheduler_->out;
    for (const Command& command : out.list) {
        std::string_view text;
        if (command.kind == CommandKind::ANSWER_FAILED) {
            const RecordedModel& named = names_.at(static_cast<std::size_t>(command.model_id));
            const std::string* said = command.said >= 0 ? &out.texts[static_cast<std::size_t>(command.said)] : nullptr;
            text = sentences_.text(command, named.label(), said);
        }
        recorder_->ordered(command, out, text, NO_INPUTS);
    }
    recorder_->end();
}

}  // namespace clockwork::sim
