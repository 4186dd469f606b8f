//! What the mesh's own processes have given up.

use std::fs;

use testkit::lab::Lab;

use crate::world::{curl, meshed};

/// The capabilities of each program, as the kernel writes them.
const ZTUNNEL: u64 = CAP_NET_ADMIN | CAP_NET_RAW | CAP_SYS_ADMIN;
const AGENT: u64 = CAP_NET_ADMIN | CAP_SYS_ADMIN | CAP_SYS_PTRACE;
const ISTIOD: u64 = 0;
const CAP_NET_ADMIN: u64 = 1 << 12;
const CAP_NET_RAW: u64 = 1 << 13;
const CAP_SYS_PTRACE: u64 = 1 << 19;
const CAP_SYS_ADMIN: u64 = 1 << 21;

/// Each process of a kind, with the capabilities that it may have.
fn processes(lab: &Lab) -> [(&'static str, i64, u64); 3] {
    let pid = |value: &serde_json::Value| value.as_i64().expect("a pid");
    let node = lab.node("node1");
    [
        ("ztunnel", pid(&node["ztunnel_pid"]), ZTUNNEL),
        ("agent", pid(&node["agent_pid"]), AGENT),
        ("istiod", pid(&lab.status()["istiod_pid"]), ISTIOD),
    ]
}

/// Capabilities and filters are a thread's own, so each thread is asked.
#[test]
fn every_thread_of_every_process_has_its_rights_and_no_more() {
    let Some(lab) = meshed() else { return };
    lab.exec("app/client", &curl("http://server.app/")).expect_ok();
    for (name, pid, rights) in processes(&lab) {
        let threads = fs::read_dir(format!("/proc/{pid}/task")).expect("the threads").flatten();
        let mut seen = 0;
        for thread in threads {
            // A thread may end meanwhile.
            let Ok(status) = fs::read_to_string(thread.path().join("status")) else { continue };
            let field = |field: &str| {
                let line = status.lines().find_map(|line| line.strip_prefix(field));
                line.unwrap_or_else(|| panic!("no {field}: {status}")).trim().to_owned()
            };
            for set in ["CapPrm:", "CapEff:", "CapBnd:"] {
                let has = u64::from_str_radix(&field(set), 16).expect("a number");
                assert_eq!(has, rights, "{name}, {set} {has:#x}");
            }
            for set in ["CapInh:", "CapAmb:"] {
                assert_eq!(field(set).trim_start_matches('0'), "", "{name}, {set}");
            }
            assert_eq!(field("NoNewPrivs:"), "1", "{name}");
            assert_eq!((field("Seccomp:"), field("Seccomp_filters:")), ("2".into(), "2".into()), "{name}");
            seen += 1;
        }
        let limits = fs::read_to_string(format!("/proc/{pid}/limits")).expect("the limits");
        let core = limits.lines().find(|line| line.starts_with("Max core file size")).expect("a limit");
        assert_eq!(core.split_whitespace().skip(4).take(2).collect::<Vec<_>>(), ["0", "0"], "{name}: {core}");
        testkit::say(&format!("{name}: {seen} threads, capabilities {rights:#x}"));
    }
}

/// Root of a pod that was given all that the process has itself, but not the right to watch others (which the agent has).
#[test]
fn a_neighbour_of_the_same_user_cannot_read_a_process_memory() {
    let Some(lab) = meshed() else { return };
    let read_as = |bound: &str, path: &str| {
        let read = format!("head -c 1 {path} | wc -c");
        let bound = format!("--bounding-set=-all{bound}");
        lab.exec("app/client", &["setpriv", &bound, "--inh-caps=-all", "sh", "-c", &read]).expect_ok()
    };
    let (proxys, none) = (",+net_admin,+net_raw,+sys_admin", "");
    for bound in [proxys, none] {
        assert_eq!(read_as(bound, "/proc/self/maps").stdout.trim(), "1", "it may read of its own");
    }
    let [(_, ztunnel, _), _, (_, istiod, _)] = processes(&lab);
    // Where memory lies SYS_ADMIN may see, of any process; not what is in it.
    for (pid, bound, files) in [
        (ztunnel, proxys, &["mem"][..]),
        (ztunnel, none, &["mem", "maps", "environ"]),
        (istiod, none, &["mem", "maps", "environ"]),
    ] {
        for file in files {
            let read = read_as(bound, &format!("/proc/{pid}/{file}"));
            assert_eq!(read.stdout.trim(), "0", "{file}: {read}");
            assert!(read.stderr.contains("Permission denied"), "{file}: {read}");
        }
    }
}

#[cfg(target_arch = "x86_64")]
mod taken_over {
    //! The test makes a process call what it never calls, as somebody would who had taken it over: by its registers.

    use std::process::Command;

    use libc::{c_long, user_regs_struct};
    use nix::sys::ptrace;
    use nix::sys::signal::Signal;
    use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
    use nix::unistd::Pid;

    use testkit::lab::eventually;

    use super::{Lab, curl, meshed, processes};

    const EPERM: i64 = -(libc::EPERM as i64);
    const ENOSYS: i64 = -(libc::ENOSYS as i64);

    /// A call with arguments that the kernel itself would refuse with something else than `EPERM`, if it came to that.
    type Call = (&'static str, c_long, [u64; 4]);

    const NOBODYS: &[Call] = &[
        ("execve", libc::SYS_execve, [0; 4]),
        ("execveat", libc::SYS_execveat, [0; 4]),
        ("ptrace", libc::SYS_ptrace, [16, 0, 0, 0]),
        ("mount", libc::SYS_mount, [0; 4]),
        ("unshare", libc::SYS_unshare, [1, 0, 0, 0]),
        ("keyctl", libc::SYS_keyctl, [0xffff, 0, 0, 0]),
        ("kill", libc::SYS_kill, [1, 0, 0, 0]),
        ("setns into mounts", libc::SYS_setns, [u64::MAX, libc::CLONE_NEWNS as u64, 0, 0]),
        ("mprotect to write what runs", libc::SYS_mprotect, [0, 0, 7, 0]),
    ];
    const NOT_ZTUNNELS: &[Call] = &[
        ("bpf to make a map", libc::SYS_bpf, [0; 4]),
        ("bpf to load a program", libc::SYS_bpf, [5, 0, 0, 0]),
        ("a packet socket", libc::SYS_socket, [libc::AF_PACKET as u64, libc::SOCK_RAW as u64, 0, 0]),
        ("a raw socket that hears", libc::SYS_socket, [libc::AF_INET as u64, libc::SOCK_RAW as u64, 1, 0]),
        ("open to write", libc::SYS_openat, [u64::MAX, 0, libc::O_WRONLY as u64, 0]),
    ];

    /// A process that stands still and does as it is told.
    struct Puppet {
        pid: Pid,
        before: user_regs_struct,
    }

    impl Puppet {
        /// Stops the process in the middle of a system call, where its next instruction but one is known.
        fn take(pid: i64) -> Self {
            let pid = Pid::from_raw(i32::try_from(pid).expect("a pid"));
            let mut found = None;
            eventually("it waits in a system call", || {
                ptrace::seize(pid, ptrace::Options::empty()).expect("seize");
                ptrace::interrupt(pid).expect("interrupt");
                stopped(pid);
                let before = ptrace::getregs(pid).expect("its registers");
                // Where it is not mapped, or on another kind of page, it is no `syscall` either.
                let at = ptrace::read(pid, (before.rip - 2) as ptrace::AddressType).unwrap_or(0);
                if at & 0xffff == 0x050f && before.orig_rax != u64::MAX {
                    found = Some(before);
                } else {
                    ptrace::detach(pid, None).expect("let go");
                }
                found.is_some()
            });
            Self { pid, before: found.expect("it was found") }
        }

        fn call(&self, call: c_long, [a, b, c, d]: [u64; 4]) -> i64 {
            let mut regs = self.before;
            // No call is to be begun again when it goes on.
            regs.orig_rax = u64::MAX;
            regs.rip -= 2;
            regs.rax = call.cast_unsigned();
            (regs.rdi, regs.rsi, regs.rdx, regs.r10, regs.r8, regs.r9) = (a, b, c, d, 0, 0);
            ptrace::setregs(self.pid, regs).expect("set its registers");
            ptrace::step(self.pid, None).expect("go on");
            stopped(self.pid);
            ptrace::getregs(self.pid).expect("its registers").rax.cast_signed()
        }
    }

    impl Drop for Puppet {
        fn drop(&mut self) {
            // As if nothing had been: the call that it was stopped in begins again.
            let _ = ptrace::setregs(self.pid, self.before);
            let _ = ptrace::detach(self.pid, None);
        }
    }

    fn stopped(pid: Pid) {
        let status = waitpid(pid, Some(WaitPidFlag::__WALL)).expect("wait for it");
        let as_asked =
            matches!(status, WaitStatus::Stopped(_, Signal::SIGTRAP) | WaitStatus::PtraceEvent(..));
        assert!(as_asked, "{status:?}");
    }

    fn works(lab: &Lab) {
        lab.exec("app/client", &curl("http://server.app/")).expect_ok();
    }

    #[test]
    fn a_process_that_was_taken_over_cannot_call_what_it_never_needs() {
        let Some(lab) = meshed() else { return };
        for (name, pid, _) in processes(&lab) {
            let puppet = Puppet::take(pid);
            assert_eq!(puppet.call(libc::SYS_getpid, [0; 4]), pid, "it does as it is told");
            let more: &[Call] = if name == "ztunnel" { NOT_ZTUNNELS } else { &[] };
            for (what, call, arguments) in NOBODYS.iter().chain(more) {
                assert_eq!(puppet.call(*call, *arguments), EPERM, "{name}: {what}");
            }
            assert_eq!(puppet.call(libc::SYS_clone3, [0; 4]), ENOSYS, "{name}: clone3");
        }
        works(&lab);
    }

    /// Without this the test above could pass for another reason than the filter.
    #[test]
    fn a_process_without_a_filter_is_told_something_else() {
        if !nix::unistd::geteuid().is_root() {
            return testkit::ignore("needs root: watching a process");
        }
        let mut sleeper = Command::new("sleep").arg("600").spawn().expect("start sleep");
        let puppet = Puppet::take(sleeper.id().into());
        for (what, call, arguments) in NOBODYS.iter().chain(NOT_ZTUNNELS) {
            assert_ne!(puppet.call(*call, *arguments), EPERM, "{what}");
        }
        assert_ne!(puppet.call(libc::SYS_clone3, [0; 4]), ENOSYS);
        drop(puppet);
        sleeper.kill().expect("end sleep");
        sleeper.wait().expect("wait for sleep");
    }
}
