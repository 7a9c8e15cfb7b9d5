// Streams, events, and the promises that wait for them.
#include <exception>
#include <new>
#include <string>
#include <system_error>

#include "binding/handles.h"

namespace moe_ep {
namespace {

const EventHandle& EventArgument(const Napi::Value& value) {
  return Unwrap<EventHandle>(value, kEventTag, "event");
}

void RequireOpen(Napi::Env env, bool open) {
  if (!open) Throw(env, "ERR_MOE_EP_RELEASED", "the stream was closed");
}

// Calls `begin`, which sees to it that the promise settles. Where it fails the promise says so: one
// that stays open keeps the process alive.
template <typename Begin>
void SettleBy(const Mailbox::Pending& pending, const Begin& begin) {
  try {
    begin();
  } catch (const std::bad_alloc&) {
    pending.settle(Failure{"ERR_MOE_EP_OUT_OF_MEMORY", "there is no memory to wait with"});
  } catch (const std::system_error& error) {
    pending.settle(Failure{"ERR_MOE_EP_OUT_OF_MEMORY",
                           std::string("cannot start a thread that waits: ") + error.what()});
  } catch (const std::exception& error) {
    pending.settle(Failure{"ERR_MOE_EP_INTERNAL", error.what()});
  }
}

Napi::Value CreateStream(const Napi::CallbackInfo& info) {
  Napi::Env env = info.Env();
  const int threads = info[0].As<Napi::Number>().Int32Value();
  if (threads < 1 || threads > 256) Throw(env, "ERR_MOE_EP_ARGUMENT", "threads: expected 1 to 256");
  std::shared_ptr<Stream> stream;
  try {
    stream = Environment::Of(env).CreateStream(threads);
  } catch (const std::system_error& error) {
    Throw(env, "ERR_MOE_EP_OUT_OF_MEMORY",
          "cannot start " + std::to_string(threads) + " threads for a stream: " + error.what());
  }
  return Wrap<StreamHandle>(env, kStreamTag, new StreamHandle(std::move(stream)),
                            [](Napi::Env, StreamHandle* held) {
                              (*held)->Close(/*abort=*/false);  // what was enqueued still runs
                              delete held;
                            });
}

Napi::Value StreamCapturing(const Napi::CallbackInfo& info) {
  return Napi::Boolean::New(info.Env(), StreamArgument(info[0]).capturing());
}

Napi::Value StreamRecording(const Napi::CallbackInfo& info) {
  return Napi::Boolean::New(info.Env(), StreamArgument(info[0]).recording());
}

Napi::Value StreamSynchronize(const Napi::CallbackInfo& info) {
  Napi::Env env = info.Env();
  Stream& stream = StreamArgument(info[0]);
  if (stream.capturing())
    Throw(env, "ERR_MOE_EP_CAPTURE", "a stream cannot be awaited while it is captured");
  Mailbox::Pending pending = Environment::Of(env).mailbox()->Open(env);
  SettleBy(pending, [&] {
    if (!stream.WhenDone(pending.settle))
      pending.settle(Failure{"ERR_MOE_EP_RELEASED", "the stream was closed"});
  });
  return pending.promise;
}

// streamClose(stream, abort)
Napi::Value StreamClose(const Napi::CallbackInfo& info) {
  StreamArgument(info[0]).Close(info[1].As<Napi::Boolean>().Value());
  return info.Env().Undefined();
}

// streamDelay(stream, microseconds): work that only takes time; tests use it to shake orders.
Napi::Value StreamDelay(const Napi::CallbackInfo& info) {
  Stream& stream = StreamArgument(info[0]);
  const int64_t microseconds = info[1].As<Napi::Number>().Int64Value();
  RequireOpen(info.Env(), stream.Enqueue(stream.DelayCommand(microseconds)));
  return info.Env().Undefined();
}

// streamFail(stream, code, message): puts the stream into failure, as a failing kernel does.
Napi::Value StreamFail(const Napi::CallbackInfo& info) {
  Stream& stream = StreamArgument(info[0]);
  Failure failure{info[1].As<Napi::String>(), info[2].As<Napi::String>()};
  RequireOpen(info.Env(), stream.Enqueue(stream.FailCommand(std::move(failure))));
  return info.Env().Undefined();
}

Napi::Value CreateEvent(const Napi::CallbackInfo& info) {
  return Wrap<EventHandle>(info.Env(), kEventTag, new EventHandle(std::make_shared<Event>()),
                           [](Napi::Env, EventHandle* held) { delete held; });
}

Napi::Value StreamRecord(const Napi::CallbackInfo& info) {
  Require(info.Env(), StreamArgument(info[0]).Record(EventArgument(info[1]), info[2].ToBoolean()));
  return info.Env().Undefined();
}

// streamWait(stream, event, takeFailure)
Napi::Value StreamWait(const Napi::CallbackInfo& info) {
  const bool take_failure = info[2].As<Napi::Boolean>().Value();
  Require(info.Env(), StreamArgument(info[0]).WaitFor(EventArgument(info[1]), take_failure));
  return info.Env().Undefined();
}

Napi::Value EventSynchronize(const Napi::CallbackInfo& info) {
  Napi::Env env = info.Env();
  const EventHandle& event = EventArgument(info[0]);
  if (event->capture() != nullptr || (event->newest() != nullptr && event->newest()->captured())) {
    Throw(env, "ERR_MOE_EP_CAPTURE",
          "an event that was recorded in a capture cannot be awaited before the capture ends");
  }
  Mailbox::Pending pending = Environment::Of(env).mailbox()->Open(env);
  SettleBy(pending, [&] {
    if (const std::shared_ptr<Recording>& newest = event->newest()) {
      NewestOf(newest)->WhenComplete(pending.settle);
    } else {
      pending.settle(std::nullopt);
    }
  });
  return pending.promise;
}

Napi::Value EventQuery(const Napi::CallbackInfo& info) {
  const std::shared_ptr<Recording>& newest = EventArgument(info[0])->newest();
  return Napi::Boolean::New(info.Env(), newest == nullptr || newest->completed());
}

Napi::Value EventTime(const Napi::CallbackInfo& info) {
  const std::shared_ptr<Recording>& newest = EventArgument(info[0])->newest();
  const double nanoseconds = newest == nullptr ? 0 : static_cast<double>(newest->completed_at());
  return Napi::Number::New(info.Env(), nanoseconds / 1000.0);
}

}  // namespace

void RegisterStream(Napi::Env env, Napi::Object exports) {
  Export(env, exports, "createStream", CreateStream);
  Export(env, exports, "streamCapturing", StreamCapturing);
  Export(env, exports, "streamRecording", StreamRecording);
  Export(env, exports, "streamSynchronize", StreamSynchronize);
  Export(env, exports, "streamClose", StreamClose);
  Export(env, exports, "streamDelay", StreamDelay);
  Export(env, exports, "streamFail", StreamFail);
  Export(env, exports, "createEvent", CreateEvent);
  Export(env, exports, "streamRecord", StreamRecord);
  Export(env, exports, "streamWait", StreamWait);
  Export(env, exports, "eventSynchronize", EventSynchronize);
  Export(env, exports, "eventQuery", EventQuery);
  Export(env, exports, "eventTime", EventTime);
}

}  // namespace moe_ep
