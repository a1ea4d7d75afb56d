#include "scheduler/machines.h"

namespace clockwork {

bool Model::leave_spec(KindSpec& spec) {
    bool has_others = std::any_of(specs.begin(), specs.end(), [&](const KindSpec* known) {
        return known->kind == spec.kind && known->worker_count > 0;
    });
    if (spec.worker_count > 0 || !has_others) {
        return false;
    }
    specs.erase(std::find(specs.begin(), specs.end(), &spec));
    note_variants();
    return true;
}

void Model::note_variants() {
    is_varied = false;
    for (std::size_t place = 0; place < specs.size(); ++place) {
        is_varied = is_varied || std::any_of(specs.begin(), specs.begin() + static_cast<std::ptrdiff_t>(place),
                                             [&](const KindSpec* spec) { return spec->kind == specs[place]->kind; });
    }
}

}  // namespace clockwork
