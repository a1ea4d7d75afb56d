#include "controller/recorded_scheduler.h"

namespace clockwork {

void RecordedScheduler::arrived(Ns now, const Request& request) {
    has_news_ = true;
    if (recorder_.is_on())
        recorder_.arrived(now, request, recorded_shape(request.shape));
    scheduler_.arrived(now, request);
}

void RecordedScheduler::cancelled(Ns now, RequestId request_id) {
    has_news_ = true;
    if (recorder_.is_on())
        recorder_.cancelled(now, request_id);
    scheduler_.cancelled(now, request_id);
}

void RecordedScheduler::action_done(Ns now, const ActionResult& done) {
    has_news_ = true;
    if (recorder_.is_on())
        recorder_.action_done(now, done, done.text != nullptr ? std::string_view(*done.text) : std::string_view());
    scheduler_.action_done(now, done);
}

void RecordedScheduler::noted(std::string_view event) {
    has_news_ = true;
    if (recorder_.is_on())
        recorder_.noted(event);
}

void RecordedScheduler::settle(Ns now) {
    has_news_ = false;
    if (recorder_.is_on())
        recorder_.settle(now);
    scheduler_.settle(now);
}

void RecordedScheduler::end() {
    if (recorder_.is_on())
        recorder_.end();
}

void RecordedScheduler::record(const Command& command, std::string_view text) {
    std::string_view shape;
    if (command.kind == CommandKind::SEND_PROFILE)
        shape = recorded_shape(command.shape);
    recorder_.ordered(command, scheduler_.out, text, shape);
}

std::string_view RecordedScheduler::recorded_shape(std::uint32_t number) {
    if (const std::string* known = recorder_.shape(number); known != nullptr)
        return *known;
    return recorder_.know_shape(number, lookups_.shape(number));
}

}  // namespace clockwork
