//! `roadstead explain`: shows the repository of an image name or a request, its stored content, and the requests to the
//! upstream that a pull would cause.
//!
//! The running server answers, from its memory and with its configuration. If there is none or its socket cannot be used, the
//! command reads the files of the data folder.

mod text;

use clap::Args;

use super::client::Client;
use super::options::ConfigOptions;
use super::output::{Output, print, print_json};
use super::{CliError, runtime};
use crate::config::Config;
use crate::control::explain::{ExplainRequest, ExplainSources, Explanation, explain};
use crate::resolve::Routes;
use crate::store::View;

#[derive(Args, Debug)]
pub struct Explain {
    /// An image name, such as busybox, ghcr.io/org/app:v1 or team/app@sha256:…, or a request as it is logged, such as
    /// '/v2/org/app/manifests/v1?ns=ghcr.io', or a URL.
    image: String,

    /// Also explain what this user may do with the repository, and by which rule of [auth]; `anonymous` is a client without
    /// a login.
    #[arg(long = "as", value_name = "USER")]
    as_user: Option<String>,

    /// Output format.
    #[arg(long, value_enum, default_value_t = Output::Text)]
    output: Output,

    #[command(flatten)]
    options: ConfigOptions,
}

// === impl Explain ===

impl Explain {
    pub(super) fn run(self) -> Result<(), CliError> {
        let config = self.options.load()?;
        let request = ExplainRequest { image: self.image, as_user: self.as_user };
        let explanation = runtime::block_on(ask(&config, &request))??;
        match self.output {
            Output::Text => print(&text::render(&explanation)),
            Output::Json => print_json(&format!("{:#}", serde_json::json!(explanation))),
        }
    }
}

async fn ask(config: &Config, request: &ExplainRequest) -> Result<Explanation, CliError> {
    let image_error = |error: String| CliError::Image { image: request.image.clone(), error };
    if let Ok(Some(mut server)) = Client::connect(&config.storage.path).await {
        return match server.call("explain", request).await {
            Err(CliError::Refused(error)) => Err(image_error(error)),
            explained => explained,
        };
    }
    let (routes, view) = (Routes::new(config), View::of(&config.storage.path));
    let sources = ExplainSources { config, routes: &routes, view: &view, server: None };
    explain(&sources, request).map_err(image_error)
}
