#include "device/fleet.h"

#include <sys/mman.h>
#include <sys/timerfd.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <new>
#include <system_error>

#include "device/join.h"

namespace clockwork::emulated {

namespace {

constexpr std::uint32_t NO_PAGE = UINT32_MAX;  // an index beyond every arena
constexpr std::size_t SLOT_ALIGNMENT = 64;     // alignment in bytes of each input's place in a slot

// Ids of the wire as 64 bits unsigned: negative ids are as valid as others.
std::uint64_t id_of(std::int64_t id) { return static_cast<std::uint64_t>(id); }

}  // namespace

Ns FleetModel::execution_ns(std::int64_t rows) const {
    const auto above =
        std::find_if(points.begin(), points.end(), [&](const auto& point) { return point.first >= rows; });
    if (above != points.end() && above->first == rows)
        return above->second;
    __int128 found = 0;
    if (points.size() == 1) {
        found = __int128(points.front().second) * rows;
    } else {
        const auto right = above == points.end() ? points.end() - 1 : std::max(above, points.begin() + 1);
        const auto left = right - 1;
        const __int128 rise = __int128(right->second - left->second) * (rows - left->first);
        const std::int64_t width = right->first - left->first;
        found = left->second + (rise / width - (rise % width < 0 ? 1 : 0));
    }
    return static_cast<Ns>(std::clamp<__int128>(found, 1, NEVER_NS));
}

std::int64_t FleetModel::page_count() const {
    std::int64_t count = 0;
    for (std::int64_t run : runs)
        count += run;
    return count;
}

Fleet::Fleet(const EmulatedSettings& settings, const FleetSettings& fleet)
    : settings_(settings),
      fleet_(fleet),
      machine_(settings_, fleet.device_count, fleet.executors, fleet.host_bytes, fleet.shares_link, 1.0, fleet.seed,
               fleet.stale_max),
      timer_(timerfd_create(CLOCK_MONOTONIC, TFD_NONBLOCK | TFD_CLOEXEC)),
      done_(fleet.device_count),
      input_bytes_(fleet.device_count) {
    if (timer_ < 0)
        throw std::system_error(errno, std::generic_category(), "cannot make a timer");
}

Fleet::~Fleet() {
    for (FleetOrder* order : orders_)
        delete order;
    for (List& list : done_) {
        while (device::Action* action = list.first) {
            list.first = action->next;
            delete static_cast<FleetOrder*>(action);
        }
    }
    close_timer();
}

void Fleet::close_timer() {
    if (timer_ >= 0)
        close(timer_);
    timer_ = -1;
}

// ----- models -----------------------------------------------------------------------------------

void Fleet::add_model(std::int64_t model_id, std::shared_ptr<const FleetModel> model) {
    std::lock_guard<std::mutex> held(mutex_);
    models_[model_id] = std::move(model);
}

Fleet::Forgotten Fleet::forget(std::int64_t model_id, Ns now) {
    std::lock_guard<std::mutex> held(mutex_);
    advance(now);
    machine_.release_kept(model_id);
    if (machine_.is_used(model_id))
        return machine_.is_resident(model_id) ? Forgotten::RESIDENT : Forgotten::IN_USE;
    models_.erase(model_id);
    return Forgotten::DONE;
}

void Fleet::rename(std::int64_t model_id, std::int64_t other) {
    std::lock_guard<std::mutex> held(mutex_);
    auto model = models_.extract(model_id);
    model.key() = other;
    models_.insert(std::move(model));
    machine_.rename(model_id, other);
}

// ----- orders -----------------------------------------------------------------------------------

void Fleet::begin(std::uint32_t number, FleetOrder* order, Ns now) noexcept {
    using device::say;
    std::lock_guard<std::mutex> held(mutex_);
    char* text = order->text;
    order->device = number;
    const ActionKind kind = order->kind;
    if (kind == ActionKind::RESERVE) {
        say(text, device::TEXT_BYTES, "this device makes models ready beside its executions");
        return refuse(order, Status::DEVICE_ERROR);
    }
    if (lane_of(kind) == LaneKind::FETCH && fleet_.host_bytes == 0) {
        say(text, device::TEXT_BYTES, "these devices have no host tier");
        return refuse(order, Status::DEVICE_ERROR);
    }
    const auto known = models_.find(order->model_id);
    if (known == models_.end()) {
        say(text, device::TEXT_BYTES, "model %lld is not prepared here", (long long)order->model_id);
        return refuse(order, Status::UNKNOWN_MODEL);
    }
    order->model = known->second;
    const FleetModel& model = *order->model;
    std::uint64_t bytes = 0;
    if (kind == ActionKind::LOAD && order->run_starts.size() != model.runs.size()) {
        say(text, device::TEXT_BYTES, "%zu runs of pages for %zu", order->run_starts.size(), model.runs.size());
        return refuse(order, Status::BAD_PAGES);
    }
    if (lane_of(kind) == LaneKind::FETCH) {
        bytes = static_cast<std::uint64_t>(model.page_count()) * fleet_.page_bytes;
    } else if (executes(kind)) {
        // join() reads the types of the model's inputs there
        order->residency = const_cast<FleetModel*>(&model);
        const device::Joined joined = device::join(*order);
        order->residency = nullptr;
        if (joined != device::Joined::DONE)
            return refuse(order, joined == device::Joined::WRONG ? Status::INVALID_INPUT : Status::DEVICE_ERROR);
        std::uint64_t slot_bytes = 0;
        for (const device::Input& input : order->parts.inputs) {
            bytes += static_cast<std::uint64_t>(input.bytes);
            slot_bytes +=
                (static_cast<std::uint64_t>(input.bytes) + SLOT_ALIGNMENT - 1) / SLOT_ALIGNMENT * SLOT_ALIGNMENT;
        }
        if (slot_bytes > fleet_.slot_bytes_max) {
            say(text, device::TEXT_BYTES, "inputs of %llu bytes; at most %zu are joined",
                (unsigned long long)slot_bytes, fleet_.slot_bytes_max);
            return refuse(order, Status::INVALID_INPUT);
        }
        if (kind == ActionKind::INFER)
            input_bytes_[number] += static_cast<std::int64_t>(bytes);
    }
    std::uint32_t token = 0;
    if (tokens_.empty()) {
        token = static_cast<std::uint32_t>(orders_.size());
        orders_.push_back(nullptr);
    } else {
        token = tokens_.back();
        tokens_.pop_back();
    }
    orders_[token] = order;
    machine_.start(number, order_of(*order, token, bytes), now);
    collect(now);
}

EmulatedOrder Fleet::order_of(const FleetOrder& order, std::uint32_t token, std::uint64_t bytes) const {
    const FleetModel& model = *order.model;
    EmulatedOrder found;
    found.id = id_of(order.action_id);
    found.kind = order.kind;
    found.token = token;
    found.model_id = order.model_id;
    found.load_id = id_of(order.load_id);
    found.earliest_ns = order.earliest_ns;
    found.latest_ns = order.latest_ns;
    found.bytes = bytes;
    if (lane_of(order.kind) == LaneKind::LOAD)
        found.profiled_ns = model.load_ns;
    if (order.kind == ActionKind::LOAD) {
        for (std::size_t run = 0; run < model.runs.size(); ++run) {
            const std::int64_t start = order.run_starts[run];
            found.pages.push_back({0 <= start && start < NO_PAGE ? static_cast<std::uint32_t>(start) : NO_PAGE,
                                   static_cast<std::uint32_t>(model.runs[run])});
        }
    } else if (executes(order.kind)) {
        found.profiled_ns = model.execution_ns(model.batches ? std::max<std::int64_t>(order.parts.row_count(), 1) : 1);
    }
    return found;
}

void Fleet::revoke(std::uint32_t number, std::int64_t action_id, Ns now) {
    std::lock_guard<std::mutex> held(mutex_);
    machine_.revoke(number, id_of(action_id), now);
    collect(now);
}

void Fleet::end_run(std::uint32_t number, std::int64_t action_id, Ns now) {
    if (fleet_.is_unending)
        return;
    std::lock_guard<std::mutex> held(mutex_);
    machine_.end_run(number, id_of(action_id), now);
    collect(now);
}

device::RunningActions Fleet::look(std::uint32_t number, Ns now) {
    std::lock_guard<std::mutex> held(mutex_);
    advance(now);
    const auto at = [&](LaneKind lane) {
        const EmulatedOrder* order = machine_.device(number).running(lane);
        return order != nullptr ? static_cast<std::int64_t>(order->id) : 0;
    };
    return {at(LaneKind::EXECUTE), at(LaneKind::LOAD), at(LaneKind::FETCH)};
}

device::Action* Fleet::take(std::uint32_t number, Ns now) {
    std::lock_guard<std::mutex> held(mutex_);
    advance(now);
    device::Action* list = std::exchange(done_[number], {}).first;
    if (list != nullptr) {
        std::erase(ready_, number);
        arm();
    }
    return list;
}

Ns Fleet::near_ns(Ns now) {
    if (fleet_.spin_ns == 0)
        return 0;
    std::lock_guard<std::mutex> held(mutex_);
    const Ns due_ns = machine_.next_ns();
    return ready_.empty() && now < due_ns && due_ns <= now + fleet_.spin_ns ? due_ns : 0;
}

std::vector<std::uint32_t> Fleet::ended(Ns now) {
    std::lock_guard<std::mutex> held(mutex_);
    advance(now);
    return ready_;
}

device::Action* Fleet::take_all() {
    Ns now = device::now_ns();
    const Ns due_ns = near_ns(now);
    while (now < due_ns)
        now = device::now_ns();
    std::lock_guard<std::mutex> held(mutex_);
    advance(now);
    List all;
    for (std::uint32_t number : ready_) {
        const List list = std::exchange(done_[number], {});
        (all.last != nullptr ? all.last->next : all.first) = list.first;
        all.last = list.last;
    }
    if (!ready_.empty()) {
        ready_.clear();
        arm();
    }
    return all.first;
}

void Fleet::reset(std::uint32_t number, Ns now) {
    std::lock_guard<std::mutex> held(mutex_);
    advance(now);
    machine_.reset(number, now);
    forget_orders(number, now);
}

std::vector<EmulatedResidency> Fleet::keep(std::uint32_t number, Ns now) {
    std::lock_guard<std::mutex> held(mutex_);
    advance(now);
    std::vector<EmulatedResidency> found = machine_.keep(number, now);
    forget_orders(number, now);
    return found;
}

// Frees the orders that a device has forgotten, and those whose ends were not taken.
void Fleet::forget_orders(std::uint32_t number, Ns now) {
    if (number == 0)
        machine_.clear_store();
    for (std::uint32_t token = 0; token < orders_.size(); ++token) {
        if (orders_[token] != nullptr && orders_[token]->device == number) {
            delete std::exchange(orders_[token], nullptr);
            tokens_.push_back(token);
        }
    }
    collect(now);
    device::Action* list = std::exchange(done_[number], {}).first;
    while (list != nullptr) {
        device::Action* next = list->next;
        delete static_cast<FleetOrder*>(list);
        list = next;
    }
    std::erase(ready_, number);
    arm();
}

// ----- what it tells ----------------------------------------------------------------------------

std::uint64_t Fleet::held_pages(std::uint32_t number) {
    std::lock_guard<std::mutex> held(mutex_);
    return machine_.device(number).held_pages();
}

std::int64_t Fleet::input_bytes(std::uint32_t number) {
    std::lock_guard<std::mutex> held(mutex_);
    return input_bytes_[number];
}

std::uint64_t Fleet::host_bytes() {
    std::lock_guard<std::mutex> held(mutex_);
    return machine_.host_bytes();
}

bool Fleet::is_resident(std::int64_t model_id) {
    std::lock_guard<std::mutex> held(mutex_);
    return machine_.is_resident(model_id);
}

std::size_t Fleet::event_count() {
    std::lock_guard<std::mutex> held(mutex_);
    return machine_.event_count();
}

std::vector<Ns> Fleet::lateness() {
    std::lock_guard<std::mutex> held(mutex_);
    return {late_.begin(), late_.begin() + std::ptrdiff_t(std::min(late_count_, LATENESS_WINDOW))};
}

// ----- under the lock ---------------------------------------------------------------------------

void Fleet::advance(Ns now) {
    machine_.advance(now);
    collect(now);
}

// Moves the orders that the machine has ended to the lists from which callers take them.
void Fleet::collect(Ns now) {
    for (const Machine::Ended& ended : machine_.ended) {
        const EmulatedEnd& done = ended.done;
        FleetOrder* order = std::exchange(orders_[done.token], nullptr);
        tokens_.push_back(done.token);
        if (order == nullptr)
            continue;  // the order's device was reset meanwhile
        if (done.end_ns > done.begin_ns)
            late_[late_count_++ % LATENESS_WINDOW] = now - done.end_ns;
        order->status = static_cast<std::int32_t>(done.status);
        device::say(order->text, device::TEXT_BYTES, "%s", sentence(done).c_str());
        order->execute = {done.begin_ns, done.end_ns, done.end_ns - done.begin_ns};
        if (done.end_ns != 0 && executes(order->kind)) {
            order->copy_in = {done.begin_ns - done.waited_ns, done.begin_ns, done.waited_ns};
            if (done.status == Status::OK) {
                order->copy_out = {done.end_ns, done.end_ns, 0};
                if (order->kind == ActionKind::INFER)
                    fill_outputs(*order);
            }
        }
        end(order);
    }
    machine_.ended.clear();
    arm();
}

// Sets the timer to the machine's next event, or to now while ended orders wait to be taken.
void Fleet::arm() {
    const Ns next_ns = machine_.next_ns();
    const Ns at_ns = !ready_.empty() ? 1 : next_ns == NEVER_NS ? NEVER_NS : std::max<Ns>(next_ns - fleet_.spin_ns, 1);
    if (at_ns == armed_ns_ || timer_ < 0)
        return;
    armed_ns_ = at_ns;
    itimerspec alarm{};
    if (at_ns != NEVER_NS)
        alarm.it_value = {static_cast<time_t>(at_ns / SECOND), static_cast<long>(at_ns % SECOND)};
    timerfd_settime(timer_, TFD_TIMER_ABSTIME, &alarm, nullptr);
}

// Ends an order that the machine has not been given; its text says why.
void Fleet::refuse(FleetOrder* order, Status status) {
    order->status = static_cast<std::int32_t>(status);
    end(order);
    arm();
}

void Fleet::end(FleetOrder* order) {
    order->next = nullptr;
    List& list = done_[order->device];
    if (list.first == nullptr)
        ready_.push_back(order->device);
    (list.last != nullptr ? list.last->next : list.first) = order;
    list.last = order;
}

void Fleet::fill_outputs(FleetOrder& order) {
    const FleetModel& model = *order.model;
    device::BatchParts& parts = order.parts;
    std::int64_t size = 0;
    if (parts.make_outputs(model.outputs.size())) {
        for (std::size_t index = 0; index < model.outputs.size(); ++index) {
            const FleetOutput& declared = model.outputs[index];
            device::Output& output = parts.outputs[index];
            output.dtype = declared.dtype;
            output.rank = static_cast<int>(declared.dims.size());
            std::copy(declared.dims.begin(), declared.dims.end(), output.dims);
            output.begin = size;
            for (std::size_t part = 0; part < parts.part_count; ++part) {
                std::int64_t count = 1;
                for (int axis = 0; axis < output.rank; ++axis)
                    count *=
                        axis == 0 && (model.batches || parts.part_count > 1) ? parts.rows[part] : output.dims[axis];
                size += (count * declared.bits + 7) / 8;
                parts.part_end(index, part) = size;
            }
            if (model.batches && output.rank > 0)
                output.dims[0] = parts.row_count();
        }
        parts.zeros = zeros(static_cast<std::size_t>(size));
        parts.block_bytes = size;
    }
    if (parts.zeros == nullptr) {
        order.status = static_cast<std::int32_t>(Status::DEVICE_ERROR);
        device::say(order.text, device::TEXT_BYTES, "no memory for outputs of %lld bytes", (long long)size);
    }
}

// Returns a block of that many zero bytes. They take no memory and stay mapped: a caller may look at outputs
// for any length of time.
const char* Fleet::zeros(std::size_t bytes) {
    if (bytes + 1 > zeros_bytes_) {
        const std::size_t wanted = std::max(2 * zeros_bytes_, bytes + 1);
        void* found = mmap(nullptr, wanted, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
        if (found == MAP_FAILED)
            return nullptr;
        zeros_ = static_cast<const char*>(found);
        zeros_bytes_ = wanted;
    }
    return zeros_;
}

}  // namespace clockwork::emulated
