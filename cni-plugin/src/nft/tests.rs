use super::*;

fn plan() -> Plan {
    Plan {
        uid: "4d9e".to_owned(),
        captures: true,
        questions: [true, true],
        probes: true,
        mark: 0x0a00_0000,
        mask: 0x0f00_0000,
    }
}

mod netns {
    use std::process::Command;

    use super::*;

    /// What `nft` makes of it.
    fn shown(netns: &Netns, arguments: &[&str]) -> String {
        let run = || Command::new("nft").args(arguments).output();
        let output = netns.run(run).unwrap().expect("nft is a package that the tests install");
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    }

    #[test]
    fn the_table_is_what_its_documentation_says() {
        let netns = net::netns::unnamed().unwrap();
        Tables::of("t").install(&netns, &plan()).unwrap();
        let shown = shown(&netns, &["-nn", "list", "table", "inet", "ambit_t"]);
        for line in [
            "type nat hook output priority -110; policy accept;",
            "type nat hook prerouting priority -110; policy accept;",
            "type filter hook postrouting priority 0; policy accept;",
            "type filter hook prerouting priority -150; policy accept;",
            "meta mark & 0x00000fff == 0x00000539 return",
            "meta mark & 0x0f000000 == 0x0a000000 return",
            "meta mark & 0x0f000000 == 0x0a000000 counter packets 0 bytes 0 drop",
            "oif \"lo\" return",
            "tcp flags 0x2 / 0x1,0x2,0x4,0x10 redirect to :15001",
            "tcp dport 15008 return",
            "fib daddr type != 2 return",
            "ip saddr 169.254.7.127 return",
            "ip6 saddr fd16:9254:7127:1337:ffff:ffff:ffff:ffff return",
            "tcp flags 0x2 / 0x1,0x2,0x4,0x10 redirect to :15006",
            "tcp flags 0x2 / 0x2,0x10 counter packets 0 bytes 0 drop",
            "fib saddr type != 2 return",
            "tproxy ip to 127.0.0.1:15053",
            "tproxy ip6 to [::1]:15053",
        ] {
            assert!(shown.contains(line), "{line} is not in\n{shown}");
        }
    }

    #[test]
    fn a_table_is_found_with_whose_it_is_until_it_is_removed() {
        let netns = net::netns::unnamed().unwrap();
        let tables = Tables::of("t");
        assert_eq!(tables.find(&netns).unwrap(), None);
        tables.remove(&netns).unwrap();
        for captures in [true, false] {
            tables.install(&netns, &Plan { captures, ..plan() }).unwrap();
            let found = tables.find(&netns).unwrap();
            assert_eq!(found, Some(Found { uid: "4d9e".to_owned(), captures, questions: [true, true] }));
            assert_eq!(Tables::of("other").find(&netns).unwrap(), None);
        }
        tables.remove(&netns).unwrap();
        assert_eq!(shown(&netns, &["list", "ruleset"]), "");
    }

    #[test]
    fn damage_is_noticed_and_what_others_do_is_none() {
        let netns = net::netns::unnamed().unwrap();
        let tables = Tables::of("t");
        let mut watched = tables.install(&netns, &plan()).unwrap();
        assert_eq!(watched.look().unwrap(), Standing::Intact);
        shown(&netns, &["add", "table", "inet", "others"]);
        assert_eq!(watched.look().unwrap(), Standing::Intact);
        for damage in [
            &["add", "rule", "inet", "ambit_t", "outbound", "accept"][..],
            &["insert", "rule", "inet", "ambit_t", "outbound", "return"],
            &["flush", "chain", "inet", "ambit_t", "inbound"],
            &["flush", "table", "inet", "ambit_t"],
            &["add", "chain", "inet", "ambit_t", "outbound", "{ policy drop; }"],
            &["delete", "table", "inet", "ambit_t"],
        ] {
            shown(&netns, damage);
            assert_eq!(watched.look().unwrap(), Standing::Damaged, "{damage:?}");
            watched = tables.install(&netns, &plan()).unwrap();
            assert_eq!(watched.look().unwrap(), Standing::Intact);
        }
    }

    #[test]
    fn the_nodes_table_is_what_its_documentation_says() {
        let netns = net::netns::unnamed().unwrap();
        let tables = Tables::of("t");
        let pods = ["10.0.0.5", "fd00::5"].map(|ip| ip.parse().unwrap()).into();
        let kubelet = Kubelet { cgroup: 1, level: 1 };
        let plan = NodePlan { kubelet, pods, mark: 0x0a00_0000, mask: 0x0f00_0000 };
        let mut watched = tables.install_on_node(&netns, &plan).unwrap();
        let all = shown(&netns, &["-nn", "list", "table", "inet", "ambit_t_node"]);
        for line in [
            "type filter hook output priority -150; policy accept;",
            "socket cgroupv2 level 1",
            "meta mark set meta mark & 0xfaffffff | 0x0a000000",
            "type nat hook postrouting priority 90; policy accept;",
            "meta mark & 0x0f000000 == 0x0a000000 ip daddr 10.0.0.5 snat ip to 169.254.7.127",
            "ip6 daddr fd00::5 snat ip6 to fd16:9254:7127:1337:ffff:ffff:ffff:ffff",
            "type filter hook forward priority 0; policy accept;",
            "ip saddr 169.254.7.127 drop",
        ] {
            assert!(all.contains(line), "{line} is not in\n{all}");
        }
        assert_eq!(tables.find(&netns).unwrap(), None, "it is no pod's");
        tables.remove(&netns).unwrap();
        assert_eq!(watched.look().unwrap(), Standing::Intact);
        tables.remove_from_node(&netns).unwrap();
        assert_eq!(watched.look().unwrap(), Standing::Damaged);
    }

    #[test]
    fn this_kernel_takes_it() {
        probe().unwrap();
    }
}
