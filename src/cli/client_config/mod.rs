//! `roadstead client-config`: prints the file that makes a client pull through this server, with all of its upstreams. For
//! containerd it can also write the file.

mod buildkit;
mod containerd;
mod docker;
mod hosts_folder;
mod k3s;
mod podman;
mod server_url;
mod write;

use std::io::{self, Write};

use clap::{Args, ValueEnum};

use super::CliError;
use super::options::ConfigOptions;
use super::output::print;
use crate::config::Config;
pub use hosts_folder::HostsError;
use server_url::ServerUrl;
use write::WriteOptions;

#[derive(Args, Debug)]
pub struct ClientConfig {
    /// The client to configure.
    client: Client,

    /// The URL at which clients reach this server, such as http://cache.example.com:5000. Required, unless files are removed.
    #[arg(long, value_name = "URL", required_unless_present = "remove")]
    url: Option<ServerUrl>,

    #[command(flatten)]
    write: WriteOptions,

    #[command(flatten)]
    options: ConfigOptions,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Client {
    /// Docker's daemon.json.
    Docker,
    /// containerd's hosts.toml.
    Containerd,
    /// registries.yaml of k3s and RKE2.
    K3s,
    /// The same file for k3d.
    K3d,
    /// A script that sets up the nodes of a kind cluster.
    Kind,
    /// registries.conf of podman, buildah, skopeo and CRI-O.
    Podman,
    /// buildkitd.toml.
    Buildkit,
}

/// The configuration of a client.
struct Recipe {
    /// The file. If there are several, each begins with its path.
    file: String,
    /// Notes for a file whose format has no comments.
    notes: String,
}

// === impl ClientConfig ===

impl ClientConfig {
    /// Prints the file to the standard output, so that it can be redirected, and notes to the standard error stream.
    ///
    /// With `--write`, it changes files instead. They do not depend on the configuration of the server.
    pub fn run(self) -> Result<(), CliError> {
        if let Some(folder) = self.write.folder() {
            return match self.client {
                Client::Containerd => self.write.run(folder, self.url.as_ref()),
                _ => Err(CliError::NotWritten),
            };
        }
        // The command line requires it.
        let Some(url) = self.url else { return Ok(()) };
        let recipe = self.client.recipe(&url, &self.options.load()?);
        print(&recipe.file)?;
        io::stderr().write_all(recipe.notes.as_bytes()).map_err(CliError::Output)
    }
}

// === impl Client ===

impl Client {
    fn recipe(self, url: &ServerUrl, config: &Config) -> Recipe {
        let file = match self {
            Self::Docker => return docker::recipe(url, config),
            Self::Containerd => containerd::files(url, config),
            Self::Kind => containerd::kind_script(url, config),
            Self::K3s => k3s::file(url, config),
            Self::K3d => k3s::k3d_file(url, config),
            Self::Podman => podman::file(url, config),
            Self::Buildkit => buildkit::file(url, config),
        };
        Recipe { file, notes: String::new() }
    }
}

/// The names of the upstreams, the default first.
fn upstreams(config: &Config) -> Vec<&str> {
    let mut names: Vec<&str> = config.upstreams.iter().map(|upstream| upstream.name.as_str()).collect();
    names.sort_by_key(|name| config.default_upstream.as_deref() != Some(name));
    names
}

/// Comment lines that name the upstreams.
fn list_of_upstreams(config: &Config) -> String {
    format!("# Roadstead answers for {}.\n", upstreams(config).join(", "))
}
