#include "recording/recorder.h"

#include <algorithm>
#include <cstring>

#include "recording/records.h"

namespace clockwork {

namespace {

// Bound on the numbers and heads of a record, without those of shapes, texts and lists.
constexpr std::size_t NUMBERS_BYTES_MAX = 16 * 9;

}  // namespace

// ----- the ring ----------------------------------------------------------------------------------

Ring::Ring(std::size_t bytes_max, Ns span_ns)
    : bytes_max_(bytes_max),
      span_ns_(span_ns),
      memory_(bytes_max != 0 ? new char[bytes_max] : nullptr),
      marks_(bytes_max / MARK_BYTES + 2) {}

void Ring::append(Ns at, std::initializer_list<std::string_view> parts) {
    std::lock_guard lock(mutex_);
    ++steps_;
    std::size_t bytes = 0;
    for (std::string_view part : parts)
        bytes += part.size();
    if (bytes > bytes_max_) {
        end_ += bytes;
        begin_ = end_;
        oldest_.at = 0;
        mark_count_ = 0;
        return;
    }
    while (end_ - begin_ + bytes > bytes_max_)
        drop_oldest();
    if (mark_count_ == 0 || end_ - mark(mark_count_ - 1).place >= MARK_BYTES) {
        marks_[(first_mark_ + mark_count_) % marks_.size()] = {end_, at};
        ++mark_count_;
    }
    bool was_empty = begin_ == end_;
    for (std::string_view part : parts)
        put(part);
    if (was_empty)
        oldest_ = step_at(begin_);
    while (begin_ != end_ && oldest_.at < at - span_ns_)
        drop_oldest();
}

void Ring::put(std::string_view part) {
    std::size_t place = end_ % bytes_max_;
    std::size_t before = std::min(part.size(), bytes_max_ - place);
    std::memcpy(memory_.get() + place, part.data(), before);
    if (before < part.size())
        std::memcpy(memory_.get(), part.data() + before, part.size() - before);
    end_ += part.size();
}

void Ring::drop_oldest() {
    begin_ = oldest_.end;
    if (mark_count_ != 0 && mark(0).place < begin_) {
        first_mark_ = (first_mark_ + 1) % marks_.size();
        --mark_count_;
    }
    if (begin_ != end_) {
        oldest_ = step_at(begin_);
    } else {
        oldest_.at = 0;
    }
}

// Time at which the step that begins at a place was told, and the place of its end.
Ring::Step Ring::step_at(std::uint64_t place) const {
    unsigned kind = byte(place++);
    std::uint64_t bytes = number(place, kind == 0xc4 ? 1 : kind == 0xc5 ? 2 : 4);
    std::uint64_t end = place + bytes;
    ++place;  // array head of four elements
    kind = byte(place++);
    bool is_long = 0xcc <= kind && kind <= 0xcf;
    return {is_long ? static_cast<Ns>(number(place, 1u << (kind - 0xcc))) : static_cast<Ns>(kind), end};
}

std::uint64_t Ring::number(std::uint64_t& place, unsigned bytes) const {
    std::uint64_t found = 0;
    for (; bytes > 0; --bytes)
        found = found << 8 | byte(place++);
    return found;
}

std::uint64_t Ring::read(std::uint64_t since, char* target, std::size_t& bytes) const {
    std::lock_guard lock(mutex_);
    std::uint64_t from = std::clamp(since, begin_, end_);
    bytes = std::min<std::uint64_t>(end_ - from, bytes);
    if (bytes == 0)
        return from;
    std::size_t place = from % bytes_max_;
    std::size_t before = std::min(bytes, bytes_max_ - place);
    std::memcpy(target, memory_.get() + place, before);
    std::memcpy(target + before, memory_.get(), bytes - before);
    return from;
}

std::uint64_t Ring::read(std::uint64_t since, std::size_t bytes_max, std::string& found) const {
    // outside of the lock, for which the appending thread would wait
    found.resize(std::min(bytes_max, bytes_max_));
    std::size_t bytes = found.size();
    std::uint64_t place = read(since, found.data(), bytes);
    found.resize(bytes);
    return place;
}

std::uint64_t Ring::seek(Ns at) const {
    std::lock_guard lock(mutex_);
    std::size_t low = 0;
    std::size_t high = mark_count_;
    while (low < high) {  // the first mark with a later time
        std::size_t middle = (low + high) / 2;
        if (mark(middle).at > at)
            high = middle;
        else
            low = middle + 1;
    }
    return low == 0 ? begin_ : mark(low - 1).place;
}

std::uint64_t Ring::step_from(std::uint64_t place) const {
    std::lock_guard lock(mutex_);
    if (place <= begin_)
        return begin_;
    for (std::size_t index = 0; index < mark_count_; ++index) {
        if (mark(index).place >= place)
            return mark(index).place;
    }
    return end_;
}

Ns Ring::step_ns(std::uint64_t place) const {
    std::lock_guard lock(mutex_);
    return begin_ <= place && place < end_ ? step_at(place).at : 0;
}

RingState Ring::state() const {
    std::lock_guard lock(mutex_);
    return {begin_, end_, oldest_.at, steps_, bytes_max_};
}

// ----- events ------------------------------------------------------------------------------------

template <typename Event>
void Recorder::write(const Event& event) {
    const Ns time = time_ns(event.now_ns);
    ++event_count_;
    event.write(events_, time);
}

void Recorder::arrived(Ns now, const Request& request, std::string_view shape) {
    write(recorded::Arrived{.now_ns = now,
                            .id = request.id,
                            .model_id = request.model_id,
                            .rows = request.rows,
                            .shape = shape,
                            .bytes = request.bytes,
                            .arrived_ns = request.arrived_ns,
                            .deadline_ns = request.deadline_ns,
                            .priority = request.priority,
                            .copied_bytes = request.copied_bytes});
}

void Recorder::cancelled(Ns now, RequestId request_id) {
    write(recorded::RequestCancelled{.now_ns = now, .request_id = request_id});
}

void Recorder::action_done(Ns now, const ActionResult& result, std::string_view text) {
    write(recorded::ActionDone{.now_ns = now,
                               .worker = result.worker,
                               .action_id = result.action_id,
                               .status = result.status,
                               .text = text,
                               .begin_ns = result.begin_ns,
                               .end_ns = result.end_ns,
                               .duration_ns = result.duration_ns,
                               .ready_ns = result.ready_ns});
}

void Recorder::noted(std::string_view event) {
    ++event_count_;
    events_.raw(event);
}

// ----- the step ----------------------------------------------------------------------------------

void Recorder::settle(Ns now) {
    settled_time_ns_ = time_ns(now);
    settled_ns_ = now;
    step_.clear();
    Packer packer = step_.begin(NUMBERS_BYTES_MAX + events_.size());
    packer.array(4);
    packer.integer(settled_time_ns_);
    packer.integer(now - settled_time_ns_);
    packer.array(event_count_);
    packer.raw(events_.view());
    step_.end(packer);
    events_.clear();
    event_count_ = 0;
    commands_.clear();
    command_count_ = 0;
}

void Recorder::ordered(const Command& command, const Commands& all, std::string_view text, std::string_view shape) {
    if (command.kind == CommandKind::WAKE)
        return;
    ++command_count_;
    recorded::write(commands_, command, all, settled_time_ns_, text, shape);
}

void Recorder::end() {
    step_.array(command_count_);
    char head[5];
    Packer packer{head};
    packer.bytes(step_.size() + commands_.size());
    ring_->append(settled_ns_, {{head, static_cast<std::size_t>(packer.at - head)}, step_.view(), commands_.view()});
}

// ----- shapes ------------------------------------------------------------------------------------

const std::string& Recorder::know_shape(std::uint32_t number, const std::vector<std::int64_t>& dims) {
    std::size_t inputs = 0;
    for (std::size_t place = 0; place < dims.size(); place += 1 + static_cast<std::size_t>(dims[place]))
        ++inputs;
    Writer writer;
    writer.array(inputs);
    for (std::size_t place = 0; place < dims.size();) {
        std::size_t rank = static_cast<std::size_t>(dims[place++]);
        writer.array(rank);
        for (; rank > 0; --rank)
            writer.integer(dims[place++]);
    }
    if (number >= shapes_.size())
        shapes_.resize(number + 1);
    return shapes_[number] = writer.view();
}

}  // namespace clockwork
