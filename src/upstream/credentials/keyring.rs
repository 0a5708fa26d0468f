//! The credentials of one upstream: which rule is for a repository, and what its source gives.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::{Instant, timeout_at};
use url::{Position, Url};

use super::docker::DockerConfig;
use super::renewed::{Call, Programs, Reads};
use super::watched::Watched;
use super::{Credentials, Failure, Found, password};
use crate::config::{CredentialConfig, CredentialSource, Namespace, UpstreamConfig};
use crate::tasks::Tasks;
use crate::upstream::{CredentialId, UpstreamError, UpstreamSetupError};

/// Docker's helpers do not say how long what they give is good.
const HELPER_LIFETIME: Duration = Duration::from_secs(10 * 60);

pub(in crate::upstream) struct Keyring {
    upstream: Arc<str>,
    urls: Vec<Url>,
    rules: Vec<Rule>,
}

struct Rule {
    repository: Option<Namespace>,
    source: Source,
}

enum Source {
    Given(Arc<Credentials>),
    File(Watched<Arc<Credentials>>),
    Exec(Call, Programs),
    Docker(Watched<DockerConfig>, Programs),
}

// === impl Keyring ===

impl Keyring {
    pub(in crate::upstream) fn new(config: &UpstreamConfig, tasks: &Tasks) -> Result<Self, UpstreamSetupError> {
        let rule = |rule: &CredentialConfig| {
            let source = Source::new(&rule.source, tasks)
                .ok_or_else(|| UpstreamSetupError::Header { upstream: config.name.clone(), what: "the password" })?;
            Ok(Rule { repository: rule.repository.clone(), source })
        };
        let rules = config.credentials.iter().map(rule).collect::<Result<_, _>>()?;
        Ok(Self { upstream: config.name.as_str().into(), urls: config.urls.clone(), rules })
    }

    /// Which rule is for a repository.
    pub(in crate::upstream) fn id(&self, repository: &str) -> CredentialId {
        CredentialId(self.rules.iter().position(|rule| rule.is_for(repository)))
    }

    /// Whether requests for a repository use credentials, as far as is known without asking.
    pub(in crate::upstream) fn has(&self, repository: &str) -> bool {
        let rule = self.rules.iter().find(|rule| rule.is_for(repository));
        rule.is_some_and(|rule| self.urls.iter().any(|url| rule.source.has(host(url), repository)))
    }

    /// The credentials for a repository at one of the upstream's URLs.
    pub(in crate::upstream) async fn get(
        &self,
        url: &Url,
        repository: &str,
        deadline: Instant,
    ) -> Result<Found, UpstreamError> {
        let Some(rule) = self.rules.iter().find(|rule| rule.is_for(repository)) else { return Ok(None) };
        let found = timeout_at(deadline, rule.source.get(host(url), repository, deadline)).await;
        let found = found.map_err(|_| UpstreamError::timeout(&self.upstream, "reading its credentials"))?;
        found.map_err(|cause| UpstreamError::Credentials { upstream: self.upstream.clone(), cause })
    }

    /// Looks for other credentials after these were refused; whether there are some now.
    pub(in crate::upstream) async fn renew(
        &self,
        url: &Url,
        repository: &str,
        refused: &Credentials,
        deadline: Instant,
    ) -> bool {
        let Some(rule) = self.rules.iter().find(|rule| rule.is_for(repository)) else { return false };
        rule.source.renew(host(url), repository, refused, deadline).await
    }
}

// === impl Rule ===

impl Rule {
    fn is_for(&self, repository: &str) -> bool {
        self.repository.as_ref().is_none_or(|pattern| pattern.matches(repository))
    }
}

// === impl Source ===

impl Source {
    /// `None` for a password that cannot be sent.
    fn new(config: &CredentialSource, tasks: &Tasks) -> Option<Self> {
        Some(match config {
            CredentialSource::Password { username, password } => {
                Self::Given(Arc::new(Credentials::new(username, password.expose())?))
            }
            CredentialSource::File { username, path } => {
                let username = username.clone();
                Self::File(Watched::new(path.clone(), move |bytes| password::read(&username, bytes).map(Arc::new)))
            }
            CredentialSource::Exec { command, username, lifetime } => {
                let reads = username.clone().map_or(Reads::Object, Reads::Password);
                let call = Call { command: command.clone(), input: String::new(), reads };
                Self::Exec(call, Programs::new(*lifetime, tasks.clone()))
            }
            CredentialSource::Docker { path } => Self::Docker(
                Watched::new(path.clone(), DockerConfig::parse),
                Programs::new(HELPER_LIFETIME, tasks.clone()),
            ),
        })
    }

    fn has(&self, host: &str, repository: &str) -> bool {
        let Self::Docker(file, programs) = self else { return true };
        let Some(config) = file.known() else { return false };
        let found = config.look_up(host, repository);
        found.login.is_some() || found.helper.is_some_and(|call| programs.known(&call).flatten().is_some())
    }

    async fn get(&self, host: &str, repository: &str, deadline: Instant) -> Result<Found, Failure> {
        match self {
            Self::Given(credentials) => Ok(Some(credentials.clone())),
            Self::File(file) => Ok(Some(Arc::clone(&*file.get().await?))),
            Self::Exec(call, programs) => programs.get(call, deadline).await,
            Self::Docker(file, programs) => {
                let found = file.get().await?.look_up(host, repository);
                let kept = match &found.helper {
                    Some(call) => programs.get(call, deadline).await?,
                    None => None,
                };
                Ok(kept.or(found.login))
            }
        }
    }

    async fn renew(&self, host: &str, repository: &str, refused: &Credentials, deadline: Instant) -> bool {
        match self {
            Self::Given(_) => false,
            Self::File(file) => file.look().await.is_ok_and(|now| now.account != refused.account),
            Self::Exec(call, programs) => programs.renew(call, refused.account, deadline).await,
            Self::Docker(file, programs) => {
                let Ok(config) = file.look().await else { return false };
                let found = config.look_up(host, repository);
                match &found.helper {
                    Some(call) if programs.renew(call, refused.account, deadline).await => true,
                    _ => found.login.is_some_and(|login| login.account != refused.account),
                }
            }
        }
    }
}

/// With its port where that is not the scheme's own.
fn host(url: &Url) -> &str {
    &url[Position::BeforeHost..Position::AfterPort]
}
