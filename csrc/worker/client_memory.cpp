#include "worker/client_memory.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <charconv>
#include <cstring>

namespace clockwork::worker {

namespace {

constexpr std::string_view MAGIC = "clockwork-memory";
constexpr std::string_view LINK = "/memfd:";

// An error as Python writes an OSError.
std::string error_text(int error, std::string_view path = {}) {
    std::string text = "[Errno " + std::to_string(error) + "] " + std::strerror(error);
    if (!path.empty())
        text.append(": '").append(path).append("'");
    return text;
}

template <typename Call>
auto without_signals(Call call) {
    auto found = call();
    while (found < 0 && errno == EINTR)
        found = call();
    return found;
}

// Returns the number of the mount of an open file; -1 if it cannot be read. Only the kernel is asked, because
// the file's file system may block.
std::int64_t mount_of(int descriptor) {
    const std::string path = "/proc/self/fdinfo/" + std::to_string(descriptor);
    const int file = without_signals([&] { return ::open(path.c_str(), O_RDONLY | O_CLOEXEC); });
    if (file < 0)
        return -1;
    char content[4096];
    const ssize_t count = without_signals([&] { return ::read(file, content, sizeof content); });
    ::close(file);
    const std::string_view text(content, count > 0 ? static_cast<std::size_t>(count) : 0);
    constexpr std::string_view FIELD = "mnt_id:\t";
    const std::size_t place = text.find(FIELD);
    std::int64_t mount = -1;
    if (place != text.npos)
        std::from_chars(content + place + FIELD.size(), content + text.size(), mount);
    return mount;
}

// Returns the number of the mount of all anonymous memory of ordinary pages; -2 if none can be made.
std::int64_t mount_of_memory() {
    static const std::int64_t mount = [] {
        const int descriptor = memfd_create("clockwork-worker", MFD_CLOEXEC);
        if (descriptor < 0)
            return std::int64_t(-2);
        const std::int64_t found = mount_of(descriptor);
        ::close(descriptor);
        return found;
    }();
    return mount;
}

// Opens the anonymous memory at a path below /proc. Returns its descriptor; -1, with a text, also for any
// other kind of file, which is neither opened nor asked of its file system.
int open_memory(const std::string& path, int mode, std::string& text) {
    char link[LINK.size()];
    const ssize_t length = ::readlink(path.c_str(), link, sizeof link);
    if (length < 0) {
        text = error_text(errno, path);
        return -1;
    }
    if (std::string_view(link, static_cast<std::size_t>(length)) != LINK) {
        text = "it is no memory";
        return -1;
    }
    const int seen = without_signals([&] { return ::open(path.c_str(), O_PATH | O_CLOEXEC); });
    if (seen < 0) {
        text = error_text(errno, path);
        return -1;
    }
    int found = -1;
    // Memory of huge pages lies on another mount. It is refused, because a read may find no free huge page.
    if (mount_of(seen) != mount_of_memory()) {
        text = "it is no memory of ordinary pages";
    } else {
        const std::string opened = "/proc/self/fd/" + std::to_string(seen);
        // Memory with a lease then fails at once instead of blocking
        found = without_signals([&] { return ::open(opened.c_str(), mode | O_NONBLOCK | O_CLOEXEC); });
        if (found < 0)
            text = error_text(errno, opened);
    }
    ::close(seen);
    return found;
}

// Compares in a time that does not depend on the bytes.
bool is_same(const char* first, const char* other, std::size_t bytes) {
    unsigned char difference = 0;
    for (std::size_t at = 0; at < bytes; ++at)
        difference |= static_cast<unsigned char>(first[at] ^ other[at]);
    return difference == 0;
}

}  // namespace

bool MemoryReference::read(std::string_view frame) {
    if (frame.size() != static_cast<std::size_t>(REFERENCE_BYTES))
        return false;
    const char* at = frame.data();
    const auto take = [&](void* target, std::size_t bytes) {
        std::memcpy(target, at, bytes);
        at += bytes;
    };
    take(&machine, sizeof machine);
    take(&memory.process, sizeof memory.process);
    take(&memory.descriptor, sizeof memory.descriptor);
    take(memory.key, sizeof memory.key);
    take(&offset, sizeof offset);
    take(&room.descriptor, sizeof room.descriptor);
    take(room.key, sizeof room.key);
    take(&room_bytes, sizeof room_bytes);
    room.process = memory.process;
    return true;
}

bool OpenMemory::open(const LentMemory& memory, int mode, std::string& flaw) {
    close();
    memory_ = memory;
    std::string text;
    descriptor_ =
        open_memory("/proc/" + std::to_string(memory.process) + "/fd/" + std::to_string(memory.descriptor), mode, text);
    if (descriptor_ < 0) {
        flaw = unusable(text);
        return false;
    }
    char head[MAGIC.size() + KEY_BYTES];
    const ssize_t count = without_signals([&] { return ::pread(descriptor_, head, sizeof head, 0); });
    if (count < 0)  // for example, its pages cannot be read from swap
        text = error_text(errno);
    else if (count != ssize_t(sizeof head) || !is_same(head, MAGIC.data(), MAGIC.size()) ||
             !is_same(head + MAGIC.size(), memory.key, KEY_BYTES))
        text = "it has not the key of the request";
    else
        return true;
    close();
    flaw = unusable(text);
    return false;
}

void OpenMemory::close() {
    if (descriptor_ >= 0)
        ::close(descriptor_);
    descriptor_ = -1;
}

std::int64_t OpenMemory::size(std::string& flaw) const {
    struct stat found;
    if (::fstat(descriptor_, &found) == 0)
        return found.st_size;
    flaw = unusable(error_text(errno));
    return -1;
}

std::int64_t OpenMemory::read(char* target, std::size_t bytes, std::int64_t offset, std::string& flaw) const {
    const ssize_t count = without_signals([&] { return ::pread(descriptor_, target, bytes, offset); });
    if (count < 0)
        flaw = unusable(error_text(errno));
    return count;
}

std::int64_t OpenMemory::write(const char* source, std::size_t bytes, std::int64_t offset, std::string& flaw) const {
    const ssize_t count = without_signals([&] { return ::pwrite(descriptor_, source, bytes, offset); });
    if (count < 0)
        flaw = unusable(error_text(errno));
    return count;
}

std::string OpenMemory::unusable(std::string_view why) const {
    return "this worker cannot use the memory of the client's process " + std::to_string(memory_.process) +
           " (descriptor " + std::to_string(memory_.descriptor) + "): " + std::string(why);
}

}  // namespace clockwork::worker
