// Opens, checks, reads and writes the memory of clients on this machine: clockwork/wire/shared.py.
//
// The memory's owner is not trusted: a client may write to the memory, lock it or truncate it at any time.
// Therefore it is never mapped, and no tensor is checked or computed on in place. Threads that may block
// (worker/copies.h) read inputs into the worker's own memory and write outputs.
//
// A file is known to be anonymous memory before it is opened: opening a FIFO, a device, a file of a remote or
// user file system or a file with a lease may block or have side effects.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>

#include "wire/bounds.h"

namespace clockwork::worker {

// A client's memory: the process, its descriptor, and the key with which the memory begins.
struct LentMemory {
    std::int64_t process = 0;
    std::int64_t descriptor = 0;
    char key[KEY_BYTES] = {};
};

// The location of an input, and the room for its request's outputs.
struct MemoryReference {
    std::int64_t machine = 0;
    LentMemory memory;
    std::int64_t offset = 0;
    LentMemory room;
    std::int64_t room_bytes = 0;  // for outputs, which begin at FIRST_OFFSET; 0: there is no room

    // Reads a frame. False if it has another size than REFERENCE_BYTES.
    bool read(std::string_view frame);
};

// A client's memory while it is open.
class OpenMemory {
public:
    OpenMemory() = default;
    ~OpenMemory() { close(); }
    OpenMemory(const OpenMemory&) = delete;
    OpenMemory& operator=(const OpenMemory&) = delete;

    bool is_open() const { return descriptor_ >= 0; }
    // Opens the memory if it begins with the key. mode: O_RDONLY or O_RDWR. False, with a sentence, if not.
    bool open(const LentMemory& memory, int mode, std::string& flaw);
    void close();
    // Returns the bytes of the whole memory; -1, with a sentence, on failure.
    std::int64_t size(std::string& flaw) const;
    // Each copies at most this many bytes and returns how many; -1, with a sentence, on failure.
    std::int64_t read(char* target, std::size_t bytes, std::int64_t offset, std::string& flaw) const;
    std::int64_t write(const char* source, std::size_t bytes, std::int64_t offset, std::string& flaw) const;
    // Returns a sentence that says why the memory cannot be used.
    std::string unusable(std::string_view why) const;

private:
    LentMemory memory_;
    int descriptor_ = -1;
};

}  // namespace clockwork::worker
