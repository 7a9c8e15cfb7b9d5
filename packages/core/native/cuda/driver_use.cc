#include "cuda/driver_use.h"

#include <atomic>
#include <chrono>
#include <cstdlib>
#include <mutex>
#include <thread>

namespace moe_ep::cuda {
namespace {

// No destructors: threads look at these until the very end.
std::atomic<bool> leaving = false;
std::atomic<int> users = 0;
thread_local int depth = 0;
// Its exit handlers and destructors must not stop it.
thread_local bool leaves = false;

void Leave() {
  leaves = true;
  leaving = true;
  // It takes microseconds. A thread that is held up must not hold up the exit.
  const auto patience = std::chrono::steady_clock::now() + std::chrono::seconds(1);
  while (users > depth && std::chrono::steady_clock::now() < patience)
    std::this_thread::sleep_for(std::chrono::microseconds(20));
}

}  // namespace

DriverUse::DriverUse() {
  if (++depth > 1) return;
  ++users;  // before the look, so that either side sees the other
  if (!leaving || leaves) return;
  --users;
  while (true) std::this_thread::sleep_for(std::chrono::hours(1));
}

DriverUse::~DriverUse() {
  if (--depth == 0) --users;
}

void EndDriverUseAtExit() {
  static std::once_flag once;
  std::call_once(once, [] { std::atexit(Leave); });
}

}  // namespace moe_ep::cuda
