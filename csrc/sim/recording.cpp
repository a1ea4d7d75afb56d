// Writes the events and decisions of a simulated world's scheduler, in the format of a controller's flight
// recorder.
#include <string_view>
#include <utility>

#include "sim/world.h"

namespace clockwork::sim {

namespace {

// Numbers of EVENTS in clockwork/scheduler/recording.py.
enum EventNumber : std::int64_t { WORKER_JOINED = 3, WORKER_LEFT = 4, LINK_MEASURED = 6, MODEL_READY = 7 };

constexpr std::string_view NO_INPUTS = "\x90";  // shape of a request without inputs: an empty array

}  // namespace

void World::record(std::shared_ptr<Ring> ring, Sentences sentences, std::vector<Named> names) {
    recorder_ = std::make_unique<Recorder>(std::move(ring));
    sentences_ = std::move(sentences);
    names_ = std::move(names);
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
    Writer& out = begin_event(WORKER_JOINED, 5);
    out.integer(worker.id);
    out.array(specs_.size());
    for (const DeviceSpec& spec : specs_) {
        out.array(4);
        out.text("emulated");
        out.natural(spec.page_bytes);
        out.natural(spec.page_count);
        out.natural(spec.run_ahead);
    }
    out.natural(cluster_.host_bytes);
    recorder_->noted(out.view());
}

void World::record_link(WorkerId worker, Ns there_ns, Ns back_ns) {
    if (!recorder_)
        return;
    Writer& out = begin_event(LINK_MEASURED, 5);
    out.integer(worker);
    out.integer(there_ns);
    out.integer(back_ns);
    recorder_->noted(out.view());
}

void World::record_ready(WorkerId worker, const ModelSpec& spec) {
    if (!recorder_)
        return;
    const Named& named = names_.at(static_cast<std::size_t>(spec.model_id));
    Writer& out = begin_event(MODEL_READY, 13);
    out.integer(worker);
    out.integer(spec.model_id);
    out.text(named.name);
    out.integer(named.version);
    out.text(named.program);
    Packer packer = out.begin(1);
    packer.flag(spec.batches);
    out.end(packer);
    out.natural(spec.batch_max);
    out.integer(spec.slo_ns);
    out.array(spec.runs.size());
    for (std::uint32_t run : spec.runs)
        out.natural(run);
    out.integer(spec.load_ns);
    out.array(spec.profile.size());
    for (const ProfilePoint& point : spec.profile) {
        out.array(3);
        out.raw(NO_INPUTS);
        out.natural(point.batch);
        out.integer(point.exec_ns);
    }
    recorder_->noted(out.view());
}

void World::record_left(WorkerId worker) {
    if (!recorder_)
        return;
    Writer& out = begin_event(WORKER_LEFT, 3);
    out.integer(worker);
    recorder_->noted(out.view());
}

Writer& World::begin_event(std::int64_t number, std::size_t fields) {
    event_.clear();
    event_.array(fields);
    event_.integer(number);
    event_.integer(now_ - recorder_->time_ns(now_));
    return event_;
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
            const Named& named = names_.at(static_cast<std::size_t>(command.model_id));
            const std::string* said = command.said >= 0 ? &out.texts[static_cast<std::size_t>(command.said)] : nullptr;
            text = sentences_.text(command, named.label(), said);
        }
        recorder_->ordered(command, out, text, NO_INPUTS);
    }
    recorder_->end();
}

}  // namespace clockwork::sim
