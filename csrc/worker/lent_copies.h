// Copies of a request's inputs from its client's memory, and of its outputs to it.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "worker/client_memory.h"
#include "worker/copies.h"
#include "worker/output_block.h"
#include "worker/snapshots.h"

namespace clockwork::worker {

// Returns the bytes of a tensor in a client's memory, which may not be one of strings; -1, with a sentence,
// if no tensor has this type and shape. dtype: with SHARED added.
std::int64_t shared_bytes(std::int64_t dtype, const std::int64_t* dims, std::size_t rank, std::string& flaw);

// Finds the places of outputs in a room, one output after the other.
class RoomPlaces {
public:
    explicit RoomPlaces(std::int64_t room_bytes) : room_bytes_(room_bytes) {}

    // Returns the offset of an output; 0 for an output that does not fit or may not be written there.
    std::int64_t take(std::int64_t dtype, std::int64_t bytes);

private:
    std::int64_t room_bytes_;
    std::int64_t used_ = 0;
};

class LentCopy : public Copy {
public:
    LentCopy(std::int64_t owner, std::int64_t action_id, std::size_t piece_bytes)
        : Copy(owner), action_id(action_id), piece_bytes_(piece_bytes) {}

    void close() override { memory_.close(); }

    const std::int64_t action_id;

protected:
    // Returns the bytes of the next piece of a tensor.
    std::size_t piece(std::int64_t bytes) const;

    const std::size_t piece_bytes_;
    OpenMemory memory_;
    std::size_t next_ = 0;   // the index of the tensor that is being copied
    std::int64_t done_ = 0;  // the bytes of it that have been copied
};

class InputCopy : public LentCopy {
public:
    struct Input {
        std::size_t tensor;  // its index among the tensors of the INFER
        std::int64_t bytes;
        MemoryReference reference;
        SnapshotPlace target;  // set by step()
    };

    InputCopy(std::int64_t action_id, std::int64_t process, std::size_t piece_bytes,
              std::shared_ptr<Snapshots> snapshots)
        : LentCopy(process, action_id, piece_bytes), snapshots_(std::move(snapshots)) {}

    bool step() override;

    std::vector<Input> inputs;

private:
    bool open(Input& input);

    const std::shared_ptr<Snapshots> snapshots_;
};

class OutputCopy : public LentCopy {
public:
    struct Output {
        std::size_t tensor;  // its index among the tensors of the result
        std::string_view bytes;
        std::int64_t place;
    };

    // block: owns the bytes, or is empty: the device does. The owner of writes is another one than that of
    // reads: a write may wait for a lock that the client holds, a read does not.
    OutputCopy(std::int64_t action_id, const LentMemory& room, std::size_t piece_bytes, OutputBlock block)
        : LentCopy(~room.process, action_id, piece_bytes), room_(room), block_(std::move(block)) {}

    bool step() override;

    std::vector<Output> outputs;

private:
    const LentMemory room_;
    const OutputBlock block_;
};

}  // namespace clockwork::worker
