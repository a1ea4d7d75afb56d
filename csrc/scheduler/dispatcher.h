// Events in, commands out: the work that is the same for every policy.
//
// The dispatcher notes events, has the policy decide, and reads results. A result of an action that is not in
// the books is ignored. Its parts (parts.h) do the rest.
#pragma once

#include <functional>
#include <memory>
#include <utility>
#include <vector>

#include "scheduler/parts.h"
#include "scheduler/scheduler.h"

namespace clockwork {

class Dispatcher final : public Scheduler {
public:
    using MakePolicy = std::function<std::unique_ptr<Policy>(SchedulerParts& parts, const SchedulerOptions& options)>;

    Dispatcher(const SchedulerOptions& options, const MakePolicy& make_policy);

    void arrived(Ns now, const Request& request) override;
    void cancelled(Ns now, RequestId request_id) override;
    void action_done(Ns now, const ActionResult& result) override;
    void worker_joined(Ns now, WorkerId worker, const std::vector<DeviceSpec>& devices, std::uint64_t host_bytes,
                       std::uint64_t store_bytes) override;
    void worker_left(Ns now, WorkerId worker) override;
    void worker_draining(Ns now, WorkerId worker) override;
    void device_lost(Ns now, WorkerId worker, std::int32_t executor) override;
    void device_clock(Ns now, WorkerId worker, std::int32_t executor, std::uint32_t mhz) override;
    void time_wanted(Ns now, WorkerId worker, std::int32_t executor, ModelId model_id, Ns expected_ns,
                     const std::vector<std::uint32_t>& runs) override;
    void link_measured(Ns now, WorkerId worker, Ns there_ns, Ns back_ns) override;
    void model_ready(Ns now, WorkerId worker, const ModelSpec& spec, bool is_stored) override;
    void model_kept(Ns now, WorkerId worker, std::int32_t device, ModelId model_id, LoadId load_id,
                    const std::vector<std::uint32_t>& starts) override;
    void copy_lost(Ns now, WorkerId worker, ModelId model_id) override;
    void room_wanted(Ns now, WorkerId worker, std::uint64_t bytes) override;
    void model_removed(Ns now, ModelId model_id) override;
    void shape_known(std::uint32_t shape, std::uint64_t elements) override { state_.shapes.set(shape, elements); }
    void shape_forgotten(std::uint32_t shape) override { state_.shapes.forget(shape); }
    void settle(Ns now) override;
    bool preload(Ns now, WorkerId worker, std::int32_t executor, ModelId model_id) override;

    // ----- what it shows (view.cpp) --------------------------------------------------------------

    void shapes_in_use(std::vector<std::uint32_t>& found) const override;
    bool picture(WorkerId worker, std::int32_t executor, std::vector<ResidentModel>& held) const override;
    void held(std::vector<std::int64_t>& numbers) const override;
    bool store_picture(WorkerId worker, std::vector<ModelId>& held) const override;
    bool plans_fetches() const override { return policy_->plans_fetches(); }
    std::vector<DeviceStatus> devices() const override;
    std::vector<ResidencyStatus> whereabouts(ModelId model_id) const override;
    std::vector<WorkerId> hosts(ModelId model_id) const override;
    std::vector<WorkerId> keepers(ModelId model_id) const override;
    std::uint64_t sole_copies(WorkerId worker) const override;
    std::uint64_t store_room(WorkerId worker) const override;
    StoreStatus store_status() const override;
    Snapshot snapshot() const override;
    LinkStatus link_status(Ns now) const override;
    PolicyStatus policy_status(Ns now) const override { return policy_->status(now); }
    double devices_wanted(Ns now) const override { return requests_.devices_wanted(now); }
    std::vector<Ns> expected_ns(ModelId model_id, const std::vector<ProfilePoint>& points) const override;
    const Predictions* predictions() const override { return &state_.predictions; }
    void judge_predictions(Ns from_ns, Ns until_ns) override;
    void check_invariants() const override;
    bool save(std::string& state, std::size_t bytes_max) override;
    void restore(std::string_view state) override;

private:
    void archive(Archive& archive);

    // Handlers of results.
    void load_done(Flight& flight, const ActionResult& result);
    void fetch_done(Flight& flight, const ActionResult& result);
    void execution_done(Flight& flight, const ActionResult& result);
    void put_behind(Residency& residency);
    void answer(Flight& flight, const ActionResult& result);
    void infer_failed(Flight& flight, const ActionResult& result);
    void give_up_load(Residency& residency, const ActionResult& result);

    // Workers that join and leave (workers.cpp).
    void add_device(Worker& worker, const std::vector<DeviceSpec>& devices, std::uint32_t index);
    Arena* add_arena(Worker& worker, const DeviceSpec& spec, std::uint32_t index, std::uint32_t executors);
    void take_unsent(Arena& arena, std::vector<Pending*>& waiting);
    void lose_flight(Flight& flight, std::vector<Pending*>& waiting);
    void lose_device(Arena& arena, std::vector<Model*>& touched);
    void find_others(const std::vector<Pending*>& waiting, const AnswerSentence& said, std::vector<Model*>& touched);
    void note_model(Model& model, std::vector<Model*>& touched);
    // Devices of one kind share estimates.
    struct Kind {
        std::uint32_t said = 0;  // the caller's number
        std::uint64_t page_bytes = 0;
        std::uint32_t executors = 1;  // of an arena

        bool operator==(const Kind&) const = default;
        void archive(Archive& archive) { archive(said, page_bytes, executors); }
    };

    std::uint32_t kind_of(const Kind& kind);

    SchedulerParts parts_;
    State& state_ = parts_.state;
    Arenas& arenas_ = parts_.arenas;
    Requests& requests_ = parts_.requests;
    Executions& executions_ = parts_.executions;
    Recovery& recovery_ = parts_.recovery;
    std::unique_ptr<Policy> policy_;

    Ns wake_ns_ = NEVER_NS;           // the wake-up that was returned to the caller
    std::vector<Executor*> looking_;  // executors that settle() is handling
    std::uint64_t device_count_ = 0;
    std::vector<Pending*> waiting_;
    std::vector<Pending*> planned_;
    // Kind and page size, by the internal number of the kind.
    std::vector<Kind> kinds_;
    std::uint32_t touch_round_ = 0;
};

}  // namespace clockwork
