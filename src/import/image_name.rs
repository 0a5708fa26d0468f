//! The names of images in layouts and archives, such as `docker.io/library/alpine:3`.

use crate::oci::Tag;

const DOCKER_IO: &str = "docker.io";

/// An image name with a tag, as clients write it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ImageName {
    /// The registry's host, and port if it has one. `docker.io` for a name without a host.
    pub(super) host: String,
    /// The name without the host.
    pub(super) path: String,
    pub(super) tag: Option<Tag>,
}

impl ImageName {
    /// Parses `[HOST/]PATH[:TAG][@DIGEST]`. The path need not be a valid name. `None` if the tag is not valid.
    pub(super) fn parse(text: &str) -> Option<Self> {
        let name = text.split('@').next().unwrap_or_default();
        let (name, tag) = match name.rsplit_once(':') {
            Some((name, tag)) if !tag.contains('/') => (name, Some(tag.parse().ok()?)),
            _ => (name, None),
        };
        let (host, path) = match name.split_once('/') {
            Some((host, path)) if host.contains(['.', ':']) || host == "localhost" => (host, path),
            _ => (DOCKER_IO, name),
        };
        Some(Self { host: host.to_ascii_lowercase(), path: path.to_owned(), tag })
    }

    /// The name of an official image of docker.io without `library/`, or of an image whose name has one component.
    pub(super) fn official(&self) -> Option<&str> {
        let name = self.path.strip_prefix("library/").unwrap_or(&self.path);
        (self.host == DOCKER_IO && !name.contains('/')).then_some(name)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_divided_as_docker_does() {
        for (text, host, path, tag) in [
            ("alpine", "docker.io", "alpine", None),
            ("alpine:3", "docker.io", "alpine", Some("3")),
            ("docker.io/library/alpine:3", "docker.io", "library/alpine", Some("3")),
            ("team/app:v1", "docker.io", "team/app", Some("v1")),
            ("localhost/app:v1", "localhost", "app", Some("v1")),
            ("Registry.example:5000/team/app", "registry.example:5000", "team/app", None),
            ("ghcr.io/a/b:v1@sha256:00", "ghcr.io", "a/b", Some("v1")),
        ] {
            let name = ImageName::parse(text).unwrap();
            let found = (name.host.as_str(), name.path.as_str(), name.tag.as_ref().map(Tag::as_str));
            assert_eq!(found, (host, path, tag), "{text}");
        }
        assert_eq!(ImageName::parse("alpine:"), None);
        assert_eq!(ImageName::parse("docker.io/library/alpine:3").unwrap().official(), Some("alpine"));
        assert_eq!(ImageName::parse("alpine").unwrap().official(), Some("alpine"));
        assert_eq!(ImageName::parse("team/app").unwrap().official(), None);
        assert_eq!(ImageName::parse("ghcr.io/app").unwrap().official(), None);
    }
}
