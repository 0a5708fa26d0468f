//! In which repository of this server the content of a source belongs.
//!
//! Without an upstream, content becomes pushed content of local repositories, under the rules of a push. With one, it becomes
//! cached content of that upstream.

use super::image_name::ImageName;
use crate::oci::{RepoId, RepoName, Scope, UpstreamName};
use crate::resolve::{PushRefused, RequestedRepo, Routes};

/// The rules of this server, and the choices of the operator.
#[derive(Debug)]
pub struct Destinations {
    routes: Routes,
    proxied: Option<UpstreamName>,
    repository: Option<RepoName>,
}

/// Why the operator's choices cannot be followed.
#[derive(Debug, thiserror::Error)]
pub enum DestinationError {
    #[error("{0} is no upstream of this server; add it to the configuration, or correct --proxied")]
    UnknownUpstream(String),
    #[error("{name}: {error}; correct --repository")]
    Repository { name: String, error: crate::oci::NameError },
}

impl Destinations {
    /// `proxied` is the name of an upstream, `repository` the name of a repository for all images of a layout or archive.
    ///
    /// # Errors
    /// If the upstream is not configured, or the name is not valid.
    pub fn new(routes: Routes, proxied: Option<&str>, repository: Option<&str>) -> Result<Self, DestinationError> {
        let upstream = |host: &str| {
            routes.upstream(host).cloned().ok_or_else(|| DestinationError::UnknownUpstream(host.to_owned()))
        };
        let proxied = proxied.map(upstream).transpose()?;
        let name =
            |name: &str| name.parse().map_err(|error| DestinationError::Repository { name: name.to_owned(), error });
        let repository = repository.map(name).transpose()?;
        Ok(Self { routes, proxied, repository })
    }

    /// Whether the operator has named the repository.
    pub(super) fn names_repository(&self) -> bool {
        self.repository.is_some()
    }

    /// The repository for that of a registry.
    ///
    /// # Errors
    /// Why it cannot be here, and what to do.
    pub(super) fn of_repository(&self, name: &RepoName) -> Result<RepoId, String> {
        match &self.proxied {
            Some(upstream) => self.mirrored(upstream, name.as_str()),
            None => self.local(name.as_str()),
        }
    }

    /// The repositories for an image of a layout or an archive. There are two for a name of one component, because clients
    /// add `library/` to it if they take this server for docker.io.
    ///
    /// # Errors
    /// Why it cannot be here, and what to do.
    pub(super) fn of_image(&self, image: &ImageName) -> Result<Vec<RepoId>, String> {
        if let Some(repository) = &self.repository {
            return Ok(vec![self.of_repository(repository)?]);
        }
        let upstream = self.routes.upstream(&image.host);
        match (&self.proxied, upstream) {
            (Some(proxied), Some(upstream)) if proxied == upstream => {
                return Ok(vec![self.mirrored(proxied, &image.path)?]);
            }
            (Some(proxied), _) => return Err(format!("it is no image of {proxied}")),
            (None, _) => {}
        }
        match (image.official(), upstream) {
            (Some(name), _) => {
                let official = self.local(&format!("library/{name}"));
                let short = self.local(name);
                match (official, short) {
                    (Ok(official), Ok(short)) => Ok(vec![official, short]),
                    (official, short) => Ok(vec![official.or(short)?]),
                }
            }
            (None, Some(upstream)) if &**upstream != "docker.io" => Err(format!(
                "{upstream} is an upstream of this server; import its images with --proxied {upstream}, or choose a name \
                 with --repository"
            )),
            (None, _) => Ok(vec![self.local(&image.path)?]),
        }
    }

    /// Whether clients that name docker.io reach its upstream instead of this local repository.
    pub(super) fn is_hidden(&self, image: &ImageName, repo: &RepoId) -> bool {
        let asked = RequestedRepo { ns: Some("docker.io"), name: repo.name.as_str(), ..RequestedRepo::default() };
        image.host == "docker.io"
            && repo.scope.is_local()
            && self.routes.resolve(asked, |_| true).is_ok_and(|found| !found.repo.scope.is_local())
    }

    /// The cached repository whose place a new local one would take, see [`Routes::default_repository`].
    pub(super) fn rival(&self, repo: &RepoId) -> Option<RepoId> {
        if repo.scope.is_local() { self.routes.default_repository(&repo.name) } else { None }
    }

    fn mirrored(&self, upstream: &UpstreamName, name: &str) -> Result<RepoId, String> {
        let repo = Routes::repository_of(upstream, name).map_err(|error| error.to_string())?;
        debug_assert!(matches!(repo.scope, Scope::Upstream(_)));
        Ok(repo)
    }

    fn local(&self, name: &str) -> Result<RepoId, String> {
        self.routes.resolve_push(RequestedRepo { name, ..RequestedRepo::default() }).map_err(|refused| match refused {
            PushRefused::Mirrored(upstream) => format!(
                "the name begins with the upstream {upstream}; remove that upstream from the configuration (see \
                 builtin_upstreams), and import again"
            ),
            PushRefused::Library => {
                "names under library/ belong to the default upstream; set default_upstream to none, or list the name in \
                 [local] namespaces together with every other name that is pushed here, and import again"
                    .to_owned()
            }
            PushRefused::OutsideNamespaces => {
                "the name matches none of [local] namespaces; add it there, and import again".to_owned()
            }
            PushRefused::Resolve(error) => error.to_string(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Config;

    fn destinations(toml: &str, proxied: Option<&str>, repository: Option<&str>) -> Destinations {
        let config = Config::from_toml(toml, "test.toml").unwrap();
        Destinations::new(Routes::new(&config), proxied, repository).unwrap()
    }

    fn of_image(destinations: &Destinations, name: &str) -> Vec<String> {
        match destinations.of_image(&ImageName::parse(name).unwrap()) {
            Ok(repos) => repos.iter().map(|repo| format!("{}:{repo}", repo.scope.is_local())).collect(),
            Err(_) => Vec::new(),
        }
    }

    const AIR_GAPPED: &str = "builtin_upstreams = false\ndefault_upstream = \"none\"";

    #[test]
    fn images_are_pushed_ones_under_their_names_without_the_host() {
        for (toml, name, expected) in [
            (AIR_GAPPED, "docker.io/rancher/pause:3.6", &["true:rancher/pause"][..]),
            (AIR_GAPPED, "registry.k8s.io/pause:3.9", &["true:pause"]),
            (AIR_GAPPED, "docker.io/library/alpine:3", &["true:library/alpine", "true:alpine"]),
            ("", "docker.io/library/alpine:3", &["true:alpine"]),
            ("", "myapp:latest", &["true:myapp"]),
            ("", "team/app:latest", &["true:team/app"]),
            ("", "registry.example:5000/team/app:latest", &["true:team/app"]),
            ("", "ghcr.io/org/app:v1", &[]),
            ("[local]\nnamespaces = [\"team/**\"]", "other/app:v1", &[]),
        ] {
            assert_eq!(of_image(&destinations(toml, None, None), name), expected, "{name}");
        }
    }

    #[test]
    fn with_an_upstream_its_images_alone_are_cached_ones() {
        let docker = destinations("", Some("docker.io"), None);
        assert_eq!(of_image(&docker, "alpine:3"), ["false:docker.io/library/alpine"]);
        assert_eq!(of_image(&docker, "index.docker.io/team/app:3"), ["false:docker.io/team/app"]);
        assert_eq!(of_image(&docker, "ghcr.io/team/app:3"), [""; 0]);
        let name = "alpine".parse().unwrap();
        assert_eq!(docker.of_repository(&name).unwrap().to_string(), "docker.io/library/alpine");
        assert_eq!(of_image(&destinations("", None, Some("any/name")), "ghcr.io/team/app:3"), ["true:any/name"]);
    }

    #[test]
    fn names_that_a_push_could_not_have_are_refused_with_a_remedy() {
        let default = destinations("", None, None);
        for (name, remedy) in [("docker.io/library/alpine", "builtin_upstreams"), ("library/alpine", "[local]")] {
            let error = default.of_repository(&name.parse().unwrap()).unwrap_err();
            assert!(error.contains(remedy), "{error}");
        }
        let config = Config::from_toml("", "test.toml").unwrap();
        assert!(Destinations::new(Routes::new(&config), Some("no.example"), None).is_err());
        assert!(Destinations::new(Routes::new(&config), None, Some("No")).is_err());
    }

    #[test]
    fn images_that_clients_of_docker_io_do_not_reach_are_known() {
        let image = ImageName::parse("rancher/pause:3.6").unwrap();
        for (toml, hidden) in [("", true), (AIR_GAPPED, false), ("[local]\nnamespaces = [\"rancher/**\"]", false)] {
            let destinations = destinations(toml, None, None);
            let repo = destinations.of_image(&image).unwrap().remove(0);
            assert_eq!(destinations.is_hidden(&image, &repo), hidden, "{toml}");
        }
    }
}
