//! The mechanisms, by what they are about.

use super::Mechanism;

/// All of them.
pub(crate) fn all() -> impl Iterator<Item = &'static Mechanism> {
    [POLICY, LIVE, IDENTITY, ENDPOINTS, SWAP, CAPTURE, NAMES, HOSTS, BOUNDS].into_iter().flatten()
}

/// Who may talk to whom.
const POLICY: &[Mechanism] = &[
    Mechanism {
        name: "policy",
        promise: "what a policy denies does not reach the application",
        file: "ztunnel/src/inbound/admit.rs",
        on: "Effect::Deny => Admission::Deny(Denial::Policy { judgement, dry_run }),",
        off: "Effect::Deny => Admission::Allow { judgement, dry_run },",
        tests: &[
            "strict_refuses_plaintext_and_permissive_takes_it",
            "one_port_may_be_permissive_under_strict",
            "allow_lets_in_whom_it_names_and_nobody_else",
            "deny_beats_allow_and_says_which_policy_did",
            "ports_and_addresses_are_matched",
            "an_allow_with_l7_attributes_never_matches_at_the_node",
        ],
    },
    Mechanism {
        name: "dry-run",
        promise: "a policy in trial denies nobody",
        file: "crates/authz/src/set.rs",
        on: "self.judge(connection, |p| !p.is_dry_run())",
        off: "self.judge(connection, |_| true)",
        tests: &["a_dry_run_denies_nobody_and_is_reported"],
    },
    Mechanism {
        name: "unknown-policy",
        promise: "a policy that is named and not known yet denies",
        file: "crates/authz/src/set.rs",
        on: "return Judgement::NotYetKnown((*unknown).clone());",
        off: "let _ = unknown;",
        tests: &[
            "a_selected_pod_waits_for_the_policy_that_selects_it",
            "a_policy_that_is_named_and_never_comes_ends_connections_after_its_patience_and_not_before",
        ],
    },
    Mechanism {
        name: "l7-deny",
        promise: "a DENY rule that only L7 could enforce denies all that it selects",
        file: "crates/manifest/src/policy/authorization.rs",
        on: "WireAction::Deny if clauses.is_empty() => {\n",
        off: "WireAction::Deny if clauses.is_empty() => {\n                continue;\n                #[allow(unreachable_code)]\n",
        tests: &["a_deny_about_requests_alone_denies_all_and_is_told"],
    },
    Mechanism {
        name: "tunnel-target",
        promise: "a tunnel leads to what is behind the address that it came to",
        file: "ztunnel/src/inbound/admit.rs",
        on: "if asked.ip().to_canonical() != came_to {",
        off: "if asked.ip().to_canonical() != came_to && asked.port() == 0 {",
        tests: &["a_tunnel_to_what_is_not_behind_the_address_is_refused"],
    },
    Mechanism {
        name: "waypoint-speaks",
        promise: "only the waypoint that is bound speaks for others",
        file: "ztunnel/src/inbound/admit.rs",
        on: "guarded.flat_map(Guarded::gateways).any(|gateway| is_made_of(world, viewer, gateway, peer))",
        off: "guarded.flat_map(Guarded::gateways).all(|gateway| is_made_of(world, viewer, gateway, peer))",
        tests: &["only_the_bound_waypoint_speaks_for_others"],
    },
    Mechanism {
        name: "waypoint-first",
        promise: "nobody goes around a waypoint",
        file: "ztunnel/src/outbound/plan.rs",
        on: "if let Some(hops) = through_waypoint(world, facts, guarded, destination, rng) {",
        off: "if let Some(hops) = through_waypoint(world, facts, guarded, destination, rng).filter(Result::is_ok) {",
        tests: &["nothing_goes_around_a_waypoint"],
    },
];

/// Changes that reach connections that stand.
const LIVE: &[Mechanism] = &[
    Mechanism {
        name: "live-policy",
        promise: "a change of policy or of PeerAuthentication ends what it denies, within a second",
        file: "ztunnel/src/review.rs",
        on: "Admission::Deny(denial) => Opinion::Ends(Ending::Denied(denial)),",
        off: "Admission::Deny(_) => Opinion::Stays,",
        tests: &[
            "a_selector_policy_that_comes_ends_what_it_denies_within_a_second",
            "plaintext_ends_within_a_second_when_strict_comes",
            "a_new_policy_ends_what_it_denies_and_nothing_else",
            "a_selector_policy_ends_connections_whichever_of_its_parts_comes_first",
        ],
    },
    Mechanism {
        name: "live-revocation",
        promise: "what a revoked certificate carries ends within a second",
        file: "ztunnel/src/review.rs",
        on: "(Err(why), _) => Opinion::Ends(Ending::Disbelieved(why)),",
        off: "(Err(_), _) => Opinion::Stays,",
        tests: &[
            "what_a_revoked_certificate_carries_ends_within_a_second",
            "what_a_revoked_certificate_has_opened_ends_and_nothing_else",
        ],
    },
    Mechanism {
        name: "review-from-the-start",
        promise: "no connection slips through between its admission and a change",
        file: "ztunnel/src/inbound.rs",
        on: "    live.open_to_review(peer, source, destination);\n    let facts",
        off: "    let facts",
        tests: &["a_new_policy_ends_what_it_denies_and_nothing_else"],
    },
    Mechanism {
        name: "narrowed-policy",
        promise: "a policy that is narrowed to a selector leaves nobody unprotected on the way",
        file: "ztunnel/src/review.rs",
        on: "self.narrowing.extend(begun.into_iter().map(|key| (key, now + self.patience)));",
        off: "self.narrowing.extend(begun.into_iter().map(|key| (key, now)));",
        tests: &["a_policy_that_is_narrowed_protects_those_that_will_name_it_until_they_do"],
    },
    Mechanism {
        name: "tunnel-age",
        promise: "a tunnel takes no streams past its age and its certificates",
        file: "ztunnel/src/outbound/via.rs",
        on: "let until = Instant::now().checked_add(limits.tunnel_life(proof.time_left()));",
        off: "let until = None;",
        tests: &["a_tunnel_that_is_old_to_either_end_gives_way_and_what_it_carries_goes_on"],
    },
    Mechanism {
        name: "outlived",
        promise: "a credential that has expired carries nothing for ever",
        file: "ztunnel/src/inbound/tunnel.rs",
        on: "served.end_resting_on(&peer.proof, &Ending::Outlived);",
        off: "",
        tests: &["what_outlives_its_tunnel_s_certificates_for_long_is_ended"],
    },
];

/// Who is who.
const IDENTITY: &[Mechanism] = &[
    Mechanism {
        name: "server-identity",
        promise: "a server proves the very identity that is expected",
        file: "crates/identity/src/verifier.rs",
        on: "if self.expected.contains(&presented) || self.is_alias(&presented) {",
        off: "if self.expected.contains(&presented) || self.is_alias(&presented) || !presented.namespace().is_empty() {",
        tests: &[
            "a_server_that_proves_another_identity_gets_no_byte",
            "an_envoy_that_proves_another_identity_gets_no_tunnel",
            "who_answers_behind_the_gateway_must_be_an_endpoint_of_the_service",
            "another_identity_is_refused_by_name",
        ],
    },
    Mechanism {
        name: "client-certificate",
        promise: "expired certificates and those of foreign roots open no tunnel",
        file: "crates/identity/src/verifier.rs",
        on: "verify_chain(leaf, intermediates, &self.bundle.believed(), KeyUsage::client_auth(), now)?;",
        off: "let _ = verify_chain(leaf, intermediates, &self.bundle.believed(), KeyUsage::client_auth(), now);",
        // The proof that is taken after the handshake is verified once more, so the netns tier holds without this.
        tests: &["a_certificate_of_another_root_is_refused"],
    },
    Mechanism {
        name: "trust-domain",
        promise: "a client of another trust domain is refused, even under our root",
        file: "crates/identity/src/verifier.rs",
        on: "if self.accepted.contains(presented.trust_domain()) {",
        off: "if self.accepted.contains(presented.trust_domain()) || !presented.namespace().is_empty() {",
        tests: &["another_trust_domain_is_refused_even_under_our_root"],
    },
    Mechanism {
        name: "aliases",
        promise: "an identity is the same under all names of the trust domain",
        file: "crates/identity/src/verifier.rs",
        on: "self.expected.contains(&presented) || self.is_alias(&presented)",
        off: "self.expected.contains(&presented)",
        tests: &["names_of_one_trust_domain_are_one"],
    },
    Mechanism {
        name: "revocation",
        promise: "a revoked certificate is refused",
        file: "crates/identity/src/verifier.rs",
        on: "if revoked.lists() == 0 {",
        off: "if revoked.lists() < usize::MAX {",
        tests: &["what_a_revoked_certificate_carries_ends_within_a_second"],
    },
    Mechanism {
        name: "roots",
        promise: "one root takes over from another without a failed connection",
        file: "ztunnel/src/trust/roots.rs",
        on: "                self.bundle.set_up(roots);\n",
        off: "",
        tests: &["one_root_takes_over_from_another_and_no_connection_ends"],
    },
    Mechanism {
        name: "binding",
        promise: "a pod's key is used only at addresses of the pod",
        file: "ztunnel/src/binding.rs",
        on: "if workload.addresses.iter().any(|ip| ip.to_canonical() == address) {",
        off: "if workload.addresses.iter().any(|ip| ip.to_canonical() == address) || !address.is_multicast() {",
        tests: &[
            "a_pods_key_is_used_at_its_own_addresses_only",
            "a_pods_key_is_not_used_in_a_namespace_that_is_another_pods",
        ],
    },
    Mechanism {
        name: "tenancy",
        promise: "no tunnel is used for the next holder of an address",
        file: "ztunnel/src/outbound/hop.rs",
        on: "holder: Holder { uid: hbone.workload.uid.clone(), tenancy },",
        off: "holder: Holder { uid: model::Uid::new(\"anybody\"), tenancy: tenancy.min(0) },",
        tests: &["no_tunnel_to_a_pod_that_has_gone_reaches_the_next_at_its_address"],
    },
    Mechanism {
        name: "hidden-memory",
        promise: "a process's memory is its own",
        file: "crates/runtime/src/hardening.rs",
        on: "prctl::set_dumpable(false).map_err(failed(\"hide the memory from others\"))?;",
        off: "",
        tests: &["a_neighbour_of_the_same_user_cannot_read_a_process_memory"],
    },
    Mechanism {
        name: "seccomp",
        promise: "each process has its system calls and no more",
        file: "crates/runtime/src/hardening.rs",
        on: "apply_filter_all_threads(&filter)?;",
        off: "let _ = (apply_filter_all_threads as fn(_) -> _, &filter);",
        tests: &[
            "every_thread_of_every_process_has_its_rights_and_no_more",
            "a_process_that_was_taken_over_cannot_call_what_it_never_needs",
        ],
    },
];

/// Endpoints' life.
const ENDPOINTS: &[Mechanism] = &[
    Mechanism {
        name: "last-resort",
        promise: "who ends and still serves is chosen only where nobody else is ready",
        file: "ztunnel/src/outbound/endpoint.rs",
        on: "(Health::Terminating, HealthPolicy::OnlyHealthy) => true,",
        off: "(Health::Terminating, HealthPolicy::OnlyHealthy) => return Err(NoEndpoint::Unhealthy),",
        tests: &[
            "who_is_about_to_end_is_tried_only_where_nobody_else_can_be",
            "a_pod_that_ends_stays_ready_and_is_the_last_resort",
        ],
    },
    Mechanism {
        name: "agents-word",
        promise: "the agent's word of a dying pod comes before the control plane's",
        file: "ztunnel/src/departures.rs",
        on: "(Stage::Ended, _) => None,",
        off: "(Stage::Ended, told) => Some(told),",
        tests: &[
            "the_agents_word_comes_before_the_control_planes",
            "a_pod_of_the_node_that_has_ended_is_not_tried_any_more",
        ],
    },
    Mechanism {
        name: "sent-elsewhere",
        promise: "who has other endpoints is sent to them by a pod that ends",
        file: "ztunnel/src/inbound/tunnel.rs",
        on: "let goes_elsewhere = served.pod.ending.is_cancelled() && request.has_alternatives();",
        off: "let goes_elsewhere = request.has_alternatives() && false;",
        tests: &["who_has_others_to_go_to_is_sent_there"],
    },
    Mechanism {
        name: "served-to-the-last",
        promise: "who has nobody else to go to is served to the last",
        file: "ztunnel/src/inbound/tunnel.rs",
        on: "served.pod.ending.is_cancelled() && request.has_alternatives();",
        off: "served.pod.ending.is_cancelled();",
        tests: &["who_has_nobody_else_to_go_to_is_served_to_the_last"],
    },
    Mechanism {
        name: "internal-traffic-policy",
        promise: "a service keeps its traffic on the node where it says so",
        file: "ztunnel/src/outbound/endpoint.rs",
        on: "LoadBalancingMode::Strict if shared < scopes.len() => return Err(NoEndpoint::OutOfScope),",
        off: "",
        tests: &[
            "a_service_keeps_its_traffic_on_the_node_where_it_says_so",
            "strict_scopes_exclude_and_failover_puts_behind",
        ],
    },
    Mechanism {
        name: "traffic-distribution",
        promise: "endpoints that are nearer come first",
        file: "ztunnel/src/outbound/endpoint.rs",
        on: "LoadBalancingMode::Failover => scopes.len() - shared,",
        off: "LoadBalancingMode::Failover => 0,",
        tests: &["strict_scopes_exclude_and_failover_puts_behind"],
    },
    Mechanism {
        name: "publish-not-ready",
        promise: "publishNotReadyAddresses makes all pods endpoints",
        file: "ztunnel/src/outbound/endpoint.rs",
        on: "(Health::Healthy, _) | (_, HealthPolicy::AllowAll) => false,",
        off: "(Health::Healthy, _) => false,\n        (_, HealthPolicy::AllowAll) => return Err(NoEndpoint::Unhealthy),",
        tests: &["only_ready_endpoints_are_tried_unless_the_service_asks_for_all"],
    },
    Mechanism {
        name: "silence",
        promise: "an endpoint that falls silent keeps one connection waiting and not all",
        file: "ztunnel/src/outbound.rs",
        on: "        self.served.silence.put_last(&mut hops, Instant::now());\n",
        off: "        let _ = &mut hops;\n",
        tests: &["a_node_that_falls_silent_keeps_one_connection_waiting_and_not_all"],
    },
    Mechanism {
        name: "on-demand",
        promise: "on demand, a connection waits for what it rests on",
        file: "ztunnel/src/outbound.rs",
        on: "mesh.needs().is_none_or(|n| n.has_outbound(world, facts.pod, facts.destination.ip()))",
        off: "mesh.needs().is_none_or(|n| n.has_outbound(world, facts.pod, facts.destination.ip()) || true)",
        tests: &["what_is_called_is_known_and_nothing_else", "a_service_is_not_reached_past_its_waypoint"],
    },
    Mechanism {
        name: "double-hbone",
        promise: "an endpoint in another network proves its own identity, within the gateway's tunnel",
        file: "ztunnel/src/outbound/inside.rs",
        on: "let key = Key { destinations: expect_ids.clone(), ..inside.gateway.clone() };",
        off: "let (key, _) = (inside.gateway.clone(), expect_ids);",
        tests: &["a_service_in_another_network_is_reached_through_its_gateway"],
    },
    Mechanism {
        name: "weighted-waypoints",
        promise: "several waypoints share a service's traffic by their weights",
        file: "ztunnel/src/outbound/waypoint.rs",
        on: "/ f64::from(w.weight)",
        off: "/ f64::from(w.weight.min(1))",
        tests: &["several_waypoints_share_by_weight"],
    },
    Mechanism {
        name: "proxy-identity",
        promise: "a proxy in the pod is told who comes (PROXY v2, TLV 0xD0)",
        file: "ztunnel/src/inbound/application.rs",
        on: "identity: Some(identity.to_string()),",
        off: "identity: Some(identity.to_string()).filter(|_| false),",
        tests: &["a_waypoint_in_a_pod_is_told_who_comes_and_for_which_service"],
    },
];

/// What dies, and what is put in its place.
const SWAP: &[Mechanism] = &[
    Mechanism {
        name: "listeners-kept",
        promise: "a ztunnel that dies refuses nobody: its listeners are kept",
        file: "crates/zds/src/agent/desired.rs",
        on: "            entry.kept = kept;\n",
        off: "            drop(kept);\n",
        tests: &["a_proxy_that_is_killed_refuses_nobody"],
    },
    Mechanism {
        name: "swap-without-deadline",
        promise: "a ztunnel that is replaced ends none of its connections",
        file: "crates/runtime/src/tasks.rs",
        on: "let hands_over = self.handover.is_cancelled();",
        off: "let hands_over = false;",
        tests: &[
            "a_proxy_that_is_replaced_fails_no_connection_and_ends_none",
            "who_hands_over_has_no_deadline",
        ],
    },
    Mechanism {
        name: "adoption",
        promise: "an agent that comes again goes on with the pods that its predecessor captured",
        file: "cni-plugin/src/roster.rs",
        on: "self.pods.entry(key).or_insert_with(|| Entry::adopted(captured));",
        off: "self.pods.entry(key).or_insert_with(|| Entry::adopted(captured && false));",
        tests: &["what_an_earlier_process_captured_is_adopted"],
    },
];

/// Redirection.
const CAPTURE: &[Mechanism] = &[
    Mechanism {
        name: "probes",
        promise: "the kubelet's probes reach applications under STRICT, known by their two ends",
        file: "ebpf/loader/src/kubelet.rs",
        on: "self.kubelet.netns.set(node).map_err(OpenError::Watch)?;",
        off: "let _ = node;",
        tests: &["probes_reach_applications_under_strict_and_strangers_do_not"],
    },
    Mechanism {
        name: "ipv6",
        promise: "a pod that has IPv6 alone is captured and served",
        file: "ztunnel/src/config.rs",
        on: "let ipv6 = env.switch(\"IPV6_ENABLED\", true);",
        off: "let ipv6 = env.switch(\"IPV6_ENABLED\", false);",
        tests: &["a_pod_with_ipv6_alone_is_in_the_mesh_like_any_other", "ipv6_is_captured_like_ipv4"],
    },
    Mechanism {
        name: "bypass-counter",
        promise: "connections of enrolled pods that get past the mesh are counted",
        file: "cni-plugin/src/redirect/ebpf.rs",
        on: "bypassed: counted.as_ref().ok().copied().flatten().unwrap_or_default().total(),",
        off: "bypassed: 0,",
        tests: &["no_connection_of_an_enrolled_pod_gets_past_the_mesh"],
    },
    Mechanism {
        name: "repair",
        promise: "what somebody takes away of a pod's redirection is put back within a second",
        file: "cni-plugin/src/agent/look.rs",
        on: "let mended = self.node.mend_pod(key, member).await;",
        off: "let mended = Mended::default();",
        tests: &["what_is_taken_away_in_a_live_pod_is_put_back_within_a_second"],
    },
    Mechanism {
        name: "repair-pins",
        promise: "pins that are removed are put back",
        file: "cni-plugin/src/agent/look.rs",
        on: "let mended = self.node.mend();",
        off: "let mended = Mended::default();",
        tests: &["pins_that_are_removed_are_put_back_and_the_next_agent_finds_them"],
    },
    Mechanism {
        name: "nftables-repair",
        promise: "the table of a pod is put back when somebody takes it away, and what got past is counted",
        file: "cni-plugin/src/agent/look.rs",
        on: "let mended = self.node.mend_pod(key, member).await;",
        off: "let mended = Mended::default();",
        tests: &["a_table_that_is_taken_away_is_put_back_and_what_got_past_is_counted"],
    },
    Mechanism {
        name: "nftables-bypass-counter",
        promise: "by nftables too, connections of enrolled pods that got past the mesh are counted",
        file: "cni-plugin/src/redirect/nftables.rs",
        on: "self.bypassed.extend(news);",
        off: "drop(news);",
        tests: &["a_table_that_is_taken_away_is_put_back_and_what_got_past_is_counted"],
    },
    Mechanism {
        name: "nftables-leaving",
        promise: "what somebody's earlier rules would send past the mesh is dropped",
        file: "cni-plugin/src/nft/rules.rs",
        on: "tcp().has(Field::TcpFlags, &[SYN], &[SYN | ACK]).counted().drop(),",
        off: "tcp().has(Field::TcpFlags, &[SYN], &[SYN | ACK]).counted().leave(),",
        tests: &["what_others_rules_would_let_past_does_not_leave"],
    },
    Mechanism {
        name: "nftables-fallback",
        promise: "where programs do not load, nftables redirects",
        file: "cni-plugin/src/choice.rs",
        on: "Err(ebpf) => match nftables() {",
        off: "Err(ebpf) => match nftables().and(Err(String::new())) {",
        tests: &["where_programs_do_not_load_nftables_redirects_and_status_says_why"],
    },
    Mechanism {
        name: "redirection-as-asked",
        promise: "an agent that is to redirect by eBPF redirects by nothing else",
        file: "cni-plugin/src/choice.rs",
        on: "ebpf().map_err(refused(Kind::Ebpf))?;",
        off: "let _ = ebpf();",
        tests: &["an_agent_that_is_to_use_ebpf_does_not_use_anything_else"],
    },
    Mechanism {
        name: "guard",
        promise: "marked packets do not leave the pod while its routing is damaged",
        file: "cni-plugin/src/redirect/ebpf.rs",
        on: "match netns.run(|| self.instance.guard(key, config))? {",
        off: "match netns.run(|| if true { Ok(false) } else { self.instance.guard(key, config) })? {",
        tests: &["without_its_routing_nothing_of_a_pod_leaves_in_plaintext"],
    },
    Mechanism {
        name: "older-connections",
        promise: "connections older than enrolment are ended where that is wished",
        file: "cni-plugin/src/older.rs",
        on: "if self.live == 0 || self.closing != Closing::Now {",
        off: "if self.live == 0 || self.closing != Closing::Now || self.live > 0 {",
        tests: &[
            "older_connections_are_closed_where_that_is_wished",
            "older_connections_are_shown_until_somebody_wishes_them_closed",
        ],
    },
];

/// Names.
const NAMES: &[Mechanism] = &[
    Mechanism {
        name: "dns-names",
        promise: "names of the mesh's services are answered",
        file: "crates/dns/src/zone.rs",
        on: "if addresses.is_empty() || !matches!(query.kind(), A | AAAA) {",
        off: "if addresses.is_empty() || matches!(query.kind(), A | AAAA) {",
        tests: &["the_mesh_tells_of_its_services"],
    },
    Mechanism {
        name: "dns-visibility",
        promise: "hosts are told to those alone who may see them",
        file: "crates/dns/src/zone.rs",
        on: "let visible = |host: &str| world.service_named(host, viewer.namespace);",
        off: "let everywhere = [viewer.namespace, \"outside\"];\n    let visible = |host: &str| everywhere.into_iter().find_map(|namespace| world.service_named(host, namespace));",
        tests: &["hosts_are_told_to_those_who_may_see_them"],
    },
    Mechanism {
        name: "dns-relay",
        promise: "what the mesh does not own passes byte for byte",
        file: "ztunnel/src/dns/datagrams.rs",
        on: "        self.give(datagram, answer);\n        Ok(",
        off: "        self.give(datagram, &answer[..answer.len() - 1]);\n        Ok(",
        tests: &["what_is_not_the_meshs_passes_byte_for_byte"],
    },
    Mechanism {
        name: "dns-failure",
        promise: "a resolver that fails is the client's answer",
        file: "ztunnel/src/dns/datagrams.rs",
        on: "                // The socket of who asked would have failed at once.\n                self.fail(datagram, question);\n",
        off: "",
        tests: &["the_failure_of_whom_a_pod_asks_is_its_answer"],
    },
    Mechanism {
        name: "dns-opt-out",
        promise: "a pod may keep what it asks to itself",
        file: "cni-plugin/src/redirect/ebpf.rs",
        on: "(false, _) | (true, Some(false)) => {",
        off: "(false, Some(true)) => resolvers::install(netns, &self.routing(Some(member))).await?,\n            (false, _) | (true, Some(false)) => {",
        tests: &["a_pod_may_keep_what_it_asks_to_itself"],
    },
];

/// Hosts that ServiceEntries declare.
const HOSTS: &[Mechanism] = &[
    Mechanism {
        name: "looked-up",
        promise: "an endpoint by name is reached where its name leads",
        file: "ztunnel/src/outbound.rs",
        on: "proxy.names.look_up(names.clone())",
        off: "proxy.names.look_up(BTreeSet::new())",
        tests: &["hosts_without_addresses_get_one_and_are_reached_where_their_names_lead"],
    },
    Mechanism {
        name: "automatic-addresses",
        promise: "a host without addresses has one of its own",
        file: "istiod-lite/src/translate/service.rs",
        on: "store.vips().of(host, name)",
        off: "store.vips().of(host, name).into_iter().take(0)",
        tests: &[
            "a_host_without_addresses_gets_one_of_its_own_for_as_long_as_it_is_there",
            "hosts_without_addresses_get_one_and_are_reached_where_their_names_lead",
        ],
    },
    Mechanism {
        name: "blocks",
        promise: "a block of addresses leads where its service says",
        file: "crates/index/src/world.rs",
        on: "preferred(self.by_block.get(&block), viewer)",
        off: "preferred(&self.by_block.get(&block)[..0], viewer)",
        tests: &["a_block_of_addresses_leads_where_its_service_says"],
    },
    Mechanism {
        name: "questions-repair",
        promise: "the rule that questions to resolvers follow is put back within a second",
        file: "cni-plugin/src/redirect/ebpf.rs",
        on: "vigil.mend(netns, &routing, self.steered.contains(key), mended).await",
        off: "vigil.mend(netns, &routing, false, mended).await",
        tests: &["the_rule_that_questions_follow_is_put_back_within_a_second"],
    },
];

/// Quotas and deadlines.
const BOUNDS: &[Mechanism] = &[
    Mechanism {
        name: "floods",
        promise: "a peer that floods its connection is cut off",
        file: "crates/hbone/src/frames.rs",
        on: "self.flood = self.flood.or(most.map(|kind| Flood { kind }));",
        off: "let _ = most;",
        tests: &["a_peer_that_floods_its_connection_is_cut_off_and_counted"],
    },
    Mechanism {
        name: "quota",
        promise: "a pod has its quota and no more",
        file: "ztunnel/src/quota.rs",
        on: "            if room < n {\n",
        off: "            if room < n && n == u64::MAX {\n",
        tests: &[
            "a_pod_at_its_quota_is_refused_and_told_and_others_are_not",
            "a_pod_that_takes_all_it_can_leaves_descriptors_for_others_and_for_the_proxy",
        ],
    },
    Mechanism {
        name: "idle",
        promise: "a connection that is idle for long is given up",
        file: "ztunnel/src/relay.rs",
        on: "let limit = if self.half_closed { patience.half_closed } else { patience.idle };",
        off: "let limit = if self.half_closed { patience.half_closed } else { Duration::ZERO };",
        tests: &["a_connection_that_is_idle_for_long_is_given_up_and_one_in_use_is_not"],
    },
    Mechanism {
        name: "half-closed",
        promise: "a half-closed connection is given up sooner",
        file: "ztunnel/src/relay.rs",
        on: "let limit = if self.half_closed { patience.half_closed } else { patience.idle };",
        off: "let limit = patience.idle;",
        tests: &["a_half_closed_connection_is_given_up_sooner"],
    },
    Mechanism {
        name: "first-byte",
        promise: "a connection without a byte is given up in time",
        file: "ztunnel/src/relay.rs",
        on: "        over = meter.until_over() => Err(over),\n",
        off: "        over = async { let _ = &meter; std::future::pending::<BrokenOff>().await } => Err(over),\n",
        tests: &["a_connection_without_a_byte_is_given_up_in_time"],
    },
];
