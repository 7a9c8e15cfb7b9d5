#include "binding/environment.h"

#include <atomic>
#include <utility>

#include "binding/handles.h"
#include "cpu/cpu_stream.h"

namespace moe_ep {

Mailbox::Mailbox(Napi::Env env) {
  const auto nothing = Napi::Function::New(env, [](const Napi::CallbackInfo&) {}, "moe-ep mailbox");
  wake_ = Napi::ThreadSafeFunction::New(env, nothing, "moe-ep mailbox", 0, 1);
  wake_.Unref(env);
}

Mailbox::Pending Mailbox::Open(Napi::Env env) {
  struct Open {
    Napi::Promise::Deferred deferred;
    std::atomic_flag settled = ATOMIC_FLAG_INIT;
  };
  auto opened = std::make_shared<Open>(Napi::Promise::Deferred(env));
  if (open_++ == 0) wake_.Ref(env);
  std::weak_ptr<Mailbox> weak = weak_from_this();
  return {opened->deferred.Promise(), [weak, opened](MaybeFailure failure) {
            const std::shared_ptr<Mailbox> self = weak.lock();
            if (self == nullptr || opened->settled.test_and_set()) return;
            self->Post([self = self.get(), opened, failure = std::move(failure)](Napi::Env env) {
              if (--self->open_ == 0) self->wake_.Unref(env);
              if (failure) {
                opened->deferred.Reject(CodedError(env, failure->code, failure->message).Value());
              } else {
                opened->deferred.Resolve(env.Undefined());
              }
            });
          }};
}

void Mailbox::Post(Task task) {
  std::lock_guard lock(mutex_);
  if (closed_) return;
  tasks_.push_back(std::move(task));
  if (tasks_.size() == 1) {
    wake_.NonBlockingCall(
        [self = shared_from_this()](Napi::Env env, Napi::Function) { self->Drain(env); });
  }
}

void Mailbox::Drain(Napi::Env env) {
  std::deque<Task> tasks;
  {
    std::lock_guard lock(mutex_);
    tasks.swap(tasks_);
  }
  Napi::HandleScope scope(env);
  for (Task& task : tasks) task(env);
}

void Mailbox::Close() {
  std::deque<Task> dropped;
  std::lock_guard lock(mutex_);
  if (closed_) return;
  closed_ = true;
  dropped.swap(tasks_);
  wake_.Abort();
}

Environment::Environment(Napi::Env env) : mailbox_(std::make_shared<Mailbox>(env)) {}

Environment::~Environment() { Shutdown(); }

std::shared_ptr<Stream> Environment::CreateStream(int threads) {
  const auto ended = [weak = std::weak_ptr<Mailbox>(mailbox_)] {
    const std::shared_ptr<Mailbox> mailbox = weak.lock();
    if (mailbox == nullptr) return;
    mailbox->Post([](Napi::Env env) { Of(env).ForgetEndedStreams(); });
  };
  streams_.push_back(CpuStream::Create(CoreApi(), threads, ended));
  return streams_.back();
}

void Environment::Keep(std::shared_ptr<Stream> stream) {
  std::erase_if(released_, [](const std::shared_ptr<Stream>& closed) { return closed->Idle(); });
  streams_.push_back(std::move(stream));
}

void Environment::Release(const std::shared_ptr<Stream>& stream) {
  stream->Close(/*abort=*/false);
  if (!stream->Idle()) released_.push_back(stream);
  std::erase(streams_, stream);
}

void Environment::ForgetEndedStreams() {
  std::erase_if(streams_, [](const std::shared_ptr<Stream>& stream) {
    if (!stream->ended()) return false;
    stream->Join();
    return true;
  });
}

void Environment::Shutdown() {
  mailbox_->Close();
  // All get the word before any is waited for: they may wait for one another.
  streams_.insert(streams_.end(), released_.begin(), released_.end());
  released_.clear();
  for (const auto& stream : streams_) stream->Close(/*abort=*/true);
  for (const auto& stream : streams_) stream->Join();
  streams_.clear();
}

}  // namespace moe_ep
