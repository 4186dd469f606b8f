//! The mesh-wide settings in the ConfigMap `istio`, key `mesh`.

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};
use serde_json::Value;

macro_rules! mesh_config {
    (used { $($used:tt)* } not_used { $($name:ident = $key:literal)* }) => {
        /// The settings. Those of which only the name is known are read past: [`MeshConfig::not_used`] tells them.
        #[derive(Clone, Debug, Default, PartialEq, Deserialize)]
        #[serde(rename_all = "camelCase", default)]
        pub struct MeshConfig {
            $($used)*
            $(#[serde(rename = $key)] $name: Option<Value>,)*
        }

        impl MeshConfig {
            /// The settings that are there and have no effect in this release.
            pub fn not_used(&self) -> Vec<&'static str> {
                let mut names = Vec::new();
                $(if self.$name.is_some() {
                    names.push($key);
                })*
                names
            }
        }
    };
}

mesh_config! {
    used {
        /// The trust domain of the mesh's identities, `cluster.local` where it is absent.
        pub trust_domain: Option<String>,
        /// The namespace of mesh-wide policies, `istio-system` where it is absent.
        pub root_namespace: Option<String>,
        /// Other names of the trust domain, of which peers' identities and policies' principals may be.
        pub trust_domain_aliases: Vec<String>,
    }
    not_used {
        access_log_encoding = "accessLogEncoding"
        access_log_file = "accessLogFile"
        access_log_format = "accessLogFormat"
        ca = "ca"
        ca_certificates = "caCertificates"
        certificates = "certificates"
        compliance_policy = "compliancePolicy"
        config_sources = "configSources"
        connect_timeout = "connectTimeout"
        default_config = "defaultConfig"
        default_destination_rule_export_to = "defaultDestinationRuleExportTo"
        default_http_retry_policy = "defaultHttpRetryPolicy"
        default_providers = "defaultProviders"
        default_service_export_to = "defaultServiceExportTo"
        default_virtual_service_export_to = "defaultVirtualServiceExportTo"
        disable_envoy_listener_log = "disableEnvoyListenerLog"
        discovery_selectors = "discoverySelectors"
        dns_refresh_rate = "dnsRefreshRate"
        enable_auto_mtls = "enableAutoMtls"
        enable_envoy_access_log_service = "enableEnvoyAccessLogService"
        enable_prometheus_merge = "enablePrometheusMerge"
        enable_tracing = "enableTracing"
        extension_providers = "extensionProviders"
        h2_upgrade_policy = "h2UpgradePolicy"
        inbound_cluster_stat_name = "inboundClusterStatName"
        inbound_traffic_policy = "inboundTrafficPolicy"
        ingress_class = "ingressClass"
        ingress_controller_mode = "ingressControllerMode"
        ingress_selector = "ingressSelector"
        ingress_service = "ingressService"
        locality_lb_setting = "localityLbSetting"
        mesh_mtls = "meshMTLS"
        outbound_cluster_stat_name = "outboundClusterStatName"
        outbound_traffic_policy = "outboundTrafficPolicy"
        path_normalization = "pathNormalization"
        protocol_detection_timeout = "protocolDetectionTimeout"
        proxy_http_port = "proxyHttpPort"
        proxy_inbound_listen_port = "proxyInboundListenPort"
        proxy_listen_port = "proxyListenPort"
        service_scope_configs = "serviceScopeConfigs"
        service_settings = "serviceSettings"
        tcp_keepalive = "tcpKeepalive"
        tls_defaults = "tlsDefaults"
        verify_certificate_at_client = "verifyCertificateAtClient"
    }
}

impl MeshConfig {
    /// Where users keep it: the ConfigMap's name.
    pub const CONFIG_MAP: &'static str = "istio";
    /// And the key in it.
    pub const KEY: &'static str = "mesh";
}

/// What a program runs on, checked.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct MeshSettings {
    /// The trust domain of the mesh's identities.
    pub trust_domain: model::TrustDomain,
    /// Its other names, without itself.
    pub trust_domain_aliases: Vec<model::TrustDomain>,
    /// The namespace of mesh-wide policies.
    pub root_namespace: String,
}

impl Default for MeshSettings {
    fn default() -> Self {
        Self {
            trust_domain: model::TrustDomain::default(),
            trust_domain_aliases: Vec::new(),
            root_namespace: "istio-system".to_owned(),
        }
    }
}

impl MeshSettings {
    /// The defaults with what the mesh says; what is no trust domain is passed over, since `validate` has told it.
    pub fn of(config: &MeshConfig, defaults: &Self) -> Self {
        let trust_domain = config.trust_domain.as_ref().and_then(|name| model::TrustDomain::new(name).ok());
        let trust_domain = trust_domain.unwrap_or_else(|| defaults.trust_domain.clone());
        let aliases =
            config.trust_domain_aliases.iter().filter_map(|name| model::TrustDomain::new(name).ok());
        let aliases: BTreeSet<_> = aliases.filter(|alias| *alias != trust_domain).collect();
        Self {
            trust_domain,
            trust_domain_aliases: aliases.into_iter().collect(),
            root_namespace: config.root_namespace.clone().unwrap_or_else(|| defaults.root_namespace.clone()),
        }
    }

    /// The trust domain by all its names.
    pub fn trust_domains(&self) -> impl Iterator<Item = &model::TrustDomain> {
        std::iter::once(&self.trust_domain).chain(&self.trust_domain_aliases)
    }
}
