//! ztunnel as a process, with real redirection in real network namespaces, under a control plane and an agent that the
//! tests play themselves.

#![expect(clippy::print_stderr, reason = "a test that fails shows the log of the process that it tested")]

mod agent;
mod node;
mod plane;
mod traffic;

mod netns {
    use std::net::IpAddr;
    use std::time::Duration;

    use testkit::fixtures::{allow, deny, pod, service, strict};

    use super::node::{Node, can_run};
    use super::traffic::{Outcome, ask, exchange, half_closed, hold, transfer};

    /// shop/client and shop/server are meshed, old/stranger is not; all on one node.
    fn shop() -> Option<Node> {
        shop_with(&[], None)
    }

    fn shop_with(settings: &[(&str, &str)], descriptors: Option<u32>) -> Option<Node> {
        if !can_run() {
            return None;
        }
        let mut node = Node::start_with(settings, descriptors);
        for (namespace, name) in [("shop", "client"), ("shop", "server"), ("old", "stranger")] {
            node.pod(namespace, name);
        }
        node.serve("server", 8080);
        node.serve("stranger", 8080);
        let web = service("shop", "web").vip("10.96.0.1").vip("fd96::1").port(80, 8080).build();
        node.publish([
            node.workload(pod("shop", "client"), "client").into(),
            node.workload(pod("shop", "server").backs(&web), "server").into(),
            node.workload(pod("old", "stranger").unmeshed(), "stranger").into(),
            web.into(),
        ]);
        for name in ["client", "server"] {
            node.enrol(name);
        }
        Some(node)
    }

    #[test]
    fn meshed_pods_talk_by_hbone_and_see_each_others_addresses() {
        let Some(node) = shop() else { return };
        for (v, server) in [(4, node.addr("server", 4)), (6, node.addr("server", 6))] {
            let seen = ask(&node, "client", (server, 8080).into());
            assert_eq!(seen, Outcome::SeenAs(node.addr("client", v)), "by IPv{v}");
        }
        let record =
            node.log_line(|line| line.contains("\"direction\":\"outbound\"") && line.contains("complete"));
        for told in [
            format!("\"dst.hbone_addr\":\"{}:8080\"", node.addr("server", 4)),
            format!("\"dst.addr\":\"{}:15008\"", node.addr("server", 4)),
            "\"src.identity\":\"spiffe://cluster.local/ns/shop/sa/client\"".into(),
            "\"dst.identity\":\"spiffe://cluster.local/ns/shop/sa/server\"".into(),
            "\"dst.workload\":\"server\"".into(),
        ] {
            assert!(record.contains(&told), "{told} in {record}");
        }
        let metrics = node.metrics();
        let opened = |reporter: &str| {
            metrics.lines().any(|line| {
                line.starts_with("istio_tcp_connections_opened_total")
                    && line.contains(&format!("reporter=\"{reporter}\""))
                    && line.contains("connection_security_policy=\"mutual_tls\"")
            })
        };
        assert!(opened("source") && opened("destination"), "{metrics}");
    }

    #[test]
    fn a_service_is_reached_at_an_endpoint() {
        let Some(node) = shop() else { return };
        for vip in ["10.96.0.1:80", "[fd96::1]:80"] {
            assert!(matches!(ask(&node, "client", vip.parse().unwrap()), Outcome::SeenAs(_)), "{vip}");
        }
        assert_eq!(ask(&node, "client", "10.96.0.1:81".parse().unwrap()), Outcome::Reset, "no such port");
    }

    #[test]
    fn strangers_are_reached_and_reach_as_plaintext() {
        let Some(node) = shop() else { return };
        for (from, to) in [("client", "stranger"), ("stranger", "server")] {
            for v in [4, 6] {
                let seen = ask(&node, from, (node.addr(to, v), 8080).into());
                assert_eq!(seen, Outcome::SeenAs(node.addr(from, v)), "{from} to {to} by IPv{v}");
            }
        }
        let port_of_nobody = (node.addr("stranger", 4), 8081).into();
        assert_eq!(ask(&node, "client", port_of_nobody), Outcome::Reset);
    }

    #[test]
    fn strict_refuses_plaintext_and_nothing_else() {
        let Some(node) = shop() else { return };
        node.publish([strict("shop").into()]);
        let server = (node.addr("server", 4), 8080).into();
        assert_eq!(ask(&node, "stranger", server), Outcome::Reset);
        assert!(matches!(ask(&node, "client", server), Outcome::SeenAs(_)));
        node.log_line(|line| line.contains("istio_converted") || line.contains("\"error\":\"denied"));
        assert!(node.metrics().contains("response_flags=\"DENY\""));
    }

    #[test]
    fn policy_decides_by_identity() {
        let Some(node) = shop() else { return };
        let server = (node.addr("server", 4), 8080).into();
        node.publish([allow("shop", "only-others").from("shop", "somebody-else").build().into()]);
        assert_eq!(ask(&node, "client", server), Outcome::Reset);
        node.publish([allow("shop", "only-others").from("shop", "client").build().into()]);
        assert!(matches!(ask(&node, "client", server), Outcome::SeenAs(_)));
        node.publish([deny("shop", "trial").from_everyone().dry_run().build().into()]);
        assert!(matches!(ask(&node, "client", server), Outcome::SeenAs(_)), "a trial denies nobody");
        assert!(node.metrics().contains("ambit_dry_run_denials_total 1"));
    }

    #[test]
    fn the_meshs_own_ports_in_a_pod_are_refused() {
        let Some(node) = shop() else { return };
        for port in [15001, 15006] {
            assert_eq!(
                ask(&node, "stranger", (node.addr("server", 4), port).into()),
                Outcome::Reset,
                "{port}"
            );
            let loopback: IpAddr = [127, 0, 0, 1].into();
            assert_eq!(ask(&node, "client", (loopback, port).into()), Outcome::Reset, "{port} on loopback");
        }
    }

    #[test]
    fn a_half_closed_connection_still_answers() {
        let Some(node) = shop() else { return };
        for to in [node.addr("server", 4), node.addr("stranger", 4)] {
            half_closed(&node, "client", (to, 8080).into());
        }
    }

    #[test]
    fn large_transfers_arrive_whole() {
        let Some(node) = shop() else { return };
        transfer(&node, "client", (node.addr("server", 4), 8080).into(), 64 << 20);
    }

    #[test]
    fn a_pod_without_ipv6_is_served() {
        if !can_run() {
            return;
        }
        let mut node = Node::start();
        node.pod_without_v6("shop", "client");
        node.pod_without_v6("shop", "server");
        node.serve("server", 8080);
        node.publish([
            node.workload(pod("shop", "client"), "client").into(),
            node.workload(pod("shop", "server"), "server").into(),
        ]);
        node.enrol("client");
        node.enrol("server");
        let seen = ask(&node, "client", (node.addr("server", 4), 8080).into());
        assert_eq!(seen, Outcome::SeenAs(node.addr("client", 4)));
    }

    #[test]
    fn an_address_of_the_pod_that_nobody_was_told_of_is_its_own() {
        let Some(node) = shop() else { return };
        node.serve("client", 8080);
        for addr in ["192.0.2.1", "2001:db8::1"] {
            let addr: IpAddr = addr.parse().unwrap();
            node.untold_addr("client", addr);
            assert_eq!(ask(&node, "client", (addr, 8080).into()), Outcome::SeenAs(addr));
            assert_eq!(ask(&node, "client", (addr, 8081).into()), Outcome::Reset, "nobody listens there");
        }
    }

    #[test]
    fn what_comes_back_to_the_proxy_is_refused_the_first_time() {
        let Some(node) = shop() else { return };
        let addr: IpAddr = [192, 0, 2, 1].into();
        node.untold_addr("client", addr);
        node.publish([pod("shop", "elsewhere")
            .ip("192.0.2.1")
            .account("elsewhere")
            .node("node2")
            .build()
            .into()]);
        assert_eq!(ask(&node, "client", (addr, 8080).into()), Outcome::Reset);
        let returned = |line: &str| line.contains("an address of the pod itself");
        node.log_line(returned);
        assert_eq!(node.log().lines().filter(|line| returned(line)).count(), 1);
    }

    #[test]
    fn garbage_on_the_tunnel_port_is_refused_and_told() {
        let Some(node) = shop() else { return };
        let tunnels = (node.addr("server", 4), 15008).into();
        for garbage in [&b"GET / HTTP/1.1\r\n\r\n"[..], &[0xff; 600], &[]] {
            let answer = exchange(&node, "stranger", tunnels, garbage);
            assert!(answer.len() < 32, "an alert at most: {answer:?}");
        }
        assert!(node.metrics().contains("response_flags=\"TLS_FAILURE\""));
        assert!(matches!(ask(&node, "client", (node.addr("server", 4), 8080).into()), Outcome::SeenAs(_)));
    }

    #[test]
    fn want_of_descriptors_is_survived() {
        let Some(node) = shop() else { return };
        let server = (node.addr("server", 4), 8080).into();
        assert!(matches!(ask(&node, "client", server), Outcome::SeenAs(_)));
        node.limit_descriptors(10);
        let held = hold(&node, "client", server, 40);
        // Its metrics cannot be asked for now either.
        node.log_line(|line| line.contains("cannot accept connections"));
        let spent = node.cpu_time();
        std::thread::park_timeout(Duration::from_secs(1));
        assert!(node.cpu_time() - spent < Duration::from_millis(300), "it does not spin");
        node.limit_descriptors(10_000);
        drop(held);
        node.until("connections are accepted again", || {
            matches!(ask(&node, "client", server), Outcome::SeenAs(_))
        });
    }

    #[test]
    fn a_pod_at_its_quota_is_refused_and_told_and_others_are_not() {
        let Some(node) = shop_with(&[("AMBIT_POD_CONNECTIONS", "20")], None) else { return };
        let stranger = (node.addr("stranger", 4), 8080).into();
        let held = hold(&node, "client", stranger, 20);
        let shown = || node.admin("/quotas");
        node.until("all are counted", || shown().contains("\"at_limit\": [\n        \"connections\""));
        assert_eq!(ask(&node, "client", stranger), Outcome::Reset);
        node.log_line(|line| line.contains("at its quota of connections") && line.contains("shop"));
        let metrics = node.metrics();
        assert!(metrics.contains("ambit_quota_refusals_total{reason=\"connections\"} 1"), "{metrics}");
        assert!(metrics.contains("response_flags=\"QUOTA\""), "{metrics}");
        let server = (node.addr("server", 4), 8080).into();
        assert_eq!(ask(&node, "stranger", server), Outcome::SeenAs(node.addr("stranger", 4)), "another pod");
        drop(held);
        node.until("there is room again", || matches!(ask(&node, "client", stranger), Outcome::SeenAs(_)));
    }

    #[test]
    fn a_pod_that_takes_all_it_can_leaves_descriptors_for_others_and_for_the_proxy() {
        let Some(mut node) = shop_with(&[], Some(300)) else { return };
        let stranger = (node.addr("stranger", 4), 8080).into();
        let _held = hold(&node, "client", stranger, 300);
        node.until("many of them are refused", || {
            let metrics = node.metrics();
            let refused = metrics
                .lines()
                .find_map(|line| line.strip_prefix("ambit_quota_refusals_total{reason=\"descriptors\"} "));
            refused.is_some_and(|n| n.parse::<u32>().unwrap() > 100)
        });
        let server = (node.addr("server", 4), 8080).into();
        assert_eq!(ask(&node, "stranger", server), Outcome::SeenAs(node.addr("stranger", 4)), "another pod");
        node.pod("shop", "late");
        node.publish([node.workload(pod("shop", "late"), "late").into()]);
        node.enrol("late");
        assert_eq!(ask(&node, "late", stranger), Outcome::SeenAs(node.addr("late", 4)), "a new one");
        assert!(!node.metrics().contains("ambit_accept_errors_total{cause=\"descriptors\"}"));
    }

    #[test]
    fn a_connection_without_a_byte_is_given_up_in_time() {
        let settings = [("AMBIT_IDLE_TIMEOUT", "2s"), ("AMBIT_HALF_CLOSED_TIMEOUT", "1s")];
        let Some(node) = shop_with(&settings, None) else { return };
        let server = (node.addr("server", 4), 8080).into();
        let held = hold(&node, "client", server, 3);
        held[0].shutdown(std::net::Shutdown::Write).unwrap();
        node.until("they are given up", || {
            let metrics = node.metrics();
            ["idle", "half_closed"]
                .iter()
                .any(|why| metrics.contains(&format!("ambit_relay_timeouts_total{{reason=\"{why}\"}}")))
        });
        node.log_line(|line| line.contains("nothing passed for 2s"));
        node.until("nothing is left of them", || node.admin("/connections").contains("[]"));
    }

    #[test]
    fn a_pod_that_leaves_is_as_before_and_may_come_back() {
        let Some(mut node) = shop() else { return };
        let server = (node.addr("server", 4), 8080).into();
        for _ in 0..2 {
            node.release("client");
            assert_eq!(ask(&node, "client", server), Outcome::SeenAs(node.addr("client", 4)), "as plaintext");
            node.enrol("client");
            assert_eq!(ask(&node, "client", server), Outcome::SeenAs(node.addr("client", 4)), "by tunnel");
        }
    }

    #[test]
    fn it_tells_what_it_runs_on_and_no_secret() {
        let Some(node) = shop() else { return };
        let dump = node.admin("/config_dump");
        for told in [
            "spiffe://cluster.local/ns/shop/sa/client",
            "\"uid-server\"",
            "10.96.0.1",
            "\"state\": \"valid\"",
        ] {
            assert!(dump.contains(told), "{told} in {dump}");
        }
        for secret in ["PRIVATE KEY", super::plane::TOKEN] {
            assert!(!dump.contains(secret));
        }
        let _held = hold(&node, "client", (node.addr("server", 4), 8080).into(), 1);
        node.until("the connection is shown", || node.admin("/connections").contains("outbound"));
        assert!(node.admin("/logging").contains("ztunnel=debug"));
        assert!(node.admin("/debug/pprof/profile").contains("perf record"));
    }

    #[test]
    fn it_ends_in_good_order_when_asked_to() {
        let Some(mut node) = shop() else { return };
        let server = (node.addr("server", 4), 8080).into();
        assert!(matches!(ask(&node, "client", server), Outcome::SeenAs(_)));
        let held = hold(&node, "client", server, 3);
        assert!(node.terminate().success());
        drop(held);
        assert!(!node.log().contains("panicked"), "{}", node.log());
    }
}
