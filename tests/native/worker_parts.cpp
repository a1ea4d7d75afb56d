// Tests of parts of a worker's road, without the road: Lending, with copies that end when a test says so.
#include <unistd.h>

#include <algorithm>
#include <cstdio>
#include <cstring>
#include <deque>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "fake_zmq.h"
#include "lent_client.h"
#include "threads.h"
#include "worker/lending.h"

namespace clockwork::worker {

namespace {

constexpr Ns WINDOW_NS = SECOND, ROOM_WAIT_NS = 50 * MS, BYTE_NS = 10;
constexpr std::int64_t UINT8 = 2, BYTES = 8;

// Copies nothing; a test ends each copy.
class HandCopies : public CopyQueue {
public:
    std::deque<std::shared_ptr<Copy>> under_way;
    std::size_t most = 100;
    int dropped = 0;

    std::string submit(std::shared_ptr<Copy> copy) override {
        if (under_way.size() >= most)
            return "too many";
        under_way.push_back(std::move(copy));
        return {};
    }
    void drop(Copy& copy) override {
        copy.is_dropped = true;
        ++dropped;
    }
    std::vector<std::shared_ptr<Copy>> take_ended() override { return std::exchange(ended_, {}); }
    void close() override {}

    // Ends the copy that was begun first: as it would, or with a flaw.
    void end(const std::string& flaw = {}, bool is_defect = false) {
        std::shared_ptr<Copy> copy = under_way.front();
        under_way.pop_front();
        if (flaw.empty() && !copy->is_dropped) {
            while (copy->step()) {
            }
            demand(copy->flaw.empty(), copy->flaw.c_str());
        }
        if (!flaw.empty())
            copy->flaw = flaw;
        copy->is_defect = is_defect;
        copy->close();
        ended_.push_back(std::move(copy));
    }

private:
    std::vector<std::shared_ptr<Copy>> ended_;
};

struct Stage {
    Stage() {
        auto made = std::make_unique<HandCopies>();
        copies = made.get();
        LendingBounds bounds;
        bounds.snapshots = {.bytes = 1 << 20, .owner_bytes = 1 << 20, .idle_ns = 1};
        bounds.copies.piece_bytes = 5;
        bounds.room_wait_ns = ROOM_WAIT_NS;
        bounds.room_wait_byte_ns = BYTE_NS;
        lending = std::make_unique<Lending>(bounds, std::move(made));
    }

    // Begins an INFER. Each part has an input of 8 bytes in the client's memory, and another in its message.
    std::string begin(std::int64_t action_id, int parts = 1, std::int64_t room_bytes = 0) {
        std::vector<std::string> contents;
        for (int part = 0; part < parts; ++part) {
            contents.push_back(client.reference(64 + part, room_bytes));
            contents.push_back("sent " + std::to_string(part) + "!!");
        }
        return begin(action_id, parts, contents);
    }

    std::string begin(std::int64_t action_id, int parts, const std::vector<std::string>& contents) {
        wire::ActionMessage action;
        action.kind = ActionKind::INFER;
        action.action_id = action_id;
        std::vector<Frame> frames(1);
        for (std::size_t place = 0; place < contents.size(); ++place) {
            action.tensors.emplace_back();
            action.tensors.back().dtype = place % 2 == 0 ? UINT8 | SHARED : UINT8;
            action.tensors.back().shape = {0, 1};
            action.tensors.back().frame = static_cast<std::int64_t>(place);
            frames.emplace_back().copy_of(contents[place]);
        }
        action.dims.push_back(BYTES);
        const std::uint32_t count = static_cast<std::uint32_t>(contents.size()) / static_cast<std::uint32_t>(parts);
        for (std::uint32_t part = 0; part < static_cast<std::uint32_t>(parts); ++part)
            action.parts.push_back({part * count, count});
        return lending->begin(action, frames, WINDOW_NS);
    }

    LendingNews take() {
        LendingNews news;
        lending->take_copies(news);
        return news;
    }

    LendingNews due(Ns now) {
        LendingNews news;
        lending->run_due(now, news);
        return news;
    }

    // Ends an INFER of two parts, with an output of 8 bytes each. Returns whether outputs are being copied.
    bool leave(std::int64_t action_id, std::int64_t room_bytes) {
        HeldInputs inputs;
        for (int part = 0; part < 2; ++part) {
            MemoryReference reference;
            demand(reference.read(client.reference(64, room_bytes)), "no reference");
            inputs.rooms.push_back({reference.room, reference.room_bytes});
        }
        device::Order order;
        order.kind = ActionKind::INFER;
        order.action_id = action_id;
        order.status = static_cast<std::int32_t>(Status::OK);
        order.parts.part_count = 2;
        order.parts.rows = {1, 1};
        demand(order.parts.make_outputs(1), "no memory");
        order.parts.outputs[0].dtype = UINT8;
        order.parts.outputs[0].rank = 2;
        order.parts.outputs[0].dims[0] = 2;
        order.parts.outputs[0].dims[1] = BYTES;
        order.parts.outputs[0].bytes = 2 * BYTES;
        demand(order.parts.make_block(), "no memory");
        std::memcpy(order.parts.block, "output 0output 1", 2 * BYTES);
        order.parts.divide(0);
        leaving = std::make_unique<Leaving>();
        writer.describe(order, {}, true, leaving->outgoing);
        return lending->leave(inputs, leaving, 0);
    }

    LentClient client;
    HandCopies* copies;
    std::unique_ptr<Lending> lending;
    ResultWriter writer{1 << 18};
    std::unique_ptr<Leaving> leaving;
};

// Whether the outputs of each part are sent, and not written.
std::vector<bool> sent(const LendingNews& news) {
    demand(news.left.size() == 1, "no result");
    std::vector<bool> found;
    const Outgoing& outgoing = news.left[0]->outgoing;
    for (std::size_t place = 0; place < outgoing.places.size(); ++place) {
        demand(outgoing.outputs[place] == "output " + std::to_string(place), "another output");
        demand(outgoing.places[place] == 0 || outgoing.places[place] == FIRST_OFFSET, "another place");
        found.push_back(outgoing.places[place] == 0);
    }
    return found;
}

void test_an_action_begins_when_all_its_inputs_have_been_copied() {
    Stage stage;
    demand(stage.begin(1, 2).empty(), "it was refused");
    demand(stage.lending->holds(1) && stage.lending->count() == 1, "it is not held");
    stage.copies->end();
    demand(stage.take().arrived.empty(), "it came too soon");
    stage.copies->end();
    LendingNews news = stage.take();
    demand(news.arrived.size() == 1 && stage.lending->count() == 0, "it did not come");
    const Arriving& arriving = *news.arrived[0];
    demand(arriving.action.action_id == 1 && arriving.action.parts.size() == 2, "another action came");
    demand(arriving.bytes[0] == std::string_view("\0\1\2\3\4\5\6\7", 8), "other bytes were copied");
    demand(arriving.bytes[2] == std::string_view("\1\2\3\4\5\6\7\10", 8), "other bytes were copied");
    demand(arriving.bytes[1] == "sent 0!!" && arriving.bytes[3] == "sent 1!!", "other bytes were sent");
    demand(arriving.inputs->rooms.empty(), "nobody lent a room");
    demand(stage.lending->copied_bytes() == 2 * 64, "the copies are not held");
    news = {};
    demand(stage.lending->copied_bytes() == 0, "the copies are held");
}

void test_an_action_whose_inputs_cannot_be_copied_is_its_clients_error_or_the_workers() {
    Stage stage;
    for (const bool is_defect : {false, true}) {
        stage.begin(1, 2);
        stage.copies->end("no such memory", is_defect);
        const LendingNews news = stage.take();
        demand(news.refused.size() == 1 && news.refused[0].action_id == 1, "it is not refused");
        demand(news.refused[0].status == (is_defect ? Status::DEVICE_ERROR : Status::INVALID_INPUT), "another status");
        demand(news.refused[0].text == (is_defect ? "the worker failed to copy an input" : "no such memory"),
               "another text");
        stage.copies->end();
        const LendingNews later = stage.take();
        demand(later.refused.empty() && later.arrived.empty() && stage.lending->count() == 0, "it came twice");
    }
}

void test_an_action_that_is_invalid_is_not_begun() {
    Stage stage;
    const auto flaw = [&](const std::vector<std::string>& contents) { return stage.begin(1, 1, contents); };
    demand(flaw({"x", "sent"}) == "a reference to memory has 80 bytes, not 1", "another text");
    const std::string mine = stage.client.reference(64, 0), others = stage.client.reference(64, 0, 1);
    const std::string two = "a request refers to memory of the processes " + std::to_string(getpid()) + " and 1";
    demand(flaw({mine, "sent", others, "sent"}) == two, "another text");
    stage.copies->most = 1;
    demand(stage.begin(1, 2) == "too many", "it was begun");
    demand(stage.copies->dropped == 1, "its other part is copied");
    stage.copies->end();
    demand(stage.take().arrived.empty() && stage.lending->count() == 0, "it came");
    demand(stage.lending->copied_bytes() == 0, "its copies are held");
}

void test_an_action_whose_inputs_are_being_copied_is_revoked_cancelled_or_too_late() {
    Stage stage;
    for (std::int64_t action_id : {1, 2, 3})
        stage.begin(action_id);
    demand(stage.lending->revoke(1) && !stage.lending->revoke(1) && !stage.lending->revoke(9), "it was not revoked");
    demand(stage.lending->due_ns() == WINDOW_NS, "it is due at another time");
    demand(stage.due(WINDOW_NS - 1).refused.empty(), "it came too soon");
    const LendingNews late = stage.due(WINDOW_NS);
    demand(late.refused.size() == 2, "nobody was refused");
    demand(late.refused[0].action_id == 2 && late.refused[1].action_id == 3, "another order");
    demand(late.refused[0].status == Status::TOO_LATE, "another status");
    stage.begin(4);
    LendingNews news;
    stage.lending->cancel(news);
    demand(news.refused.size() == 1 && news.refused[0].action_id == 4, "it was not cancelled");
    demand(stage.copies->dropped == 4, "it is copied");
    for (int count = 0; count < 4; ++count)
        stage.copies->end();
    demand(stage.take().arrived.empty() && stage.lending->count() == 0, "it came");
    demand(stage.lending->due_ns() == NEVER_NS, "nothing is due");
    stage.begin(5);
    stage.lending->reset();
    stage.copies->end();
    demand(stage.take().arrived.empty() && stage.lending->count() == 0, "it came");
}

void test_outputs_go_to_the_clients_room_or_with_the_answer_where_that_takes_too_long() {
    Stage stage;
    demand(stage.leave(1, 100) && stage.lending->holds(1), "they are not written");
    stage.copies->end();
    demand(stage.take().left.empty(), "it came too soon");
    stage.copies->end("it is gone");
    demand(sent(stage.take()) == std::vector<bool>({false, true}), "other parts are sent");
    demand(stage.client.bytes(FIRST_OFFSET, BYTES) == "output 0", "nothing was written");
    demand(stage.leave(2, 100), "they are not written");
    stage.copies->end();
    demand(stage.take().left.empty(), "it came too soon");
    const Ns due = ROOM_WAIT_NS + 2 * BYTES * BYTE_NS;  // by the outputs: a room has any size
    demand(stage.lending->due_ns() == due && stage.due(due - 1).left.empty(), "it came too soon");
    demand(sent(stage.due(due)) == std::vector<bool>({false, true}), "other parts are sent");
    stage.copies->end();
    demand(stage.take().left.empty(), "it has been answered");
    demand(stage.leave(3, 100), "they are not written");
    LendingNews news;
    stage.lending->cancel(news);
    demand(sent(news) == std::vector<bool>({true, true}), "other parts are sent");
    demand(stage.lending->count() == 0, "it is held");
    stage.lending->reset();
}

void test_outputs_that_no_room_takes_are_sent_at_once() {
    Stage stage;
    for (const std::int64_t room_bytes : {std::int64_t(0), BYTES - 1, std::int64_t(-1)})
        demand(!stage.leave(1, room_bytes), "they are written");
    demand(stage.leaving != nullptr && stage.leaving->outgoing.outputs[1] == "output 1", "they are gone");
    stage.copies->most = 0;
    demand(!stage.leave(1, BYTES), "they are written");
    demand(stage.lending->count() == 0, "it is held");
}

}  // namespace

}  // namespace clockwork::worker

int main() {
    using namespace clockwork::worker;
    clockwork::zmq = &clockwork::fake::api();
    const std::vector<void (*)()> tests = {
        test_an_action_begins_when_all_its_inputs_have_been_copied,
        test_an_action_whose_inputs_cannot_be_copied_is_its_clients_error_or_the_workers,
        test_an_action_that_is_invalid_is_not_begun,
        test_an_action_whose_inputs_are_being_copied_is_revoked_cancelled_or_too_late,
        test_outputs_go_to_the_clients_room_or_with_the_answer_where_that_takes_too_long,
        test_outputs_that_no_room_takes_are_sent_at_once,
    };
    for (const auto test : tests)
        test();
    std::printf("%zu tests\n", tests.size());
    return 0;
}
