#include "controller/workers.h"

#include <utility>

namespace clockwork {

std::uint32_t Workers::joined(std::string_view identity, int fd, std::string_view key, WorkerId worker_id,
                              std::size_t device_count, Ns now) {
    ConnectionPtr connection = port_.greet(fd, key, now);
    if (connection == nullptr)
        return NO_SLOT;
    WorkerLink* worker = links_.make();
    worker->identity = identity;
    worker->connection = std::move(connection);
    worker->worker_id = worker_id;
    worker->heard_ns = now;
    worker->devices.resize(device_count);
    by_identity_.emplace(worker->identity, worker->slot);
    by_id_.insert(static_cast<std::uint32_t>(worker_id), worker->slot);
    return worker->slot;
}

void Workers::left(std::uint32_t slot, Ns now) {
    WorkerLink* worker = links_.at(slot);
    by_identity_.erase(worker->identity);
    port_.connections().forget(*worker->connection, now);
    by_id_.erase(static_cast<std::uint32_t>(worker->worker_id));
    links_.give_back(worker);
}

bool Workers::send(WorkerLink& worker, std::string_view header, bool more, Ns now) {
    if (!port_.address(worker.identity, worker.connection, now)) {
        lost_.push_back(worker.worker_id);
        return false;
    }
    port_.send(header, more);
    return true;
}

}  // namespace clockwork
