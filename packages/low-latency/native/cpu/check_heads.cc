#include "cpu/check_heads.h"

#include "failures.h"

namespace moe_ep::cpu {
namespace {

class HeadsCheck {
 public:
  HeadsCheck(const Exec& exec, const DispatchCall& call)
      : exec_(exec),
        call_(call),
        buffer_(*call.buffer),
        rank_(buffer_.routes.rank()),
        agrees_(call.arguments.agrees != 0),
        heard_(buffer_.slots[call.slot].present) {
    ForHeard([&](int, const DispatchHead& head) {
      masked_ |= MaskOf(head);
      return true;
    });
    // Who is masked by one rank is not heard by all, so ranks that agree do not listen to it.
    if (agrees_) heard_ &= ~masked_;
  }

  bool Passes() const {
    return NobodyRefuses() && ArgumentsMatch() && MasksMatch() && IdsAreValid();
  }

 private:
  static RankBits MaskOf(const DispatchHead& head) {
    return static_cast<RankBits>(head.arguments.mask);
  }
  const DispatchHead& HeadOf(int source) const { return buffer_.Head(rank_, call_.slot, source); }
  // Calls use(source, head) for those who are heard, until it returns false; false then.
  template <typename Use>
  bool ForHeard(const Use& use) const {
    for (int source = 0; source < buffer_.routes.world_size(); ++source)
      if (TakesPart(heard_, source) && !use(source, HeadOf(source))) return false;
    return true;
  }

  // Where ranks settle their masks, all that go on mask whom any of them masks: they have seen the
  // same heads. Who is masked by others keeps hearing so.
  template <typename... Values>
  bool Fails(moe_ep_describe_failure describe, Values... values) const {
    if (buffer_.masks_late || agrees_)
      buffer_.mask.fetch_or(masked_ & ~BitOf(rank_), std::memory_order_relaxed);
    FailWith(exec_, describe, values...);
    return false;
  }

  bool NobodyRefuses() const {
    return ForHeard([&](int source, const DispatchHead& head) {
      return head.refusal == 0 || Fails(DescribeDispatchRefusal, source, head.refusal);
    });
  }

  bool ArgumentsMatch() const {
    int base = -1;
    return ForHeard([&](int source, const DispatchHead& head) {
      if (base < 0) base = source;
      const auto* first = reinterpret_cast<const int64_t*>(&HeadOf(base).arguments);
      const auto* other = reinterpret_cast<const int64_t*>(&head.arguments);
      for (int i = 0; i < kNumSharedArguments; ++i) {
        if (first[i] == other[i] || (agrees_ && i == kMaskArgument)) continue;
        return Fails(DescribeMismatch, i, first[i], other[i], source, base);
      }
      return true;
    });
  }

  // Of ranks that agree: whether all have the mask that this round makes of theirs.
  bool MasksMatch() const {
    if (!agrees_) return true;
    const bool hears_others = ForHeard([&](int, const DispatchHead& head) {
      return (MaskOf(head) & BitOf(rank_)) == 0 || Fails(DescribeMaskedOut, rank_);
    });
    if (!hears_others) return false;
    const auto has_mask = [&](int source, const DispatchHead& head) {
      return MaskOf(head) == masked_ ||
             Fails(DescribeMismatch, kMaskArgument, masked_, MaskOf(head), source, rank_);
    };
    // This rank's own, also where only those who are not heard mask it.
    return ForHeard(has_mask) && has_mask(rank_, HeadOf(rank_));
  }

  bool IdsAreValid() const {
    return ForHeard([&](int source, const DispatchHead& head) {
      return head.invalid_token < 0 || Fails(DescribeInvalidId, source, head.invalid_token,
                                             head.invalid_id, head.arguments.experts);
    });
  }

  const Exec& exec_;
  const DispatchCall& call_;
  const Buffer& buffer_;
  int rank_;
  bool agrees_;
  RankBits heard_;
  RankBits masked_ = 0;  // by any rank that takes part
};

}  // namespace

bool CheckHeads(const Exec& exec, const DispatchCall& call) {
  return HeadsCheck(exec, call).Passes();
}

}  // namespace moe_ep::cpu
