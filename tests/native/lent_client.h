// A client of this process that lends memory to a worker.
#pragma once

#include <sys/mman.h>
#include <unistd.h>

#include <cstdint>
#include <cstring>
#include <string>

#include "threads.h"
#include "wire/bounds.h"

namespace clockwork {

// A client's memory with the bytes 0, 1, 2 ... behind its key.
struct LentClient {
    LentClient() {
        demand(ftruncate(fd, 4096) == 0, "no memory");
        char content[16 + KEY_BYTES + 32 + 64] = {};
        std::memcpy(content, "clockwork-memory", 16);
        std::memset(content + 16, 7, KEY_BYTES);
        for (int at = 0; at < 64; ++at)
            content[64 + at] = static_cast<char>(at);
        demand(pwrite(fd, content, sizeof content, 0) == ssize_t(sizeof content), "no memory");
    }
    ~LentClient() { close(fd); }
    LentClient(const LentClient&) = delete;
    LentClient& operator=(const LentClient&) = delete;

    std::string reference(std::int64_t offset, std::int64_t room_bytes, std::int64_t process = getpid()) const {
        std::string found;
        const auto add = [&](std::int64_t value) { found.append(reinterpret_cast<const char*>(&value), 8); };
        add(1);
        add(process);
        add(fd);
        found.append(KEY_BYTES, 7);
        add(offset);
        add(fd);
        found.append(KEY_BYTES, 7);
        add(room_bytes);
        return found;
    }

    std::string bytes(std::int64_t offset, std::size_t size) const {
        std::string found(size, 0);
        demand(pread(fd, found.data(), size, offset) == ssize_t(size), "no memory");
        return found;
    }

    int fd = memfd_create("client", MFD_CLOEXEC);
};

}  // namespace clockwork
