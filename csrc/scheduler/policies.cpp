// All policies by name, with their options.
#include <algorithm>
#include <span>
#include <stdexcept>

#include "scheduler/adaptive.h"
#include "scheduler/deferred.h"
#include "scheduler/dispatcher.h"
#include "scheduler/edf.h"
#include "scheduler/fifo.h"
#include "scheduler/memory_adaptive.h"
#include "scheduler/memory_paper.h"
#include "scheduler/paper.h"
#include "scheduler/queued.h"
#include "scheduler/scheduler.h"
#include "scheduler/scripted.h"

namespace clockwork {

namespace {

struct Known {
    const char* name;
    std::span<const char* const> options;
    std::unique_ptr<Policy> (*make)(SchedulerParts& parts, const SchedulerOptions& options);
};

std::unique_ptr<QueueMemory> make_memory(const std::string& name, SchedulerParts& parts, const Queues& queues,
                                         const Rules& rules, const SchedulerOptions& options) {
    if (name == "paper") {
        return std::make_unique<PaperMemory>(parts, queues, rules, options);
    }
    if (name == "adaptive") {
        return std::make_unique<AdaptiveMemory>(parts, queues, rules);
    }
    throw std::invalid_argument("no memory rules '" + name + "' (there are paper, adaptive)");
}

template <typename T>
std::unique_ptr<Policy> make_queued(SchedulerParts& parts, const SchedulerOptions& options) {
    auto make_rules = [](const RuleParts& given, const SchedulerOptions& told) {
        return std::make_unique<T>(given, told);
    };
    return std::make_unique<Queued>(parts, options, make_rules, make_memory);
}

std::unique_ptr<Policy> make_edf(SchedulerParts& parts, const SchedulerOptions& options) {
    if (!options.memory.empty()) {
        throw std::invalid_argument(
            "policy edf brings its own memory rules, not '" + options.memory +
            "': it promises times on loads that it has timed at arrival (--memory goes with --policy adaptive, "
            "deferred, fifo or paper)");
    }
    return std::make_unique<Edf>(parts);
}

const Known POLICIES[] = {
    {"edf", {}, make_edf},
    {"paper", Paper::OPTIONS, make_queued<Paper>},
    {"fifo", Fifo::OPTIONS, make_queued<Fifo>},
    {"deferred", Deferred::OPTIONS, make_queued<Deferred>},
    {"adaptive", Adaptive::OPTIONS, make_queued<Adaptive>},
};

std::string joined(const std::vector<std::string>& names) {
    std::string text;
    for (const std::string& name : names) {
        text += (text.empty() ? "" : ", ") + name;
    }
    return text;
}

const Known& find_policy(const std::string& name) {
    for (const Known& policy : POLICIES) {
        if (name == policy.name) {
            return policy;
        }
    }
    throw std::invalid_argument("no scheduling policy '" + name + "' (there is " + joined(policy_names()) + ")");
}

}  // namespace

const std::vector<std::string>& policy_names() {
    static const std::vector<std::string> names = [] {
        std::vector<std::string> all;
        for (const Known& policy : POLICIES) {
            all.emplace_back(policy.name);
        }
        return all;
    }();
    return names;
}

std::vector<std::string> known_options(const std::string& policy) {
    const Known& found = find_policy(policy);
    std::vector<std::string> known(found.options.begin(), found.options.end());
    known.insert(known.end(), common_options().begin(), common_options().end());
    return known;
}

const std::vector<std::string>& common_options() {
    static const std::vector<std::string> names = {"stored_copies"};
    return names;
}

std::unique_ptr<Scheduler> make_scheduler(const SchedulerOptions& options) {
    std::vector<std::string> known = options.hooks != nullptr ? options.hooks->options : known_options(options.policy);
    if (options.hooks != nullptr) {
        known.insert(known.end(), common_options().begin(), common_options().end());
    }
    for (const auto& [name, value] : options.values) {
        if (std::find(known.begin(), known.end(), name) == known.end()) {
            throw std::invalid_argument("policy " + options.policy + " has no option '" + name + "' (" + "it has " +
                                        joined(known) + ")");
        }
        if (!(value >= 0 && value <= OPTION_MAX)) {
            throw std::invalid_argument("option " + name + " is not between 0 and a million");
        }
    }
    return std::make_unique<Dispatcher>(
        options, options.hooks != nullptr ? make_queued<Scripted> : find_policy(options.policy).make);
}

}  // namespace clockwork
