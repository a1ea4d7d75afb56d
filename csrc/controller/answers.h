// Answers: outputs and failures, as messages to clients.
#pragma once

#include <cstdint>
#include <string_view>
#include <utility>

#include "controller/clients.h"
#include "controller/held_requests.h"
#include "controller/outcome_counts.h"
#include "controller/shadow_copies.h"
#include "controller/turn_results.h"
#include "msgpack.h"
#include "recording/sentences.h"
#include "wire/messages.h"

namespace clockwork {

class Answers {
public:
    Answers(Clients& clients, HeldRequests& requests, TurnResults& results, ShadowCopies& shadows,
            OutcomeCounts& counts, Sentences sentences, std::uint64_t unread_bytes_max)
        : clients_(clients),
          requests_(requests),
          results_(results),
          shadows_(shadows),
          counts_(counts),
          sentences_(std::move(sentences)),
          unread_bytes_max_(unread_bytes_max) {}

    // Sends the answer of an ANSWER_OK or ANSWER_FAILED, and releases its request. all: the orders of the
    // decision.
    void succeed(const Command& command, Ns now);
    void fail(const Command& command, const Commands& all, Ns now);
    // Returns the sentence of an ANSWER_FAILED; valid until the next call.
    std::string_view failure_text(const Command& command, const Commands& all);
    // Answers and releases all held requests, as the controller ends.
    void fail_all(Status status, std::string_view text, Ns now);

private:
    std::string_view failure_text(const Command& command, const Commands& all, const HeldRequest& held);
    void write_success(const Command& command, const HeldRequest& held, const KeptResult& result, const TensorRef* refs,
                       std::size_t count, Ns now);
    void refuse_unread(const Command& command, const HeldRequest& held, std::uint64_t bytes, Ns now);
    // refusal: null at the controller's end, when no order causes the failure.
    void send_failure(const HeldRequest& held, Status status, std::string_view text, const Command* refusal, Ns now);
    void release(HeldRequest& held);

    Clients& clients_;
    HeldRequests& requests_;
    TurnResults& results_;
    ShadowCopies& shadows_;
    OutcomeCounts& counts_;
    Sentences sentences_;
    std::uint64_t unread_bytes_max_;  // the bound of all connections, for the refusal's sentence
    wire::Answer answer_;
    wire::Failure failure_;
    Writer writer_;
    Frame spare_;
};

}  // namespace clockwork
