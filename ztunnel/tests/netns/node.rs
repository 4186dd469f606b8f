//! One node: pods behind a bridge, and ztunnel as a process.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{Read, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream};
use std::os::fd::{AsFd, AsRawFd};
use std::process::{Child, Command, ExitStatus};
use std::thread;
use std::time::Duration;

use model::Workload;
use net::Netns;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use testkit::fixtures::WorkloadBuilder;
use testkit::lab::eventually;
use tokio::time::Instant;
use xds::Resource;

use crate::agent::{Agent, ip};
use crate::plane::Plane;

/// No wait of these tests is longer.
pub(crate) const PATIENCE: Duration = Duration::from_secs(20);

/// Says why where the tests cannot run.
pub(crate) fn can_run() -> bool {
    if !nix::unistd::geteuid().is_root() {
        testkit::ignore("network namespaces need root");
        return false;
    }
    true
}

pub(crate) struct Node {
    agent: Option<Agent>,
    ztunnel: Child,
    bridge: Netns,
    pods: BTreeMap<String, Pod>,
    admin_page: SocketAddr,
    metrics_page: SocketAddr,
    plane: Plane,
}

pub(crate) struct Pod {
    pub(crate) uid: String,
    pub(crate) namespace: String,
    pub(crate) name: String,
    pub(crate) netns: Netns,
    pub(crate) v4: Ipv4Addr,
    pub(crate) v6: Option<Ipv6Addr>,
}

impl Node {
    pub(crate) fn start() -> Self {
        Self::start_with(&[], None)
    }

    /// The same with more settings, and with so many descriptors at most.
    pub(crate) fn start_with(settings: &[(&str, &str)], descriptors: Option<u32>) -> Self {
        let plane = Plane::start();
        let socket = plane.path("agent.sock");
        let agent = Agent::start(&plane, &socket);
        let [admin, metrics, readiness] = free_ports();
        let log = File::create(plane.path("log")).unwrap();
        // With the rights that it has in a cluster and no more. These become it, under the same pid.
        let ztunnel = Command::new("prlimit")
            .arg("--core=0")
            .args(descriptors.map(|n| format!("--nofile={n}")))
            .arg("setpriv")
            .args(["--bounding-set", "-all,+net_admin,+sys_admin,+net_raw", "--inh-caps", "-all"])
            .arg(env!("CARGO_BIN_EXE_ztunnel"))
            .env_clear()
            .env("NODE_NAME", "node1")
            .env("XDS_ADDRESS", format!("https://{}", plane.address))
            .env("XDS_ROOT_CA", plane.path("root.pem"))
            .env("CA_ROOT_CA", plane.path("root.pem"))
            .env("AMBIT_TOKEN_PATH", plane.path("token"))
            .env("INPOD_UDS", &socket)
            .env("ADMIN_ADDR", admin.to_string())
            .env("STATS_ADDR", metrics.to_string())
            .env("READINESS_ADDR", readiness.to_string())
            .env("TERMINATION_GRACE_PERIOD", "1s")
            .env("ZTUNNEL_WORKER_THREADS", "2")
            .env("RUST_LOG", "info,ztunnel=debug")
            .env("LOG_FORMAT", "json")
            .envs(settings.iter().copied())
            .stdout(log.try_clone().unwrap())
            .stderr(log)
            .spawn()
            .unwrap();
        let bridge = net::netns::unnamed().unwrap();
        ip(&bridge, "link add br0 type bridge");
        ip(&bridge, "link set br0 up");
        Self {
            agent: Some(agent),
            ztunnel,
            bridge,
            pods: BTreeMap::new(),
            admin_page: admin,
            metrics_page: metrics,
            plane,
        }
    }

    pub(crate) fn pod(&mut self, namespace: &str, name: &str) {
        self.add(namespace, name, true);
    }

    pub(crate) fn pod_without_v6(&mut self, namespace: &str, name: &str) {
        self.add(namespace, name, false);
    }

    fn add(&mut self, namespace: &str, name: &str, with_v6: bool) {
        let number = self.pods.len() as u8 + 1;
        let netns = net::netns::unnamed().unwrap();
        netns.run(net::netns::loopback_up).unwrap().unwrap();
        let at = format!("/proc/{}/fd/{}", std::process::id(), netns.as_fd().as_raw_fd());
        ip(&self.bridge, &format!("link add v{number} type veth peer name eth0 netns {at}"));
        ip(&self.bridge, &format!("link set v{number} master br0 up"));
        let v4 = Ipv4Addr::new(10, 9, 0, number);
        let v6 = with_v6.then(|| Ipv6Addr::new(0xfd09, 0, 0, 0, 0, 0, 0, number.into()));
        if !with_v6 {
            let off = || std::fs::write("/proc/sys/net/ipv6/conf/all/disable_ipv6", "1");
            netns.run(off).unwrap().unwrap();
        }
        ip(&netns, &format!("address add {v4}/24 dev eth0"));
        if let Some(v6) = v6 {
            ip(&netns, &format!("address add {v6}/64 dev eth0 nodad"));
        }
        ip(&netns, "link set eth0 up");
        ip(&netns, "route add default dev eth0");
        if with_v6 {
            ip(&netns, "-6 route add default dev eth0");
        }
        let uid = format!("uid-{name}");
        let (namespace, name) = (namespace.to_owned(), name.to_owned());
        self.pods.insert(name.clone(), Pod { uid, namespace, name, netns, v4, v6 });
    }

    /// Gives a pod an address that its status does not tell.
    pub(crate) fn untold_addr(&self, pod: &str, addr: IpAddr) {
        let (length, how) = if addr.is_ipv4() { (32, "") } else { (128, " nodad") };
        ip(self.netns(pod), &format!("address add {addr}/{length} dev lo{how}"));
        // The kernel makes an IPv6 address's route a moment later.
        let family = if addr.is_ipv4() { "-4" } else { "-6" };
        let is_there =
            || ip(self.netns(pod), &format!("{family} route show table local")).contains(&addr.to_string());
        eventually("the address has its route", is_there);
    }

    pub(crate) fn netns(&self, pod: &str) -> &Netns {
        &self.pods[pod].netns
    }

    pub(crate) fn addr(&self, pod: &str, family: u8) -> IpAddr {
        let pod = &self.pods[pod];
        if family == 4 { pod.v4.into() } else { pod.v6.unwrap().into() }
    }

    /// A workload with a pod's addresses, on this node.
    pub(crate) fn workload(&self, workload: WorkloadBuilder, pod: &str) -> Workload {
        let pod = &self.pods[pod];
        let workload = workload.ip(&pod.v4.to_string()).account(&pod.name).node("node1");
        match pod.v6 {
            Some(v6) => workload.ip(&v6.to_string()).build(),
            None => workload.build(),
        }
    }

    pub(crate) fn publish(&self, resources: impl IntoIterator<Item = Resource>) {
        self.plane.publish(resources);
    }

    pub(crate) fn enrol(&mut self, pod: &str) {
        self.agent.as_mut().unwrap().enrol(&self.plane, &self.pods[pod]);
    }

    pub(crate) fn release(&mut self, pod: &str) {
        self.agent.as_mut().unwrap().release(&self.plane, &self.pods[pod]);
    }

    /// A server in a pod that says whom it sees and then sends back what it gets.
    pub(crate) fn serve(&self, pod: &str, port: u16) {
        let listen = || {
            TcpListener::bind((Ipv6Addr::UNSPECIFIED, port)).or_else(|_| TcpListener::bind(("0.0.0.0", port)))
        };
        let listener = self.netns(pod).run(listen).unwrap().unwrap();
        thread::spawn(move || {
            while let Ok((stream, peer)) = listener.accept() {
                // One that breaks is what some tests are about.
                thread::spawn(move || echo(stream, peer));
            }
        });
    }

    pub(crate) fn metrics(&self) -> String {
        page(self.metrics_page, "/metrics")
    }

    pub(crate) fn admin(&self, path: &str) -> String {
        page(self.admin_page, path)
    }

    pub(crate) fn log(&self) -> String {
        std::fs::read_to_string(self.plane.folder().join("log")).unwrap()
    }

    /// The first line of the log of which something holds, once there is one.
    pub(crate) fn log_line(&self, what: impl Fn(&str) -> bool) -> String {
        let find = || self.log().lines().find(|line| what(line)).map(str::to_owned);
        self.until("the line", || find().is_some());
        find().unwrap()
    }

    /// Waits for something that cannot be waited for otherwise.
    pub(crate) fn until(&self, what: &str, mut holds: impl FnMut() -> bool) {
        let until = Instant::now() + PATIENCE;
        while !holds() {
            assert!(Instant::now() < until, "{what} does not come about:\n{}", self.log());
            thread::park_timeout(Duration::from_millis(20));
        }
    }

    /// Lets ztunnel have so many descriptors more than it has.
    pub(crate) fn limit_descriptors(&self, more: u64) {
        let pid = self.ztunnel.id();
        let open = std::fs::read_dir(format!("/proc/{pid}/fd")).unwrap().count() as u64;
        let limit = format!("--nofile={}:", open + more);
        let done = Command::new("prlimit").args(["--pid", &pid.to_string(), &limit]).status().unwrap();
        assert!(done.success());
    }

    /// The processor time that ztunnel has used.
    pub(crate) fn cpu_time(&self) -> Duration {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", self.ztunnel.id())).unwrap();
        let fields: Vec<&str> = stat.rsplit(") ").next().unwrap().split(' ').collect();
        let ticks: u64 = fields[11].parse::<u64>().unwrap() + fields[12].parse::<u64>().unwrap();
        Duration::from_millis(ticks * 10)
    }

    /// Asks ztunnel to end and waits until it has.
    pub(crate) fn terminate(&mut self) -> ExitStatus {
        kill(Pid::from_raw(self.ztunnel.id() as i32), Signal::SIGTERM).unwrap();
        self.ztunnel.wait().unwrap()
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        if thread::panicking() {
            eprintln!("{}", self.log());
        }
        // Gone already where the test ended it.
        let _ = self.ztunnel.kill();
        let _ = self.ztunnel.wait();
        self.agent.take();
    }
}

fn echo(mut stream: TcpStream, peer: SocketAddr) -> std::io::Result<()> {
    writeln!(stream, "{}", peer.ip().to_canonical())?;
    let mut buffer = [0; 65536];
    loop {
        match stream.read(&mut buffer)? {
            0 => return Ok(()),
            n => stream.write_all(&buffer[..n])?,
        }
    }
}

fn page(at: SocketAddr, path: &str) -> String {
    let mut stream = TcpStream::connect(at).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    write!(stream, "GET {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n").unwrap();
    let mut text = String::new();
    stream.read_to_string(&mut text).unwrap();
    text
}

fn free_ports<const N: usize>() -> [SocketAddr; N] {
    let held: Vec<TcpListener> = (0..N).map(|_| TcpListener::bind("127.0.0.1:0").unwrap()).collect();
    std::array::from_fn(|n| held[n].local_addr().unwrap())
}
