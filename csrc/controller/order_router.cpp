#include "controller/order_router.h"

namespace clockwork {

bool OrderRouter::carry_out(Ns now) {
    const Commands& all = scheduler_.orders();
    while (next_ < all.list.size()) {
        const Command& command = all.list[next_++];
        // Recorded before the order is carried out, while the request of an answer is held.
        scheduler_.ordering(command, [&] { return answers_.failure_text(command, all); });
        switch (command.kind) {
            case CommandKind::ANSWER_OK: answers_.succeed(command, now); break;
            case CommandKind::ANSWER_FAILED: answers_.fail(command, all, now); break;
            case CommandKind::WAKE: wake_ns_ = command.earliest_ns; break;
            case CommandKind::MODEL_FAULT:
            case CommandKind::MODEL_GONE: has_stopped_ = true; return false;
            default: orders_.send(command, all, now);
        }
    }
    return true;
}

}  // namespace clockwork
