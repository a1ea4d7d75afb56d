// What the exchange asks of Python in the middle of its work: names and shapes are known by number here.
#pragma once

#include <cstdint>
#include <stdexcept>
#include <string_view>
#include <vector>

#include "scheduler/types.h"

namespace clockwork {

// Each function is handed `owner`, and returns 0 if it failed.
struct Lookups {
    void* owner = nullptr;
    // The model that requests for a text which is no route's are for: `name@version`, or a name whose versions are not
    // ready. 0: they are turned away.
    int (*model)(void* owner, std::string_view text, ModelId* model_id) = nullptr;
    // The number by which the scheduler knows a shape (of Accepted::shape's form), and the other way round. Asked for
    // a number, Python may call forget_shapes() first.
    int (*shape_number)(void* owner, const std::vector<std::int64_t>* shape, std::uint32_t* number) = nullptr;
    int (*shape)(void* owner, std::uint32_t number, std::vector<std::int64_t>* shape) = nullptr;
};

// A look-up failed; whoever called the exchange knows why.
class LookupFailed : public std::runtime_error {
public:
    LookupFailed() : std::runtime_error("a look-up failed") {}
};

}  // namespace clockwork
