//! Parses the query of `explain`: an image name, or a client's request as it is logged.

use url::form_urlencoded;

use crate::oci::{Digest, Endpoint, Reference, RepoId, Route, Tag};
use crate::resolve::{RequestedRepo, Routes};

/// Prefixes that `skopeo` and Helm put before a name.
const TRANSPORT_PREFIXES: [&str; 2] = ["docker://", "oci://"];

/// The parsed query: the requested repository and the requested content.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct ExplainQuery {
    ns: Option<String>,
    host: Option<String>,
    prefix: Option<String>,
    name: String,
    pub(super) target: QueryTarget,
}

/// The requested content of a query.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum QueryTarget {
    /// A manifest and everything that it refers to.
    Image(Reference),
    Blob(Digest),
    Tags,
    Referrers(Digest),
}

// === impl ExplainQuery ===

impl ExplainQuery {
    /// Parses an image name, a URL, or the path and query of a request.
    ///
    /// # Errors
    /// A text that describes the syntax error.
    pub(super) fn parse(text: &str, routes: &Routes) -> Result<Self, String> {
        let after_host = text.strip_prefix("http://").or_else(|| text.strip_prefix("https://"));
        match after_host {
            Some(rest) => {
                let (authority, _) = rest.split_once('/').unwrap_or((rest, ""));
                // A copied URL may contain a user and password before the host.
                let host = authority.rsplit_once('@').map_or(authority, |(_, host)| host);
                Self::of_request(Some(host), &rest[authority.len()..])
            }
            None if text.starts_with('/') => Self::of_request(None, text),
            None => Self::of_name(
                TRANSPORT_PREFIXES.iter().find_map(|scheme| text.strip_prefix(scheme)).unwrap_or(text),
                routes,
            ),
        }
    }

    pub(super) fn requested_repo(&self) -> RequestedRepo<'_> {
        RequestedRepo {
            ns: self.ns.as_deref(),
            host: self.host.as_deref(),
            prefix: self.prefix.as_deref(),
            name: &self.name,
        }
    }

    /// Parses an image name. This server's own address before it is not part of the repository's name.
    fn of_name(image: &str, routes: &Routes) -> Result<Self, String> {
        let (name, reference) = match image.split_once('@') {
            Some((name, digest)) => (split_tag(name).0, Reference::Digest(digest.parse().map_err(to_text)?)),
            None => {
                let (name, tag) = split_tag(image);
                let tag: Tag = tag.unwrap_or("latest").parse().map_err(to_text)?;
                (name, Reference::Tag(tag))
            }
        };
        let name = match name.split_once('/') {
            Some((first, rest)) if routes.upstream(first).is_none() && routes.is_own(first, None) => rest,
            _ => name,
        };
        Ok(Self { ns: None, host: None, prefix: None, name: name.to_owned(), target: QueryTarget::Image(reference) })
    }

    /// Parses the path and query of a request. `host` is the host of its URL.
    fn of_request(host: Option<&str>, path_and_query: &str) -> Result<Self, String> {
        let (path, query) = path_and_query.split_once('?').unwrap_or((path_and_query, ""));
        let Route { prefix, name, endpoint } = Route::parse(path).map_err(to_text)?;
        let target = match endpoint {
            Endpoint::Manifest(reference) => QueryTarget::Image(reference.parse().map_err(to_text)?),
            Endpoint::Blob(digest) => QueryTarget::Blob(digest.parse().map_err(to_text)?),
            Endpoint::Referrers(digest) => QueryTarget::Referrers(digest.parse().map_err(to_text)?),
            Endpoint::Tags => QueryTarget::Tags,
            Endpoint::Base | Endpoint::Catalog | Endpoint::Uploads | Endpoint::Upload(_) => {
                return Err(
                    "this request reads no image; give the path of a manifest, a blob, a list of tags or of referrers"
                        .to_owned(),
                );
            }
        };
        let mut parameters = form_urlencoded::parse(query.as_bytes());
        let ns = parameters.find(|(key, _)| key == "ns").map(|(_, ns)| ns.into_owned());
        Ok(Self { ns, host: host.map(str::to_owned), prefix, name, target })
    }
}

// === impl QueryTarget ===

impl QueryTarget {
    /// Returns the full name of the requested content.
    pub(super) fn full_name(&self, repo: &RepoId) -> String {
        match self {
            Self::Image(Reference::Tag(tag)) => format!("{repo}:{tag}"),
            Self::Image(Reference::Digest(digest)) | Self::Blob(digest) => format!("{repo}@{digest}"),
            Self::Tags => format!("tags of {repo}"),
            Self::Referrers(digest) => format!("referrers of {repo}@{digest}"),
        }
    }
}

fn to_text(error: impl std::fmt::Display) -> String {
    error.to_string()
}

/// Splits a name and its tag. A colon after the last slash begins a tag; one before it begins a port.
fn split_tag(name: &str) -> (&str, Option<&str>) {
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
    fn names_are_parsed_as_clients_parse_them() {
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
            let found = ExplainQuery::parse(image, &routes).unwrap();
            let reference: Reference = reference.parse().unwrap();
            assert_eq!((found.name.as_str(), found.target), (name, QueryTarget::Image(reference)), "{image}");
        }
        assert!(ExplainQuery::parse("a@sha256:x", &routes).is_err());
        assert!(ExplainQuery::parse("a:.b", &routes).is_err());
    }

    #[test]
    fn host_path_and_query_of_a_request_are_parsed() {
        let routes = Routes::new(&Config::default());
        let digest = format!("sha256:{}", "0".repeat(64));
        let blob = format!("/docker.io/v2/a/b/blobs/{digest}");
        let referrers = format!("/v2/a/referrers/{digest}?artifactType=x&ns=localhost%3A5001");
        let parsed: Digest = digest.parse().unwrap();
        let image = |tag: &str| QueryTarget::Image(tag.parse().unwrap());
        for (text, ns, host, prefix, name, target) in [
            ("/v2/a/b/manifests/1", None, None, None, "a/b", image("1")),
            ("http://h:5000/v2/a/manifests/1?ns=ghcr.io", Some("ghcr.io"), Some("h:5000"), None, "a", image("1")),
            ("https://u:hunter2@h/v2/a/tags/list?n=5", None, Some("h"), None, "a", QueryTarget::Tags),
            (&blob, None, None, Some("docker.io"), "a/b", QueryTarget::Blob(parsed.clone())),
            (&referrers, Some("localhost:5001"), None, None, "a", QueryTarget::Referrers(parsed)),
        ] {
            let found = ExplainQuery::parse(text, &routes).unwrap();
            let requested = found.requested_repo();
            assert_eq!(
                (requested.ns, requested.host, requested.prefix, requested.name),
                (ns, host, prefix, name),
                "{text}"
            );
            assert_eq!(found.target, target, "{text}");
        }
        for text in ["/v2/", "http://h", "http://h/metrics", "/v2/_catalog", "/v2/a%2Fb/manifests/1", "/v2/a/blobs/x"] {
            assert!(ExplainQuery::parse(text, &routes).is_err(), "{text}");
        }
    }
}
