// Which policies there are.
#include <stdexcept>

#include "scheduler/edf.h"
#include "scheduler/scheduler.h"

namespace clockwork {

const std::vector<std::string>& policy_names() {
    static const std::vector<std::string> names = {"edf"};
    return names;
}

std::unique_ptr<Scheduler> make_scheduler(const SchedulerOptions& options) {
    if (options.policy == "edf") {
        if (!options.memory.empty()) {
            throw std::invalid_argument("policy edf brings its own memory rules, not '" + options.memory + "'");
        }
        if (!options.values.empty()) {
            throw std::invalid_argument("policy edf has no option '" + options.values.front().first + "'");
        }
        return std::make_unique<Edf>(options);
    }
    std::string names;
    for (const std::string& name : policy_names()) {
        names += (names.empty() ? "" : ", ") + name;
    }
    throw std::invalid_argument("no scheduling policy '" + options.policy + "' (there is " + names + ")");
}

}  // namespace clockwork
