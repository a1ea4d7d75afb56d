// The flight recorder's ring under two threads, for ThreadSanitizer: one thread writes steps of every kind,
// the other reads them piece by piece. The bytes read are whole steps; after steps that were forgotten
// unread, reading continues at the beginning of a step. Usage: threads_recorder SEED STEPS.
#include <atomic>
#include <cstdio>
#include <cstdlib>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "random.h"
#include "recording/recorder.h"
#include "steps.h"

using namespace clockwork;

namespace {

constexpr std::size_t RING_BYTES = 256 << 10;

[[noreturn]] void broken(const char* what) {
    std::fprintf(stderr, "%s\n", what);
    std::exit(1);
}

class Source {
public:
    Source(std::uint64_t seed, std::shared_ptr<Ring> ring) : random_(seed, 1), recorder_(std::move(ring)) {}

    void step(Ns now) {
        std::string text(random_.below(100) == 0 ? 70'000 : random_.below(40), 'x');
        for (std::uint64_t left = random_.below(5); left > 0; --left)
            event(now, text);
        recorder_.settle(now + static_cast<Ns>(random_.below(3)));
        for (std::uint64_t left = random_.below(7); left > 0; --left) {
            Command command;
            command.kind = static_cast<CommandKind>(random_.below(12));
            command.action_id = number();
            command.request_id = number();
            command.latest_ns = static_cast<Ns>(number() >> 1);
            if (command.kind == CommandKind::SEND_INFER || command.kind == CommandKind::SEND_LOAD)
                command.count = static_cast<std::uint32_t>(random_.below(300));
            commands_.ids.assign(command.count, number());
            commands_.runs.assign(command.count, 7);
            recorder_.ordered(command, commands_, text, recorder_.know_shape(3, {2, 5, -1, 0}));
        }
        recorder_.end();
    }

private:
    void event(Ns now, const std::string& text) {
        switch (random_.below(4)) {
            case 0: {
                Request request;
                request.id = number();
                request.bytes = number();
                recorder_.arrived(now, request, recorder_.know_shape(1, {4, 1, 3, 224, 224}));
                break;
            }
            case 1: recorder_.cancelled(now, number()); break;
            case 2: {
                ActionResult result;
                result.action_id = number();
                result.end_ns = static_cast<Ns>(number());
                recorder_.action_done(now, result, text);
                break;
            }
            default: recorder_.time_ns(now), recorder_.noted("\x92\x09\x01");
        }
    }
    std::uint64_t number() { return ~std::uint64_t{0} >> random_.below(64); }

    Random random_;
    Recorder recorder_;
    Commands commands_;
};

}  // namespace

int main(int count, char** arguments) {
    if (count != 3)
        broken("usage: threads_recorder SEED STEPS");
    std::uint64_t seed = std::strtoull(arguments[1], nullptr, 10);
    std::uint64_t steps = std::strtoull(arguments[2], nullptr, 10);
    auto ring = std::make_shared<Ring>(RING_BYTES, 20'000);
    std::atomic<bool> is_over = false;
    std::thread writer([&] {
        Source source(seed, ring);
        for (std::uint64_t number = 0; number < steps; ++number)
            source.step(static_cast<Ns>(1'000'000 + number));
        is_over = true;
    });
    Random random(seed, 2);
    std::uint64_t place = 0;
    std::uint64_t read = 0;
    std::uint64_t gaps = 0;
    std::string piece;
    std::string rest;
    for (bool was_over = false;;) {
        std::uint64_t found = ring->read(place, 1 + random.below(9'000), piece);
        if (found != place) {
            ++gaps;
            rest.clear();
        }
        place = found + piece.size();
        rest += piece;
        std::int64_t more = take_steps(rest);
        if (more < 0)
            broken("what was read is no step");
        read += static_cast<std::uint64_t>(more);
        RingState state = ring->state();
        if (state.begin > state.end || state.end - state.begin > RING_BYTES || place > state.end)
            broken("the ring's places are wrong");
        if (random.below(50) == 0) {
            place = random.below(2) == 0 ? ring->seek(state.oldest_ns + 100) : ring->step_from(state.begin + 1'000);
            rest.clear();
        }
        if (was_over && piece.empty())
            break;
        was_over = is_over;
    }
    writer.join();
    if (!rest.empty())
        broken("the stream ends within a step");
    if (ring->state().steps != steps)
        broken("a step is missing");
    std::printf("%llu steps, %llu read, %llu gaps\n", static_cast<unsigned long long>(steps),
                static_cast<unsigned long long>(read), static_cast<unsigned long long>(gaps));
}
