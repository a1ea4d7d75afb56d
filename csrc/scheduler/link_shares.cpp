#include "scheduler/link_shares.h"

#include <algorithm>
#include <cmath>

#include "scheduler/state.h"

namespace clockwork {

namespace {

void list(LinkShares& shares, Model& model) {
    if (!model.loads.is_listed) {
        model.loads.is_listed = true;
        shares.models.push_back(&model);
    }
}

// The links that serve devices.
double link_count(const State& state) {
    double count = 0;
    const Worker* last = nullptr;
    for (const Arena* arena : state.arenas) {
        count += arena->worker != last;  // the devices of a worker have joined one after the other
        last = arena->worker;
    }
    return count;
}

void divide(State& state) {
    LinkShares& shares = state.links;
    Ns now = state.now;
    shares.divided_ns = now;
    shares.is_divided = false;
    std::erase_if(shares.models, [now](Model* model) {
        LoadShare& share = model->loads;
        share.is_greedy = share.is_within = share.is_beyond = false;
        share.is_listed = share.asked.rate(now) > 0 || share.might.rate(now) > 0 || share.had.rate(now) > 0;
        return !share.is_listed;
    });
    std::vector<double> wanted;
    for (Model* model : shares.models) {
        wanted.push_back(std::max(model->loads.asked.rate(now), model->loads.had.rate(now)));
    }
    std::vector<double> asked = wanted;  // in the order of the models
    double level = shares.level = level_of(wanted, link_count(state), SHARE_ASKED);
    if (level < LINK_LEVEL_MIN) {
        return;
    }
    bool is_any_greedy = false, is_any_within = false;
    for (std::size_t place = 0; place < asked.size(); ++place) {
        const Model& model = *shares.models[place];
        LoadShare& share = shares.models[place]->loads;
        double takes = static_cast<double>(model.specs.front()->load_planned_ns());
        auto at_least = [takes](double rate) {
            return rate - LINK_SIGMAS * std::sqrt(rate * takes / static_cast<double>(SHARE_WINDOW_NS));
        };
        double might = std::max(share.might.rate(now), asked[place]);
        share.is_greedy = at_least(asked[place]) > level;
        share.is_within = at_least(might) <= level;
        share.is_beyond = share.is_greedy && share.had.rate(now) >= LINK_HAD * level;
        is_any_greedy |= share.is_greedy;
        is_any_within |= share.is_within;
    }
    shares.is_divided = is_any_greedy && is_any_within;
}

}  // namespace

void ask_for_load(State& state, Model& model, bool needs_load) {
    if (!needs_load && state.now >= state.links.contested_until_ns) {
        return;
    }
    LoadShare& share = model.loads;
    Ns takes = model.specs.front()->load_planned_ns();
    auto count = [&](Windowed& sum, Ns& until_ns) {
        if (state.now >= until_ns) {
            until_ns = state.now + takes;
            sum.add(state.now, static_cast<double>(takes));
        }
    };
    count(share.might, share.might_until_ns);
    if (needs_load) {
        count(share.asked, share.asked_until_ns);
    }
    list(state.links, model);
}

void charge_load(State& state, Model& model, Ns takes_ns) {
    model.loads.had.add(state.now, static_cast<double>(takes_ns));
    list(state.links, model);
}

void contest_links(State& state) { state.links.contested_until_ns = state.now + CONTEST_NS; }

bool are_links_divided(State& state) {
    if (state.now >= state.links.contested_until_ns) {
        return false;
    }
    if (state.now >= state.links.divided_ns + DIVIDE_EVERY_NS) {
        divide(state);
    }
    return state.links.is_divided;
}

bool is_behind_on_links(State& state, const Model& model) { return are_links_divided(state) && model.loads.is_greedy; }

bool is_beyond_on_links(State& state, const Model& model) { return are_links_divided(state) && model.loads.is_beyond; }

bool is_kept(State& state, const Model& model) { return are_links_divided(state) && model.loads.is_within; }

}  // namespace clockwork
