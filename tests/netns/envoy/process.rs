//! Envoy, run in a pod with papers of the mesh's authority.

use std::fmt::Write as _;
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};

use serde_json::Value;
use tempfile::TempDir;
use testkit::lab::{Lab, Running, eventually};

use crate::papers::{Filed, Papers};
use crate::world::curl;

/// The real Envoy, where it is installed: `cargo xtask setup` does, and `cargo xtask test` puts it on the path.
pub(super) fn program() -> Option<PathBuf> {
    let path = std::env::var_os("PATH")?;
    std::env::split_paths(&path).map(|dir| dir.join("envoy")).find(|file| file.is_file())
}

/// An Envoy that runs in a pod until it is dropped.
pub(super) struct Envoy {
    log: PathBuf,
    _process: Running,
    _files: TempDir,
}

impl Envoy {
    /// Starts it and waits until it serves. `config` is given the papers' files and the access log, as YAML.
    pub(super) fn start(
        lab: &Lab,
        pod: &str,
        program: &Path,
        papers: &Papers,
        config: impl FnOnce(&Filed, &str) -> String,
    ) -> Self {
        let files = TempDir::new().expect("a folder for Envoy");
        let log = files.path().join("access.log");
        let text = config(&papers.file(files.path()), &access_log(&log));
        let file = files.path().join("envoy.yaml");
        std::fs::write(&file, text).expect("write Envoy's configuration");
        let path = |path: &Path| path.to_str().expect("a path of plain letters").to_owned();
        let (program, file) = (path(program), path(&file));
        let arguments =
            [&*program, "-c", &*file, "--concurrency", "1", "--disable-hot-restart", "-l", "warning"];
        let process = lab.start(pod, &arguments);
        eventually("Envoy serves", || {
            lab.exec(pod, &curl("http://127.0.0.1:9901/ready")).stdout.trim() == "LIVE"
        });
        Self { log, _process: process, _files: files }
    }

    /// What it says of the connections that have ended so far.
    pub(super) fn records(&self) -> Vec<Value> {
        let text = std::fs::read_to_string(&self.log).unwrap_or_default();
        text.lines().map(|line| serde_json::from_str(line).expect("a record of JSON")).collect()
    }
}

fn access_log(file: &Path) -> String {
    format!(
        "[{{name: file, typed_config: {{\"@type\": \
         type.googleapis.com/envoy.extensions.access_loggers.file.v3.FileAccessLog, path: {}, \
         log_format: {{json_format: {{peer: \"%DOWNSTREAM_PEER_URI_SAN%\", authority: \"%REQ(:AUTHORITY)%\", \
         baggage: \"%REQ(BAGGAGE)%\", forwarded: \"%REQ(FORWARDED)%\", status: \"%RESPONSE_CODE%\", \
         flags: \"%RESPONSE_FLAGS%\", why: \"%UPSTREAM_TRANSPORT_FAILURE_REASON%\", \
         server: \"%UPSTREAM_PEER_URI_SAN%\", answer: \"%FILTER_STATE(envoy.tcp_proxy.propagate_response_headers)%\"}}}}}}}}]",
        file.display()
    )
}

const ADMIN: &str = "admin: {address: {socket_address: {address: 127.0.0.1, port_value: 9901}}}\n";

/// An HBONE server: it ends CONNECT over mutual TLS for one client, and forwards to `application` in its pod. CONNECTs to
/// port 9999 it answers with 401.
pub(super) fn server(files: &Filed, access_log: &str, client: &str, application: u16) -> String {
    let Filed { chain, key, roots } = files;
    let (chain, key, roots) = (chain.display(), key.display(), roots.display());
    format!(
        r#"{ADMIN}
static_resources:
  listeners:
  - name: hbone
    address: {{socket_address: {{address: 0.0.0.0, port_value: 15008}}}}
    filter_chains:
    - transport_socket:
        name: tls
        typed_config:
          "@type": type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.DownstreamTlsContext
          require_client_certificate: true
          common_tls_context:
            alpn_protocols: [h2]
            tls_params: {{tls_minimum_protocol_version: TLSv1_3, tls_maximum_protocol_version: TLSv1_3}}
            tls_certificates: [{{certificate_chain: {{filename: {chain}}}, private_key: {{filename: {key}}}}}]
            validation_context:
              trusted_ca: {{filename: {roots}}}
              match_typed_subject_alt_names: [{{san_type: URI, matcher: {{exact: "{client}"}}}}]
      filters:
      - name: http
        typed_config:
          "@type": type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager
          stat_prefix: hbone
          codec_type: HTTP2
          http2_protocol_options: {{allow_connect: true}}
          upgrade_configs: [{{upgrade_type: CONNECT}}]
          access_log: {access_log}
          http_filters:
          - name: router
            typed_config: {{"@type": type.googleapis.com/envoy.extensions.filters.http.router.v3.Router}}
          route_config:
            virtual_hosts:
            - name: pod
              domains: ["*"]
              routes:
              - match: {{connect_matcher: {{}}, headers: [{{name: ":authority", string_match: {{suffix: ":9999"}}}}]}}
                direct_response: {{status: 401}}
              - match: {{connect_matcher: {{}}}}
                route:
                  cluster: application
                  upgrade_configs: [{{upgrade_type: CONNECT, connect_config: {{}}}}]
  clusters:
  - name: application
    type: STATIC
    load_assignment:
      cluster_name: application
      endpoints:
      - lb_endpoints:
        - endpoint: {{address: {{socket_address: {{address: 127.0.0.1, port_value: {application}}}}}}}
"#
    )
}

/// A way through an HBONE client.
pub(super) struct Way<'a> {
    /// The port on loopback that applications connect to.
    pub(super) port: u16,
    /// Where the CONNECT goes.
    pub(super) to: SocketAddr,
    /// Who must answer.
    pub(super) expected: &'a str,
}

/// An HBONE client: what comes to a port on loopback leaves as CONNECT over mutual TLS to 15008 of the destination.
pub(super) fn client(files: &Filed, access_log: &str, ways: &[Way<'_>]) -> String {
    let Filed { chain, key, roots } = files;
    let (chain, key, roots) = (chain.display(), key.display(), roots.display());
    let mut yaml = format!("{ADMIN}static_resources:\n  listeners:\n");
    for Way { port, to, .. } in ways {
        let _ = write!(
            yaml,
            r#"  - name: from-{port}
    address: {{socket_address: {{address: 127.0.0.1, port_value: {port}}}}}
    filter_chains:
    - filters:
      - name: tcp
        typed_config:
          "@type": type.googleapis.com/envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy
          stat_prefix: from-{port}
          cluster: to-{port}
          max_connect_attempts: 1
          access_log: {access_log}
          tunneling_config: {{hostname: "{to}", propagate_response_headers: true}}
"#
        );
    }
    yaml += "  clusters:\n";
    for Way { port, to, expected } in ways {
        let ip: IpAddr = to.ip();
        let _ = write!(
            yaml,
            r#"  - name: to-{port}
    type: STATIC
    connect_timeout: 5s
    load_assignment:
      cluster_name: to-{port}
      endpoints:
      - lb_endpoints:
        - endpoint: {{address: {{socket_address: {{address: "{ip}", port_value: 15008}}}}}}
    typed_extension_protocol_options:
      envoy.extensions.upstreams.http.v3.HttpProtocolOptions:
        "@type": type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions
        explicit_http_config: {{http2_protocol_options: {{allow_connect: true}}}}
    transport_socket:
      name: tls
      typed_config:
        "@type": type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.UpstreamTlsContext
        common_tls_context:
          alpn_protocols: [h2]
          tls_params: {{tls_minimum_protocol_version: TLSv1_3, tls_maximum_protocol_version: TLSv1_3}}
          tls_certificates: [{{certificate_chain: {{filename: {chain}}}, private_key: {{filename: {key}}}}}]
          validation_context:
            trusted_ca: {{filename: {roots}}}
            match_typed_subject_alt_names: [{{san_type: URI, matcher: {{exact: "{expected}"}}}}]
"#
        );
    }
    yaml
}
