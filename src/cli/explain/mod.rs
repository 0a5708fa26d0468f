//! `roadstead explain`: what an image name means here, what is cached of it, and what a pull would ask its upstream.
//!
//! It reads the configuration and the files of the data folder, and nothing else: it works beside a running server and
//! without one. A running server knows one thing more, how lately a tag was confirmed within the last ten minutes.

mod facts;
mod text;

use std::io::{self, Write};

use clap::{Args, ValueEnum};

use super::CliError;
use super::options::ConfigOptions;
use crate::config::Config;
use crate::oci::{Digest, Reference, Tag};
use crate::resolve::{Asked, Routes};
use crate::store::View;

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

pub fn run(config: Config, image: &str, output: Output) -> Result<(), CliError> {
    let routes = Routes::new(&config);
    let view = View::of(&config.storage.path);
    let image_error = |error: String| CliError::Image { image: image.to_owned(), error };
    let (name, reference) = parse(image, &routes).map_err(image_error)?;
    let asked = Asked { name, ..Asked::default() };
    let target = routes.resolve(asked, |name| view.is_local(name)).map_err(|error| image_error(error.to_string()))?;
    let facts = facts::gather(&config, &view, target, reference).map_err(|error| image_error(error.to_string()))?;
    let rendered = match output {
        Output::Text => text::render(&facts),
        Output::Json => format!("{:#}\n", serde_json::json!(facts)),
    };
    io::stdout().write_all(rendered.as_bytes()).map_err(CliError::Output)
}

/// The name as it would stand in a request's path, and the reference; our own address in front is no part of the name.
fn parse<'a>(image: &'a str, routes: &Routes) -> Result<(&'a str, Reference), String> {
    let (name, reference) = match image.split_once('@') {
        Some((name, digest)) => {
            let digest: Digest = digest.parse().map_err(|error| format!("{error}"))?;
            (without_tag(name).0, Reference::Digest(digest))
        }
        None => {
            let (name, tag) = without_tag(image);
            let tag: Tag = tag.unwrap_or("latest").parse().map_err(|error| format!("{error}"))?;
            (name, Reference::Tag(tag))
        }
    };
    match name.split_once('/') {
        Some((first, rest)) if routes.upstream(first).is_none() && routes.is_own(first, None) => Ok((rest, reference)),
        _ => Ok((name, reference)),
    }
}

/// A colon after the last slash begins a tag; one before it a port.
fn without_tag(name: &str) -> (&str, Option<&str>) {
    match name.rsplit_once(':') {
        Some((name, tag)) if !tag.contains('/') => (name, Some(tag)),
        _ => (name, None),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_taken_apart_as_clients_do_it() {
        let routes = Routes::new(&Config::default());
        let digest = format!("sha256:{}", "0".repeat(64));
        for (image, name, reference) in [
            ("busybox", "busybox", "latest"),
            ("ghcr.io/org/app:v1", "ghcr.io/org/app", "v1"),
            ("localhost:5000/team/app", "team/app", "latest"),
            ("localhost:5000/docker.io/library/alpine:3", "docker.io/library/alpine", "3"),
            ("host:81/a", "host:81/a", "latest"),
            (&format!("team/app:v1@{digest}"), "team/app", &digest),
        ] {
            let (found, found_reference) = parse(image, &routes).unwrap();
            assert_eq!((found, found_reference.to_string().as_str()), (name, reference), "{image}");
        }
        assert!(parse("a@sha256:x", &routes).is_err());
        assert!(parse("a:.b", &routes).is_err());
    }
}
