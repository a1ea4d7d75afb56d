#include "scheduler/rules.h"

namespace clockwork {

double option(const SchedulerOptions& options, std::string_view name, double otherwise) {
    for (const auto& [known, value] : options.values) {
        if (known == name) {
            return value;
        }
    }
    return otherwise;
}

}  // namespace clockwork
