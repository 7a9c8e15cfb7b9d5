// Small inputs take one launch (small_kernel.cuh), others two: a plan (plan.cuh), and a kernel that
// moves rows (move_kernel.cuh). Blocks of both have warps that move rows and warps that do the
// rest.

#include "cuda/permute.h"

#include <algorithm>
#include <limits>
#include <string>

#include "cuda/move_kernel.cuh"
#include "cuda/plan.cuh"
#include "cuda/small_kernel.cuh"
#include "moe_ep/cuda/launch.h"

namespace moe_ep::cuda {
namespace {

// Bulk copies for rows that are aligned to 16 bytes; false: these too go through registers.
constexpr bool kUseBulkCopies = true;

constexpr int64_t kScratchKey = 0x7065726d75746531;  // this file's

// What a block may have on this architecture.
constexpr int64_t kMostSharedBytes = 227 << 10;
constexpr int64_t kPlanSharedBytes = 96 << 10;

bool IsAligned(const void* pointer, int64_t stride, int64_t bytes) {
  return (reinterpret_cast<uintptr_t>(pointer) | static_cast<uintptr_t>(stride | bytes)) % 16 == 0;
}

// Whether the scales of a row are bytes that lie together at either end, and could travel with it.
bool ScalesLieTogether(const ScaleMove& scales, bool has_rows) {
  const int64_t bytes = scales.columns * scales.element_bytes;
  return scales.from != nullptr && has_rows && !scales.pack && bytes > 0 &&
         bytes <= kMostStageBytes / 2 && scales.from_column_stride == scales.element_bytes &&
         scales.to_column_stride == scales.element_bytes && scales.to_row_stride == bytes &&
         (scales.to_batch_stride == 0 || scales.to_batch_stride == scales.rows_per_batch * bytes) &&
         IsAligned(scales.from, scales.from_row_stride, bytes) && IsAligned(scales.to, 0, bytes);
}

MoveArguments MoveOf(const PermuteRequest& request, bool scales_travel) {
  const RowMove& rows = request.rows;
  const ScaleMove& scales = request.scales;
  const PlacementRequest& placement = request.placement;
  MoveArguments move = {};
  move.rows = rows;
  if (scales_travel) {
    move.scales_from = scales.from;
    move.scales_from_stride = scales.from_row_stride;
    move.scales_to = scales.to;
    move.scale_bytes = static_cast<int32_t>(scales.columns * scales.element_bytes);
  }
  const bool has_scales = scales.from != nullptr && scales.columns > 0;
  move.has_loose_scales = has_scales && !scales_travel;
  move.loose_scales = {
      .move = scales,
      .words = scales.pack && scales.from_column_stride == 1 &&
               ((reinterpret_cast<uintptr_t>(scales.from) |
                 static_cast<uintptr_t>(scales.from_row_stride)) &
                3u) == 0,
  };
  move.num_pieces = 1;
  move.num_tokens = placement.num_tokens;
  move.topk = placement.topk;
  move.width = static_cast<int32_t>(std::clamp<int64_t>(placement.topk, 1, kWarp));
  move.units_per_token =
      static_cast<int32_t>(std::max<int64_t>(1, (placement.topk + kWarp - 1) / kWarp));
  if ((rows.row_bytes > 0 || move.has_loose_scales) && placement.topk > 0)
    move.num_units = placement.num_tokens * move.units_per_token;
  return move;
}

void SplitIntoPieces(MoveArguments* move) {
  const int64_t bytes = move->rows.row_bytes;
  const int64_t most = kMostStageBytes - move->scale_bytes;
  const int64_t pieces = std::max<int64_t>(1, (bytes + most - 1) / most);
  move->piece_bytes = static_cast<int32_t>(((bytes + pieces - 1) / pieces + 15) / 16 * 16);
  move->num_pieces = static_cast<int32_t>(pieces);
  move->stage_bytes = move->piece_bytes + move->scale_bytes;
}

// Divides the units among so many movers.
void ShareOut(int64_t num_movers, MoveArguments* move) {
  move->units_per_batch = static_cast<int32_t>(
      std::clamp<int64_t>(move->num_units / (4 * num_movers), 1, kWarp / move->width));
  // Movers hold two batches each. The last ones are no longer than a long row, and there are enough
  // of them to fill the time in which other movers still have large ones.
  constexpr int64_t kSmallBatchBytes = 8192;
  constexpr int64_t kUnitsInSmall = 6;  // of each mover
  move->units_per_small_batch = static_cast<int32_t>(std::clamp<int64_t>(
      kSmallBatchBytes / std::max<int64_t>(move->rows.row_bytes, 1), 1, move->units_per_batch));
  const int64_t units_in_small = std::min(move->num_units, kUnitsInSmall * num_movers);
  move->num_large_batches = (move->num_units - units_in_small) / move->units_per_batch;
  const int64_t left = move->num_units - move->num_large_batches * move->units_per_batch;
  move->num_batches = move->num_large_batches +
                      (left + move->units_per_small_batch - 1) / move->units_per_small_batch;
}

TileWork WorkOf(const PermuteRequest& request, const Placement& placement, int32_t* expert_ids,
                bool scales_lie_together) {
  const PaddingIds& ids = request.padding_ids;
  const bool has_scales = request.scales.from != nullptr && request.scales.columns > 0;
  return {
      .tiles =
          {
              .capacity = request.placement.capacity,
              .topk = request.placement.topk,
              .expert_ids = expert_ids,
              .inside_is_expert = !ids.inside.has_value(),
              .id_inside = ids.inside.value_or(0),
              .writes_behind = ids.behind.has_value(),
              .id_behind = ids.behind.value_or(0),
              .zero_rows = request.zero_rows && request.rows.row_bytes > 0,
              .rows = request.rows.to,
              .row_bytes = request.rows.row_bytes,
              .zero_scales = request.zero_scales && has_scales,
              .loose_scales = has_scales && !scales_lie_together,
              .scales = request.scales,
          },
      .row_of_slot = placement.row_of_slot,
      .num_slots = request.placement.num_tokens * request.placement.topk,
  };
}

PlanArguments PlanOf(const Exec& exec, const PlacementRequest& request, const Placement& placement,
                     int64_t num_slots) {
  const SlotGroups groups{.experts = request.experts, .foreign = request.foreign_last};
  PlanArguments plan = {};
  plan.request = request;
  plan.placement = placement;
  plan.groups = groups;
  plan.num_slots = num_slots;
  plan.num_groups = groups.size();
  plan.describers = Describers{};
  plan.failure = exec.cuda_failure();
  return plan;
}

// Words of slots have at least 24 bits for the group.
constexpr int64_t kMostGroups = (int64_t{1} << 24) - 1;

// False, with the command in failure, where there are more groups than a plan can tell apart.
bool CheckGroups(const Exec& exec, int64_t num_groups) {
  if (num_groups <= kMostGroups) return true;
  exec.Fail("ERR_MOE_EP_UNSUPPORTED", "permute: a cuda device tells up to " +
                                          std::to_string(kMostGroups) + " experts apart, not " +
                                          std::to_string(num_groups));
  return false;
}

// Room in scratch or shared memory, part after part.
class Parts {
 public:
  static constexpr int64_t kAlignment = 256;

  int64_t Take(int64_t bytes) {
    const int64_t at = bytes_;
    bytes_ += (bytes + kAlignment - 1) / kAlignment * kAlignment;
    return at;
  }
  int64_t bytes() const { return bytes_; }

 private:
  int64_t bytes_ = 0;
};

// Launches the plan of many blocks and completes its arguments.
void LaunchPlan(const Exec& exec, bool with_words, PlanArguments* plan) {
  const auto shared_bytes_of = [plan](int warps) {
    return 4 * std::max(warps * plan->num_groups, PlanShared(*plan));
  };
  int num_warps = kPlanWarps;
  while (num_warps > 1 && shared_bytes_of(num_warps) > kPlanSharedBytes) num_warps /= 2;
  plan->counts_in_shared = shared_bytes_of(num_warps) <= kPlanSharedBytes;
  // More rounds make fewer chunks, whose counts the last block has to sum up.
  const bool many = plan->num_slots > (int64_t{512} << 10) || num_warps < kPlanWarps;
  const int rounds = many ? 8 : 2;
  plan->shift = 0;
  while ((int64_t{1} << plan->shift) < int64_t{num_warps} * rounds * kWarp) ++plan->shift;
  const int64_t num_chunks = plan->num_chunks();

  Parts parts;
  const int64_t state = parts.Take(sizeof(PlanState));
  const int64_t prefix = parts.Take(plan->num_groups * num_chunks * 4);
  const int64_t totals = parts.Take(plan->counts_in_shared ? 0 : plan->num_groups * 4);
  const int64_t starts = parts.Take((plan->num_groups + 1) * 4);
  const int64_t words = parts.Take(with_words ? plan->num_slots * 4 : 0);
  auto* const scratch = exec.CudaScratch<uint8_t>(kScratchKey, parts.bytes());
  plan->state = reinterpret_cast<PlanState*>(scratch + state);
  plan->prefix = reinterpret_cast<uint32_t*>(scratch + prefix);
  plan->totals = reinterpret_cast<uint32_t*>(scratch + totals);
  plan->starts = reinterpret_cast<int32_t*>(scratch + starts);
  plan->words = with_words ? reinterpret_cast<uint32_t*>(scratch + words) : nullptr;

  const auto kernel = many ? PlanKernel<8> : PlanKernel<2>;
  const int64_t shared_bytes = plan->counts_in_shared ? shared_bytes_of(num_warps) : 0;
  Launch(kernel,
         {.grid = dim3(static_cast<unsigned>(num_chunks)),
          .block = dim3(static_cast<unsigned>(num_warps * kWarp)),
          .shared_bytes = shared_bytes,
          .overlaps_previous = true,
          .most_shared = true},
         exec.cuda_stream(), *plan);
}

// What there is to do, beside the plan, before it is shared out among movers.
struct Work {
  MoveArguments move;
  TileWork beside;
};

// One launch; false where the input is not small, or movers do not have the room that they want.
template <typename Mover>
bool PermuteSmall(const Exec& exec, const PlanArguments& plan, const Work& work) {
  const int64_t shared_bytes = Mover::SharedBytes(work.move.stage_bytes) +
                               SmallMemory::Bytes(plan.num_slots, plan.num_groups);
  constexpr int64_t kStaticBytes = 256;
  if (plan.num_slots > kSmallSlots || plan.num_groups > kSmallGroups ||
      shared_bytes + kStaticBytes > kMostSharedBytes)
    return false;
  const int multiprocessors = Multiprocessors(exec.device());
  MoveArguments move = work.move;
  ShareOut(int64_t{Mover::kMovers} * multiprocessors, &move);
  Launch(SmallKernel<Mover>,
         {.grid = dim3(static_cast<unsigned>(multiprocessors)),
          .block = dim3(kSmallWarps * kWarp),
          .shared_bytes = shared_bytes,
          .overlaps_previous = true},
         exec.cuda_stream(), SmallKernelArguments{plan, move, work.beside});
  return true;
}

// Two launches; false where these movers do not have the room that they want.
template <typename Mover>
bool PermuteLarge(const Exec& exec, const PlanArguments& plan, const Work& work) {
  const int multiprocessors = Multiprocessors(exec.device());
  MoveKernelArguments arguments = {.move = work.move, .work = work.beside};
  MoveArguments& move = arguments.move;
  ShareOut(int64_t{Mover::kMovers} * multiprocessors, &move);
  Parts shared;
  shared.Take(Mover::SharedBytes(move.stage_bytes));
  if (move.has_loose_scales && plan.num_slots > 0) {
    arguments.scales =
        ScaleTiles::Of(move.loose_scales, move.num_tokens, move.topk, multiprocessors);
    arguments.tiles_at = static_cast<int32_t>(shared.Take(sizeof(ScaleTileMemory)));
    move.has_loose_scales = false;
    if (move.rows.row_bytes == 0) move.num_batches = 0;
  }
  if (shared.bytes() > kMostSharedBytes) return false;
  PlanArguments large = plan;
  LaunchPlan(exec, true, &large);
  move.claims = &large.state->claims;
  arguments.experts = large.groups.experts;
  arguments.rows = {.words = large.words,
                    .prefix = large.prefix,
                    .segments = {.starts = large.starts,
                                 .counts = large.placement.expert_num_tokens,
                                 .num_local = large.request.experts.num_local},
                    .num_slots = large.num_slots,
                    .num_groups = large.num_groups,
                    .shift = large.shift};
  arguments.failure = large.failure;
  Launch(MoveKernel<Mover>,
         {.grid = dim3(static_cast<unsigned>(multiprocessors)),
          .block = dim3((Mover::kMovers + kHelpers) * kWarp),
          .shared_bytes = shared.bytes(),
          .overlaps_previous = true},
         exec.cuda_stream(), arguments);
  return true;
}

// Movers with stages of up to so many bytes, that have room beside whatever else a block has.
template <typename Mover, int kMostBytes>
void PermuteWith(const Exec& exec, const PlanArguments& plan, const Work& work) {
  static_assert(Mover::SharedBytes(kMostBytes) + int64_t{sizeof(ScaleTileMemory)} +
                    2 * Parts::kAlignment <=
                kMostSharedBytes);
  if (!PermuteSmall<Mover>(exec, plan, work)) PermuteLarge<Mover>(exec, plan, work);
}

}  // namespace

void Permute(const Exec& exec, const PermuteRequest& request, const Placement& placement,
             int32_t* expert_ids) {
  const int64_t num_slots = request.placement.num_tokens * request.placement.topk;
  const PlanArguments plan = PlanOf(exec, request.placement, placement, num_slots);
  if (!CheckGroups(exec, plan.num_groups)) return;
  const RowMove& rows = request.rows;
  const bool bulk = kUseBulkCopies && rows.row_bytes > 0 &&
                    IsAligned(rows.from, rows.from_stride, rows.row_bytes) &&
                    IsAligned(rows.to, 0, 0);
  // Short rows are many, and a copy more for each of them takes longer than tiles of scales, which
  // move words.
  constexpr int kShort = kMostStageBytes / 2;
  const bool scales_lie_together = ScalesLieTogether(request.scales, rows.row_bytes > 0);
  const bool scales_travel =
      scales_lie_together &&
      (rows.row_bytes > kShort || num_slots <= kSmallSlots || request.scales.element_bytes < 4);
  Work work = {.move = MoveOf(request, scales_travel),
               .beside = WorkOf(request, placement, expert_ids, scales_lie_together)};
  if (!bulk) return PermuteWith<PlainMover, 0>(exec, plan, work);
  SplitIntoPieces(&work.move);
  // A row is as much work for a mover, however long it is: of short ones two movers keep memory as
  // busy as one does of long ones, and with more stages, where there is room, busier.
  if (work.move.stage_bytes > kShort)
    return PermuteWith<BulkMover<4, 4>, kMostStageBytes>(exec, plan, work);
  if (plan.num_slots > kSmallSlots && PermuteLarge<BulkMover<8, 6>>(exec, plan, work)) return;
  PermuteWith<BulkMover<8, 4>, kShort>(exec, plan, work);
}

void CountExpertNumTokens(const Exec& exec, const LocalExperts& experts, int64_t num_slots,
                          int64_t topk, int32_t* counts) {
  const PlacementRequest request = {
      .experts = experts,
      .num_tokens = 0,
      .topk = topk,
      .alignment = 1,
      .rows_per_expert = 0,
      .reserved = nullptr,
      .capacity = std::numeric_limits<int64_t>::max(),
      .foreign_last = false,
  };
  PlanArguments plan = PlanOf(exec, request, {.expert_num_tokens = counts}, num_slots);
  if (!CheckGroups(exec, plan.num_groups)) return;
  LaunchPlan(exec, false, &plan);
}

}  // namespace moe_ep::cuda
