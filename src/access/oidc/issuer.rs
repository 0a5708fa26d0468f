//! One issuer: its keys, and the verification of its tokens.
//!
//! The keys are fetched when a token needs them, by one task. Requests only wait for it, so that many of them cause one
//! fetch, and one whose client has left stops none. They are used for an hour, and for a day if they cannot be fetched
//! again. A token with an unknown key causes a fetch at most once a minute: anybody can send tokens with new key ids.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use parking_lot::Mutex;
use tokio::sync::{Notify, watch};
use tokio::time::{Instant, timeout_at};

use super::fetch::Fetcher;
use super::keys::KeySet;
use super::token::{TokenRefused, UnverifiedToken};
use crate::config::IssuerConfig;
use crate::file::{self, Stamp};

/// How long keys are used without being fetched again.
const FRESH_FOR: Duration = Duration::from_secs(60 * 60);
/// How long keys are used if they cannot be fetched again.
const USABLE_FOR: Duration = Duration::from_secs(24 * 60 * 60);
/// Shortest time between two fetches because of unknown keys.
const UNKNOWN_KEY_INTERVAL: Duration = Duration::from_secs(60);
/// Shortest time between two fetches of which the first has failed.
const RETRY_INTERVAL: Duration = Duration::from_secs(10);
/// How long a request waits for keys. A fetch takes up to twice as long, and then serves those that ask again.
const WAIT_TIMEOUT: Duration = Duration::from_secs(6);
/// How often `jwks_file` is checked for changes.
const CHECK_INTERVAL: Duration = Duration::from_secs(1);

/// An issuer of tokens.
pub(super) struct Issuer {
    config: IssuerConfig,
    credential: Arc<str>,
    keys: watch::Sender<Kept>,
    /// Wakes the task that fetches.
    wanted: Notify,
    source: Source,
}

enum Source {
    /// A file, and its state before it was read.
    File(PathBuf, Stamp),
    /// Taken by the task that fetches.
    Fetched(Mutex<Option<Box<Fetcher>>>),
}

/// The keys that an issuer had.
#[derive(Clone, Debug, Default)]
struct Kept {
    keys: Option<Arc<KeySet>>,
    /// When they were fetched.
    fetched: Option<Instant>,
    /// When a fetch was begun last.
    tried: Option<Instant>,
    is_fetching: bool,
    /// Whether the last fetch that has ended has failed.
    has_failed: bool,
}

/// What is done for a token.
#[derive(Debug)]
enum Decision {
    Use(Arc<KeySet>),
    /// They are used, and fetched again meanwhile.
    UseAndFetch(Arc<KeySet>),
    Fetch,
    /// There are no such keys, and a fetch has failed a moment ago.
    Unavailable {
        retry_after: Duration,
    },
    /// There are no others: a fetch a moment ago has shown it.
    NoneNewer,
}

/// Why a token is not accepted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::access) enum NotVerified {
    Refused(TokenRefused),
    /// The keys cannot be had.
    Unavailable {
        retry_after: Duration,
    },
}

/// A key file that cannot be used, or a file that is needed to fetch keys.
#[derive(Debug, thiserror::Error)]
#[error("{key}: cannot use {}: {cause}", path.display())]
pub struct IssuerFileError {
    key: &'static str,
    path: PathBuf,
    cause: String,
}

/// What a verified token says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Claimed {
    /// The value of the identity.
    pub(super) name: String,
    pub(super) groups: Vec<String>,
    pub(super) expires: SystemTime,
}

// === impl Issuer ===

impl Issuer {
    /// Reads the files, which blocks. Nothing is fetched.
    pub(super) fn load(config: &IssuerConfig) -> Result<Self, IssuerFileError> {
        let mut kept = Kept::default();
        let source = match (&config.jwks_file, config.url()) {
            (Some(path), _) => {
                let stamp = Stamp::of(path);
                let keys =
                    read(path).map_err(|cause| IssuerFileError { key: "jwks_file", path: path.clone(), cause })?;
                kept.keys = Some(Arc::new(keys));
                Source::File(path.clone(), stamp)
            }
            (None, Some(url)) => {
                let path = config.ca_file.clone().unwrap_or_default();
                let fetcher = Fetcher::new(config, url);
                let fetcher = fetcher.map_err(|cause| IssuerFileError { key: "ca_file", path, cause })?;
                Source::Fetched(Mutex::new(Some(Box::new(fetcher))))
            }
            // The configuration has no such issuer. It has no keys then.
            (None, None) => Source::Fetched(Mutex::new(None)),
        };
        let credential = credential(config).into();
        Ok(Self { config: config.clone(), credential, keys: watch::Sender::new(kept), wanted: Notify::new(), source })
    }

    pub(super) fn config(&self) -> &IssuerConfig {
        &self.config
    }

    /// What the tokens of this server for its identities depend on.
    pub(super) fn credential(&self) -> &Arc<str> {
        &self.credential
    }

    /// Verifies a token of this issuer.
    pub(super) async fn verify(&self, token: &UnverifiedToken<'_>) -> Result<Claimed, NotVerified> {
        let (mut keys, now) = (self.keys(None).await?, SystemTime::now());
        let mut claimed = self.claimed(token, &keys, now);
        if claimed.as_ref().is_err_and(|refused| token.may_have_new_key(*refused)) {
            keys = self.keys(Some(&keys)).await?;
            claimed = self.claimed(token, &keys, now);
        }
        claimed.map_err(NotVerified::Refused)
    }

    fn claimed(&self, token: &UnverifiedToken<'_>, keys: &KeySet, now: SystemTime) -> Result<Claimed, TokenRefused> {
        let (token, config) = (token.verify(&self.config, keys)?, &self.config);
        let expires = token.check(config, now)?;
        Ok(Claimed { name: token.name(config)?, groups: token.groups(config), expires })
    }

    /// Keys other than those that do not suffice, from memory if possible. If they are fetched, waits for [`WAIT_TIMEOUT`]
    /// at most.
    async fn keys(&self, insufficient: Option<&Arc<KeySet>>) -> Result<Arc<KeySet>, NotVerified> {
        let deadline = Instant::now() + WAIT_TIMEOUT;
        let mut kept = self.keys.subscribe();
        loop {
            let decision = match &self.source {
                Source::File(..) => kept.borrow_and_update().of_file(insufficient),
                Source::Fetched(_) => kept.borrow_and_update().decide(insufficient, Instant::now()),
            };
            match decision {
                Decision::Use(keys) => return Ok(keys),
                Decision::UseAndFetch(keys) => {
                    self.wanted.notify_one();
                    return Ok(keys);
                }
                Decision::NoneNewer => return Err(NotVerified::Refused(TokenRefused::UnknownKey)),
                Decision::Unavailable { retry_after } => return Err(NotVerified::Unavailable { retry_after }),
                Decision::Fetch => {
                    self.wanted.notify_one();
                    if timeout_at(deadline, kept.changed()).await.is_err() {
                        return Err(NotVerified::Unavailable { retry_after: RETRY_INTERVAL });
                    }
                }
            }
        }
    }

    /// Fetches keys when they are wanted, or follows their file, until it is dropped.
    pub(super) async fn follow(self: Arc<Self>) {
        match &self.source {
            Source::File(path, stamp) => self.follow_file(path.clone(), *stamp).await,
            Source::Fetched(fetcher) => {
                let fetcher = fetcher.lock().take();
                if let Some(fetcher) = fetcher {
                    self.fetch_when_wanted(*fetcher).await;
                }
            }
        }
    }

    async fn fetch_when_wanted(&self, mut fetcher: Fetcher) {
        loop {
            self.wanted.notified().await;
            // A request may have asked while the last fetch was under way, which has answered it.
            if !self.keys.borrow().is_due(Instant::now()) {
                continue;
            }
            let began = Instant::now();
            // Nobody is woken: they wait for the result.
            self.keys.send_if_modified(|kept| {
                (kept.tried, kept.is_fetching) = (Some(began), true);
                false
            });
            let fetched = fetcher.fetch().await;
            self.log(&fetched);
            self.keys.send_modify(|kept| {
                (kept.is_fetching, kept.has_failed) = (false, fetched.is_err());
                if let Ok(keys) = fetched {
                    (kept.keys, kept.fetched) = (Some(Arc::new(keys)), Some(began));
                }
            });
        }
    }

    /// Logs the first failure of several, and the end of them.
    fn log(&self, fetched: &Result<KeySet, String>) {
        let (issuer, had_failed) = (&self.config.name, self.keys.borrow().has_failed);
        match fetched {
            Ok(_) if had_failed => tracing::info!(issuer, "fetched the keys of the issuer again"),
            Ok(_) => tracing::debug!(issuer, "fetched the keys of the issuer"),
            Err(error) if had_failed => tracing::debug!(issuer, error, "cannot fetch the keys of the issuer"),
            Err(error) => {
                tracing::warn!(issuer, error, "cannot fetch the keys of the issuer; logins with its tokens may fail");
            }
        }
    }

    async fn follow_file(&self, path: PathBuf, mut seen: Stamp) {
        let mut turns = tokio::time::interval(CHECK_INTERVAL);
        turns.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            turns.tick().await;
            let path = path.clone();
            let check = tokio::task::spawn_blocking(move || {
                let stamp = Stamp::of(&path);
                (stamp != seen).then(|| (stamp, read(&path)))
            });
            let Ok(Some((stamp, found))) = check.await else { continue };
            seen = stamp;
            let issuer = &self.config.name;
            match found {
                Ok(keys) => {
                    tracing::info!(issuer, "read the changed keys of the issuer");
                    self.keys.send_modify(|kept| kept.keys = Some(Arc::new(keys)));
                }
                Err(error) => {
                    tracing::error!(issuer, error, "cannot use the changed jwks_file; the keys stay as they are");
                }
            }
        }
    }
}

// === impl Kept ===

impl Kept {
    /// What is done for a token, if these keys do not suffice for it.
    fn decide(&self, insufficient: Option<&Arc<KeySet>>, now: Instant) -> Decision {
        let is_other = |keys: &Arc<KeySet>| insufficient.is_none_or(|known| !Arc::ptr_eq(keys, known));
        let usable = self.keys.clone().filter(|keys| is_other(keys) && self.is_fetched_within(USABLE_FOR, now));
        let interval = if insufficient.is_some() { UNKNOWN_KEY_INTERVAL } else { RETRY_INTERVAL };
        let pause = interval.saturating_sub(since(self.tried, now).unwrap_or(Duration::MAX));
        let may_fetch = self.is_fetching || pause.is_zero() || (insufficient.is_none() && !self.has_failed);
        match usable {
            Some(keys) if self.is_fetched_within(FRESH_FOR, now) || !may_fetch => Decision::Use(keys),
            Some(keys) => Decision::UseAndFetch(keys),
            None if may_fetch => Decision::Fetch,
            None if self.has_failed => Decision::Unavailable { retry_after: pause },
            None => Decision::NoneNewer,
        }
    }

    /// The same for keys of a file.
    fn of_file(&self, insufficient: Option<&Arc<KeySet>>) -> Decision {
        match (&self.keys, insufficient) {
            (Some(keys), Some(known)) if Arc::ptr_eq(keys, known) => Decision::NoneNewer,
            (Some(keys), _) => Decision::Use(keys.clone()),
            (None, _) => Decision::NoneNewer,
        }
    }

    /// Whether a fetch may begin.
    fn is_due(&self, now: Instant) -> bool {
        let Some(tried) = since(self.tried, now) else { return true };
        let interval = match (self.is_fetched_within(FRESH_FOR, now), self.has_failed) {
            (true, _) => UNKNOWN_KEY_INTERVAL,
            (false, true) => RETRY_INTERVAL,
            (false, false) => Duration::ZERO,
        };
        tried >= interval
    }

    fn is_fetched_within(&self, time: Duration, now: Instant) -> bool {
        since(self.fetched, now).is_some_and(|age| age < time)
    }
}

fn since(time: Option<Instant>, now: Instant) -> Option<Duration> {
    time.map(|time| now.saturating_duration_since(time))
}

/// All settings that say whose tokens are accepted. How the keys are had may differ between servers.
fn credential(config: &IssuerConfig) -> String {
    format!("{:?}", IssuerConfig { jwks_file: None, ca_file: None, bearer_token_file: None, ..config.clone() })
}

fn read(path: &std::path::Path) -> Result<KeySet, String> {
    let text = file::read(path).map_err(|error| error.to_string())?;
    KeySet::parse(&text)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::access::oidc::test_keys::TestKey;

    fn keys() -> Arc<KeySet> {
        let set = serde_json::json!({ "keys": [TestKey::p256().jwk("a")] });
        Arc::new(KeySet::parse(set.to_string().as_bytes()).unwrap())
    }

    /// What is decided for a token that needs any keys, and for one that needs newer ones.
    fn decided(kept: &Kept, now: Instant) -> [String; 2] {
        [None, kept.keys.as_ref()].map(|insufficient| match kept.decide(insufficient, now) {
            Decision::Use(_) => "use".to_owned(),
            Decision::UseAndFetch(_) => "use and fetch".to_owned(),
            Decision::Fetch => "fetch".to_owned(),
            Decision::Unavailable { retry_after } => format!("none for {} s", retry_after.as_secs()),
            Decision::NoneNewer => "none newer".to_owned(),
        })
    }

    #[test]
    fn keys_are_fetched_when_they_are_needed_and_kept_when_that_fails() {
        let start = Instant::now();
        let after = |seconds: u64| start + Duration::from_secs(seconds);
        let none = Kept::default();
        assert_eq!(decided(&none, start), ["fetch", "fetch"]);
        assert!(none.is_due(start));
        let failed = Kept { tried: Some(start), has_failed: true, ..Kept::default() };
        assert_eq!(decided(&failed, after(4))[0], "none for 6 s");
        assert_eq!(decided(&failed, after(10))[0], "fetch");
        assert!(!failed.is_due(after(4)) && failed.is_due(after(10)));

        let fresh = Kept { keys: Some(keys()), fetched: Some(start), tried: Some(start), ..Kept::default() };
        assert_eq!(decided(&fresh, after(59)), ["use", "none newer"]);
        assert_eq!(decided(&fresh, after(60)), ["use", "fetch"]);
        assert!(!fresh.is_due(after(59)) && fresh.is_due(after(60)));
        assert_eq!(decided(&fresh, after(3600))[0], "use and fetch");
        assert!(fresh.is_due(after(3600)));
        // A day without the issuer.
        let down = |tried| Kept { tried: Some(after(tried)), has_failed: true, ..fresh.clone() };
        assert_eq!(decided(&down(5000), after(5001)), ["use", "none for 59 s"]);
        assert_eq!(decided(&down(5000), after(5010))[0], "use and fetch");
        assert_eq!(decided(&down(86_399), after(86_400)), ["none for 9 s", "none for 59 s"]);
        // While a fetch is under way, a token of an unknown key waits for it.
        let fetching = Kept { tried: Some(after(60)), is_fetching: true, ..fresh.clone() };
        assert_eq!(decided(&fetching, after(61)), ["use", "fetch"]);
        let first = Kept { tried: Some(start), is_fetching: true, ..Kept::default() };
        assert_eq!(decided(&first, after(1))[0], "fetch");
    }

    #[test]
    fn how_keys_are_fetched_does_not_change_the_credential() {
        let config = IssuerConfig::for_test("https://a.example", &[("a", "b")]);
        let same = IssuerConfig { jwks_file: Some("/x".into()), ca_file: Some("/y".into()), ..config.clone() };
        assert_eq!(credential(&config), credential(&same));
        for other in [
            IssuerConfig::for_test("https://a.example", &[("a", "c")]),
            IssuerConfig { audience: vec!["x".to_owned()], ..config.clone() },
            IssuerConfig { name_claim: "email".to_owned(), ..config.clone() },
        ] {
            assert_ne!(credential(&config), credential(&other));
        }
    }

    #[test]
    fn a_key_file_that_cannot_be_used_stops_the_start() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("keys.json");
        std::fs::write(&path, "{\"keys\":[]}").unwrap();
        let config = IssuerConfig { jwks_file: Some(path.clone()), ..IssuerConfig::for_test("k8s", &[]) };
        let error = Issuer::load(&config).err().unwrap().to_string();
        let expected = format!("jwks_file: cannot use {}: it has no key that can verify a signature", path.display());
        assert!(error.starts_with(&expected), "{error}");
    }
}
