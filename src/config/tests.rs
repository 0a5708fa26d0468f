//! Tests of the complete configuration.

mod auth;
mod errors;
mod registry_2;
mod shipped_files;
mod sources;

use std::fs;
use std::time::Duration;

use super::*;

fn error(text: &str) -> String {
    Config::from_toml(text, "roadstead.toml").unwrap_err().to_string()
}

fn load(options: LoadOptions, variables: &[(&str, &str)]) -> Result<Config, String> {
    let variables = variables.iter().map(|(name, text)| ((*name).to_owned(), (*text).to_owned()));
    Config::load(&options, variables).map_err(|error| error.to_string())
}
