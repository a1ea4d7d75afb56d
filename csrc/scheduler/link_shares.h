// Shares of models in the time of the links that load them.
//
// As a device's time is (shares.h), the time of links that turn requests away is divided max-min fair, all
// links as one. docs/policies/memory.md derives the rules.
//
//     asked  = link time a second of loads for requests that came while no device had the model, or was to
//              have it; at least what it had
//     might  = the same, were the model to be loaded anew for every request
//     had    = link time a second of its loads
//     level  = the largest with  sum over models of min(asked, level) <= number of links
//     greedy : asked, less LINK_SIGMAS standard deviations of the count of its loads, > level
//     within : might, less as many standard deviations, <= level
//     beyond : greedy, and had at least LINK_HAD * level
//
// If any model is greedy and any is within its share, the loads of the greedy models come behind all others,
// and those beyond their shares do not evict models that are within theirs.
#pragma once

#include <cstdint>
#include <vector>

#include "scheduler/shares.h"

namespace clockwork {

class State;

// A few loads in two seconds are no flood: a model is greedy by this many standard deviations of their count.
inline constexpr double LINK_SIGMAS = 2;

// Links are not divided at a lower level, in links: where so many models ask for loads, none of them floods
// the links, and loads for few requests before those for many would cost more than they save.
inline constexpr double LINK_LEVEL_MIN = 1.0 / 12;

// A model that has less than this part of the level may evict any other model.
inline constexpr double LINK_HAD = 0.5;

// Link time that a model asked for, and had.
struct LoadShare {
    Windowed asked;
    Windowed might;
    Windowed had;
    Ns asked_until_ns = -NEVER_NS;  // until then its requests share the load that was counted last
    Ns might_until_ns = -NEVER_NS;
    bool is_listed = false;  // one of LinkShares::models
    bool is_greedy = false;
    bool is_within = false;
    bool is_beyond = false;

    void archive(Archive& archive) {
        archive(asked, might, had, asked_until_ns, might_until_ns, is_listed, is_greedy, is_within, is_beyond);
    }
};

// Division of the time of all links.
struct LinkShares {
    std::vector<Model*> models;  // those that asked for link time within the last windows
    Ns contested_until_ns = -NEVER_NS;
    Ns divided_ns = -NEVER_NS;
    double level = 0;         // of the last division, in links
    bool is_divided = false;  // some model is greedy, some are within their shares

    void archive(Archive& archive) { archive(models, contested_until_ns, divided_ns, level, is_divided); }
};

// Counts a request. needs_load: no device has its model, or is to have it.
void ask_for_load(State& state, Model& model, bool needs_load);

// Counts a load that was ordered.
void charge_load(State& state, Model& model, Ns takes_ns);

// Marks the links as contested: a request was turned away for want of a load.
void contest_links(State& state);

// Whether loads of some models are behind those of the others.
bool are_links_divided(State& state);

// Whether loads of the model are behind those of the others.
bool is_behind_on_links(State& state, const Model& model);

// Whether the model is beyond its share of the links.
bool is_beyond_on_links(State& state, const Model& model);

// Whether models beyond their shares of the links may not evict this one.
bool is_kept(State& state, const Model& model);

}  // namespace clockwork
