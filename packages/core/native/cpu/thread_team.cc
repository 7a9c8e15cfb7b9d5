#include "cpu/thread_team.h"

#include <algorithm>

namespace moe_ep {
namespace {

int64_t PartBegin(int64_t count, int parts, int index) {
  return count / parts * index + std::min<int64_t>(index, count % parts);
}

}  // namespace

ThreadTeam::ThreadTeam(int threads) {
  helpers_.reserve(threads - 1);
  try {
    for (int index = 1; index < threads; ++index) {
      helpers_.emplace_back([this, index] { HelperLoop(index); });
    }
  } catch (...) {
    Stop();  // a vector of running threads must not be destroyed
    throw;
  }
}

ThreadTeam::~ThreadTeam() { Stop(); }

void ThreadTeam::Stop() {
  {
    std::lock_guard lock(mutex_);
    stop_ = true;
  }
  start_.notify_all();
  for (std::thread& helper : helpers_) helper.join();
  helpers_.clear();
}

void ThreadTeam::ParallelFor(int64_t count, int64_t grain, Body body, void* self) {
  if (count <= 0) return;
  const int64_t wanted = (count + std::max<int64_t>(grain, 1) - 1) / std::max<int64_t>(grain, 1);
  const int parts = static_cast<int>(std::min<int64_t>(threads(), wanted));
  if (parts == 1) {
    body(self, 0, count);
    return;
  }
  {
    std::lock_guard lock(mutex_);
    parts_ = parts;
    running_ = parts - 1;
    count_ = count;
    body_ = body;
    self_ = self;
    ++generation_;
  }
  start_.notify_all();
  body(self, 0, PartBegin(count, parts, 1));
  std::unique_lock lock(mutex_);
  done_.wait(lock, [this] { return running_ == 0; });
}

void ThreadTeam::HelperLoop(int index) {
  uint64_t seen = 0;
  std::unique_lock lock(mutex_);
  while (true) {
    start_.wait(lock, [&] { return stop_ || generation_ != seen; });
    if (stop_) return;
    seen = generation_;
    if (index >= parts_) continue;
    const int64_t begin = PartBegin(count_, parts_, index);
    const int64_t end = PartBegin(count_, parts_, index + 1);
    const Body body = body_;
    void* const self = self_;
    lock.unlock();
    body(self, begin, end);
    lock.lock();
    if (--running_ == 0) done_.notify_one();
  }
}

}  // namespace moe_ep
