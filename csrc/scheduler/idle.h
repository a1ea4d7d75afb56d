// Use of idle time, for every policy: loads for background requests, and measurements of shapes never seen.
#pragma once

#include <vector>

#include "scheduler/arenas.h"
#include "scheduler/executions.h"

namespace clockwork {

// Bound on the shapes that wait to be measured; the oldest is forgotten first.
inline constexpr std::size_t PROFILE_TABLE_MAX = 256;

// Bound on the models with background requests that an idle device looks at.
inline constexpr std::size_t BACKGROUND_SCAN_MAX = 64;

// One part in BACKGROUND_SHARE of a busy device's time goes to background requests that have waited for
// BACKGROUND_AGE_NS.
inline constexpr Ns BACKGROUND_AGE_NS = SECOND;
inline constexpr Ns BACKGROUND_SHARE = 10;

// An idle device that could serve no background request looks again after this.
inline constexpr Ns BACKGROUND_RETRY_NS = 100'000'000;

// A device that has been idle for this long may measure a shape.
inline constexpr Ns PROFILE_IDLE_NS = 20'000'000;

inline constexpr int PROFILE_ATTEMPTS_MAX = 3;

// A shape whose bound is above this is not measured, because that would occupy a device for too long.
inline constexpr Ns PROFILE_NS_MAX = SECOND;

class Idle {
public:
    Idle(State& state, Arenas& arenas, Executions& executions, const Deciders& deciders)
        : state_(state), arenas_(arenas), executions_(executions), deciders_(deciders) {}

    static bool is_unseen(const Model& model, std::uint32_t shape);
    // Have the shape of a request measured on each kind of device, once a device is idle.
    void remember_unseen(const Model& model, const Request& request);
    // Note a request that is refused because of its expected execution time. If no recent execution confirms
    // that time, the shape is measured on an idle device that has the model: an estimate that refuses
    // everything would otherwise hold for ever.
    void doubt(const Pending& pending);
    // Measure a requested shape, if the device has been idle for long enough.
    void measure(Executor& executor);
    bool has_unmeasured() const { return !unmeasured_.empty(); }
    // Return the text for a request that is refused because its shape was never measured.
    AnswerText why_unmeasured(const Model& model, std::uint32_t shape) const;
    void shapes_in_use(std::vector<std::uint32_t>& found) const;

    void archive(Archive& archive) { archive(unmeasured_, failed_); }

    // Load a model that has only background requests, where there is room or they have waited long.
    void load_background(Arena& arena, Model& model);
    // Return the first models with background requests.
    const std::vector<Model*>& background();

private:
    // A shape that is to be measured.
    struct Unmeasured {
        std::uint32_t program;
        std::uint32_t kind;
        std::uint32_t shape;
        ModelId model_id;
        std::uint32_t rows;
        int attempts;
        bool is_doubted;  // the shape has an estimate, which may be wrong

        void archive(Archive& archive) { archive(program, kind, shape, model_id, rows, attempts, is_doubted); }
    };

    // A shape that could not be measured in any attempt.
    struct Failed {
        std::uint32_t program;
        std::uint32_t kind;
        std::uint32_t shape;

        void archive(Archive& archive) { archive(program, kind, shape); }
    };

    void remember(const Model& model, const KindSpec& spec, const Request& request, bool is_doubted);
    // Note the end of the attempts to measure a shape.
    void note_ended(const Unmeasured& unmeasured, bool is_measured);
    bool has_plan(const Arena& arena) const;
    static KindSpec* measured_spec(const Model& model, const Unmeasured& unmeasured);

    State& state_;
    Arenas& arenas_;
    Executions& executions_;
    const Deciders& deciders_;
    std::vector<Unmeasured> unmeasured_;
    std::vector<Failed> failed_;  // oldest first, at most PROFILE_TABLE_MAX
    std::vector<Model*> scan_;
    std::vector<Place> elsewhere_;
};

}  // namespace clockwork
