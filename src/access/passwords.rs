//! Verification of passwords against the file of users.
//!
//! A verification takes tens of milliseconds of one core, so it runs on the blocking pool, a few at once, and its results are
//! remembered for a while, right and wrong ones. The key of a result is made of the user, the stored hash and the
//! password, so that a changed line forgets it, with a secret of this process, so that the memory holds no password.
//! An unknown user costs what a known one does.

use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use moka::future::Cache;
use parking_lot::RwLock;
use ring::hmac;
use ring::rand::SystemRandom;
use tokio::sync::Semaphore;
use tokio::time::timeout;

use super::account::Account;
use super::attempt::{Attempt, AttemptNote, AttemptResult, How};
use super::htpasswd::{LineError, UserFile};
use super::password_hash;
use super::throttle::{Client, EXEMPT_FOR, Throttle};
use crate::file::{self, Stamp};

/// Results that are remembered.
const MAX_RESULTS: u64 = 10_000;
const REMEMBER_RESULTS_FOR: Duration = Duration::from_secs(5 * 60);
/// How long a verification waits for its turn.
const TURN_TIMEOUT: Duration = Duration::from_secs(1);
/// Verifications with argon2id at the same time. Each takes up to 64 MiB.
const MAX_ARGON2_AT_ONCE: usize = 8;
/// How often the file is checked for changes.
const CHECK_INTERVAL: Duration = Duration::from_secs(1);

/// The users and their passwords.
pub(super) struct Passwords {
    file: PathBuf,
    users: RwLock<Arc<UserFile>>,
    /// The state of the file before it was read.
    loaded: Stamp,
    /// A secret of this process.
    key: hmac::Key,
    /// Whether a password is right, by the key of user, hash and password.
    results: Cache<ResultKey, bool>,
    /// Right passwords. They are remembered as long as their users are exempt from the mistakes of others at their address:
    /// while those have to wait, no password is verified.
    right: moka::sync::Cache<ResultKey, ()>,
    turns: Arc<Semaphore>,
    /// Held by verifications with argon2id, beside a turn.
    memory: Arc<Semaphore>,
    throttle: Throttle,
}

type ResultKey = [u8; 32];

/// A name and a password, as a client sent them.
#[derive(Clone, PartialEq, Eq)]
pub struct PasswordLogin {
    pub(super) name: String,
    pub(super) password: String,
    pub(super) client: Option<IpAddr>,
    /// What became of it.
    pub(super) attempt: AttemptNote,
}

/// Why a login is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum LoginRefused {
    Wrong,
    /// Too many wrong passwords came from this client.
    TooMany {
        retry_after: Duration,
    },
    /// Too many passwords are being verified.
    Busy,
}

/// A file of users that cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum UserFileError {
    #[error("cannot read {}: {error}", path.display())]
    Read { path: PathBuf, error: std::io::Error },
    #[error("{}: {error}", path.display())]
    Line { path: PathBuf, error: LineError },
    #[error("the kernel gives no random numbers")]
    Random,
}

/// The turn of a verification did not come.
#[derive(Debug)]
struct NoTurn;

// === impl Passwords ===

impl Passwords {
    /// Reads the file, which blocks.
    pub(super) fn load(path: &Path) -> Result<Self, UserFileError> {
        let loaded = Stamp::of(path);
        let users = RwLock::new(Arc::new(read(path)?));
        let key = hmac::Key::generate(hmac::HMAC_SHA256, &SystemRandom::new()).map_err(|_| UserFileError::Random)?;
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        let results = Cache::builder().max_capacity(MAX_RESULTS).time_to_live(REMEMBER_RESULTS_FOR).build();
        Ok(Self {
            file: path.to_owned(),
            users,
            loaded,
            key,
            results,
            right: moka::sync::Cache::builder().max_capacity(MAX_RESULTS).time_to_idle(EXEMPT_FOR).build(),
            turns: Arc::new(Semaphore::new(cores * 2)),
            memory: Arc::new(Semaphore::new(MAX_ARGON2_AT_ONCE)),
            throttle: Throttle::new(),
        })
    }

    /// The user of this name, as the file is now.
    pub(super) fn account(&self, name: &str) -> Option<Account> {
        self.users.read().account(name).cloned()
    }

    /// The user, if the password is right.
    pub(super) async fn verify(&self, login: &PasswordLogin) -> Result<Account, LoginRefused> {
        let who = self.account(&login.name).map(|account| Box::from(account.user.name()));
        login.attempt.begin(How::Password, who);
        let verified = self.verify_login(login).await;
        login.attempt.end(match &verified {
            Ok(_) => AttemptResult::Accepted,
            Err(LoginRefused::Wrong) => AttemptResult::Refused,
            Err(LoginRefused::TooMany { .. }) => AttemptResult::Throttled,
            Err(LoginRefused::Busy) => AttemptResult::Busy,
        });
        verified
    }

    async fn verify_login(&self, login: &PasswordLogin) -> Result<Account, LoginRefused> {
        let users = self.users.read().clone();
        let account = users.account(&login.name);
        let hash = account.map_or_else(|| users.unknown(), |account| &account.credential);
        // No hash in the file was made of such a password, or it was cut off.
        if login.password.len() > password_hash::max_password_bytes(hash) || login.password.contains('\0') {
            return Err(LoginRefused::Wrong);
        }
        let key = self.result_key(&login.name, account.map_or("", |account| &*account.credential), &login.password);
        let (client, user) = (Client::from(login.client), self.user_id(&login.name));
        let remembered = match self.right.get(&key) {
            Some(()) => Some(true),
            None => self.results.get(&key).await,
        };
        let is_right = match remembered {
            Some(is_right) => {
                login.attempt.is_remembered();
                if is_right {
                    if let Some(retry_after) = self.throttle.pause(client, user, Instant::now()) {
                        return Err(LoginRefused::TooMany { retry_after });
                    }
                    self.throttle.note_login(client, user);
                }
                is_right
            }
            None => {
                let attempt = self.throttle.admit(client, user, short(&key), Instant::now());
                let attempt = attempt.map_err(|retry_after| LoginRefused::TooMany { retry_after })?;
                let verification = self.verify_in_turn(login.password.clone(), hash.clone());
                match self.results.try_get_with(key, verification).await {
                    Ok(true) => {
                        self.right.insert(key, ());
                        attempt.succeed();
                        true
                    }
                    Ok(false) => false,
                    Err(_) => {
                        attempt.take_back();
                        return Err(LoginRefused::Busy);
                    }
                }
            }
        };
        match account {
            Some(account) if is_right => Ok(account.clone()),
            _ => Err(LoginRefused::Wrong),
        }
    }

    async fn verify_in_turn(&self, password: String, hash: Arc<str>) -> Result<bool, NoTurn> {
        let turn = timeout(TURN_TIMEOUT, self.turns.clone().acquire_owned()).await;
        let turn = turn.map_err(|_| NoTurn)?.map_err(|_| NoTurn)?;
        let memory = match password_hash::is_argon2(&hash) {
            true => {
                let memory = timeout(TURN_TIMEOUT, self.memory.clone().acquire_owned()).await;
                Some(memory.map_err(|_| NoTurn)?.map_err(|_| NoTurn)?)
            }
            false => None,
        };
        let verified = tokio::task::spawn_blocking(move || {
            // Kept to the end, also if the client has left.
            let _turn = (turn, memory);
            password_hash::verify(&password, &hash)
        });
        verified.await.map_err(|_| NoTurn)
    }

    /// Follows the file until it is dropped. A file that cannot be used changes nothing and is logged once.
    pub(super) async fn follow(self: Arc<Self>) {
        let mut seen = self.loaded;
        let mut turns = tokio::time::interval(CHECK_INTERVAL);
        turns.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            turns.tick().await;
            let passwords = self.clone();
            if let Ok(stamp) = tokio::task::spawn_blocking(move || passwords.reload(seen)).await {
                seen = stamp;
            }
        }
    }

    /// Reads the file again if it has changed. Blocks.
    fn reload(&self, seen: Stamp) -> Stamp {
        let stamp = Stamp::of(&self.file);
        if stamp != seen {
            match read(&self.file) {
                Ok(users) if users.len() == 0 && self.users.read().len() > 0 => {
                    tracing::error!(
                        path = %self.file.display(),
                        "the file of users has no user any more; the users stay as they are, in case it is being written; \
                         to remove all, stop the server"
                    );
                }
                Ok(users) => {
                    tracing::info!(path = %self.file.display(), users = users.len(), "read the changed users");
                    *self.users.write() = Arc::new(users);
                }
                Err(error) => {
                    tracing::error!(%error, "cannot use the changed users; the users stay as they are");
                }
            }
        }
        stamp
    }

    fn result_key(&self, name: &str, hash: &str, password: &str) -> ResultKey {
        let mut context = hmac::Context::with_key(&self.key);
        for part in [name, hash, password] {
            context.update(&(part.len() as u64).to_le_bytes());
            context.update(part.as_bytes());
        }
        let mut key = ResultKey::default();
        key.copy_from_slice(context.sign().as_ref());
        key
    }

    fn user_id(&self, name: &str) -> u64 {
        short(hmac::sign(&self.key, name.as_bytes()).as_ref())
    }
}

fn read(path: &Path) -> Result<UserFile, UserFileError> {
    let content = file::read(path).map_err(|error| UserFileError::Read { path: path.to_owned(), error })?;
    UserFile::parse(&content).map_err(|error| UserFileError::Line { path: path.to_owned(), error })
}

/// The beginning of a keyed hash.
fn short(hash: &[u8]) -> u64 {
    hash.iter().take(8).fold(0, |short, byte| short << 8 | u64::from(*byte))
}

// === impl PasswordLogin ===

impl PasswordLogin {
    /// `client` is the address that the login came from.
    pub fn new(name: &str, password: &str, client: Option<IpAddr>) -> Self {
        Self { name: name.to_owned(), password: password.to_owned(), client, attempt: AttemptNote::default() }
    }

    /// What became of it; `None` if it was not verified.
    pub(super) fn attempt(&self) -> Option<Attempt> {
        self.attempt.get()
    }
}

/// Shows no password, and no name: people type their password as their name at times.
impl std::fmt::Debug for PasswordLogin {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("PasswordLogin")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hash(password: &str) -> String {
        bcrypt::hash_with_salt(password, 4, [7; 16]).unwrap().to_string()
    }

    fn file(lines: &[(&str, &str)]) -> tempfile::NamedTempFile {
        let file = tempfile::NamedTempFile::new().unwrap();
        write(file.path(), lines);
        file
    }

    fn write(path: &Path, lines: &[(&str, &str)]) {
        let lines: String = lines.iter().map(|(name, password)| format!("{name}:{}\n", hash(password))).collect();
        std::fs::write(path, lines).unwrap();
    }

    fn login(name: &str, password: &str) -> PasswordLogin {
        PasswordLogin::new(name, password, Some("10.0.0.1".parse().unwrap()))
    }

    async fn user(passwords: &Passwords, name: &str, password: &str) -> Result<String, LoginRefused> {
        passwords.verify(&login(name, password)).await.map(|account| account.user.name().to_owned())
    }

    #[tokio::test]
    async fn only_the_right_password_of_a_known_user_is_accepted() {
        let long = "x".repeat(password_hash::MAX_BCRYPT_PASSWORD_BYTES);
        let file = file(&[("ann", "secret"), ("bob", ""), ("cat", &long)]);
        let passwords = Passwords::load(file.path()).unwrap();
        // Twice, as the second answer is a remembered one.
        for _ in 0..2 {
            assert_eq!(user(&passwords, "ann", "secret").await, Ok("ann".to_owned()));
            assert_eq!(user(&passwords, "bob", "").await, Ok("bob".to_owned()));
            assert_eq!(user(&passwords, "cat", &long).await, Ok("cat".to_owned()));
            for (name, password) in
                [("ann", ""), ("ann", "Secret"), ("eve", "secret"), ("Ann", "secret"), ("ann", "secret\0secret")]
            {
                assert_eq!(user(&passwords, name, password).await, Err(LoginRefused::Wrong), "{name} {password}");
            }
            assert_eq!(user(&passwords, "cat", &format!("{long}x")).await, Err(LoginRefused::Wrong), "not cut off");
        }
    }

    #[tokio::test]
    async fn argon2id_is_verified_as_well_and_hashes_long_passwords() {
        let long = "x".repeat(200);
        let mut hash = [0; 32];
        let params = argon2::Params::new(64, 2, 1, Some(32)).unwrap();
        let argon2 = argon2::Argon2::new(argon2::Algorithm::Argon2id, argon2::Version::V0x13, params);
        argon2.hash_password_into(long.as_bytes(), b"somesalt", &mut hash).unwrap();
        let hash = base64::Engine::encode(&base64::engine::general_purpose::STANDARD_NO_PAD, hash);
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), format!("ann:$argon2id$v=19$m=64,t=2,p=1$c29tZXNhbHQ${hash}\n")).unwrap();
        let passwords = Passwords::load(file.path()).unwrap();
        for _ in 0..2 {
            assert_eq!(user(&passwords, "ann", &long).await, Ok("ann".to_owned()));
            for (name, password) in [("ann", &long[1..]), ("eve", &long), ("ann", &"x".repeat(2000))] {
                assert_eq!(user(&passwords, name, password).await, Err(LoginRefused::Wrong));
            }
        }
    }

    #[tokio::test]
    async fn a_changed_line_forgets_results_and_a_broken_file_changes_nothing() {
        let file = file(&[("ann", "one"), ("bob", "two")]);
        let passwords = Passwords::load(file.path()).unwrap();
        assert!(user(&passwords, "ann", "one").await.is_ok() && user(&passwords, "bob", "two").await.is_ok());
        assert!(user(&passwords, "ann", "new").await.is_err());
        write(file.path(), &[("ann", "new")]);
        let seen = passwords.reload(passwords.loaded);
        assert!(user(&passwords, "ann", "one").await.is_err() && user(&passwords, "ann", "new").await.is_ok());
        assert!(user(&passwords, "bob", "two").await.is_err() && passwords.account("bob").is_none());
        std::fs::write(file.path(), "ann:plain text").unwrap();
        let seen = passwords.reload(seen);
        assert!(user(&passwords, "ann", "new").await.is_ok());
        std::fs::remove_file(file.path()).unwrap();
        passwords.reload(seen);
        assert!(user(&passwords, "ann", "new").await.is_ok());
    }

    #[tokio::test]
    async fn concurrent_logins_share_one_verification() {
        let file = file(&[("ann", "secret")]);
        let passwords = Passwords::load(file.path()).unwrap();
        // One turn alone, which is taken back only when the verification has ended.
        let taken = passwords.turns.available_permits() - 1;
        let _taken = passwords.turns.clone().acquire_many_owned(taken as u32).await.unwrap();
        let login = login("ann", "secret");
        let all = futures_util::future::join_all((0..50).map(|_| passwords.verify(&login))).await;
        assert!(all.iter().all(Result::is_ok));
    }

    #[tokio::test]
    async fn a_login_without_a_turn_is_refused_and_not_remembered() {
        let file = file(&[("ann", "secret")]);
        let passwords = Passwords::load(file.path()).unwrap();
        let turns = passwords.turns.available_permits();
        let taken = passwords.turns.clone().acquire_many_owned(turns as u32).await.unwrap();
        assert_eq!(user(&passwords, "ann", "secret").await, Err(LoginRefused::Busy));
        drop(taken);
        assert!(user(&passwords, "ann", "secret").await.is_ok());
    }

    #[tokio::test]
    async fn wrong_passwords_are_bounded_for_known_and_unknown_users_alike() {
        let file = file(&[("ann", "secret"), ("bob", "two")]);
        let passwords = Passwords::load(file.path()).unwrap();
        assert!(user(&passwords, "ann", "secret").await.is_ok());
        for attempt in 0..10 {
            let name = if attempt % 2 == 0 { "bob" } else { "eve" };
            for _ in 0..3 {
                assert_eq!(user(&passwords, name, &format!("{attempt}")).await, Err(LoginRefused::Wrong));
            }
        }
        for name in ["bob", "eve"] {
            assert!(matches!(user(&passwords, name, "x").await, Err(LoginRefused::TooMany { .. })), "{name}");
        }
        // Those who are logged in, and those elsewhere, are not.
        assert!(user(&passwords, "ann", "secret").await.is_ok());
        let elsewhere = PasswordLogin::new("bob", "two", Some("10.0.0.2".parse().unwrap()));
        assert!(passwords.verify(&elsewhere).await.is_ok());
    }

    #[test]
    fn keys_of_results_depend_on_each_part() {
        let passwords = Passwords::load(file(&[("ann", "secret")]).path()).unwrap();
        let keys = [("a", "b", "c"), ("ab", "", "c"), ("", "ab", "c"), ("a", "bc", ""), ("a", "b", "d")];
        let keys = keys.map(|(name, hash, password)| passwords.result_key(name, hash, password));
        assert_eq!(std::collections::HashSet::from(keys).len(), 5);
        assert_eq!(format!("{:?}", login("ann", "secret")), "PasswordLogin");
    }
}
