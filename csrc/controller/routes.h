// Where a name's traffic goes: to one version, or to several by share, and which requests are copied to another one.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <vector>

#include "controller/models.h"
#include "controller/shadows.h"

namespace clockwork {

inline constexpr std::int64_t SHARE_WHOLE = 10'000;  // clockwork.config.SHARE_WHOLE

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

}  // namespace clockwork
