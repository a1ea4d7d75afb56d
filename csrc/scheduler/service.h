// What every policy does alike: take events, keep workers and models, send batches, read results, try again.
//
// A policy decides by the hooks below when a request is admitted, where it waits, and what a device is sent next.
// Policies with plans (edf) and policies with queues (fifo and its kin) both stand on this.
#pragma once

#include <utility>
#include <vector>

#include "scheduler/loads.h"

namespace clockwork {

// Times that a request is sent, before a failure that is not its own is answered.
inline constexpr int ATTEMPTS_MAX = 3;

// Devices of a model that are looked at whether they were idle while a request for it waited.
inline constexpr std::size_t IDLE_LOOK_MAX = 4;

// Devices that hold a model and are told of a request without a deadline; where there are more, it is one that is idle.
inline constexpr std::size_t WAKE_MAX = 64;

// How often it is looked whether raised estimates are stale, while there are any.
inline constexpr Ns STALE_EVERY_NS = 100 * MS;

class Service : public Loads {
public:
    using Loads::Loads;

    void arrived(Ns now, const Request& request) final;
    void cancelled(Ns now, RequestId request_id) final;
    void action_done(Ns now, const ActionResult& result) final;
    void worker_joined(Ns now, WorkerId worker, const std::vector<DeviceSpec>& devices, std::uint64_t host_bytes) final;
    void worker_left(Ns now, WorkerId worker) final;
    void worker_draining(Ns now, WorkerId worker) final;
    void device_lost(Ns now, WorkerId worker, std::int32_t device) final;
    void device_clock(Ns now, WorkerId worker, std::int32_t device, std::uint32_t mhz) final;
    void link_measured(Ns now, WorkerId worker, Ns there_ns, Ns back_ns) final;
    void model_ready(Ns now, WorkerId worker, const ModelSpec& spec) final;
    void model_removed(Ns now, ModelId model_id) final;

protected:
    // ----- what a policy brings ----------------------------------------------------------------

    // A request for a model that is, or can be loaded, somewhere. open() it and have it wait, or refuse() it.
    virtual void arrive(Pending& pending) = 0;
    // Have a request wait anew whose action came to nothing, or whose plan was taken away; it has a deadline, and
    // waits nowhere now. False if it cannot be in time any more.
    virtual bool replace(Pending& pending) = 0;
    // Append the requests that wait for this device alone, in order, and let it have none.
    virtual void clear_plan(Device& device, std::vector<Pending*>& waiting) {
        (void)device;
        (void)waiting;
    }
    // A batch that was sent came to its end, well or not; its requests were answered, or wait anew.
    virtual void batch_ended(Flight& flight) { (void)flight; }
    // New estimates were published for a shape of this program (on one kind of device).
    virtual void estimates_changed(ProgramEstimates& program, std::uint32_t shape) {
        (void)program;
        (void)shape;
    }
    // A shape's estimates were dropped for want of room: keep no pointer to its curve.
    virtual void estimates_forgotten(ProgramEstimates& program, std::uint32_t shape) {
        (void)program;
        (void)shape;
    }
    // A batch was at its worker with its inputs, from then on.
    virtual void delivered(const Flight& flight, Ns ready_ns) {
        (void)flight;
        (void)ready_ns;
    }
    // A batch was executed in took_ns.
    virtual void executed(const Flight& flight, Ns took_ns) {
        (void)flight;
        (void)took_ns;
    }
    // A model can no longer be served by a worker that left or leaves: answer whoever waits for it in vain.
    virtual void strand(Model& model);
    // Whether a request waits here that the device could be sent now; whether it should be is not asked.
    virtual bool has_work(const Device& device) const = 0;
    virtual void device_joined(Device& device) { (void)device; }
    virtual void device_left(Device& device) { (void)device; }
    // A model can be loaded on one worker more.
    virtual void model_prepared(Model& model, Worker& worker) {
        (void)model;
        (void)worker;
    }

    // ----- for policies ------------------------------------------------------------------------

    // Whether nothing may be sent to a device: a suspect is under way there, apart from everything else.
    static bool is_closed(const Device& device) { return !device.lane.empty() && device.lane.front()->is_apart; }
    // Whether a request has to wait until nothing else is under way on the device.
    static bool must_wait(const Device& device, const Pending& pending) {
        return pending.evidence > 0 && !device.lane.empty();
    }

    // Plan a request once more whose action came to nothing, or answer it. count: it was its action's failure.
    void again(Pending& pending, Status status, const Said& said, bool count = true, Reason reason = Reason::NONE);
    // If LOADs under way there are stuck: count on none of them, and plan anew what waits for them.
    void watch_loads(Device& device);
    // Answer a request that nobody can serve any more.
    void abandon(Pending& pending);
    // To the end (or the front) of what has no deadline and waits until a device would be idle.
    void to_background(Pending& pending, bool first = false);
    // Takes it out of there.
    void leave_background(Pending& pending);
    // Have every device that could serve the model's background requests look at them.
    void wake_devices(Model& model);
    // Send a batch, which must be in no plan, on its residency's device. latest: the tightest deadline allows it.
    Flight* send_batch(Batch& batch);
    Batch* make_batch(Residency& residency, std::uint32_t shape, Curve* curve, Ns key_ns);

private:
    void note_raised();
    void forget_stale();
    void left_unsent(const Pending& pending) override;
    void note_waited(const Model& model, Ns since_ns, const Device* except);
    void count_idle(Device& device, Ns since_ns, Ns until_ns);
    void count_execution(const Flight& flight, const ActionResult& result);
    void answer(Flight& flight, const ActionResult& result);
    void infer_failed(Flight& flight, const ActionResult& result);
    void blame(Device& device);
    void accuse(const Flight& flight, Fault fault);
    void set_aside(Model& model);
    void take_back(Flight& flight, std::vector<Pending*>& waiting);
    void retire_batch(Flight& flight);
    void leave_lane(Flight& flight, const ActionResult& result);
    void clear_plans(Worker& worker, std::vector<Pending*>& waiting);
    void take_unsent(Device& device, std::vector<Pending*>& waiting);
    void lose_flight(Flight& flight, std::vector<Pending*>& waiting);
    void lose_device(Device& device, std::vector<Model*>& touched);
    void find_others(const std::vector<Pending*>& waiting, const Said& said, std::vector<Model*>& touched);
    void note_model(Model& model, std::vector<Model*>& touched);
    void follow_clocks(std::uint32_t kind);
    template <typename Function>
    static void for_each_kind(const Worker& worker, Function&& function);
    static std::uint32_t variant_for(const Model& model, const Worker& worker, const ModelSpec& told);
    KindSpec& join_spec(Model& model, Device& device, std::uint32_t variant, const ModelSpec& told);
    void leave_kind(Model& model, const Worker& worker, std::uint32_t kind);
    Ns at_first_clock(const Device& device, Ns took_ns) const;
    std::uint32_t kind_of(const DeviceSpec& spec);

    Ns lost_ns_ = -1;            // when the last worker was lost
    Ns stale_at_ns_ = NEVER_NS;  // when to look for stale estimates
    std::vector<Pending*> waiting_;
    std::vector<Pending*> planned_;
    std::vector<Place> places_;
    std::vector<std::pair<std::uint32_t, std::uint64_t>> kinds_;  // kind and page size, by our number for both
    struct KindClock {
        std::uint32_t first_mhz = 0;  // what estimates are of; 0: no device said one
        double scale = 1;             // what they are multiplied by
    };
    std::vector<KindClock> clocks_;  // by kind
    std::vector<std::uint32_t> changed_shapes_;
    std::uint32_t touch_round_ = 0;
};

}  // namespace clockwork
