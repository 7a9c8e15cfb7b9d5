// The PTX that kernels write by hand, each as a function of its operands. rewrite.mjs puts their
// names in place of the text.
#pragma once

#include <cuda_fp16.h>

#include <bit>
#include <chrono>
#include <cmath>
#include <cstdint>
#include <cstring>

#include "grid.h"
#include "moe_ep/dtype.h"

namespace software_cuda::ptx {

template <typename T>
const T* As(const void* pointer) {
  return static_cast<const T*>(pointer);
}
template <typename T>
T* As(void* pointer) {
  return static_cast<T*>(pointer);
}

template <typename... Operands>
void nothing(const Operands&...) {}

// ---- memory that others see

template <typename T, typename Value>
void LoadSeen(Value& value, const void* from) {
  Yield();
  value = static_cast<Value>(__atomic_load_n(As<T>(from), __ATOMIC_ACQUIRE));
}
template <typename V>
void ld_acquire_sys_global_u32(V& value, const void* from) {
  LoadSeen<uint32_t>(value, from);
}
template <typename V>
void ld_acquire_sys_global_u64(V& value, const void* from) {
  LoadSeen<uint64_t>(value, from);
}
template <typename V>
void ld_acquire_gpu_global_u32(V& value, const void* from) {
  LoadSeen<uint32_t>(value, from);
}
template <typename V>
void ld_relaxed_sys_global_u32(V& value, const void* from) {
  LoadSeen<uint32_t>(value, from);
}
template <typename V>
void ld_relaxed_sys_global_u64(V& value, const void* from) {
  LoadSeen<uint64_t>(value, from);
}
template <typename V>
void ld_relaxed_gpu_global_u32(V& value, const void* from) {
  LoadSeen<uint32_t>(value, from);
}
template <typename V>
void ld_global_u32(V& value, const void* from) {
  value = __atomic_load_n(static_cast<const uint32_t*>(from), __ATOMIC_RELAXED);
}

inline void st_release_sys_global_u64(void* to, uint64_t value) {
  MaybeYield();
  __atomic_store_n(As<uint64_t>(to), value, __ATOMIC_RELEASE);
}
inline void st_release_gpu_global_u32(void* to, uint32_t value) {
  MaybeYield();
  __atomic_store_n(As<uint32_t>(to), value, __ATOMIC_RELEASE);
}
inline void red_release_sys_global_add_u64(void* to, uint64_t value) {
  MaybeYield();
  __atomic_fetch_add(As<uint64_t>(to), value, __ATOMIC_RELEASE);
}
template <typename V>
void atom_acq_rel_gpu_global_add_u32(V& before, void* at, uint32_t value) {
  MaybeYield();
  before = __atomic_fetch_add(As<uint32_t>(at), value, __ATOMIC_ACQ_REL);
}
// Up to `most`, then 0 again.
template <typename V>
void atom_acq_rel_gpu_global_inc_u32(V& before, void* at, uint32_t most) {
  MaybeYield();
  uint32_t seen = __atomic_load_n(As<uint32_t>(at), __ATOMIC_ACQUIRE);
  while (!__atomic_compare_exchange_n(As<uint32_t>(at), &seen, seen >= most ? 0 : seen + 1, false,
                                      __ATOMIC_ACQ_REL, __ATOMIC_ACQUIRE)) {
  }
  before = seen;
}
template <typename V>
void atom_acq_rel_sys_global_inc_u32(V& before, void* at, uint32_t most) {
  atom_acq_rel_gpu_global_inc_u32(before, at, most);
}

// ---- memory that only reads, or only this thread, sees

template <typename V>
void ld_global_nc_L1_no_allocate_L2_256B_v4_u32(V& x, V& y, V& z, V& w, const void* from) {
  const auto* const words = As<uint32_t>(from);
  x = words[0];
  y = words[1];
  z = words[2];
  w = words[3];
}
template <typename V>
void if_ld_global_nc_L1_no_allocate_L2_256B_v4_u32(V& x, V& y, V& z, V& w, const void* from,
                                                   int wanted, uint32_t otherwise) {
  x = y = z = w = otherwise;
  if (wanted != 0) ld_global_nc_L1_no_allocate_L2_256B_v4_u32(x, y, z, w, from);
}
template <typename V>
void if_ld_global_nc_L1_no_allocate_u32(V& x, const void* from, int wanted) {
  x = wanted != 0 ? *As<uint32_t>(from) : 0;
}
template <typename V>
void if_ld_global_nc_L1_no_allocate_v2_u32(V& x, V& y, const void* from, int wanted) {
  x = wanted != 0 ? As<uint32_t>(from)[0] : 0;
  y = wanted != 0 ? As<uint32_t>(from)[1] : 0;
}
template <typename V>
void if_ld_global_nc_u8(V& byte, int wanted, const void* from) {
  byte = wanted != 0 ? *As<uint8_t>(from) : 0;
}
inline void st_global_L1_no_allocate_v4_u32(void* to, uint32_t x, uint32_t y, uint32_t z,
                                            uint32_t w) {
  const uint32_t words[4] = {x, y, z, w};
  if (reinterpret_cast<uintptr_t>(to) % 16 != 0) __builtin_trap();
  std::memcpy(to, words, sizeof(words));
}
inline void prefetch_global_L2(const void*) {}

// ---- shared memory and copies beside the threads

inline uint64_t* BarrierAt(uint32_t address) { return As<uint64_t>(PointerToShared(address)); }
inline void mbarrier_init_shared_cta_b64(uint32_t barrier, uint32_t arrivals) {
  InitBarrier(BarrierAt(barrier), arrivals);
}
inline void mbarrier_arrive_shared_cta_b64(uint32_t barrier) {
  MaybeYield();
  ArriveAtBarrier(BarrierAt(barrier), 0);
}
inline void mbarrier_arrive_expect_tx_shared_cta_b64(uint32_t barrier, uint32_t bytes) {
  MaybeYield();
  ArriveAtBarrier(BarrierAt(barrier), bytes);
}
template <typename V>
void mbarrier_try_wait_parity_shared_cta_b64(V& passed, uint32_t barrier, uint32_t parity) {
  passed = TryBarrier(BarrierAt(barrier), parity);
}
inline void cp_async_bulk_shared_cluster_global_mbarrier_complete_tx_bytes(uint32_t to,
                                                                           const void* from,
                                                                           uint32_t bytes,
                                                                           uint32_t barrier) {
  StartBulkLoad(PointerToShared(to), from, bytes, BarrierAt(barrier));
}
inline void cp_async_bulk_global_shared_cta_bulk_group(void* to, uint32_t from, uint32_t bytes) {
  StartBulkStore(to, PointerToShared(from), bytes);
}
inline void cp_async_bulk_commit_group() { CommitBulkStores(); }
inline void cp_async_bulk_wait_group(int left) {
  WaitBulkStores(static_cast<uint32_t>(left), /*read=*/false);
}
inline void cp_async_bulk_wait_group_read(int left) {
  WaitBulkStores(static_cast<uint32_t>(left), /*read=*/true);
}
inline void cp_async_ca_shared_global_4(uint32_t to, const void* from) {
  StartWord(PointerToShared(to), from);
}
inline void cp_async_wait_all() { WaitWords(); }
inline void fence_mbarrier_init_release_cluster() {}
inline void fence_proxy_async_global() {}
inline void fence_proxy_async_shared_cta() {}
inline void bar_sync(int barrier, int threads) { SyncNamed(barrier, threads); }
inline void bar_sync_1(int threads) { SyncNamed(1, threads); }

// The kernels' clock runs slower, as the kernels do: what a GPU does within a deadline is done
// within it here, too, on a machine that is busy with more.
template <typename V>
void globaltimer(V& now) {
  now = static_cast<V>(std::chrono::steady_clock::now().time_since_epoch().count() / 5);
}

// ---- numbers

inline uint32_t Pair(uint16_t low, uint16_t high) { return low | uint32_t{high} << 16; }
// The hardware has one NaN, without a sign.
inline uint16_t BF16Of(float value) {
  return std::isnan(value) ? 0x7fff : moe_ep::FloatToBF16(value);
}
inline uint16_t F16Of(float value) {
  return std::isnan(value) ? 0x7fff : moe_ep::FloatToF16(value);
}

template <typename V>
void cvt_rn_bf16x2_f32(V& word, float high, float low) {
  word = Pair(BF16Of(low), BF16Of(high));
}
template <typename V>
void cvt_rn_f16x2_f32(V& word, float high, float low) {
  word = Pair(F16Of(low), F16Of(high));
}
inline void cvt_f32_f16(float& low, float& high, uint32_t word) {
  low = moe_ep::F16ToFloat(static_cast<uint16_t>(word));
  high = moe_ep::F16ToFloat(static_cast<uint16_t>(word >> 16));
}
template <typename V>
void cvt_rn_satfinite_e4m3x2_f32(V& codes, float a, float b, float c, float d) {
  codes = 0;
  const float values[4] = {a, b, c, d};
  for (int i = 0; i < 4; ++i) {
    const uint32_t code = std::isnan(values[i]) ? 0x7f : moe_ep::FloatToFp8E4M3(values[i]);
    codes |= code << 8 * i;
  }
}
template <typename V>
void cvt_rn_f16x2_e4m3x2(V& low, V& high, uint32_t codes) {
  uint16_t halves[4];
  for (int i = 0; i < 4; ++i)
    halves[i] = moe_ep::FloatToF16(moe_ep::Fp8E4M3ToFloat(static_cast<uint8_t>(codes >> 8 * i)));
  low = Pair(halves[0], halves[1]);
  high = Pair(halves[2], halves[3]);
}

// Of pairs, one element after the other.
template <typename V, typename Of, typename To, typename Operate>
void OnPair(V& a, uint32_t b, const Of& of, const To& to, const Operate& operate) {
  uint16_t results[2];
  for (int i = 0; i < 2; ++i) {
    const float x = of(static_cast<uint16_t>(a >> 16 * i));
    const float y = of(static_cast<uint16_t>(b >> 16 * i));
    results[i] = to(operate(x, y));
  }
  a = Pair(results[0], results[1]);
}
inline float MinWithNaN(float a, float b) {
  return std::isnan(a) || std::isnan(b) ? NAN : std::fmin(a, b);
}
inline float MaxWithNaN(float a, float b) {
  return std::isnan(a) || std::isnan(b) ? NAN : std::fmax(a, b);
}
template <typename V>
void mul_rn_bf16x2(V& product, uint32_t a, uint32_t b) {
  product = a;
  OnPair(product, b, moe_ep::BF16ToFloat, BF16Of, [](float x, float y) { return x * y; });
}
template <typename V>
void min_NaN_bf16x2(V& word, uint32_t most) {
  OnPair(word, most, moe_ep::BF16ToFloat, BF16Of, MinWithNaN);
}
template <typename V>
void max_NaN_bf16x2(V& word, uint32_t least) {
  OnPair(word, least, moe_ep::BF16ToFloat, BF16Of, MaxWithNaN);
}
template <typename V>
void min_NaN_f16x2(V& word, uint32_t most) {
  OnPair(word, most, moe_ep::F16ToFloat, F16Of, MinWithNaN);
}
template <typename V>
void max_NaN_f16x2(V& word, uint32_t least) {
  OnPair(word, least, moe_ep::F16ToFloat, F16Of, MaxWithNaN);
}

inline void lop3_b32_234(uint32_t& result, uint32_t a, uint32_t b, uint32_t c) {
  result = (a & b) | c;
}

// The nearest one, which kernels count on for one number; see QuotientForSilu.
inline void rcp_approx_f32(float& result, float value) { result = 1.0f / value; }

// Off by up to as much as it may be, one way or the other.
inline void ex2_approx_ftz_f32(float& result, float value) {
  constexpr double kError = 1.6858739404357614e-07;  // 2^-22.5
  const float exponent = std::fpclassify(value) == FP_SUBNORMAL ? 0.0f : value;
  const double lot = static_cast<double>(Draw()) / 4294967295.0 * 2 - 1;
  const auto power = static_cast<float>(std::exp2(double{exponent}) * (1 + lot * kError));
  result = std::fpclassify(power) == FP_SUBNORMAL ? 0.0f : power;
}

}  // namespace software_cuda::ptx
