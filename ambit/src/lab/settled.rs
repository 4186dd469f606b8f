//! Whether a change is in effect: every proxy has acknowledged it.

use std::net::SocketAddr;
use std::time::Duration;

use net::Netns;
use serde::Deserialize;

use super::api::Laggard;
use super::http;
use super::system::ISTIOD_HTTP;

const ISTIOD: &str = "istiod";

/// `/debug/sync` of the control plane: how far it and its proxies are.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
pub(crate) struct Sync {
    #[serde(default)]
    observed_revision: Option<u64>,
    #[serde(default)]
    proxies: Vec<Proxy>,
    #[serde(default)]
    rejected: Vec<Rejected>,
}

#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
struct Proxy {
    #[serde(default)]
    node: Option<String>,
    connected: bool,
    #[serde(default)]
    acked_revision: Option<u64>,
    #[serde(default)]
    nacks: Vec<Nack>,
}

#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
struct Nack {
    #[serde(default)]
    resource: Option<String>,
    message: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
struct Rejected {
    file: String,
    #[serde(default)]
    line: u32,
    message: String,
}

/// Asks the control plane; `fabric` is where it runs.
///
/// # Errors
/// Why there is no answer.
pub(crate) async fn ask(fabric: &Netns, patience: Duration) -> Result<Sync, Laggard> {
    let istiod = SocketAddr::from(([127, 0, 0, 1], ISTIOD_HTTP));
    let why = match http::get(fabric, istiod, "/debug/sync", &[], patience).await {
        Ok((200, body)) => match serde_json::from_slice(&body) {
            Ok(sync) => return Ok(sync),
            Err(error) => format!("/debug/sync makes no sense: {error}"),
        },
        Ok((status, _)) => format!("/debug/sync answers {status}"),
        Err(error) => error.to_string(),
    };
    Err(Laggard::new(ISTIOD, why))
}

/// Who has not taken in a revision yet, of the control plane and the nodes' proxies.
pub(crate) fn laggards<'a>(
    sync: &Sync,
    revision: u64,
    nodes: impl IntoIterator<Item = &'a str>,
) -> Vec<Laggard> {
    let mut late = Vec::new();
    if sync.observed_revision.is_none_or(|observed| observed < revision) {
        late.push(Laggard::new(ISTIOD, format!("has not read revision {revision} yet")));
    }
    let rejected = sync.rejected.iter().map(|r| format!("rejects {}:{}: {}", r.file, r.line, r.message));
    late.extend(rejected.map(|why| Laggard::new(ISTIOD, why)));
    for node in nodes {
        let who = format!("ztunnel@{node}");
        // A proxy that came back may still be listed with its former connection.
        let mut of_node =
            sync.proxies.iter().filter(|p| p.connected && p.node.as_deref() == Some(node)).peekable();
        if of_node.peek().is_none() {
            late.push(Laggard::new(who, "is not connected to istiod"));
            continue;
        }
        for proxy in of_node.filter(|p| p.acked_revision.is_none_or(|acked| acked < revision)) {
            let whys = proxy.nacks.iter().map(|nack| {
                format!("refuses {}: {}", nack.resource.as_deref().unwrap_or("a push"), nack.message)
            });
            let mut whys: Vec<String> = whys.collect();
            if whys.is_empty() {
                whys.push(format!("has not acknowledged revision {revision} yet"));
            }
            late.extend(whys.into_iter().map(|why| Laggard::new(&who, why)));
        }
    }
    late
}

#[cfg(test)]
mod tests {
    use super::*;

    fn late(json: &str) -> Vec<String> {
        let late = laggards(&serde_json::from_str(json).unwrap(), 7, ["node1"]);
        late.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn all_have_it_when_the_control_plane_and_each_proxy_do() {
        assert_eq!(
            late(
                r#"{"observed_revision": 8, "proxies": [{"node_id": "x", "node": "node1", "connected": true, "acked_revision": 7, "pending": [], "nacks": []}], "rejected": []}"#
            ),
            [""; 0]
        );
    }

    #[test]
    fn who_is_behind_is_named() {
        assert_eq!(
            late(
                r#"{"observed_revision": 6, "proxies": [{"node": "node1", "connected": true, "acked_revision": null}]}"#
            ),
            ["istiod: has not read revision 7 yet", "ztunnel@node1: has not acknowledged revision 7 yet"]
        );
        assert_eq!(
            late(
                r#"{"observed_revision": 7, "proxies": [{"node": "node1", "connected": false, "acked_revision": 7}]}"#
            ),
            ["ztunnel@node1: is not connected to istiod"]
        );
    }

    #[test]
    fn a_refusal_is_told_with_its_reason() {
        let json = r#"{"observed_revision": 7, "proxies": [{"node": "node1", "connected": true, "acked_revision": 6,
            "nacks": [{"type": "t", "resource": "app/p", "message": "no such field"}]}]}"#;
        assert_eq!(late(json), ["ztunnel@node1: refuses app/p: no such field"]);
    }
}
