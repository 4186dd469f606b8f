use crate::problem::Severity;

mod gateways;

fn told(text: &str) -> Vec<String> {
    crate::parse("f.yaml", text).problems.iter().map(ToString::to_string).collect()
}

#[track_caller]
fn assert_told(text: &str, parts: &[&str]) {
    let told = told(text);
    assert_eq!(told.len(), parts.len(), "{told:#?}");
    for part in parts {
        assert!(told.iter().any(|told| told.contains(part)), "{told:#?}\nhas none with\n{part}");
    }
}

fn authorization(spec: &str) -> String {
    format!(
        "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {{name: p, namespace: shop}}\nspec:\n{spec}\n"
    )
}

#[test]
fn names_follow_rfc_1123() {
    assert_told(
        "apiVersion: v1\nkind: Namespace\nmetadata:\n  name: Shop\n",
        &["f.yaml:4:3: `metadata.name`: `Shop` is no name"],
    );
    assert_told(
        "apiVersion: v1\nkind: Pod\nmetadata: {generateName: a-}\nspec: {containers: [{name: a}]}\n",
        &["needs an API server"],
    );
    assert_told("apiVersion: v1\nkind: Node\nmetadata: {name: node1.example.com}\n", &[]);
}

#[test]
fn a_misspelt_dataplane_mode_is_told() {
    assert_told(
        "apiVersion: v1\nkind: Namespace\nmetadata:\n  name: shop\n  labels:\n    istio.io/dataplane-mode: Ambient\n",
        &[
            "f.yaml:6:5: `metadata.labels.istio.io/dataplane-mode`: there is no mode `Ambient` (`ambient` or `none`)",
        ],
    );
}

#[test]
fn a_misspelt_word_on_existing_connections_is_told() {
    assert_told(
        "apiVersion: v1\nkind: Namespace\nmetadata:\n  name: shop\n  annotations:\n    ambit.dev/existing-connections: clsoe\n",
        &[
            "f.yaml:6:5: `metadata.annotations.ambit.dev/existing-connections`: `clsoe` says nothing of existing connections (did you mean `close`?)",
        ],
    );
    assert_told(
        "apiVersion: v1\nkind: Namespace\nmetadata:\n  name: shop\n  labels:\n    ambit.dev/existing-connections: drop\n",
        &["`drop` says nothing of existing connections (`keep` or `close`)"],
    );
    assert_told(
        "apiVersion: v1\nkind: Namespace\nmetadata: {name: shop, labels: {ambit.dev/existing-connections: close}}\n",
        &[],
    );
}

#[test]
fn a_service_s_ports_are_checked() {
    assert_told(
        "apiVersion: v1\nkind: Service\nmetadata: {name: a}\nspec:\n  type: ClusterIp\n  clusterIP: 10.0.0\n  ports:\n  - {port: 0, name: a}\n  - {port: 80, targetPort: '8080', protocol: TPC}\n",
        &[
            "did you mean `ClusterIP`",
            "no IP address",
            "0 is no port",
            "did you mean `TCP`",
            "needs a `name`",
            "take the quotes away",
        ],
    );
}

#[test]
fn words_for_where_traffic_is_kept_are_checked() {
    let annotation = "annotations: {networking.istio.io/traffic-distribution: PreferSameNod}";
    assert_told(
        &format!("apiVersion: v1\nkind: Namespace\nmetadata: {{name: shop, {annotation}}}\n"),
        &["there is no traffic distribution `PreferSameNod` (did you mean `PreferSameNode`?)"],
    );
    assert_told(
        "apiVersion: v1\nkind: Service\nmetadata: {name: a}\nspec: {ports: [{port: 80}], trafficDistribution: PreferClos, internalTrafficPolicy: local}\n",
        &["did you mean `PreferClose`", "did you mean `Local`"],
    );
}

#[test]
fn a_service_entry_says_all_that_its_resolution_needs_and_nothing_else() {
    let of = |host: &str, spec: &str| {
        format!(
            "apiVersion: networking.istio.io/v1\nkind: ServiceEntry\nmetadata: {{name: a}}\nspec:\n  hosts: ['{host}']\n  ports: [{{number: 5432, name: tcp, protocol: TCP}}]\n{spec}"
        )
    };
    let entry = |spec: &str| of("db.example.com", spec);
    for good in [
        entry(""),
        entry("  resolution: DNS\n"),
        entry("  resolution: DNS_ROUND_ROBIN\n  endpoints: [{address: DB1.example.com}]\n"),
        entry(
            "  resolution: DNS\n  addresses: [240.0.0.1]\n  endpoints: [{address: 10.0.0.1}, {address: db1.example.com}]\n",
        ),
        entry("  resolution: STATIC\n  endpoints: [{address: 10.0.0.1}]\n"),
        entry(
            "  resolution: STATIC\n  addresses: [192.0.2.0/24, 'fd00::/64']\n  endpoints: [{address: 10.0.0.1}]\n",
        ),
        entry("  resolution: STATIC\n  addresses: [240.0.0.1/32]\n  workloadSelector: {labels: {app: db}}\n"),
        of("*.example.com", "  addresses: [192.0.2.0/24]\n  resolution: NONE\n"),
        of("*.example.com", "  resolution: DNS\n  endpoints: [{address: db1.example.com}]\n"),
    ] {
        assert_told(&good, &[]);
    }
    assert_told(
        &entry("  resolution: DYNAMIC_DNS\n"),
        &["f.yaml:7:3: `spec.resolution`: resolution DYNAMIC_DNS is not supported yet"],
    );
    assert_told(&entry("  endpoints: [{address: 10.0.0.1}]\n"), &["endpoints have no meaning"]);
    assert_told(
        &entry("  resolution: STATIC\n  addresses: [240.0.0.1]\n"),
        &["needs `endpoints` or a `workloadSelector`"],
    );
    assert_told(
        &entry(
            "  resolution: STATIC\n  addresses: [240.0.0.1, x]\n  endpoints:\n  - {address: db1.example.com}\n  - {address: 10.0.0.1, ports: {tpc: 1}}\n",
        ),
        &["\"x\" is no IP", "`resolution: DNS` may name hosts", "did you mean `tcp`"],
    );
    assert_told(&of("*.example.com", "  resolution: DNS\n"), &["`*.example.com` cannot be looked up"]);
    assert_told(
        &entry("  resolution: DNS\n  addresses: [10.0.0.0/8]\n"),
        &["the block `10.0.0.0/8` with resolution DNS"],
    );
    assert_told(
        &entry("  resolution: DNS\n  workloadSelector: {labels: {app: db}}\n"),
        &["a selector finds addresses"],
    );
    assert_told(
        &entry(
            "  resolution: DNS_ROUND_ROBIN\n  endpoints: [{address: a.example.com}, {address: b.example.com}]\n",
        ),
        &["one endpoint at most"],
    );
}

#[test]
fn a_deny_about_requests_alone_is_refused_with_the_way_out() {
    let text = authorization(
        "  action: DENY\n  rules:\n  - from: [{source: {namespaces: [a]}}]\n  - to:\n    - operation: {methods: [DELETE]}\n",
    );
    let parsed = crate::parse("f.yaml", &text);
    assert_eq!(parsed.problems.len(), 1);
    let problem = &parsed.problems[0];
    assert_eq!((problem.line, problem.severity), (8, Severity::Refused));
    assert!(problem.remedy.as_ref().unwrap().contains("targetRefs"), "{problem}");
    assert_eq!(parsed.documents.len(), 1, "where it already stands it is used, and fails closed");
    assert!(parsed.is_usable());
}

#[test]
fn a_policy_with_target_refs_may_speak_of_requests() {
    assert_told(
        &authorization(
            "  action: DENY\n  targetRefs: [{kind: Service, group: '', name: a}]\n  rules: [{to: [{operation: {methods: [GET]}}]}]",
        ),
        &[],
    );
    assert_told(
        &authorization(
            "  selector: {matchLabels: {a: b}}\n  targetRefs: [{kind: Servce, group: '', name: a}, {kind: Gateway, group: '', name: b, namespace: other}]\n  rules: [{}]",
        ),
        &[
            "did you mean `Service`",
            "its group is \"gateway.networking.k8s.io\"",
            "own namespace only",
            "either `selector` or `targetRefs`",
        ],
    );
}

#[test]
fn actions_that_a_node_cannot_take_are_refused() {
    assert_told(
        &authorization("  action: CUSTOM\n  provider: {name: x}\n  rules: [{}]"),
        &["CUSTOM needs a proxy of requests"],
    );
    assert_told(&authorization("  action: AUDIT\n  rules: [{}]"), &["AUDIT has no effect"]);
    assert_told(&authorization("  action: DENY\n"), &["DENY without `rules` matches nothing"]);
    assert_told(&authorization("  action: ALOW\n"), &["did you mean `ALLOW`?"]);
    assert_told(&authorization("  provider: {name: x}\n"), &["only the action CUSTOM"]);
}

#[test]
fn values_that_could_never_match_are_told() {
    assert_told(
        &authorization(
            "  rules:\n  - from:\n    - source:\n        principals: [spiffe://cluster.local/ns/a/sa/b, cluster.local/sa/b, 'a*b', 'cluster.local/ns/a/sa/b']\n        ipBlocks: [10.0.0.0/40]\n    - {}\n    - source: {serviceAccounts: ['a/*'], namespaces: [a]}\n    to:\n    - operation: {ports: ['0', http, '80']}\n    when:\n    - {key: source.prinicpal, values: [a]}\n    - {key: destination.port}\n",
        ),
        &[
            "write `cluster.local/ns/a/sa/b`",
            "is no identity of a workload",
            "has a `*` where it means nothing",
            "is no address or CIDR",
            "an empty source",
            "is no service account",
            "not together with",
            "\"0\" is no port",
            "\"http\" is no port",
            "did you mean `source.principal`?",
            "neither `values` nor `notValues`",
        ],
    );
}

#[test]
fn a_misplaced_field_is_sent_where_it_belongs() {
    assert_told(
        &authorization(
            "  from: [{source: {namespaces: [a]}}]\n  rules:\n  - principals: [a]\n  - from: [{principals: [a]}]\n    to: [{ports: ['80']}]",
        ),
        &["`spec.rules`", "`from[].source`", "under `source`", "under `operation`"],
    );
}

#[test]
fn port_level_modes_need_a_selector() {
    let text = "apiVersion: security.istio.io/v1\nkind: PeerAuthentication\nmetadata: {name: p}\nspec:\n  mode: STRICT\n  portLevelMtls: {80: {mode: STRICT}}\n";
    assert_told(text, &["it belongs under `spec.mtls`"]);
    assert_told(
        &text.replace("  mode: STRICT\n", "").replace("80:", "99999:"),
        &["only for workloads", "99999 is no port"],
    );
    assert_told(&text.replace("  mode: STRICT\n", "  mtls: {mode: STRIC}\n"), &["did you mean `STRICT`?"]);
}

#[test]
fn deployments_and_pods_need_what_a_kubelet_needs() {
    assert_told(
        "apiVersion: apps/v1\nkind: Deployment\nmetadata: {name: a}\nspec:\n  selector: {matchLabels: {app: a}}\n  template:\n    metadata: {labels: {app: b}}\n    spec: {containers: []}\n",
        &["does not match the labels", "a pod needs a container"],
    );
}
