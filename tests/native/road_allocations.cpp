// Counts the allocations of a worker's road for an INFER in steady state, and prints the number. Allocations
// of the sockets and of the device are not counted: this program has others than libzmq's and a device's.
#include <cstdio>
#include <cstdlib>
#include <new>
#include <string>
#include <vector>

#include "worker_rig.h"

using namespace clockwork;

namespace {

std::atomic<std::int64_t> allocations{0};

}  // namespace

[[gnu::noinline]] void* operator new(std::size_t bytes) {
    if (Uncounted::depth == 0)
        ++allocations;
    void* const found = std::malloc(bytes);
    if (found == nullptr)
        throw std::bad_alloc();
    return found;
}
void* operator new(std::size_t bytes, const std::nothrow_t&) noexcept {
    if (Uncounted::depth == 0)
        ++allocations;
    return std::malloc(bytes);
}
[[gnu::noinline]] void operator delete(void* data) noexcept { std::free(data); }
[[gnu::noinline]] void operator delete(void* data, std::size_t) noexcept { std::free(data); }

int main() {
    constexpr int WARM = 50, COUNTED = 1000;
    zmq = &fake::api();
    Socket socket, monitor;
    LaneDevice device;
    device.fails = false;
    worker::Road road(DealerSocket(&socket, &monitor), {socket.fd, monitor.fd}, {}, road_bounds());
    road.add_device(device.port(), RUN_AHEAD);
    road.add_outlet(device.outlet());
    road.model_ready(MODEL, nullptr);
    road.serve(true);
    road.start();
    std::int64_t before = 0;
    for (int action = 1; action <= WARM + COUNTED; ++action) {
        const Uncounted uncounted;
        if (action == WARM + 1)
            before = allocations;
        socket.arrive(infer(action, ""));
        while (socket.take_sent().empty())
            device::nap(10'000);
    }
    const std::int64_t found = allocations - before;
    road.stop();
    device.lane.stop();
    device.thread.join();
    std::printf("%.3f allocations per INFER\n", static_cast<double>(found) / COUNTED);
    return 0;
}
