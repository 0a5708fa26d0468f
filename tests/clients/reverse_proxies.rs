//! Roadstead behind nginx, Caddy and HAProxy with TLS, configured as in docs/proxies.md.

use super::folder::Folder;
use super::program::{find, run};
use crate::support::client::chunked;
use crate::support::daemon::{Daemon, free_port};
use crate::support::process::ServerProcess;
use crate::support::settings::Settings;
use crate::support::{Authority, Client, Image, Upstream, digest_of, random_bytes};

const PASSWORD: &str = "a secret";
const LARGE_BLOB_BYTES: usize = 100 << 20;

/// The block of this language in the page about proxies, with the paths and ports of a test.
fn recipe(language: &str, authority: &Authority, port: u16, roadstead: &ServerProcess) -> String {
    let page = include_str!("../../docs/proxies.md");
    let (_, block) = page.split_once(&format!("```{language}\n")).expect("it has such a block");
    let (block, _) = block.split_once("```").expect("a block ends");
    let signed = authority.sign("a proxy");
    let (cert, key) = (authority.write("proxy.crt", &signed.cert), authority.write("proxy.key", &signed.key));
    let pem = authority.write("proxy.pem", &signed.identity());
    let caddy_hosts = format!("https://localhost:{port}, https://*.cache.test:{port} {{\n    bind 127.0.0.1");
    let replaced = [
        ("127.0.0.1:5000", roadstead.host()),
        ("/etc/roadstead/tls.crt", cert),
        ("/etc/roadstead/tls.key", key),
        ("/etc/roadstead/tls.pem", pem),
        ("listen 443 ssl", format!("listen 127.0.0.1:{port} ssl")),
        ("bind :443 ssl", format!("bind 127.0.0.1:{port} ssl")),
        ("server_name cache.example.com *.cache.example.com", "server_name localhost *.cache.test".to_owned()),
        ("cache.example.com, *.cache.example.com {", caddy_hosts),
    ];
    replaced.iter().fold(block.to_owned(), |block, (from, to)| block.replace(from, to))
}

fn nginx(folder: &Folder, site: &str) -> Daemon {
    let at = |entry: &str| folder.at(entry);
    let paths: String = ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"]
        .map(|kind| format!("{kind}_temp_path {};\n", at(kind)))
        .concat();
    let config = format!(
        "daemon off;\nmaster_process off;\npid {};\nerror_log stderr;\nevents {{}}\nhttp {{\naccess_log off;\n{paths}{site}}}\n",
        at("pid")
    );
    let config = folder.write("nginx.conf", &config);
    let args = ["-c", config.to_str().unwrap(), "-p", &at("")];
    Daemon::spawn("nginx", folder.path(), &find("nginx", "nginx-light"), &args)
}

fn caddy(folder: &Folder, site: &str) -> Daemon {
    let config = folder.write("Caddyfile", &format!("{{\n    admin off\n    auto_https disable_redirects\n}}\n{site}"));
    let args = ["run", "--adapter", "caddyfile", "--config", config.to_str().unwrap()];
    let home = folder.at("");
    let environment = [("HOME", home.as_str()), ("XDG_DATA_HOME", &home), ("XDG_CONFIG_HOME", &home)];
    Daemon::spawn_with("caddy", folder.path(), &find("caddy", "caddy"), &args, &environment)
}

fn haproxy(folder: &Folder, site: &str) -> Daemon {
    let config = folder.write("haproxy.cfg", site);
    // `-db`: in the foreground.
    let args = ["-db", "-f", config.to_str().unwrap()];
    Daemon::spawn("haproxy", folder.path(), &find("haproxy", "haproxy"), &args)
}

/// Pulls through the proxy over HTTP/2 and HTTP/1.1, by a host name of the upstream.
async fn pull_by_host_name(language: &str, start: fn(&Folder, &str) -> Daemon) {
    let upstream = Upstream::start().await;
    let image = Image::new(1, &[300_000]);
    upstream.add_image("library/app", "v1", &image);
    let (folder, authority, port) = (Folder::new(), Authority::new(), free_port());
    let settings = Settings::new()
        .upstream("docker.io", &upstream)
        .config("[server]\ntrusted_proxies = [\"127.0.0.1\"]\nhost_routes = [\"cache.test\"]\n");
    let roadstead = ServerProcess::start(settings);
    let mut proxy = start(&folder, &recipe(language, &authority, port, &roadstead));
    proxy.wait_until(|| std::net::TcpStream::connect(("127.0.0.1", port)).is_ok());

    let (ca, out) = (folder.write("ca.pem", &authority.ca), folder.at("body"));
    let host = format!("docker-io.cache.test:{port}");
    let blob = &image.layers[0];
    let url = format!("https://{host}/v2/library/app/blobs/{}", blob.digest);
    let resolve = format!("{host}:127.0.0.1");
    let fixed = ["--silent", "--show-error", "--fail", "--noproxy", "*", "--cacert", ca.to_str().unwrap()];
    for (option, version) in [("--http2", "2"), ("--http1.1", "1.1")] {
        let args = ["--resolve", &resolve, "--output", &out, "--write-out", "%{http_version}", option, &url];
        assert_eq!(run(&find("curl", "curl"), &[&fixed[..], &args].concat(), &[]), version);
        assert!(std::fs::read(&out).unwrap() == blob.bytes, "{option}");
    }
    assert_eq!(upstream.count("GET", &format!("/v2/library/app/blobs/{}", blob.digest)), 1);
}

/// Logs in and pushes through the proxy, as Docker does.
async fn login_push_and_pull(language: &str, start: fn(&Folder, &str) -> Daemon) {
    let (folder, authority, port) = (Folder::new(), Authority::new(), free_port());
    let hash = bcrypt::hash_with_salt(PASSWORD, 4, [7; 16]).unwrap();
    let users = folder.write("htpasswd", &format!("ann:{hash}\n"));
    let roadstead = ServerProcess::start(Settings::new().config(&format!(
        "[server]\ntrusted_proxies = [\"127.0.0.1\"]\n[auth]\nhtpasswd = {users:?}\n\
         [[auth.rule]]\nwho = \"ann\"\non = \"team/**\"\nmay = [\"pull\", \"push\"]\n"
    )));
    let mut proxy = start(&folder, &recipe(language, &authority, port, &roadstead));
    proxy.wait_until(|| std::net::TcpStream::connect(("127.0.0.1", port)).is_ok());
    let (client, base) = (Client::trusting(&authority.ca, None), format!("https://localhost:{port}"));

    let ping = client.get(&format!("{base}/v2/")).await;
    let realm = format!("Bearer realm=\"{base}/auth/token\",service=\"localhost:{port}\"");
    assert_eq!((ping.status, ping.header("www-authenticate")), (401, &*realm));
    // What a client says itself is replaced.
    let forged = [
        ("X-Forwarded-Host", "forged.example"),
        ("X-Forwarded-Proto", "http"),
        ("Forwarded", "for=192.0.2.1;host=forged.example;proto=http"),
    ];
    let forged = client.get_with(&format!("{base}/v2/"), &forged).await;
    assert_eq!(forged.header("www-authenticate"), realm);

    let token = format!("{base}/auth/token?service=localhost&account=ann&scope=repository:team/app:pull,push");
    let basic = format!(
        "Basic {}",
        base64::Engine::encode(&base64::engine::general_purpose::STANDARD, format!("ann:{PASSWORD}"))
    );
    let token = client.get_with(&token, &[("Authorization", &basic)]).await;
    let bearer = format!("Bearer {}", token.json()["token"].as_str().unwrap());
    let headers = [("Authorization", bearer.as_str())];
    assert_eq!(client.get_with(&format!("{base}/v2/"), &headers).await.status, 200);

    let bytes = random_bytes(1, LARGE_BLOB_BYTES);
    let digest = digest_of(&bytes);
    let session = client.send("POST", &format!("{base}/v2/team/app/blobs/uploads/"), &headers, "").await;
    assert_eq!(session.status, 202, "{}", session.text());
    let location = format!("{base}{}", session.header("location"));
    let sent = client.send("PATCH", &location, &headers, chunked(&bytes, 64 << 10)).await;
    assert_eq!(sent.status, 202, "{}", sent.text());
    let location = format!("{base}{}?digest={digest}", sent.header("location"));
    assert_eq!(client.send("PUT", &location, &headers, "").await.status, 201);
    let blob = client.get_with(&format!("{base}/v2/team/app/blobs/{digest}"), &headers).await;
    assert_eq!((blob.status, blob.body == bytes), (200, true));
    // A refusal of a large body reaches the client.
    let refused =
        client.send("POST", &format!("{base}/v2/other/app/blobs/uploads/?digest={digest}"), &headers, bytes).await;
    assert_eq!(refused.status, 403);
}

#[tokio::test]
async fn docker_logs_in_and_pushes_through_nginx() {
    login_push_and_pull("nginx", nginx).await;
}

#[tokio::test]
async fn docker_logs_in_and_pushes_through_caddy() {
    login_push_and_pull("caddy", caddy).await;
}

#[tokio::test]
async fn docker_logs_in_and_pushes_through_haproxy() {
    login_push_and_pull("haproxy", haproxy).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn nginx_serves_a_host_name_for_each_upstream() {
    pull_by_host_name("nginx", nginx).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn caddy_serves_a_host_name_for_each_upstream() {
    pull_by_host_name("caddy", caddy).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn haproxy_serves_a_host_name_for_each_upstream() {
    pull_by_host_name("haproxy", haproxy).await;
}
