//! The servers, each a separate process with its data in the build folder.

use std::fs;
use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};

use super::programs;
use super::support::process::family;
use super::support::tests::authority::Authority;
use super::support::tests::daemon::{Daemon, free_port};
use super::support::tests::process::ServerProcess;
use super::support::tests::settings::Settings;

/// The name under which Roadstead mirrors the static files of nginx.
pub const FILES: &str = "files.test";

/// The name of the upstream with several connections.
pub const SEGMENTED: &str = "segmented.test";

/// A program that is started with one configuration file.
pub struct Program {
    name: &'static str,
    folder: PathBuf,
    port: u16,
    /// The port of its HTTPS, if it has one.
    tls_port: u16,
    arguments: Vec<String>,
    daemon: Option<Daemon>,
}

impl Program {
    /// nginx with static files. Its HTTPS has a certificate of this authority.
    pub fn nginx(folder: &Path, authority: &Authority) -> Self {
        fs::create_dir_all(folder.join("files")).expect("the build folder can be written");
        let signed = authority.sign("nginx");
        for (file, text) in [("tls.crt", &signed.cert), ("tls.key", &signed.key)] {
            fs::write(folder.join(file), text).expect("the build folder can be written");
        }
        let tls_port = free_port();
        let template = include_str!("nginx.conf").replace("TLS_PORT", &tls_port.to_string());
        Self { tls_port, ..Self::start_nginx(folder, &template) }
    }

    /// nginx as a cache of this server.
    pub fn nginx_cache(folder: &Path, upstream: SocketAddr) -> Self {
        Self::start_nginx(folder, &include_str!("nginx-cache.conf").replace("UPSTREAM", &upstream.to_string()))
    }

    fn start_nginx(folder: &Path, template: &str) -> Self {
        let (config, port) = configure(folder, "nginx.conf", template, "");
        let prefix = folder.to_str().expect("a plain path").to_owned();
        let arguments = ["-e", "stderr", "-p", &prefix, "-c", &config].map(str::to_owned);
        Self::start("nginx", folder, port, arguments.into())
    }

    pub fn registry(folder: &Path) -> Self {
        Self::registry_with(folder, "")
    }

    /// A docker-registry as a pull-through cache of this upstream.
    pub fn proxy(folder: &Path, upstream: &str) -> Self {
        Self::registry_with(folder, &format!("proxy:\n  remoteurl: {upstream}\n"))
    }

    fn registry_with(folder: &Path, more: &str) -> Self {
        let (config, port) = configure(folder, "registry.yml", include_str!("registry.yml"), more);
        Self::start("docker-registry", folder, port, vec!["serve".to_owned(), config])
    }

    fn start(name: &'static str, folder: &Path, port: u16, arguments: Vec<String>) -> Self {
        let mut program = Self { name, folder: folder.to_owned(), port, tls_port: 0, arguments, daemon: None };
        program.begin();
        program
    }

    fn begin(&mut self) {
        let arguments: Vec<&str> = self.arguments.iter().map(String::as_str).collect();
        let mut daemon = Daemon::spawn(self.name, &self.folder, &programs::path(self.name), &arguments);
        daemon.wait_until(|| TcpStream::connect(self.address()).is_ok());
        self.daemon = Some(daemon);
    }

    pub fn restart(&mut self) {
        drop(self.daemon.take());
        self.begin();
    }

    pub fn address(&self) -> SocketAddr {
        ([127, 0, 0, 1], self.port).into()
    }

    pub fn tls_address(&self) -> SocketAddr {
        ([127, 0, 0, 1], self.tls_port).into()
    }

    /// The program and its children, such as nginx's workers.
    pub fn pids(&self) -> Vec<u32> {
        family(self.daemon.as_ref().expect("it runs").pid())
    }

    pub fn folder(&self) -> &Path {
        &self.folder
    }
}

/// Roadstead with default settings except for port, folder and the URL of docker.io.
pub fn roadstead(folder: &Path, upstream: &str) -> ServerProcess {
    roadstead_with(folder, upstream, "")
}

/// The same with additional settings in TOML.
pub fn roadstead_with(folder: &Path, upstream: &str, more: &str) -> ServerProcess {
    fs::create_dir_all(folder).expect("the build folder can be written");
    ServerProcess::start_in(folder, defaults(upstream).config(more))
}

/// Settings for an upstream with the name [`FILES`].
pub fn mirror_of_files(upstream: SocketAddr) -> String {
    format!("[upstream.{FILES:?}]\nurl = \"http://{upstream}\"\n")
}

/// Settings for a second name of the scripted upstream, from which blobs are fetched over four connections.
pub fn segmented(upstream: &str) -> String {
    format!("[upstream.{SEGMENTED:?}]\nurl = {upstream:?}\nconnections = 4\n")
}

fn defaults(upstream: &str) -> Settings {
    Settings::new().upstream_url("docker.io", upstream).default_upstream("docker.io")
}

/// A server under strace, which records its syncs in `trace`.
pub struct Traced {
    pub address: SocketAddr,
    pub trace: PathBuf,
    _daemon: Daemon,
}

impl Traced {
    pub fn registry(folder: &Path) -> Self {
        let (config, port) = configure(folder, "registry.yml", include_str!("registry.yml"), "");
        Self::start(
            folder,
            port,
            &[programs::path("docker-registry").to_str().expect("a plain path"), "serve", &config],
        )
    }

    pub fn roadstead(folder: &Path, upstream: &str) -> Self {
        let port = free_port();
        let settings = defaults(upstream).listen(&format!("127.0.0.1:{port}")).data_dir(&folder.join("data"));
        let config = folder.join("roadstead.toml");
        fs::create_dir_all(folder).expect("the build folder can be written");
        fs::write(&config, settings.to_toml()).expect("the build folder can be written");
        let config = config.to_str().expect("a plain path");
        Self::start(folder, port, &[env!("CARGO_BIN_EXE_roadstead"), "serve", "--config", config])
    }

    fn start(folder: &Path, port: u16, command: &[&str]) -> Self {
        let trace = folder.join("trace");
        let file = trace.to_str().expect("a plain path");
        let mut arguments = vec!["-f", "-y", "-qq", "-e", "trace=fsync,fdatasync,syncfs,sync", "-o", file];
        arguments.extend(command);
        let mut daemon = Daemon::spawn("traced", folder, &programs::path("strace"), &arguments);
        daemon.wait_until(|| TcpStream::connect(("127.0.0.1", port)).is_ok());
        Self { address: ([127, 0, 0, 1], port).into(), trace, _daemon: daemon }
    }
}

/// Writes a configuration with its placeholders replaced, and returns its path and the chosen port.
fn configure(folder: &Path, name: &str, template: &str, more: &str) -> (String, u16) {
    fs::create_dir_all(folder).expect("the build folder can be written");
    let (port, folder_name) = (free_port(), folder.to_str().expect("a plain path"));
    let config = template.replace("FOLDER", folder_name).replace("PORT", &port.to_string());
    let file = folder.join(name);
    fs::write(&file, config + more).expect("the build folder can be written");
    (file.to_str().expect("a plain path").to_owned(), port)
}
