//! The program as operators run it: its messages when it cannot start, and how it stops.

use std::io::{Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::os::fd::OwnedFd;
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::net::UnixDatagram;
use std::path::Path;
use std::process::{Command, Output};
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;
use tempfile::TempDir;

use crate::disk::open_index;
use crate::scene::until;
use crate::support::daemon::{Daemon, free_port};
use crate::support::process::ServerProcess;
use crate::support::settings::Settings;
use crate::support::{Authority, Client, Conn, Ended, Gate, Image, Reply, Upstream};

const PROGRAM: &str = env!("CARGO_BIN_EXE_roadstead");

fn run(folder: &Path, config: &str, args: &[&str], environment: &[(&str, &str)]) -> Output {
    let file = folder.join("roadstead.toml");
    std::fs::write(&file, config).unwrap();
    let mut command = Command::new(PROGRAM);
    command.args(args).arg("--config").arg(&file).env_clear().env("HOME", folder);
    command.envs(environment.iter().copied()).output().expect("the program runs")
}

/// Checks a failed start: one line on standard error that contains all `parts`.
fn assert_one_line(output: &Output, what: &str, parts: &[&str]) {
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert_eq!(stderr.trim_end().lines().count(), 1, "{what}: {stderr}");
    assert!(stderr.starts_with("roadstead: "), "{what}: {stderr}");
    for part in parts {
        assert!(stderr.contains(part), "{what}: {part:?} is not in: {stderr}");
    }
    assert!(output.stdout.is_empty(), "{what}");
    assert!(output.status.code().is_some_and(|code| code != 0), "{what}: {:?}", output.status);
}

#[test]
fn the_volume_of_registry_2_becomes_the_data_folder() {
    // In a separate mount namespace, so that the machine itself is not changed.
    let script = "mount -t tmpfs none /var/lib && mkdir /var/lib/registry && mount -t tmpfs none /var/lib/registry && \
                  exec \"$0\" check";
    let mut command = Command::new("unshare");
    let output =
        command.args(["--mount", "sh", "-c", script, PROGRAM]).env_clear().env("PATH", "/usr/bin:/bin").output();
    let output = output.expect("unshare, of util-linux, can be started");
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(text.contains("\npath = \"/var/lib/registry\"\n"), "{text}{}", String::from_utf8_lossy(&output.stderr));
}

#[tokio::test]
async fn settings_of_the_registry_2_image_are_accepted() {
    let upstream = Upstream::start().await;
    let image = Image::new(1, &[1000]);
    upstream.add_image("team/app", "1", &image);
    let folder = tempfile::tempdir().unwrap();
    let (port, data) = (free_port(), folder.path().join("data"));
    let yaml = format!(
        "version: 0.1\nlog: {{level: info, formatter: json}}\nstorage: {{filesystem: {{rootdirectory: {}}}}}\n\
         http: {{addr: '127.0.0.1:{port}', secret: x}}\nproxy: {{remoteurl: '{}'}}\n",
        data.display(),
        upstream.url("")
    );
    let config = folder.path().join("config.yml");
    std::fs::write(&config, yaml).unwrap();
    let args = ["serve", config.to_str().unwrap()];
    let mut daemon = Daemon::spawn("roadstead", folder.path(), Path::new(PROGRAM), &args);
    daemon.wait_until(|| std::net::TcpStream::connect(("127.0.0.1", port)).is_ok());
    let blob = &image.layers[0];
    let url = format!("http://127.0.0.1:{port}/v2/team/app/blobs/{}", blob.digest);
    assert_eq!(Client::new().get(&url).await.body, blob.bytes);
    assert!(data.join("blobs").is_dir());
    let log = daemon.log();
    assert_eq!(log.matches("http.secret").count(), 1, "{log}");
    assert!(log.lines().all(|line| serde_json::from_str::<Value>(line).is_ok()), "{log}");
}

#[test]
fn an_invalid_configuration_is_one_error_line() {
    let folder = tempfile::tempdir().unwrap();
    for (what, config, parts) in [
        ("an unknown key", "[cache]\ntagttl = \"1s\"", ["roadstead.toml:2: cache.tagttl: ", "tag_ttl"].as_slice()),
        ("an unknown table", "\n\n[chache]\nx = 1", &["roadstead.toml:3: ", "chache", "cache"]),
        ("an invalid duration", "[cache]\ntag_ttl = \"60 parsecs\"", &[":2: cache.tag_ttl: ", "60 parsecs"]),
        ("an invalid size", "[cache]\nmax_size = \"big\"", &[":2: cache.max_size: ", "big"]),
        ("no scheme", "[upstream.\"a.b\"]\nurl = \"a.b\"", &[":2: upstream.\"a.b\".url: ", "https://a.b"]),
        ("an unconfigured default upstream", "default_upstream = \"a.b\"", &[":1: default_upstream: ", "a.b"]),
        ("no TOML", "[server", &["roadstead.toml:1"]),
        ("an invalid address", "[server]\nlisten = \"localhost\"", &[":2: server.listen: ", "localhost"]),
    ] {
        for command in ["serve", "check"] {
            assert_one_line(&run(folder.path(), config, &[command], &[]), what, parts);
        }
    }
    let output = Command::new(PROGRAM).args(["serve", "--config", "/none/x.toml"]).output().unwrap();
    assert_one_line(&output, "no file", &["/none/x.toml"]);
    let output = run(folder.path(), "", &["serve"], &[("RUST_LOG", "=!=")]);
    assert_one_line(&output, "an invalid log filter", &["RUST_LOG"]);
    let output = run(folder.path(), "", &["check"], &[("ROADSTEAD_CACHE__TAG_TTL", "soon")]);
    assert_one_line(&output, "a variable", &["ROADSTEAD_CACHE__TAG_TTL", "soon"]);
}

#[test]
fn an_unusable_address_or_folder_is_one_error_line() {
    let folder = tempfile::tempdir().unwrap();
    let data = folder.path().join("data");
    let data = data.to_str().unwrap();
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let busy = taken.local_addr().unwrap().to_string();
    let output = run(folder.path(), "", &["serve", "--listen", &busy, "--data", data], &[]);
    assert_one_line(&output, "a busy port", &["cannot listen on", &busy, "in use"]);
    assert!(!Path::new(data).exists(), "the data folder is untouched before the port is bound");

    let file = folder.path().join("file");
    std::fs::write(&file, "").unwrap();
    let below = file.join("data");
    let below = below.to_str().unwrap();
    let output = run(folder.path(), "", &["serve", "--listen", "127.0.0.1:0", "--data", below], &[]);
    assert_one_line(&output, "a folder that cannot be created", &["data folder", below, "ot a directory"]);

    let server = ServerProcess::start(Settings::new());
    let data = server.data_dir();
    let args = ["serve", "--listen", "127.0.0.1:0", "--data", data.to_str().unwrap()];
    let pid = server.pid().unwrap().to_string();
    assert_one_line(&run(folder.path(), "", &args, &[]), "a folder in use", &["in use", &pid, data.to_str().unwrap()]);
}

#[test]
fn check_prints_effective_settings_without_secrets() {
    let folder = tempfile::tempdir().unwrap();
    let config = "[cache]\ntag_ttl = \"5m\"\n[upstream.\"docker.io\"]\nusername = \"ann\"\npassword = \"hunter2\"";
    let environment = [("ROADSTEAD_CACHE__NEGATIVE_TTL", "7s"), ("ROADSTEAD_SERVER__LISTEN", "127.0.0.1:1")];
    let output = run(folder.path(), config, &["check", "--listen", "127.0.0.1:2"], &environment);
    assert!(output.status.success(), "{output:?}");
    let printed = String::from_utf8(output.stdout).unwrap();
    assert!(!printed.contains("hunter2") && !String::from_utf8_lossy(&output.stderr).contains("hunter2"), "{printed}");
    let table: toml::Table = printed.parse().expect("the output is a valid configuration");
    assert_eq!(table["cache"]["tag_ttl"].as_str(), Some("5m"));
    assert_eq!(table["cache"]["negative_ttl"].as_str(), Some("7s"));
    assert_eq!(table["server"]["listen"].as_str(), Some("127.0.0.1:2"), "a flag takes precedence over a variable");
    assert_eq!(table["upstream"]["docker.io"]["password"].as_str(), Some("***"));
    assert_eq!(table["upstream"]["docker.io"]["username"].as_str(), Some("ann"));
}

/// Starts the program with its log in the folder, and waits until it responds.
fn serve(folder: &TempDir, name: &str, address: &str, args: &[&str]) -> Daemon {
    let data = folder.path().join(name);
    let args = [&["serve", "--listen", address, "--data", data.to_str().unwrap()], args].concat();
    let mut daemon = Daemon::spawn(name, folder.path(), Path::new(PROGRAM), &args);
    let port = address.rsplit(':').next().unwrap().parse::<u16>().unwrap();
    daemon.wait_until(|| std::net::TcpStream::connect(("127.0.0.1", port)).is_ok());
    daemon
}

#[tokio::test(flavor = "multi_thread")]
async fn json_logs_are_one_object_per_line() {
    let folder = tempfile::tempdir().unwrap();
    let address = format!("127.0.0.1:{}", free_port());
    let dead = format!("docker.io=http://127.0.0.1:{}", free_port());
    let mut daemon = serve(&folder, "json", &address, &["--log-format", "json", "--upstream", &dead]);
    let cold = Client::new().get(&format!("http://{address}/v2/library/busybox/manifests/1")).await;
    assert_eq!(cold.status, 503);
    assert!(daemon.stop().success());
    let log = daemon.log();
    let lines: Vec<Value> =
        log.lines().map(|line| serde_json::from_str(line).unwrap_or_else(|_| panic!("{line}"))).collect();
    for line in &lines {
        assert!(line["level"].is_string() && line["message"].is_string() && line["timestamp"].is_string(), "{line}");
    }
    let has = |level: &str, part: &str| {
        lines.iter().any(|line| line["level"] == level && line["message"].as_str().unwrap().contains(part))
    };
    assert!(has("INFO", "listening") && has("WARN", "cannot resolve a tag") && has("INFO", "stopped"), "{log}");
    assert!(lines.iter().any(|line| line["tag"] == "1" && line["repo"] == "docker.io/library/busybox"), "{log}");
}

#[tokio::test(flavor = "multi_thread")]
async fn listening_beyond_loopback_warns_once() {
    let folder = tempfile::tempdir().unwrap();
    let mut daemon = serve(&folder, "open", &format!("0.0.0.0:{}", free_port()), &[]);
    assert!(daemon.stop().success());
    let log = daemon.log();
    assert_eq!(log.matches("without authentication").count(), 1, "{log}");
}

/// Whether the index is marked as closed cleanly.
fn was_stopped_cleanly(data: &Path) -> bool {
    let index = open_index(&data.join("index"));
    index.get(b"M").unwrap().expect("a mark")[1] == 1
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stop_finishes_transfers_and_closes_the_index_cleanly() {
    let upstream = Upstream::start().await;
    let image = Image::new(1, &[400_000]);
    upstream.add_image("library/a", "1", &image);
    let gate = Gate::new();
    let path = format!("/v2/library/a/blobs/{}", image.layers[0].digest);
    upstream.script("GET", &path, [Reply::normal().wait_after(200_000, &gate)]);
    let settings = Settings::new().upstream("docker.io", &upstream).default_upstream("docker.io");
    let mut process = tokio::task::spawn_blocking(|| ServerProcess::start(settings)).await.unwrap();
    until("the index is in step with the files", async || process.log().contains("in step")).await;
    let address = process.host().parse().unwrap();
    let mut conn = Conn::get(address, &path).await;
    let begin = conn.take(1000).await;
    kill(Pid::from_raw(process.pid().unwrap().cast_signed()), Signal::SIGTERM).unwrap();
    until("new connections are refused", async || std::net::TcpStream::connect(address).is_err()).await;
    gate.open();
    let (rest, ended) = conn.rest().await;
    assert_eq!(([begin, rest].concat(), ended), (image.layers[0].bytes.to_vec(), Ended::Complete));
    let status = tokio::task::spawn_blocking(move || {
        let status = process.stop();
        (status, process)
    });
    let (status, process) = status.await.unwrap();
    assert_eq!(status.and_then(|status| status.code()), Some(0));
    assert!(was_stopped_cleanly(&process.data_dir()));
    assert_eq!(std::fs::read_dir(process.data_dir().join("spool")).unwrap().count(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stop_cuts_transfers_after_its_deadline() {
    let upstream = Upstream::start().await;
    let image = Image::new(1, &[400_000]);
    upstream.add_image("library/a", "1", &image);
    let path = format!("/v2/library/a/blobs/{}", image.layers[0].digest);
    upstream.script("GET", &path, [Reply::normal().silent_after(200_000)]);
    let settings = Settings::new().upstream("docker.io", &upstream).default_upstream("docker.io");
    let settings = settings.config("[server]\ndrain_timeout = \"200ms\"");
    let mut process = tokio::task::spawn_blocking(|| ServerProcess::start(settings)).await.unwrap();
    until("the index is in step with the files", async || process.log().contains("in step")).await;
    let mut conn = Conn::get(process.host().parse().unwrap(), &path).await;
    conn.take(1000).await;
    let stopped = tokio::task::spawn_blocking(move || {
        let status = process.stop();
        (status, process)
    });
    // The body is cut so that the client cannot mistake it for complete.
    assert_ne!(conn.rest().await.1, Ended::Complete);
    let (status, process) = stopped.await.unwrap();
    assert_eq!(status.and_then(|status| status.code()), Some(0));
    assert!(was_stopped_cleanly(&process.data_dir()));
}

#[test]
fn check_shows_sizes_in_force_and_settings_without_effect() {
    let folder = tempfile::tempdir().unwrap();
    let data = format!("[storage]\npath = {:?}\n", folder.path().join("data"));
    let checked = run(folder.path(), &data, &["check"], &[]);
    let (out, err) = (String::from_utf8_lossy(&checked.stdout), String::from_utf8_lossy(&checked.stderr));
    assert!(checked.status.success() && err.is_empty(), "{err}");
    for key in ["# max_size = ", "# min_free = "] {
        let line = out.lines().find(|line| line.starts_with(key)).unwrap_or_default();
        assert!(line.ends_with("(the default on this file system)"), "{out}");
    }
    assert!(!folder.path().join("data").exists(), "the folder is not created");
    let useless =
        format!("{data}[cache]\nmin_free = \"9000TiB\"\n[upstream.\"docker.io\"]\nurl = \"https://hub.docker.com\"\n");
    let checked = run(folder.path(), &useless, &["check"], &[]);
    let err = String::from_utf8_lossy(&checked.stderr);
    for part in ["write \"https://registry-1.docker.io\"", "cache.min_free is 9000TiB, but the file system"] {
        assert!(checked.status.success() && err.contains(part), "{part}: {err}");
    }
}

/// The first line that a service manager at this socket gets and that begins with `start`.
fn notification(manager: &UnixDatagram, start: &str) -> String {
    manager.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
    let mut buffer = [0; 4096];
    loop {
        let length = manager.recv(&mut buffer).expect("a notification");
        let text = String::from_utf8_lossy(&buffer[..length]);
        if let Some(line) = text.lines().find(|line| line.starts_with(start)) {
            return line.to_owned();
        }
    }
}

#[test]
fn service_manager_gets_readiness_watchdog_and_stop() {
    let folder = tempfile::tempdir().unwrap();
    let socket = folder.path().join("notify");
    let manager = UnixDatagram::bind(&socket).unwrap();
    let address = format!("127.0.0.1:{}", free_port());
    let data = folder.path().join("data");
    let args = ["serve", "--listen", &address, "--data", data.to_str().unwrap()];
    let environment = [("NOTIFY_SOCKET", socket.to_str().unwrap()), ("WATCHDOG_USEC", "300000")];
    let mut daemon = Daemon::spawn_with("roadstead", folder.path(), Path::new(PROGRAM), &args, &environment);
    notification(&manager, "READY=1");
    assert!(TcpStream::connect(&address).is_ok(), "it is ready when it listens");
    for _ in 0..3 {
        notification(&manager, "WATCHDOG=1");
    }
    kill(Pid::from_raw(daemon.pid().cast_signed()), Signal::SIGTERM).unwrap();
    notification(&manager, "STOPPING=1");
    assert!(daemon.stop().success());
}

#[test]
fn sockets_of_the_service_manager_replace_the_address() {
    let folder = tempfile::tempdir().unwrap();
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let data = folder.path().join("data");
    // The variables must name the process that uses the socket, so a shell sets them. The configured address is not bound.
    let script =
        "exec 3<&0 </dev/null; export LISTEN_PID=$$ LISTEN_FDS=1; exec \"$0\" serve --listen 127.0.0.1:1 --data \"$1\"";
    let log = std::fs::File::create(folder.path().join("log")).unwrap();
    let mut child = Command::new("sh")
        .args(["-c", script, PROGRAM, data.to_str().unwrap()])
        .stdin(OwnedFd::from(listener))
        .stderr(log.try_clone().unwrap())
        .stdout(log)
        .spawn()
        .unwrap();
    let mut connection = TcpStream::connect(address).unwrap();
    connection.write_all(b"GET /healthz HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").unwrap();
    let mut answer = String::new();
    connection.read_to_string(&mut answer).unwrap();
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    kill(Pid::from_raw(child.id().cast_signed()), Signal::SIGTERM).unwrap();
    assert!(child.wait().unwrap().success());
    let log = std::fs::read_to_string(folder.path().join("log")).unwrap();
    assert!(log.contains("the sockets are those of the service manager"), "{log}");

    let file = std::fs::File::open(folder.path().join("log")).unwrap();
    let output = Command::new("sh").args(["-c", script, PROGRAM, data.to_str().unwrap()]).stdin(file).output().unwrap();
    assert_one_line(&output, "a socket that is none", &["sockets of the service manager", "ListenStream="]);
}

/// Runs `roadstead health` with these arguments.
fn health(folder: &Path, config: &str, args: &[&str]) -> Output {
    run(folder, config, &[&["health"], args].concat(), &[])
}

#[tokio::test(flavor = "multi_thread")]
async fn health_says_whether_the_server_is_ready() {
    let folder = tempfile::tempdir().unwrap();
    let mut server = ServerProcess::start(Settings::new());
    let listen = ["--listen", &server.host()];
    let url = server.url("");
    for args in [&listen[..], &[url.as_str()]] {
        let output = health(folder.path(), "", args);
        assert!(output.status.success() && output.stdout == b"ready\n", "{output:?}");
    }
    let output = health(folder.path(), "", &[&server.url("/v2/none/manifests/1")]);
    assert_one_line(&output, "another status", &["is not ready: status 404", "MANIFEST_UNKNOWN"]);
    server.stop();
    let output = health(folder.path(), "", &listen);
    assert_one_line(&output, "no server", &[&server.host(), "is not ready", "refused"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn health_verifies_certificates_of_other_servers_only() {
    let (folder, authority) = (tempfile::tempdir().unwrap(), Authority::new());
    let tls = authority.config("a server");
    let ca = authority.write("ca.pem", &authority.ca);
    for more in ["", &format!("client_ca = {ca:?}\n")] {
        let config = format!("{tls}{more}");
        let server = ServerProcess::start(Settings::new().config(&config));
        let output = health(folder.path(), &config, &["--listen", &server.host()]);
        assert!(output.status.success(), "its own server, {more:?}: {output:?}");
        let url = format!("https://{}", server.host());
        assert_one_line(&health(folder.path(), "", &[&url]), "an unknown authority", &["is not ready", "certificate"]);
    }
}

#[test]
fn completions_and_manual_pages_are_written() {
    let folder = tempfile::tempdir().unwrap();
    for (shell, part) in [("bash", "complete -F"), ("zsh", "#compdef roadstead"), ("fish", "complete -c roadstead")] {
        let output = Command::new(PROGRAM).args(["completions", shell]).output().unwrap();
        assert!(output.status.success() && String::from_utf8_lossy(&output.stdout).contains(part), "{output:?}");
    }
    let pages = folder.path().join("new/man1");
    let output = Command::new(PROGRAM).arg("man").arg(&pages).output().unwrap();
    assert!(output.status.success() && output.stdout.is_empty(), "{output:?}");
    for page in ["roadstead.1", "roadstead-serve.1", "roadstead-token-create.1"] {
        assert!(std::fs::read_to_string(pages.join(page)).unwrap().contains(".SH DESCRIPTION"), "{page}");
    }
    let file = folder.path().join("file");
    std::fs::write(&file, "").unwrap();
    let output = Command::new(PROGRAM).arg("man").arg(&file).output().unwrap();
    assert_one_line(&output, "a file", &["manual pages", file.to_str().unwrap()]);
}

#[test]
fn a_folder_of_another_user_is_one_error_line_with_the_remedy() {
    let folder = tempfile::tempdir().unwrap();
    let data = folder.path().join("data");
    std::fs::create_dir(&data).unwrap();
    let args =
        ["--reuid=65532", "--regid=65532", "--clear-groups", PROGRAM, "serve", "--listen", "127.0.0.1:0", "--data"];
    let mut command = Command::new("setpriv");
    // Everybody may pass the folder above, and nobody else may write the data folder.
    std::fs::set_permissions(folder.path(), std::fs::Permissions::from_mode(0o755)).unwrap();
    let output = command.args(args).arg(&data).env_clear().output().unwrap();
    let remedy = format!("chown -R 65532:65532 {}", data.display());
    assert_one_line(&output, "a folder of root", &["Permission denied", &remedy, "storage.read_only"]);
}

#[test]
fn missing_ca_certificates_are_a_warning_at_the_start() {
    let folder = tempfile::tempdir().unwrap();
    let (file, data) = (folder.path().join("empty.pem"), folder.path().join("data"));
    std::fs::write(&file, "").unwrap();
    let args = ["serve", "--listen", "127.0.0.1:0", "--data", data.to_str().unwrap()];
    let environment = [("SSL_CERT_FILE", file.to_str().unwrap()), ("SSL_CERT_DIR", folder.path().to_str().unwrap())];
    let mut daemon = Daemon::spawn_with("roadstead", folder.path(), Path::new(PROGRAM), &args, &environment);
    let log = folder.path().join("roadstead.log");
    daemon.wait_until(|| std::fs::read_to_string(&log).is_ok_and(|log| log.contains("no CA certificates")));
    assert!(daemon.stop().success());
    assert_eq!(daemon.log().matches("name a file with SSL_CERT_FILE").count(), 1, "{}", daemon.log());
}

#[test]
fn variables_of_kubernetes_services_are_no_settings() {
    let folder = tempfile::tempdir().unwrap();
    let link = "tcp://10.96.0.17:5000";
    for service in ["ROADSTEAD", "REGISTRY"] {
        let name = |rest: &str| format!("{service}_{rest}");
        let variables = [
            (name("SERVICE_HOST"), "10.96.0.17"),
            (name("SERVICE_PORT"), "5000"),
            (name("SERVICE_PORT_HTTP"), "5000"),
            (name("PORT"), link),
            (name("PORT_5000_TCP"), link),
            (name("PORT_5000_TCP_PROTO"), "tcp"),
            (name("PORT_5000_TCP_PORT"), "5000"),
            (name("PORT_5000_TCP_ADDR"), "10.96.0.17"),
        ];
        let environment: Vec<_> = variables.iter().map(|(name, value)| (name.as_str(), *value)).collect();
        let output = run(folder.path(), "", &["check"], &environment);
        assert!(output.status.success() && output.stderr.is_empty(), "{output:?}");
        assert!(String::from_utf8_lossy(&output.stdout).contains("listen = \"127.0.0.1:5000\""), "{output:?}");
    }
}

#[test]
fn images_of_registry_2_in_the_data_folder_are_a_warning() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::create_dir_all(folder.path().join("data/docker/registry/v2/repositories")).unwrap();
    let mut daemon = serve(&folder, "data", &format!("127.0.0.1:{}", free_port()), &[]);
    assert!(daemon.stop().success());
    assert_eq!(daemon.log().matches("run `roadstead import PATH`").count(), 1, "{}", daemon.log());
}

#[test]
fn service_manager_that_does_not_read_delays_no_stop() {
    let folder = tempfile::tempdir().unwrap();
    let socket = folder.path().join("notify");
    let manager = UnixDatagram::bind(&socket).unwrap();
    let sender = UnixDatagram::unbound().unwrap();
    sender.set_nonblocking(true).unwrap();
    while sender.send_to(b"full", &socket).is_ok() {}
    let address = format!("127.0.0.1:{}", free_port());
    let data = folder.path().join("data");
    let args = ["serve", "--listen", &address, "--data", data.to_str().unwrap()];
    let environment = [("NOTIFY_SOCKET", socket.to_str().unwrap())];
    let mut daemon = Daemon::spawn_with("roadstead", folder.path(), Path::new(PROGRAM), &args, &environment);
    daemon.wait_until(|| TcpStream::connect(&address).is_ok());
    assert!(daemon.stop().success());
    assert_eq!(daemon.log().matches("does not read its socket").count(), 1, "{}", daemon.log());
    drop(manager);
}
