#include "scheduler/memory.h"

#include <algorithm>
#include <stdexcept>

#include "scheduler/memory_adaptive.h"
#include "scheduler/memory_paper.h"
#include "scheduler/queued.h"

namespace clockwork {

Ns Memory::now() const { return queued_.now_; }

void Memory::touch(Device& device) { queued_.touch(device); }

Model& Memory::model_at(std::uint32_t slot) const { return *queued_.model_pool_.at(slot); }

std::uint32_t Memory::waiting(const Model& model) const { return queued_.waiting(model); }

Queue* Memory::queue(const Model& model, std::size_t index) const {
    const auto& queues = queued_.at(model).queues;
    return index < queues.size() ? queues[index].get() : nullptr;
}

KindSpec* Memory::loadable(const Device& device, const Model& model) const {
    if (!device.usable()) {
        return nullptr;
    }
    KindSpec* spec = model.spec(device);
    if (spec == nullptr || spec->page_count > device.pages.page_count() || !device.worker->could_host(*spec)) {
        return nullptr;
    }
    bool is_there =
        !model.residencies.empty() &&
        (device.find(&model) != nullptr || std::any_of(device.pending.begin(), device.pending.end(),
                                                       [&](const Residency* one) { return one->model == &model; }));
    return is_there ? nullptr : spec;
}

bool Memory::is_loadable_somewhere(const Model& model) const {
    return std::any_of(model.workers.begin(), model.workers.end(), [&](WorkerId worker_id) {
        const Worker* worker = queued_.find_worker(worker_id);  // null: it is just leaving
        return worker != nullptr && std::any_of(worker->devices.begin(), worker->devices.end(),
                                                [&](const Device* one) { return loadable(*one, model) != nullptr; });
    });
}

std::uint32_t Memory::loading(const Device& device) {
    std::uint32_t count = 0;
    for (const Device* one : device.worker->devices) {
        count += one->loading + static_cast<std::uint32_t>(one->pending.size());
    }
    return count;
}

bool Memory::takes_load(Device& device) const { return queued_.takes_load(device, loading(device)); }

Ns Memory::backlog_ns(const Device& device, const Ahead& ahead, Ns enough_ns) const {
    double sum = 0, enough = static_cast<double>(enough_ns);
    if (shares_.size() < queued_.states_.size()) {
        shares_.resize(queued_.states_.size());
    }
    bool is_any_doomed = device.doomed > 0;
    Bits::for_each_in_both(queued_.at(device).models, queued_.work_, [&](std::uint32_t slot) {
        if (queued_.first_due_ns_[slot] > ahead.due_ns) {
            return true;  // most are, and this lies close together
        }
        Share& share = shares_[slot];
        if (!is_any_doomed && share.round == round_of_shares_ && share.kind == device.kind && share.is_one) {
            sum += share.time_ns;
            return sum < enough;
        }
        const Model& model = *queued_.model_pool_.at(slot);
        share = {round_of_shares_, device.kind, true, 0};
        if (&model == &ahead.but) {
            return true;
        }
        if (is_any_doomed && device.find(&model)->doomed) {
            share.is_one = false;  // elsewhere it is not
            return true;
        }
        const KindSpec& spec = *model.spec(device);
        std::uint32_t count = 0;
        for (const auto& queue : queued_.at(model).queues) {
            if (queue->ready && queue->front().deadline_ns <= ahead.due_ns) {
                std::uint32_t most = std::max(spec.batch_max, 1u), rows = queue->rows();
                Ns takes = queued_.duration_ns(spec, queue->shape, std::min(rows, most));
                double all = static_cast<double>(takes) * std::max(1.0, static_cast<double>(rows) / most);
                share.time_ns = all / static_cast<double>(model.residencies.size());
                sum += share.time_ns;
                ++count;
            }
        }
        share.is_one = count <= 1 && !model.is_varied;
        return sum < enough;
    });
    return static_cast<Ns>(sum);
}

Device* Memory::find_target(const Model& model, Scorer scorer) {
    std::size_t count = model.workers.size();
    Device* best = nullptr;
    Score least = WORST_SCORE;
    std::size_t seen = 0;
    begin_backlogs();
    for (std::size_t step = 0; step < count && seen < TARGET_SCAN_MAX; ++step) {
        const Worker* worker = queued_.find_worker(model.workers[(round_ + step) % count]);
        if (worker == nullptr) {
            continue;  // it is just leaving
        }
        for (Device* device : worker->devices) {
            ++seen;
            KindSpec* spec = loadable(*device, model);
            if (spec == nullptr) {
                continue;
            }
            Score here = scorer(*this, *device, *spec, model, least);
            if (here.time_ns >= 0 && here < least) {
                best = device;
                least = here;
            }
        }
    }
    ++round_;
    return best;
}

Device* Memory::find_spare(const Model& model) {
    Device* found = nullptr;
    std::size_t seen = 0;
    std::uint32_t from = spare_from_;
    bool is_behind = true;  // the devices from that slot on come first, then those before it
    auto look = [&](std::uint32_t slot) {
        if ((slot >= from) != is_behind) {
            return true;
        }
        Device* device = queued_.device_pool_.at(slot);
        const KindSpec* spec = model.spec(*device);
        bool is_spare = spec != nullptr && device->lane.empty() && device->has_room(*spec) && loading(*device) == 0 &&
                        loadable(*device, model) != nullptr;
        if (is_spare) {
            found = device;
        } else if (++seen == TARGET_SCAN_MAX) {
            spare_from_ = slot + 1;
        }
        return !is_spare && seen < TARGET_SCAN_MAX;
    };
    queued_.hungry_.for_each(look);
    is_behind = false;
    if (found == nullptr && seen < TARGET_SCAN_MAX) {
        queued_.hungry_.for_each(look);
    }
    return found;
}

// What waits is about to be loaded from there.
bool Memory::may_drop(const Model& model) const { return waiting(model) == 0 || !model.residencies.empty(); }

Ns Memory::fetch_wait_ns(const Worker& worker, const Model& model) const {
    return queued_.fetch_wait_ns(worker, model);
}

Ns Memory::fetch_wait_ns(const Model& model) const { return queued_.fetch_wait_ns(model); }

bool Memory::offer_to_host(const Model& model) {
    const Worker* host = queued_.find_host(model);
    if (host == nullptr) {
        return false;
    }
    for (Device* device : host->devices) {
        touch(*device);
    }
    return true;
}

bool Memory::bring(Device& device, Model& model) { return queued_.bring(*device.worker, model); }

bool Memory::load_spare(Device& device, Model& model, KindSpec& spec) {
    return queued_.load_now(device, model, spec, 0);
}

bool Memory::load(Device& device, Model& model, KindSpec& spec) {
    return queued_.load_now(device, model, spec, NEVER_NS);
}

void Memory::load_over(Device& device, Model& model, KindSpec& spec, const std::vector<Residency*>& victims) {
    queued_.load_over(device, model, spec, victims);
}

bool Memory::load_by_force(Device& device, Model& model, KindSpec& spec) {
    if (!bring(device, model)) {
        return false;
    }
    Residency* residency = queued_.propose_load(device, model, spec, now(), true);
    if (residency == nullptr) {
        return false;
    }
    queued_.accept_load(*residency);
    return true;
}

bool Memory::find_room(Device& device, const KindSpec& spec, std::vector<Residency*>& victims) {
    return queued_.find_room(device, spec, victims);
}

std::unique_ptr<Memory> make_memory(const std::string& name, Queued& queued, const SchedulerOptions& options) {
    if (name == "paper") {
        return std::make_unique<PaperMemory>(queued, options);
    }
    if (name == "adaptive") {
        return std::make_unique<AdaptiveMemory>(queued);
    }
    throw std::invalid_argument("no memory rules '" + name + "' (there are paper, adaptive)");
}

}  // namespace clockwork
