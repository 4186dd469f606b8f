//! Gateways, and the words about waypoints.

use super::assert_told;

fn gateway(metadata: &str, spec: &str) -> String {
    format!(
        "apiVersion: gateway.networking.k8s.io/v1\nkind: Gateway\nmetadata: {{name: g, namespace: shop{metadata}}}\nspec: {spec}\n"
    )
}

fn listening(listener: &str) -> String {
    gateway("", &format!("{{gatewayClassName: istio-waypoint, listeners: [{{{listener}}}]}}"))
}

#[test]
fn what_a_gateway_lacks_or_misspells_is_told() {
    assert_told(&gateway("", "{}"), &["needs a `gatewayClassName`", "needs `listeners`"]);
    assert_told(
        &listening("name: Mesh, port: 0, allowedRoutes: {namespaces: {from: Al}}"),
        &["`Al` (did you mean `All`?)", "0 is no port", "no listener's name", "needs a `protocol`"],
    );
    assert_told(&listening("name: mesh, port: 15008, protocol: HBONE, allowedRoute: {}"), &["allowedRoutes"]);
    assert_told(
        &gateway(
            "",
            "{gatewayClassName: c, listeners: [{name: a, port: 80, protocol: HTTP}], addresses: [{value: x.y}, {type: HostName, value: a}]}",
        ),
        &["\"x.y\" is no IP address", "did you mean `Hostname`?"],
    );
}

#[test]
fn namespaces_are_selected_by_name_alone() {
    let selecting = |selector: &str| {
        let namespaces = format!("{{from: Selector{selector}}}");
        listening(&format!(
            "name: a, port: 15008, protocol: HBONE, allowedRoutes: {{namespaces: {namespaces}}}"
        ))
    };
    assert_told(&selecting(", selector: {matchLabels: {kubernetes.io/metadata.name: bar}}"), &[]);
    assert_told(&selecting(""), &["needs a `selector`"]);
    assert_told(&selecting(", selector: {}"), &["the selector is empty"]);
    assert_told(&selecting(", selector: {matchLabels: {team: a}}"), &["by `team` In is not supported yet"]);
    let not_in =
        ", selector: {matchExpressions: [{key: kubernetes.io/metadata.name, operator: NotIn, values: [a]}]}";
    assert_told(&selecting(not_in), &["NotIn is not supported yet"]);
}

#[test]
fn what_a_gateway_says_of_itself_is_checked() {
    let said = |said: &str| {
        gateway(said, "{gatewayClassName: c, listeners: [{name: a, port: 15008, protocol: HBONE}]}")
    };
    assert_told(&said(", labels: {istio.io/waypoint-for: services}"), &["did you mean `service`?"]);
    assert_told(
        &said(
            ", annotations: {ambient.istio.io/waypoint-inbound-binding: PROXY/0, gateway.istio.io/service-account: A}",
        ),
        &["`PROXY/0` is no binding", "`A` is no service account's name"],
    );
}

#[test]
fn a_canary_is_for_services_and_its_weight_is_a_percentage() {
    let object = |kind: &str, labels: &str, weight: &str| {
        let spec = if kind == "Pod" { "{containers: [{name: c}]}" } else { "{ports: [{port: 80}]}" };
        format!(
            "apiVersion: v1\nkind: {kind}\nmetadata: {{name: a, namespace: shop, labels: {{{labels}}}, annotations: {{istio.io/use-waypoint-canary-weight: '{weight}'}}}}\nspec: {spec}\n"
        )
    };
    let canary = "istio.io/use-waypoint-canary: c";
    assert_told(&object("Service", canary, "10"), &[]);
    assert_told(
        &object("Service", canary, "101"),
        &["\"101\" is no percentage (a whole number from 0 to 100)"],
    );
    assert_told(&object("Service", "", "10"), &["no label `istio.io/use-waypoint-canary` beside it"]);
    assert_told(&object("Pod", canary, "10"), &["only a service's traffic is shared"]);
}
