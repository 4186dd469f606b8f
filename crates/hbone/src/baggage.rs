//! The `baggage` header: who a workload is, for the other side's telemetry.

use std::fmt::Write;

use http::HeaderValue;
use model::{Workload, WorkloadKind};

/// How much of a header is read, in bytes; W3C Baggage asks for no more.
const HEADER_MAX: usize = 8192;
/// How many members are read.
const MEMBERS_MAX: usize = 180;
/// The longest value that is kept, in bytes after decoding; Kubernetes names end at 253. All seven, escaped throughout,
/// stay below what is read of a header.
const VALUE_MAX: usize = 256;

/// What the two ends of a tunnel tell each other about themselves, for metrics and logs.
///
/// It is the peer's claim, proven by nothing; nothing may be decided by it. Empty texts are absent parts.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Baggage {
    /// `k8s.cluster.name`
    pub cluster: Option<String>,
    /// `k8s.namespace.name`
    pub namespace: Option<String>,
    /// `k8s.deployment.name` and its likes.
    pub workload: Option<(WorkloadKind, String)>,
    /// `service.name`, the canonical service.
    pub service_name: Option<String>,
    /// `service.version`, the canonical revision.
    pub service_version: Option<String>,
    /// `cloud.region`
    pub region: Option<String>,
    /// `cloud.availability_zone`
    pub zone: Option<String>,
}

impl Baggage {
    /// Reads a header (W3C Baggage 3.2). Total: unknown keys, properties, and members that are malformed or too large
    /// are passed over, and of a key that stands twice the first is taken.
    pub fn decode(header: &str) -> Self {
        let mut out = Self::default();
        out.read(header);
        out
    }

    /// Reads several headers as if they were one.
    pub(crate) fn decode_all<'a>(headers: impl Iterator<Item = &'a HeaderValue>) -> Self {
        let mut out = Self::default();
        for header in headers.take(8).filter_map(|h| h.to_str().ok()) {
            out.read(header);
        }
        out
    }

    /// Whether nothing is known.
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    fn read(&mut self, header: &str) {
        let end = header.floor_char_boundary(HEADER_MAX);
        for member in header[..end].split(',').take(MEMBERS_MAX) {
            let Some((key, rest)) = member.split_once('=') else { continue };
            let value = rest.split(';').next().unwrap_or_default();
            if let Some(slot) = Slot::of(key.trim())
                && let Some(value) = decode_value(value.trim())
            {
                slot.fill(self, value);
            }
        }
    }

    /// The header's text. Parts that are absent or too long to be read back are left out.
    pub fn encode(&self) -> String {
        let workload = self.workload.as_ref();
        let parts = [
            ("k8s.cluster.name", &self.cluster),
            ("k8s.namespace.name", &self.namespace),
            (workload.map_or("", |(kind, _)| workload_key(*kind)), &workload.map(|(_, name)| name.clone())),
            ("service.name", &self.service_name),
            ("service.version", &self.service_version),
            ("cloud.region", &self.region),
            ("cloud.availability_zone", &self.zone),
        ];
        let mut out = String::new();
        for (key, value) in parts {
            let Some(value) = value.as_deref().filter(|v| is_value(v)) else { continue };
            if !out.is_empty() {
                out.push(',');
            }
            out.push_str(key);
            out.push('=');
            encode_value(value, &mut out);
        }
        out
    }
}

/// A workload as it presents itself.
impl From<&Workload> for Baggage {
    fn from(w: &Workload) -> Self {
        let known = |s: &str| (!s.is_empty()).then(|| s.to_owned());
        let name = if w.workload_name.is_empty() { &w.name } else { &w.workload_name };
        Self {
            cluster: known(&w.cluster_id),
            namespace: known(&w.namespace),
            workload: known(name).map(|name| (w.kind, name)),
            service_name: known(&w.canonical_name),
            service_version: known(&w.canonical_revision),
            region: known(&w.locality.region),
            zone: known(&w.locality.zone),
        }
    }
}

/// A [`Baggage`] ready to be sent: formatted once a workload, cloned at each request for the price of a counter.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BaggageHeader(HeaderValue);

impl BaggageHeader {
    /// The header's text.
    pub fn as_str(&self) -> &str {
        self.0.to_str().unwrap_or_default()
    }

    pub(crate) fn header(&self) -> HeaderValue {
        self.0.clone()
    }
}

impl From<&Baggage> for BaggageHeader {
    fn from(baggage: &Baggage) -> Self {
        // Encoding leaves printable ASCII only, which every header value may hold.
        Self(HeaderValue::from_str(&baggage.encode()).unwrap_or_else(|_| HeaderValue::from_static("")))
    }
}

/// Where a key's value is kept.
enum Slot {
    Cluster,
    Namespace,
    Workload(WorkloadKind),
    ServiceName,
    ServiceVersion,
    Region,
    Zone,
}

impl Slot {
    fn of(key: &str) -> Option<Self> {
        Some(match key {
            "k8s.cluster.name" => Self::Cluster,
            "k8s.namespace.name" => Self::Namespace,
            "k8s.deployment.name" => Self::Workload(WorkloadKind::Deployment),
            "k8s.cronjob.name" => Self::Workload(WorkloadKind::CronJob),
            "k8s.pod.name" => Self::Workload(WorkloadKind::Pod),
            "k8s.job.name" => Self::Workload(WorkloadKind::Job),
            "service.name" => Self::ServiceName,
            "service.version" => Self::ServiceVersion,
            "cloud.region" => Self::Region,
            "cloud.availability_zone" => Self::Zone,
            _ => return None,
        })
    }

    fn fill(self, baggage: &mut Baggage, value: String) {
        let slot = match self {
            Self::Workload(kind) => {
                baggage.workload.get_or_insert((kind, value));
                return;
            }
            Self::Cluster => &mut baggage.cluster,
            Self::Namespace => &mut baggage.namespace,
            Self::ServiceName => &mut baggage.service_name,
            Self::ServiceVersion => &mut baggage.service_version,
            Self::Region => &mut baggage.region,
            Self::Zone => &mut baggage.zone,
        };
        slot.get_or_insert(value);
    }
}

fn workload_key(kind: WorkloadKind) -> &'static str {
    match kind {
        WorkloadKind::Deployment => "k8s.deployment.name",
        WorkloadKind::CronJob => "k8s.cronjob.name",
        WorkloadKind::Pod => "k8s.pod.name",
        WorkloadKind::Job => "k8s.job.name",
    }
}

/// Control characters would end up in logs.
fn is_value(value: &str) -> bool {
    !value.is_empty() && value.len() <= VALUE_MAX && !value.chars().any(char::is_control)
}

fn decode_value(raw: &str) -> Option<String> {
    if raw.len() > 3 * VALUE_MAX {
        return None;
    }
    let mut out = Vec::with_capacity(raw.len());
    let mut bytes = raw.bytes();
    while let Some(b) = bytes.next() {
        if b != b'%' {
            out.push(b);
            continue;
        }
        let mut digit = || char::from(bytes.next()?).to_digit(16).and_then(|d| u8::try_from(d).ok());
        out.push(digit()? << 4 | digit()?);
    }
    String::from_utf8(out).ok().filter(|v| is_value(v))
}

fn encode_value(value: &str, out: &mut String) {
    for b in value.bytes() {
        // baggage-octet, without the sign that starts an escape.
        if matches!(b, 0x21 | 0x23..=0x24 | 0x26..=0x2b | 0x2d..=0x3a | 0x3c..=0x5b | 0x5d..=0x7e) {
            out.push(char::from(b));
        } else {
            let _ = write!(out, "%{b:02X}");
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn full() -> Baggage {
        Baggage {
            cluster: Some("Kubernetes".into()),
            namespace: Some("shop".into()),
            workload: Some((WorkloadKind::Deployment, "catalog".into())),
            service_name: Some("catalog".into()),
            service_version: Some("v1".into()),
            region: Some("r1".into()),
            zone: Some("z1".into()),
        }
    }

    #[test]
    fn every_part_has_its_key() {
        let text = "k8s.cluster.name=Kubernetes,k8s.namespace.name=shop,k8s.deployment.name=catalog,\
                    service.name=catalog,service.version=v1,cloud.region=r1,cloud.availability_zone=z1";
        assert_eq!(full().encode(), text);
        assert_eq!(Baggage::decode(text), full());
        assert_eq!(BaggageHeader::from(&full()).as_str(), text);
    }

    #[test]
    fn what_peers_may_add_is_tolerated() {
        let text = " k8s.namespace.name = shop ;prop=1;flag , unknown=x,,=,noequals, service.name=a%20b%2Cc ";
        let read = Baggage::decode(text);
        assert_eq!(read.namespace.as_deref(), Some("shop"));
        assert_eq!(read.service_name.as_deref(), Some("a b,c"));
        assert_eq!(Baggage { namespace: None, service_name: None, ..read }, Baggage::default());
    }

    #[test]
    fn a_malformed_value_is_passed_over() {
        for bad in ["%", "%2", "%zz", "%ff", "a%0Ab", "", &"x".repeat(VALUE_MAX + 1)] {
            assert!(Baggage::decode(&format!("service.name={bad}")).is_empty(), "{bad}");
        }
    }

    #[test]
    fn of_a_key_that_stands_twice_the_first_is_taken() {
        let read = Baggage::decode("k8s.pod.name=a,k8s.job.name=b,service.name=c,service.name=d");
        assert_eq!(read.workload, Some((WorkloadKind::Pod, "a".into())));
        assert_eq!(read.service_name.as_deref(), Some("c"));
    }

    #[test]
    fn no_more_than_the_bound_is_read() {
        let long = format!("{}service.name=late", "x=y,".repeat(HEADER_MAX / 4));
        assert!(Baggage::decode(&long).is_empty());
        let many = format!("{}service.name=late", "x=,".repeat(MEMBERS_MAX));
        assert!(Baggage::decode(&many).is_empty());
    }

    proptest! {
        #[test]
        fn any_text_is_read_without_harm(s in ".{0,200}") {
            let read = Baggage::decode(&s);
            prop_assert_eq!(Baggage::decode(&read.encode()), read);
        }

        #[test]
        fn every_value_survives(name in "[^\\p{C}]{1,60}", zone in proptest::option::of("[^\\p{C}]{1,60}")) {
            let baggage = Baggage { service_name: Some(name), zone, ..Baggage::default() };
            prop_assert_eq!(Baggage::decode(&baggage.encode()), baggage);
        }
    }
}
