//! `roadstead explain`.

use clap::{Args, ValueEnum};

use super::CliError;
use super::options::ConfigOptions;
use crate::config::Config;

#[derive(Args, Debug)]
pub struct Explain {
    /// An image name, such as busybox, ghcr.io/org/app:v1 or team/app@sha256:….
    image: String,

    /// For people, or for machines.
    #[arg(long, value_enum, default_value_t = Output::Text)]
    output: Output,

    #[command(flatten)]
    options: ConfigOptions,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
pub enum Output {
    Text,
    Json,
}

// === impl Explain ===

impl Explain {
    pub(super) fn run(self) -> Result<(), CliError> {
        run(self.options.load()?, &self.image, self.output)
    }
}

pub fn run(_config: Config, _image: &str, _output: Output) -> Result<(), CliError> {
    Ok(())
}
