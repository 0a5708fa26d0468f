//! `roadstead explain`: what an image name or a request means here, what is cached of it, and what a pull would ask its upstream.
//!
//! The running server answers, with what it knows and the configuration that it has; without one, or where its socket
//! cannot be used, the files are looked at.

mod text;

use clap::Args;

use super::client::Client;
use super::options::ConfigOptions;
use super::output::{Output, print};
use super::{CliError, runtime};
use crate::config::Config;
use crate::control::explain::{Facts, Known, Question, explain};
use crate::resolve::Routes;
use crate::store::View;

#[derive(Args, Debug)]
pub struct Explain {
    /// An image name, such as busybox, ghcr.io/org/app:v1 or team/app@sha256:…, or a request, such as
    /// '/v2/org/app/manifests/v1?ns=ghcr.io' or a whole URL.
    image: String,

    /// For people, or for machines.
    #[arg(long, value_enum, default_value_t = Output::Text)]
    output: Output,

    #[command(flatten)]
    options: ConfigOptions,
}

// === impl Explain ===

impl Explain {
    pub(super) fn run(self) -> Result<(), CliError> {
        let config = self.options.load()?;
        let facts = runtime::block_on(facts(&config, &self.image))??;
        print(&match self.output {
            Output::Text => text::render(&facts),
            Output::Json => format!("{:#}\n", serde_json::json!(facts)),
        })
    }
}

async fn facts(config: &Config, image: &str) -> Result<Facts, CliError> {
    let image_error = |error: String| CliError::Image { image: image.to_owned(), error };
    if let Ok(Some(mut server)) = Client::connect(&config.storage.path).await {
        return match server.call("explain", &Question { image: image.to_owned() }).await {
            Err(CliError::Refused(error)) => Err(image_error(error)),
            answer => answer,
        };
    }
    let (routes, view) = (Routes::new(config), View::of(&config.storage.path));
    let known = Known { config, routes: &routes, view: &view, server: None };
    explain(&known, image).map_err(image_error)
}
