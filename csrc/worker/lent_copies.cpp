#include "worker/lent_copies.h"

#include <fcntl.h>

#include <algorithm>

#include "device/join.h"
#include "wire/shared.h"

namespace clockwork::worker {

std::int64_t shared_bytes(std::int64_t dtype, const std::int64_t* dims, std::size_t rank, std::string& flaw) {
    dtype &= ~SHARED;
    const int bits = dtype < 256 ? device::dtype_bits(static_cast<int>(dtype)) : 0;
    if (bits == 0) {
        flaw = "dtype " + std::to_string(dtype) + " is not one of ONNX's";
        return -1;
    }
    std::int64_t count = 1;
    bool is_empty = false;
    for (std::size_t axis = 0; axis < rank; ++axis) {
        is_empty = is_empty || dims[axis] == 0;
        if (dims[axis] < 0 || (dims[axis] > 0 && count > device::ELEMENTS_MOST / dims[axis])) {
            flaw = "no tensor has the shape " + device::shape_text(dims, static_cast<int>(rank));
            return -1;
        }
        count *= std::max<std::int64_t>(dims[axis], 1);
    }
    const std::int64_t bytes = is_empty ? 0 : (count * bits + 7) / 8;
    if (bytes > MESSAGE_BYTES_MAX) {
        flaw = "a tensor of " + std::to_string(bytes) + " bytes; at most " + std::to_string(MESSAGE_BYTES_MAX);
        return -1;
    }
    return bytes;
}

std::int64_t RoomPlaces::take(std::int64_t dtype, std::int64_t bytes) {
    if (dtype == device::STRING || bytes > room_bytes_ - used_)
        return 0;
    const std::int64_t place = FIRST_OFFSET + used_;
    used_ += wire::aligned(bytes);
    return place;
}

std::size_t LentCopy::piece(std::int64_t bytes) const {
    return std::min(piece_bytes_, static_cast<std::size_t>(bytes - done_));
}

bool InputCopy::step() {
    for (; next_ < inputs.size(); ++next_, done_ = 0) {
        Input& input = inputs[next_];
        if (!memory_.is_open() && !open(input))
            return false;
        if (done_ < input.bytes) {
            const std::int64_t count =
                memory_.read(input.target.data() + done_, piece(input.bytes), input.reference.offset + done_, flaw);
            if (count == 0)
                flaw = memory_.unusable("it has become shorter");
            if (count <= 0)
                return false;
            done_ += count;
            if (done_ < input.bytes)
                return true;
        }
        memory_.close();
    }
    return false;
}

// Opens the memory of an input and takes a place for the copy. False, with a flaw, if that cannot be.
bool InputCopy::open(Input& input) {
    if (!memory_.open(input.reference.memory, O_RDONLY, flaw))
        return false;
    const std::int64_t whole = memory_.size(flaw), offset = input.reference.offset;
    if (whole < 0)
        return false;
    if (offset < 0 || offset > whole - input.bytes) {
        flaw = std::to_string(input.bytes) + " bytes at " + std::to_string(offset) + " of a client's memory of " +
               std::to_string(whole) + " bytes";
        return false;
    }
    if (input.bytes > 0)
        input.target = snapshots_->take(owner, input.bytes, flaw);
    return flaw.empty();
}

bool OutputCopy::step() {
    if (!memory_.is_open() && !memory_.open(room_, O_RDWR, flaw))
        return false;
    for (; next_ < outputs.size(); ++next_, done_ = 0) {
        const Output& output = outputs[next_];
        const std::int64_t bytes = static_cast<std::int64_t>(output.bytes.size());
        if (done_ >= bytes)
            continue;
        const std::int64_t count = memory_.write(output.bytes.data() + done_, piece(bytes), output.place + done_, flaw);
        if (count < 0)
            return false;
        done_ += count;
        if (done_ < bytes)
            return true;
    }
    return false;
}

}  // namespace clockwork::worker
