//! What is known about fields beyond the lists that the types bring.

/// Fields that a Kubernetes after the one our types are made of has. They are passed over: none of them concerns a mesh.
const LATER: &[(&str, &[&str])] = &[
    ("Container", &["restartPolicyRules"]),
    ("ContainerStatus", &["stopSignal"]),
    ("DeploymentStatus", &["terminatingReplicas"]),
    ("EndpointHints", &["forNodes"]),
    ("EnvVarSource", &["fileKeyRef"]),
    ("EphemeralContainer", &["restartPolicyRules"]),
    ("Lifecycle", &["stopSignal"]),
    ("ListMeta", &["shardInfo"]),
    ("NodeStatus", &["declaredFeatures"]),
    ("NodeSystemInfo", &["swap"]),
    ("PodCondition", &["observedGeneration"]),
    ("PodSpec", &["hostnameOverride", "schedulingGroup", "workloadRef"]),
    (
        "PodStatus",
        &[
            "allocatedResources",
            "extendedResourceClaimStatus",
            "nodeAllocatableResourceClaimStatuses",
            "observedGeneration",
            "resources",
        ],
    ),
    ("ReplicaSetStatus", &["terminatingReplicas"]),
    ("ResourceHealth", &["message"]),
    ("VolumeMountStatus", &["volumeStatus"]),
    ("VolumeProjection", &["podCertificate"]),
];

/// Fields that people write in a place that is not theirs, and where they belong.
const MISPLACED: &[(&str, &[&str], &str)] = &[
    (
        "AuthorizationPolicySpec",
        &["from", "to", "when", "source", "operation"],
        "it belongs into an element of `spec.rules`",
    ),
    (
        "AuthorizationPolicySpec",
        &["principals", "namespaces", "serviceAccounts", "ipBlocks"],
        "it belongs under `spec.rules[].from[].source`",
    ),
    (
        "AuthorizationPolicySpec",
        &["matchLabels", "labels"],
        "labels of the workloads belong under `spec.selector.matchLabels`",
    ),
    (
        "AuthorizationPolicySpec",
        &["jwtRules"],
        "tokens are declared by a RequestAuthentication; here `requestPrincipals` names them",
    ),
    (
        "Rule",
        &[
            "principals",
            "namespaces",
            "serviceAccounts",
            "ipBlocks",
            "remoteIpBlocks",
            "requestPrincipals",
            "source",
        ],
        "it belongs under `from[].source`",
    ),
    ("Rule", &["methods", "paths", "ports", "hosts", "operation"], "it belongs under `to[].operation`"),
    (
        "From",
        &[
            "principals",
            "notPrincipals",
            "namespaces",
            "notNamespaces",
            "serviceAccounts",
            "notServiceAccounts",
            "ipBlocks",
            "notIpBlocks",
            "remoteIpBlocks",
            "notRemoteIpBlocks",
            "requestPrincipals",
            "notRequestPrincipals",
        ],
        "it belongs one level deeper, under `source`",
    ),
    (
        "To",
        &["methods", "notMethods", "paths", "notPaths", "ports", "notPorts", "hosts", "notHosts"],
        "it belongs one level deeper, under `operation`",
    ),
    ("Selector", &["labels"], "the field is `matchLabels`"),
    ("Selector", &["matchExpressions"], "only `matchLabels` selects here"),
    ("PeerAuthenticationSpec", &["mode"], "it belongs under `spec.mtls`"),
    ("PeerAuthenticationSpec", &["portLevelSettings"], "the field is `portLevelMtls`"),
    ("WorkloadSelector", &["matchLabels"], "the field is `labels`"),
    ("ServiceEntrySpec", &["host"], "the field is `hosts`, a list"),
    ("ServiceEntrySpec", &["selector"], "the field is `workloadSelector`"),
    ("ServiceEntrySpec", &["address"], "the field is `addresses`, a list"),
    ("ServicePort", &["name", "containerPort"], "the field is `targetPort`"),
];

/// Whether a later Kubernetes has the field.
pub(super) fn is_later(structure: &str, field: &str) -> bool {
    LATER.iter().any(|(name, fields)| *name == structure && fields.contains(&field))
}

/// Where a misplaced field belongs.
pub(super) fn belongs(structure: &str, field: &str) -> Option<&'static str> {
    MISPLACED
        .iter()
        .find(|(name, fields, _)| *name == structure && fields.contains(&field))
        .map(|(_, _, remedy)| *remedy)
}
