//! The Gateway API's Gateway.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;
use serde::{Deserialize, Serialize};
use serde_json::Value;

/// What a Gateway says.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct GatewaySpec {
    /// Whose it is.
    pub gateway_class_name: String,
    /// What it takes.
    pub listeners: Vec<Listener>,
    /// The addresses that it is to have.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub addresses: Vec<GatewayAddress>,
    /// What its resources are given; not interpreted.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub infrastructure: Option<Value>,
    /// Who may add listeners; not interpreted.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub allowed_listeners: Option<Value>,
    /// How it speaks TLS; not interpreted.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tls: Option<Value>,
}

/// A port of a Gateway.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default, rename = "GatewayListener")]
pub struct Listener {
    /// Its name.
    pub name: String,
    /// The host names that it is for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub hostname: Option<String>,
    /// The port.
    pub port: i64,
    /// What is spoken on it; `HBONE` where it is a waypoint's.
    pub protocol: String,
    /// How it speaks TLS; not interpreted.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tls: Option<Value>,
    /// Who may use it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub allowed_routes: Option<AllowedRoutes>,
}

/// Who may use a listener.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct AllowedRoutes {
    /// From which namespaces; the Gateway's own where it is absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub namespaces: Option<RouteNamespaces>,
    /// Which kinds of routes; not interpreted.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub kinds: Option<Value>,
}

/// From which namespaces a listener may be used.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct RouteNamespaces {
    /// `All`, `Same` or `Selector`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub from: Option<String>,
    /// Which, with `Selector`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub selector: Option<LabelSelector>,
}

/// An address of a Gateway.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct GatewayAddress {
    /// `IPAddress` or `Hostname`; the first where it is absent.
    #[serde(rename = "type", skip_serializing_if = "Option::is_none")]
    pub kind: Option<String>,
    /// The address.
    pub value: String,
}
