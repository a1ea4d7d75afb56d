// What was learnt while something was slow is let go of when nothing has confirmed it for a while.
//
// An estimate far above what was told (by a profile, or by the best that was measured) may make requests seem
// impossible; then nothing is tried, and nothing would ever teach otherwise. So it holds for STALE_NS after its last
// sample. Where it was right, two samples put it back.
#include <algorithm>

#include "scheduler/service.h"

namespace clockwork {

void Service::note_raised() { stale_at_ns_ = std::min(stale_at_ns_, now_ + STALE_EVERY_NS); }

void Service::forget_stale() {
    bool is_raised = false;
    for (const Model* model : models_) {
        for (KindSpec* spec : model->specs) {
            changed_shapes_.clear();
            is_raised |=
                spec->program->forget_stale(now_, [&](std::uint32_t shape) { changed_shapes_.push_back(shape); });
            for (std::uint32_t shape : changed_shapes_) {
                estimates_changed(*spec->program, shape);
            }
            if (spec->loads->is_raised(model->model_id, spec->load_ns, spec->page_count)) {
                spec->loads->forget_stale(model->model_id, spec->load_ns, spec->page_count, now_);
                spec->load_own_ns = spec->loads->own_ns(model->model_id, spec->page_count);
                is_raised |= spec->loads->is_raised(model->model_id, spec->load_ns, spec->page_count);
            }
            if (spec->fetches->is_raised(model->model_id, 0, spec->page_count)) {
                spec->fetches->forget_stale(model->model_id, 0, spec->page_count, now_);
                spec->fetch_own_ns = spec->fetches->own_ns(model->model_id, spec->page_count);
                is_raised |= spec->fetches->is_raised(model->model_id, 0, spec->page_count);
            }
        }
    }
    stale_at_ns_ = is_raised ? now_ + STALE_EVERY_NS : NEVER_NS;
}

}  // namespace clockwork
