// A warp whose lanes go together, for code that runs on a GPU and, in tests, on the host. On a GPU a value of each lane
// is a register; on the host a thread is a whole warp, and such a value an array of 32.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

namespace bgpt {

constexpr int kLanes = 32;

#if defined(__CUDACC__)

#define BGPT_DEVICE __device__ inline
#define BGPT_UNROLL _Pragma("unroll")
#define BGPT_UNROLL_4 _Pragma("unroll 4")
#define BGPT_ROLLED _Pragma("unroll 1")

template <class T>
struct Lanes {
    T own;
    __device__ T& operator[](int) { return own; }
    __device__ const T& operator[](int) const { return own; }
};

// f(lane) for the lanes of the warp.
template <class F>
__device__ __forceinline__ void each_lane(const F& f) {
    f(static_cast<int>(threadIdx.x % kLanes));
}

// The value of one lane, for all.
template <class T>
__device__ __forceinline__ T from_lane(const Lanes<T>& value, int lane) {
    return __shfl_sync(0xffffffffu, value.own, lane);
}

// The value of lanes that all have the same.
template <class T>
__device__ __forceinline__ T common(const Lanes<T>& value) {
    return value.own;
}

// To each lane the value of the lane whose number differs by the bit `distance`.
template <class T>
__device__ __forceinline__ Lanes<T> exchanged(const Lanes<T>& value, int distance) {
    return {__shfl_xor_sync(0xffffffffu, value.own, distance)};
}

// What lanes wrote to memory is there for the other lanes of the warp.
__device__ __forceinline__ void sync_lanes() { __syncwarp(); }

// Values that other blocks may have written since the kernel began: past the processor's own cache.
__device__ __forceinline__ float load_fresh(const float* at) { return __ldcg(at); }
__device__ __forceinline__ float4 load_four_fresh(const float* at) {
    return __ldcg(reinterpret_cast<const float4*>(at));
}
using Four = float4;

__device__ __forceinline__ float float_of_bits(uint32_t bits) { return __uint_as_float(bits); }

#else

#define BGPT_DEVICE inline
#define BGPT_UNROLL
#define BGPT_UNROLL_4
#define BGPT_ROLLED

template <class T>
struct Lanes {
    T all[kLanes];
    T& operator[](int lane) { return all[lane]; }
    const T& operator[](int lane) const { return all[lane]; }
};

template <class F>
void each_lane(const F& f) {
    for (int lane = 0; lane < kLanes; ++lane) f(lane);
}

template <class T>
T from_lane(const Lanes<T>& value, int lane) {
    return value[lane];
}

template <class T>
T common(const Lanes<T>& value) {
    return value[0];
}

template <class T>
Lanes<T> exchanged(const Lanes<T>& value, int distance) {
    Lanes<T> found;
    each_lane([&](int lane) { found[lane] = value[lane ^ distance]; });
    return found;
}

inline void sync_lanes() {}

struct alignas(16) Four {
    float x, y, z, w;
};
inline float load_fresh(const float* at) { return *at; }
inline Four load_four_fresh(const float* at) { return *reinterpret_cast<const Four*>(at); }

inline float float_of_bits(uint32_t bits) {
    float value;
    std::memcpy(&value, &bits, sizeof value);
    return value;
}

#endif

// What a commutative `join` makes of the values of all lanes, by a fixed tree.
template <class T, class Join>
BGPT_DEVICE T joined(Lanes<T> value, const Join& join) {
    BGPT_UNROLL
    for (int distance = kLanes / 2; distance > 0; distance /= 2) {
        const Lanes<T> other = exchanged(value, distance);
        each_lane([&](int lane) { value[lane] = join(value[lane], other[lane]); });
    }
    return common(value);
}

template <class T>
BGPT_DEVICE T summed(const Lanes<T>& value) {
    return joined(value, [](T a, T b) { return a + b; });
}

template <class T>
BGPT_DEVICE T largest(const Lanes<T>& value) {
    return joined(value, [](T a, T b) { return a < b ? b : a; });
}

template <class T>
BGPT_DEVICE T smallest(const Lanes<T>& value) {
    return joined(value, [](T a, T b) { return b < a ? b : a; });
}

// The sums over all lanes of SLOTS values at once, each by the tree of `summed`; a lane gets that of slot
// lane / (32 / SLOTS).
template <int SLOTS>
BGPT_DEVICE Lanes<float> folded(Lanes<float> (&value)[SLOTS]) {
    int distance = kLanes / 2;
    BGPT_UNROLL
    for (int half = SLOTS / 2; half > 0; half /= 2, distance /= 2) {
        BGPT_UNROLL
        for (int slot = 0; slot < half; ++slot) {
            Lanes<float> sent;
            each_lane([&](int lane) {
                const bool upper = (lane & distance) != 0;
                sent[lane] = upper ? value[slot][lane] : value[slot + half][lane];
                if (upper) value[slot][lane] = value[slot + half][lane];
            });
            const Lanes<float> other = exchanged(sent, distance);
            each_lane([&](int lane) { value[slot][lane] += other[lane]; });
        }
    }
    BGPT_UNROLL
    for (; distance > 0; distance /= 2) {
        const Lanes<float> other = exchanged(value[0], distance);
        each_lane([&](int lane) { value[0][lane] += other[lane]; });
    }
    return value[0];
}

}  // namespace bgpt
