// What core keeps for one JavaScript environment (the main thread or a worker thread).
#pragma once

#include <napi.h>

#include <deque>
#include <functional>
#include <memory>
#include <mutex>
#include <vector>

#include "moe_ep/binding.h"
#include "runtime/failure.h"
#include "runtime/stream.h"

namespace moe_ep {

// Brings results from native threads back to the JavaScript thread. Keeps the event loop alive only
// while promises are open.
class Mailbox : public std::enable_shared_from_this<Mailbox> {
 public:
  explicit Mailbox(Napi::Env env);

  // JavaScript thread: a promise and the function that settles it from any thread, once.
  struct Pending {
    Napi::Promise promise;
    std::function<void(MaybeFailure)> settle;
  };
  Pending Open(Napi::Env env);

  // Any thread: runs `task` on the JavaScript thread, unless the environment ends before.
  using Task = std::function<void(Napi::Env)>;
  void Post(Task task);

  // The environment ends: nothing may be called any more.
  void Close();

 private:
  void Drain(Napi::Env env);

  std::mutex mutex_;
  std::deque<Task> tasks_;
  bool closed_ = false;
  int64_t open_ = 0;  // JavaScript thread only
  Napi::ThreadSafeFunction wake_;
};

class Environment {
 public:
  explicit Environment(Napi::Env env);
  static Environment& Of(Napi::Env env) { return *env.GetInstanceData<Environment>(); }
  ~Environment();

  const std::shared_ptr<Mailbox>& mailbox() const { return mailbox_; }
  // A cpu stream that lives until its thread has ended, also when JavaScript forgets it before.
  std::shared_ptr<Stream> CreateStream(int threads);
  // Takes over a stream of another device; JavaScript gives it up with Release.
  void Keep(std::shared_ptr<Stream> stream);
  void Release(const std::shared_ptr<Stream>& stream);
  // Ends all streams of this environment; also when a worker is terminated in mid operation.
  void Shutdown();

 private:
  void ForgetEndedStreams();

  std::shared_ptr<Mailbox> mailbox_;
  std::vector<std::shared_ptr<Stream>> streams_;
  std::vector<std::shared_ptr<Stream>> released_;  // closed, until what they have queued is done
};

}  // namespace moe_ep
