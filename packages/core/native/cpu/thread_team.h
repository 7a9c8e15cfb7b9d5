// The threads of one stream. The stream's own thread takes a part of every loop; helpers sleep in
// between.
#pragma once

#include <condition_variable>
#include <cstdint>
#include <mutex>
#include <thread>
#include <vector>

namespace moe_ep {

class ThreadTeam {
 public:
  using Body = void (*)(void* self, int64_t begin, int64_t end);

  // Throws std::system_error when the machine has no more threads to give.
  explicit ThreadTeam(int threads);
  ~ThreadTeam();
  ThreadTeam(const ThreadTeam&) = delete;
  ThreadTeam& operator=(const ThreadTeam&) = delete;

  int threads() const { return static_cast<int>(helpers_.size()) + 1; }

  // Splits [0, count) into at most threads() contiguous parts of at least `grain` and returns when
  // all are done. Which thread takes which part decides no result: bodies write disjoint rows.
  void ParallelFor(int64_t count, int64_t grain, Body body, void* self);

  // Ends the helpers, while no loop runs.
  void Stop();

 private:
  void HelperLoop(int index);

  std::mutex mutex_;
  std::condition_variable start_;
  std::condition_variable done_;
  uint64_t generation_ = 0;
  int parts_ = 1;
  int running_ = 0;
  int64_t count_ = 0;
  Body body_ = nullptr;
  void* self_ = nullptr;
  bool stop_ = false;
  std::vector<std::thread> helpers_;
};

}  // namespace moe_ep
