//! `[cache] pin`: patterns of images that are never evicted.

use std::fmt;

use globset::{GlobBuilder, GlobMatcher};

/// A glob pattern of mirrored images, such as `docker.io/library/*:3.*`. Without a tag, it is for all tags. `*` matches
/// within one component.
#[derive(Clone)]
pub struct Pin {
    pattern: String,
    /// Matches the upstream's name. `None`: the first component is not a complete pattern, so any upstream may match.
    upstream: Option<GlobMatcher>,
    /// Matches `upstream/repository`.
    name: GlobMatcher,
    /// Matches the tag. `None`: all tags.
    tag: Option<GlobMatcher>,
}

impl Pin {
    /// Compiles a pattern, which must include the upstream's name. `None` if it cannot match any image.
    pub fn parse(pattern: &str) -> Option<Self> {
        let allowed = |c: char| c.is_ascii_alphanumeric() || "._-/:*?[]{},!".contains(c);
        let (upstream, rest) = pattern.split_once('/')?;
        let is_upstream = upstream.contains(['.', ':', '*', '?', '[', '{']);
        let ends = rest.starts_with(['/', ':']) || rest.ends_with(['/', ':']) || rest.is_empty();
        if !is_upstream || ends || !pattern.chars().all(allowed) {
            return None;
        }
        let glob = |text: &str| Some(GlobBuilder::new(text).literal_separator(true).build().ok()?.compile_matcher());
        let (name, tag) = split_tag(pattern);
        let tag = if tag.is_empty() { None } else { Some(glob(&tag[1..])?) };
        Some(Self { pattern: pattern.to_owned(), upstream: glob(upstream), name: glob(name)?, tag })
    }

    /// The pattern of the name, with the upstream, and that of the tag with its colon. Without a tag, the second is empty.
    pub fn name_and_tag(&self) -> (&str, &str) {
        split_tag(&self.pattern)
    }

    /// Whether the pattern may match images of this upstream.
    pub fn may_match_upstream(&self, upstream: &str) -> bool {
        self.upstream.as_ref().is_none_or(|pattern| pattern.is_match(upstream))
    }

    /// Whether the pattern matches the image `name:tag`; `name` is `upstream/repository`.
    pub fn matches(&self, name: &str, tag: &str) -> bool {
        self.name.is_match(name) && self.tag.as_ref().is_none_or(|pattern| pattern.is_match(tag))
    }

    /// The pattern as configured.
    pub fn as_str(&self) -> &str {
        &self.pattern
    }
}

fn split_tag(pattern: &str) -> (&str, &str) {
    let at = pattern.find('/').and_then(|first| pattern.rfind(':').filter(|colon| *colon > first));
    match at {
        Some(colon) if !pattern[colon..].contains('/') => pattern.split_at(colon),
        _ => (pattern, ""),
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
    fn pins_match_images_of_an_upstream() {
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
    fn pins_name_their_upstreams() {
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
            assert_eq!(Pin::parse(pattern).unwrap().may_match_upstream(upstream), expected, "{pattern} of {upstream}");
        }
    }

    #[test]
    fn pins_that_match_nothing_are_rejected() {
        for pattern in ["", "alpine", "library/alpine", "docker.io/", "docker.io/a:", "docker.io//a", "docker.io/a b"] {
            assert!(Pin::parse(pattern).is_none(), "{pattern:?}");
        }
    }
}
