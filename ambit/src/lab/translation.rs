//! Service translation: what kube-proxy does, in each node's namespace, by nftables.
//!
//! Each service port has a chain that sends a connection to one of the endpoints that the node is to use, chosen at
//! random; two maps, one a family, lead there from the virtual IP. The whole table is replaced in one transaction, so no packet sees half of it, and
//! connections that are under way keep their translation.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::io;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::process::Stdio;

use net::Netns;
use thiserror::Error;
use tokio::io::AsyncWriteExt as _;
use tokio::process::Command;

use super::address::{RESOLVER, RESOLVER6, SERVICES, SERVICES6};
use super::control::endpoints::{Place, backends};
use super::control::services;
use super::store::{Store, name, namespace};

const TABLE: &str = "ambit-services";

/// The endpoints behind each virtual address, protocol and port.
type Translations = BTreeMap<(IpAddr, String, u16), (String, Vec<(IpAddr, u16)>)>;

/// The table of a node that follows from the objects, as `nft -f` reads it.
pub(crate) fn ruleset(store: &Store, node: &str) -> String {
    let at = Place::of(store, node);
    let mut all = Translations::new();
    for service in store.services() {
        for ip in services::addresses(service) {
            for port in backends(service, store, &at, ip.is_ipv6()) {
                let comment =
                    format!("{}/{}:{}", namespace(&service.metadata), name(&service.metadata), port.port);
                let endpoints = port.endpoints.into_iter().collect();
                all.insert((ip, port.protocol, port.port), (comment, endpoints));
            }
        }
    }
    render(&all)
}

fn render(all: &Translations) -> String {
    let mut text = format!("add table inet {TABLE}\ndelete table inet {TABLE}\ntable inet {TABLE} {{\n");
    let reachable = || all.iter().filter(|(_, (_, endpoints))| !endpoints.is_empty()).enumerate();
    // Writing to a String cannot fail.
    for (n, ((ip, protocol, _), (comment, endpoints))) in reachable() {
        let family = if ip.is_ipv4() { "ip" } else { "ip6" };
        let map: Vec<String> =
            endpoints.iter().enumerate().map(|(n, (ip, port))| format!("{n} : {ip} . {port}")).collect();
        let _ = write!(
            text,
            "  chain service{n} {{\n    meta l4proto {protocol} dnat {family} to numgen random mod {} map {{ {} }} comment \"{comment}\"\n  }}\n",
            endpoints.len(),
            map.join(", "),
        );
    }
    for (map, kind, v6) in [("v4", "ipv4_addr", false), ("v6", "ipv6_addr", true)] {
        let elements: Vec<String> = reachable()
            .filter(|(_, ((ip, _, _), _))| ip.is_ipv6() == v6)
            .map(|(n, ((ip, protocol, port), _))| format!("{ip} . {protocol} . {port} : goto service{n}"))
            .collect();
        let _ = write!(text, "  map {map} {{\n    type {kind} . inet_proto . inet_service : verdict\n");
        if !elements.is_empty() {
            let _ = writeln!(text, "    elements = {{ {} }}", elements.join(",\n      "));
        }
        text.push_str("  }\n");
    }
    let _ = write!(
        text,
        "  chain services {{
    ip daddr . meta l4proto . th dport vmap @v4
    ip6 daddr . meta l4proto . th dport vmap @v6
  }}
  chain prerouting {{
    type nat hook prerouting priority -100; policy accept;
    jump services
  }}
  chain output {{
    type nat hook output priority -100; policy accept;
    jump services
  }}
  chain postrouting {{
    type nat hook postrouting priority 100; policy accept;
    {}
  }}
  chain unanswered {{
    ip daddr {RESOLVER} return
    ip6 daddr {RESOLVER6} return
    ip daddr {SERVICES} meta l4proto tcp reject with tcp reset
    ip daddr {SERVICES} reject
    ip6 daddr {SERVICES6} meta l4proto tcp reject with tcp reset
    ip6 daddr {SERVICES6} reject
  }}
  chain forward {{
    type filter hook forward priority 0; policy accept;
    jump unanswered
  }}
  chain local {{
    type filter hook output priority 0; policy accept;
    jump unanswered
  }}
}}
",
        hairpins(all)
    );
    text
}

/// A pod that reaches itself by a service must not see its own address as its peer's: it would answer itself.
fn hairpins(all: &Translations) -> String {
    let mut pairs: [Vec<String>; 2] = [Vec::new(), Vec::new()];
    for (ip, _) in all.values().flat_map(|(_, endpoints)| endpoints) {
        let pair = format!("{ip} . {ip}");
        let of_family = &mut pairs[usize::from(ip.is_ipv6())];
        if !of_family.contains(&pair) {
            of_family.push(pair);
        }
    }
    let rule = |family: &str, pairs: &[String]| {
        let pairs = pairs.join(", ");
        format!("ct status dnat {family} saddr . {family} daddr {{ {pairs} }} masquerade")
    };
    let families = ["ip", "ip6"].into_iter().zip(&pairs).filter(|(_, pairs)| !pairs.is_empty());
    families.map(|(family, pairs)| rule(family, pairs)).collect::<Vec<_>>().join("\n    ")
}

/// Why the table could not be put in place.
#[derive(Debug, Error)]
pub(crate) enum TranslationError {
    #[error("cannot run {}: {source}", program.display())]
    Run {
        program: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("cannot enter the node's namespace: {0}")]
    Enter(#[from] net::NetnsError),
    #[error("nft refuses the services' table: {0}")]
    Refused(String),
}

/// Puts a table in place in a namespace.
pub(crate) async fn install(netns: &Netns, nft: &Path, ruleset: &str) -> Result<(), TranslationError> {
    let failed = |source| TranslationError::Run { program: nft.to_owned(), source };
    let mut command = Command::new(nft);
    command.args(["-f", "-"]).stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::piped());
    // A child begins in the namespace of the thread that starts it.
    let mut child = netns.run(|| command.kill_on_drop(true).spawn())?.map_err(failed)?;
    if let Some(mut stdin) = child.stdin.take() {
        // Where it ended before it read all, its status tells more.
        let _ = stdin.write_all(ruleset.as_bytes()).await;
    }
    let output = child.wait_with_output().await.map_err(failed)?;
    if output.status.success() {
        return Ok(());
    }
    Err(TranslationError::Refused(String::from_utf8_lossy(&output.stderr).trim().to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn translations(of: &[(&str, &[(&str, u16)])]) -> Translations {
        let one = |(ip, endpoints): &(&str, &[(&str, u16)])| {
            let endpoints = endpoints.iter().map(|(ip, port)| (ip.parse().unwrap(), *port)).collect();
            ((ip.parse().unwrap(), "tcp".to_owned(), 80), ("x/web:80".to_owned(), endpoints))
        };
        of.iter().map(one).collect()
    }

    #[test]
    fn a_virtual_ip_leads_to_each_of_its_endpoints() {
        let text = render(&translations(&[("10.96.1.0", &[("10.244.1.2", 8080), ("10.244.2.2", 8081)])]));
        assert!(text.contains(
            "meta l4proto tcp dnat ip to numgen random mod 2 map { 0 : 10.244.1.2 . 8080, 1 : 10.244.2.2 . 8081 }"
        ));
        assert!(text.contains("10.96.1.0 . tcp . 80 : goto service0"));
        assert!(text.contains("{ 10.244.1.2 . 10.244.1.2, 10.244.2.2 . 10.244.2.2 } masquerade"));
    }

    #[test]
    fn a_service_without_endpoints_is_refused_not_translated() {
        let text = render(&translations(&[("10.96.1.0", &[])]));
        assert!(!text.contains("goto") && !text.contains("elements") && !text.contains("masquerade"));
        assert!(text.contains("ip daddr 10.96.0.0/16 meta l4proto tcp reject with tcp reset"));
    }

    #[test]
    fn families_do_not_mix() {
        let text = render(&translations(&[("fd00:10:96::100", &[("fd00:10:244:1::2", 8080)])]));
        assert!(text.contains("dnat ip6 to numgen random mod 1 map { 0 : fd00:10:244:1::2 . 8080 }"));
        assert!(text.contains("ct status dnat ip6 saddr . ip6 daddr"));
    }
}
