// The lanes of an arena with several executors under many threads, for ThreadSanitizer: no weights are read
// while they are written or after they were dropped, and no places of a run are another run's.
//
// There is a single pusher, as for a road; a lane of loads; a lane for each executor; a thread that opens
// models, for which the places and slots of runs grow; a thread that revokes; a thread that takes ended
// orders; and, in half of the rounds, a clear while all of them run. Usage: threads_executors SEED ROUNDS.
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <mutex>
#include <thread>
#include <vector>

#include "device/cpu_model.h"
#include "device/order.h"
#include "threads.h"

using namespace clockwork::device;
using clockwork::ActionKind;

namespace {

constexpr int ORDERS = 600, EXECUTORS = 3, MODELS = 4, QUEUED_MAX = 8;
constexpr int DONE = 0, NOT_RESIDENT = 1, IN_USE = 2, REVOKED = 3;

struct Model : CpuModel {
    std::size_t width = 0;              // number of its arguments
    std::vector<std::int64_t> content;  // its weights: the load's id in all elements while it is resident
};

struct Machine {
    explicit Machine(std::uint64_t seed) : seed(seed), orders(ORDERS), executors(EXECUTORS) {
        for (int number = 1; number < EXECUTORS; number++)
            lanes.add_executor();
        for (std::size_t place = 0; place < MODELS; place++) {
            models[place].width = 2 + 3 * place;
            models[place].content.resize(64);
        }
    }

    std::uint64_t seed;
    Lanes lanes;
    Model models[MODELS];
    std::vector<Order> orders;
    std::vector<CpuExecutor> executors;
    int opened = 0;         // models that may be named; guarded by the hub's lock
    bool stop_all = false;  // guarded by the hub's lock
    int pushed = 0;         // written by the pusher alone, until it is joined
};

bool is_over(Machine& m) {
    std::lock_guard<Hub> held(m.lanes.hub);
    return m.stop_all;
}

void run_loads(Machine& m) {
    m.lanes.load.enter();
    while (Action* action = m.lanes.load.take(0)) {
        Order& order = static_cast<Order&>(*action);
        Model& model = static_cast<Model&>(*order.residency);
        std::unique_lock<Hub> held(m.lanes.hub);
        if (order.kind == ActionKind::LOAD) {
            const bool was_resident = model.resident;
            held.unlock();
            if (!was_resident) {
                for (std::int64_t& word : model.content)
                    word = order.load_id;
                held.lock();
                model.load_id = order.load_id;
                model.resident = true;
                held.unlock();
            }
            order.status = DONE;
        } else if (model.resident && m.lanes.needs(&model, model.load_id)) {
            order.status = IN_USE;
        } else {
            model.resident = false;
            held.unlock();
            for (std::int64_t& word : model.content)
                word = -1;
            order.status = DONE;
        }
        if (held.owns_lock())
            held.unlock();
        m.lanes.load.end(order);
    }
}

void run_executions(Machine& m, std::size_t number) {
    Lane& lane = *m.lanes.execute(number);
    CpuExecutor& executor = m.executors[number];
    demand(m.lanes.executor_of(&lane) == int(number), "a lane is another executor's");
    lane.enter();
    while (Action* action = lane.take(0)) {
        Order& order = static_cast<Order&>(*action);
        Model& model = static_cast<Model&>(*order.residency);
        demand(order.executor == number, "an order is in another executor's lane");
        m.lanes.hub.lock();
        const bool is_here = model.resident && model.load_id == order.load_id;
        executor.take_places();
        m.lanes.hub.unlock();
        if (is_here) {
            demand(executor.places.arguments.size() >= model.width, "a run has too few places");
            for (std::size_t place = 0; place < model.width; place++)
                executor.places.arguments[place] = reinterpret_cast<OrtValue*>(&order);
            const std::size_t joined = model.width * 1000;  // more than the slot was made for
            char* slot = executor.take_slot(m.lanes.hub, joined);
            demand(slot != nullptr, "there is no slot");
            std::memset(slot, int(number) + 1, joined);
            for (std::int64_t word : model.content)
                demand(word == order.load_id, "weights are another load's");
            for (std::size_t at = 0; at < joined; at++)
                demand(slot[at] == char(number + 1), "a slot is shared");
            for (std::size_t place = 0; place < model.width; place++)
                demand(executor.places.arguments[place] == reinterpret_cast<OrtValue*>(&order), "a place is shared");
        }
        order.status = is_here ? DONE : NOT_RESIDENT;
        lane.end(order);
    }
}

void open_models(Machine& m) {
    for (int place = 0; place < MODELS; place++) {
        nap(50'000);
        for (CpuExecutor& executor : m.executors)
            executor.grow(m.lanes.hub, m.models[place].width, 1);
        for (CpuExecutor& executor : m.executors)
            demand(executor.grow_slot(m.lanes.hub, m.models[place].width * 900), "no slot grows");
        std::lock_guard<Hub> held(m.lanes.hub);
        m.opened = place + 1;
    }
}

void revoke_some(Machine& m) {
    std::uint64_t state = m.seed ^ 0x9e3779b97f4a7c15u;
    while (!is_over(m))
        m.lanes.revoke(draw(state) % EXECUTORS, std::int64_t(draw(state) % ORDERS), REVOKED);
}

int take_ended(Machine& m) {
    int count = 0;
    for (Action* action = m.lanes.hub.take_ended(); action != nullptr; count++) {
        Action* next = action->next;  // read before another thread may take the action
        demand(action->status != PENDING, "an order ended without a status");
        action = next;
    }
    return count;
}

void take(Machine& m, int& count) {
    while (!is_over(m))
        count += take_ended(m);
}

void push(Machine& m) {
    std::uint64_t state = m.seed;
    for (int place = 0; place < ORDERS; place++) {
        int opened = 0;
        while (opened == 0) {
            std::lock_guard<Hub> held(m.lanes.hub);
            opened = m.opened;
        }
        Order& order = m.orders[std::size_t(place)];
        Model& model = m.models[draw(state) % std::size_t(opened)];
        const std::uint64_t choice = draw(state) % 10;
        order.action_id = place;
        order.residency = &model;
        order.kind = choice == 0 ? ActionKind::UNLOAD : choice < 3 ? ActionKind::LOAD : ActionKind::INFER;
        order.load_id = place;
        if (order.kind == ActionKind::INFER) {
            m.lanes.hub.lock();
            order.load_id = model.load_id;
            m.lanes.hub.unlock();
            order.executor = std::uint32_t(draw(state) % EXECUTORS);
        }
        Lane& lane = order.kind == ActionKind::INFER ? *m.lanes.execute(order.executor) : m.lanes.load;
        while (!lane.push(order, QUEUED_MAX))
            nap(1000);
        m.pushed++;
    }
}

void run_round(std::uint64_t seed) {
    const auto owned = std::make_unique<Machine>(seed);
    Machine& m = *owned;
    int ended = 0;
    std::vector<std::thread> lanes;
    lanes.emplace_back([&] { run_loads(m); });
    for (std::size_t number = 0; number < EXECUTORS; number++)
        lanes.emplace_back([&m, number] { run_executions(m, number); });
    std::thread opener([&] { open_models(m); }), revoker([&] { revoke_some(m); }), taker([&] { take(m, ended); }),
        pusher([&] { push(m); });
    pusher.join();
    opener.join();
    // Half of the rounds are cleared while something runs; the others run until the lanes are empty. The
    // taker may take what a clear would have found.
    int cleared = 0;
    if (seed % 2 != 0)
        cleared = int(m.lanes.clear().size());
    for (std::size_t number = 0; number <= EXECUTORS; number++) {
        Lane& lane = number < EXECUTORS ? *m.lanes.execute(number) : m.lanes.load;
        m.lanes.hub.lock();
        while (lane.length > 0)
            m.lanes.hub.wait();
        m.lanes.hub.unlock();
    }
    m.lanes.stop();
    for (std::thread& lane : lanes)
        lane.join();
    m.lanes.hub.lock();
    m.stop_all = true;
    m.lanes.hub.unlock();
    revoker.join();
    taker.join();
    ended += take_ended(m);
    demand(m.pushed == ORDERS, "not everything was pushed");
    demand(ended + cleared == ORDERS, "an order is lost");
}

}  // namespace

int main(int count, char** arguments) {
    const std::uint64_t seed = count > 1 ? std::strtoull(arguments[1], nullptr, 10) : 0;
    const long rounds = count > 2 ? std::atol(arguments[2]) : 10;
    for (long round = 0; round < rounds; round++)
        run_round(seed + std::uint64_t(round));
    std::printf("%ld rounds of %d orders\n", rounds, ORDERS);
    return 0;
}
