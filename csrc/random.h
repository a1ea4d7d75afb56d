// Seeded randomness and the few functions that it takes, the same to the bit on every machine.
//
// Only sums, products, quotients and square roots of doubles are used: IEEE 754 defines those to the last
// bit, while log(), exp() and the std distributions differ between libraries.
#pragma once

#include <bit>
#include <cmath>
#include <cstdint>

namespace clockwork {

inline double log_of(double x) {  // natural logarithm of a normal number above 0
    const std::uint64_t bits = std::bit_cast<std::uint64_t>(x);
    int exponent = static_cast<int>(bits >> 52) - 1023;
    double mantissa = std::bit_cast<double>((bits & 0x000FFFFFFFFFFFFFull) | 0x3FF0000000000000ull);
    if (mantissa > 1.4142135623730951) {
        mantissa *= 0.5;
        ++exponent;
    }
    const double s = (mantissa - 1) / (mantissa + 1), square = s * s;
    double sum = 0;
    for (int power = 21; power >= 1; power -= 2)
        sum = sum * square + 1.0 / power;
    return 2 * s * sum + exponent * 0.6931471805599453;
}

inline double exp_of(double x) {  // exponential, between e^-700 and e^700
    if (x > 700)
        x = 700;
    if (x < -700)
        x = -700;
    const double scaled = x * 1.4426950408889634;
    const int power = static_cast<int>(scaled < 0 ? scaled - 0.5 : scaled + 0.5);
    const double rest = x - power * 0.6931471805599453;
    double sum = 1;
    for (int term = 16; term >= 1; --term)
        sum = 1 + sum * rest / term;
    return sum * std::bit_cast<double>(static_cast<std::uint64_t>(power + 1023) << 52);
}

// xoshiro256** by Blackman and Vigna (public domain), seeded by splitmix64 of two numbers.
class Random {
public:
    explicit Random(std::uint64_t seed = 0, std::uint64_t stream = 0) {
        std::uint64_t state = seed * 0xD1342543DE82EF95ull + stream * 0x9E3779B97F4A7C15ull + 1;
        for (std::uint64_t& word : state_) {
            state += 0x9E3779B97F4A7C15ull;
            std::uint64_t mixed = state;
            mixed = (mixed ^ (mixed >> 30)) * 0xBF58476D1CE4E5B9ull;
            mixed = (mixed ^ (mixed >> 27)) * 0x94D049BB133111EBull;
            word = mixed ^ (mixed >> 31);
        }
    }

    std::uint64_t next() {
        const std::uint64_t result = std::rotl(state_[1] * 5, 7) * 9, shifted = state_[1] << 17;
        state_[2] ^= state_[0];
        state_[3] ^= state_[1];
        state_[1] ^= state_[2];
        state_[0] ^= state_[3];
        state_[2] ^= shifted;
        state_[3] = std::rotl(state_[3], 45);
        return result;
    }

    double uniform() { return static_cast<double>(next() >> 11) * 0x1p-53; }  // uniform in [0, 1)

    // uniform in [0, bound); the bias is below 2^-32 for 32-bit bounds
    std::uint64_t below(std::uint64_t bound) {
        return static_cast<std::uint64_t>((static_cast<unsigned __int128>(next()) * bound) >> 64);
    }

    bool chance(double probability) { return probability > 0 && uniform() < probability; }

    double exponential(double mean) { return -mean * log_of(1 - uniform()); }

    double normal() {  // standard normal, by Marsaglia's polar method
        if (spare_) {
            spare_ = false;
            return kept_;
        }
        double u, v, square;
        do {
            u = 2 * uniform() - 1;
            v = 2 * uniform() - 1;
            square = u * u + v * v;
        } while (square >= 1 || square < 0x1p-100);
        const double factor = std::sqrt(-2 * log_of(square) / square);
        kept_ = v * factor;
        spare_ = true;
        return u * factor;
    }

    // lognormal with median 1
    double lognormal(double sigma) { return sigma > 0 ? exp_of(sigma * normal()) : 1; }

private:
    std::uint64_t state_[4];
    double kept_ = 0;
    bool spare_ = false;
};

}  // namespace clockwork
