#include "controller/messages.h"

#include <algorithm>

namespace clockwork {

namespace {

constexpr std::int64_t ANY_LEAST = INT64_MIN;
constexpr std::int64_t ANY_MOST = INT64_MAX;

// Reads a header value by value. `place(level, number)` says where in it the next value is; what is not as it must be is
// noted in the flaw, with that place.
class FieldReader {
public:
    FieldReader(std::string_view header, HeaderFlaw& flaw)
        : header_(header), reader_(header.data(), header.size()), flaw_(flaw) {
        flaw_.kind = HeaderFlaw::NONE;
        flaw_.depth = 0;
    }

    // The array's head, the tag and the first field, which is whom the message is about. `id`: that field, 0 where it is
    // none, whatever else is wrong with the header.
    bool begin(std::int64_t tag, std::uint32_t fields, std::size_t bytes_max, std::int64_t& id) {
        id = 0;
        flaw_.tag = tag;
        std::uint32_t count = 0;
        std::int64_t found = 0;
        if (!reader_.array(count) || count == 0 || !reader_.integer(found) || found != tag)
            return fail(HeaderFlaw::OTHER);
        Reader ahead = reader_;
        if (count < 2 || !ahead.integer(id) || id < 0)
            id = 0;
        if (header_.size() > bytes_max)
            return fail(HeaderFlaw::TOO_LARGE);
        flaw_.count = count - 1;
        if (count != fields + 1)
            return fail(HeaderFlaw::FIELDS);
        place(0, 0);
        std::int64_t first = 0;
        return integer(first, 0, ANY_MOST);
    }

    void place(std::uint32_t level, std::uint32_t number) {
        flaw_.path[level] = number;
        flaw_.depth = level + 1;
    }

    bool integer(std::int64_t& value, std::int64_t least, std::int64_t most) {
        std::size_t left = reader_.left();
        return (reader_.integer(value) && least <= value && value <= most) || miss(left);
    }

    bool text(std::string_view& value, std::size_t bytes_max) {
        std::size_t left = reader_.left();
        if (!reader_.text(value) || value.size() > bytes_max)
            return miss(left);
        return is_utf8(value) || fail(HeaderFlaw::NOT_UTF8);
    }

    bool list(std::uint32_t& count, std::uint32_t count_max) {
        std::size_t left = reader_.left();
        return (reader_.array(count) && count <= count_max) || miss(left);
    }

    bool row(std::uint32_t fields) {
        std::size_t left = reader_.left();
        std::uint32_t count = 0;
        return (reader_.array(count) && count == fields) || miss(left);
    }

    bool end() { return reader_.done() || fail(HeaderFlaw::LONGER); }

private:
    bool fail(HeaderFlaw::Kind kind) {
        flaw_.kind = kind;
        return false;
    }

    // left: how many bytes there were from the value on.
    bool miss(std::size_t left) {
        flaw_.offset = header_.size() - left;
        Reader again(header_.data() + flaw_.offset, left);
        Head head;
        return fail(again.head(head) ? HeaderFlaw::FORM : HeaderFlaw::CUT_OFF);
    }

    std::string_view header_;
    Reader reader_;
    HeaderFlaw& flaw_;
};

// dtype, shape and frame, which are the fields of a tensor from `first` on; its dimensions are at least `least`.
bool read_tensor(FieldReader& reader, std::uint32_t level, std::uint32_t first, std::int64_t least, std::int64_t most,
                 TensorRef& ref, std::vector<std::int64_t>& dims) {
    reader.place(level, first);
    if (!reader.integer(ref.dtype, 0, DTYPE_MAX))
        return false;
    reader.place(level, first + 1);
    if (!reader.list(ref.rank, RANK_MAX))
        return false;
    ref.first = static_cast<std::uint32_t>(dims.size());
    for (std::uint32_t axis = 0; axis < ref.rank; ++axis) {
        std::int64_t dimension = 0;
        reader.place(level + 1, axis);
        if (!reader.integer(dimension, least, most))
            return false;
        dims.push_back(dimension);
    }
    reader.place(level, first + 2);
    return reader.integer(ref.frame, 0, FRAME_MAX);
}

}  // namespace

std::int64_t tag_of(std::string_view header) {
    Reader reader(header.data(), header.size());
    std::uint32_t count = 0;
    std::int64_t tag = 0;
    return reader.array(count) && count > 0 && reader.integer(tag) ? tag : -1;
}

void write_dims(Writer& writer, const std::int64_t* dims, std::uint32_t rank) {
    writer.array(rank);
    for (std::uint32_t place = 0; place < rank; ++place)
        writer.integer(dims[place]);
}

bool InferRequestHeader::read(std::string_view header, HeaderFlaw& flaw) {
    tensors.clear();
    dims.clear();
    FieldReader reader(header, flaw);
    if (!reader.begin(TAG_INFER_REQUEST, 5, REQUEST_HEADER_BYTES_MAX, request_id))
        return false;
    reader.place(0, 1);
    if (!reader.text(model, REFERENCE_BYTES_MAX))
        return false;
    reader.place(0, 2);
    if (!reader.integer(slo_ns, 0, NEVER_NS - 1))
        return false;
    reader.place(0, 3);
    if (!reader.integer(priority, 0, PRIORITY_MAX))
        return false;
    reader.place(0, 4);
    std::uint32_t count = 0;
    if (!reader.list(count, TENSORS_MAX))
        return false;
    for (std::uint32_t place = 0; place < count; ++place) {
        TensorRef& ref = tensors.emplace_back();
        reader.place(1, place);
        if (!reader.row(4))
            return false;
        reader.place(2, 0);
        if (!reader.text(ref.name, NAME_BYTES_MAX) || !read_tensor(reader, 2, 1, ANY_LEAST, ANY_MOST, ref, dims)) {
            return false;
        }
    }
    return reader.end();
}

bool CancelHeader::read(std::string_view header, HeaderFlaw& flaw) {
    FieldReader reader(header, flaw);
    return reader.begin(TAG_CANCEL, 1, CANCEL_HEADER_BYTES_MAX, request_id) && reader.end();
}

bool ResultHeader::read(std::string_view header, HeaderFlaw& flaw) {
    begin_ns = end_ns = duration_ns = 0;
    copy_in_ns = execute_ns = copy_out_ns = 0;
    parts.clear();
    tensors.clear();
    dims.clear();
    FieldReader reader(header, flaw);
    if (!reader.begin(TAG_RESULT, 8, RESULT_HEADER_BYTES_MAX, action_id))
        return false;
    reader.place(0, 1);
    if (!reader.integer(status_number, 0, STATUS_NUMBER_MAX))
        return false;
    status = static_cast<Status>(status_number);
    reader.place(0, 2);
    if (!reader.text(text, SENTENCE_BYTES_MAX))
        return false;
    reader.place(0, 3);
    // A worker's clock may read less than nothing: it counts from wherever it likes.
    if (!reader.integer(received_ns, 1 - NEVER_NS, NEVER_NS - 1))
        return false;
    std::uint32_t field = 4;
    std::uint64_t total_ns = 0;
    for (Ns* phase_ns : {&copy_in_ns, &execute_ns, &copy_out_ns}) {
        std::int64_t stamps[3];
        reader.place(0, field++);
        if (!reader.row(3))
            return false;
        for (std::uint32_t place = 0; place < 3; ++place) {
            reader.place(1, place);
            if (!reader.integer(stamps[place], place < 2 ? 1 - NEVER_NS : 0, NEVER_NS - 1))
                return false;
        }
        if (stamps[1] != 0) {
            begin_ns = begin_ns != 0 ? begin_ns : stamps[0];
            end_ns = stamps[1];
            *phase_ns = stamps[2];
            total_ns += static_cast<std::uint64_t>(stamps[2]);
        }
    }
    duration_ns = static_cast<Ns>(std::min(total_ns, static_cast<std::uint64_t>(NEVER_NS)));
    reader.place(0, 7);
    std::uint32_t count = 0;
    if (!reader.list(count, PARTS_MAX))
        return false;
    for (std::uint32_t part = 0; part < count; ++part) {
        std::uint32_t size = 0;
        reader.place(1, part);
        if (!reader.list(size, TENSORS_MAX))
            return false;
        for (std::uint32_t place = 0; place < size; ++place) {
            TensorRef& ref = tensors.emplace_back();
            reader.place(2, place);
            if (!reader.row(3) || !read_tensor(reader, 3, 0, 0, NEVER_NS - 1, ref, dims))
                return false;
        }
        parts.push_back(size);
    }
    return reader.end();
}

}  // namespace clockwork
