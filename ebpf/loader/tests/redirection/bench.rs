//! A BPF file system of our own, an instance pinned on it, and network namespaces that stand for pods.

use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::thread;
use std::time::Duration;

use ebpf_loader::{
    DEFAULT_MARK, DEFAULT_MASK, Instance, NsConfig, OwnAddresses, Pins, PodKey, cgroup2_root, mount_bpffs,
};
use net::Netns;
use nix::mount::{MntFlags, umount2};
use socket2::{Domain, Socket, Type};

pub(crate) const OWN_V4: Ipv4Addr = Ipv4Addr::new(10, 66, 0, 1);
pub(crate) const ELSEWHERE_V4: &str = "10.66.0.9:80";

const PATIENCE: Duration = Duration::from_secs(10);

/// A BPF file system, unmounted (and so emptied of pins) when the last that uses it goes.
struct Bpffs {
    folder: tempfile::TempDir,
}

impl Drop for Bpffs {
    fn drop(&mut self) {
        umount2(self.folder.path(), MntFlags::MNT_DETACH).unwrap();
    }
}

pub(crate) struct Bench {
    pub(crate) instance: Option<Instance>,
    pub(crate) pins: Pins,
    pub(crate) cgroup: PathBuf,
    bpffs: Rc<Bpffs>,
}

impl Bench {
    pub(crate) fn new() -> Self {
        let bpffs = Bpffs { folder: tempfile::tempdir().unwrap() };
        assert!(mount_bpffs(bpffs.folder.path()).unwrap());
        assert!(!mount_bpffs(bpffs.folder.path()).unwrap(), "mounted once");
        Self::on(Rc::new(bpffs), "bench")
    }

    /// Another instance on the same file system.
    pub(crate) fn beside(&self, name: &str) -> Self {
        Self::on(Rc::clone(&self.bpffs), name)
    }

    fn on(bpffs: Rc<Bpffs>, name: &str) -> Self {
        let pins = Pins::new(bpffs.folder.path(), &name.parse().unwrap());
        let cgroup = cgroup2_root().unwrap();
        let mut bench = Self { instance: None, pins, cgroup, bpffs };
        bench.reopen();
        bench
    }

    pub(crate) fn reopen(&mut self) {
        self.instance = Some(Instance::open(self.pins.clone(), &self.cgroup).unwrap());
    }

    pub(crate) fn instance(&mut self) -> &mut Instance {
        self.instance.as_mut().unwrap()
    }

    pub(crate) fn bpffs(&self) -> &Path {
        self.bpffs.folder.path()
    }

    pub(crate) fn meshed_pod(&mut self) -> Pod {
        let pod = Pod::new();
        let instance = self.instance();
        assert!(!instance.prepare(&pod.key, config().own).unwrap().captured);
        instance.capture(&pod.key, config(), &pod.netns).unwrap();
        pod
    }
}

pub(crate) fn config() -> NsConfig {
    NsConfig {
        mark: DEFAULT_MARK,
        mask: DEFAULT_MASK,
        own: OwnAddresses::new(Some(OWN_V4), Some("fd00::1".parse().unwrap())),
    }
}

/// A network namespace with nothing but `lo`.
pub(crate) struct Pod {
    pub(crate) netns: Netns,
    pub(crate) key: PodKey,
}

impl Pod {
    pub(crate) fn new() -> Self {
        let netns = net::netns::unnamed().unwrap();
        netns.run(net::netns::loopback_up).unwrap().unwrap();
        let cookie = netns.cookie().unwrap();
        Self { netns, key: PodKey::new(cookie, &format!("pod-{cookie}")).unwrap() }
    }

    /// The mark of a new socket after it tried to connect; whether anything is there does not matter.
    pub(crate) fn mark_after_connect(&self, to: &str) -> u32 {
        let socket = self.netns.run(|| socket(to)).unwrap();
        dial(&socket, to);
        mark_of(&socket)
    }

    /// Gives `lo` one more address.
    pub(crate) fn add_loopback_address(&self, address: Ipv4Addr) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let add = async {
            let (connection, handle, _) = self.netns.run(rtnetlink::new_connection).unwrap().unwrap();
            tokio::spawn(connection);
            handle.address().add(1, address.into(), 32).execute().await.unwrap();
        };
        runtime.block_on(add);
    }

    /// A listener that sends each caller the port that it is bound to.
    pub(crate) fn listen(&self, at: SocketAddr) -> Listening {
        let socket = self.netns.run(|| {
            let socket = Socket::new(Domain::for_address(at), Type::STREAM, None).unwrap();
            socket.set_reuse_address(true).unwrap();
            socket.bind(&at.into()).unwrap();
            socket.listen(16).unwrap();
            socket
        });
        Listening::start(socket.unwrap())
    }

    /// Connects from 127.0.0.1, so that both ends differ, and returns the port of the listener that answers.
    pub(crate) fn reach(&self, to: SocketAddr) -> io::Result<u16> {
        let mut stream = self.netns.run(|| {
            let socket = Socket::new(Domain::IPV4, Type::STREAM, None)?;
            socket.bind(&SocketAddr::from(([127, 0, 0, 1], 0)).into())?;
            // A short connect timeout would hide a connection that is dropped rather than refused.
            socket.connect_timeout(&to.into(), PATIENCE)?;
            io::Result::Ok(std::net::TcpStream::from(socket))
        });
        let stream = stream.as_mut().unwrap().as_mut().map_err(|error| io::Error::from(error.kind()))?;
        stream.set_read_timeout(Some(PATIENCE))?;
        let mut port = [0; 2];
        stream.read_exact(&mut port)?;
        Ok(u16::from_be_bytes(port))
    }
}

/// A running listener; dropping it closes the socket and joins its thread.
pub(crate) struct Listening {
    pub(crate) socket: Socket,
    thread: Option<thread::JoinHandle<()>>,
}

impl Listening {
    fn start(socket: Socket) -> Self {
        let accepting = socket.try_clone().unwrap();
        let port = port_of(&socket);
        let thread = thread::spawn(move || {
            while let Ok((stream, _)) = accepting.accept() {
                let _ = std::net::TcpStream::from(stream).write_all(&port.to_be_bytes());
            }
        });
        Self { socket, thread: Some(thread) }
    }

    pub(crate) fn port(&self) -> u16 {
        port_of(&self.socket)
    }
}

impl Drop for Listening {
    fn drop(&mut self) {
        self.socket.shutdown(std::net::Shutdown::Both).unwrap();
        self.thread.take().unwrap().join().unwrap();
    }
}

fn port_of(socket: &Socket) -> u16 {
    socket.local_addr().unwrap().as_socket().unwrap().port()
}

pub(crate) fn socket(to: &str) -> Socket {
    let to: SocketAddr = to.parse().unwrap();
    Socket::new(Domain::for_address(to), Type::STREAM, None).unwrap()
}

/// Tries to connect; nothing needs to be there.
pub(crate) fn dial(socket: &Socket, to: &str) {
    let to: SocketAddr = to.parse().unwrap();
    socket.set_nonblocking(true).unwrap();
    let _ = socket.connect(&to.into());
}

pub(crate) fn mark_of(socket: &Socket) -> u32 {
    socket.mark().unwrap()
}
