// Fuzz target: the whole exchange under a script of bytes, the first of which chooses the policy; see
// exchange_rig.h.
//
// With COUNT in the environment it prints at the end how many good requests were answered with their own
// bytes: scripts that reach nothing would prove nothing.
#include "exchange_rig.h"

namespace {

struct Total {
    std::uint64_t answers = 0;

    ~Total() {
        if (std::getenv("COUNT") != nullptr)
            std::printf("%llu good answers\n", static_cast<unsigned long long>(answers));
    }
} total;

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
    using namespace clockwork;
    fake::Script script(data, size);
    const std::vector<std::string>& policies = policy_names();
    fake::Rig rig(policies[script.below(static_cast<std::uint32_t>(policies.size()))]);
    rig.play(script);
    total.answers += rig.good_answers();
    return 0;
}
