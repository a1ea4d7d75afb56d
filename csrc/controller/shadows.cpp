#include "controller/shadows.h"

#include <pthread.h>
#include <signal.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstring>
#include <limits>
#include <utility>

#include "scheduler/idle.h"

namespace clockwork {

static_assert(SHADOW_WAIT_MAX_NS < BACKGROUND_AGE_NS);

namespace {

// ONNX's TensorProto.DataType.
enum Dtype : std::int64_t {
    FLOAT = 1,
    UINT8 = 2,
    INT8 = 3,
    UINT16 = 4,
    INT16 = 5,
    INT32 = 6,
    INT64 = 7,
    STRING = 8,
    BOOL = 9,
    FLOAT16 = 10,
    DOUBLE = 11,
    UINT32 = 12,
    UINT64 = 13,
    COMPLEX64 = 14,
    COMPLEX128 = 15,
    BFLOAT16 = 16,
};

template <typename Number>
double to_double(Number number) {
    return static_cast<double>(number);
}

struct Half {
    std::uint16_t bits;
};

double to_double(Half number) {
    int exponent = number.bits >> 10 & 31;
    double fraction = number.bits & 1023;
    double size = exponent == 31  ? (fraction == 0 ? std::numeric_limits<double>::infinity()
                                                   : std::numeric_limits<double>::quiet_NaN())
                  : exponent == 0 ? std::ldexp(fraction, -24)
                                  : std::ldexp(fraction + 1024, exponent - 25);
    return number.bits >> 15 != 0 ? -size : size;
}

struct Brain {
    std::uint16_t bits;
};

double to_double(Brain number) {
    return static_cast<double>(std::bit_cast<float>(static_cast<std::uint32_t>(number.bits) << 16));
}

// The largest difference of two tensors, and the largest finite magnitude in the first.
struct Spread {
    double absolute = 0;
    double scale = 0;

    void see(double first, double other) {
        double size = std::abs(first);
        if (std::isfinite(size) && size > scale)
            scale = size;
        if (first == other || (std::isnan(first) && std::isnan(other)))
            return;
        double apart = std::abs(first - other);
        absolute = std::isnan(apart) ? std::numeric_limits<double>::infinity() : std::max(absolute, apart);
    }
};

// Frames have no alignment, hence memcpy().
template <typename Number>
Spread spread(std::string_view first, std::string_view other) {
    Spread found;
    for (std::size_t offset = 0; offset + sizeof(Number) <= first.size(); offset += sizeof(Number)) {
        Number left, right;
        std::memcpy(&left, first.data() + offset, sizeof(Number));
        std::memcpy(&right, other.data() + offset, sizeof(Number));
        found.see(to_double(left), to_double(right));
    }
    return found;
}

Spread spread(std::int64_t dtype, std::string_view first, std::string_view other) {
    switch (dtype) {
        case FLOAT:
        case COMPLEX64: return spread<float>(first, other);
        case DOUBLE:
        case COMPLEX128: return spread<double>(first, other);
        case UINT8:
        case BOOL: return spread<std::uint8_t>(first, other);
        case INT8: return spread<std::int8_t>(first, other);
        case UINT16: return spread<std::uint16_t>(first, other);
        case INT16: return spread<std::int16_t>(first, other);
        case UINT32: return spread<std::uint32_t>(first, other);
        case INT32: return spread<std::int32_t>(first, other);
        case UINT64: return spread<std::uint64_t>(first, other);
        case INT64: return spread<std::int64_t>(first, other);
        case FLOAT16: return spread<Half>(first, other);
        case BFLOAT16: return spread<Brain>(first, other);
        default: return {};  // compare() compares only the bytes of other types
    }
}

}  // namespace

Difference compare(std::int64_t dtype, std::string_view first, std::string_view other) {
    if (first == other)
        return {};
    if (dtype > BFLOAT16 || dtype == STRING)
        return {false, 1, 1};
    if (first.size() != other.size())
        return {true, 0, 0};
    Spread apart = spread(dtype, first, other);
    // The relative difference from a tensor of zeros is 1.
    double relative = apart.absolute == 0 ? 0 : apart.scale > 0 ? apart.absolute / apart.scale : 1;
    return {false, apart.absolute, relative};
}

Difference compare(AnswerKept& first, AnswerKept& other) {
    Difference found;
    if (first.tensors.size() != other.tensors.size())
        return {true, 0, 0};
    const std::vector<std::string>& names = first.interface->outputs;
    const std::vector<std::string>& others = other.interface->outputs;
    for (std::size_t place = 0; place < first.tensors.size(); ++place) {
        std::size_t same = place;  // the index of the same name in the other answer
        if (place >= others.size() || others[place] != names[place]) {
            for (same = 0; same < others.size() && others[same] != names[place];)
                ++same;
        }
        if (same >= other.tensors.size())
            return {true, 0, 0};
        OutputKept& left = first.tensors[place];
        OutputKept& right = other.tensors[same];
        if (left.dtype != right.dtype || left.dims != right.dims)
            return {true, 0, 0};
        Difference apart = compare(left.dtype, left.frame.view(), right.frame.view());
        if (apart.differs)
            return apart;
        found.absolute = std::max(found.absolute, apart.absolute);
        found.relative = std::max(found.relative, apart.relative);
    }
    return found;
}

Comparer::~Comparer() {
    if (!thread_.joinable())
        return;
    {
        std::lock_guard lock(mutex_);
        ends_ = true;
    }
    changed_.notify_one();
    thread_.join();
}

void Comparer::add(std::shared_ptr<ShadowTally> tally, AnswerKept first, AnswerKept other) {
    std::size_t bytes = first.bytes() + other.bytes();
    {
        std::lock_guard lock(mutex_);
        if (jobs_.size() >= COMPARISONS_MAX || bytes_ + bytes > COMPARISON_BYTES_MAX) {
            tally->change([](ShadowResults& all) { ++all.dropped; });
            return;
        }
        bytes_ += bytes;
        jobs_.push_back({std::move(tally), std::move(first), std::move(other), bytes});
    }
    if (!thread_.joinable())
        thread_ = std::thread([this] { work(); });
    changed_.notify_one();
}

void Comparer::work() {
    sigset_t all;
    sigfillset(&all);
    pthread_sigmask(SIG_BLOCK, &all, nullptr);  // signals must wake the loop's thread
    pthread_setname_np(pthread_self(), "compare");
    setpriority(PRIO_PROCESS, static_cast<id_t>(syscall(SYS_gettid)), COMPARISON_NICE);
    std::unique_lock lock(mutex_);
    for (;;) {
        changed_.wait(lock, [this] { return ends_ || !jobs_.empty(); });
        if (ends_)
            return;
        {
            Job job = std::move(jobs_.front());
            jobs_.pop_front();
            lock.unlock();
            Difference found = compare(job.first, job.other);
            job.tally->change([&](ShadowResults& all) {
                ++all.compared;
                all.differing += found.differs;
                all.beyond += found.differs || found.relative > job.tally->tolerance;
                all.absolute_max = std::max(all.absolute_max, found.absolute);
                all.relative_max = std::max(all.relative_max, found.relative);
            });
            lock.lock();
            bytes_ -= job.bytes;
        }
    }
}

}  // namespace clockwork
