//! What pods ask resolvers.

use std::io::{Read as _, Write as _};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::process::Command;
use std::thread;
use std::time::Duration;

use net::Netns;
use testkit::lab::{Lab, Output, eventually};

use crate::world::{Pod, curl, manifests, meshed, netns};

/// What the mesh's answers may be kept for. The cluster's own DNS, which they would come from else, says 5.
const TTL: &str = "30";
const PATIENCE: Duration = Duration::from_secs(20);

/// The answer's records, each as its words.
fn dig(lab: &Lab, pod: &str, arguments: &[&str]) -> Vec<Vec<String>> {
    let command = [&["dig", "+noall", "+answer", "+time=5", "+tries=2"], arguments].concat();
    let shown: Output = lab.exec(pod, &command).expect_ok();
    shown.stdout.lines().map(|line| line.split_whitespace().map(str::to_owned).collect()).collect()
}

/// Name, TTL and data of the only record.
fn only(records: &[Vec<String>]) -> (&str, &str, &str) {
    match records {
        [record] => match &record[..] {
            [name, ttl, _, _, data] => (name, ttl, data),
            other => panic!("{other:?}"),
        },
        other => panic!("not one record: {other:?}"),
    }
}

fn entry(name: &str, rest: &str) -> String {
    format!(
        "---\napiVersion: networking.istio.io/v1\nkind: ServiceEntry\nmetadata: {{name: {name}, namespace: outside}}\nspec:\n  \
         resolution: STATIC\n  ports: [{{number: 80, name: http, targetPort: 8080}}]\n{rest}"
    )
}

#[test]
fn the_mesh_tells_of_its_services() {
    let Some(lab) = meshed() else { return };
    let vip = lab.exec("outside/stranger", &["dig", "+short", "server.app.svc.cluster.local"]).expect_ok();
    let vip = vip.stdout.trim();
    for name in
        ["server.app.svc.cluster.local", "server.app.svc", "server.app", "SerVer.aPP.svc.cluster.local"]
    {
        for how in ["+notcp", "+tcp", "+noedns", "+subnet=10.1.2.0/24"] {
            let records = dig(&lab, "app/client", &[how, name]);
            assert_eq!(only(&records), (&*format!("{name}."), TTL, vip), "{how}");
        }
    }
    // By the search domains of the pod's own resolver, and by the C library.
    let records = dig(&lab, "app/client", &["+search", "server"]);
    assert_eq!(only(&records), ("server.app.svc.cluster.local.", TTL, vip));
    let before = lab.metric("node1", "istio_dns_requests_total", &["request_protocol=\"udp\""]);
    let found = lab.exec("app/client", &["getent", "ahostsv4", "server"]).expect_ok().stdout;
    assert_eq!(found.split_whitespace().next(), Some(vip));
    assert!(lab.metric("node1", "istio_dns_requests_total", &["request_protocol=\"udp\""]) > before);
    lab.exec("app/client", &curl("http://server/")).expect_ok();

    let headless = dig(&lab, "app/client", &["server-headless.app.svc.cluster.local"]);
    let server = lab.ip("app", "server");
    assert_eq!(only(&headless), ("server-headless.app.svc.cluster.local.", TTL, &*server));

    let nothing = lab.exec("app/client", &["dig", "AAAA", "server.app.svc.cluster.local"]).expect_ok().stdout;
    assert!(nothing.contains("status: NOERROR") && nothing.contains("ANSWER: 0"), "{nothing}");

    // What else there is about a name, the cluster's DNS tells, as to a pod outside.
    for how in ["+notcp", "+tcp"] {
        let srv = ["+short", how, "SRV", "_tcp._tcp.server.app.svc.cluster.local"];
        let told = |pod| lab.exec(pod, &[&["dig"], &srv[..]].concat()).expect_ok().stdout;
        assert_eq!(told("app/client"), told("outside/stranger"));
        assert!(told("app/client").contains(" 80 server.app.svc.cluster.local."), "{}", told("app/client"));
    }
    let absent = lab.exec("app/client", &["dig", "absent.app.svc.cluster.local"]).expect_ok().stdout;
    assert!(absent.contains("status: NXDOMAIN"), "{absent}");
}

#[test]
fn hosts_are_told_to_those_who_may_see_them() {
    let Some(lab) = meshed() else { return };
    let backend = lab.ip("outside", "plain");
    let endpoints = format!("  endpoints: [{{address: {backend}}}]\n");
    lab.apply(
        &[
            entry("open", &format!("  hosts: [shop.example.test]\n  addresses: [240.9.0.1]\n{endpoints}")),
            entry("wild", &format!("  hosts: ['*.wild.test']\n  addresses: [240.9.0.2]\n{endpoints}")),
            entry(
                "own",
                &format!(
                    "  hosts: [own.example.test]\n  addresses: [240.9.0.3]\n  exportTo: ['.']\n{endpoints}"
                ),
            ),
        ]
        .concat(),
    )
    .expect_ok();
    assert_eq!(
        only(&dig(&lab, "app/client", &["shop.example.test"])),
        ("shop.example.test.", TTL, "240.9.0.1")
    );
    assert_eq!(only(&dig(&lab, "app/client", &["a.b.wild.test"])), ("a.b.wild.test.", TTL, "240.9.0.2"));
    assert!(dig(&lab, "app/client", &["own.example.test"]).is_empty());
    lab.exec("app/client", &curl("http://shop.example.test/")).expect_ok();
    lab.exec("app/client", &curl("http://any.wild.test/")).expect_ok();
    // A host that is known, and something else about it that nobody knows: it is there all the same.
    let other = lab.exec("app/client", &["dig", "TXT", "shop.example.test"]).expect_ok().stdout;
    assert!(other.contains("status: NOERROR") && other.contains("ANSWER: 0"), "{other}");
    lab.join("outside");
    eventually("the namespace's own pods see what is theirs", || {
        dig(&lab, "outside/stranger", &["own.example.test"]).len() == 1
    });
}

/// A message of every kind that is not ours to answer.
fn odd_messages() -> Vec<Vec<u8>> {
    let header = |flags: u16, counts: [u16; 4]| {
        let words = [0xbeef, flags].into_iter().chain(counts);
        words.flat_map(u16::to_be_bytes).collect::<Vec<u8>>()
    };
    let question = b"\x07eXamPle\x04tesT\0\x00\x10\x00\x01";
    let options = b"\0\x00\x29\x10\x00\0\0\x80\0\x00\x0c\x00\x0a\x00\x08COOKIES!";
    let record = b"\xc0\x0c\x00\x01\x00\x01\0\0\0\x3c\x00\x04\x0a\0\0\x01";
    vec![
        [&header(0x0100, [1, 0, 0, 1])[..], question, options].concat(),
        // An update (RFC 2136), signed or not, and a notification (RFC 1996).
        [&header(0x2800, [1, 1, 1, 0])[..], question, record, record].concat(),
        [&header(0x2400, [1, 0, 0, 0])[..], question].concat(),
        // An operation that nobody has defined, two questions, something behind the end, an answer, and rubbish.
        [&header(0x7800, [1, 0, 0, 0])[..], question].concat(),
        [&header(0x0100, [2, 0, 0, 0])[..], question, question].concat(),
        [&header(0x0100, [1, 0, 0, 0])[..], question, b"tail"].concat(),
        [&header(0x8180, [1, 1, 0, 0])[..], question, record].concat(),
        b"no message at all".to_vec(),
        vec![0xa5; 1400],
    ]
}

/// What the other one answers: truncated, with every byte of the question after the header complemented.
fn answer_to(question: &[u8]) -> Vec<u8> {
    let mut answer: Vec<u8> = question.iter().map(|byte| !byte).collect();
    answer[..2].copy_from_slice(&question[..2]);
    answer[2] = 0x82 | question[2];
    answer
}

/// A resolver that answers so many messages in datagrams, or on one connection, and gives those that it got.
fn resolver(at: &Netns, ip: IpAddr, count: usize) -> [thread::JoinHandle<Vec<Vec<u8>>>; 2] {
    let open = || (UdpSocket::bind((ip, 53)).unwrap(), TcpListener::bind((ip, 53)).unwrap());
    let (udp, tcp) = at.run(open).unwrap();
    udp.set_read_timeout(Some(PATIENCE)).unwrap();
    let datagrams = thread::spawn(move || {
        let mut buffer = [0; 4096];
        let next = |_| {
            let (length, from) = udp.recv_from(&mut buffer).unwrap();
            udp.send_to(&answer_to(&buffer[..length]), from).unwrap();
            buffer[..length].to_vec()
        };
        (0..count).map(next).collect()
    });
    let stream = thread::spawn(move || {
        let mut stream = tcp.accept().unwrap().0;
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        let next = |_| {
            let question = read_framed(&mut stream);
            write_framed(&mut stream, &answer_to(&question));
            question
        };
        (0..count).map(next).collect()
    });
    [datagrams, stream]
}

fn read_framed(from: &mut TcpStream) -> Vec<u8> {
    let mut length = [0; 2];
    from.read_exact(&mut length).unwrap();
    let mut message = vec![0; u16::from_be_bytes(length).into()];
    from.read_exact(&mut message).unwrap();
    message
}

fn write_framed(to: &mut TcpStream, message: &[u8]) {
    let length = u16::try_from(message.len()).unwrap().to_be_bytes();
    to.write_all(&[&length[..], message].concat()).unwrap();
}

fn v6(at: &Netns) -> IpAddr {
    let socket = at.run(|| UdpSocket::bind("[::]:0").unwrap()).unwrap();
    socket.connect("[2001:db8::1]:1").unwrap();
    socket.local_addr().unwrap().ip()
}

#[test]
fn what_is_not_the_meshs_passes_byte_for_byte() {
    let Some(lab) = meshed() else { return };
    let (client, stranger) = (netns(&lab, "app", "client"), netns(&lab, "outside", "stranger"));
    let messages = odd_messages();
    for ip in [lab.ip("outside", "stranger").parse().unwrap(), v6(&stranger)] {
        let to = SocketAddr::new(ip, 53);
        let [datagrams, stream] = resolver(&stranger, ip, 2 * messages.len());
        let any: SocketAddr = if ip.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" }.parse().unwrap();
        let loose = client.run(|| UdpSocket::bind(any).unwrap()).unwrap();
        let fixed =
            client.run(|| UdpSocket::bind(any).and_then(|s| s.connect(to).map(|()| s)).unwrap()).unwrap();
        let mut buffer = [0; 4096];
        for socket in [&loose, &fixed] {
            socket.set_read_timeout(Some(PATIENCE)).unwrap();
            for message in &messages {
                match socket.peer_addr() {
                    Ok(peer) => {
                        assert_eq!(peer, to, "the socket's own view");
                        socket.send(message).unwrap()
                    }
                    Err(_) => socket.send_to(message, to).unwrap(),
                };
                let (length, from) = socket.recv_from(&mut buffer).unwrap();
                assert_eq!(from, to, "who answers is who was asked");
                assert_eq!(buffer[..length], answer_to(message)[..]);
            }
        }
        let mut connection = client.run(|| TcpStream::connect(to)).unwrap().unwrap();
        connection.set_read_timeout(Some(PATIENCE)).unwrap();
        for _ in 0..2 {
            messages.iter().for_each(|message| write_framed(&mut connection, message));
            for message in &messages {
                assert_eq!(read_framed(&mut connection), answer_to(message));
            }
        }
        let twice = [&messages[..], &messages].concat();
        for got in [datagrams, stream] {
            assert_eq!(got.join().unwrap(), twice, "what the other one got");
        }
    }
    assert!(lab.metric("node1", "istio_dns_upstream_requests_total", &["request_protocol=\"udp\""]) >= 36.0);
    assert!(lab.metric("node1", "istio_dns_upstream_requests_total", &["request_protocol=\"tcp\""]) >= 36.0);
}

#[test]
fn the_failure_of_whom_a_pod_asks_is_its_answer() {
    let Some(lab) = meshed() else { return };
    let stranger = netns(&lab, "outside", "stranger");
    let ip = lab.ip("outside", "stranger");
    let server = format!("@{ip}");
    let ask = |name: &str| lab.exec("app/client", &["dig", "+time=2", "+tries=1", &server, name]);
    // Nobody listens: the kernel says so at once, and so is the client told.
    let refused = ask("example.test");
    assert!(refused.stdout.contains("status: SERVFAIL"), "{}", refused.stdout);
    // Somebody is silent: so is what the client hears.
    let silent = stranger.run(|| UdpSocket::bind((ip.as_str(), 53)).unwrap()).unwrap();
    let timed_out = ask("example.test");
    assert!(!timed_out.ok() && timed_out.stdout.contains("timed out"), "{}", timed_out.stdout);
    // What is the mesh's needs nobody.
    assert!(ask("server.app.svc.cluster.local").stdout.contains("status: NOERROR"));
    drop(silent);
    assert!(lab.metric("node1", "istio_dns_upstream_failures_total", &[]) >= 1.0);
}

#[test]
fn a_pod_may_keep_what_it_asks_to_itself() {
    let own =
        Pod { namespace: "app", name: "own", node: "node1", command: &["sleep", "infinity"], ready_on: None };
    let own = own.manifest().replace(
        "labels: {app: own}",
        "labels: {app: own}, annotations: {ambient.istio.io/dns-capture: 'false'}",
    );
    let Some(lab) = Lab::up(&(manifests() + &own)) else { return };
    lab.join("app");
    let ttl = |pod| dig(&lab, pod, &["server.app.svc.cluster.local"])[0][1].clone();
    assert_eq!(ttl("app/client"), TTL);
    assert_eq!(ttl("app/own"), "5", "the cluster's own word");
    lab.exec("app/own", &curl("http://server.app/")).expect_ok();
    lab.leave("app");
    assert_eq!(ttl("app/client"), "5", "outside the mesh it is as before");
}

/// A ServiceEntry without addresses or endpoints of its own.
fn looked_up(name: &str, host: &str, rest: &str) -> String {
    format!(
        "---\napiVersion: networking.istio.io/v1\nkind: ServiceEntry\nmetadata: {{name: {name}, namespace: outside}}\nspec:\n  \
         hosts: ['{host}']\n  ports: [{{number: 80, name: http, targetPort: 8080}}]\n{rest}"
    )
}

#[test]
fn hosts_without_addresses_get_one_and_are_reached_where_their_names_lead() {
    let Some(lab) = meshed() else { return };
    let backend = "plain-headless.outside.svc.cluster.local";
    let headless = "---\napiVersion: v1\nkind: Service\nmetadata: {name: plain-headless, namespace: outside}\nspec: {clusterIP: None, selector: {app: plain}, ports: [{name: http, port: 8080}]}\n";
    lab.apply(
        &[
            headless.to_owned(),
            looked_up(
                "named",
                "api.example.test",
                &format!("  resolution: DNS\n  endpoints: [{{address: {backend}}}]\n"),
            ),
            looked_up(
                "static",
                "db.example.test",
                &format!(
                    "  resolution: STATIC\n  endpoints: [{{address: {}}}]\n",
                    lab.ip("outside", "plain")
                ),
            ),
            looked_up("lost", "lost.example.test", "  resolution: DNS\n"),
        ]
        .concat(),
    )
    .expect_ok();
    for host in ["api.example.test", "db.example.test"] {
        let records = dig(&lab, "app/client", &[host]);
        let (_, ttl, vip) = only(&records);
        assert!(ttl == TTL && vip.starts_with("240.240."), "{records:?}");
        let v6 = dig(&lab, "app/client", &[host, "AAAA"]);
        assert!(only(&v6).2.starts_with("2001:2::"), "{v6:?}");
        for family in ["-4", "-6"] {
            lab.exec("app/client", &[&curl(&format!("http://{host}/"))[..], &[family]].concat()).expect_ok();
        }
        // Nobody outside of the mesh knows of it.
        assert!(dig(&lab, "outside/stranger", &[host]).is_empty());
    }
    let lost = lab.exec("app/client", &curl("http://lost.example.test/"));
    assert!(!lost.ok(), "{}", lost.stdout);
    eventually("the log says why", || {
        lab.logs("ztunnel@node1").contains("lost.example.test: there is no such name")
    });
}

#[test]
fn a_block_of_addresses_leads_where_its_service_says() {
    let Some(lab) = meshed() else { return };
    let backend = lab.ip("outside", "plain");
    lab.apply(&looked_up(
        "block",
        "*.block.test",
        &format!(
            "  addresses: [198.51.100.0/24]\n  resolution: STATIC\n  endpoints: [{{address: {backend}}}]\n"
        ),
    ))
    .expect_ok();
    for address in ["198.51.100.1", "198.51.100.254"] {
        lab.exec("app/client", &curl(&format!("http://{address}/"))).expect_ok();
    }
    // One that is written out comes before the block that it is in, and what passes goes to the very address.
    lab.apply(&looked_up("none", "none.test", "  addresses: [198.51.100.254]\n  resolution: NONE\n"))
        .expect_ok();
    assert!(!lab.exec("app/client", &curl("http://198.51.100.254/")).ok());
    lab.exec("app/client", &curl("http://198.51.100.1/")).expect_ok();
}

#[test]
fn the_rule_that_questions_follow_is_put_back_within_a_second() {
    let Some(lab) = meshed() else { return };
    let pod = netns(&lab, "app", "client");
    let ttl = || dig(&lab, "app/client", &["server.app.svc.cluster.local"])[0][1].clone();
    assert_eq!(ttl(), TTL);
    let repairs = || -> f64 {
        let metrics = lab.ztunnel("node1", 15022, "/metrics");
        let counted = metrics.lines().filter(|line| line.starts_with("ambit_repairs_total"));
        counted.filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok()).sum()
    };
    for how in [
        &["rule", "del", "pref", "102"][..],
        &["-6", "rule", "del", "pref", "102"],
        &["route", "flush", "table", "101"],
    ] {
        let before = repairs();
        let done = pod.run(|| Command::new("ip").args(how).status().unwrap()).unwrap();
        assert!(done.success(), "{how:?}");
        eventually("it is put back and counted", || repairs() > before);
        assert_eq!(ttl(), TTL, "{how:?}");
    }
}
