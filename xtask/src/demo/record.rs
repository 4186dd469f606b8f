//! Access records of a ztunnel, as its log has them.

use serde_json::Value;

/// What a record says about a connection that came in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Record {
    /// Who the client proved to be.
    pub(super) source_identity: Option<String>,
    /// Why it failed, if it did.
    pub(super) error: Option<String>,
}

/// The inbound records of a client, by its address, in their order. Lines may be text or JSON.
pub(super) fn inbound_from(log: &str, client_ip: &str) -> Vec<Record> {
    let from_client = |addr: &str| {
        let ip = addr.rsplit_once(':').map_or(addr, |(ip, _)| ip);
        ip.trim_matches(['[', ']']) == client_ip
    };
    let records = log.lines().filter_map(|line| {
        let field = |key: &str| field(line, key);
        // A connection is announced at debug level too; only its end has a duration.
        let ours = field("direction").as_deref() == Some("inbound") && field("duration").is_some();
        (ours && field("src.addr").is_some_and(|a| from_client(&a)))
            .then(|| Record { source_identity: field("src.identity"), error: field("error") })
    });
    records.collect()
}

fn field(line: &str, key: &str) -> Option<String> {
    if line.starts_with('{') {
        let json: Value = serde_json::from_str(line).ok()?;
        return json.get(key)?.as_str().map(str::to_owned);
    }
    let value = line.split(&format!(" {key}=")).nth(1)?;
    Some(match value.strip_prefix('"') {
        Some(quoted) => quoted.split('"').next().unwrap_or(quoted).to_owned(),
        // The error is last and may have spaces.
        None if key == "error" => value.to_owned(),
        None => value.split(' ').next().unwrap_or(value).to_owned(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = r#"2026-01-01T00:00:00Z  INFO ztunnel: ready
2026-01-01T00:00:00Z  INFO access: connection complete src.addr=10.1.1.2:4000 src.workload="frontend-0" src.identity=spiffe://cluster.local/ns/shop/sa/frontend dst.addr=10.1.2.2:15008 direction="inbound" bytes_sent=5 bytes_recv=42 duration="1ms"
2026-01-01T00:00:00Z  INFO access: connection complete src.addr=10.1.1.2:4000 direction="outbound" duration="1ms"
2026-01-01T00:00:00Z  WARN access: connection failed src.addr=10.1.1.3:4001 direction="inbound" bytes_sent=0 bytes_recv=0 duration="0ms" error=denied by policy shop/carts"#;

    #[test]
    fn a_clients_records_are_found_in_text() {
        let complete = inbound_from(TEXT, "10.1.1.2");
        let identity = Some("spiffe://cluster.local/ns/shop/sa/frontend".to_owned());
        assert_eq!(complete, [Record { source_identity: identity, error: None }]);
        let denied = inbound_from(TEXT, "10.1.1.3");
        assert_eq!(
            denied,
            [Record { source_identity: None, error: Some("denied by policy shop/carts".into()) }]
        );
    }

    #[test]
    fn a_clients_records_are_found_in_json() {
        let log = r#"{"message":"connection complete","src.addr":"[fd00::2]:4000","src.identity":"spiffe://a/ns/b/sa/c","direction":"inbound","duration":"1ms"}"#;
        let records = inbound_from(log, "fd00::2");
        assert_eq!(records, [Record { source_identity: Some("spiffe://a/ns/b/sa/c".into()), error: None }]);
    }
}
