// Routes the requests of a name: to one version, or to several by share, with copies to a shadow version.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "controller/by_text.h"
#include "controller/lookups.h"
#include "controller/served_models.h"
#include "controller/shadows.h"
#include "wire/bounds.h"

namespace clockwork {

// The most looked-up texts that are remembered.
inline constexpr std::size_t REFERENCES_MAX = 65'536;

// Takes turns by shares that add up to SHARE_WHOLE. Not random: in any run of requests each share gets its
// part, as nearly as whole requests allow. If the shares are tenths, every ten requests are divided exactly.
class Turns {
public:
    void add(std::int64_t parts) { entries_.push_back({parts, 0}); }

    // Each entry earns its share. The entry that has earned the most, the first of equals, gets the turn and
    // pays the whole.
    std::size_t next() {
        std::size_t best = 0;
        for (std::size_t place = 0; place < entries_.size(); ++place) {
            entries_[place].earned += entries_[place].parts;
            if (entries_[place].earned > entries_[best].earned)
                best = place;
        }
        entries_[best].earned -= SHARE_WHOLE;
        return best;
    }

    std::size_t size() const { return entries_.size(); }

private:
    struct Entry {
        std::int64_t parts;
        std::int64_t earned;
    };

    std::vector<Entry> entries_;
};

struct ServedRoute {
    std::vector<ServedModel*> models;  // versions that share the traffic, at least one
    Turns turns;                       // turns of the models
    ServedModel* shadow = nullptr;     // gets copies of some requests for the models
    Turns copies;                      // turns of copies: requests with turn 0 are copied
    std::shared_ptr<ShadowTally> tally;

    ServedModel* next() { return models.size() == 1 ? models.front() : models[turns.next()]; }
    // Takes the turn of a request for a model; returns whether the request is copied.
    bool take_copy_turn(const ServedModel* model) {
        return shadow != nullptr && shadow != model && (copies.size() == 1 || copies.next() == 0);
    }
};

// The target of a request.
struct Target {
    ServedModel* model = nullptr;      // null: no model has the name
    ServedRoute* copied_by = nullptr;  // the route whose shadow gets a copy; null: no copy
};

class Routes {
public:
    Routes(ServedModels& models, Lookups& lookups) : models_(models), lookups_(lookups) {}

    // Routes requests for a text to models by shares of SHARE_WHOLE, and copies a share to a shadow (0:
    // none). An unchanged shadow keeps its results. Python is asked for texts without a route.
    void route(std::string_view text, const std::vector<std::pair<ModelId, std::int64_t>>& shares, ModelId shadow = 0,
               std::int64_t copies = 0, double tolerance = 0);
    void unroute(std::string_view text);
    // Forgets the looked-up texts, which may mean other models now.
    void forget_references() { references_.clear(); }

    // Finds the target of a request for a text. A route takes a turn.
    Target target_of(std::string_view text);
    // Null if the text's requests are not copied.
    ShadowTally* shadow_tally(std::string_view text) const;

private:
    ServedModels& models_;
    Lookups& lookups_;
    ByText<ServedRoute> routes_;
    ByText<ServedModel*> references_;
    std::uint64_t changes_ = 0;  // ServedModels::changes() when references_ was last cleared
};

}  // namespace clockwork
