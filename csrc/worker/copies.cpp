#include "worker/copies.h"

#include <sys/prctl.h>

#include <algorithm>
#include <chrono>
#include <condition_variable>
#include <deque>
#include <exception>
#include <mutex>
#include <system_error>
#include <thread>
#include <unordered_map>
#include <utility>

namespace clockwork::worker {

struct Copies::State {
    State(const CopyBounds& bounds, std::function<void()> wake) : bounds(bounds), wake(std::move(wake)) {}

    const CopyBounds bounds;
    const std::function<void()> wake;
    std::mutex mutex;
    std::condition_variable wanted;  // an owner has its turn, or the threads are to end
    std::condition_variable gone;    // a thread has ended
    // By owner, the pending copy first
    std::unordered_map<std::int64_t, std::deque<std::shared_ptr<Copy>>> waiting;
    std::deque<std::int64_t> turns;  // owners with work, each at most once
    std::vector<std::shared_ptr<Copy>> ended;
    std::size_t count = 0;
    std::size_t threads = 0;
    bool is_closed = false;
};

namespace {

std::string too_many(const std::string& count, std::size_t most) {
    return count + " already, at most " + std::to_string(most) + " may";
}

// Copies a piece. Returns whether there is more.
bool advance(Copy& copy) {
    try {
        if (!copy.is_dropped && copy.step())
            return true;
    } catch (const std::exception& error) {  // no memory: it belongs to the caller, and other copies go on
        copy.flaw = error.what();
        copy.is_defect = true;
    }
    copy.close();
    return false;
}

}  // namespace

Copies::Copies(const CopyBounds& bounds, std::function<void()> wake)
    : state_(std::make_shared<State>(bounds, std::move(wake))) {}

std::string Copies::submit(std::shared_ptr<Copy> copy) {
    State& state = *state_;
    std::lock_guard<std::mutex> held(state.mutex);
    if (state.threads == 0) {
        const std::string flaw = start();
        if (!flaw.empty())
            return flaw;
    }
    const std::int64_t owner = copy->owner;
    const auto mine = state.waiting.find(owner);
    const std::size_t count = mine != state.waiting.end() ? mine->second.size() : 0;
    if (count >= state.bounds.owner_copies)
        return too_many(std::to_string(count) + " copies of process " + std::to_string(owner) + "'s memory wait",
                        state.bounds.owner_copies);
    if (state.count >= state.bounds.copies)
        return too_many(std::to_string(state.count) + " copies of clients' memory wait", state.bounds.copies);
    ++state.count;
    if (mine != state.waiting.end()) {
        mine->second.push_back(std::move(copy));
        return {};
    }
    state.waiting[owner].push_back(std::move(copy));
    state.turns.push_back(owner);
    state.wanted.notify_one();
    return {};
}

// Starts the threads, as many as the system allows. Returns a sentence if it allows none.
std::string Copies::start() {
    while (state_->threads < state_->bounds.threads) {
        try {
            std::thread([state = state_] { work(state); }).detach();
        } catch (const std::system_error& error) {  // no memory, or a limit of the user's processes
            if (state_->threads == 0)
                return std::string("there is no thread for copies of clients' memory: ") + error.what();
            break;
        }
        ++state_->threads;
    }
    return {};
}

void Copies::drop(Copy& copy) {
    State& state = *state_;
    copy.is_dropped = true;
    std::lock_guard<std::mutex> held(state.mutex);
    const auto mine = state.waiting.find(copy.owner);
    if (mine == state.waiting.end() || mine->second.front().get() == &copy)
        return;
    const auto found = std::find_if(mine->second.begin(), mine->second.end(),
                                    [&](const std::shared_ptr<Copy>& other) { return other.get() == &copy; });
    if (found == mine->second.end())
        return;
    mine->second.erase(found);  // it has not begun
    --state.count;
}

std::vector<std::shared_ptr<Copy>> Copies::take_ended() {
    std::lock_guard<std::mutex> held(state_->mutex);
    return std::exchange(state_->ended, {});
}

void Copies::close() {
    State& state = *state_;
    std::unique_lock<std::mutex> held(state.mutex);
    state.is_closed = true;
    state.wanted.notify_all();
    state.gone.wait_for(held, std::chrono::nanoseconds(state.bounds.close_ns), [&] { return state.threads == 0; });
}

void Copies::work(const std::shared_ptr<State>& shared) {
    State& state = *shared;
    prctl(PR_SET_NAME, "cw-copies", 0, 0, 0);
    std::unique_lock<std::mutex> held(state.mutex);
    for (;;) {
        state.wanted.wait(held, [&] { return state.is_closed || !state.turns.empty(); });
        if (state.is_closed)
            break;
        const std::int64_t owner = state.turns.front();
        state.turns.pop_front();
        std::deque<std::shared_ptr<Copy>>& mine = state.waiting[owner];
        for (bool has_more = true; has_more && !state.is_closed;) {
            Copy& copy = *mine.front();
            held.unlock();
            const bool goes_on = advance(copy);
            held.lock();
            if (!goes_on) {
                state.ended.push_back(std::move(mine.front()));
                mine.pop_front();
                --state.count;
                has_more = !mine.empty();
                if (!has_more)
                    state.waiting.erase(owner);
                if (!state.is_closed)
                    state.wake();
            }
            if (has_more && !state.turns.empty()) {
                state.turns.push_back(owner);
                break;
            }
        }
    }
    --state.threads;
    state.gone.notify_all();
}

}  // namespace clockwork::worker
