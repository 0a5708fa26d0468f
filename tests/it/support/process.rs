//! Roadstead as a separate process.

use std::path::Path;
use std::process::ExitStatus;

use tempfile::TempDir;

use super::client::Client;
use super::daemon::{Daemon, free_port};
use super::metrics::Metrics;
use super::settings::Settings;

pub struct ServerProcess {
    daemon: Option<Daemon>,
    port: u16,
    folder: TempDir,
    settings: Settings,
    environment: Vec<(String, String)>,
    /// The words of a command that starts the program, such as `prlimit --nofile=100:100 --`.
    wrapper: Vec<String>,
}

impl ServerProcess {
    /// Starts it on a free port and waits until it responds.
    pub fn start(settings: Settings) -> Self {
        Self::start_in(&std::env::temp_dir(), settings)
    }

    /// The same with its folder in this one.
    pub fn start_in(parent: &Path, settings: Settings) -> Self {
        Self::start_with(parent, settings, &[])
    }

    /// The same with environment variables added.
    pub fn start_with(parent: &Path, settings: Settings, environment: &[(&str, &str)]) -> Self {
        Self::start_as(parent, settings, environment, &[])
    }

    /// The same with a limit of open descriptors that it cannot raise.
    pub fn start_limited(settings: Settings, descriptors: u32) -> Self {
        let limit = format!("--nofile={descriptors}:{descriptors}");
        Self::start_as(&std::env::temp_dir(), settings, &[], &["prlimit", &limit, "--"])
    }

    /// The same with a limit of the size of each file in bytes.
    pub fn start_with_small_files(settings: Settings, bytes: u64) -> Self {
        let limit = format!("--fsize={bytes}:{bytes}");
        Self::start_as(&std::env::temp_dir(), settings, &[], &["prlimit", &limit, "--"])
    }

    /// The same with an umask in octal.
    pub fn start_with_umask(settings: Settings, umask: &str) -> Self {
        let script = format!("umask {umask}; exec \"$@\"");
        Self::start_as(&std::env::temp_dir(), settings, &[], &["sh", "-c", &script, "sh"])
    }

    fn start_as(parent: &Path, settings: Settings, environment: &[(&str, &str)], wrapper: &[&str]) -> Self {
        let folder = tempfile::tempdir_in(parent).expect("a temporary folder");
        let port = free_port();
        let settings = settings.listen(&format!("127.0.0.1:{port}"));
        let settings = settings.data_dir(&folder.path().join("data"));
        let environment = environment.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
        let wrapper = wrapper.iter().map(|word| (*word).to_owned()).collect();
        let mut process = Self { daemon: None, port, folder, settings, environment, wrapper };
        process.configure("");
        process.begin();
        process
    }

    /// Starts it again on the same folder and port, after `stop` or `kill`.
    pub fn begin(&mut self) {
        let config = self.folder.path().join("roadstead.toml");
        let config = config.to_str().expect("a plain path");
        let command = [env!("CARGO_BIN_EXE_roadstead"), "serve", "--config", config];
        let command: Vec<&str> = self.wrapper.iter().map(String::as_str).chain(command).collect();
        let (program, args) = (Path::new(command[0]), &command[1..]);
        let environment: Vec<_> =
            self.environment.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
        let mut daemon = Daemon::spawn_with("roadstead", self.folder.path(), program, args, &environment);
        let port = self.port;
        daemon.wait_until(|| std::net::TcpStream::connect(("127.0.0.1", port)).is_ok());
        self.daemon = Some(daemon);
    }

    /// Adds TOML to its configuration, for its next start.
    pub fn configure(&mut self, toml: &str) {
        self.settings = self.settings.clone().config(toml);
        std::fs::write(self.folder.path().join("roadstead.toml"), self.settings.to_toml())
            .expect("the configuration can be written");
    }

    /// Sends SIGTERM and waits for the end.
    pub fn stop(&mut self) -> Option<ExitStatus> {
        self.daemon.take().map(|mut daemon| daemon.stop())
    }

    /// Sends SIGKILL.
    pub fn kill(&mut self) {
        if let Some(mut daemon) = self.daemon.take() {
            daemon.kill();
        }
    }

    pub fn pid(&self) -> Option<u32> {
        self.daemon.as_ref().map(Daemon::pid)
    }

    /// Its output since the first start.
    pub fn log(&self) -> String {
        self.daemon.as_ref().map_or(String::new(), Daemon::log)
    }

    pub fn port(&self) -> u16 {
        self.port
    }

    /// `127.0.0.1:<port>`, as in image names.
    pub fn host(&self) -> String {
        format!("127.0.0.1:{}", self.port)
    }

    pub fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.host())
    }

    /// The sum of the series of this name that have these labels; 0 if there are none.
    pub async fn metric(&self, name: &str, labels: &[(&str, &str)]) -> f64 {
        let answer = Client::new().get(&self.url("/metrics")).await;
        Metrics::parse(answer.text()).sum(name, labels)
    }

    pub fn config_file(&self) -> std::path::PathBuf {
        self.folder.path().join("roadstead.toml")
    }

    pub fn data_dir(&self) -> std::path::PathBuf {
        self.folder.path().join("data")
    }
}
