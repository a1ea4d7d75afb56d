#include "worker/road.h"

#include <sys/eventfd.h>
#include <sys/prctl.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdarg>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <exception>
#include <new>
#include <system_error>
#include <utility>

#include "device/join.h"
#include "wire/shared.h"

namespace clockwork::worker {

namespace {

using device::now_ns;
using device::Order;

constexpr std::string_view REVOKED_TEXT = "the action was revoked";
constexpr std::string_view CANCELLED_TEXT = "the worker ends because of another action";

void signal_fd(int fd) {
    const std::uint64_t count = 1;
    if (write(fd, &count, sizeof count) < 0) {
        // The descriptor is readable already.
    }
}

void clear_fd(int fd) {
    std::uint64_t count = 0;
    if (read(fd, &count, sizeof count) < 0) {
        // The descriptor was not readable.
    }
}

std::string format(const char* text, ...) __attribute__((format(printf, 1, 2)));

std::string format(const char* text, ...) {
    char buffer[200];
    va_list arguments;
    va_start(arguments, text);
    std::vsnprintf(buffer, sizeof buffer, text, arguments);
    va_end(arguments);
    return buffer;
}

}  // namespace

Road::Held::Held(Road& road) : road_(road) {
    road.waiting_.fetch_add(1);
    road.mutex_.lock();
    road.waiting_.fetch_sub(1);
}

Road::Held::~Held() { road_.mutex_.unlock(); }

Road::Road(const DealerSocket& socket, const std::array<int, 2>& socket_fds, const Clock& clock,
           const RoadBounds& bounds)
    : socket_(socket),
      clock_(clock),
      bounds_(bounds),
      wake_fd_(eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC)),
      notice_fd_(eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC)),
      results_(bounds.copied_frame_bytes),
      lending_(bounds.lending, std::make_unique<Copies>(bounds.lending.copies, [this] {
                   has_ended_copies_ = true;
                   wake();
               })) {
    if (wake_fd_ < 0 || notice_fd_ < 0)
        throw std::system_error(errno, std::generic_category(), "cannot make an eventfd");
    for (int fd : socket_fds)
        descriptors_.push_back({fd, POLLIN, 0});
    wake_place_ = descriptors_.size();
    descriptors_.push_back({wake_fd_, POLLIN, 0});
    late_.reserve(bounds_.jitter_window);
}

Road::~Road() {
    stop();
    close(wake_fd_);
    close(notice_fd_);
}

void Road::add_device(const device::DevicePort& port, std::uint32_t run_ahead) {
    Device& added = all_.emplace_back();
    added.port = port;
    added.queue = std::make_unique<ActionQueue>(run_ahead, bounds_.queued_actions);
    numbers_.push_back(static_cast<std::uint32_t>(all_.size() - 1));
}

void Road::add_outlet(const device::DeviceOutlet& outlet) {
    outlets_.push_back(outlet);
    descriptors_.push_back({outlet.fd, POLLIN, 0});
}

void Road::keep_store() { keeps_store_ = true; }

void Road::start() {
    const device::EndListener listener{this, [](void* self) { return static_cast<Road*>(self)->take_at_end(); }};
    for (const device::DeviceOutlet& outlet : outlets_) {
        if (outlet.listen != nullptr)
            outlet.listen(outlet.self, &listener);
    }
    thread_ = std::thread([this] { run(); });
}

void Road::stop() {
    if (!thread_.joinable())
        return;
    {
        Held held(*this);
        is_stopping_ = true;
        wake();
    }
    thread_.join();
    for (const device::DeviceOutlet& outlet : outlets_) {
        if (outlet.listen != nullptr)
            outlet.listen(outlet.self, nullptr);
    }
    forget_all();
    lending_.close();
    for (const device::DeviceOutlet& outlet : outlets_) {
        for (device::Action* ended = outlet.take(outlet.self); ended != nullptr;) {
            device::Action* next = ended->next;
            free_order(static_cast<Order*>(ended));
            ended = next;
        }
    }
    for (Notice& notice : notices_) {
        if (notice.order != nullptr)
            free_order(notice.order);
    }
    notices_.clear();
}

// ----- the thread -------------------------------------------------------------------------------

void Road::run() {
    prctl(PR_SET_TIMERSLACK, 1UL, 0, 0, 0);
    prctl(PR_SET_NAME, "cw-road", 0, 0, 0);
    std::unique_lock<std::mutex> lock(mutex_);
    while (!is_stopping_) {
        try {
            wait(lock);
            turn();
        } catch (const std::exception& error) {
            fail(error);
        }
    }
}

// Waits, without the lock, until there is something to do.
void Road::wait(std::unique_lock<std::mutex>& lock) {
    // The check consumes the descriptor's edge, so messages that it finds must be received.
    has_input_ = has_input_ || socket_.has_input();
    const bool is_ready = (has_input_ && notice_bytes_ < bounds_.notice_bytes) || has_news_;
    const Ns due = is_ready ? 0 : due_ns();
    const Ns timeout = is_ready ? 0 : std::max<Ns>(due - now_ns(), 0);
    const bool is_timed = timeout > 0 && due < NEVER_NS;
    const timespec limit{static_cast<time_t>(timeout / SECOND), static_cast<long>(timeout % SECOND)};
    sleeps_until_ns_ = is_ready ? 0 : due;
    lock.unlock();
    if (is_ready && waiting_.load() > 0)
        device::nap(HANDOVER_NS);
    ppoll(descriptors_.data(), descriptors_.size(), due == NEVER_NS ? nullptr : &limit, nullptr);
    lock.lock();
    sleeps_until_ns_ = 0;
    has_input_ = has_input_ || descriptors_[0].revents != 0;
    has_news_ = has_news_ || descriptors_[1].revents != 0;
    if (descriptors_[wake_place_].revents != 0)
        clear_fd(wake_fd_);
    if (is_timed) {
        const Ns late_ns = now_ns() - due;
        if (late_ns >= 0)
            note_late(late_ns);
    }
}

void Road::turn() {
    bool is_idle = true;
    for (std::size_t count = 0; has_input_ && count < bounds_.messages_per_turn && notice_bytes_ < bounds_.notice_bytes;
         ++count) {
        has_input_ = receive_message(now_ns());
        received_.is_drained = received_.is_drained || !has_input_;
        is_idle = is_idle && !has_input_;
    }
    take_ended(now_ns());
    take_copies(now_ns());
    run_due(now_ns());
    if (is_idle && has_news_)  // a lost connection brings no messages, so such a turn comes soon
        read_news();
    watch(now_ns());
}

// Called by a lane's thread that has ended an order: answers the order and starts the next ones. The road's
// thread need not wake for that; if it is awake, it takes the order instead. Returns whether the order was
// taken here.
bool Road::take_at_end() {
    std::unique_lock<std::mutex> lock(mutex_, std::try_to_lock);
    if (!lock.owns_lock() || is_stopping_)
        return false;
    try {
        take_ended(now_ns());
        if (socket_.has_input()) {  // sending may have consumed the edge of the socket's descriptor
            has_input_ = true;
            wake();
        } else if (due_ns() < sleeps_until_ns_) {
            wake();
        }
    } catch (const std::exception& error) {
        fail(error);
    }
    return true;
}

// Ends the road after a defect of its own.
void Road::fail(const std::exception& error) {
    notify({.kind = Notice::FAILED, .now_ns = now_ns(), .text = error.what()});
    is_stopping_ = true;
    wake();
}

Ns Road::due_ns() const {
    Ns due = std::min(watch_ns_, lending_.due_ns());
    for (std::uint32_t number : numbers_)
        due = std::min(due, all_[number].queue->next_wake_ns());
    return due;
}

void Road::wake() { signal_fd(wake_fd_); }

void Road::notify(Notice&& notice) {
    for (const std::string& frame : notice.frames)
        notice_bytes_ += frame.size();
    if (notices_.empty())
        signal_fd(notice_fd_);
    notices_.push_back(std::move(notice));
}

std::deque<Notice> Road::take_notices() {
    Held held(*this);
    clear_fd(notice_fd_);
    if (notice_bytes_ >= bounds_.notice_bytes)
        wake();  // the road receives again
    notice_bytes_ = 0;
    return std::exchange(notices_, {});
}

void Road::read_news() {
    ConnectionNews news;
    has_news_ = false;
    while (socket_.receive_news(news))
        notify({.kind = Notice::NEWS, .number = news.event, .value = news.fd, .now_ns = now_ns()});
}

void Road::note_late(Ns late_ns) {
    if (late_.size() < bounds_.jitter_window) {
        late_.push_back(late_ns);
    } else if (!late_.empty()) {
        late_[late_next_] = late_ns;
        late_next_ = (late_next_ + 1) % late_.size();
    }
}

// ----- messages ---------------------------------------------------------------------------------

// Receives a message. False: none has arrived.
bool Road::receive_message(Ns now) {
    message_.clear();
    if (!socket_.receive(message_.emplace_back()))
        return false;
    std::size_t bytes = message_[0].size(), frames = 1;
    bool has_all = true;
    for (bool more = message_[0].more(); more;) {
        Frame next;
        if (!socket_.receive(next))
            break;  // cannot happen: a message arrives whole
        bytes += next.size();
        ++frames;
        more = next.more();
        has_all = has_all && message_.size() <= bounds_.frames_per_message;
        if (has_all)
            message_.push_back(std::move(next));
    }
    received_.bytes += bytes;
    received_.frames += frames;
    if (!has_all)  // of a message with too many frames only the header is read
        message_.resize(1);
    const std::int64_t tag = wire::tag_of(message_[0].view());
    if (serves_ && take_action(tag, now))
        return true;
    if (tag == TAG_FORGET)
        note_forgotten(message_[0].view());
    if (tag == TAG_WORKER_WELCOME)
        // Later actions belong to the next session, which begins when Python has seen this message
        serves_ = false;
    give_message(Notice::MESSAGE, now);
    return true;
}

// The model is gone for the actions behind a Forget, although Python handles the Forget later.
void Road::note_forgotten(std::string_view header) {
    Reader reader(header.data(), header.size());
    std::uint32_t count = 0;
    std::int64_t tag = 0, model_id = 0;
    if (reader.array(count) && count == 2 && reader.integer(tag) && reader.integer(model_id) && reader.done()) {
        models_.erase(model_id);
        absences_.erase(model_id);
    }
}

void Road::give_message(Notice::Kind kind, Ns now) {
    Notice notice{.kind = kind, .now_ns = now};
    for (Frame& frame : message_)
        notice.frames.emplace_back(frame.view());
    notify(std::move(notice));
}

// False if Python handles the message: another kind, or a malformed message, whose flaw Python reports.
bool Road::take_action(std::int64_t tag, Ns now) {
    const std::string_view header = message_[0].view();
    if (tag == TAG_PING) {
        wire::Ping ping;
        if (!ping.read(header, flaw_))
            return false;
        send_header(results_.pong(ping.sent_ns, clock_.to_worker(now), clock_.to_worker(now_ns())), false);
        return true;
    }
    if (tag == TAG_REVOKE) {
        wire::Revoke message;
        if (!message.read(header, flaw_))
            return false;
        revoke(message.action_id, now);
        return true;
    }
    if (!action_.read(header, flaw_))
        return false;
    if (std::any_of(action_.tensors.begin(), action_.tensors.end(), wire::is_shared)) {
        begin_copies(now);
        return true;
    }
    note_views();
    for (std::size_t place = 0; place < action_.tensors.size(); ++place) {
        std::string flaw;
        Frame* const frame = frame_of_tensor(message_, action_.tensors[place].frame, flaw);
        if (frame == nullptr) {
            refuse(action_.action_id, Status::INVALID_INPUT, flaw, clock_.to_worker(now));
            return true;
        }
        views_.tensors[place].data = static_cast<const char*>(frame->data());
        views_.tensors[place].bytes = static_cast<std::int64_t>(frame->size());
    }
    std::unique_ptr<HeldInputs> inputs;
    if (!action_.tensors.empty()) {
        inputs = take_inputs();
        // The move of the vector does not move small frames' bytes
        std::swap(inputs->frames, message_);
    }
    queue_action(std::move(inputs), now);
    return true;
}

// Describes the inputs of an INFER, or the shapes of a PROFILE, without their bytes.
void Road::note_views() {
    views_.clear();
    for (const wire::ListRange& part : action_.parts)
        views_.counts.push_back(part.count);
    for (const wire::TensorRef& ref : action_.tensors)
        views_.tensors.push_back({.dtype = static_cast<int>(ref.dtype & ~SHARED),
                                  .rank = static_cast<int>(ref.shape.count),
                                  .first = ref.shape.first});
    for (const wire::ListRange& shape : action_.shapes)
        views_.tensors.push_back({.rank = static_cast<int>(shape.count), .first = shape.first});
    std::swap(views_.dims, action_.dims);
}

bool Road::deliver(const std::vector<std::string_view>& frames, Ns now) {
    Held held(*this);
    message_.clear();
    for (std::string_view frame : frames)
        message_.emplace_back().copy_of(frame);
    const bool done = !message_.empty() && take_action(wire::tag_of(message_[0].view()), now);
    wake();
    return done;
}

// Makes an order of the decoded action and queues it, or refuses it.
void Road::queue_action(std::unique_ptr<HeldInputs> inputs, Ns now) {
    const std::int64_t action_id = action_.action_id;
    const Ns received_ns = clock_.to_worker(now);
    if (action_.device >= static_cast<std::int64_t>(numbers_.size())) {
        refuse(action_id, Status::DEVICE_ERROR,
               format("device %lld of %zu", static_cast<long long>(action_.device), numbers_.size()), received_ns);
        return;
    }
    if (action_.kind != ActionKind::RESERVE && !is_stores(action_.kind) && !models_.contains(action_.model_id)) {
        refuse(action_id, Status::UNKNOWN_MODEL, absence_of(action_.model_id), received_ns);
        return;
    }
    if (is_cancelled_) {
        refuse(action_id, Status::ACTION_CANCELLED, CANCELLED_TEXT, received_ns);
        return;
    }
    if (is_held(action_id)) {
        notify({.kind = Notice::TWICE, .number = action_id});
        return;
    }
    const std::uint32_t place = numbers_[static_cast<std::size_t>(action_.device)];
    Device& on = all_[place];
    Order* order = on.port.make(on.port.self);
    if (order == nullptr) {
        refuse(action_id, Status::DEVICE_ERROR, device::NO_MEMORY, received_ns);
        return;
    }
    order->kind = action_.kind;
    order->action_id = action_id;
    order->model_id = action_.model_id;
    order->load_id = action_.load_id;
    order->earliest_ns = clock_.to_machine(action_.earliest_ns);
    order->latest_ns = clock_.to_machine(action_.latest_ns);
    order->expected_ns = order->predicted_ns = action_.expected_ns;
    order->received_ns = received_ns;
    order->place = place;
    order->is_lent = inputs != nullptr && !inputs->rooms.empty();
    std::swap(order->run_starts, action_.run_starts);
    std::swap(order->views, views_);
    if (inputs != nullptr)
        std::swap(views_, inputs->tensors);
    order->buffer_owner = std::move(inputs);
    if (free_slots_.empty()) {
        order->slot = static_cast<std::uint32_t>(orders_.size());
        orders_.push_back(order);
    } else {
        order->slot = free_slots_.back();
        free_slots_.pop_back();
        orders_[order->slot] = order;
    }
    slots_.insert(static_cast<std::uint64_t>(action_id), order->slot);
    commands_.clear();
    on.queue->received(now,
                       {.action_id = static_cast<std::uint64_t>(action_id),
                        .earliest_ns = order->earliest_ns,
                        .latest_ns = order->latest_ns,
                        .lane = lane_of(order->kind),
                        .is_unload = frees(order->kind),
                        .token = order->slot},
                       commands_);
    obey(order->place, now);
}

// Returns empty inputs, with the vectors of an answered order's if there are any.
std::unique_ptr<HeldInputs> Road::take_inputs() {
    if (spare_inputs_.empty())
        return std::make_unique<HeldInputs>();
    std::unique_ptr<HeldInputs> found = std::move(spare_inputs_.back());
    spare_inputs_.pop_back();
    return found;
}

// Keeps the inputs of an answered order for the next orders, without their bytes.
void Road::recycle(Order& order) {
    if (order.buffer_owner == nullptr || spare_inputs_.size() >= SPARE_INPUTS_MAX)
        return;
    std::unique_ptr<HeldInputs> inputs(static_cast<HeldInputs*>(order.buffer_owner.release()));
    inputs->recycle(order.views);
    spare_inputs_.push_back(std::move(inputs));
}

void Road::revoke(std::int64_t action_id, Ns now) {
    Order* order = find(action_id);
    if (order == nullptr) {
        if (lending_.revoke(action_id)) {
            refuse(action_id, Status::ACTION_CANCELLED, REVOKED_TEXT, clock_.to_worker(now));
            note_drained();
        }
        return;
    }
    commands_.clear();
    all_[order->place].queue->revoked(now, static_cast<std::uint64_t>(action_id), commands_);
    obey(order->place, now);
}

// ----- inputs and outputs in clients' memory ----------------------------------------------------

// Starts copying the inputs of the decoded INFER, or refuses it.
void Road::begin_copies(Ns now) {
    const std::int64_t action_id = action_.action_id;
    if (is_held(action_id)) {
        notify({.kind = Notice::TWICE, .number = action_id});
        return;
    }
    if (is_cancelled_) {
        refuse(action_id, Status::ACTION_CANCELLED, CANCELLED_TEXT, clock_.to_worker(now));
        return;
    }
    const std::string flaw = lending_.begin(action_, message_, clock_.to_machine(action_.latest_ns));
    if (!flaw.empty())
        refuse(action_id, Status::INVALID_INPUT, flaw, clock_.to_worker(now));
}

void Road::take_copies(Ns now) {
    const bool has_ended = has_ended_copies_.exchange(false);
    if (has_ended)
        lending_.take_copies(lending_news_);
    const bool is_due = lending_.due_ns() <= now;
    if (is_due)
        lending_.run_due(now, lending_news_);
    if (has_ended || is_due)
        use_news(now);
}

// Queues the INFERs whose inputs have been copied, and answers those that Lending gives up or has written.
void Road::use_news(Ns now) {
    for (const LendingNews::Refusal& refusal : lending_news_.refused)
        refuse(refusal.action_id, refusal.status, refusal.text, clock_.to_worker(now));
    for (const std::unique_ptr<Arriving>& arriving : lending_news_.arrived)
        queue_copied(*arriving, now);
    for (const std::unique_ptr<Leaving>& leaving : lending_news_.left)
        send_outgoing(leaving->outgoing);
    lending_news_ = {};
    note_drained();
}

void Road::queue_copied(Arriving& arriving, Ns now) {
    std::swap(action_, arriving.action);
    note_views();
    for (std::size_t place = 0; place < arriving.bytes.size(); ++place) {
        views_.tensors[place].data = arriving.bytes[place].data();
        views_.tensors[place].bytes = static_cast<std::int64_t>(arriving.bytes[place].size());
    }
    queue_action(std::move(arriving.inputs), now);
}

std::int64_t Road::copied_bytes() { return lending_.copied_bytes(); }

void Road::tidy(Ns now) { lending_.tidy(now); }

// ----- commands of the queues ------------------------------------------------------------------

void Road::run_due(Ns now) {
    for (std::uint32_t place : numbers_) {
        if (all_[place].queue->next_wake_ns() <= now) {
            commands_.clear();
            all_[place].queue->due(now, commands_);
            obey(place, now);
        }
    }
}

// Executes the commands of a device's queue in `commands_`. A command may append more.
void Road::obey(std::uint32_t place, Ns now) {
    for (std::size_t at = 0; at < commands_.size(); ++at) {
        const QueueCommand command = commands_[at];
        Order* order = orders_[command.token];
        switch (command.order) {
            case QueueOrder::START:
                if (!waits_for_check(order))
                    start_order(order, now);
                watch_ns_ = std::min(watch_ns_, now + bounds_.limits.interval_ns);
                break;
            case QueueOrder::REVOKE_STARTED: {
                const auto found = std::find(unchecked_.begin(), unchecked_.end(), order);
                if (found != unchecked_.end()) {
                    unchecked_.erase(found);
                    end_started(order, Status::ACTION_CANCELLED, "revoked", now);
                } else {
                    all_[place].port.revoke(all_[place].port.self, order->action_id);
                }
                break;
            }
            case QueueOrder::REJECT_LATE:
                reject(order, Status::TOO_LATE,
                       format("its window closed %.3f ms ago", static_cast<double>(command.late_ns) / 1e6));
                break;
            case QueueOrder::REJECT_REVOKED: reject(order, Status::ACTION_CANCELLED, REVOKED_TEXT); break;
            case QueueOrder::REJECT_FULL:
            case QueueOrder::REJECT_TWICE:  // impossible: find() was called before
                reject(order, Status::DEVICE_ERROR, format("%zu actions are queued already", bounds_.queued_actions));
                break;
        }
    }
}

void Road::start_order(Order* order, Ns now) {
    if (is_stores(order->kind)) {
        const bool fetches = order->kind == ActionKind::FETCH;
        order->execute.begin();
        storing_.push_back(order);
        notify({.kind = fetches ? Notice::STORE_FETCH : Notice::STORE_DROP,
                .number = order->action_id,
                .value = order->model_id,
                .now_ns = fetches ? now + bounds_.limits.load_limit_ns(order->predicted_ns) : now});
        return;
    }
    const device::DevicePort& port = all_[order->place].port;
    port.begin(port.self, order);
}

// Answers an order that neither a device nor a queue holds any more.
void Road::reject(Order* order, Status status, std::string_view text) {
    refuse(order->action_id, status, text, order->received_ns);
    forget(order);
    free_order(order);
}

// Ends an order that its queue counts as started and its device does not hold. Appends to `commands_`.
void Road::end_started(Order* order, Status status, std::string_view text, Ns now) {
    const std::uint32_t place = order->place;
    const std::uint64_t action_id = static_cast<std::uint64_t>(order->action_id);
    reject(order, status, text);
    all_[place].queue->ended(now, action_id, commands_);
}

// ----- checks of stored bytes -------------------------------------------------------------------

// Holds an order back from its device if the order, or an earlier order that it must follow, waits for a
// check.
bool Road::waits_for_check(Order* order) {
    if (executes(order->kind) || is_stores(order->kind))
        return false;
    bool waits = std::any_of(unchecked_.begin(), unchecked_.end(), [&](const Order* earlier) {
        return earlier->model_id == order->model_id && earlier->place == order->place;
    });
    if (!waits && transfers(order->kind)) {
        const auto model = models_.find(order->model_id);
        if (model != models_.end() && !model->second.is_whole) {
            notify({.kind = Notice::CHECK, .number = order->model_id});
            waits = true;
        }
    }
    if (waits)
        unchecked_.push_back(order);
    return waits;
}

// Starts a model's orders that waited for a check, in order, unless they must still wait.
void Road::start_checked(std::int64_t model_id, Ns now) {
    std::vector<Order*> waited;
    std::erase_if(unchecked_, [&](Order* order) {
        if (order->model_id != model_id)
            return false;
        waited.push_back(order);
        return true;
    });
    for (Order* order : waited) {
        const std::uint32_t place = order->place;
        commands_.clear();
        if (models_.contains(model_id)) {
            if (!waits_for_check(order))
                start_order(order, now);
        } else {
            end_started(order, Status::DEVICE_ERROR, absence_of(model_id), now);
        }
        obey(place, now);
    }
}

// Returns the reason for which actions may not name a model.
std::string Road::absence_of(std::int64_t model_id) const {
    const auto absence = absences_.find(model_id);
    return absence != absences_.end()
               ? absence->second
               : format("model id %lld is not known to this worker", static_cast<long long>(model_id));
}

void Road::model_ready(std::int64_t model_id, std::shared_ptr<const Declared> declared) {
    Held held(*this);
    models_[model_id] = {std::move(declared), false};
    absences_.erase(model_id);
}

void Road::model_gone(std::int64_t model_id, std::string_view absence) {
    Held held(*this);
    models_.erase(model_id);
    if (absence.empty())
        absences_.erase(model_id);
    else
        absences_[model_id] = absence;
    start_checked(model_id, now_ns());
    wake();
}

void Road::model_whole(std::int64_t model_id) {
    Held held(*this);
    const auto model = models_.find(model_id);
    if (model == models_.end() || model->second.is_whole)
        return;
    model->second.is_whole = true;
    start_checked(model_id, now_ns());
    wake();
}

// ----- results ----------------------------------------------------------------------------------

void Road::take_ended(Ns now) {
    for (const device::DeviceOutlet& outlet : outlets_) {
        device::Action* ended = outlet.take(outlet.self);
        while (ended != nullptr) {
            device::Action* next = ended->next;
            on_ended(static_cast<Order*>(ended), now);
            ended = next;
        }
    }
}

void Road::on_ended(Order* order, Ns now) {
    if (order->slot >= orders_.size() || orders_[order->slot] != order) {
        free_order(order);  // an order of an earlier session
        return;
    }
    Device& on = all_[order->place];
    if (order->status == static_cast<std::int32_t>(Status::DEVICE_ERROR) && !on.is_lost && !on.is_faulty &&
        on.port.is_broken(on.port.self)) {
        on.is_faulty = true;
        notify({.kind = Notice::FAULT, .number = order->place, .now_ns = now});
    }
    if (on.is_faulty) {
        on.stalled.push_back(order);
        return;
    }
    answer(order, now);
}

void Road::lost(std::uint32_t device) {
    Held held(*this);
    Device& on = all_[device];
    on.is_lost = true;
    on.is_faulty = false;
    const Ns now = now_ns();
    for (Order* order : std::exchange(on.stalled, {}))
        answer(order, now);
    wake();
}

void Road::answer(Order* order, Ns now) {
    const std::uint32_t place = order->place;
    const std::uint64_t action_id = static_cast<std::uint64_t>(order->action_id);
    forget(order);
    commands_.clear();
    all_[place].queue->ended(now, action_id, commands_);
    obey(place, now);  // the next orders start before this one is answered
    if (!is_as_declared(*order)) {
        notify({.kind = Notice::ENDED, .number = order->model_id, .now_ns = now, .order = order});
        return;
    }
    send_result(*order, now);
    recycle(*order);
    free_order(order);
}

void Road::answer_ended(Order* order, std::string_view text) {
    Held held(*this);
    if (text.empty()) {
        send_result(*order, now_ns());
    } else {
        order->status = static_cast<std::int32_t>(Status::EXECUTION_FAILED);
        results_.describe(*order, clock_, false, outgoing_);
        outgoing_.result.text = text;
        send_outgoing(outgoing_);
    }
    free_order(order);
    wake();  // sending may have consumed the edge of the socket's descriptor
}

void Road::store_ended(std::int64_t action_id, Status status, std::string_view text) {
    Held held(*this);
    Order* const order = find(action_id);
    if (order == nullptr || std::erase(storing_, order) == 0)
        return;
    order->execute.end();
    order->status = static_cast<std::int32_t>(status);
    const std::size_t length = std::min(text.size(), device::TEXT_BYTES - 1);
    text.copy(order->text, length);
    order->text[length] = '\0';
    answer(order, now_ns());
    wake();  // sending may have consumed the edge of the socket's descriptor
}

// Whether the outputs are as the model declares. Python makes the sentence about a difference.
bool Road::is_as_declared(const Order& order) const {
    const device::BatchParts& parts = order.parts;
    if (order.kind != ActionKind::INFER || order.status != static_cast<std::int32_t>(Status::OK))
        return true;
    const auto model = models_.find(order.model_id);
    if (model == models_.end() || model->second.declared == nullptr)
        return true;
    const Declared& declared = *model->second.declared;
    const std::size_t count = std::min(declared.outputs.size(), parts.outputs.size());
    for (std::size_t part = 0; part < parts.part_count; ++part) {
        const std::int64_t rows = declared.batches ? parts.rows[part] : 0;
        for (std::size_t index = 0; index < count; ++index) {
            const Declared::Output& spec = declared.outputs[index];
            std::int64_t dims[RANK_MAX];
            const int rank = parts.output_shape(part, index, dims);
            if (parts.outputs[index].dtype != spec.dtype || (rows != 0 && (rank == 0 || dims[0] != rows)))
                return false;
            if (parts.output_end(index, part) - parts.output_begin(index, part) > declared.output_bytes_max)
                return false;
            if (spec.dtype == device::STRING) {
                std::int64_t strings = 1;
                for (int axis = 0; axis < rank; ++axis)
                    strings *= dims[axis];
                if (strings > declared.strings_max)
                    return false;
            }
            if (!declared.verified || spec.is_any_shape)
                continue;
            if (static_cast<std::size_t>(rank) != spec.dims.size())
                return false;
            for (int axis = 0; axis < rank; ++axis) {
                const std::int64_t wanted = spec.dims[static_cast<std::size_t>(axis)];
                if (wanted >= 0 && wanted != dims[axis])
                    return false;
            }
        }
    }
    return true;
}

// Sends an order's result, or starts writing its outputs to their clients' memory.
void Road::send_result(Order& order, Ns now) {
    if (order.is_lent && order.status == static_cast<std::int32_t>(Status::OK)) {
        auto leaving = std::make_unique<Leaving>();
        results_.describe(order, clock_, true, leaving->outgoing);
        if (!lending_.leave(static_cast<const HeldInputs&>(*order.buffer_owner), leaving, now))
            send_outgoing(leaving->outgoing);
        return;
    }
    results_.describe(order, clock_, false, outgoing_);
    send_outgoing(outgoing_);
}

void Road::send_outgoing(Outgoing& outgoing) {
    if (send_header(results_.header(outgoing), !outgoing.outputs.empty()))
        results_.send_outputs(socket_, outgoing);
    outgoing.block = {};
}

void Road::refuse(std::int64_t action_id, Status status, std::string_view text, Ns received_ns) {
    send_header(results_.refusal(action_id, status, text, received_ns), false);
}

// Sends a message. False: the connection's queue is full.
bool Road::send_header(std::string_view header, bool more) {
    if (!serves_)
        return false;
    if (socket_.begin(header, more))
        return true;
    serves_ = false;
    notify({.kind = Notice::UNSENT, .now_ns = now_ns()});
    return false;
}

bool Road::send(std::string_view header, const std::vector<std::string_view>& frames) {
    Held held(*this);
    std::size_t left = frames.size();
    const bool sent = socket_.begin(header, left > 0);
    for (std::size_t place = 0; sent && place < frames.size(); ++place)
        socket_.send(frames[place], --left > 0);
    wake();  // sending may have consumed the edge of the socket's descriptor
    return sent;
}

// ----- the session ------------------------------------------------------------------------------

void Road::adopt(const DealerSocket& socket, const std::array<int, 2>& socket_fds) {
    Held held(*this);
    socket_ = socket;
    for (std::size_t place = 0; place < socket_fds.size(); ++place)
        descriptors_[place] = {socket_fds[place], POLLIN, 0};
    std::erase_if(notices_, [this](const Notice& notice) {
        const bool is_stale =
            notice.kind == Notice::MESSAGE || notice.kind == Notice::NEWS || notice.kind == Notice::UNSENT;
        for (std::size_t frame = 0; is_stale && frame < notice.frames.size(); ++frame)
            notice_bytes_ -= notice.frames[frame].size();
        return is_stale;
    });
    has_input_ = has_news_ = true;
    wake();
}

void Road::serve(bool serves) {
    Held held(*this);
    serves_ = serves;
    wake();
}

void Road::renumber(const std::vector<std::uint32_t>& kept) {
    Held held(*this);
    numbers_ = kept;
    for (std::uint32_t place : numbers_)
        all_[place].queue->reset();
}

void Road::reset() {
    Held held(*this);
    forget_all();
    wake();
}

void Road::cancel(const Outcome& outcome) {
    Held held(*this);
    is_cancelled_ = true;
    for (const Order* order : orders_) {
        if (order == nullptr)
            continue;
        if (order->action_id == outcome.action_id && outcome.action_id != 0)
            refuse(order->action_id, outcome.status, outcome.text, order->received_ns);
        else
            refuse(order->action_id, Status::ACTION_CANCELLED, CANCELLED_TEXT, order->received_ns);
    }
    const Ns now = now_ns();
    lending_.cancel(lending_news_);
    for (LendingNews::Refusal& refusal : lending_news_.refused) {
        const bool is_cause = refusal.action_id == outcome.action_id;
        refusal.status = is_cause ? outcome.status : Status::ACTION_CANCELLED;
        refusal.text = is_cause ? outcome.text : CANCELLED_TEXT;
    }
    use_news(now);
    forget_all();
    watch_ns_ = NEVER_NS;
    wake();
}

void Road::drain() {
    Held held(*this);
    is_draining_ = true;
}

// Forgets all held orders. An order that a device holds is freed when it ends, any other at once.
void Road::forget_all() {
    for (std::uint32_t slot = 0; slot < orders_.size(); ++slot) {
        Order* order = orders_[slot];
        if (order == nullptr)
            continue;
        const bool is_unchecked = std::find(unchecked_.begin(), unchecked_.end(), order) != unchecked_.end();
        const bool is_storing = std::find(storing_.begin(), storing_.end(), order) != storing_.end();
        const Device& on = all_[order->place];
        const bool has_ended = std::find(on.stalled.begin(), on.stalled.end(), order) != on.stalled.end();
        const bool is_started = on.queue->is_started(static_cast<std::uint64_t>(order->action_id));
        orders_[slot] = nullptr;
        if (is_unchecked || is_storing || has_ended || !is_started)
            free_order(order);
    }
    lending_.reset();
    slots_.clear();
    orders_.clear();
    free_slots_.clear();
    unchecked_.clear();
    storing_.clear();
    for (Device& device : all_) {
        device.queue->reset();
        device.stalled.clear();
    }
}

// ----- held orders ------------------------------------------------------------------------------

Order* Road::find(std::int64_t action_id) const {
    const std::uint32_t slot = slots_.find(static_cast<std::uint64_t>(action_id));
    return slot == IdTable::NONE ? nullptr : orders_[slot];
}

void Road::forget(Order* order) {
    slots_.erase(static_cast<std::uint64_t>(order->action_id));
    orders_[order->slot] = nullptr;
    free_slots_.push_back(order->slot);
    order->slot = UINT32_MAX;
    note_drained();
}

void Road::note_drained() {
    if (is_draining_ && slots_.size() + lending_.count() == 0)
        notify({.kind = Notice::DRAINED, .now_ns = now_ns()});
}

bool Road::is_held(std::int64_t action_id) const { return find(action_id) != nullptr || lending_.holds(action_id); }

void Road::free_order(Order* order) {
    const device::DevicePort& port = all_[order->place].port;
    port.free(port.self, order);
}

void Road::release(Order* order) { free_order(order); }

bool Road::holds(std::int64_t action_id) {
    Held held(*this);
    return is_held(action_id);
}

std::size_t Road::count() {
    Held held(*this);
    return slots_.size() + lending_.count();
}

Road::DeviceCounts Road::counts(std::uint32_t device) {
    Held held(*this);
    return {all_[device].queue->queued_count(), all_[device].queue->started_count()};
}

Ns Road::jitter_p99_ns() {
    std::vector<Ns> ordered;
    {
        Held held(*this);
        ordered = late_;
    }
    std::sort(ordered.begin(), ordered.end());
    return ordered.empty() ? 0 : ordered[std::min(ordered.size() - 1, ordered.size() * 99 / 100)];
}

Road::Received Road::take_received() {
    Held held(*this);
    return std::exchange(received_, {});
}

// ----- actions that run too long ----------------------------------------------------------------

Ns Road::expected_ns(std::int64_t action_id) const {
    const Order* order = action_id != 0 ? find(action_id) : nullptr;
    return order != nullptr ? order->predicted_ns : 0;
}

void Road::watch(Ns now) {
    if (now < watch_ns_)
        return;
    bool is_busy = false;
    const Limits& limits = bounds_.limits;
    for (std::uint32_t place : numbers_) {
        Device& device = all_[place];
        if (device.queue->started_count() == 0 && !device.is_watched())
            continue;
        is_busy = true;
        device::RunningActions at;
        device.port.look(device.port.self, &at);
        const Order* running = at.execution != 0 ? find(at.execution) : nullptr;
        const bool is_reservation = running != nullptr && running->kind == ActionKind::RESERVE;
        const auto waiting = std::find_if(unchecked_.begin(), unchecked_.end(),
                                          [&](const Order* order) { return order->place == place; });
        judge(place, device.executes, at.execution, is_reservation ? "reservation" : "execution",
              is_reservation ? limits.reservation_ns : limits.execution_limit_ns(expected_ns(at.execution)), true, now);
        judge(place, device.loads, at.load, "load", limits.load_limit_ns(expected_ns(at.load)), false, now);
        judge(place, device.fetches, at.fetch, "fetch", limits.load_limit_ns(expected_ns(at.fetch)), false, now);
        judge(place, device.checks, waiting != unchecked_.end() ? (*waiting)->action_id : 0, "check before a load",
              limits.check_ns, false, now);
    }
    watch_ns_ = is_busy ? now + limits.interval_ns : NEVER_NS;
}

void Road::judge(std::uint32_t place, RunWatch& watch, std::int64_t action_id, const char* operation, Ns limit_ns,
                 bool can_end, Ns now) {
    const Limits& limits = bounds_.limits;
    const device::DevicePort& port = all_[place].port;
    switch (watch.look(now, action_id, limit_ns, can_end ? limits.grace_ns : 0, limits.gap_ns)) {
        case Verdict::FINE: break;
        case Verdict::END: port.end_run(port.self, action_id); break;
        case Verdict::STUCK:
            if (!is_cancelled_)
                notify({.kind = Notice::STUCK, .number = action_id, .value = place, .now_ns = now, .text = operation});
            break;
    }
}

}  // namespace clockwork::worker
