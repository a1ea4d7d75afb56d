// A worker's road between a socket, a device of one lane and a thread that stands for Python, for sanitizers:
// every action that is sent is answered once, unless the session ends meanwhile, and every order is freed.
//
// The socket is a queue of this process with a descriptor. The lane's thread ends orders, and is often the
// road's listener; another thread sends, revokes, asks and resets. Usage: threads_road SEED ROUNDS.
#include <array>
#include <cstdio>
#include <cstdlib>
#include <string>
#include <vector>

#include "lent_client.h"
#include "worker_rig.h"

using namespace clockwork;

namespace {

void play(std::uint64_t seed, bool resets) {
    Socket socket, monitor;
    LaneDevice device;
    const worker::RoadBounds bounds = road_bounds();
    const LentClient client;
    {
        worker::Road road(DealerSocket(&socket, &monitor), {socket.fd, monitor.fd}, {}, bounds);
        road.add_device(device.port(), RUN_AHEAD);
        road.add_outlet(device.outlet());
        road.model_ready(MODEL, nullptr);
        road.model_whole(MODEL);
        road.serve(true);
        road.start();
        std::uint64_t state = seed;
        std::vector<int> answers(ACTIONS + 1);
        int count = 0;
        const auto collect = [&] {
            for (const std::vector<std::string>& message : socket.take_sent()) {
                HeaderFlaw flaw;
                wire::Result result;
                if (!result.read(message[0], flaw))
                    continue;  // handled by the other thread
                demand(++answers[static_cast<std::size_t>(result.action_id)] == 1, "an action is answered twice");
                ++count;
            }
        };
        for (int action = 1; action <= ACTIONS; ++action) {
            state = state * 6364136223846793005u + 1442695040888963407u;
            const std::int64_t room_bytes = action % 9 == 0 ? 8 : 0;
            socket.arrive(infer(action, action % 3 == 0 ? client.reference(FIRST_OFFSET, room_bytes) : ""));
            switch (state >> 60) {
                case 0: socket.arrive(revocation(action)); break;
                case 1: road.holds(action); break;
                case 2: road.send("other", {}); break;
                case 3: road.take_notices(); break;
                case 4: road.tidy(road.jitter_p99_ns()); break;
                case 5: collect(); break;
                case 6:
                    if (resets)
                        road.reset();
                    break;
                default: break;
            }
        }
        while (!resets && count < ACTIONS) {
            collect();
            device::nap(50'000);
        }
        demand(resets || road.count() == 0, "an action is held although it was answered");
        demand(resets || road.copied_bytes() == 0, "copies of inputs are held");
        road.stop();
        collect();
    }
    device.lane.stop();
    device.thread.join();
    // orders that ended after the road had stopped
    for (Action* action = device.hub.take_ended(); action != nullptr;) {
        Action* next = action->next;
        device.free(static_cast<Order*>(action));
        action = next;
    }
    for (Action* action = device.lane.head; action != nullptr;) {
        Action* next = action->next;
        device.free(static_cast<Order*>(action));
        action = next;
    }
    demand(device.living == 0, "an order is not freed");
}

}  // namespace

int main(int argc, char** argv) {
    demand(argc == 3, "usage: threads_road SEED ROUNDS");
    zmq = &fake::api();
    const std::uint64_t seed = std::strtoull(argv[1], nullptr, 10);
    const int rounds = std::atoi(argv[2]);
    for (int round = 0; round < rounds; ++round)
        play(seed + static_cast<std::uint64_t>(round), round % 2 == 1);
    std::printf("%d rounds\n", rounds);
    return 0;
}
