//! The labels of L4 families.

use std::sync::Arc;

use model::{Service, SpiffeId, Workload};
use prometheus_client::encoding::{EncodeLabel as _, EncodeLabelSet, LabelSetEncoder};

/// Which proxy of a connection counts it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Reporter {
    /// The client's.
    Source,
    /// The server's.
    Destination,
    /// The one between.
    Waypoint,
}

impl Reporter {
    fn as_str(self) -> &'static str {
        match self {
            Self::Source => "source",
            Self::Destination => "destination",
            Self::Waypoint => "waypoint",
        }
    }
}

/// Whether the connection was under mutual TLS.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Security {
    /// It was, on this proxy's side of it.
    MutualTls,
    /// It was not, or that is not known.
    Unknown,
}

impl Security {
    fn as_str(self) -> &'static str {
        match self {
            Self::MutualTls => "mutual_tls",
            Self::Unknown => UNKNOWN,
        }
    }
}

macro_rules! flags {
    ($($(#[$doc:meta])* $variant:ident = $text:literal,)+) => {
        /// Why a connection did not come to stand, or was ended by the mesh.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        pub enum ResponseFlags {
            $($(#[$doc])* $variant,)+
        }

        impl ResponseFlags {
            /// All of them, in the order of their discriminants.
            pub(crate) const ALL: &[Self] = &[$(Self::$variant),+];

            /// The label's value.
            pub fn as_str(self) -> &'static str {
                match self {
                    $(Self::$variant => $text,)+
                }
            }
        }
    };
}

flags! {
    /// Nothing to report.
    None = "-",
    /// Policy denied it.
    Deny = "DENY",
    /// The next hop could not be connected to.
    Connect = "CONNECT",
    /// The TLS handshake failed, either side.
    TlsFailure = "TLS_FAILURE",
    /// The HTTP/2 handshake failed after TLS.
    H2HandshakeFailure = "H2_HANDSHAKE_FAILURE",
    /// It timed out where a NetworkPolicy would make it do so.
    NetworkPolicy = "NETWORK_POLICY",
    /// The workload has no certificate, or the peer's is not the expected one.
    IdentityError = "IDENTITY_ERROR",
    /// The peer's certificate is revoked.
    CertRevoked = "CERT_REVOKED",
    /// A workload has as much of the proxy as it may.
    Quota = "QUOTA",
}

const UNKNOWN: &str = "unknown";

/// The labels of one end.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub(crate) struct EndLabels {
    workload: Option<Arc<str>>,
    namespace: Option<Arc<str>>,
    canonical_service: Option<Arc<str>>,
    canonical_revision: Option<Arc<str>>,
    principal: Option<SpiffeId>,
    cluster: Option<Arc<str>>,
}

impl EndLabels {
    /// A proven identity beats the one that the workload should have.
    pub(crate) fn new(workload: Option<&Workload>, identity: Option<&SpiffeId>) -> Self {
        let Some(w) = workload else {
            return Self { principal: identity.cloned(), ..Self::default() };
        };
        Self {
            workload: Some(w.workload_name.clone()),
            namespace: Some(w.namespace.clone()),
            canonical_service: Some(w.canonical_name.clone()),
            canonical_revision: Some(w.canonical_revision.clone()),
            principal: identity.cloned(),
            cluster: Some(w.cluster_id.clone()),
        }
    }
}

/// The labels of one L4 series, `response_flags` apart.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct TcpLabels {
    reporter: Reporter,
    source: EndLabels,
    destination: EndLabels,
    service: Option<(Arc<str>, Arc<str>, Arc<str>)>,
    security: Security,
}

impl TcpLabels {
    pub(crate) fn new(
        reporter: Reporter,
        source: EndLabels,
        destination: EndLabels,
        service: Option<&Service>,
        security: Security,
    ) -> Self {
        let service = service.map(|s| (s.hostname.clone(), s.name.clone(), s.namespace.clone()));
        Self { reporter, source, destination, service, security }
    }
}

/// One series with its flags, as it is exposed.
pub(crate) struct Flagged<'a>(pub(crate) &'a TcpLabels, pub(crate) ResponseFlags);

impl EncodeLabelSet for Flagged<'_> {
    fn encode(&self, encoder: &mut LabelSetEncoder<'_>) -> Result<(), std::fmt::Error> {
        let Self(labels, flags) = self;
        let mut put = |key: &'static str, value: Option<&str>| {
            let value = value.filter(|v| !v.is_empty()).unwrap_or(UNKNOWN);
            (key, value).encode(encoder.encode_label())
        };
        put("reporter", Some(labels.reporter.as_str()))?;
        macro_rules! end {
            ($prefix:literal, $end:expr) => {
                let end = $end;
                put(concat!($prefix, "_workload"), end.workload.as_deref())?;
                put(concat!($prefix, "_workload_namespace"), end.namespace.as_deref())?;
                put(concat!($prefix, "_canonical_service"), end.canonical_service.as_deref())?;
                put(concat!($prefix, "_canonical_revision"), end.canonical_revision.as_deref())?;
                put(
                    concat!($prefix, "_principal"),
                    end.principal.as_ref().map(ToString::to_string).as_deref(),
                )?;
                put(concat!($prefix, "_app"), end.canonical_service.as_deref())?;
                put(concat!($prefix, "_version"), end.canonical_revision.as_deref())?;
                put(concat!($prefix, "_cluster"), end.cluster.as_deref())?;
            };
        }
        end!("source", &labels.source);
        end!("destination", &labels.destination);
        let service = labels.service.as_ref();
        put("destination_service", service.map(|s| &*s.0))?;
        put("destination_service_name", service.map(|s| &*s.1))?;
        put("destination_service_namespace", service.map(|s| &*s.2))?;
        put("request_protocol", Some("tcp"))?;
        put("response_flags", Some(flags.as_str()))?;
        put("connection_security_policy", Some(labels.security.as_str()))
    }
}
