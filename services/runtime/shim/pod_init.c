/* The first process of a pod: holds its namespaces and does nothing. It runs
 * without a libc, from memory, so that nothing of the host is within reach of
 * a container that shares its pid namespace. As pid 1 it leaves reaping to the
 * kernel: SIGCHLD is ignored from before it was executed. */

static long call(long number, long a, long b, long c, long d, long e) {
#if defined(__x86_64__)
  long result;
  register long r10 __asm__("r10") = d;
  register long r8 __asm__("r8") = e;
  __asm__ volatile("syscall"
                   : "=a"(result)
                   : "a"(number), "D"(a), "S"(b), "d"(c), "r"(r10), "r"(r8)
                   : "rcx", "r11", "memory");
  return result;
#elif defined(__aarch64__)
  register long x8 __asm__("x8") = number;
  register long x0 __asm__("x0") = a;
  register long x1 __asm__("x1") = b;
  register long x2 __asm__("x2") = c;
  register long x3 __asm__("x3") = d;
  register long x4 __asm__("x4") = e;
  __asm__ volatile("svc 0"
                   : "+r"(x0)
                   : "r"(x8), "r"(x1), "r"(x2), "r"(x3), "r"(x4)
                   : "memory");
  return x0;
#else
#error "no system calls known for this processor"
#endif
}

#if defined(__x86_64__)
enum { kPrctl = 157, kPpoll = 271 };
#else
enum { kPrctl = 167, kPpoll = 73 };
#endif

void _start(void) {
  const char name[] = "pod";
  call(kPrctl, 15 /* PR_SET_NAME */, (long)name, 0, 0, 0);
  for (;;) call(kPpoll, 0, 0, 0, 0, 0);
}
