// Tests of the exchange's parts separately, between queues instead of sockets and before a scheduler that
// records its events.
#include <fcntl.h>
#include <sys/socket.h>
#include <unistd.h>

#include <cstdio>
#include <memory>
#include <stdexcept>
#include <string>
#include <string_view>
#include <vector>

#include "controller/exchange_parts.h"
#include "fake_zmq.h"
#include "threads.h"

namespace clockwork {

namespace {

// A scheduler that records the events it is told, and decides nothing.
class NotingScheduler : public Scheduler {
public:
    std::vector<Request> requests;
    std::vector<RequestId> cancellations;
    std::vector<ActionResult> results;
    int decisions = 0;

    void arrived(Ns, const Request& request) override { requests.push_back(request); }
    void cancelled(Ns, RequestId request_id) override { cancellations.push_back(request_id); }
    void action_done(Ns, const ActionResult& result) override { results.push_back(result); }
    void settle(Ns) override { ++decisions; }

    void worker_joined(Ns, WorkerId, const std::vector<DeviceSpec>&, std::uint64_t, std::uint64_t) override {}
    void worker_left(Ns, WorkerId) override {}
    void worker_draining(Ns, WorkerId) override {}
    void device_lost(Ns, WorkerId, std::int32_t) override {}
    void device_clock(Ns, WorkerId, std::int32_t, std::uint32_t) override {}
    void time_wanted(Ns, WorkerId, std::int32_t, ModelId, Ns, const std::vector<std::uint32_t>&) override {}
    void link_measured(Ns, WorkerId, Ns, Ns) override {}
    void model_ready(Ns, WorkerId, const ModelSpec&, bool) override {}
    void copy_lost(Ns, WorkerId, ModelId) override {}
    void model_kept(Ns, WorkerId, std::int32_t, ModelId, LoadId, const std::vector<std::uint32_t>&) override {}
    void room_wanted(Ns, WorkerId, std::uint64_t) override {}
    void model_removed(Ns, ModelId) override {}
    void shape_known(std::uint32_t, std::uint64_t) override {}
    void shape_forgotten(std::uint32_t) override {}
    void shapes_in_use(std::vector<std::uint32_t>&) const override {}
    bool preload(Ns, WorkerId, std::int32_t, ModelId) override { return false; }
    bool picture(WorkerId, std::int32_t, std::vector<ResidentModel>&) const override { return false; }
    void held(std::vector<std::int64_t>&) const override {}
    bool store_picture(WorkerId, std::vector<ModelId>&) const override { return false; }
    bool plans_fetches() const override { return false; }
    std::vector<DeviceStatus> devices() const override { return {}; }
    std::vector<ResidencyStatus> whereabouts(ModelId) const override { return {}; }
    std::vector<WorkerId> hosts(ModelId) const override { return {}; }
    std::vector<WorkerId> keepers(ModelId) const override { return {}; }
    std::uint64_t sole_copies(WorkerId) const override { return 0; }
    std::uint64_t store_room(WorkerId) const override { return 0; }
    StoreStatus store_status() const override { return {}; }
    Snapshot snapshot() const override { return {}; }
    PolicyStatus policy_status(Ns) const override { return {}; }
    LinkStatus link_status(Ns) const override { return {}; }
    double devices_wanted(Ns) const override { return 0; }
    std::vector<Ns> expected_ns(ModelId, const std::vector<ProfilePoint>&) const override { return {}; }
    const Predictions* predictions() const override { return nullptr; }
    void judge_predictions(Ns, Ns) override {}
    bool save(std::string&, std::size_t) override { return false; }
    void restore(std::string_view) override {}
    void check_invariants() const override {}
};

// The part of Python: models by text, and numbers of shapes.
struct Asked {
    std::vector<std::string> texts;
    std::vector<std::vector<std::int64_t>> shapes;
    ModelId answer = 0;
    bool fails = false;

    LookupFunctions functions() {
        return {this,
                [](void* owner, std::string_view text, ModelId* model_id) {
                    Asked& asked = *static_cast<Asked*>(owner);
                    asked.texts.emplace_back(text);
                    *model_id = asked.answer;
                    return asked.fails ? 0 : 1;
                },
                [](void* owner, const std::vector<std::int64_t>* shape, std::uint32_t* number) {
                    Asked& asked = *static_cast<Asked*>(owner);
                    asked.shapes.push_back(*shape);
                    *number = static_cast<std::uint32_t>(asked.shapes.size());
                    return asked.fails ? 0 : 1;
                },
                [](void* owner, std::uint32_t number, std::vector<std::int64_t>* shape) {
                    *shape = static_cast<Asked*>(owner)->shapes.at(number - 1);
                    return 1;
                }};
    }
};

// An open descriptor that stands for a connection.
class Line {
public:
    Line() { demand(socketpair(AF_UNIX, SOCK_STREAM, 0, ends_) == 0, "no descriptors are left"); }
    Line(const Line&) = delete;
    ~Line() {
        close(ends_[0]);
        close(ends_[1]);
    }
    int fd() const { return ends_[0]; }

private:
    int ends_[2];
};

// All parts of an exchange, of which each test uses a few.
struct Bench {
    NotingScheduler scheduler;
    Asked asked;
    fake::Socket from_workers, workers_news, from_clients, clients_news;
    ExchangeBounds bounds;
    ExchangeParts parts;

    explicit Bench(const ExchangeBounds& given = ExchangeBounds())
        : bounds(given),
          parts(scheduler, RouterSocket(&from_workers, &workers_news), RouterSocket(&from_clients, &clients_news),
                Sentences(std::vector<std::string>(64, "{name}"), std::vector<std::string>(STATUS_COUNT, "STATUS"),
                          std::vector<std::string>(REASONS, "reason")),
                asked.functions(), bounds, std::make_shared<Ring>(0, 0)) {}

    // A model with a single input of four floats.
    ServedModel& serve(ModelId model_id) {
        auto interface = std::make_shared<ModelInterface>();
        InputSpec& input = interface->inputs.emplace_back();
        input.name = "x";
        input.dtype = 1;
        input.bits = 32;
        input.dims = {4};
        input.symbols = {-1};
        input.limits = {EXACT};
        interface->outputs = {"y"};
        parts.models.serve(model_id, 1, "model", 0, interface);
        return parts.models.at(model_id);
    }

    // Answers a connection's hello, and returns the peer's slot.
    std::uint32_t client_joins(const Line& line, const std::string& identity) {
        parts.ports[1].connections().accepted(line.fd(), 1);
        from_clients.peers[identity] = false;
        return parts.clients.joined(identity, line.fd(), "", 1);
    }
    std::uint32_t worker_joins(const Line& line, const std::string& identity, WorkerId worker_id) {
        parts.ports[0].connections().accepted(line.fd(), 1);
        from_workers.peers[identity] = false;
        return parts.workers.joined(identity, line.fd(), "", worker_id, 1, 1);
    }
};

void shapes_are_looked_up_once() {
    Bench bench;
    ShapeNumbers& shapes = bench.parts.shapes;
    demand(shapes.of({1, 4}) == 1 && shapes.of({1, 8}) == 2, "shapes have numbers of their own");
    demand(shapes.of({1, 4}) == 1 && shapes.of({1, 8}) == 2 && bench.asked.shapes.size() == 2, "and keep them");
    demand(bench.parts.lookups.shape(2) == std::vector<std::int64_t>({1, 8}), "a number has its shape");
    shapes.forget();
    demand(shapes.of({1, 8}) == 3, "a number that is forgotten is asked for anew");
    bench.asked.fails = true;
    bool has_failed = false;
    try {
        shapes.of({1, 16});
    } catch (const LookupFailed&) {
        has_failed = true;
    }
    demand(has_failed, "a look-up that fails ends what needed it");
    bench.asked.fails = false;
    demand(shapes.of({1, 16}) == 5, "and is not remembered");
}

void references_are_looked_up_until_a_model_changes() {
    Bench bench;
    Routes& routes = bench.parts.routes;
    demand(routes.target_of("a").model == nullptr, "nobody serves it");
    ServedModel& model = bench.serve(1);
    bench.asked.answer = 1;
    demand(routes.target_of("a").model == &model, "a model is found by its text");
    demand(routes.target_of("a").model == &model && bench.asked.texts.size() == 2, "and asked for once");
    bench.serve(2);
    routes.target_of("a");
    demand(bench.asked.texts.size() == 3, "a change of models is a reason to ask again");
    routes.forget_references();
    routes.target_of("a");
    demand(bench.asked.texts.size() == 4, "and so is a change that Python knows of");
    bench.parts.models.forget(1);
    bench.asked.answer = 0;
    demand(routes.target_of("a").model == nullptr, "a model that is gone is not found");
}

void routes_take_turns_and_copy() {
    Bench bench;
    ServedModel& first = bench.serve(1);
    ServedModel& second = bench.serve(2);
    bench.serve(3);
    Routes& routes = bench.parts.routes;
    routes.route("a", {{1, 7'500}, {2, 2'500}});
    int counts[2] = {};
    for (int turn = 0; turn < 8; ++turn)
        ++counts[routes.target_of("a").model == &second];
    demand(counts[0] == 6 && counts[1] == 2, "each has its share of turns");
    demand(routes.shadow_tally("a") == nullptr, "nothing is copied");
    routes.route("a", {{1, SHARE_WHOLE}}, 3, SHARE_WHOLE, 0.5);
    Target target = routes.target_of("a");
    demand(target.model == &first && target.copied_by != nullptr, "a shadow gets a copy");
    ShadowTally* tally = routes.shadow_tally("a");
    routes.route("a", {{2, SHARE_WHOLE}}, 3, SHARE_WHOLE / 2, 0.5);
    demand(routes.shadow_tally("a") == tally, "the shadow goes on with its results");
    routes.route("a", {{2, SHARE_WHOLE}}, 3, SHARE_WHOLE / 2, 0.25);
    demand(routes.shadow_tally("a") != tally, "but not with another tolerance");
    routes.unroute("a");
    demand(routes.target_of("a").model == nullptr && bench.asked.texts.size() == 1, "without a route, Python is asked");
}

void a_model_stays_for_its_requests() {
    Bench bench;
    Line line;
    ClientLink& client = bench.parts.clients.at(bench.client_joins(line, "c"));
    ServedModel& model = bench.serve(1);
    HeldRequest& held = bench.parts.requests.hold(&client, 7, model);
    HeldRequest& copy = bench.parts.requests.hold(nullptr, 0, model);
    demand(model.held == 2 && model.copies == 1 && client.connection->asked == 1, "both are counted");
    bench.parts.models.forget(1);
    demand(bench.parts.models.find(1) == nullptr, "it is gone");
    // AddressSanitizer checks that the model exists
    demand(held.model->label == "model", "but for those who have it");
    bench.parts.requests.release(held);
    demand(copy.model->label == "model", "until the last");
    bench.parts.requests.release(copy);
    demand(bench.parts.requests.size() == 0 && client.connection->asked == 0, "all is let go of");
}

void a_client_leaves_with_its_requests() {
    Bench bench;
    Line line;
    std::uint32_t slot = bench.client_joins(line, "c");
    demand(bench.parts.clients.joined("d", line.fd() + 1'000, "", 1) == NO_SLOT,
           "a connection that has ended joins not");
    Clients& clients = bench.parts.clients;
    HeldRequests& requests = bench.parts.requests;
    ServedModel& model = bench.serve(1);
    HeldRequest& first = requests.hold(&clients.at(slot), 7, model);
    HeldRequest& second = requests.hold(&clients.at(slot), 8, model);
    ArrivalTerms terms;
    terms.rows = 3;
    terms.deadline_ns = 900;
    requests.arrive(first, terms, 10);
    terms.priority = 2;
    requests.arrive(second, terms, 20);
    const std::vector<Request>& told = bench.scheduler.requests;
    demand(told.size() == 2 && told[0].id == first.id && told[0].rows == 3 && told[0].arrived_ns == 10,
           "the scheduler is told of a request");
    demand(told[0].priority == bench.bounds.priority_default && told[1].priority == 2, "with its priority");
    demand(!told[0].is_spare && bench.parts.scheduler.has_news(), "which is a reason to decide");
    demand(requests.find(clients.at(slot), 8) == &second && requests.find(second.id) == &second, "it is found");
    clients.left(slot, 30);
    demand(clients.find("c") == nullptr && bench.scheduler.cancellations.empty(), "it is cancelled when it is time");
    requests.cancel_departed(40);
    requests.cancel_departed(50);
    demand(bench.scheduler.cancellations == std::vector<RequestId>({first.id, second.id}), "once, in order");
    requests.release(first);
    requests.release(second);
    Line other;
    demand(bench.client_joins(other, "e") == slot, "its slot is another's after its last request");
}

void peers_that_take_nothing_are_lost() {
    Bench bench;
    Line lines[2];
    ClientLink& client = bench.parts.clients.at(bench.client_joins(lines[0], "c"));
    WorkerLink& worker = bench.parts.workers.at(bench.worker_joins(lines[1], "w", 5));
    demand(bench.parts.clients.send(client, "x", false, 1) && bench.from_clients.sent.size() == 1, "it is sent");
    bench.from_clients.peers["c"] = bench.from_workers.peers["w"] = true;
    demand(!bench.parts.clients.send(client, "x", false, 1), "a full queue takes nothing");
    demand(bench.parts.clients.lost() == std::vector<std::uint32_t>({client.slot}), "the client is as good as gone");
    bench.parts.clients.left(client.slot, 2);
    demand(!bench.parts.clients.send(client, "x", false, 2) && bench.parts.clients.lost().size() == 1,
           "who has left is not lost again");
    demand(!bench.parts.workers.send(worker, "x", false, 1), "nor does a worker's");
    demand(bench.parts.workers.lost() == std::vector<WorkerId>({5}), "the worker, too");
    demand(bench.parts.workers.find(5) == &worker && bench.parts.workers.find("w") == &worker, "until it has left");
    bench.parts.workers.left(worker.slot, 2);
    demand(bench.parts.workers.find(5) == nullptr && bench.parts.workers.find("w") == nullptr, "then it is none");
}

void orders_go_to_workers_that_are_there() {
    Bench bench;
    Line line;
    WorkerLink& worker = bench.parts.workers.at(bench.worker_joins(line, "w", 5));
    Commands all;
    all.runs = {3, 9};
    Command load;
    load.kind = CommandKind::SEND_LOAD;
    load.worker = 5;
    load.action_id = 11;
    load.count = 2;
    bench.parts.orders.send(load, all, 100);
    demand(bench.from_workers.sent.size() == 1 && worker.actions.size() == 1, "it is sent and noted");
    load.worker = 6;
    bench.parts.orders.send(load, all, 100);
    demand(bench.from_workers.sent.size() == 1, "a worker that is gone gets nothing");
    demand(!bench.parts.result_intake.fail_action(worker.slot, 12, "no", 200), "another action is not under way");
    demand(bench.parts.result_intake.fail_action(worker.slot, 11, "no", 200), "an action ends once");
    demand(!bench.parts.result_intake.fail_action(worker.slot, 11, "no", 200), "and not twice");
    demand(bench.scheduler.results.size() == 1 && bench.scheduler.results[0].worker == 5 &&
               bench.scheduler.results[0].status == Status::DEVICE_ERROR,
           "the scheduler is told");
}

void the_router_stops_for_python() {
    Bench bench;
    Commands& out = bench.scheduler.out;
    Command wake, gone;
    wake.kind = CommandKind::WAKE;
    wake.earliest_ns = 500;
    gone.kind = CommandKind::MODEL_GONE;
    out.list = {wake, gone, gone, wake};
    out.list[3].earliest_ns = 700;
    OrderRouter& router = bench.parts.router;
    router.begin(100);
    demand(!router.carry_out(100) && router.place() == 1 && router.wake_ns() == 500, "the second is Python's");
    demand(!router.carry_out(100) && router.place() == 2, "the third, too");
    demand(router.carry_out(100) && router.has_stopped() && router.wake_ns() == 700, "then all are carried out");
    out.list.clear();
    router.begin(600);
    demand(router.wake_ns() == 700 && !router.has_stopped(), "it is not time yet");
    router.begin(700);
    demand(router.wake_ns() == NEVER_NS, "nobody is woken twice");
}

// A request and its copy for a shadow, both under way.
struct Pair {
    Line line;
    Bench bench;
    HeldRequest* first = nullptr;
    HeldRequest* copy = nullptr;
    ServedRoute route;

    // slo_ns: SLO of the request.
    explicit Pair(Ns slo_ns, std::size_t width = 1) {
        bench.parts.shadows.width = width;
        ServedModel& model = bench.serve(1);
        bench.serve(2);
        route.shadow = &bench.parts.models.at(2);
        route.tally = std::make_shared<ShadowTally>(0.1);
        ClientLink& client = bench.parts.clients.at(bench.client_joins(line, "c"));
        first = &bench.parts.requests.hold(&client, 7, model);
        copy = nullptr;
        another(*first, slo_ns);
        copy = bench.parts.requests.find(first->id + 1);
    }

    void another(HeldRequest& held, Ns slo_ns) {
        wire::InferRequest request;
        request.dims = {4};
        request.tensors = {TensorRef{"x", 1, 0, 1, 0}};
        std::string bytes(16, 1);
        held.tensors = {HeldTensor{1, 0, 1}};
        held.dims = {4};
        held.frames.emplace_back().copy_of(bytes);
        FrameBytes frames = {held.frames[0].view()};
        AcceptedRequest accepted;
        Flaw flaw;
        demand(check_request(*held.model->interface, request, frames, 0, accepted, flaw), "the request is right");
        demand(bench.parts.shadows.can_copy(route, request, accepted, frames, frames.size(), 0),
               "there is room for a copy");
        bench.parts.shadows.copy(held, route, accepted, 0, slo_ns, 1'000);
    }
};

void a_copy_goes_with_its_request() {
    Pair pair(0);
    ShadowCopies& shadows = pair.bench.parts.shadows;
    demand(pair.copy != nullptr && pair.copy->pair == pair.first->pair && shadows.size() == 1, "there is a pair");
    demand(pair.bench.scheduler.requests.size() == 1 && pair.bench.scheduler.requests[0].is_spare, "for spare time");
    demand(pair.copy->frames[0].view() == pair.first->frames[0].view(), "of the same bytes");
    shadows.unpair(*pair.first);
    pair.bench.parts.requests.release(*pair.first);
    demand(pair.copy->pair == nullptr && pair.bench.scheduler.cancellations.empty(), "a copy alone is of no use");
    shadows.cancel_due(1'001);
    demand(pair.bench.scheduler.cancellations.size() == 1, "it is cancelled before the next decision");
    shadows.release(*pair.copy);
    ShadowResults results = pair.route.tally->read();
    demand(results.copied == 1 && results.moot == 1 && shadows.size() == 0, "and counted");
}

void a_copy_is_given_up_in_time() {
    Pair pair(5'000);
    ShadowCopies& shadows = pair.bench.parts.shadows;
    HeldRequest& second = pair.bench.parts.requests.hold(pair.first->client, 8, *pair.first->model);
    pair.another(second, 9'000);
    demand(shadows.size() == 2 && pair.bench.scheduler.requests.size() == 1, "the scheduler has one at once");
    demand(shadows.next_ns() == 6'000, "the first is due first");
    shadows.cancel_due(5'999);
    demand(pair.bench.scheduler.cancellations.empty(), "not before its time");
    shadows.cancel_due(6'000);
    demand(pair.bench.scheduler.cancellations.size() == 1 && shadows.next_ns() == 10'000, "then the scheduler ends it");
    shadows.unpair(*pair.copy);
    shadows.release(*pair.copy);
    shadows.cancel_due(6'001);
    demand(pair.bench.scheduler.requests.size() == 2, "and the next has its turn");
    HeldRequest& third = pair.bench.parts.requests.hold(pair.first->client, 9, *pair.first->model);
    pair.another(third, 0);
    demand(shadows.size() == 2, "another waits");
    pair.bench.parts.forget_shapes();
    shadows.cancel_due(6'002);
    demand(shadows.size() == 1, "whose shape's number is another's is given up");
    demand(pair.route.tally->read().unanswered == 2, "and counted");
}

void results_are_kept_for_a_turn() {
    Bench bench;
    TurnResults& results = bench.parts.results;
    results.next().header.action_id = 3;
    results.next().header.tensors = {TensorRef{"", 1, 0, 0, 0}, TensorRef{"", 1, 0, 0, 1}};
    results.keep(3, 2);
    results.next().header.action_id = 4;
    results.next().header.tensors = {TensorRef{"", 1, 0, 0, 0}, TensorRef{"", 1, 0, 0, 0}};
    results.keep(4, 5);
    demand(results.of(3).is_distinct && results.of(3).first_frame == 2, "each frame is one tensor's");
    demand(!results.of(4).is_distinct, "a frame that two tensors name is shared");
    results.clear();
    bool has_failed = false;
    try {
        results.of(3);
    } catch (const std::logic_error&) {
        has_failed = true;
    }
    demand(has_failed, "the next turn has results of its own");
}

}  // namespace

}  // namespace clockwork

int main() {
    using namespace clockwork;
    zmq = &fake::api();
    void (*const tests[])() = {
        shapes_are_looked_up_once,           references_are_looked_up_until_a_model_changes,
        routes_take_turns_and_copy,          a_model_stays_for_its_requests,
        a_client_leaves_with_its_requests,   peers_that_take_nothing_are_lost,
        orders_go_to_workers_that_are_there, the_router_stops_for_python,
        a_copy_goes_with_its_request,        a_copy_is_given_up_in_time,
        results_are_kept_for_a_turn,
    };
    for (void (*test)() : tests)
        test();
    std::printf("%zu tests\n", std::size(tests));
}
