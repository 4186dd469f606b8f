//! The system calls of each program.
//!
//! The lists were made by tracing the programs through the netns tier. They name calls, so that they hold on every
//! architecture; what only older architectures have stands apart. The kernel decides a call whose arguments do not
//! matter from a bitmap, without running a filter, so that the data path pays next to nothing.

use std::collections::BTreeMap;

use libc::{c_int, c_long};
use seccompiler::SeccompCmpOp::{Eq, MaskedEq};
use seccompiler::{
    BackendError, BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCondition, SeccompFilter, SeccompRule,
    TargetArch,
};

use super::Program;

/// Memory, threads, time, signals, and descriptors that are open.
const PROCESS: &[c_long] = &[
    libc::SYS_brk,
    libc::SYS_clock_getres,
    libc::SYS_clock_gettime,
    libc::SYS_clock_nanosleep,
    libc::SYS_close,
    libc::SYS_dup,
    libc::SYS_epoll_create1,
    libc::SYS_epoll_ctl,
    libc::SYS_epoll_pwait,
    libc::SYS_eventfd2,
    libc::SYS_exit,
    libc::SYS_exit_group,
    libc::SYS_fcntl,
    libc::SYS_fstat,
    libc::SYS_futex,
    libc::SYS_getcwd,
    libc::SYS_getegid,
    libc::SYS_geteuid,
    libc::SYS_getgid,
    libc::SYS_getpid,
    libc::SYS_getppid,
    libc::SYS_getrandom,
    libc::SYS_getrusage,
    libc::SYS_gettid,
    libc::SYS_gettimeofday,
    libc::SYS_getuid,
    libc::SYS_lseek,
    libc::SYS_madvise,
    libc::SYS_mremap,
    libc::SYS_munmap,
    libc::SYS_nanosleep,
    libc::SYS_newfstatat,
    libc::SYS_pipe2,
    libc::SYS_ppoll,
    libc::SYS_pread64,
    libc::SYS_read,
    libc::SYS_readlinkat,
    libc::SYS_readv,
    libc::SYS_restart_syscall,
    libc::SYS_rseq,
    libc::SYS_rt_sigaction,
    libc::SYS_rt_sigprocmask,
    libc::SYS_rt_sigreturn,
    libc::SYS_sched_getaffinity,
    libc::SYS_sched_yield,
    libc::SYS_set_robust_list,
    libc::SYS_sigaltstack,
    libc::SYS_statx,
    libc::SYS_sysinfo,
    libc::SYS_uname,
    libc::SYS_write,
    libc::SYS_writev,
];

/// Sockets that are open.
const SOCKETS: &[c_long] = &[
    libc::SYS_accept4,
    libc::SYS_bind,
    libc::SYS_connect,
    libc::SYS_getpeername,
    libc::SYS_getsockname,
    libc::SYS_getsockopt,
    libc::SYS_listen,
    libc::SYS_recvfrom,
    libc::SYS_recvmmsg,
    libc::SYS_recvmsg,
    libc::SYS_sendmmsg,
    libc::SYS_sendmsg,
    libc::SYS_sendto,
    libc::SYS_setsockopt,
    libc::SYS_shutdown,
];

/// Folders that are watched and written.
const FILES: &[c_long] = &[
    libc::SYS_faccessat,
    libc::SYS_fchmod,
    libc::SYS_fchmodat,
    libc::SYS_fdatasync,
    libc::SYS_flock,
    libc::SYS_fstatfs,
    libc::SYS_fsync,
    libc::SYS_ftruncate,
    libc::SYS_getdents64,
    libc::SYS_inotify_add_watch,
    libc::SYS_inotify_init1,
    libc::SYS_inotify_rm_watch,
    libc::SYS_linkat,
    libc::SYS_mkdirat,
    libc::SYS_openat,
    libc::SYS_pwrite64,
    libc::SYS_renameat2,
    libc::SYS_statfs,
    libc::SYS_unlinkat,
];

/// Older forms of what stands above.
#[cfg(target_arch = "x86_64")]
const OLD_PROCESS: &[c_long] = &[
    libc::SYS_access,
    libc::SYS_epoll_wait,
    libc::SYS_lstat,
    libc::SYS_poll,
    libc::SYS_readlink,
    libc::SYS_stat,
];
#[cfg(target_arch = "x86_64")]
const OLD_FILES: &[c_long] =
    &[libc::SYS_chmod, libc::SYS_link, libc::SYS_mkdir, libc::SYS_rename, libc::SYS_rmdir, libc::SYS_unlink];
/// `renameat`, which the C library still uses, has no name in the libc crate there.
#[cfg(target_arch = "aarch64")]
const OLD_FILES: &[c_long] = &[38];
#[cfg(not(target_arch = "x86_64"))]
const OLD_PROCESS: &[c_long] = &[];
#[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
const OLD_FILES: &[c_long] = &[];

/// `NS_GET_NSTYPE` of `linux/nsfs.h`.
const NS_GET_NSTYPE: u64 = 0xb703;
/// Nothing about terminals but whether one is there: TIOCSTI types into them.
const IOCTLS: &[u64] =
    &[libc::FIONBIO, libc::FIOCLEX, libc::FIONREAD, libc::TIOCOUTQ, libc::TCGETS, NS_GET_NSTYPE];

/// Commands of `bpf(2)` on maps that somebody handed over: look up, update, delete, and what a descriptor is.
const BPF_ON_MAPS: &[u64] = &[1, 2, 3, 15];

/// The bits of a socket's type that are not flags (`SOCK_TYPE_MASK`).
const KIND: c_int = 0xf;

/// The flags of `openat` by which something would be written or made.
const OPEN_TO_WRITE: c_int = libc::O_ACCMODE | libc::O_CREAT | libc::O_TRUNC;

/// The filters of a program, for all its threads.
pub(super) fn filters(program: Program) -> Result<[BpfProgram; 2], BackendError> {
    let arch: TargetArch = std::env::consts::ARCH.try_into()?;
    let denied = SeccompAction::Errno(libc::EPERM.cast_unsigned());
    let listed = SeccompFilter::new(allowed(program)?.0, denied, SeccompAction::Allow, arch)?;
    // What `clone3` is asked for lies in memory, where no filter reads. Without it the C library calls `clone`.
    let absent = SeccompAction::Errno(libc::ENOSYS.cast_unsigned());
    let unread = BTreeMap::from([(libc::SYS_clone3, Vec::new())]);
    let unread = SeccompFilter::new(unread, SeccompAction::Allow, absent, arch)?;
    Ok([unread.try_into()?, listed.try_into()?])
}

fn allowed(program: Program) -> Result<Calls, BackendError> {
    let mut calls = Calls::default();
    calls.any(PROCESS).any(OLD_PROCESS).any(SOCKETS).any(&[libc::SYS_clone3]);
    // Threads, and no processes.
    calls.masked(libc::SYS_clone, 0, libc::CLONE_THREAD, libc::CLONE_THREAD)?;
    // Nothing is written that can be run.
    calls.masked(libc::SYS_mmap, 2, libc::PROT_EXEC, 0)?.masked(libc::SYS_mmap, 2, libc::PROT_WRITE, 0)?;
    calls.masked(libc::SYS_mprotect, 2, libc::PROT_EXEC, 0)?;
    calls.one_of(libc::SYS_ioctl, 1, IOCTLS)?;
    calls.one_of(libc::SYS_prctl, 0, &[number(libc::PR_SET_NAME), number(libc::PR_GET_NAME)])?;
    // Itself alone: to abort, and its own limits.
    calls.one_of(libc::SYS_tgkill, 0, &[u64::from(std::process::id())])?;
    calls.one_of(libc::SYS_prlimit64, 0, &[0])?;
    calls.one_of(libc::SYS_socketpair, 0, &[number(libc::AF_UNIX)])?;
    // None that hears packets, or forges them (but for ztunnel's, below).
    for family in [libc::AF_UNIX, libc::AF_INET, libc::AF_INET6] {
        for kind in [libc::SOCK_STREAM, libc::SOCK_DGRAM, libc::SOCK_SEQPACKET] {
            calls.socket(family, kind)?;
        }
    }
    // The C library asks for interfaces this way; the agent for routes and sockets.
    for kind in [libc::SOCK_DGRAM, libc::SOCK_RAW] {
        calls.socket(libc::AF_NETLINK, kind)?;
    }
    if program != Program::Istiod {
        calls.one_of(libc::SYS_setns, 1, &[number(libc::CLONE_NEWNET)])?;
    }
    match program {
        Program::Ztunnel => {
            calls.one_of(libc::SYS_bpf, 0, BPF_ON_MAPS)?;
            calls.masked(libc::SYS_openat, 2, OPEN_TO_WRITE, libc::O_RDONLY)?;
            // Answers to pods in the name of the resolver that was asked; a socket of this protocol hears nothing.
            for family in [libc::AF_INET, libc::AF_INET6] {
                calls.socket_of(family, libc::SOCK_RAW, libc::IPPROTO_RAW)?;
            }
        }
        Program::Agent => {
            calls.any(FILES).any(OLD_FILES).any(&[libc::SYS_bpf]);
        }
        Program::Istiod => {
            calls.any(FILES).any(OLD_FILES);
        }
    }
    Ok(calls)
}

fn number(value: c_int) -> u64 {
    u64::from(value.cast_unsigned())
}

/// Calls with what their arguments must be: one of the rules, or anything where there is none.
#[derive(Default)]
struct Calls(BTreeMap<c_long, Vec<SeccompRule>>);

impl Calls {
    fn any(&mut self, calls: &[c_long]) -> &mut Self {
        self.0.extend(calls.iter().map(|call| (*call, Vec::new())));
        self
    }

    fn when(&mut self, call: c_long, conditions: Vec<SeccompCondition>) -> Result<&mut Self, BackendError> {
        self.0.entry(call).or_default().push(SeccompRule::new(conditions)?);
        Ok(self)
    }

    fn one_of(&mut self, call: c_long, argument: u8, values: &[u64]) -> Result<&mut Self, BackendError> {
        for value in values {
            let condition = SeccompCondition::new(argument, SeccompCmpArgLen::Dword, Eq, *value)?;
            self.when(call, vec![condition])?;
        }
        Ok(self)
    }

    fn masked(
        &mut self,
        call: c_long,
        argument: u8,
        mask: c_int,
        value: c_int,
    ) -> Result<&mut Self, BackendError> {
        self.when(call, vec![has(argument, mask, value)?])
    }

    /// With whatever flags, of whatever protocol.
    fn socket(&mut self, family: c_int, kind: c_int) -> Result<&mut Self, BackendError> {
        self.when(libc::SYS_socket, vec![is(0, family)?, has(1, KIND, kind)?])
    }

    /// With whatever flags.
    fn socket_of(&mut self, family: c_int, kind: c_int, protocol: c_int) -> Result<&mut Self, BackendError> {
        self.when(libc::SYS_socket, vec![is(0, family)?, has(1, KIND, kind)?, is(2, protocol)?])
    }
}

fn is(argument: u8, value: c_int) -> Result<SeccompCondition, BackendError> {
    SeccompCondition::new(argument, SeccompCmpArgLen::Dword, Eq, number(value))
}

fn has(argument: u8, mask: c_int, value: c_int) -> Result<SeccompCondition, BackendError> {
    SeccompCondition::new(argument, SeccompCmpArgLen::Dword, MaskedEq(number(mask)), number(value))
}

#[cfg(test)]
mod tests {
    use super::*;

    const ALL: [Program; 3] = [Program::Ztunnel, Program::Agent, Program::Istiod];

    #[test]
    fn every_list_makes_a_filter() {
        for program in ALL {
            for filter in filters(program).unwrap() {
                assert!(!filter.is_empty(), "{program:?}");
            }
        }
    }

    #[test]
    fn nobody_may_run_a_program_watch_another_or_mount() {
        let never = [
            libc::SYS_execve,
            libc::SYS_execveat,
            libc::SYS_ptrace,
            libc::SYS_process_vm_readv,
            libc::SYS_mount,
            libc::SYS_umount2,
            libc::SYS_unshare,
            libc::SYS_keyctl,
            libc::SYS_kill,
            libc::SYS_io_uring_setup,
            libc::SYS_userfaultfd,
            libc::SYS_perf_event_open,
            libc::SYS_init_module,
            libc::SYS_memfd_create,
        ];
        for program in ALL {
            let allowed = allowed(program).unwrap().0;
            assert!(never.iter().all(|call| !allowed.contains_key(call)), "{program:?}");
        }
    }

    #[test]
    fn only_who_redirects_enters_namespaces_and_speaks_bpf() {
        let has = |program, call| allowed(program).unwrap().0.contains_key(&call);
        assert!(has(Program::Agent, libc::SYS_bpf) && has(Program::Ztunnel, libc::SYS_bpf));
        assert!(!has(Program::Istiod, libc::SYS_bpf) && !has(Program::Istiod, libc::SYS_setns));
    }

    /// An empty rule list allows every argument, so a call must not be listed both ways.
    #[test]
    fn what_is_allowed_by_its_arguments_is_not_allowed_without() {
        let plain = [PROCESS, OLD_PROCESS, SOCKETS].concat();
        for call in [libc::SYS_clone, libc::SYS_mmap, libc::SYS_mprotect, libc::SYS_socket, libc::SYS_ioctl] {
            assert!(!plain.contains(&call));
            assert!(ALL.iter().all(|program| !allowed(*program).unwrap().0[&call].is_empty()));
        }
    }
}
