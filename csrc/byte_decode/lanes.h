// The lanes of a warp, for code that runs on a GPU and, in tests, on the host. On a GPU a value of each lane is a
// register; on the host a thread stands for a warp, and such a value is an array of 32.
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
__device__ __forceinline__ void for_each_lane(const F& f) {
    f(static_cast<int>(threadIdx.x % kLanes));
}

// The value of one lane, in all lanes.
template <class T>
__device__ __forceinline__ T lane_value(const Lanes<T>& value, int lane) {
    return __shfl_sync(0xffffffffu, value.own, lane);
}

// The value of lanes that all have the same one.
template <class T>
__device__ __forceinline__ T uniform_value(const Lanes<T>& value) {
    return value.own;
}

// In each lane the value of the lane whose number differs in the bit `distance`.
template <class T>
__device__ __forceinline__ Lanes<T> shuffle_xor(const Lanes<T>& value, int distance) {
    return {__shfl_xor_sync(0xffffffffu, value.own, distance)};
}

// Makes what lanes wrote to memory visible to the other lanes of the warp.
__device__ __forceinline__ void sync_lanes() { __syncwarp(); }

// Values that other blocks may have written since the kernel began: read past the L1 cache.
__device__ __forceinline__ float load_fresh(const float* at) { return __ldcg(at); }
__device__ __forceinline__ float4 load_four_fresh(const float* at) {
    return __ldcg(reinterpret_cast<const float4*>(at));
}
__device__ __forceinline__ float2 load_two_fresh(const float* at) {
    return __ldcg(reinterpret_cast<const float2*>(at));
}
using Two = float2;
using Four = float4;

__device__ __forceinline__ float float_from_bits(uint32_t bits) { return __uint_as_float(bits); }

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
void for_each_lane(const F& f) {
    for (int lane = 0; lane < kLanes; ++lane) f(lane);
}

template <class T>
T lane_value(const Lanes<T>& value, int lane) {
    return value[lane];
}

template <class T>
T uniform_value(const Lanes<T>& value) {
    return value[0];
}

template <class T>
Lanes<T> shuffle_xor(const Lanes<T>& value, int distance) {
    Lanes<T> result;
    for_each_lane([&](int lane) { result[lane] = value[lane ^ distance]; });
    return result;
}

inline void sync_lanes() {}

struct alignas(8) Two {
    float x, y;
};
struct alignas(16) Four {
    float x, y, z, w;
};
inline float load_fresh(const float* at) { return *at; }
inline Two load_two_fresh(const float* at) { return *reinterpret_cast<const Two*>(at); }
inline Four load_four_fresh(const float* at) { return *reinterpret_cast<const Four*>(at); }

inline float float_from_bits(uint32_t bits) {
    float value;
    std::memcpy(&value, &bits, sizeof value);
    return value;
}

#endif

// Reduces the values of all lanes by a commutative `join` in a fixed tree.
template <class T, class Join>
BGPT_DEVICE T reduce_lanes(Lanes<T> value, const Join& join) {
    BGPT_UNROLL
    for (int distance = kLanes / 2; distance > 0; distance /= 2) {
        const Lanes<T> other = shuffle_xor(value, distance);
        for_each_lane([&](int lane) { value[lane] = join(value[lane], other[lane]); });
    }
    return uniform_value(value);
}

template <class T>
BGPT_DEVICE T lane_sum(const Lanes<T>& value) {
    return reduce_lanes(value, [](T a, T b) { return a + b; });
}

template <class T>
BGPT_DEVICE T lane_max(const Lanes<T>& value) {
    return reduce_lanes(value, [](T a, T b) { return a < b ? b : a; });
}

template <class T>
BGPT_DEVICE T lane_min(const Lanes<T>& value) {
    return reduce_lanes(value, [](T a, T b) { return b < a ? b : a; });
}

// The sums over all lanes of SLOTS values at once, each in the tree of `lane_sum`; a lane has that of slot
// lane / (32 / SLOTS).
template <int SLOTS>
BGPT_DEVICE Lanes<float> lane_sums(Lanes<float> (&value)[SLOTS]) {
    int distance = kLanes / 2;
    BGPT_UNROLL
    for (int half = SLOTS / 2; half > 0; half /= 2, distance /= 2) {
        BGPT_UNROLL
        for (int slot = 0; slot < half; ++slot) {
            Lanes<float> sent;
            for_each_lane([&](int lane) {
                const bool upper = (lane & distance) != 0;
                sent[lane] = upper ? value[slot][lane] : value[slot + half][lane];
                if (upper) value[slot][lane] = value[slot + half][lane];
            });
            const Lanes<float> other = shuffle_xor(sent, distance);
            for_each_lane([&](int lane) { value[slot][lane] += other[lane]; });
        }
    }
    BGPT_UNROLL
    for (; distance > 0; distance /= 2) {
        const Lanes<float> other = shuffle_xor(value[0], distance);
        for_each_lane([&](int lane) { value[0][lane] += other[lane]; });
    }
    return value[0];
}

}  // namespace bgpt
