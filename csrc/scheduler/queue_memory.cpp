#include "scheduler/queue_memory.h"

#include <stdexcept>

#include "scheduler/memory_adaptive.h"
#include "scheduler/memory_paper.h"

namespace clockwork {

std::unique_ptr<QueueMemory> make_memory(const std::string& name, Parts& parts, const Queues& queues,
                                         const Rules& rules, const SchedulerOptions& options) {
    if (name == "paper") {
        return std::make_unique<PaperMemory>(parts, queues, rules, options);
    }
    if (name == "adaptive") {
        return std::make_unique<AdaptiveMemory>(parts, queues, rules);
    }
    throw std::invalid_argument("no memory rules '" + name + "' (there are paper, adaptive)");
}

}  // namespace clockwork
