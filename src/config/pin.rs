//! `[cache] pin`: images that are never evicted.

use std::fmt;

use globset::{GlobBuilder, GlobMatcher};

/// A pattern of images of upstreams, such as `docker.io/library/*:3.*`; without a tag, all of them. `*` stays within one
/// component.
#[derive(Clone)]
pub struct Pin {
    pattern: String,
    /// `None`: a pattern that does not end with the upstream's name.
    upstream: Option<GlobMatcher>,
    /// Of `upstream/repository`.
    name: GlobMatcher,
    /// `None`: all of them.
    tag: Option<GlobMatcher>,
}

impl Pin {
    /// `None` for what no image can match: the upstream's name belongs to it.
    pub fn parse(pattern: &str) -> Option<Self> {
        let allowed = |c: char| c.is_ascii_alphanumeric() || "._-/:*?[]{},!".contains(c);
        let (upstream, rest) = pattern.split_once('/')?;
        let is_upstream = upstream.contains(['.', ':', '*', '?', '[', '{']);
        let ends = rest.starts_with(['/', ':']) || rest.ends_with(['/', ':']) || rest.is_empty();
        if !is_upstream || ends || !pattern.chars().all(allowed) {
            return None;
        }
        let glob = |text: &str| Some(GlobBuilder::new(text).literal_separator(true).build().ok()?.compile_matcher());
        let (name, tag) = match rest.rsplit_once(':') {
            Some((_, tag)) if !tag.contains('/') => (&pattern[..pattern.len() - tag.len() - 1], Some(glob(tag)?)),
            _ => (pattern, None),
        };
        Some(Self { pattern: pattern.to_owned(), upstream: glob(upstream), name: glob(name)?, tag })
    }

    /// Whether images of this upstream may be meant.
    pub fn may_mean(&self, upstream: &str) -> bool {
        self.upstream.as_ref().is_none_or(|pattern| pattern.is_match(upstream))
    }

    /// Whether the image `name:tag` is meant; `name` is `upstream/repository`.
    pub fn matches(&self, name: &str, tag: &str) -> bool {
        self.name.is_match(name) && self.tag.as_ref().is_none_or(|pattern| pattern.is_match(tag))
    }

    pub fn as_str(&self) -> &str {
        &self.pattern
    }
}

impl fmt::Debug for Pin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.pattern.fmt(f)
    }
}

impl PartialEq for Pin {
    fn eq(&self, other: &Self) -> bool {
        self.pattern == other.pattern
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pin_matches_images_of_an_upstream() {
        let cases = [
            ("docker.io/library/*:3.*", "docker.io/library/alpine:3.20", true),
            ("docker.io/library/*:3.*", "docker.io/library/alpine:4.0", false),
            ("docker.io/library/*:3.*", "docker.io/org/alpine:3.20", false),
            ("docker.io/library/alpine", "docker.io/library/alpine:any", true),
            ("docker.io/library/alpine", "docker.io/library/alpine-x:any", false),
            ("ghcr.io/**", "ghcr.io/a/b/c:V1", true),
            ("ghcr.io/*", "ghcr.io/a/b:v1", false),
            ("host:5000/app", "host:5000/app:v1", true),
            ("*/library/{alpine,busybox}:latest", "docker.io/library/busybox:latest", true),
        ];
        for (pattern, image, expected) in cases {
            let (name, tag) = image.rsplit_once(':').unwrap();
            assert_eq!(Pin::parse(pattern).unwrap().matches(name, tag), expected, "{pattern} on {image}");
        }
    }

    #[test]
    fn a_pin_names_its_upstreams() {
        let cases = [
            ("docker.io/library/alpine", "docker.io", true),
            ("docker.io/library/alpine", "ghcr.io", false),
            ("*.io/library/alpine", "ghcr.io", true),
            ("**/alpine", "ghcr.io", true),
            ("host:5000/app", "host:5000", true),
            ("{docker.io,ghcr.io}/app", "quay.io", false),
            ("{docker.io/library,ghcr.io}/app", "quay.io", true),
        ];
        for (pattern, upstream, expected) in cases {
            assert_eq!(Pin::parse(pattern).unwrap().may_mean(upstream), expected, "{pattern} of {upstream}");
        }
    }

    #[test]
    fn what_can_never_match_is_refused() {
        for pattern in ["", "alpine", "library/alpine", "docker.io/", "docker.io/a:", "docker.io//a", "docker.io/a b"] {
            assert!(Pin::parse(pattern).is_none(), "{pattern:?}");
        }
    }
}
