#include "controller/messages.h"

namespace clockwork {

namespace {

bool begins(Reader& reader, std::uint32_t fields, std::int64_t tag) {
    std::uint32_t count = 0;
    std::int64_t found = 0;
    return reader.array(count) && count == fields + 1 && reader.integer(found) && found == tag;
}

// [dtype, shape, frame], after the array's count.
bool read_ref(Reader& reader, TensorRef& ref, std::vector<std::int64_t>& dims) {
    if (!reader.integer(ref.dtype) || ref.dtype < 0 || ref.dtype > DTYPE_MAX || !reader.array(ref.rank) ||
        ref.rank > RANK_MAX) {
        return false;
    }
    ref.first = static_cast<std::uint32_t>(dims.size());
    for (std::uint32_t place = 0; place < ref.rank; ++place) {
        std::int64_t dimension = 0;
        if (!reader.integer(dimension))
            return false;
        dims.push_back(dimension);
    }
    return reader.integer(ref.frame) && 0 <= ref.frame && ref.frame <= FRAME_MAX;
}

// A worker's clock may read less than nothing: it counts from wherever it likes.
bool is_time(std::int64_t value) { return -NEVER_NS < value && value < NEVER_NS; }

bool is_natural(std::int64_t value) { return 0 <= value && value < NEVER_NS; }

bool has_sizes(const TensorRef& ref, const std::vector<std::int64_t>& dims) {
    for (std::uint32_t place = 0; place < ref.rank; ++place) {
        if (!is_natural(dims[ref.first + place]))
            return false;
    }
    return true;
}

}  // namespace

std::int64_t tag_of(std::string_view header) {
    Reader reader(header.data(), header.size());
    std::uint32_t count = 0;
    std::int64_t tag = 0;
    return reader.array(count) && reader.integer(tag) ? tag : -1;
}

void write_dims(Writer& writer, const std::int64_t* dims, std::uint32_t rank) {
    writer.array(rank);
    for (std::uint32_t place = 0; place < rank; ++place)
        writer.integer(dims[place]);
}

bool is_status(std::int64_t number) {
    return (0 <= number && number <= static_cast<std::int64_t>(Status::FORBIDDEN)) ||
           (static_cast<std::int64_t>(Status::TOO_LATE) <= number &&
            number <= static_cast<std::int64_t>(Status::CRASHED));
}

bool InferRequestHeader::read(std::string_view header) {
    tensors.clear();
    dims.clear();
    std::uint32_t count = 0;
    Reader reader(header.data(), header.size());
    if (header.size() > REQUEST_HEADER_BYTES_MAX || !begins(reader, 5, TAG_INFER_REQUEST) ||
        !reader.integer(request_id) || request_id < 0 || !reader.text(model) || model.size() > REFERENCE_BYTES_MAX ||
        !is_utf8(model) || !reader.integer(slo_ns) || !is_natural(slo_ns) || !reader.integer(priority) ||
        priority < 0 || priority > PRIORITY_MAX || !reader.array(count) || count > TENSORS_MAX) {
        return false;
    }
    for (std::uint32_t place = 0; place < count; ++place) {
        TensorRef ref;
        std::uint32_t fields = 0;
        if (!reader.array(fields) || fields != 4 || !reader.text(ref.name) || ref.name.size() > NAME_BYTES_MAX ||
            !is_utf8(ref.name) || !read_ref(reader, ref, dims)) {
            return false;
        }
        tensors.push_back(ref);
    }
    return reader.done();
}

bool CancelHeader::read(std::string_view header) {
    Reader reader(header.data(), header.size());
    return begins(reader, 1, TAG_CANCEL) && reader.integer(request_id) && request_id >= 0 && reader.done();
}

bool ResultHeader::read(std::string_view header) {
    begin_ns = end_ns = duration_ns = 0;
    copy_in_ns = execute_ns = copy_out_ns = 0;
    parts.clear();
    tensors.clear();
    dims.clear();
    std::int64_t number = 0;
    Reader reader(header.data(), header.size());
    if (header.size() > RESULT_HEADER_BYTES_MAX || !begins(reader, 8, TAG_RESULT) || !reader.integer(action_id) ||
        action_id < 0 || !reader.integer(number) || !is_status(number) || !reader.text(text) ||
        text.size() > SENTENCE_BYTES_MAX || !is_utf8(text) || !reader.integer(received_ns) || !is_time(received_ns)) {
        return false;
    }
    status = static_cast<Status>(number);
    for (Ns* phase_ns : {&copy_in_ns, &execute_ns, &copy_out_ns}) {
        std::uint32_t count = 0;
        std::int64_t stamps[3];
        if (!reader.array(count) || count != 3)
            return false;
        for (std::int64_t& stamp : stamps) {
            if (!reader.integer(stamp) || !is_time(stamp))
                return false;
        }
        if (!is_natural(stamps[2]))
            return false;
        if (stamps[1] != 0) {
            begin_ns = begin_ns != 0 ? begin_ns : stamps[0];
            end_ns = stamps[1];
            *phase_ns = stamps[2];
            duration_ns += stamps[2];
            if (!is_natural(duration_ns))
                return false;
        }
    }
    std::uint32_t count = 0;
    if (!reader.array(count) || count > PARTS_MAX)
        return false;
    for (std::uint32_t place = 0; place < count; ++place) {
        std::uint32_t size = 0;
        if (!reader.array(size) || size > TENSORS_MAX)
            return false;
        for (std::uint32_t one = 0; one < size; ++one) {
            TensorRef ref;
            std::uint32_t fields = 0;
            if (!reader.array(fields) || fields != 3 || !read_ref(reader, ref, dims) || !has_sizes(ref, dims)) {
                return false;
            }
            tensors.push_back(ref);
        }
        parts.push_back(size);
    }
    return reader.done();
}

}  // namespace clockwork
