// Look-ups of the exchange in Python: the exchange knows names and shapes by number.
#pragma once

#include <cstdint>
#include <stdexcept>
#include <string_view>
#include <vector>

#include "controller/python_time.h"
#include "scheduler/types.h"

namespace clockwork {

// Each function gets `owner`, and returns 0 if it failed.
struct LookupFunctions {
    void* owner = nullptr;
    // Finds the model of a text that is no route's: `name@version`, or a name whose versions are not ready.
    // 0: requests for the text are refused.
    int (*model)(void* owner, std::string_view text, ModelId* model_id) = nullptr;
    // Finds the scheduler's number of a shape (in AcceptedRequest::shape's form), and the shape of a number.
    // The first may call forget_shapes() before.
    int (*shape_number)(void* owner, const std::vector<std::int64_t>* shape, std::uint32_t* number) = nullptr;
    int (*shape)(void* owner, std::uint32_t number, std::vector<std::int64_t>* shape) = nullptr;
};

// A failed look-up; the exchange's caller has the reason.
class LookupFailed : public std::runtime_error {
public:
    LookupFailed() : std::runtime_error("a look-up failed") {}
};

// The look-ups as methods, which count Python's time. Each throws LookupFailed.
class Lookups {
public:
    Lookups(const LookupFunctions& functions, PythonTime& python) : functions_(functions), python_(python) {}

    ModelId model(std::string_view text) {
        ModelId model_id = 0;
        ask([&] { return functions_.model(functions_.owner, text, &model_id); });
        return model_id;
    }
    std::uint32_t shape_number(const std::vector<std::int64_t>& shape) {
        std::uint32_t number = 0;
        ask([&] { return functions_.shape_number(functions_.owner, &shape, &number); });
        return number;
    }
    // Valid until the next call.
    const std::vector<std::int64_t>& shape(std::uint32_t number) {
        shape_.clear();
        ask([&] { return functions_.shape(functions_.owner, number, &shape_); });
        return shape_;
    }

private:
    template <typename LookUp>
    void ask(const LookUp& look_up) {
        Ns began_ns = clock_ns();
        if (look_up() == 0)
            throw LookupFailed();
        python_.add(clock_ns() - began_ns);
    }

    LookupFunctions functions_;
    PythonTime& python_;
    std::vector<std::int64_t> shape_;
};

}  // namespace clockwork
