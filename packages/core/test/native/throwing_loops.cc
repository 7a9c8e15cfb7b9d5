// Loops whose parts throw, on streams without JavaScript. Prints one line a failure that came out.
#include <cstdio>
#include <new>
#include <stdexcept>
#include <string>

#include "cpu/cpu_stream.h"
#include "moe_ep/command.h"

using moe_ep::Command;
using moe_ep::CpuStream;
using moe_ep::Exec;
using moe_ep::MaybeFailure;
using moe_ep::Stream;

namespace {

CpuStream* StreamOf(moe_ep_exec* exec) {
  return static_cast<CpuStream*>(static_cast<Stream*>(exec->state));
}

template <typename Body>
void Run(Stream& stream, Body body) {
  stream.Enqueue(std::make_shared<Command>(moe_ep::MakeCommand(std::move(body))));
  stream.WhenDone([](MaybeFailure failure) {
    if (!failure) {
      std::printf("no failure\n");
    } else {
      std::printf("%s %s\n", failure->code.c_str(), failure->message.c_str());
    }
  });
}

}  // namespace

int main() {
  moe_ep_core_api api = {};
  api.parallel_for = [](moe_ep_exec* exec, int64_t count, int64_t grain,
                        void (*body)(void*, int64_t, int64_t),
                        void* self) { StreamOf(exec)->ParallelFor(count, grain, body, self); };
  api.fail = [](moe_ep_exec* exec, const char* code, const char* message) {
    StreamOf(exec)->Fail({code, message});
  };
  const auto stream = CpuStream::Create(&api, 4);
  for (int round = 0; round < 50; ++round) {
    Run(*stream, [](const Exec& exec) {
      exec.ParallelFor(4, 1, [](int64_t begin, int64_t) {
        if (begin > 0) throw std::runtime_error("part " + std::to_string(begin));
      });
    });
    Run(*stream, [](const Exec& exec) {
      exec.ParallelFor(4, 1, [](int64_t, int64_t) { throw std::bad_alloc(); });
    });
    Run(*stream,
        [](const Exec& exec) { exec.ParallelFor(1, 1, [](int64_t, int64_t) { throw 3; }); });
    Run(*stream, [](const Exec& exec) { exec.ParallelFor(4, 1, [](int64_t, int64_t) {}); });
  }
  stream->Close(/*abort=*/false);
  stream->Join();
  return 0;
}
