//! Validation of the name and the URL of an upstream.

use url::Url;

use super::upstream::{DOCKER_IO, canonical_name};
use super::value::{Setting, ValueError};

/// The base URL of an upstream: `http` or `https`, a host, and optionally a port and a path.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct UpstreamUrl(pub(super) Url);

// === impl UpstreamUrl ===

impl Setting for UpstreamUrl {
    const EXPECTED: &'static str = "a URL; write for example \"https://registry.example.com\"";

    fn from_text(text: &str) -> Result<Self, ValueError> {
        let because = |message: String| Err(ValueError::Because(message));
        if text.contains('@') {
            // The error does not repeat the URL, which may contain a password.
            return because("the URL contains a user name or password; set username and password instead".to_owned());
        }
        let Some((scheme, rest)) = text.split_once("://") else {
            return because(format!("\"{text}\" has no scheme; write \"https://{text}\""));
        };
        if !["http", "https"].contains(&scheme) {
            return because(format!("\"{text}\" is neither http nor https; write \"https://{rest}\""));
        }
        let url = Url::parse(text).map_err(|_| ValueError::Unexpected)?;
        if url.query().is_some() || url.fragment().is_some() {
            return because(format!("\"{text}\" has a query or fragment; remove it"));
        }
        let path = url.path().trim_end_matches('/');
        if let Some(base) = path.strip_suffix("/v2") {
            let right = format!("{}{base}", url.origin().ascii_serialization());
            return because(format!("\"{text}\" ends in /v2, which is added automatically; write \"{right}\""));
        }
        Ok(Self(url))
    }
}

/// Checks the name of an upstream. The error is a predicate that follows the quoted name.
pub(super) fn check_name(name: &str) -> Result<(), String> {
    let (host, port) = name.split_once(':').unwrap_or((name, "0"));
    let host_character = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || "-._".contains(c);
    if name.chars().any(|c| c.is_ascii_uppercase()) {
        Err(format!("has upper case letters; write \"{}\"", name.to_ascii_lowercase()))
    } else if name == "local" {
        Err("is reserved for pushed images; the name of an upstream contains a \".\" or a \":\"".to_owned())
    } else if !name.contains(['.', ':']) {
        Err("contains no \".\" or \":\" and so is not the host of a registry; write for example \"registry.example.com\""
            .to_owned())
    } else if host.is_empty() || !host.chars().all(host_character) || port.parse::<u16>().is_err() {
        Err("is not a host or a host and port; write for example \"registry.example.com:5000\"".to_owned())
    } else if canonical_name(name) != name {
        Err(format!("is another name of \"{DOCKER_IO}\"; write \"{DOCKER_IO}\""))
    } else {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::value::RawValue;

    #[test]
    fn invalid_urls_are_rejected_with_a_correction() {
        let cases = [
            ("registry.example.com", r#""registry.example.com" has no scheme; write "https://registry.example.com""#),
            ("localhost:5001", r#""localhost:5001" has no scheme; write "https://localhost:5001""#),
            ("ftp://a.b", r#""ftp://a.b" is neither http nor https; write "https://a.b""#),
            ("https://", r#""https://" is not a URL; write for example "https://registry.example.com""#),
            ("https://a.b?x=1", r#""https://a.b?x=1" has a query or fragment; remove it"#),
            ("https://a.b/#x", r#""https://a.b/#x" has a query or fragment; remove it"#),
            ("https://ann:secret@a.b", "the URL contains a user name or password; set username and password instead"),
            ("https://a.b/v2/", r#""https://a.b/v2/" ends in /v2, which is added automatically; write "https://a.b""#),
        ];
        for (text, message) in cases {
            assert_eq!(RawValue::Text(text).read::<UpstreamUrl>().unwrap_err(), message);
        }
    }

    #[test]
    fn urls_may_have_a_port_and_a_path() {
        for text in ["http://127.0.0.1:5001/", "https://registry.example.com/team/mirror"] {
            assert_eq!(RawValue::Text(text).read::<UpstreamUrl>().unwrap().0.as_str(), text);
        }
    }

    #[test]
    fn upstream_names_are_hosts_and_ports() {
        for name in ["docker.io", "localhost:5001", "10.0.0.1:5000", "registry:80"] {
            assert_eq!(check_name(name), Ok(()), "{name}");
        }
        for name in
            ["local", "docker", "Docker.io", "a.b/c", "a.b:port", ":5000", "https://a.b", "index.docker.io", "a b.c"]
        {
            assert!(check_name(name).is_err(), "{name}");
        }
    }
}
