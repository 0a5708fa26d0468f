//! docker-registry as the upstream: Debian's (distribution 2.8) unless a test names another program.

use std::path::{Path, PathBuf};

use super::folder::Folder;
use super::program::find;
use crate::support::client::Client;
use crate::support::daemon::{Daemon, free_port};
use crate::support::image::{Image, Index};

pub struct Registry {
    daemon: Daemon,
    port: u16,
    folder: Folder,
}

impl Registry {
    /// An empty registry without authentication.
    pub fn start() -> Self {
        Self::start_program(&debians())
    }

    /// The same with this program.
    pub fn start_program(program: &Path) -> Self {
        Self::configured(program, "")
    }

    /// A pull-through cache of the registry at this URL.
    pub fn mirror_of(url: &str) -> Self {
        Self::mirror_with(&debians(), url)
    }

    /// The same with this program.
    pub fn mirror_with(program: &Path, url: &str) -> Self {
        Self::configured(program, &format!("proxy: {{remoteurl: '{url}'}}\n"))
    }

    fn configured(program: &Path, more: &str) -> Self {
        let (folder, port) = (Folder::new(), free_port());
        let data = folder.at("data");
        let config = format!(
            "version: 0.1\n\
             storage: {{filesystem: {{rootdirectory: {data}}}}}\n\
             http: {{addr: '127.0.0.1:{port}', secret: of-a-test}}\n{more}"
        );
        let config = folder.write("config.yml", &config);
        let config = config.to_str().expect("a plain path");
        let daemon = Daemon::spawn("docker-registry", folder.path(), program, &["serve", config]);
        let mut registry = Self { daemon, port, folder };
        registry.wait();
        registry
    }

    /// Starts it again after [`Registry::stop`], on the same folder and port.
    pub fn begin(&mut self) {
        let program = find("docker-registry", "docker-registry");
        let args = ["serve", &self.folder.at("config.yml")];
        self.daemon = Daemon::spawn("docker-registry", self.folder.path(), &program, &args);
        self.wait();
    }

    fn wait(&mut self) {
        let port = self.port;
        self.daemon.wait_until(|| std::net::TcpStream::connect(("127.0.0.1", port)).is_ok());
    }

    pub fn stop(&mut self) {
        self.daemon.stop();
    }

    /// Its storage.
    pub fn data(&self) -> String {
        self.folder.at("data")
    }

    pub fn url(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }

    pub fn port(&self) -> u16 {
        self.port
    }

    pub async fn push(&self, repository: &str, tag: &str, image: &Image) {
        Client::new().push_image(&self.url(), repository, tag, image).await;
    }

    pub async fn push_index(&self, repository: &str, tag: &str, index: &Index) {
        Client::new().push_index(&self.url(), repository, tag, index).await;
    }

    /// How many GETs of this blob its access log holds.
    pub fn blob_gets_of(&self, repository: &str, digest: &str) -> usize {
        self.daemon.log().matches(&format!("\"GET /v2/{repository}/blobs/{digest}")).count()
    }

    /// How many GETs of a blob of this repository its access log holds.
    pub fn blob_gets(&self, repository: &str) -> usize {
        let get = format!("\"GET /v2/{repository}/blobs/");
        self.daemon.log().matches(&get).count()
    }
}

fn debians() -> PathBuf {
    find("docker-registry", "docker-registry")
}
