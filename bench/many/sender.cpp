// A cheap open-loop client of HTTP/1.1: it sends requests when they are due, over connections that are kept,
// and notes status and time of each answer. bench/many/sender.py compiles this file.
//
// It can also be the loader of a server that loads and unloads models by request but decides about neither:
// the least recently used models are unloaded for a model that is asked for, within a budget of bytes.
#include <arpa/inet.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <strings.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <charconv>
#include <cstdint>
#include <cstring>
#include <deque>
#include <list>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace {

using Ns = std::int64_t;
constexpr Ns MS = 1'000'000;
constexpr std::size_t READ_BYTES = 64 << 10;
constexpr int CONNECTIONS_MAX = 8192;
constexpr int EVENTS = 256;

Ns now_ns() {
    timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return Ns{time.tv_sec} * 1000 * MS + time.tv_nsec;
}

// Bytes that the caller keeps.
struct Text {
    const char* data;
    std::uint64_t size;
};

struct Request {
    Text head;
    Text body;
};

// The answer to a request as far as it was read.
class Answer {
public:
    void clear() { *this = Answer{}; }
    int status() const { return status_; }
    bool closes() const { return closes_; }

    // Add bytes; returns whether the answer is complete.
    bool take(const char* data, std::size_t size) {
        if (!body_begun_) {
            head_.append(data, size);
            std::size_t end = head_.find("\r\n\r\n");
            if (end == std::string::npos)
                return false;
            read_head(std::string_view(head_).substr(0, end + 2));
            body_begun_ = true;
            std::string rest = head_.substr(end + 4);
            head_.clear();
            return take_body(rest.data(), rest.size());
        }
        return take_body(data, size);
    }

private:
    bool take_body(const char* data, std::size_t size) {
        if (!chunked_) {
            left_ -= static_cast<std::int64_t>(size);
            return left_ <= 0;
        }
        tail_.append(data, size);  // the last chunk of an answer is empty
        if (tail_.size() > 7)
            tail_.erase(0, tail_.size() - 7);
        return tail_ == "\r\n0\r\n\r\n" || tail_ == "0\r\n\r\n";
    }

    void read_head(std::string_view head) {
        if (head.size() > 12)
            std::from_chars(head.data() + 9, head.data() + 12, status_);
        while (!head.empty()) {
            std::size_t end = head.find("\r\n");
            std::string_view line = head.substr(0, end);
            head.remove_prefix(end + 2);
            std::size_t colon = line.find(':');
            if (colon == std::string_view::npos)
                continue;
            std::string_view name = line.substr(0, colon);
            std::string_view value = line.substr(colon + 1);
            while (!value.empty() && value.front() == ' ')
                value.remove_prefix(1);
            if (is(name, "content-length"))
                std::from_chars(value.data(), value.data() + value.size(), left_);
            else if (is(name, "transfer-encoding"))
                chunked_ = is(value, "chunked");
            else if (is(name, "connection"))
                closes_ = is(value, "close");
        }
    }

    static bool is(std::string_view text, std::string_view word) {
        return text.size() == word.size() && strncasecmp(text.data(), word.data(), word.size()) == 0;
    }

    std::string head_;
    std::string tail_;
    std::int64_t left_ = 0;
    int status_ = 0;
    bool body_begun_ = false;
    bool chunked_ = false;
    bool closes_ = false;
};

// A connection, and what is under way on it.
struct Connection {
    int fd = -1;
    std::uint32_t index = 0;
    Request left{};           // the bytes to be written
    std::int64_t token = -1;  // of the request under way; -1: none
    Ns limit_ns = 0;
    bool wants_write = false;
    Answer answer;
};

constexpr std::int64_t LOAD_TOKENS = std::int64_t{1} << 40;
constexpr std::int64_t UNLOAD_TOKENS = std::int64_t{1} << 41;

// Connections to a server; each carries a request at a time.
class Connections {
public:
    explicit Connections(int port) : epoll_(epoll_create1(EPOLL_CLOEXEC)) {
        address_.sin_family = AF_INET;
        address_.sin_port = htons(static_cast<std::uint16_t>(port));
        address_.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    }
    ~Connections() {
        for (Connection& each : all_)
            if (each.fd >= 0)
                close(each.fd);
        close(epoll_);
    }
    Connections(const Connections&) = delete;
    Connections& operator=(const Connections&) = delete;

    // Send a request. Returns false where no connection can be had.
    bool send(std::int64_t token, const Request& request, Ns limit_ns) {
        Connection* found = idle();
        if (found == nullptr)
            return false;
        found->token = token;
        found->left = request;
        found->limit_ns = limit_ns;
        found->answer.clear();
        ++busy_;
        write(*found);
        return true;
    }

    int busy() const { return busy_; }

    // Wait for answers; ended(token, status) for each. Status 0: the connection broke.
    template <typename Ended>
    void wait(Ns timeout_ns, Ended ended) {
        epoll_event events[EVENTS];
        timespec timeout{static_cast<time_t>(timeout_ns / (1000 * MS)), static_cast<long>(timeout_ns % (1000 * MS))};
        int count = epoll_pwait2(epoll_, events, EVENTS, &timeout, nullptr);
        for (int place = 0; place < count; ++place) {
            Connection& at = all_[events[place].data.u32];
            if (at.fd < 0)
                continue;
            if ((events[place].events & EPOLLOUT) != 0)
                write(at);
            if (at.fd >= 0 && (events[place].events & (EPOLLIN | EPOLLERR | EPOLLHUP)) != 0)
                read(at, ended);
        }
        for (std::int64_t token : std::exchange(broken_, {}))
            ended(token, 0);
    }

    // End requests whose limit has passed, by closing their connections; given_up(token) for each.
    template <typename GivenUp>
    void give_up(Ns now, GivenUp given_up) {
        for (Connection& each : all_)
            if (each.token >= 0 && each.limit_ns <= now) {
                std::int64_t token = each.token;
                drop(each);
                given_up(token);
            }
    }

private:
    Connection* idle() {
        if (!idle_.empty()) {
            Connection& found = all_[idle_.back()];
            idle_.pop_back();
            return &found;
        }
        std::uint32_t index = 0;
        if (!closed_.empty()) {
            index = closed_.back();
            closed_.pop_back();
        } else {
            if (all_.size() >= CONNECTIONS_MAX)
                return nullptr;
            index = static_cast<std::uint32_t>(all_.size());
            all_.emplace_back().index = index;
        }
        Connection& made = all_[index];
        made.fd = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
        int on = 1;
        if (made.fd >= 0)
            setsockopt(made.fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof(on));
        epoll_event event{EPOLLIN, {}};
        event.data.u32 = index;
        if (made.fd < 0 ||
            (connect(made.fd, reinterpret_cast<sockaddr*>(&address_), sizeof(address_)) < 0 && errno != EINPROGRESS) ||
            epoll_ctl(epoll_, EPOLL_CTL_ADD, made.fd, &event) < 0) {
            if (made.fd >= 0)
                close(made.fd);
            made.fd = -1;
            closed_.push_back(index);
            return nullptr;
        }
        made.wants_write = false;
        return &made;
    }

    void write(Connection& at) {
        while (at.left.head.size + at.left.body.size > 0) {
            iovec parts[2] = {part(at.left.head), part(at.left.body)};
            msghdr message{};
            message.msg_iov = parts;
            message.msg_iovlen = 2;
            ssize_t sent = sendmsg(at.fd, &message, MSG_NOSIGNAL);
            if (sent < 0) {
                if (errno == EAGAIN || errno == ENOTCONN) {
                    watch(at, true);
                    return;
                }
                broken_.push_back(at.token);
                drop(at);
                return;
            }
            auto count = static_cast<std::uint64_t>(sent);
            for (Text* text : {&at.left.head, &at.left.body}) {
                std::uint64_t taken = std::min(count, text->size);
                text->data += taken;
                text->size -= taken;
                count -= taken;
            }
        }
        if (at.wants_write)
            watch(at, false);
    }

    static iovec part(const Text& text) { return {const_cast<char*>(text.data), text.size}; }

    void watch(Connection& at, bool writes) {
        if (at.wants_write == writes)
            return;
        at.wants_write = writes;
        epoll_event event{EPOLLIN | (writes ? std::uint32_t{EPOLLOUT} : 0U), {}};
        event.data.u32 = at.index;
        epoll_ctl(epoll_, EPOLL_CTL_MOD, at.fd, &event);
    }

    template <typename Ended>
    void read(Connection& at, Ended ended) {
        ssize_t count = recv(at.fd, buffer_.data(), buffer_.size(), 0);
        if (count < 0 && errno == EAGAIN)
            return;
        std::int64_t token = at.token;
        if (count <= 0 || token < 0) {
            drop(at);
            if (token >= 0)
                ended(token, 0);
            return;
        }
        if (!at.answer.take(buffer_.data(), static_cast<std::size_t>(count)))
            return;
        int status = at.answer.status();
        if (at.answer.closes() || at.left.body.size > 0) {
            drop(at);
        } else {
            at.token = -1;
            --busy_;
            idle_.push_back(at.index);
        }
        ended(token, status);
    }

    void drop(Connection& at) {
        if (at.token < 0)  // the server closed an idle connection
            std::erase(idle_, at.index);
        else
            --busy_;
        at.token = -1;
        close(at.fd);
        at.fd = -1;
        closed_.push_back(at.index);
    }

    int epoll_;
    int busy_ = 0;
    sockaddr_in address_{};
    std::deque<Connection> all_;
    std::vector<std::uint32_t> idle_;
    std::vector<std::uint32_t> closed_;
    std::vector<std::int64_t> broken_;
    std::vector<char> buffer_ = std::vector<char>(READ_BYTES);
};

enum class Place : std::uint8_t { ABSENT, QUEUED, LOADING, LOADED, UNLOADING };

// A model as the loader knows it.
struct Loaded {
    Place place = Place::ABSENT;
    std::uint32_t under_way = 0;
    std::deque<std::uint32_t> waiting;
    std::list<std::uint32_t>::iterator used;  // while loaded
};

}  // namespace

extern "C" {

// The requests of a server, by model; all arrays are the caller's and outlive the sender.
struct SenderPlan {
    std::int32_t port;
    std::uint32_t models;
    const Request* requests;
    const Request* loads;  // requests that load a model, or null: the server loads by itself
    const Request* unloads;
    const std::int64_t* bytes;  // of each model
    std::int64_t budget;        // bytes of all models that are loaded
    std::uint32_t models_max;   // that are loaded
    std::uint32_t loads_max;    // loads under way
};

// Requests in the order of their times, and their outcomes.
struct SenderRun {
    std::uint64_t count;
    const std::int64_t* due_ns;  // from the start of the run
    const std::uint32_t* model;
    const std::int64_t* slo_ns;
    std::int64_t shed_ns;  // time that a request may wait for its model, as thousandths of its SLO; 0: any
    std::int64_t give_up_ns;
    std::int64_t after_ns;  // time after the last SLO at which all clients leave
    std::int16_t* status;   // HTTP status; 0: broken; -1: the client gave up; -2: the loader refused it
    std::int64_t* elapsed_ns;
    std::int64_t* lag_ns;
};
}

namespace {

class Sender {
public:
    explicit Sender(const SenderPlan& plan)
        : plan_(plan), connections_(plan.port), models_(plan.loads == nullptr ? 0 : plan.models) {}

    std::uint64_t loads() const { return loads_; }

    void run(const SenderRun& run) {
        run_ = &run;
        std::fill_n(run.status, run.count, std::int16_t{-1});
        Ns begin = now_ns();
        Ns last = begin;
        std::uint64_t next = 0;
        Ns looked = begin;
        for (Ns now = begin;; now = now_ns()) {
            for (; next < run.count && begin + run.due_ns[next] <= now; ++next) {
                run.lag_ns[next] = now - begin - run.due_ns[next];
                run.elapsed_ns[next] = begin + run.due_ns[next];  // until its outcome is known
                last = std::max(last, run.elapsed_ns[next] + run.slo_ns[next]);
                arrive(static_cast<std::uint32_t>(next), now);
            }
            pump();
            if (next == run.count && (now >= last + run.after_ns || (open_ == 0 && connections_.busy() == 0)))
                break;
            if (now - looked > 5 * MS) {
                looked = now;
                connections_.give_up(now, [&](std::int64_t token) { end(token, -1); });
                leave(now);
            }
            Ns until = next < run.count ? begin + run.due_ns[next] : last + run.after_ns;
            connections_.wait(std::clamp<Ns>(until - now_ns(), 0, 5 * MS),
                              [&](std::int64_t token, int status) { end(token, status); });
        }
        Ns now = now_ns();
        for (Loaded& model : models_) {
            for (std::uint32_t request : model.waiting)
                settle(request, -1, now);
            model.waiting.clear();
        }
        drain();
        run_ = nullptr;
    }

private:
    bool is_loader() const { return plan_.loads != nullptr; }

    void arrive(std::uint32_t request, Ns now) {
        ++open_;
        if (!is_loader())
            return send(request, now);
        std::uint32_t index = run_->model[request];
        Loaded& model = models_[index];
        if (model.place == Place::LOADED) {
            lru_.splice(lru_.end(), lru_, model.used);
            return send(request, now);
        }
        model.waiting.push_back(request);
        if (model.place == Place::ABSENT) {
            model.place = Place::QUEUED;
            queued_.push_back(index);
        }
    }

    void send(std::uint32_t request, Ns now) {
        std::uint32_t index = run_->model[request];
        if (!connections_.send(request, plan_.requests[index], run_->elapsed_ns[request] + run_->give_up_ns))
            return settle(request, 0, now);
        if (is_loader())
            ++models_[index].under_way;
    }

    void settle(std::uint32_t request, int status, Ns now) {
        --open_;
        run_->status[request] = static_cast<std::int16_t>(status);
        run_->elapsed_ns[request] = now - run_->elapsed_ns[request];
    }

    void end(std::int64_t token, int status) {
        Ns now = now_ns();
        if (token < LOAD_TOKENS) {
            auto request = static_cast<std::uint32_t>(token);
            if (is_loader())
                --models_[run_->model[request]].under_way;
            return settle(request, status, now);
        }
        bool unload = token >= UNLOAD_TOKENS;
        auto index = static_cast<std::uint32_t>(token - (unload ? UNLOAD_TOKENS : LOAD_TOKENS));
        Loaded& model = models_[index];
        if (unload || status != 200) {
            used_bytes_ -= plan_.bytes[index];
            --used_models_;
            if (unload)
                --unloading_;
            else
                std::erase(loading_, index);
            model.place = Place::ABSENT;
            if (!unload)
                for (std::uint32_t request : std::exchange(model.waiting, {}))
                    settle(request, status, now);
            if (!model.waiting.empty()) {
                model.place = Place::QUEUED;
                queued_.push_back(index);
            }
            return;
        }
        std::erase(loading_, index);
        model.place = Place::LOADED;
        model.used = lru_.insert(lru_.end(), index);
        for (std::uint32_t request : std::exchange(model.waiting, {}))
            is_late(request, now) ? settle(request, -2, now) : send(request, now);
    }

    bool is_late(std::uint32_t request, Ns now) const {
        return run_->shed_ns != 0 && now - run_->elapsed_ns[request] > run_->slo_ns[request] / 1000 * run_->shed_ns;
    }

    // Refuse requests that waited too long for their model.
    void leave(Ns now) {
        for (std::uint32_t index : queued_)
            leave(models_[index], now);
        for (std::uint32_t index : loading_)
            leave(models_[index], now);
    }

    void leave(Loaded& model, Ns now) {
        while (!model.waiting.empty() && is_late(model.waiting.front(), now)) {
            settle(model.waiting.front(), -2, now);
            model.waiting.pop_front();
        }
    }

    // Load the models that are waited for, as many at once as may be.
    void pump() {
        while (!queued_.empty() && loading_.size() < plan_.loads_max) {
            std::uint32_t index = queued_.front();
            Loaded& model = models_[index];
            leave(model, now_ns());
            if (model.waiting.empty()) {
                model.place = Place::ABSENT;
                queued_.pop_front();
                continue;
            }
            bool fits = used_bytes_ + plan_.bytes[index] <= plan_.budget && used_models_ < plan_.models_max;
            if (!fits) {
                if (unloading_ == 0)
                    evict();
                return;
            }
            if (!connections_.send(LOAD_TOKENS + index, plan_.loads[index], INT64_MAX))
                return;
            queued_.pop_front();
            used_bytes_ += plan_.bytes[index];
            ++used_models_;
            loading_.push_back(index);
            ++loads_;
            model.place = Place::LOADING;
        }
    }

    // Unload the least recently used model that nobody uses.
    void evict() {
        for (auto at = lru_.begin(); at != lru_.end(); ++at) {
            std::uint32_t index = *at;
            if (models_[index].under_way != 0)
                continue;
            if (!connections_.send(UNLOAD_TOKENS + index, plan_.unloads[index], INT64_MAX))
                return;
            models_[index].place = Place::UNLOADING;
            ++unloading_;
            lru_.erase(at);
            return;
        }
    }

    // Requests that are under way end now; the answers to loads and unloads are read in the next run.
    void drain() {
        connections_.give_up(INT64_MAX - 1, [&](std::int64_t token) { end(token, -1); });
        for (std::uint32_t index : std::exchange(queued_, {}))
            models_[index].place = Place::ABSENT;
    }

    SenderPlan plan_;
    Connections connections_;
    const SenderRun* run_ = nullptr;
    std::uint64_t open_ = 0;
    std::vector<Loaded> models_;
    std::list<std::uint32_t> lru_;  // loaded models, the least recently used first
    std::deque<std::uint32_t> queued_;
    std::int64_t used_bytes_ = 0;
    std::uint32_t used_models_ = 0;
    std::vector<std::uint32_t> loading_;
    std::uint32_t unloading_ = 0;
    std::uint64_t loads_ = 0;
};

}  // namespace

extern "C" {

void* sender_open(const SenderPlan* plan) { return new Sender(*plan); }
void sender_run(void* sender, const SenderRun* run) { static_cast<Sender*>(sender)->run(*run); }
std::uint64_t sender_loads(const void* sender) { return static_cast<const Sender*>(sender)->loads(); }
void sender_close(void* sender) { delete static_cast<Sender*>(sender); }
}
