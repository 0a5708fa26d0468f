//! The credential rules of one upstream: which rule is for a repository, and the credentials from its source.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::{Instant, timeout_at};
use url::{Position, Url};

use super::docker::DockerConfig;
use super::renewed::{OutputFormat, ProgramCall, Programs};
use super::watched::Watched;
use super::{Credentials, FailureReason, Login, SourceResult, password};
use crate::config::{CredentialConfig, CredentialSource, Namespace, UpstreamConfig};
use crate::tasks::Tasks;
use crate::upstream::{CredentialId, UpstreamError, UpstreamSetupError};

/// How long the output of Docker's helpers is used, as they do not say.
const HELPER_LIFETIME: Duration = Duration::from_secs(10 * 60);
/// Longest wait for Docker's file before a request that may need no credentials.
const MAX_READ_WAIT: Duration = Duration::from_secs(1);

/// The credential rules of one upstream, in order.
pub(in crate::upstream) struct Keyring {
    upstream: Arc<str>,
    urls: Vec<Url>,
    /// Hosts of the URLs whose requests carry no passwords, because they are not on the upstream's own domain.
    withheld: Vec<String>,
    rules: Vec<CredentialRule>,
}

/// A rule with its live source.
struct CredentialRule {
    repository: Option<Namespace>,
    source: Source,
}

/// A source of credentials and its cached state.
enum Source {
    Given(Arc<Credentials>),
    File(Watched<Arc<Credentials>>),
    Exec(ProgramCall, Programs),
    Docker(Watched<DockerConfig>, Programs),
}

// === impl Keyring ===

impl Keyring {
    /// Creates the sources. Files and programs are used with the first request.
    ///
    /// # Errors
    /// If a password cannot be sent in a header.
    pub(in crate::upstream) fn new(config: &UpstreamConfig, tasks: &Tasks) -> Result<Self, UpstreamSetupError> {
        let rule = |rule: &CredentialConfig| {
            let source = Source::new(&rule.source, tasks)
                .ok_or_else(|| UpstreamSetupError::Header { upstream: config.name.clone(), what: "the password" })?;
            Ok(CredentialRule { repository: rule.repository.clone(), source })
        };
        let rules = config.credentials.iter().map(rule).collect::<Result<_, _>>()?;
        let withheld = config.urls.iter().filter(|url| !config.credentials_are_for(url));
        let withheld = withheld.map(|url| host(url).to_owned()).collect();
        Ok(Self { upstream: config.name.as_str().into(), urls: config.urls.clone(), withheld, rules })
    }

    /// The rule for a repository, and the login if the rule has several.
    pub(in crate::upstream) fn id(&self, repository: &str) -> CredentialId {
        let found = self.rules.iter().enumerate().find(|(_, rule)| rule.is_for(repository));
        let login = found.and_then(|(_, rule)| rule.source.login(&self.urls, repository));
        CredentialId { rule: found.map(|(position, _)| position), login }
    }

    /// Reads Docker's file, if that is the source for a repository. Waits for `MAX_READ_WAIT` at most, and not beyond
    /// `deadline`. An error is reported by the request that needs the credentials.
    pub(in crate::upstream) async fn read(&self, repository: &str, deadline: Instant) {
        let rule = self.rules.iter().find(|rule| rule.is_for(repository));
        if let Some(CredentialRule { source: Source::Docker(file, _), .. }) = rule {
            let _ = timeout_at(deadline.min(Instant::now() + MAX_READ_WAIT), file.get()).await;
        }
    }

    /// Whether a rule is for the repository.
    pub(in crate::upstream) fn has_rule(&self, repository: &str) -> bool {
        self.rules.iter().any(|rule| rule.is_for(repository))
    }

    /// Whether requests for a repository use credentials, without reading a file or running a program.
    pub(in crate::upstream) fn has(&self, repository: &str) -> bool {
        let rule = self.rules.iter().find(|rule| rule.is_for(repository));
        rule.is_some_and(|rule| self.urls.iter().any(|url| rule.source.has(host(url), repository)))
    }

    /// The credentials for a repository at one of the upstream's URLs; `None` if there are none.
    ///
    /// # Errors
    /// If the source fails, or has no result at `deadline`.
    pub(in crate::upstream) async fn get(
        &self,
        url: &Url,
        repository: &str,
        deadline: Instant,
    ) -> Result<SourceResult, UpstreamError> {
        let Some(rule) = self.rules.iter().find(|rule| rule.is_for(repository)) else { return Ok(None) };
        if self.withholds(rule, url) {
            return Ok(None);
        }
        let found = timeout_at(deadline, rule.source.get(host(url), repository, deadline)).await;
        let found = found.map_err(|_| UpstreamError::timeout(&self.upstream, "reading the credentials for it"))?;
        found.map_err(|cause| UpstreamError::Credentials { upstream: self.upstream.clone(), cause })
    }

    /// Whether requests for a repository to this URL have no credentials, although those to another URL have some.
    pub(in crate::upstream) fn is_anonymous_at(&self, url: &Url, repository: &str) -> bool {
        let rule = self.rules.iter().find(|rule| rule.is_for(repository));
        rule.is_some_and(|rule| self.withholds(rule, url))
    }

    /// Docker's file is searched by host, so its login for a host is sent to that host.
    fn withholds(&self, rule: &CredentialRule, url: &Url) -> bool {
        !matches!(rule.source, Source::Docker(..)) && self.withheld.iter().any(|withheld| withheld == host(url))
    }

    /// Asks the source again after its credentials were refused. Returns whether it has other credentials now.
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

// === impl CredentialRule ===

impl CredentialRule {
    fn is_for(&self, repository: &str) -> bool {
        self.repository.as_ref().is_none_or(|pattern| pattern.matches(repository))
    }
}

// === impl Source ===

impl Source {
    /// `None` for a password that cannot be sent in a header.
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
                let format = username.clone().map_or(OutputFormat::Object, OutputFormat::Password);
                let call = ProgramCall { command: command.clone(), input: String::new(), format };
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

    /// The login of Docker's file that a repository uses at these URLs; `None` for other sources. A file that was not
    /// read gives each repository a login of its own, so that nothing is shared.
    fn login(&self, urls: &[Url], repository: &str) -> Option<Login> {
        let Self::Docker(file, _) = self else { return None };
        Some(match file.known() {
            None => Login::unknown(repository),
            Some(config) => Login::of(urls.iter().map(|url| config.look_up(host(url), repository).identity())),
        })
    }

    async fn get(&self, host: &str, repository: &str, deadline: Instant) -> Result<SourceResult, FailureReason> {
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
            Self::File(file) => file.check().await.is_ok_and(|now| now.account != refused.account),
            Self::Exec(call, programs) => programs.renew(call, refused.account, deadline).await,
            Self::Docker(file, programs) => {
                let Ok(config) = file.check().await else { return false };
                let found = config.look_up(host, repository);
                match &found.helper {
                    Some(call) if programs.renew(call, refused.account, deadline).await => true,
                    _ => found.login.is_some_and(|login| login.account != refused.account),
                }
            }
        }
    }
}

/// The host, with its port unless that is the scheme's default.
fn host(url: &Url) -> &str {
    &url[Position::BeforeHost..Position::AfterPort]
}
