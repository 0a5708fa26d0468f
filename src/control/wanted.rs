//! What `explain` is asked about: an image by its name, or a request of a client as it stands in a log.

use url::form_urlencoded;

use crate::oci::{Digest, Endpoint, Reference, RepoId, Route, Tag};
use crate::resolve::{RequestedRepo, Routes};

/// What programs write before a name: `skopeo`, Helm.
const TRANSPORTS: [&str; 2] = ["docker://", "oci://"];

/// What a request says about the repository it means, and what it wants of it.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Wanted {
    ns: Option<String>,
    host: Option<String>,
    prefix: Option<String>,
    name: String,
    pub(super) thing: Thing,
}

#[derive(Debug, PartialEq, Eq)]
pub(super) enum Thing {
    /// A manifest and all that belongs to it.
    Image(Reference),
    Blob(Digest),
    Tags,
    Referrers(Digest),
}

// === impl Wanted ===

impl Wanted {
    /// # Errors
    /// What is wrong with it, in words.
    pub(super) fn parse(text: &str, routes: &Routes) -> Result<Self, String> {
        let after_host = text.strip_prefix("http://").or_else(|| text.strip_prefix("https://"));
        match after_host {
            Some(rest) => {
                let (authority, _) = rest.split_once('/').unwrap_or((rest, ""));
                // Whoever copies a URL with a login means the host alone.
                let host = authority.rsplit_once('@').map_or(authority, |(_, host)| host);
                Self::of_request(Some(host), &rest[authority.len()..])
            }
            None if text.starts_with('/') => Self::of_request(None, text),
            None => {
                Self::of_name(TRANSPORTS.iter().find_map(|scheme| text.strip_prefix(scheme)).unwrap_or(text), routes)
            }
        }
    }

    pub(super) fn asked(&self) -> RequestedRepo<'_> {
        RequestedRepo {
            ns: self.ns.as_deref(),
            host: self.host.as_deref(),
            prefix: self.prefix.as_deref(),
            name: &self.name,
        }
    }

    /// The name as it would stand in a request's path, and the reference; our own address in front is no part of the name.
    fn of_name(image: &str, routes: &Routes) -> Result<Self, String> {
        let (name, reference) = match image.split_once('@') {
            Some((name, digest)) => (without_tag(name).0, Reference::Digest(digest.parse().map_err(in_words)?)),
            None => {
                let (name, tag) = without_tag(image);
                let tag: Tag = tag.unwrap_or("latest").parse().map_err(in_words)?;
                (name, Reference::Tag(tag))
            }
        };
        let name = match name.split_once('/') {
            Some((first, rest)) if routes.upstream(first).is_none() && routes.is_own(first, None) => rest,
            _ => name,
        };
        Ok(Self { ns: None, host: None, prefix: None, name: name.to_owned(), thing: Thing::Image(reference) })
    }

    /// The target of a request, and the host that it names.
    fn of_request(host: Option<&str>, target: &str) -> Result<Self, String> {
        let (path, query) = target.split_once('?').unwrap_or((target, ""));
        let Route { prefix, name, endpoint } = Route::parse(path).map_err(in_words)?;
        let thing = match endpoint {
            Endpoint::Manifest(reference) => Thing::Image(reference.parse().map_err(in_words)?),
            Endpoint::Blob(digest) => Thing::Blob(digest.parse().map_err(in_words)?),
            Endpoint::Referrers(digest) => Thing::Referrers(digest.parse().map_err(in_words)?),
            Endpoint::Tags => Thing::Tags,
            Endpoint::Base | Endpoint::Catalog | Endpoint::Uploads | Endpoint::Upload(_) => {
                return Err("a request that reads no image; there is nothing to explain".to_owned());
            }
        };
        let mut parameters = form_urlencoded::parse(query.as_bytes());
        let ns = parameters.find(|(key, _)| key == "ns").map(|(_, ns)| ns.into_owned());
        Ok(Self { ns, host: host.map(str::to_owned), prefix, name, thing })
    }
}

// === impl Thing ===

impl Thing {
    /// What is asked about, by its full name.
    pub(super) fn of(&self, repo: &RepoId) -> String {
        match self {
            Self::Image(Reference::Tag(tag)) => format!("{repo}:{tag}"),
            Self::Image(Reference::Digest(digest)) | Self::Blob(digest) => format!("{repo}@{digest}"),
            Self::Tags => format!("{repo}, its tags"),
            Self::Referrers(digest) => format!("{repo}, what refers to {digest}"),
        }
    }
}

fn in_words(error: impl std::fmt::Display) -> String {
    error.to_string()
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
    use crate::config::Config;

    #[test]
    fn names_are_taken_apart_as_clients_do_it() {
        let routes = Routes::new(&Config::default());
        let digest = format!("sha256:{}", "0".repeat(64));
        for (image, name, reference) in [
            ("busybox", "busybox", "latest"),
            ("ghcr.io/org/app:v1", "ghcr.io/org/app", "v1"),
            ("localhost:5000/team/app", "team/app", "latest"),
            ("localhost:5000/docker.io/library/alpine:3", "docker.io/library/alpine", "3"),
            ("docker://ghcr.io/org/app:v1", "ghcr.io/org/app", "v1"),
            ("oci://ghcr.io/org/chart:1", "ghcr.io/org/chart", "1"),
            ("host:81/a", "host:81/a", "latest"),
            (&format!("team/app:v1@{digest}"), "team/app", &digest),
        ] {
            let found = Wanted::parse(image, &routes).unwrap();
            let reference: Reference = reference.parse().unwrap();
            assert_eq!((found.name.as_str(), found.thing), (name, Thing::Image(reference)), "{image}");
        }
        assert!(Wanted::parse("a@sha256:x", &routes).is_err());
        assert!(Wanted::parse("a:.b", &routes).is_err());
    }

    #[test]
    fn a_request_says_with_its_host_path_and_query_what_it_means() {
        let routes = Routes::new(&Config::default());
        let digest = format!("sha256:{}", "0".repeat(64));
        let blob = format!("/docker.io/v2/a/b/blobs/{digest}");
        let referrers = format!("/v2/a/referrers/{digest}?artifactType=x&ns=localhost%3A5001");
        let parsed: Digest = digest.parse().unwrap();
        let image = |tag: &str| Thing::Image(tag.parse().unwrap());
        for (text, ns, host, prefix, name, thing) in [
            ("/v2/a/b/manifests/1", None, None, None, "a/b", image("1")),
            ("http://h:5000/v2/a/manifests/1?ns=ghcr.io", Some("ghcr.io"), Some("h:5000"), None, "a", image("1")),
            ("https://u:hunter2@h/v2/a/tags/list?n=5", None, Some("h"), None, "a", Thing::Tags),
            (&blob, None, None, Some("docker.io"), "a/b", Thing::Blob(parsed.clone())),
            (&referrers, Some("localhost:5001"), None, None, "a", Thing::Referrers(parsed)),
        ] {
            let found = Wanted::parse(text, &routes).unwrap();
            let asked = found.asked();
            assert_eq!((asked.ns, asked.host, asked.prefix, asked.name), (ns, host, prefix, name), "{text}");
            assert_eq!(found.thing, thing, "{text}");
        }
        for text in ["/v2/", "http://h", "http://h/metrics", "/v2/_catalog", "/v2/a%2Fb/manifests/1", "/v2/a/blobs/x"] {
            assert!(Wanted::parse(text, &routes).is_err(), "{text}");
        }
    }
}
