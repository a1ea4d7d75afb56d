#include "controller/models.h"

#include <algorithm>
#include <numeric>

namespace clockwork {

namespace {

constexpr std::size_t FEW_INPUTS = 16;

}  // namespace

void ModelInterface::index_inputs() {
    by_name_.clear();
    has_optional_ = std::any_of(inputs.begin(), inputs.end(), [](const InputSpec& spec) { return spec.optional; });
    if (inputs.size() <= FEW_INPUTS)
        return;
    by_name_.resize(inputs.size());
    std::iota(by_name_.begin(), by_name_.end(), 0);
    std::stable_sort(by_name_.begin(), by_name_.end(), [this](std::uint32_t first, std::uint32_t other) {
        return inputs[first].name < inputs[other].name;
    });
}

const InputSpec* ModelInterface::find_input(std::string_view name) const {
    if (by_name_.empty()) {
        for (const InputSpec& spec : inputs) {
            if (spec.name == name)
                return &spec;
        }
        return name.empty() ? find_required() : nullptr;
    }
    auto found =
        std::lower_bound(by_name_.begin(), by_name_.end(), name,
                         [this](std::uint32_t place, std::string_view text) { return inputs[place].name < text; });
    if (found != by_name_.end() && inputs[*found].name == name)
        return &inputs[*found];
    return name.empty() ? find_required() : nullptr;
}

// Returns the required input if there is exactly one, else null.
const InputSpec* ModelInterface::find_required() const {
    const InputSpec* only = nullptr;
    for (const InputSpec& spec : inputs) {
        if (spec.optional)
            continue;
        if (only != nullptr)
            return nullptr;
        only = &spec;
    }
    return only;
}

}  // namespace clockwork
