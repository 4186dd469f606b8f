//! The program itself.

use std::net::SocketAddr;
use std::process::Stdio;
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::process::{Child, Command};

use super::capture::greeters;
use crate::app::Call;
use crate::bench::Bench;
use crate::proxy::Proxy;
use crate::town::Town;

fn agent(bench: &Bench) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_ambit-agent"));
    command.kill_on_drop(true).stdout(Stdio::null());
    command.arg("--bpffs").arg(bench.bpffs()).args(["--instance", "bench"]);
    command
}

async fn start(bench: &Bench) -> (Child, SocketAddr) {
    // Its port is free again when the agent binds it; nobody else takes ports of this address.
    let http = std::net::TcpListener::bind("127.0.0.53:0").unwrap().local_addr().unwrap();
    let mut command = agent(bench);
    command.args(["--node-name", "node-1", "--http", &http.to_string()]);
    command.arg("--objects").arg(bench.objects()).arg("--zds-socket").arg(bench.socket());
    (command.spawn().unwrap(), http)
}

async fn page(http: SocketAddr, path: &str) -> std::io::Result<String> {
    let mut stream = TcpStream::connect(http).await?;
    let request = format!("GET {path} HTTP/1.1\r\nhost: agent\r\nconnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await?;
    Ok(answer)
}

/// Asks for a page until it says something. Another process gives no other notice.
async fn says(http: SocketAddr, path: &str, what: &str) -> String {
    let mut looks = tokio::time::interval(Duration::from_millis(50));
    let looking = async {
        loop {
            looks.tick().await;
            match page(http, path).await {
                Ok(answer) if answer.contains(what) => return answer,
                _ => {}
            }
        }
    };
    tokio::time::timeout(Duration::from_secs(30), looking).await.expect(what)
}

fn cleanup(bench: &Bench) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_ambit-agent"));
    command.arg("cleanup").arg("--bpffs").arg(bench.bpffs()).args(["--instance", "bench"]);
    command
}

#[tokio::test(flavor = "multi_thread")]
async fn sigterm_leaves_capture_and_cleanup_ends_it() {
    let (town, bench) = (Town::build().await, Bench::new());
    let _greeters = greeters(&town);
    let before = town.pod.routing().await;
    bench.put_pod("cart", &town.pod);
    bench.label_ambient();
    let (mut child, http) = start(&bench).await;
    let proxy = Proxy::start(bench.socket());
    says(http, "/debug/pods", r#""state":"enrolled","reason":null"#).await;
    says(http, "/healthz/ready", "200 OK").await;
    let metrics = says(http, "/metrics", "ambit_agent_pods").await;
    assert!(metrics.contains(r#"ambit_agent_pods{state="enrolled"} 1"#), "{metrics}");
    assert!(!cleanup(&bench).output().await.unwrap().status.success(), "not while the agent runs");

    let pid = Pid::from_raw(child.id().unwrap().cast_signed());
    kill(pid, Signal::SIGTERM).unwrap();
    assert!(child.wait().await.unwrap().success());
    let outside = SocketAddr::new(town.neighbour.v4.into(), 80);
    Call::to(&town.pod.netns, outside).await.unwrap();
    assert_eq!(proxy.take_captured().len(), 1, "captured without an agent");

    for _ in 0..2 {
        let cleaned = cleanup(&bench).output().await.unwrap();
        assert!(cleaned.status.success(), "{}", String::from_utf8_lossy(&cleaned.stderr));
    }
    Call::to(&town.pod.netns, outside).await.unwrap();
    assert_eq!(proxy.take_captured(), []);
    assert_eq!(town.pod.routing().await, before);
    assert_eq!(std::fs::read_dir(bench.bpffs().join("ambit")).unwrap().count(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn mistakes_are_told() {
    let bench = Bench::new();
    let refused = agent(&bench).args(["--node-name", "node-1"]).output().await.unwrap();
    assert!(!refused.status.success());
    assert!(String::from_utf8_lossy(&refused.stderr).contains("--objects is missing"));
}
