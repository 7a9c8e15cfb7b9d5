#include "binding/environment.h"

#include <utility>

namespace moe_ep {

Mailbox::Mailbox(Napi::Env env) {
  const auto nothing = Napi::Function::New(env, [](const Napi::CallbackInfo&) {}, "moe-ep mailbox");
  wake_ = Napi::ThreadSafeFunction::New(env, nothing, "moe-ep mailbox", 0, 1);
  wake_.Unref(env);
}

Mailbox::Pending Mailbox::Open(Napi::Env env) {
  auto deferred = std::make_shared<Napi::Promise::Deferred>(env);
  if (open_++ == 0) wake_.Ref(env);
  std::weak_ptr<Mailbox> weak = weak_from_this();
  return {deferred->Promise(), [weak, deferred](MaybeFailure failure) {
            const std::shared_ptr<Mailbox> self = weak.lock();
            if (self == nullptr) return;
            self->Post([self = self.get(), deferred, failure = std::move(failure)](Napi::Env env) {
              if (--self->open_ == 0) self->wake_.Unref(env);
              if (failure) {
                deferred->Reject(CodedError(env, *failure).Value());
              } else {
                deferred->Resolve(env.Undefined());
              }
            });
          }};
}

void Mailbox::DropReference(napi_ref reference) {
  Post([reference](Napi::Env env) { napi_delete_reference(env, reference); });
}

void Mailbox::Post(Task task) {
  std::lock_guard lock(mutex_);
  if (closed_) return;
  tasks_.push_back(std::move(task));
  if (tasks_.size() == 1) {
    wake_.NonBlockingCall([self = shared_from_this()](Napi::Env env, Napi::Function) { self->Drain(env); });
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

void Environment::Track(const std::shared_ptr<Stream>& stream) {
  std::erase_if(streams_, [](const std::weak_ptr<Stream>& weak) { return weak.expired(); });
  streams_.insert(stream);
}

void Environment::Shutdown() {
  mailbox_->Close();
  std::vector<std::shared_ptr<Stream>> alive;
  for (const std::weak_ptr<Stream>& weak : streams_) {
    if (std::shared_ptr<Stream> stream = weak.lock()) alive.push_back(std::move(stream));
  }
  streams_.clear();
  // All get the word before any is waited for: they may wait for one another.
  for (const auto& stream : alive) stream->Close(/*abort=*/true);
  for (const auto& stream : alive) stream->Join();
}

Napi::Error CodedError(Napi::Env env, const Failure& failure) {
  Napi::Error error = Napi::Error::New(env, failure.message);
  error.Value().Set("code", failure.code);
  return error;
}

void Throw(Napi::Env env, const char* code, const std::string& message) { throw CodedError(env, {code, message}); }

}  // namespace moe_ep
