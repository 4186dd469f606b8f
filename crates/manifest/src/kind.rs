//! Which kinds there are, and which of them something is done with.

use std::fmt;

use serde::Serialize;

use crate::suggest::nearest;

/// A kind that is used.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize)]
#[expect(missing_docs, reason = "the names are the kinds'")]
pub enum Kind {
    Namespace,
    Node,
    ServiceAccount,
    ConfigMap,
    Deployment,
    Pod,
    Service,
    EndpointSlice,
    ServiceEntry,
    WorkloadEntry,
    Gateway,
    AuthorizationPolicy,
    PeerAuthentication,
}

struct Row {
    kind: Kind,
    name: &'static str,
    plural: &'static str,
    short: &'static [&'static str],
    group: &'static str,
    versions: &'static [&'static str],
    namespaced: bool,
}

const NETWORKING: &str = "networking.istio.io";
const SECURITY: &str = "security.istio.io";
const GATEWAY: &str = "gateway.networking.k8s.io";

#[rustfmt::skip]
const USED: &[Row] = &[
    Row { kind: Kind::Namespace, name: "Namespace", plural: "namespaces", short: &["ns"], group: "", versions: &["v1"], namespaced: false },
    Row { kind: Kind::Node, name: "Node", plural: "nodes", short: &["no"], group: "", versions: &["v1"], namespaced: false },
    Row { kind: Kind::ServiceAccount, name: "ServiceAccount", plural: "serviceaccounts", short: &["sa"], group: "", versions: &["v1"], namespaced: true },
    Row { kind: Kind::ConfigMap, name: "ConfigMap", plural: "configmaps", short: &["cm"], group: "", versions: &["v1"], namespaced: true },
    Row { kind: Kind::Deployment, name: "Deployment", plural: "deployments", short: &["deploy"], group: "apps", versions: &["v1"], namespaced: true },
    Row { kind: Kind::Pod, name: "Pod", plural: "pods", short: &["po"], group: "", versions: &["v1"], namespaced: true },
    Row { kind: Kind::Service, name: "Service", plural: "services", short: &["svc"], group: "", versions: &["v1"], namespaced: true },
    Row { kind: Kind::EndpointSlice, name: "EndpointSlice", plural: "endpointslices", short: &[], group: "discovery.k8s.io", versions: &["v1"], namespaced: true },
    Row { kind: Kind::ServiceEntry, name: "ServiceEntry", plural: "serviceentries", short: &["se"], group: NETWORKING, versions: &["v1", "v1beta1", "v1alpha3"], namespaced: true },
    Row { kind: Kind::WorkloadEntry, name: "WorkloadEntry", plural: "workloadentries", short: &["we"], group: NETWORKING, versions: &["v1", "v1beta1", "v1alpha3"], namespaced: true },
    Row { kind: Kind::Gateway, name: "Gateway", plural: "gateways", short: &["gtw"], group: GATEWAY, versions: &["v1", "v1beta1"], namespaced: true },
    Row { kind: Kind::AuthorizationPolicy, name: "AuthorizationPolicy", plural: "authorizationpolicies", short: &["ap"], group: SECURITY, versions: &["v1", "v1beta1"], namespaced: true },
    Row { kind: Kind::PeerAuthentication, name: "PeerAuthentication", plural: "peerauthentications", short: &["pa"], group: SECURITY, versions: &["v1", "v1beta1"], namespaced: true },
];

/// Kinds that a cluster's files are full of, by group; any version of them is known.
const KNOWN: &[(&str, &[&str])] = &[
    (
        "",
        &[
            "Endpoints",
            "Event",
            "LimitRange",
            "PersistentVolume",
            "PersistentVolumeClaim",
            "PodTemplate",
            "ReplicationController",
            "ResourceQuota",
            "Secret",
        ],
    ),
    ("apps", &["ControllerRevision", "DaemonSet", "ReplicaSet", "StatefulSet"]),
    ("batch", &["CronJob", "Job"]),
    ("autoscaling", &["HorizontalPodAutoscaler"]),
    ("policy", &["PodDisruptionBudget"]),
    ("networking.k8s.io", &["Ingress", "IngressClass", "IPAddress", "NetworkPolicy", "ServiceCIDR"]),
    ("rbac.authorization.k8s.io", &["ClusterRole", "ClusterRoleBinding", "Role", "RoleBinding"]),
    (
        "admissionregistration.k8s.io",
        &[
            "MutatingWebhookConfiguration",
            "ValidatingAdmissionPolicy",
            "ValidatingAdmissionPolicyBinding",
            "ValidatingWebhookConfiguration",
        ],
    ),
    ("apiextensions.k8s.io", &["CustomResourceDefinition"]),
    ("apiregistration.k8s.io", &["APIService"]),
    ("certificates.k8s.io", &["CertificateSigningRequest", "ClusterTrustBundle"]),
    ("coordination.k8s.io", &["Lease"]),
    ("events.k8s.io", &["Event"]),
    ("flowcontrol.apiserver.k8s.io", &["FlowSchema", "PriorityLevelConfiguration"]),
    ("node.k8s.io", &["RuntimeClass"]),
    ("scheduling.k8s.io", &["PriorityClass"]),
    ("storage.k8s.io", &["CSIDriver", "CSINode", "CSIStorageCapacity", "StorageClass", "VolumeAttachment"]),
    (
        GATEWAY,
        &[
            "BackendTLSPolicy",
            "GRPCRoute",
            "GatewayClass",
            "HTTPRoute",
            "ReferenceGrant",
            "TCPRoute",
            "TLSRoute",
            "UDPRoute",
        ],
    ),
    ("gateway.networking.x-k8s.io", &["XBackendTrafficPolicy", "XListenerSet", "XMesh"]),
    (
        NETWORKING,
        &[
            "DestinationRule",
            "EnvoyFilter",
            "Gateway",
            "ProxyConfig",
            "Sidecar",
            "VirtualService",
            "WorkloadGroup",
        ],
    ),
    (SECURITY, &["RequestAuthentication"]),
    ("telemetry.istio.io", &["Telemetry"]),
    ("extensions.istio.io", &["TrafficExtension", "WasmPlugin"]),
    ("install.istio.io", &["IstioOperator"]),
    ("kustomize.config.k8s.io", &["Component", "Kustomization"]),
];

/// What an `apiVersion` and a `kind` stand for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Lookup {
    /// A kind that is used.
    Used(Kind),
    /// A kind that exists and that nothing is done with yet.
    KnownUnused {
        /// The API group, empty for the core.
        group: String,
        /// The kind.
        kind: String,
    },
    /// None, and what to do about it.
    Unknown {
        /// What is wrong.
        message: String,
        /// What may have been meant.
        remedy: Option<String>,
    },
}

impl Kind {
    /// All kinds that are used.
    pub const ALL: [Self; 13] = [
        Self::Namespace,
        Self::Node,
        Self::ServiceAccount,
        Self::ConfigMap,
        Self::Deployment,
        Self::Pod,
        Self::Service,
        Self::EndpointSlice,
        Self::ServiceEntry,
        Self::WorkloadEntry,
        Self::Gateway,
        Self::AuthorizationPolicy,
        Self::PeerAuthentication,
    ];

    fn row(self) -> &'static Row {
        // The table has a row for each kind; a test sees to it.
        USED.iter().find(|row| row.kind == self).unwrap_or(&USED[0])
    }

    /// The kind's name in YAML.
    pub fn as_str(self) -> &'static str {
        self.row().name
    }

    /// The API group, empty for the core.
    pub fn group(self) -> &'static str {
        self.row().group
    }

    /// The newest `apiVersion`.
    pub fn api_version(self) -> String {
        join(self.row().group, self.row().versions[0])
    }

    /// The lower-case plural of URLs and of `get`.
    pub fn plural(self) -> &'static str {
        self.row().plural
    }

    /// Whether objects of the kind live in a namespace.
    pub fn is_namespaced(self) -> bool {
        self.row().namespaced
    }

    /// The kind that a person means by a word on the command line: a name, a plural, a short name, in any case.
    pub fn from_word(word: &str) -> Option<Self> {
        let word = word.to_lowercase();
        let is = |row: &&Row| {
            row.name.to_lowercase() == word || row.plural == word || row.short.contains(&word.as_str())
        };
        USED.iter().find(is).map(|row| row.kind)
    }

    /// Finds what an `apiVersion` and a `kind` stand for.
    pub fn lookup(api_version: &str, kind: &str) -> Lookup {
        let (group, version) = api_version.split_once('/').unwrap_or(("", api_version));
        if let Some(row) = USED.iter().find(|row| row.name == kind && row.group == group) {
            if row.versions.contains(&version) {
                return Lookup::Used(row.kind);
            }
            let versions: Vec<String> =
                row.versions.iter().map(|v| format!("`{}`", join(group, v))).collect();
            return Lookup::Unknown {
                message: format!("{kind} has no version `{api_version}`"),
                remedy: Some(format!("use {}", versions.join(" or "))),
            };
        }
        if KNOWN.iter().any(|(g, kinds)| *g == group && kinds.contains(&kind)) {
            return Lookup::KnownUnused { group: group.to_owned(), kind: kind.to_owned() };
        }
        let elsewhere =
            USED.iter().find(|row| row.name == kind).map(|row| join(row.group, row.versions[0])).or_else(
                || KNOWN.iter().find(|(_, kinds)| kinds.contains(&kind)).map(|(g, _)| (*g).to_owned()),
            );
        if let Some(right) = elsewhere {
            return Lookup::Unknown {
                message: format!("`{api_version}` has no kind `{kind}`"),
                remedy: Some(format!("{kind} is of `{right}`")),
            };
        }
        let names =
            USED.iter().map(|row| row.name).chain(KNOWN.iter().flat_map(|(_, kinds)| kinds.iter().copied()));
        Lookup::Unknown {
            message: format!("unknown kind `{kind}` in `{api_version}`"),
            remedy: nearest(kind, names).map(|name| format!("did you mean `{name}`?")),
        }
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

fn join(group: &str, version: &str) -> String {
    if group.is_empty() { version.to_owned() } else { format!("{group}/{version}") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_kind_has_its_row() {
        for kind in Kind::ALL {
            assert_eq!(kind.row().kind, kind);
            assert_eq!(Kind::lookup(&kind.api_version(), kind.as_str()), Lookup::Used(kind));
            assert_eq!(Kind::from_word(kind.plural()), Some(kind));
        }
        assert_eq!(USED.len(), Kind::ALL.len());
        assert_eq!(Kind::from_word("SVC"), Some(Kind::Service));
    }

    #[test]
    fn all_versions_of_mesh_kinds_are_read() {
        for (version, kind) in [
            ("security.istio.io/v1", "AuthorizationPolicy"),
            ("security.istio.io/v1beta1", "PeerAuthentication"),
            ("networking.istio.io/v1alpha3", "ServiceEntry"),
            ("networking.istio.io/v1beta1", "WorkloadEntry"),
        ] {
            assert!(matches!(Kind::lookup(version, kind), Lookup::Used(_)), "{version} {kind}");
        }
    }

    #[test]
    fn known_unused_and_unknown_are_told_apart() {
        assert!(matches!(
            Kind::lookup("networking.istio.io/v1", "VirtualService"),
            Lookup::KnownUnused { .. }
        ));
        assert!(matches!(Kind::lookup("batch/v1", "Job"), Lookup::KnownUnused { .. }));
        let remedy = |api: &str, kind: &str| match Kind::lookup(api, kind) {
            Lookup::Unknown { remedy, .. } => remedy.unwrap_or_default(),
            other => panic!("{other:?}"),
        };
        assert_eq!(
            remedy("security.istio.io/v1", "AuthorisationPolicy"),
            "did you mean `AuthorizationPolicy`?"
        );
        assert_eq!(remedy("v1", "Deployment"), "Deployment is of `apps/v1`");
        assert_eq!(remedy("extensions/v1beta1", "Ingress"), "Ingress is of `networking.k8s.io`");
        assert!(
            remedy("security.istio.io/v1alpha1", "PeerAuthentication").contains("security.istio.io/v1beta1")
        );
        assert_eq!(remedy("example.com/v1", "Certificate"), "");
    }
}
