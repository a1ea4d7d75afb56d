// A whole exchange with its scheduler, between queues instead of sockets, driven by a script of bytes.
//
// The script mixes good and hostile clients and workers: arbitrary bytes as headers, good messages, good
// messages with bytes changed, peers that connect, disconnect, or read nothing. The following invariants hold
// throughout; otherwise the process aborts and names the violated one:
// - a good request of a client that stays is answered exactly once, and no other request is answered;
// - an answer that no liar had a hand in has exactly the bytes that belong to that request;
// - the scheduler's invariants hold after every turn, and at the end nothing is held. Python's part of the
//   exchange is done here in its shortest form: wrong messages are dropped, names are looked up and shapes
//   numbered.
#pragma once

#include <sys/socket.h>
#include <unistd.h>

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <set>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "controller/exchange.h"
#include "fake_zmq.h"
#include "steps.h"

namespace clockwork::fake {

[[noreturn]] inline void broken(const std::string& what) {
    std::fprintf(stderr, "broken: %s\n", what.c_str());
    std::abort();
}

// Bytes of a script, and zeros after its end.
class Script {
public:
    Script(const std::uint8_t* data, std::size_t size) : data_(data), size_(size) {}

    bool is_over() const { return at_ >= size_; }
    std::uint8_t byte() { return at_ < size_ ? data_[at_++] : 0; }
    std::uint32_t below(std::uint32_t bound) { return byte() % bound; }
    std::string bytes(std::size_t count) {
        count = std::min(count, size_ - std::min(at_, size_));
        std::string taken(reinterpret_cast<const char*>(data_ + at_), count);
        at_ += count;
        return taken;
    }
    std::uint64_t number() {
        std::uint64_t value = 0;
        for (std::uint32_t count = 1 + below(8); count > 0; --count)
            value = value << 8 | byte();
        return value;
    }

private:
    const std::uint8_t* data_;
    std::size_t size_;
    std::size_t at_ = 0;
};

// A connection as the exchange sees it: an open descriptor, and the events of its socket's monitor.
class Line {
public:
    Line() = default;
    Line(const Line&) = delete;
    ~Line() { close_both(); }

    int fd() const { return ends_[0]; }

    void open(Socket& monitor) {
        if (socketpair(AF_UNIX, SOCK_STREAM, 0, ends_) != 0)
            broken("no descriptors are left");
        say(monitor, CLOCKWORK_ZMQ_EVENT_ACCEPTED);
    }
    void close(Socket& monitor) {
        say(monitor, CLOCKWORK_ZMQ_EVENT_DISCONNECTED);
        close_both();
    }

private:
    void say(Socket& monitor, std::uint16_t event) {
        std::string body(6, 0);
        std::uint32_t value = static_cast<std::uint32_t>(ends_[0]);
        std::memcpy(body.data(), &event, sizeof event);
        std::memcpy(body.data() + sizeof event, &value, sizeof value);
        monitor.arrive({body, "tcp://127.0.0.1:1"});
    }
    void close_both() {
        for (int& end : ends_) {
            if (end >= 0)
                ::close(end);
            end = -1;
        }
    }

    int ends_[2] = {-1, -1};
};

class Rig {
public:
    explicit Rig(const std::string& policy) {
        zmq = &api();
        SchedulerOptions options;
        options.policy = policy;
        scheduler_ = make_scheduler(options);
        std::vector<std::string> texts(TEXTS, "{name}: {a}, {b}, {a_ms:.1f} ms");
        texts[static_cast<std::size_t>(AnswerText::LOAD_FAILED)] =
            texts[static_cast<std::size_t>(AnswerText::VERBATIM)] = "{said}";
        Sentences sentences(std::move(texts), std::vector<std::string>(STATUS_COUNT, "STATUS_NAME"),
                            std::vector<std::string>(REASONS, "reason"));
        LookupFunctions lookups;
        lookups.owner = this;
        lookups.model = [](void* owner, std::string_view text, ModelId* model_id) {
            *model_id = static_cast<Rig*>(owner)->model_of(text);
            return 1;
        };
        lookups.shape_number = [](void* owner, const std::vector<std::int64_t>* shape, std::uint32_t* number) {
            *number = static_cast<Rig*>(owner)->shape_number(*shape);
            return 1;
        };
        lookups.shape = [](void* owner, std::uint32_t number, std::vector<std::int64_t>* shape) {
            for (const auto& [known, one] : static_cast<Rig*>(owner)->shapes_) {
                if (one == number)
                    *shape = known;
            }
            return 1;
        };
        exchange_ = std::make_unique<Exchange>(*scheduler_, RouterSocket(&from_workers_, &workers_news_),
                                               RouterSocket(&from_clients_, &clients_news_), sentences, lookups,
                                               ExchangeBounds(), ring_);
        exchange_->parts().request_intake.shared_machine = MACHINE;
        add_models();
        for (std::uint32_t number = 0; number < WORKERS; ++number)
            worker_joins(number);
        for (std::uint32_t number = 0; number < CLIENTS; ++number)
            client_joins(number);
    }

    // The first byte of the script sets how many of 256 steps are good requests, good results and turns.
    void play(Script script) {
        calm_ = script.byte();
        while (!script.is_over() && steps_++ < STEPS_MAX)
            act(script);
        for (auto& [identity, is_full] : from_clients_.peers)
            is_full = false;
        pump();
        for (std::uint32_t number = 0; number < CLIENTS; ++number) {
            if (!clients_[number].is_there)
                client_joins(number);
        }
        exchange_->parts().answers.fail_all(Status::UNAVAILABLE, "the end", exchange_->now());
        read_answers();
        for (const Client& client : clients_) {
            if (!client.waiting.empty())
                broken("a good request was never answered");
        }
        if (exchange_->parts().requests.size() != 0)
            broken("requests are held at the end");
    }

    // Counts of useful steps: a script whose messages are all dropped proves nothing.
    std::uint64_t good_answers() const { return good_answers_; }

private:
    static constexpr std::size_t TEXTS = static_cast<std::size_t>(AnswerText::VERBATIM) + 1;
    static constexpr std::uint32_t WORKERS = 2, CLIENTS = 3;
    static constexpr std::size_t STEPS_MAX = 400;
    static constexpr std::uint32_t PAGES = 8;
    static constexpr std::int64_t GOOD_IDS = 1 << 20;  // ids of good requests begin here
    static constexpr std::int64_t FLOAT = 1, UINT8 = 2, INT64 = 7, STRING = 8, BOOL = 9;
    static constexpr std::int64_t MACHINE = 7;  // the machine whose memory every worker can map
    static constexpr ModelId WORDS = 5;

    struct Waiting {
        std::vector<std::string> outputs;  // the outputs that the client must get
        bool is_tainted = false;           // whether a liar had the request
    };
    struct Client {
        std::string identity;
        std::uint32_t slot = 0;
        bool is_there = false;
        Line line;
        std::map<std::int64_t, Waiting> waiting;
        std::set<std::int64_t> wild;  // ids of other messages that may count as requests
    };
    struct Action {
        ActionId action_id = 0;
        std::vector<std::vector<std::string>> parts;  // the inputs of an INFER, request by request
        std::size_t outputs = 0;
    };
    struct Worker {
        std::string identity;
        WorkerId id = 0;
        std::uint32_t slot = 0;
        bool is_there = false;
        Line line;
        std::deque<Action> actions;
    };

    // ----- set-up --------------------------------------------------------------------------------

    static InputSpec input(const char* name, std::int64_t dtype, std::int64_t bits, std::vector<std::int64_t> dims,
                           std::vector<std::int32_t> symbols) {
        InputSpec spec;
        spec.name = name;
        spec.dtype = dtype;
        spec.bits = bits;
        spec.dims = std::move(dims);
        spec.symbols = std::move(symbols);
        return spec;
    }

    void add_models() {
        auto image = std::make_shared<ModelInterface>();
        image->inputs = {input("x", FLOAT, 32, {DIMENSION_ANY, 4}, {0, -1})};
        image->outputs = {"y"};
        image->symbols = {"N"};
        image->batches = true;
        auto pair = std::make_shared<ModelInterface>();
        pair->inputs = {input("ids", INT64, 64, {DIMENSION_ANY, DIMENSION_ANY}, {0, 1}),
                        input("mask", BOOL, 8, {DIMENSION_ANY, DIMENSION_ANY}, {0, 1})};
        pair->outputs = {"a", "b"};
        pair->symbols = {"N", "T"};
        pair->batches = true;
        auto fixed = std::make_shared<ModelInterface>();
        fixed->inputs = {input("x", UINT8, 8, {4}, {-1})};
        fixed->outputs = {"y"};
        auto words = std::make_shared<ModelInterface>();
        words->inputs = {input("w", STRING, BITS_OF_STRING, {DIMENSION_ANY}, {0})};
        words->outputs = {"y"};
        words->symbols = {"N"};
        words->batches = true;
        interfaces_ = {nullptr, image, pair, fixed, image, words};
        for (ModelId model = 1; model < static_cast<ModelId>(interfaces_.size()); ++model)
            serve(model);
    }

    bool stays(ModelId model) { return exchange_->parts().models.find(model) != nullptr && removed_.count(model) == 0; }

    void serve(ModelId model) {
        exchange_->parts().models.serve(model, 1, "model", 0, interfaces_[static_cast<std::size_t>(model)]);
        exchange_->parts().routes.route(name_of(model), {{model, SHARE_WHOLE}});
        if (stays(1) && stays(4)) {
            exchange_->parts().routes.route("mixed", {{1, SHARE_WHOLE}}, 4, SHARE_WHOLE / 2, 1e-6);
        }
    }

    static std::string name_of(ModelId model) {
        static const char* const names[] = {"", "image", "pair", "fixed", "other", "words"};
        return names[model];
    }

    // The id of a text that is no route's: a model's name, and its version.
    ModelId model_of(std::string_view text) {
        for (ModelId model = 1; model < static_cast<ModelId>(interfaces_.size()); ++model) {
            if (text == name_of(model) + "@1" && stays(model))
                return model;
        }
        return 0;
    }

    std::uint32_t shape_number(const std::vector<std::int64_t>& shape) {
        auto found = shapes_.find(shape);
        if (found != shapes_.end())
            return found->second;
        std::uint32_t number = static_cast<std::uint32_t>(shapes_.size()) + 1;
        shapes_.emplace(shape, number);
        scheduler_->shape_known(number, 4);
        return number;
    }

    ModelSpec spec_of(ModelId model) {
        ModelSpec spec;
        spec.model_id = model;
        spec.program = static_cast<std::uint32_t>(model);
        spec.batches = interfaces_[static_cast<std::size_t>(model)]->batches;
        spec.batch_max = spec.batches ? 8 : 1;
        spec.runs = {2, 1};
        spec.load_ns = 100'000;
        std::uint32_t shape = shape_number(model == 2       ? std::vector<std::int64_t>{1, 2, 1, 2}
                                           : model == WORDS ? std::vector<std::int64_t>{0}
                                                            : std::vector<std::int64_t>{1, 4});
        for (std::uint32_t batch = 1; batch <= spec.batch_max; batch *= 2) {
            spec.profile.push_back({shape, batch, 20'000 + 2'000 * batch});
        }
        return spec;
    }

    void worker_joins(std::uint32_t number) {
        Worker& worker = workers_[number];
        worker.identity = "worker-" + std::to_string(number);
        worker.id = ++last_worker_;
        worker.actions.clear();
        worker.line.open(workers_news_);
        pump();
        worker.is_there = true;
        from_workers_.peers[worker.identity] = false;
        scheduler_->worker_joined(exchange_->now(), worker.id, {DeviceSpec{1, 1 << 20, PAGES, 2}});
        scheduler_->link_measured(exchange_->now(), worker.id, 1000, 1000);
        for (ModelId model = 1; model < static_cast<ModelId>(interfaces_.size()); ++model) {
            if (stays(model)) {
                scheduler_->model_ready(exchange_->now(), worker.id, spec_of(model));
            }
        }
        worker.slot =
            exchange_->parts().workers.joined(worker.identity, worker.line.fd(), "", worker.id, 1, exchange_->now());
        exchange_->parts().scheduler.noted("\x92\x09\x01");
    }

    void worker_leaves(Worker& worker) {
        worker.is_there = false;
        worker.actions.clear();
        from_workers_.peers.erase(worker.identity);
        scheduler_->worker_left(exchange_->now(), worker.id);
        exchange_->parts().workers.left(worker.slot, exchange_->now());
        worker.line.close(workers_news_);
        exchange_->parts().scheduler.noted("\x92\x09\x01");
    }

    void client_joins(std::uint32_t number) {
        Client& client = clients_[number];
        client.identity = "client-" + std::to_string(number);
        client.line.open(clients_news_);
        pump();
        client.is_there = true;
        from_clients_.peers[client.identity] = false;
        client.slot = exchange_->parts().clients.joined(client.identity, client.line.fd(), "", exchange_->now());
        if (client.slot == NO_SLOT)
            broken("a client is not let in");
    }

    void client_leaves(Client& client) {
        read_answers();
        client.is_there = false;
        client.waiting.clear();
        client.wild.clear();
        from_clients_.peers.erase(client.identity);
        exchange_->parts().clients.left(client.slot, exchange_->now());
        client.line.close(clients_news_);
    }

    // ----- what may happen -----------------------------------------------------------------------

    void act(Script& script) {
        Client& client = clients_[script.below(CLIENTS)];
        Worker& worker = workers_[script.below(WORKERS)];
        std::uint32_t what = script.byte();
        switch (what < calm_ ? what % 8 : what % 18) {
            case 0:
            case 1:
            case 2: good_request(client, script); break;
            case 3:
            case 4:
            case 5: good_result(worker, script); break;
            case 6:
            case 7: pump(); break;
            case 8: wild_request(client, changed(request_header(1 + script.below(200), script), script), script); break;
            case 9: wild_request(client, script.bytes(script.byte()), script); break;
            case 10: cancel(client, script); break;
            case 11: changed_result(worker, script); break;
            case 12: wild_result(worker, script.bytes(script.byte()), script); break;
            case 13:
                pump();
                if (script.below(2) == 0) {
                    if (client.is_there)
                        client_leaves(client);
                    else
                        client_joins(index_of(client));
                } else {
                    if (worker.is_there)
                        worker_leaves(worker);
                    else
                        worker_joins(index_of(worker));
                }
                break;
            case 14:  // the peer reads nothing for a while
                if (script.below(2) == 0) {
                    if (client.is_there)
                        from_clients_.peers[client.identity] = script.below(2) == 0;
                } else {
                    if (worker.is_there)
                        from_workers_.peers[worker.identity] = script.below(2) == 0;
                }
                break;
            case 15: odd_message(script); break;
            case 16: change_model(1 + script.below(5)); break;
            case 17: set_clock(worker, script); break;
        }
    }

    std::uint32_t index_of(const Client& one) const { return static_cast<std::uint32_t>(&one - clients_); }
    std::uint32_t index_of(const Worker& one) const { return static_cast<std::uint32_t>(&one - workers_); }

    struct Asked {
        Message message;
        std::vector<std::string> inputs;
        std::size_t outputs = 1;
    };

    // Writes [id, model, slo, priority, tensors] and its frames; their bytes are unlike any other request's.
    Asked request(std::int64_t request_id, Script& script) {
        ModelId model = 1 + script.below(5);
        std::string name = script.below(4) == 0 && exchange_->parts().routes.shadow_tally("mixed") != nullptr
                               ? "mixed"
                               : name_of(model);
        if (name == "mixed")
            model = 1;
        else if (request_id % 8 == 0)
            name += "@1";
        std::int64_t rows = 1 + script.below(3);
        static constexpr Ns slos[] = {0, 1, MS, SECOND, 3600 * SECOND};
        Asked asked;
        writer_.clear();
        writer_.array(6);
        writer_.integer(TAG_INFER_REQUEST);
        writer_.integer(request_id);
        writer_.text(name);
        writer_.integer(slos[script.below(5)]);
        writer_.integer(script.below(10));
        const std::vector<InputSpec>& inputs = interfaces_[static_cast<std::size_t>(model)]->inputs;
        writer_.array(inputs.size());
        for (std::size_t place = 0; place < inputs.size(); ++place) {
            writer_.array(4);
            writer_.text(inputs[place].name);
            bool is_shared = request_id % 5 == 3 && model != WORDS;
            writer_.integer(inputs[place].dtype | (is_shared ? SHARED : 0));
            std::vector<std::int64_t> dims = model == 3       ? std::vector<std::int64_t>{4}
                                             : model == WORDS ? std::vector<std::int64_t>{rows}
                                                              : std::vector<std::int64_t>{rows, model == 2 ? 2 : 4};
            writer_.array(dims.size());
            std::int64_t bits = inputs[place].bits;
            for (std::int64_t one : dims)
                writer_.integer(one), bits *= one;
            writer_.integer(static_cast<std::int64_t>(place));
            if (model == WORDS) {
                asked.inputs.push_back(words(rows));
                continue;
            }
            std::string frame(static_cast<std::size_t>(bits / 8), static_cast<char>(place));
            std::size_t first = 0;
            if (is_shared) {  // a reference: any value but that of the machine may be wrong
                frame.assign(REFERENCE_BYTES, '\0');
                std::memcpy(frame.data(), &MACHINE, sizeof MACHINE);
                first = sizeof MACHINE;
            }
            std::uint64_t mark = ++mark_;
            for (std::size_t at = first; at < frame.size() && mark != 0; ++at, mark >>= 8)
                frame[at] = static_cast<char>(mark);
            asked.inputs.push_back(std::move(frame));
        }
        asked.outputs = interfaces_[static_cast<std::size_t>(model)]->outputs.size();
        asked.message = {"", std::string(writer_.view())};
        asked.message.insert(asked.message.end(), asked.inputs.begin(), asked.inputs.end());
        return asked;
    }

    // Writes so many strings, the first of which is unlike any other request's.
    std::string words(std::int64_t count) {
        std::uint64_t mark = ++mark_;
        std::string frame{8, 0, 0, 0};
        for (int place = 0; place < 8; ++place, mark >>= 8)
            frame += static_cast<char>(mark);
        for (; count > 1; --count)
            frame += std::string{2, 0, 0, 0, 'a', 'b'};
        return frame;
    }

    std::string request_header(std::int64_t request_id, Script& script) {
        return request(request_id, script).message[1];
    }

    static std::string output_of(std::size_t place, const std::vector<std::string>& inputs) {
        std::string output(1, static_cast<char>(place));
        for (const std::string& one : inputs)
            output += one;
        return output;
    }

    void good_request(Client& client, Script& script) {
        while (client.wild.count(last_good_ + 1) != 0)
            ++last_good_;
        std::int64_t request_id = last_good_ + 1;
        Asked asked = request(request_id, script);
        if (!client.is_there)
            return;
        pump();  // so that no request of that number is still on its way
        if (!client.is_there)
            return;
        last_good_ = request_id;
        asked.message[0] = client.identity;
        std::string header = asked.message[1];
        from_clients_.arrive(std::move(asked.message), client.line.fd());
        Waiting waiting;
        for (std::size_t place = 0; place < asked.outputs; ++place) {
            waiting.outputs.push_back(output_of(place, asked.inputs));
        }
        client.waiting.emplace(request_id, std::move(waiting));
        holder_of_[asked.inputs.front()] = {index_of(client), request_id};
    }

    void wild_request(Client& client, const std::string& header, Script& script) {
        Message message{client.identity, header};
        for (std::uint32_t count = script.below(4); count > 0; --count) {
            static constexpr std::size_t sizes[] = {0, 4, 16, 32, 1000};
            message.emplace_back(sizes[script.below(5)], 'w');
        }
        wire::InferRequest read;
        HeaderFlaw flaw;
        if (read.read(message[1], flaw))
            client.wild.insert(read.request_id);
        if (client.is_there)
            from_clients_.arrive(std::move(message), client.line.fd());
    }

    static std::string changed(std::string header, Script& script) {
        for (std::uint32_t count = 1 + script.below(3); count > 0 && !header.empty(); --count) {
            std::size_t place = script.byte() % header.size();
            switch (script.below(4)) {
                case 0: header[place] = static_cast<char>(script.byte()); break;
                case 1: header.insert(place, script.bytes(1 + script.below(8))); break;
                case 2: header.erase(place, 1 + script.below(4)); break;
                case 3:
                    header[place] = static_cast<char>("\x00\x7f\x80\x90\xc0\xcb\xcf\xd3\xdb\xdd\xff"[script.below(11)]);
            }
        }
        return header;
    }

    void cancel(Client& client, Script& script) {
        std::int64_t request_id =
            script.below(2) == 0 ? last_good_ - script.below(4) : static_cast<std::int64_t>(script.number());
        writer_.clear();
        writer_.array(2);
        writer_.integer(TAG_CANCEL);
        writer_.integer(request_id);
        if (client.is_there)
            from_clients_.arrive({client.identity, std::string(writer_.view())}, client.line.fd());
    }

    // Writes [action, status, text, received, three phases, parts] and its frames.
    Message result_of(const Action& action, std::int64_t status, std::uint64_t began_ns) {
        writer_.clear();
        writer_.array(9);
        writer_.integer(TAG_RESULT);
        writer_.natural(action.action_id);
        writer_.integer(status);
        writer_.text(status == 0 ? "" : "it was so");
        writer_.natural(began_ns);
        for (int phase = 0; phase < 3; ++phase) {
            writer_.array(3);
            writer_.natural(began_ns);
            writer_.natural(began_ns != 0 ? began_ns + 1000 : 0);
            writer_.natural(1000);
        }
        Message message{"", ""};
        writer_.array(status == 0 ? action.parts.size() : 0);
        for (std::size_t part = 0; status == 0 && part < action.parts.size(); ++part) {
            writer_.array(action.outputs);
            for (std::size_t place = 0; place < action.outputs; ++place) {
                std::string output = output_of(place, action.parts[part]);
                writer_.array(3);
                writer_.integer(UINT8);
                writer_.array(1);
                writer_.natural(output.size());
                writer_.natural(message.size() - 2);
                message.push_back(std::move(output));
            }
        }
        message[1] = writer_.view();
        return message;
    }

    void good_result(Worker& worker, Script& script) {
        static constexpr std::int64_t statuses[] = {0, 0, 0, 0, 0, 0, 6, 20, 21, 25, 26};
        std::int64_t status = statuses[script.below(11)];
        bool is_stamped = script.below(2) == 0;
        if (!worker.is_there || worker.actions.empty())
            return;
        Action action = std::move(worker.actions.front());
        worker.actions.pop_front();
        Message message = result_of(action, status, is_stamped ? 1'000'000 : 0);
        message[0] = worker.identity;
        from_workers_.arrive(std::move(message), worker.line.fd());
    }

    void changed_result(Worker& worker, Script& script) {
        if (!worker.is_there || worker.actions.empty())
            return;
        Message message = result_of(worker.actions.front(), 0, script.below(2));
        taint(worker);
        if (script.below(2) == 0)
            worker.actions.pop_front();
        message[0] = worker.identity;
        message[1] = changed(message[1], script);
        if (message.size() > 2 && script.below(3) == 0)
            message.pop_back();
        if (script.below(3) == 0)
            message.emplace_back("more");
        from_workers_.arrive(std::move(message), worker.line.fd());
    }

    void wild_result(Worker& worker, const std::string& header, Script& script) {
        taint(worker);
        Message message{worker.identity, header};
        for (std::uint32_t count = script.below(3); count > 0; --count)
            message.emplace_back(script.byte(), 'w');
        if (worker.is_there)
            from_workers_.arrive(std::move(message), worker.line.fd());
    }

    // From now on any result for this worker's actions is allowed.
    void taint(const Worker& worker) {
        for (const Action& action : worker.actions) {
            for (const auto& inputs : action.parts) {
                auto holder = holder_of_.find(inputs.front());
                if (holder == holder_of_.end())
                    continue;
                auto& waiting = clients_[holder->second.first].waiting;
                if (auto found = waiting.find(holder->second.second); found != waiting.end()) {
                    found->second.is_tainted = true;
                }
            }
        }
    }

    void odd_message(Script& script) {
        bool is_client = script.below(2) == 0;
        Socket& socket = is_client ? from_clients_ : from_workers_;
        std::string identity =
            is_client ? clients_[script.below(CLIENTS)].identity : workers_[script.below(WORKERS)].identity;
        switch (script.below(4)) {
            // an unknown identity
            case 0: socket.arrive({script.bytes(script.byte()), script.bytes(script.byte())}); break;
            // a message without a body
            case 1: socket.arrive({identity}); break;
            // a message of a peer that has disconnected
            case 2: socket.arrive({identity, "", ""}, -1); break;
            case 3: {
                Message many(3 + 256 * (script.below(3)), "x");
                many[0] = identity;
                socket.arrive(std::move(many));
            }
        }
    }

    void change_model(ModelId model) {
        pump();
        if (exchange_->parts().models.find(model) == nullptr) {
            serve(model);
            for (const Worker& worker : workers_) {
                if (worker.is_there)
                    scheduler_->model_ready(exchange_->now(), worker.id, spec_of(model));
            }
        } else if (removed_.count(model) == 0) {
            leave(model);
            scheduler_->model_removed(exchange_->now(), model);
        }
        exchange_->parts().scheduler.noted("\x92\x09\x01");
    }

    void leave(ModelId model) {
        removed_.insert(model);
        if (model == 1 || model == 4)
            exchange_->parts().routes.unroute("mixed");
        exchange_->parts().routes.unroute(name_of(model));
    }

    // Like clocksync: a worker's clock is not believed beyond CLOCK_MAX.
    void set_clock(Worker& worker, Script& script) {
        constexpr std::uint64_t CLOCK_MAX = std::uint64_t{1} << 60;
        Ns sign = script.below(2) == 0 ? 1 : -1;
        Ns offset = sign * static_cast<Ns>(script.number() % CLOCK_MAX);
        if (!worker.is_there)
            return;
        exchange_->parts()
            .workers.at(worker.slot)
            .clock.set(offset + 1000, exchange_->now(), offset - 1000, exchange_->now());
    }

    // ----- turns, as the loop in Python has them --------------------------------------------------

    void pump() {
        for (int idle = 0; idle < 2;) {
            switch (exchange_->run(0)) {
                case Exchange::NOTHING: broken("run() said nothing");
                case Exchange::OTHER: idle += from_clients_.incoming.empty() && from_workers_.incoming.empty(); break;
                case Exchange::WORKERS_LEFT: exchange_->port(Exchange::WORKERS).ended(); break;
                case Exchange::CLIENTS_LEFT: exchange_->port(Exchange::CLIENTS).ended(); break;
                case Exchange::WORKER_MESSAGE: break;
                case Exchange::CLIENT_MESSAGE: break;
                case Exchange::WRONG_RESULT: wrong_result(); break;
                case Exchange::WRONG_REQUEST: wrong_request(); break;
                case Exchange::ORDER: order(); break;
                case Exchange::ORDERS_DONE: end_orders(); break;
            }
            read_orders();
            read_answers();
        }
        scheduler_->check_invariants();
    }

    // Python answers the request with a sentence. A good request is refused because its model was removed.
    void wrong_request() {
        const WrongMessage& wrong = exchange_->wrong();
        check_wrong(wrong);
        std::string identity(exchange_->haul().identity(exchange_->current()).view());
        for (Client& client : clients_) {
            if (!client.is_there || client.identity != identity || wrong.flaw.code == Flaw::IN_USE)
                continue;
            if (client.waiting.erase(wrong.id) != 0 && client.wild.count(wrong.id) == 0 &&
                wrong.flaw.code != Flaw::UNSERVED) {
                broken("a good request was turned down");
            }
        }
    }

    // The action's worker is closed, or the action fails.
    void wrong_result() {
        const WrongMessage& wrong = exchange_->wrong();
        check_wrong(wrong);
        std::string identity(exchange_->haul().identity(exchange_->current()).view());
        for (Worker& worker : workers_) {
            if (!worker.is_there || worker.identity != identity)
                continue;
            if (wrong.header.kind != HeaderFlaw::NONE)
                worker_leaves(worker);
            else if (!exchange_->parts().result_intake.fail_action(worker.slot, static_cast<ActionId>(wrong.id), "none",
                                                                   exchange_->now()))
                broken("a result of no action is wrong");
        }
    }

    // Checks that the failed answer has a sentence.
    void check_wrong(const WrongMessage& wrong) {
        if (wrong.header.kind != HeaderFlaw::NONE)
            return;
        if (wrong.flaw.code == Flaw::NONE || wrong.flaw.code >= Flaw::CODES)
            broken("nothing is wrong");
        if (wrong.flaw.code == Flaw::UNSERVED)
            return;
        if (wrong.interface == nullptr || wrong.model_id == 0) {
            if (wrong.is_request)
                broken("a request is wrong for no model");
            return;
        }
        std::size_t tensors = wrong.is_request ? wrong.interface->inputs.size() : wrong.interface->outputs.size();
        if (wrong.flaw.tensor > tensors || wrong.flaw.ref > wrong.tensors->size())
            broken("a tensor is wrong that is not there");
    }

    void order() {
        const Command& command = scheduler_->out.list[exchange_->parts().router.place()];
        if (command.kind == CommandKind::MODEL_FAULT) {
            if (command.set_aside)
                leave(command.model_id);  // set aside: the scheduler removes the model by itself
            return;
        }
        if (command.kind == CommandKind::MODEL_GONE) {
            if (removed_.erase(command.model_id) == 0)
                broken("a model went that nobody removed");
            exchange_->parts().models.forget(command.model_id);
            return;
        }
        broken("an order of a kind that is the exchange's");
    }

    // The recorder's ring is small, so that it forgets many steps; the bytes kept are whole steps.
    void check_recording() {
        ring_->read(0, RING_BYTES, recorded_);
        if (take_steps(recorded_) < 0 || !recorded_.empty())
            broken("what was recorded is no whole number of steps");
    }

    void end_orders() {
        scheduler_->out.clear();
        check_recording();
        std::vector<std::uint32_t> clients = std::exchange(exchange_->parts().clients.lost(), {});
        std::vector<WorkerId> workers = std::exchange(exchange_->parts().workers.lost(), {});
        for (Client& client : clients_) {
            bool is_lost = std::find(clients.begin(), clients.end(), client.slot) != clients.end();
            if (client.is_there && is_lost)
                client_leaves(client);
        }
        for (Worker& worker : workers_) {
            bool is_lost = std::find(workers.begin(), workers.end(), worker.id) != workers.end();
            if (worker.is_there && is_lost)
                worker_leaves(worker);
        }
    }

    // The actions that workers were sent.
    void read_orders() {
        for (Message& message : from_workers_.sent) {
            Reader reader(message[1].data(), message[1].size());
            std::uint32_t count = 0;
            std::int64_t tag = 0, action_id = 0;
            if (!reader.array(count) || !reader.integer(tag) || !reader.integer(action_id))
                broken("an order is no order");
            for (Worker& worker : workers_) {
                if (worker.identity != message[0] || !worker.is_there)
                    continue;
                if (tag == TAG_REVOKE)
                    continue;
                worker.actions.push_back({static_cast<ActionId>(action_id), {}, 0});
                if (tag == TAG_INFER)
                    read_parts(reader, message, worker.actions.back());
            }
        }
        from_workers_.sent.clear();
    }

    void read_parts(Reader& reader, const Message& message, Action& action) {
        std::int64_t device = 0, model = 0, skipped = 0;
        std::uint32_t parts = 0, tensors = 0, fields = 0, rank = 0;
        bool is_good = reader.integer(device) && reader.integer(model);
        for (int place = 0; place < 4; ++place)
            is_good = is_good && reader.integer(skipped);  // the load id and the window
        is_good = is_good && reader.array(parts);
        for (std::uint32_t part = 0; is_good && part < parts; ++part) {
            is_good = reader.array(tensors);
            std::vector<std::string>& inputs = action.parts.emplace_back();
            for (std::uint32_t place = 0; is_good && place < tensors; ++place) {
                std::int64_t frame = 0;
                is_good = reader.array(fields) && fields == 3 && reader.integer(skipped) && reader.array(rank);
                for (std::uint32_t one = 0; is_good && one < rank; ++one)
                    is_good = reader.integer(skipped);
                is_good = is_good && reader.integer(frame) && static_cast<std::size_t>(frame) + 2 < message.size();
                if (is_good)
                    inputs.push_back(message[static_cast<std::size_t>(frame) + 2]);
            }
        }
        if (!is_good || !reader.done() || model <= 0 || static_cast<std::size_t>(model) >= interfaces_.size()) {
            broken("an INFER that a worker could not read");
        }
        action.outputs = interfaces_[static_cast<std::size_t>(model)]->outputs.size();
    }

    void read_answers() {
        for (Message& message : from_clients_.sent) {
            Reader reader(message[1].data(), message[1].size());
            std::uint32_t count = 0;
            std::int64_t tag = 0, request_id = 0;
            if (!reader.array(count) || !reader.integer(tag) || !reader.integer(request_id))
                broken("an answer is none");
            if (tag != TAG_ANSWER && tag != TAG_FAILURE)
                broken("an answer of another kind");
            for (Client& client : clients_) {
                if (client.identity == message[0])
                    answered(client, request_id, tag == TAG_ANSWER, message);
            }
        }
        from_clients_.sent.clear();
    }

    void answered(Client& client, std::int64_t request_id, bool is_good, const Message& message) {
        auto found = client.waiting.find(request_id);
        if (found == client.waiting.end()) {
            if (client.wild.count(request_id) == 0)
                broken("an answer that nobody waits for");
            return;
        }
        const Waiting& waiting = found->second;
        if (is_good && !waiting.is_tainted) {
            if (message.size() - 2 != waiting.outputs.size())
                broken("an answer with other outputs");
            for (std::size_t place = 0; place < waiting.outputs.size(); ++place) {
                if (message[place + 2] != waiting.outputs[place])
                    broken("an answer with another's bytes");
            }
            ++good_answers_;
        }
        client.waiting.erase(found);
    }

    std::unique_ptr<Scheduler> scheduler_;
    Socket from_workers_, workers_news_, from_clients_, clients_news_;
    static constexpr std::size_t RING_BYTES = 16 << 10;
    std::shared_ptr<Ring> ring_ = std::make_shared<Ring>(RING_BYTES, 60 * SECOND);
    std::string recorded_;
    std::unique_ptr<Exchange> exchange_;
    std::vector<std::shared_ptr<const ModelInterface>> interfaces_;
    std::map<std::vector<std::int64_t>, std::uint32_t> shapes_;
    std::set<ModelId> removed_;  // ids of models that are being removed
    Client clients_[CLIENTS];
    Worker workers_[WORKERS];
    // request of each answer, by the bytes of the first input
    std::map<std::string, std::pair<std::uint32_t, std::int64_t>> holder_of_;
    WorkerId last_worker_ = 0;
    std::int64_t last_good_ = GOOD_IDS;
    std::uint64_t mark_ = 0;
    std::uint64_t good_answers_ = 0;
    std::size_t steps_ = 0;
    std::uint32_t calm_ = 0;
    Writer writer_;
};

}  // namespace clockwork::fake
