// Lanes, claims and the link under many threads, for ThreadSanitizer: every action that is pushed ends once,
// in the order of its lane unless it was revoked, and the link has at most one user.
//
// There is a single pusher, as for a device; two lanes, of which the first passes its actions on to the
// second; a thread that revokes; a thread that takes ended actions; and, at the end of each round, a clear
// and a stop while all of them run. Usage: threads_lanes SEED ROUNDS.
#include <cstdio>
#include <cstdlib>
#include <memory>
#include <mutex>
#include <thread>
#include <vector>

#include "device/claims.h"
#include "device/lane.h"
#include "device/link.h"
#include "threads.h"

using namespace clockwork::device;

namespace {

constexpr int ACTIONS = 400, QUEUED_MAX = 32, PAGES = 16, REVOKED = 1, DONE = 0;

struct Work : Action {
    Claim claim;
    int ended = 0;
};

struct Machine {
    explicit Machine(std::uint64_t seed) : seed(seed) { pages.resize(PAGES); }

    Hub hub;
    Lane first{hub, "first"}, second{hub, "second"};
    HostLink link;
    PageTable pages;
    std::vector<Work> works{ACTIONS};
    int pushed = 0;         // written by the pusher alone, until it is joined
    bool stop_all = false;  // guarded by the hub's lock
    bool inside = false;    // written by the link's holder alone
    std::uint64_t seed;
};

void hold_link(Machine& m) {
    m.link.take();
    demand(!m.inside, "two are in the link");
    m.inside = true;
    m.inside = false;
    m.link.leave();
}

// Loads hold the link for a moment, claim pages, and pass the action on; without free pages they end it.
void run_first(Machine& m) {
    char text[100];
    m.first.enter();
    while (Action* action = m.first.take(1000)) {
        Work& work = static_cast<Work&>(*action);
        hold_link(m);
        std::vector<std::int64_t> starts = {work.action_id % PAGES, work.action_id * 7 % PAGES};
        m.hub.lock();
        const bool is_taken = m.pages.take(work.claim, starts, text, sizeof text);
        m.hub.unlock();
        if (is_taken) {
            m.first.pass(work, m.second);
        } else {
            work.status = DONE;
            m.first.end(work);
        }
    }
}

void run_second(Machine& m) {
    m.second.enter();
    while (Action* action = m.second.take(0)) {
        Work& work = static_cast<Work&>(*action);
        m.hub.lock();
        for (std::int64_t start : work.claim.run_starts)
            demand(m.pages.owner(start) == &work.claim, "a page is another's");
        m.pages.release(work.claim);
        m.hub.unlock();
        work.status = DONE;
        m.second.end(work);
    }
}

// Another user of the link, as another device of this machine would be.
void use_link(Machine& m) {
    for (int turn = 0; turn < ACTIONS / 4; turn++)
        hold_link(m);
}

bool is_over(Machine& m) {
    std::lock_guard<Hub> held(m.hub);
    return m.stop_all;
}

void revoke_some(Machine& m) {
    std::uint64_t state = m.seed ^ 0x9e3779b97f4a7c15u;
    while (!is_over(m))
        m.first.revoke(std::int64_t(draw(state) % ACTIONS), REVOKED);
}

int take_ended(Machine& m) {
    int count = 0;
    for (Action* action = m.hub.take_ended(); action != nullptr; count++) {
        Action* next = action->next;  // read before another thread may take the action
        demand(action->status != PENDING, "an action ended without a status");
        demand(static_cast<Work*>(action)->ended++ == 0, "an action ended twice");
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
    for (Work& work : m.works) {
        work.earliest_ns = now_ns() + std::int64_t(draw(state) % 20) * 1000;
        while (!m.first.push(work, QUEUED_MAX))
            nap(1000);
        m.pushed++;
    }
}

void run_round(std::uint64_t seed) {
    const auto owned = std::make_unique<Machine>(seed);
    Machine& m = *owned;
    for (int place = 0; place < ACTIONS; place++) {
        m.works[place].action_id = place;
        for (int run = 0; run <= place % 2; run++)
            m.works[place].claim.add_run(1);
    }
    int ended = 0;
    std::thread first([&] { run_first(m); }), second([&] { run_second(m); }), other([&] { use_link(m); }),
        revoker([&] { revoke_some(m); }), taker([&] { take(m, ended); }), pusher([&] { push(m); });
    pusher.join();
    other.join();
    // Half of the rounds are cleared while something runs; the others run until the lanes are empty.
    int cleared = 0;
    for (Lane* lane : {&m.first, &m.second}) {
        if (seed % 2 != 0) {
            for (Action* action = lane->clear(); action != nullptr; action = action->next)
                cleared++;
        }
        m.hub.lock();
        while (lane->length > 0)
            m.hub.wait();
        m.hub.unlock();
    }
    m.first.stop();
    m.second.stop();
    first.join();
    second.join();
    m.hub.lock();
    m.stop_all = true;
    m.hub.unlock();
    revoker.join();
    taker.join();
    ended += take_ended(m);
    demand(m.pushed == ACTIONS, "not everything was pushed");
    demand(ended + cleared == ACTIONS, "an action is lost");
    demand(m.pages.held_count() <= 2 * cleared, "a page is held for nothing");
}

// A change between next_behind() and sleep() ends the sleep at once: each kind of change, and a pause without
// a change, in one thread.
void run_sleep() {
    constexpr std::int64_t LONG_NS = 3'000'000'000, SHORT_NS = 1'000'000;
    Hub hub;
    Lane lane{hub, "sleeper"};
    std::vector<Work> works(4);
    for (Work& work : works) {
        work.status = DONE;
        work.latest_ns = INT64_MAX;
    }
    demand(lane.push(works[0], QUEUED_MAX) && lane.take(0) == &works[0], "an action does not run");
    auto look = [&] {
        std::lock_guard<Hub> held(hub);
        const std::int64_t now = now_ns();
        demand(lane.next_behind(now, now + LONG_NS) == nullptr, "there is one that may begin");
    };
    auto sleeps_on = [&](std::int64_t ns) {
        const std::int64_t begin_ns = now_ns();
        lane.sleep(begin_ns + ns);
        return now_ns() - begin_ns >= ns;
    };
    look();
    demand(sleeps_on(SHORT_NS), "a sleep ended for nothing");
    look();
    lane.push(works[1], QUEUED_MAX);
    demand(!sleeps_on(LONG_NS), "a sleep missed what was pushed");
    {
        std::lock_guard<Hub> held(hub);
        lane.take_behind();
    }
    lane.end(works[0]);
    works[2].action_id = 2;
    works[2].earliest_ns = now_ns() + SHORT_NS;
    lane.push(works[2], QUEUED_MAX);
    look();
    nap(2 * SHORT_NS);
    demand(!sleeps_on(LONG_NS), "a sleep missed that a window has opened");
    works[3].action_id = 3;
    works[3].earliest_ns = INT64_MAX;
    lane.revoke(2, REVOKED);
    lane.push(works[3], QUEUED_MAX);
    look();
    lane.revoke(3, REVOKED);
    demand(!sleeps_on(LONG_NS), "a sleep missed what was revoked");
    look();
    lane.stop();
    demand(!sleeps_on(LONG_NS), "a sleep missed the stop");
}

}  // namespace

int main(int count, char** arguments) {
    const std::uint64_t seed = count > 1 ? std::strtoull(arguments[1], nullptr, 10) : 0;
    const long rounds = count > 2 ? std::atol(arguments[2]) : 10;
    run_sleep();
    for (long round = 0; round < rounds; round++)
        run_round(seed + std::uint64_t(round));
    std::printf("%ld rounds of %d actions\n", rounds, ACTIONS);
    return 0;
}
