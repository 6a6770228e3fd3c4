"""Runs a command that is told that ptrace knows no NT_X86_XSTATE: `python without_xstate.py COMMAND [ARGUMENT…]`.

User-Mode Linux before 6.13 saves the registers of its processes in 2,696 bytes. On a processor with AMX the host wants
all of 11,008, and the machine dies before its first process runs. Refused the question whether there is such a register
set, it takes the 512 bytes of FXSAVE, which are the same everywhere. What is in the upper half of a vector register is
lost then at every page fault, so whatever runs inside must be told to use none (`ENVIRONMENT`): without that e2fsck
found errors in images that had none.
"""

from __future__ import annotations

import ctypes
import errno
import os
import struct
import sys
from pathlib import Path

# include/uapi/linux/{prctl,seccomp,filter,audit,elf,ptrace}.h, arch/x86/entry/syscalls/syscall_64.tbl
PR_SET_NO_NEW_PRIVS, PR_SET_SECCOMP, SECCOMP_MODE_FILTER = 38, 22, 2
SECCOMP_RET_ERRNO, SECCOMP_RET_ALLOW = 0x00050000, 0x7FFF0000
AUDIT_ARCH_X86_64, SYS_PTRACE, PTRACE_GETREGSET, NT_X86_XSTATE = 0xC000003E, 101, 0x4204, 0x202
LOAD, JUMP_EQUAL, RETURN = 0x20, 0x15, 0x06
# struct seccomp_data: nr, arch, instruction_pointer, args[6]; of 64-bit arguments the lower halves are compared.
NUMBER_AT, ARCH_AT, FIRST_ARGUMENT_AT, THIRD_ARGUMENT_AT = 0, 4, 16, 32

ENVIRONMENT = {
    "GLIBC_TUNABLES": "glibc.cpu.hwcaps=-AVX,-AVX2,-AVX512F,-AVX512VL,-AVX512BW,-AVX512DQ,-XSAVE,-XSAVEC,-OSXSAVE,"
    "-BMI2,-FMA,-ERMS,-FSRM,-AVX_Fast_Unaligned_Load",
    "OPENSSL_ia32cap": "~0x1000000000000000:0x0",
}


def is_needed() -> bool:
    """Whether the processor has more registers than User-Mode Linux can save."""
    return " amx_tile" in Path("/proc/cpuinfo").read_text()


def _filter() -> bytes:
    """Answer EINVAL to ptrace(PTRACE_GETREGSET, …, NT_X86_XSTATE), and let all else pass."""
    wanted = (
        (ARCH_AT, AUDIT_ARCH_X86_64),
        (NUMBER_AT, SYS_PTRACE),
        (FIRST_ARGUMENT_AT, PTRACE_GETREGSET),
        (THIRD_ARGUMENT_AT, NT_X86_XSTATE),
    )
    program = []
    for number, (offset, value) in enumerate(wanted):
        program.append((LOAD, 0, 0, offset))
        # Not equal: over the comparisons that follow and the refusal.
        program.append((JUMP_EQUAL, 0, 2 * (len(wanted) - number - 1) + 1, value))
    program += [(RETURN, 0, 0, SECCOMP_RET_ERRNO | errno.EINVAL), (RETURN, 0, 0, SECCOMP_RET_ALLOW)]
    return b"".join(struct.pack("=HBBI", *instruction) for instruction in program)


class _Program(ctypes.Structure):
    _fields_ = (("length", ctypes.c_ushort), ("filter", ctypes.c_void_p))


def main(command: list[str]) -> None:
    """Become the command."""
    libc, code = ctypes.CDLL(None, use_errno=True), _filter()
    buffer = ctypes.create_string_buffer(code)
    program = _Program(len(code) // 8, ctypes.addressof(buffer))
    for arguments in (
        (PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0),
        (PR_SET_SECCOMP, SECCOMP_MODE_FILTER, ctypes.byref(program), 0, 0),
    ):
        if libc.prctl(*arguments) != 0:
            raise OSError(ctypes.get_errno(), "prctl")
    os.execvp(command[0], command)


if __name__ == "__main__":
    main(sys.argv[1:])
