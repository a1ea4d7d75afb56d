// Where a name's traffic goes: to one version, or to several by share, and which requests are copied to another version.
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

// Of texts that were looked up and are remembered.
inline constexpr std::size_t REFERENCES_MAX = 65'536;

// Whose turn it is, by shares that add up to SHARE_WHOLE: not by chance, but so that of any run of requests each has
// its part, as nearly as whole requests allow. Where the shares are tenths, of every ten each has exactly its own.
class Turns {
public:
    void add(std::int64_t parts) { entries_.push_back({parts, 0}); }

    // Everybody earns his share, and who has earned the most pays for the whole; the first of equals.
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

struct Route {
    std::vector<ServedModel*> models;  // at least one
    Turns turns;                       // of models
    ServedModel* shadow = nullptr;     // gets a copy of some of the requests that go to another one
    Turns copies;                      // 0: of those whose turn it is
    std::shared_ptr<ShadowTally> tally;

    ServedModel* next() { return models.size() == 1 ? models.front() : models[turns.next()]; }
    bool is_copied(const ServedModel* model) {
        return shadow != nullptr && shadow != model && (copies.size() == 1 || copies.next() == 0);
    }
};

// Whom a request is for.
struct Target {
    ServedModel* model = nullptr;  // null: nobody
    Route* copied_by = nullptr;    // whose shadow gets a copy
};

class Routes {
public:
    Routes(ServedModels& models, Lookups& lookups) : models_(models), lookups_(lookups) {}

    // The models that requests for this text are for, with their shares of SHARE_WHOLE, and to which (0: none) so many
    // are copied. A shadow that it has already goes on with its results. What is not routed is asked of Python.
    void route(std::string_view text, const std::vector<std::pair<ModelId, std::int64_t>>& shares, ModelId shadow = 0,
               std::int64_t copies = 0, double tolerance = 0);
    void unroute(std::string_view text);
    // What was looked up may be something else now.
    void forget_references() { references_.clear(); }

    // Whom a request for this text is for; of a route, a turn is taken.
    Target target_of(std::string_view text);
    // Null where nothing is copied.
    ShadowTally* shadow_tally(std::string_view text) const;

private:
    ServedModels& models_;
    Lookups& lookups_;
    ByText<Route> routes_;
    ByText<ServedModel*> references_;
    std::uint64_t changes_ = 0;  // ServedModels::changes() when references_ was begun
};

}  // namespace clockwork
