// CUDA's language for a compiler of C++: what is left of it once rewrite.mjs has gone over a file.
#pragma once

#include <cuda_fp16.h>
#include <cuda_runtime_api.h>
#include <vector_functions.h>

#include <math.h>
#include <algorithm>
#include <bit>

#include <cmath>
#include <cstdint>
#include <tuple>
#include <utility>

#include "grid.h"
#include "ptx.h"
#include "software_cuda.h"

#undef __launch_bounds__
#define __launch_bounds__(...)
#undef __noinline__
#define __noinline__ __attribute__((noinline))
#undef __grid_constant__
#define __grid_constant__

namespace software_cuda {

// A number that is asked for where it is read.
template <unsigned (*kGet)()>
struct Special {
  operator unsigned() const { return kGet(); }
};
template <uint3 (*kGet)()>
struct Special3 {
  Special<+[] { return kGet().x; }> x;
  Special<+[] { return kGet().y; }> y;
  Special<+[] { return kGet().z; }> z;
};
inline uint3 ThreadIndex() { return Self().index; }

}  // namespace software_cuda

inline constexpr software_cuda::Special3<software_cuda::ThreadIndex> threadIdx{};
inline constexpr software_cuda::Special3<software_cuda::BlockIndex> blockIdx{};
inline constexpr software_cuda::Special3<software_cuda::BlockDim> blockDim{};
inline constexpr software_cuda::Special3<software_cuda::GridDim> gridDim{};

template <typename... Parameters, typename... Values>
cudaError_t cudaLaunchKernelEx(const cudaLaunchConfig_t* config, void (*kernel)(Parameters...),
                               Values&&... values) {
  const std::tuple<std::remove_cv_t<Parameters>...> arguments(std::forward<Values>(values)...);
  const auto body = [kernel, arguments] { std::apply(kernel, arguments); };
  return software_cuda::Submit(
      config->stream, cudaGraphNodeTypeKernel,
      [grid = config->gridDim, block = config->blockDim, bytes = config->dynamicSmemBytes, body] {
        software_cuda::RunGrid(grid, block, bytes, body);
      });
}
template <typename... Parameters>
cudaError_t cudaFuncSetAttribute(void (*)(Parameters...), cudaFuncAttribute, int) {
  return cudaSuccess;
}
inline void cudaGridDependencySynchronize() {}
inline void cudaTriggerProgrammaticLaunchCompletion() {}

// ---- barriers and warps

inline void __syncthreads() { software_cuda::SyncThreads(true, software_cuda::Join::kNone); }
inline int __syncthreads_or(int value) {
  return software_cuda::SyncThreads(value != 0, software_cuda::Join::kAny);
}
inline int __syncthreads_and(int value) {
  return software_cuda::SyncThreads(value != 0, software_cuda::Join::kAll);
}
inline void __syncwarp(uint32_t mask = 0xffffffffu) {
  software_cuda::Exchange(mask, 0, "syncwarp");
}
inline void __threadfence() { software_cuda::MaybeYield(); }
inline void __threadfence_system() { software_cuda::MaybeYield(); }
inline void __nanosleep(unsigned) { software_cuda::Yield(); }

namespace software_cuda {

template <typename T>
uint64_t ToWord(T value) {
  static_assert(sizeof(T) <= sizeof(uint64_t));
  uint64_t word = 0;
  std::memcpy(&word, &value, sizeof(T));
  return word;
}
template <typename T>
T FromWord(uint64_t word) {
  T value;
  std::memcpy(&value, &word, sizeof(T));
  return value;
}
inline uint32_t LanesWhere(uint32_t mask, bool value, const char* kind) {
  const Given& given = Exchange(mask, value ? 1 : 0, kind);
  uint32_t lanes = 0;
  for (int i = 0; i < kWarp; ++i) {
    if ((given.lanes >> i & 1) != 0 && given.values[i] != 0) lanes |= 1u << i;
  }
  return lanes;
}
template <typename T, typename Combine>
T Reduce(uint32_t mask, T value, const char* kind, const Combine& combine) {
  const Given& given = Exchange(mask, ToWord(value), kind);
  T sum = value;
  for (int i = 0; i < kWarp; ++i) {
    if ((given.lanes >> i & 1) != 0 && i != Self().lane)
      sum = combine(sum, FromWord<T>(given.values[i]));
  }
  return sum;
}
template <typename T>
T OfLane(uint32_t mask, T value, int lane, const char* kind) {
  const Given& given = Exchange(mask, ToWord(value), kind);
  if (lane < 0 || lane >= kWarp || (given.lanes >> lane & 1) == 0)
    Misuse("a shuffle reads a lane that does not take part");
  return FromWord<T>(given.values[lane]);
}

}  // namespace software_cuda

inline uint32_t __ballot_sync(uint32_t mask, int value) {
  return software_cuda::LanesWhere(mask, value != 0, "ballot");
}
inline int __any_sync(uint32_t mask, int value) {
  return software_cuda::LanesWhere(mask, value != 0, "any") != 0;
}
inline int __all_sync(uint32_t mask, int value) {
  return software_cuda::LanesWhere(mask, value == 0, "all") == 0;
}
template <typename T>
uint32_t __match_any_sync(uint32_t mask, T value) {
  const auto& given = software_cuda::Exchange(mask, software_cuda::ToWord(value), "match");
  uint32_t lanes = 0;
  for (int i = 0; i < software_cuda::kWarp; ++i) {
    if ((given.lanes >> i & 1) != 0 && given.values[i] == software_cuda::ToWord(value))
      lanes |= 1u << i;
  }
  return lanes;
}
template <typename T>
T __shfl_sync(uint32_t mask, T value, int lane, int width = 32) {
  const int first = software_cuda::Self().lane & ~(width - 1);
  return software_cuda::OfLane(mask, value, first + (lane & (width - 1)), "shfl");
}
template <typename T>
T __shfl_xor_sync(uint32_t mask, T value, int bits) {
  return software_cuda::OfLane(mask, value, software_cuda::Self().lane ^ bits, "shfl_xor");
}
template <typename T>
T __shfl_up_sync(uint32_t mask, T value, unsigned count, int width = 32) {
  const int lane = software_cuda::Self().lane;
  const bool has = (lane & (width - 1)) >= static_cast<int>(count);
  return software_cuda::OfLane(mask, value, has ? lane - static_cast<int>(count) : lane, "shfl_up");
}
template <typename T>
T __reduce_add_sync(uint32_t mask, T value) {
  return software_cuda::Reduce(mask, value, "reduce_add", [](T a, T b) { return a + b; });
}
template <typename T>
T __reduce_or_sync(uint32_t mask, T value) {
  return software_cuda::Reduce(mask, value, "reduce_or", [](T a, T b) { return a | b; });
}
template <typename T>
T __reduce_max_sync(uint32_t mask, T value) {
  return software_cuda::Reduce(mask, value, "reduce_max", [](T a, T b) { return std::max(a, b); });
}
template <typename T>
T __reduce_min_sync(uint32_t mask, T value) {
  return software_cuda::Reduce(mask, value, "reduce_min", [](T a, T b) { return std::min(a, b); });
}

// ---- memory

template <typename T>
T __ldg(const T* from) {
  return *from;
}
template <typename T>
T __ldcg(const T* from) {
  return *from;
}
inline size_t __cvta_generic_to_shared(const void* pointer) {
  return software_cuda::AddressOfShared(pointer);
}

template <typename T, typename U>
T atomicAdd(T* at, U value) {
  software_cuda::MaybeYield();
  return __atomic_fetch_add(at, static_cast<T>(value), __ATOMIC_RELAXED);
}
template <typename T, typename U>
T atomicOr(T* at, U value) {
  software_cuda::MaybeYield();
  return __atomic_fetch_or(at, static_cast<T>(value), __ATOMIC_RELAXED);
}
template <typename T, typename U>
T atomicAnd(T* at, U value) {
  software_cuda::MaybeYield();
  return __atomic_fetch_and(at, static_cast<T>(value), __ATOMIC_RELAXED);
}
template <typename T, typename U>
T atomicExch(T* at, U value) {
  software_cuda::MaybeYield();
  return __atomic_exchange_n(at, static_cast<T>(value), __ATOMIC_RELAXED);
}
template <typename T, typename U, typename V>
T atomicCAS(T* at, U expected, V value) {
  software_cuda::MaybeYield();
  T seen = static_cast<T>(expected);
  __atomic_compare_exchange_n(at, &seen, static_cast<T>(value), false, __ATOMIC_ACQ_REL,
                              __ATOMIC_ACQUIRE);
  return seen;
}
namespace software_cuda {
template <typename T, typename Choose>
T AtomicChoice(T* at, T value, const Choose& choose) {
  MaybeYield();
  T seen = __atomic_load_n(at, __ATOMIC_RELAXED);
  while (!__atomic_compare_exchange_n(at, &seen, choose(seen, value), false, __ATOMIC_RELAXED,
                                      __ATOMIC_RELAXED)) {
  }
  return seen;
}
}  // namespace software_cuda
template <typename T, typename U>
T atomicMin(T* at, U value) {
  return software_cuda::AtomicChoice(at, static_cast<T>(value),
                                     [](T a, T b) { return std::min(a, b); });
}
template <typename T, typename U>
T atomicInc(T* at, U most) {
  return software_cuda::AtomicChoice(at, static_cast<T>(most),
                                     [](T old, T most) { return old >= most ? T{0} : old + 1; });
}
template <typename T, typename U>
T atomicMax(T* at, U value) {
  return software_cuda::AtomicChoice(at, static_cast<T>(value),
                                     [](T a, T b) { return std::max(a, b); });
}

// ---- numbers

inline int __popc(uint32_t value) { return std::popcount(value); }
inline int __popcll(unsigned long long value) { return std::popcount(value); }
inline int __ffs(int value) { return __builtin_ffs(value); }
inline int __ffsll(long long value) { return __builtin_ffsll(value); }
inline int __clz(int value) {
  return value == 0 ? 32 : __builtin_clz(static_cast<unsigned>(value));
}
inline float __uint_as_float(uint32_t bits) { return std::bit_cast<float>(bits); }
inline uint32_t __float_as_uint(float value) { return std::bit_cast<uint32_t>(value); }
inline float __int_as_float(int32_t bits) { return std::bit_cast<float>(bits); }
inline int32_t __float_as_int(float value) { return std::bit_cast<int32_t>(value); }
inline float __fmaf_rn(float a, float b, float c) { return std::fma(a, b, c); }
inline float __saturatef(float value) {
  return value > 0 ? (value < 1 ? value : 1.0f) : 0.0f;  // also of NaN
}
// A NaN that operations make has no sign there, and one here.
inline float copysign_of_number(float magnitude, float sign) {
  return std::copysign(magnitude, std::isnan(sign) ? 0.0f : sign);
}
#define copysignf copysign_of_number
inline float __fadd_rn(float a, float b) { return a + b; }
inline float __fmul_rn(float a, float b) { return a * b; }
// The nearest number there is; 0 for NaN.
inline int __float2int_rz(float value) {
  if (std::isnan(value)) return 0;
  return value >= 2147483648.0f    ? INT32_MAX
         : value <= -2147483648.0f ? INT32_MIN
                                   : static_cast<int>(value);
}
inline unsigned __float2uint_rz(float value) {
  if (!(value > 0)) return 0;
  return value >= 4294967296.0f ? UINT32_MAX : static_cast<unsigned>(value);
}
inline float __double2float_rz(double value) {
  const float near = static_cast<float>(value);
  return std::abs(double{near}) > std::abs(value) ? std::nextafter(near, 0.0f) : near;
}
inline float __double2float_ru(double value) {
  const float near = static_cast<float>(value);
  return double{near} < value ? std::nextafter(near, INFINITY) : near;
}
inline uint32_t __byte_perm(uint32_t low, uint32_t high, uint32_t selector) {
  const uint64_t bytes = low | uint64_t{high} << 32;
  uint32_t result = 0;
  for (int i = 0; i < 4; ++i) {
    const uint32_t choice = selector >> 4 * i & 0xf;
    uint32_t byte = static_cast<uint32_t>(bytes >> 8 * (choice & 7)) & 0xff;
    if ((choice & 8) != 0) byte = (byte & 0x80) != 0 ? 0xff : 0;
    result |= byte << 8 * i;
  }
  return result;
}
inline uint32_t __funnelshift_r(uint32_t low, uint32_t high, uint32_t shift) {
  return static_cast<uint32_t>((low | uint64_t{high} << 32) >> (shift & 31));
}
namespace software_cuda {
template <typename Choose>
uint32_t OfHalves(uint32_t a, uint32_t b, const Choose& choose) {
  return choose(a & 0xffff, b & 0xffff) | choose(a >> 16, b >> 16) << 16;
}
}  // namespace software_cuda
inline uint32_t __vminu2(uint32_t a, uint32_t b) {
  return software_cuda::OfHalves(a, b, [](uint32_t x, uint32_t y) { return std::min(x, y); });
}
inline uint32_t __vmaxu2(uint32_t a, uint32_t b) {
  return software_cuda::OfHalves(a, b, [](uint32_t x, uint32_t y) { return std::max(x, y); });
}

inline uint32_t __viaddmin_u16x2(uint32_t a, uint32_t b, uint32_t most) {
  const uint32_t sums =
      software_cuda::OfHalves(a, b, [](uint32_t x, uint32_t y) { return (x + y) & 0xffff; });
  return __vminu2(sums, most);
}

template <typename A, typename B>
constexpr std::common_type_t<A, B> min(A a, B b) {
  using T = std::common_type_t<A, B>;
  return static_cast<T>(b) < static_cast<T>(a) ? static_cast<T>(b) : static_cast<T>(a);
}
template <typename A, typename B>
constexpr std::common_type_t<A, B> max(A a, B b) {
  using T = std::common_type_t<A, B>;
  return static_cast<T>(a) < static_cast<T>(b) ? static_cast<T>(b) : static_cast<T>(a);
}
