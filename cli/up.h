// `bulkhead up`: one whole suite in the foreground, for machines where systemd
// is not PID 1, for development and for tests.
#ifndef BULKHEAD_CLI_UP_H_
#define BULKHEAD_CLI_UP_H_

namespace bulkhead {

// Starts every service as a child process, prints one line when all are ready
// ("bulkhead is ready: STATE/bulkhead.sock"), restarts what dies, and runs
// until SIGTERM or SIGINT; then it stops them in order. Containers and their
// shims go on running. SIGHUP is handed on.
//
// Flags: --config, --root, --state, --log-level, --log-format as every service
// has them; --without NAMES (comma-separated) leaves services out, for those
// who run something else in their place. An argv[1] of "up" is skipped.
//
// A service is the program `bulkhead-<service>` beside this executable, or
// this executable with the service's name as first argument.
//
// STATE/up.pid and STATE/<service>/pid hold process numbers. A root or a state
// folder that another `up` uses is refused.
//
// The process must have no other threads. Returns the exit code: 0 after a
// signal, 1 when a service does not start, 2 on bad flags or config.
int UpMain(int argc, char** argv);

}  // namespace bulkhead

#endif  // BULKHEAD_CLI_UP_H_
