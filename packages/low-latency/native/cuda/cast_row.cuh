// Pieces of rows as MXFP8 or NVFP4 on their way to all ranks that have an expert of the token:
// what SendPiece is for bf16 and fp8.
#pragma once

#include "cuda/dispatch_send.cuh"
#include "moe_ep/quant/small_groups.cuh"

namespace moe_ep::cuda {

// Formats with byte scales, each with a kernel of its own: together they would take more registers
// than any alone.
struct Mxfp8Rows {
  static constexpr bool kByteScales = true;
  static constexpr RowFormat kFormat = RowFormat::kMxfp8;
  using Codes = E4M3Codes;
  using Scales = MxScales<Codes>;
  static __device__ Scales MakeScales(const DispatchArguments&) { return {MxScaleRule::kOcp}; }
};
struct Nvfp4Rows {
  static constexpr bool kByteScales = true;
  static constexpr RowFormat kFormat = RowFormat::kNvfp4;
  using Codes = E2M1Codes;
  using Scales = HardwareNvfp4Scales;
  static __device__ Scales MakeScales(const DispatchArguments& a) {
    return Scales::Of(__ldg(a.global_scale));
  }
};

// A warp calls it. Codes and scales go through shared memory, so that whole vectors of both travel.
template <typename Rows>
__device__ __forceinline__ void SendSmallPiece(const DispatchArguments& a, RankBits present,
                                               const LoadedPiece& loaded, CastPiece* cast) {
  using Codes = typename Rows::Codes;
  constexpr int kGroup = Rows::Scales::kGroup;
  using Warp = WarpItems<kGroup / 8, kItems>;
  constexpr int kWords = kCodeWords<Codes, 8>;
  constexpr int kCodes = kPiece / Codes::kPerByte;  // bytes
  constexpr int kCodeVectors = kCodes / (16 * kLanes);
  constexpr int kScales = kPiece / kGroup;
  constexpr int kScaleVectors = kScales / 16;
  static_assert(kCodes % (16 * kLanes) == 0 && kScales % 16 == 0);
  static_assert(kCodes + kScales <= sizeof(CastPiece));
  auto* const staged = reinterpret_cast<uint8_t*>(cast);
  uint8_t* const staged_scales = staged + kCodes;
  const int lane = threadIdx.x % kLanes;
  const auto hidden = static_cast<int>(a.shared.hidden);
  const int piece = loaded.piece;
  const auto scales = Rows::MakeScales(a);
  const Targets targets(a, loaded.token, loaded.id, present);
  SmallGroupScale made[Warp::kOwned];
  QuantizeSmallItems<Codes>(
      loaded.items, scales, made, [&](int i, const uint32_t (&codes)[kWords]) {
        StoreWords(staged + (i * kLanes + lane) * (8 / Codes::kPerByte), codes);
      });
  if (Warp::Writes(lane)) {
#pragma unroll
    for (int s = 0; s < Warp::kOwned; ++s) {
      const int item = Warp::FirstOwned(lane) + s;
      staged_scales[item * (kLanes * 8 / kGroup) + Warp::GroupOf(lane)] = made[s].code;
    }
  }
  __syncwarp();
  const auto code_bytes = static_cast<int>(CodeBytes(Rows::kFormat, hidden));
  const auto scale_bytes = static_cast<int>(ByteScaleRoom(Rows::kFormat, hidden));
  const int code_at = piece * kCodes + lane * 16;
  const int scale_at = piece * kScales + lane * 16;
  const bool has_scales = lane < kScaleVectors && scale_at < scale_bytes;
  uint4 codes[kCodeVectors];
#pragma unroll
  for (int i = 0; i < kCodeVectors; ++i)
    codes[i] = reinterpret_cast<const uint4*>(staged)[i * kLanes + lane];
  uint4 own_scales = {};
  if (has_scales) own_scales = reinterpret_cast<const uint4*>(staged_scales)[lane];
  targets.ForEach([&](uint8_t* row) {
#pragma unroll
    for (int i = 0; i < kCodeVectors; ++i) {
      const int at = code_at + i * kLanes * 16;
      if (at < code_bytes) *reinterpret_cast<uint4*>(row + at) = codes[i];
    }
    if (has_scales) *reinterpret_cast<uint4*>(row + code_bytes + scale_at) = own_scales;
  });
  __syncwarp();  // before the next piece takes the shared memory
}

}  // namespace moe_ep::cuda
