"""A filter of system calls for a process that runs a stranger's code: no sockets, no processes, no power over others.

The program is classic BPF, as prctl(2) and the kernel's Documentation/userspace-api/seccomp_filter.rst describe it.
"""

from __future__ import annotations

import ctypes
import errno
import os
import platform
import struct
import sys
from collections.abc import Iterable

LOAD, EQUAL, AT_LEAST, ANY_BIT, RETURN = 0x20, 0x15, 0x35, 0x45, 0x06  # BPF: ld abs, jeq, jge, jset, ret
ALLOW, ERROR, KILL = 0x7FFF0000, 0x00050000, 0x80000000
NUMBER, MACHINE, ARGUMENTS = 0, 4, 16  # offsets in struct seccomp_data
CLONE_THREAD = 0x10000
X32 = 0x40000000  # numbers from here on are of another ABI on x86-64

MACHINES = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}  # AUDIT_ARCH_*
# by name: the number on x86-64 and on aarch64; None where there is no such call
DENIED: dict[str, tuple[int, int | None]] = {
    # talking to others
    "socket": (41, 198),
    "connect": (42, 203),
    "accept": (43, 202),
    "sendto": (44, 206),
    "recvfrom": (45, 207),
    "sendmsg": (46, 211),
    "recvmsg": (47, 212),
    "bind": (49, 200),
    "listen": (50, 201),
    "socketpair": (53, 199),
    "shmget": (29, 194),
    "semget": (64, 190),
    "msgget": (68, 186),
    "mq_open": (240, 180),
    # other processes
    "fork": (57, None),
    "vfork": (58, None),
    "execve": (59, 221),
    "execveat": (322, 281),
    "tkill": (200, 130),
    "rt_sigqueueinfo": (129, 138),
    "rt_tgsigqueueinfo": (297, 240),
    "pidfd_send_signal": (424, 424),
    "pidfd_open": (434, 434),
    "pidfd_getfd": (438, 438),
    "ptrace": (101, 117),
    "process_vm_readv": (310, 270),
    "process_vm_writev": (311, 271),
    "kcmp": (312, 272),
    "setsid": (112, 157),
    "setpgid": (109, 154),
    "setpriority": (141, 140),
    "ioprio_set": (251, 30),
    "sched_setscheduler": (144, 119),
    "sched_setparam": (142, 118),
    "sched_setattr": (314, 274),
    "migrate_pages": (256, 238),
    "move_pages": (279, 239),
    "process_madvise": (440, 440),
    "process_mrelease": (448, 448),
    "setrlimit": (160, 164),
    "setns": (308, 268),
    "unshare": (272, 97),
    # memory that no limit counts
    "memfd_create": (319, 279),
    "memfd_secret": (447, 447),
    "fallocate": (285, 47),  # on ext4 it takes blocks beyond the limit on a file's size
    # the file system beyond Landlock's rules, which know neither attributes nor who is watched
    "chmod": (90, None),
    "fchmod": (91, 52),
    "fchmodat": (268, 53),
    "fchmodat2": (452, 452),
    "chown": (92, None),
    "fchown": (93, 55),
    "lchown": (94, None),
    "fchownat": (260, 54),
    "utime": (132, None),
    "utimes": (235, None),
    "futimesat": (261, None),
    "utimensat": (280, 88),
    "setxattr": (188, 5),
    "lsetxattr": (189, 6),
    "fsetxattr": (190, 7),
    "setxattrat": (463, 463),
    "removexattr": (197, 14),
    "lremovexattr": (198, 15),
    "fremovexattr": (199, 16),
    "removexattrat": (466, 466),
    "file_setattr": (469, 469),
    "inotify_init": (253, None),
    "inotify_init1": (294, 26),
    "inotify_add_watch": (254, 27),
    "mount": (165, 40),
    "umount2": (166, 39),
    "pivot_root": (155, 41),
    "chroot": (161, 51),
    "mknodat": (259, 33),
    "mknod": (133, None),
    "name_to_handle_at": (303, 264),
    "open_by_handle_at": (304, 265),
    "quotactl": (179, 60),
    "open_tree": (428, 428),
    "move_mount": (429, 429),
    "fsopen": (430, 430),
    "fsmount": (432, 432),
    "mount_setattr": (442, 442),
    "fanotify_init": (300, 262),
    # the kernel and the machine
    "bpf": (321, 280),
    "perf_event_open": (298, 241),
    "userfaultfd": (323, 282),
    "io_uring_setup": (425, 425),
    "io_uring_enter": (426, 426),
    "io_uring_register": (427, 427),
    "keyctl": (250, 219),
    "add_key": (248, 217),
    "request_key": (249, 218),
    "init_module": (175, 105),
    "finit_module": (313, 273),
    "delete_module": (176, 106),
    "kexec_load": (246, 104),
    "kexec_file_load": (320, 294),
    "iopl": (172, None),
    "ioperm": (173, None),
    "reboot": (169, 142),
    "swapon": (167, 224),
    "swapoff": (168, 225),
    "acct": (163, 89),
    "syslog": (103, 116),
    "personality": (135, 92),
    "sethostname": (170, 161),
    "setdomainname": (171, 162),
    "settimeofday": (164, 170),
    "adjtimex": (159, 171),
    "clock_settime": (227, 112),
    "clock_adjtime": (305, 266),
}
CLONE, CLONE3, KILL_CALL, TGKILL, PRLIMIT = (56, 220), (435, 435), (62, 129), (234, 131), (302, 261)
PRCTL, FCNTL, SCHED_SETAFFINITY, MMAP = (157, 167), (72, 25), (203, 122), (9, 222)
PARENT_DEATH_SIGNAL = 1  # PR_SET_PDEATHSIG of prctl: it ends with its parent, and keeps to that
SIGNAL_OTHERS = (8, 10, 15)  # F_SETOWN, F_SETSIG, F_SETOWN_EX of fcntl: a pipe's signals to whatever process
SHARED, ANONYMOUS = 0x01, 0x20  # of mmap: both together are memory that RLIMIT_DATA does not count

Instruction = tuple[int, int, int, int]  # code, jump if true, jump if false, constant


def program(machine: str, process: int) -> list[Instruction]:
    """The filter for a process of that number on a machine of MACHINES. Denied calls fail with EPERM."""
    column = list(MACHINES).index(machine)
    numbers = [number for entry in DENIED.values() if (number := entry[column]) is not None]
    refuse = (RETURN, 0, 0, ERROR | errno.EPERM)
    filters: list[Instruction] = [
        (LOAD, 0, 0, MACHINE),
        (EQUAL, 1, 0, MACHINES[machine]),
        (RETURN, 0, 0, KILL),
        (LOAD, 0, 0, NUMBER),
        (AT_LEAST, 0, 1, X32),
        (RETURN, 0, 0, KILL),
    ]
    for number in numbers:
        filters += [(EQUAL, 0, 1, number), refuse]
    # its flags lie in memory, where they can't be looked at: the C library falls back to clone
    filters += [(EQUAL, 0, 1, CLONE3[column]), (RETURN, 0, 0, ERROR | errno.ENOSYS)]
    filters += _only_if(CLONE[column], [(LOAD, 0, 0, ARGUMENTS), (ANY_BIT, 1, 0, CLONE_THREAD)], refuse)
    for signal in (KILL_CALL[column], TGKILL[column]):
        filters += _only_if(signal, [(LOAD, 0, 0, ARGUMENTS), (EQUAL, 1, 0, process)], refuse)
    to_itself = [(LOAD, 0, 0, ARGUMENTS), (EQUAL, 2, 0, 0), (EQUAL, 1, 0, process)]
    filters += _only_if(SCHED_SETAFFINITY[column], to_itself, refuse)
    filters += _only_if(PRCTL[column], [(LOAD, 0, 0, ARGUMENTS), (EQUAL, 0, 1, PARENT_DEATH_SIGNAL)], refuse)
    for command in SIGNAL_OTHERS:
        filters += _only_if(FCNTL[column], [(LOAD, 0, 0, ARGUMENTS + 8), (EQUAL, 0, 1, command)], refuse)
    both = [(LOAD, 0, 0, ARGUMENTS + 24), (ANY_BIT, 0, 2, SHARED), (ANY_BIT, 0, 1, ANONYMOUS)]
    filters += _only_if(MMAP[column], both, refuse)
    for half in (0, 4):  # a null pointer to new limits: they are asked for, not set
        filters += _only_if(PRLIMIT[column], [(LOAD, 0, 0, ARGUMENTS + 16 + half), (EQUAL, 1, 0, 0)], refuse)
    return [*filters, (RETURN, 0, 0, ALLOW)]


def _only_if(number: int, test: Iterable[Instruction], refuse: Instruction) -> list[Instruction]:
    """Of the call `number` let pass what jumps over `refuse`; the next call's number is loaded again after it."""
    inner = [*test, refuse, (LOAD, 0, 0, NUMBER)]
    return [(EQUAL, 0, len(inner), number), *inner]


def install() -> None:
    """Filter the calls of this thread and of all that it starts. Raises OSError where that can't be done."""
    machine = platform.machine()
    if sys.platform != "linux" or machine not in MACHINES or struct.calcsize("P") != 8:
        raise OSError(errno.ENOSYS, f"no filter is known for {sys.platform} on {machine}")
    packed = b"".join(struct.pack("=HBBI", *instruction) for instruction in program(machine, os.getpid()))

    class Program(ctypes.Structure):
        _fields_ = (("length", ctypes.c_ushort), ("filter", ctypes.c_char_p))

    whole = Program(len(packed) // 8, packed)
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(22, 2, ctypes.byref(whole), 0, 0) != 0:  # PR_SET_SECCOMP, SECCOMP_MODE_FILTER
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
