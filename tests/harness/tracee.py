"""Makes system calls from inside another process (ptrace, x86-64).

What the kernel answers is what the process may do, whatever its code is.
"""

import ctypes
import os
import platform
import unittest

OPEN, CLOSE, SOCKET, MKDIR, UNLINK, MOUNT = 2, 3, 41, 83, 87, 165
UNSHARE, CHROOT, SETUID, MKNOD = 272, 161, 105, 133
CONNECT, EXECVE, KILL, RENAME, PTRACE, UMOUNT = 42, 59, 62, 82, 101, 166
OPEN_BY_HANDLE_AT, SETNS, BPF = 304, 308, 321

_CONT, _SINGLESTEP, _GETREGS, _SETREGS = 7, 9, 12, 13
_DETACH, _SEIZE, _INTERRUPT = 17, 0x4206, 0x4207
_WALL = 0x40000000
_SCRATCH = 8192  # Below the stack's red zone, far from what is in use.

_NAMES = ("r15 r14 r13 r12 rbp rbx r11 r10 r9 r8 rax rcx rdx rsi rdi orig_rax rip cs eflags "
          "rsp ss fs_base gs_base ds es fs gs").split()


class _Registers(ctypes.Structure):
    _fields_ = [(name, ctypes.c_ulonglong) for name in _NAMES]


class Tracee:
    """A thread (by a process's number, its first one), stopped inside a `with`."""

    def __init__(self, pid):
        if platform.machine() != "x86_64":
            raise unittest.SkipTest("skip: system calls are injected on x86-64 only")
        self.pid = pid
        self.libc = ctypes.CDLL(None, use_errno=True)
        self.libc.ptrace.argtypes = [ctypes.c_long, ctypes.c_long, ctypes.c_void_p,
                                     ctypes.c_void_p]
        self.libc.ptrace.restype = ctypes.c_long

    def _ptrace(self, request, data=None):
        if self.libc.ptrace(request, self.pid, None, data) < 0:
            raise OSError(ctypes.get_errno(), "ptrace %d" % request)

    def _wait(self):
        _, status = os.waitpid(self.pid, _WALL)
        if not os.WIFSTOPPED(status):
            raise AssertionError("the process has ended: %x" % status)

    def __enter__(self):
        self._ptrace(_SEIZE)
        self._ptrace(_INTERRUPT)
        self._wait()
        self.saved = _Registers()
        self._ptrace(_GETREGS, ctypes.addressof(self.saved))
        self.memory = open("/proc/%d/mem" % self.pid, "r+b", buffering=0)
        self.syscall_at = self._find_syscall()
        return self

    def __exit__(self, *exc):
        # The call that the stop has interrupted is restarted by the kernel.
        self._ptrace(_SETREGS, ctypes.addressof(self.saved))
        self.memory.close()
        self._ptrace(_DETACH)

    def _find_syscall(self):
        with open("/proc/%d/maps" % self.pid) as f:
            for line in f:
                fields = line.split()
                if "x" not in fields[1] or "[v" in line:
                    continue
                begin, end = (int(x, 16) for x in fields[0].split("-"))
                while begin < end:
                    self.memory.seek(begin)
                    chunk = self.memory.read(min(1 << 20, end - begin))
                    at = chunk.find(b"\x0f\x05")
                    if at >= 0:
                        return begin + at
                    begin += len(chunk)
        raise AssertionError("no syscall instruction found")

    def call(self, number, *args):
        """Strings are put below the stack. The result is the kernel's: negative
        is an errno."""
        place = (self.saved.rsp - _SCRATCH) & ~0xf
        regs = _Registers.from_buffer_copy(self.saved)
        values = []
        for arg in args:
            if isinstance(arg, bytes):
                self.memory.seek(place)
                self.memory.write(arg + b"\0")
                values.append(place)
                place -= 512
            else:
                values.append(arg)
        for name, value in zip(("rdi", "rsi", "rdx", "r10", "r8", "r9"), values):
            setattr(regs, name, value)
        regs.rax, regs.rip = number, self.syscall_at
        regs.orig_rax = ctypes.c_ulonglong(-1).value  # Nothing to restart.
        self._ptrace(_SETREGS, ctypes.addressof(regs))
        self._ptrace(_SINGLESTEP)
        self._wait()
        self._ptrace(_GETREGS, ctypes.addressof(regs))
        return ctypes.c_longlong(regs.rax).value
