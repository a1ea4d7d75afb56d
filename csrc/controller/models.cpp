#include "controller/models.h"

#include <algorithm>
#include <numeric>

namespace clockwork {

namespace {

constexpr std::size_t FEW_INPUTS = 16;

}  // namespace

void ModelInterface::index_inputs() {
    by_name_.clear();
    if (inputs.size() <= FEW_INPUTS)
        return;
    by_name_.resize(inputs.size());
    std::iota(by_name_.begin(), by_name_.end(), 0);
    std::stable_sort(by_name_.begin(), by_name_.end(),
                     [this](std::uint32_t one, std::uint32_t other) { return inputs[one].name < inputs[other].name; });
}

const InputSpec* ModelInterface::find_input(std::string_view name) const {
    if (by_name_.empty()) {
        for (const InputSpec& spec : inputs) {
            if (spec.name == name)
                return &spec;
        }
        return name.empty() && inputs.size() == 1 ? &inputs[0] : nullptr;
    }
    auto found = std::lower_bound(by_name_.begin(), by_name_.end(), name,
                                  [this](std::uint32_t one, std::string_view text) { return inputs[one].name < text; });
    return found != by_name_.end() && inputs[*found].name == name ? &inputs[*found] : nullptr;
}

}  // namespace clockwork
