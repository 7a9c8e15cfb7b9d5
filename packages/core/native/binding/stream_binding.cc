// Streams, events, and the promises that wait for them.
#include <chrono>
#include <thread>

#include "binding/handles.h"

namespace moe_ep {
namespace {

Stream& StreamArgument(const Napi::Value& value) { return *Unwrap<StreamHandle>(value, kStreamTag, "stream"); }
const EventHandle& EventArgument(const Napi::Value& value) { return Unwrap<EventHandle>(value, kEventTag, "event"); }

void RequireOpen(Napi::Env env, bool open) {
  if (!open) Throw(env, "ERR_MOE_EP_RELEASED", "the stream was closed");
}

Napi::Value CreateStream(const Napi::CallbackInfo& info) {
  Napi::Env env = info.Env();
  const int threads = info[0].As<Napi::Number>().Int32Value();
  auto stream = Stream::Create(CoreApi(), threads);
  Environment::Of(env).Track(stream);
  return Wrap<StreamHandle>(env, kStreamTag, new StreamHandle(std::move(stream)), [](StreamHandle* held) {
    (*held)->Close(/*abort=*/false);  // what was enqueued still runs
    delete held;
  });
}

Napi::Value StreamSynchronize(const Napi::CallbackInfo& info) {
  Napi::Env env = info.Env();
  Stream& stream = StreamArgument(info[0]);
  if (stream.capturing()) Throw(env, "ERR_MOE_EP_CAPTURE", "a stream cannot be awaited while it is captured");
  Mailbox::Pending pending = Environment::Of(env).mailbox()->Open(env);
  if (!stream.WhenDone(pending.settle)) pending.settle(Failure{"ERR_MOE_EP_RELEASED", "the stream was closed"});
  return pending.promise;
}

// streamClose(stream, abort)
Napi::Value StreamClose(const Napi::CallbackInfo& info) {
  StreamArgument(info[0]).Close(info[1].As<Napi::Boolean>().Value());
  return info.Env().Undefined();
}

// streamDelay(stream, microseconds): work that only takes time; tests use it to shake orders.
Napi::Value StreamDelay(const Napi::CallbackInfo& info) {
  const auto time = std::chrono::microseconds(info[1].As<Napi::Number>().Int64Value());
  auto command = std::make_shared<Command>(Command::Kind::kWork, [time](moe_ep_exec*) { std::this_thread::sleep_for(time); });
  RequireOpen(info.Env(), StreamArgument(info[0]).Enqueue(std::move(command)));
  return info.Env().Undefined();
}

// streamFail(stream, code, message): puts the stream into failure, as a failing kernel does.
Napi::Value StreamFail(const Napi::CallbackInfo& info) {
  Failure failure{info[1].As<Napi::String>(), info[2].As<Napi::String>()};
  auto command = std::make_shared<Command>(Command::Kind::kMarker, [failure](moe_ep_exec* exec) {
    static_cast<Stream*>(exec->state)->Fail(failure);
  });
  RequireOpen(info.Env(), StreamArgument(info[0]).Enqueue(std::move(command)));
  return info.Env().Undefined();
}

Napi::Value CreateEvent(const Napi::CallbackInfo& info) {
  return Wrap<EventHandle>(info.Env(), kEventTag, new EventHandle(std::make_shared<Event>()),
                           [](EventHandle* held) { delete held; });
}

Napi::Value StreamRecord(const Napi::CallbackInfo& info) {
  RequireOpen(info.Env(), StreamArgument(info[0]).Record(EventArgument(info[1])));
  return info.Env().Undefined();
}

Napi::Value StreamWait(const Napi::CallbackInfo& info) {
  RequireOpen(info.Env(), StreamArgument(info[0]).WaitFor(EventArgument(info[1])));
  return info.Env().Undefined();
}

Napi::Value EventSynchronize(const Napi::CallbackInfo& info) {
  Napi::Env env = info.Env();
  const EventHandle& event = EventArgument(info[0]);
  if (event->capture() != nullptr) {
    Throw(env, "ERR_MOE_EP_CAPTURE", "an event that was recorded in a capture cannot be awaited before the capture ends");
  }
  Mailbox::Pending pending = Environment::Of(env).mailbox()->Open(env);
  event->WhenComplete(event->last_ticket(), pending.settle);
  return pending.promise;
}

Napi::Value EventQuery(const Napi::CallbackInfo& info) {
  const EventHandle& event = EventArgument(info[0]);
  return Napi::Boolean::New(info.Env(), event->Completed(event->last_ticket()));
}

Napi::Value EventTime(const Napi::CallbackInfo& info) {
  return Napi::Number::New(info.Env(), static_cast<double>(EventArgument(info[0])->completed_at()) / 1000.0);
}

}  // namespace

void RegisterStream(Napi::Env env, Napi::Object exports) {
  exports.Set("createStream", Napi::Function::New(env, CreateStream));
  exports.Set("streamSynchronize", Napi::Function::New(env, StreamSynchronize));
  exports.Set("streamClose", Napi::Function::New(env, StreamClose));
  exports.Set("streamDelay", Napi::Function::New(env, StreamDelay));
  exports.Set("streamFail", Napi::Function::New(env, StreamFail));
  exports.Set("createEvent", Napi::Function::New(env, CreateEvent));
  exports.Set("streamRecord", Napi::Function::New(env, StreamRecord));
  exports.Set("streamWait", Napi::Function::New(env, StreamWait));
  exports.Set("eventSynchronize", Napi::Function::New(env, EventSynchronize));
  exports.Set("eventQuery", Napi::Function::New(env, EventQuery));
  exports.Set("eventTime", Napi::Function::New(env, EventTime));
}

}  // namespace moe_ep
