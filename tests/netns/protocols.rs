//! Protocols that proxies tend to break.

use crate::world::{self, Pod, curl, meshed};
use testkit::lab::Lab;

#[test]
fn a_server_that_speaks_first_is_heard_at_once() {
    let Some(lab) = meshed() else { return };
    let script = "import socket\n\
                  s = socket.create_connection(('greeter.app', 7000), 5)\n\
                  f = s.makefile('rw')\n\
                  print(f.readline().strip())\n\
                  f.write('again\\n'); f.flush()\n\
                  print(f.readline().strip())\n";
    let heard = lab.exec("app/client", &["python3", "-c", script]).expect_ok().stdout;
    assert_eq!(heard, format!("hello {}\nagain\n", lab.ip("app", "client")));
}

#[test]
fn half_closed_connections_still_carry_the_answer() {
    let Some(lab) = meshed() else { return };
    // The digest server answers only after the client's half is closed.
    lab.exec("app/client", &["ambit-echo", "send", "digest.app:7100", "--bytes", "65537"]).expect_ok();
    lab.exec("app/client", &["ambit-echo", "send", "digest.app:7100", "--bytes", "0"]).expect_ok();
}

#[test]
fn a_gibibyte_arrives_as_it_was_sent() {
    let Some(lab) = meshed() else { return };
    let answer = lab.exec("app/client", &["ambit-echo", "send", "digest.app:7100", "--bytes", "1073741824"]);
    assert!(answer.expect_ok().stdout.starts_with("1073741824 "));
}

#[test]
fn redis_and_nginx_work_unchanged() {
    let files = tempfile::TempDir::new().expect("a folder");
    let config = files.path().join("nginx.conf");
    std::fs::write(&config, NGINX).expect("write nginx's configuration");
    let config = config.to_str().expect("a path of plain letters");
    let redis = [
        "redis-server",
        "--port",
        "6379",
        "--bind",
        "*",
        "--protected-mode",
        "no",
        "--save",
        "",
        "--dir",
        "/tmp",
    ];
    let yaml = world::manifests()
        + &Pod { namespace: "app", name: "redis", node: "node2", command: &redis, ready_on: Some(6379) }
            .manifest()
        + &Pod {
            namespace: "app",
            name: "nginx",
            node: "node2",
            command: &["nginx", "-e", "/dev/stderr", "-c", config],
            ready_on: Some(8081),
        }
        .manifest();
    let Some(lab) = Lab::up(&yaml) else { return };
    lab.join("app");
    let redis = lab.ip("app", "redis");
    let cli = |arguments: &[&str]| {
        let mut command = vec!["redis-cli", "-h", redis.as_str()];
        command.extend_from_slice(arguments);
        lab.exec("app/client", &command).expect_ok().stdout
    };
    assert_eq!(cli(&["set", "k", "v"]), "OK\n");
    assert_eq!(cli(&["get", "k"]), "v\n");
    let url = format!("http://{}:8081/", lab.ip("app", "nginx"));
    assert_eq!(lab.exec("app/client", &curl(&url)).expect_ok().stdout, "from nginx\n");
}

const NGINX: &str = "daemon off; pid /dev/null; events {} http { access_log off; \
    server { listen [::]:8081 ipv6only=off; location / { return 200 'from nginx\\n'; } } }";
