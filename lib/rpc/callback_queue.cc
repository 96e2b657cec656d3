// Takes the place of gRPC's own queue for the callback API; linked with
// --wrap, see BUILD.
//
// As soon as a server has one method of that API, gRPC's threads for it do all
// the polling: they read what comes in for the synchronous API, too, and hand
// it to a thread of that. And after each second without callbacks they sleep
// for 100 ms, whoever may call meanwhile. Here the threads of the synchronous
// API, which every server of ours has, poll, and those for callbacks wait for
// callbacks.
#include <grpc/grpc.h>
#include <grpcpp/completion_queue.h>
#include <pthread.h>

#include <thread>

// gRPC's own.
extern "C" grpc_completion_queue* __real_grpc_completion_queue_create(
    const grpc_completion_queue_factory* factory,
    const grpc_completion_queue_attributes* attributes, void* reserved);

namespace bulkhead::rpc {
namespace {

// A callback may take a lock for a moment: the others go on.
constexpr int kThreads = 2;

void RunCallbacks(grpc_completion_queue* queue) {
  ::pthread_setname_np(::pthread_self(), "grpc_callbacks");
  for (;;) {
    const grpc_event event = grpc_completion_queue_next(
        queue, gpr_inf_future(GPR_CLOCK_REALTIME), nullptr);
    if (event.type == GRPC_QUEUE_SHUTDOWN) return;
    if (event.type != GRPC_OP_COMPLETE) continue;
    auto* functor = static_cast<grpc_completion_queue_functor*>(event.tag);
    functor->functor_run(functor, event.success);
  }
}

// Lives as long as the process, as gRPC itself does (Server::Start()).
grpc::CompletionQueue* Queue() {
  static grpc::CompletionQueue* const queue = [] {
    const grpc_completion_queue_attributes attributes = {
        GRPC_CQ_CURRENT_VERSION, GRPC_CQ_NEXT, GRPC_CQ_NON_POLLING, nullptr};
    grpc_completion_queue* made = __real_grpc_completion_queue_create(
        grpc_completion_queue_factory_lookup(&attributes), &attributes,
        nullptr);
    for (int i = 0; i < kThreads; ++i) {
      std::thread(RunCallbacks, made).detach();
    }
    return new grpc::CompletionQueue(made);
  }();
  return queue;
}

}  // namespace
}  // namespace bulkhead::rpc

// The builder of a server with callbacks asks for a queue that does not poll,
// for the synchronous API.
extern "C" grpc_completion_queue* __wrap_grpc_completion_queue_create(
    const grpc_completion_queue_factory* factory,
    const grpc_completion_queue_attributes* attributes, void* reserved) {
  grpc_completion_queue_attributes polling = *attributes;
  polling.cq_polling_type = GRPC_CQ_DEFAULT_POLLING;
  return __real_grpc_completion_queue_create(factory, &polling, reserved);
}

// grpc::CompletionQueue::CallbackAlternativeCQ() and ReleaseCallback...().
extern "C" grpc::CompletionQueue*
__wrap__ZN4grpc15CompletionQueue21CallbackAlternativeCQEv() {
  return bulkhead::rpc::Queue();
}

extern "C" void
__wrap__ZN4grpc15CompletionQueue28ReleaseCallbackAlternativeCQEPS0_(
    grpc::CompletionQueue*) {}
