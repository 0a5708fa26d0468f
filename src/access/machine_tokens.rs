//! Machine tokens: passwords that this server makes, for programs without an issuer of tokens.
//!
//! A token has 32 random bytes, so its SHA-256 is enough to keep: nobody can guess it, and a login costs no bcrypt. Its
//! identity is `token:NAME`, and its rights are those that rules give to that. The text has a prefix, by which programs
//! that look for secrets find it, and a checksum, so that a typing mistake is told.
//!
//! Where the tokens are kept is behind [`TokenFile`].

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use parking_lot::{Mutex, RwLock};
use ring::digest::{SHA256, digest};
use ring::rand::{SecureRandom, SystemRandom};
use serde::{Deserialize, Serialize};

use super::account::Account;
use super::principal::User;
use crate::config::{TOKEN_PREFIX, is_user_name};
use crate::printable::is_unprintable;

/// What every machine token begins with.
const SECRET_PREFIX: &str = "rst_";
const SECRET_BYTES: usize = 32;
/// Bytes of the checksum.
const CHECKSUM_BYTES: usize = 4;
/// Characters after the prefix: 43 for the secret, 6 for the checksum.
const SECRET_CHARACTERS: usize = 43 + 6;
/// Tokens that are kept at most.
const MAX_TOKENS: usize = 10_000;
/// How exactly the last use of a token is known, in seconds.
const USE_RESOLUTION_SECONDS: u64 = 60 * 60;
/// How often uses are written to the file.
const SAVE_INTERVAL: Duration = Duration::from_secs(10 * 60);
/// The form of the file.
const VERSION: u32 = 1;

/// Where tokens are kept, as one text. Its functions block.
pub trait TokenFile: Send + Sync {
    /// `None` if there is none yet.
    ///
    /// # Errors
    /// The message.
    fn read(&self) -> Result<Option<Vec<u8>>, String>;

    /// Replaces the text durably, and at once or not at all.
    ///
    /// # Errors
    /// The message.
    fn write(&self, text: &[u8]) -> Result<(), String>;
}

/// The tokens in force.
pub struct MachineTokens {
    file: Box<dyn TokenFile>,
    tokens: RwLock<Arc<Tokens>>,
    /// When tokens were used since the start, by name. At most one entry for each token.
    used: RwLock<HashMap<String, u64>>,
    /// Held while the file is changed.
    changing: Mutex<()>,
}

/// Where no tokens are kept.
struct NoFile;

#[derive(Default)]
struct Tokens {
    /// By name.
    records: BTreeMap<String, Record>,
    /// The names, by the hash of the token.
    names: BTreeMap<String, String>,
}

/// A token as it is kept.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Record {
    name: String,
    /// The SHA-256 of the whole text, in hexadecimal.
    sha256: String,
    /// Seconds since 1970.
    created: u64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    expires: Option<u64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    last_used: Option<u64>,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Kept {
    version: u32,
    tokens: Vec<Record>,
}

/// A token as it is listed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MachineToken {
    pub name: String,
    /// Seconds since 1970.
    pub created: u64,
    /// The same; `None` if it does not expire.
    pub expires: Option<u64>,
    /// The beginning of the hour of the last login with it, as far as that is known.
    pub last_used: Option<u64>,
}

/// Why a machine token is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum MachineTokenRefused {
    #[error("it has a typing mistake, as its checksum shows")]
    Typo,
    #[error("there is none like it; it may have been revoked")]
    Unknown,
    #[error("it has expired; make another one with `roadstead token create`")]
    Expired,
}

/// Why tokens cannot be used or changed.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum MachineTokenError {
    #[error("cannot use the machine tokens: {0}")]
    Read(String),
    #[error(
        "cannot use the machine tokens in state/machine-tokens.json of the data folder: {0}; restore the file from a backup, or \
         remove it, which revokes all of them"
    )]
    Damaged(String),
    #[error("cannot keep the machine tokens: {0}")]
    Write(String),
    #[error(
        "\"{0}\" cannot be the name of a machine token: it is empty, has a colon, a space or \"*\", is too long or has a \
         meaning in rules"
    )]
    Name(String),
    #[error("there is a machine token called \"{0}\" already; choose another name, or revoke it first")]
    Exists(String),
    #[error("the machine token would have expired already; give it a time such as 90d")]
    Expired,
    #[error("no machine token is called \"{0}\"; `roadstead token list` shows them")]
    None(String),
    #[error("there are {MAX_TOKENS} machine tokens already; revoke some")]
    TooMany,
    #[error("the kernel gives no random numbers")]
    Random,
}

// === impl MachineTokens ===

impl MachineTokens {
    /// Reads the tokens, which blocks.
    pub fn load(file: Box<dyn TokenFile>) -> Result<Self, MachineTokenError> {
        let tokens = match file.read().map_err(MachineTokenError::Read)? {
            Some(text) => Tokens::parse(&text).map_err(MachineTokenError::Damaged)?,
            None => Tokens::default(),
        };
        Ok(Self::new(file, tokens))
    }

    /// No tokens, and none can be made.
    pub fn none() -> Self {
        Self::new(Box::new(NoFile), Tokens::default())
    }

    fn new(file: Box<dyn TokenFile>, tokens: Tokens) -> Self {
        Self { file, tokens: RwLock::new(Arc::new(tokens)), used: RwLock::default(), changing: Mutex::new(()) }
    }

    /// Makes a token and returns its text, which is kept nowhere. `lifetime`: it does not expire without one. Blocks.
    pub fn create(&self, name: &str, lifetime: Option<Duration>, now: SystemTime) -> Result<String, MachineTokenError> {
        if !is_user_name(name) || name.contains('*') || name.chars().any(is_unprintable) {
            return Err(MachineTokenError::Name(name.to_owned()));
        }
        // The file has whole seconds.
        if lifetime.is_some_and(|lifetime| lifetime.as_secs() == 0) {
            return Err(MachineTokenError::Expired);
        }
        let secret = new_secret()?;
        let created = seconds(now);
        let record = Record {
            name: name.to_owned(),
            sha256: sha256(&secret),
            created,
            expires: lifetime.map(|lifetime| created.saturating_add(lifetime.as_secs())),
            last_used: None,
        };
        self.change(|records| {
            if records.contains_key(name) {
                return Err(MachineTokenError::Exists(name.to_owned()));
            }
            if records.len() >= MAX_TOKENS {
                return Err(MachineTokenError::TooMany);
            }
            records.insert(name.to_owned(), record);
            Ok(())
        })?;
        Ok(secret)
    }

    /// Removes a token. Tokens of ours that were issued for it die with it. Blocks.
    pub fn revoke(&self, name: &str) -> Result<(), MachineTokenError> {
        self.change(|records| match records.remove(name) {
            Some(_) => Ok(()),
            None => Err(MachineTokenError::None(name.to_owned())),
        })?;
        self.used.write().remove(name);
        Ok(())
    }

    /// Writes the uses of tokens to the file now and then, until it is dropped.
    pub(super) async fn follow(self: Arc<Self>) {
        let mut turns = tokio::time::interval(SAVE_INTERVAL);
        turns.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            turns.tick().await;
            let tokens = self.clone();
            // The closure does not panic. If the pool has stopped, the server is stopping.
            let _ = tokio::task::spawn_blocking(move || tokens.save_uses()).await;
        }
    }

    fn save_uses(&self) {
        let known = self.tokens.read().clone();
        let is_new = |(name, hour): (&String, &u64)| {
            known.records.get(name).is_some_and(|record| record.last_used < Some(*hour))
        };
        let is_outdated = self.used.read().iter().any(is_new);
        if !is_outdated {
            return;
        }
        if let Err(error) = self.change(|_| Ok(())) {
            tracing::debug!(%error, "cannot save when machine tokens were used");
        }
    }

    /// All tokens, sorted by name. Those that have expired stay until they are revoked.
    pub fn list(&self) -> Vec<MachineToken> {
        let used = self.used.read();
        let listed = |record: &Record| MachineToken {
            name: record.name.clone(),
            created: record.created,
            expires: record.expires,
            last_used: record.last_used.max(used.get(&record.name).copied()),
        };
        self.tokens.read().records.values().map(listed).collect()
    }

    /// The account of a token; `None` if the text does not have the shape of one.
    pub(super) fn verify(&self, text: &str, now: SystemTime) -> Option<Result<Account, MachineTokenRefused>> {
        let (secret, checksum) = parts(text)?;
        if self::checksum(secret) != checksum {
            return Some(Err(MachineTokenRefused::Typo));
        }
        let tokens = self.tokens.read().clone();
        let record = tokens.names.get(&sha256(text)).and_then(|name| tokens.records.get(name));
        Some(match record {
            Some(record) if record.is_valid(now) => {
                self.note_use(&record.name, now);
                Ok(record.account())
            }
            Some(_) => Err(MachineTokenRefused::Expired),
            None => Err(MachineTokenRefused::Unknown),
        })
    }

    /// The account of the token of this name, if it is valid.
    pub(super) fn account(&self, name: &str, now: SystemTime) -> Option<Account> {
        self.tokens.read().records.get(name).filter(|record| record.is_valid(now)).map(Record::account)
    }

    fn note_use(&self, name: &str, now: SystemTime) {
        let hour = seconds(now) / USE_RESOLUTION_SECONDS * USE_RESOLUTION_SECONDS;
        if self.used.read().get(name) != Some(&hour) {
            self.used.write().insert(name.to_owned(), hour);
        }
    }

    /// Changes the file, and then what is in force.
    fn change(
        &self,
        change: impl FnOnce(&mut BTreeMap<String, Record>) -> Result<(), MachineTokenError>,
    ) -> Result<(), MachineTokenError> {
        let _changing = self.changing.lock();
        let mut records = self.tokens.read().records.clone();
        for (name, hour) in &*self.used.read() {
            if let Some(record) = records.get_mut(name) {
                record.last_used = record.last_used.max(Some(*hour));
            }
        }
        change(&mut records)?;
        let kept = Kept { version: VERSION, tokens: records.values().cloned().collect() };
        let text = serde_json::to_vec_pretty(&kept).map_err(|error| MachineTokenError::Write(error.to_string()))?;
        self.file.write(&text).map_err(MachineTokenError::Write)?;
        *self.tokens.write() = Arc::new(Tokens::new(records));
        Ok(())
    }
}

impl TokenFile for NoFile {
    fn read(&self) -> Result<Option<Vec<u8>>, String> {
        Ok(None)
    }

    fn write(&self, _: &[u8]) -> Result<(), String> {
        Err("there is no data folder".to_owned())
    }
}

// === impl Tokens ===

impl Tokens {
    fn new(records: BTreeMap<String, Record>) -> Self {
        let names = records.values().map(|record| (record.sha256.clone(), record.name.clone())).collect();
        Self { records, names }
    }

    fn parse(text: &[u8]) -> Result<Self, String> {
        let kept: Kept = serde_json::from_slice(text).map_err(|error| error.to_string())?;
        if kept.version != VERSION {
            return Err(format!("it is of version {}, and this server knows {VERSION}", kept.version));
        }
        let count = kept.tokens.len();
        let records: BTreeMap<_, _> = kept.tokens.into_iter().map(|record| (record.name.clone(), record)).collect();
        let tokens = Self::new(records);
        let is_hash = |hash: &String| hash.len() == 64 && hash.bytes().all(|byte| byte.is_ascii_hexdigit());
        let are_valid = tokens.records.keys().all(|name| is_user_name(name)) && tokens.names.keys().all(is_hash);
        if tokens.records.len() < count || tokens.names.len() < count || !are_valid {
            return Err("two of its tokens are the same, or one is not valid".to_owned());
        }
        Ok(tokens)
    }
}

// === impl Record ===

impl Record {
    fn is_valid(&self, now: SystemTime) -> bool {
        self.expires.is_none_or(|expires| seconds(now) < expires)
    }

    fn account(&self) -> Account {
        Account {
            user: Arc::new(User::identity(TOKEN_PREFIX, &self.name)),
            credential: format!("{} {}", self.sha256, self.created).into(),
        }
    }
}

/// Shows no hash.
impl std::fmt::Debug for MachineTokens {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("MachineTokens")
    }
}

fn new_secret() -> Result<String, MachineTokenError> {
    let mut bytes = [0; SECRET_BYTES];
    SystemRandom::new().fill(&mut bytes).map_err(|_| MachineTokenError::Random)?;
    let secret = format!("{SECRET_PREFIX}{}", URL_SAFE_NO_PAD.encode(bytes));
    let checksum = checksum(&secret);
    Ok(secret + &checksum)
}

/// The text without its checksum, and the checksum; `None` for another text.
fn parts(text: &str) -> Option<(&str, &str)> {
    let characters = text.strip_prefix(SECRET_PREFIX)?;
    let is_allowed = |byte: u8| byte.is_ascii_alphanumeric() || b"-_".contains(&byte);
    let has_shape = characters.len() == SECRET_CHARACTERS && characters.bytes().all(is_allowed);
    has_shape.then(|| text.split_at(text.len() - 6))
}

fn checksum(secret: &str) -> String {
    URL_SAFE_NO_PAD.encode(&digest(&SHA256, secret.as_bytes()).as_ref()[..CHECKSUM_BYTES])
}

fn sha256(text: &str) -> String {
    digest(&SHA256, text.as_bytes()).as_ref().iter().map(|byte| format!("{byte:02x}")).collect()
}

fn seconds(time: SystemTime) -> u64 {
    time.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A file in memory, which fails if it is told to.
    #[derive(Clone, Default)]
    struct Memory(Arc<Mutex<(Option<Vec<u8>>, bool)>>);

    impl TokenFile for Memory {
        fn read(&self) -> Result<Option<Vec<u8>>, String> {
            Ok(self.0.lock().0.clone())
        }

        fn write(&self, text: &[u8]) -> Result<(), String> {
            let mut memory = self.0.lock();
            if memory.1 {
                return Err("the disk is full".to_owned());
            }
            memory.0 = Some(text.to_vec());
            Ok(())
        }
    }

    impl Memory {
        fn load(&self) -> Result<MachineTokens, MachineTokenError> {
            MachineTokens::load(Box::new(self.clone()))
        }
    }

    fn now() -> SystemTime {
        UNIX_EPOCH + Duration::from_secs(1_000_000)
    }

    fn verified(tokens: &MachineTokens, text: &str, now: SystemTime) -> Option<Result<String, MachineTokenRefused>> {
        tokens.verify(text, now).map(|verified| verified.map(|account| account.user.name().to_owned()))
    }

    #[test]
    fn a_token_is_valid_until_it_expires_or_is_revoked() {
        let file = Memory::default();
        let tokens = file.load().unwrap();
        let ci = tokens.create("ci", None, now()).unwrap();
        let short = tokens.create("short", Some(Duration::from_secs(60)), now()).unwrap();
        assert!(ci.starts_with("rst_") && ci.len() == 53 && ci != short, "{ci}");
        // Also after a start.
        for tokens in [&tokens, &file.load().unwrap()] {
            assert_eq!(verified(tokens, &ci, now()), Some(Ok("token:ci".to_owned())));
            let later = now() + Duration::from_secs(60);
            assert_eq!(verified(tokens, &short, later - Duration::from_secs(1)), Some(Ok("token:short".to_owned())));
            assert_eq!(verified(tokens, &short, later), Some(Err(MachineTokenRefused::Expired)));
            assert!(tokens.account("short", later).is_none() && tokens.account("ci", later).is_some());
        }
        // By the hour. The file has it when it is written for the next time.
        let listed = |name: &str, expires, last_used| MachineToken {
            name: name.to_owned(),
            created: 1_000_000,
            expires,
            last_used,
        };
        let hour = Some(997_200);
        assert_eq!(tokens.list(), [listed("ci", None, hour), listed("short", Some(1_000_060), hour)]);
        assert_eq!(file.load().unwrap().list()[0].last_used, None);
        tokens.save_uses();
        assert_eq!(file.load().unwrap().list(), tokens.list());
        let text = String::from_utf8(file.0.lock().0.clone().unwrap()).unwrap();
        assert!(!text.contains(&ci[4..]) && text.contains(&sha256(&ci)), "{text}");
        // One of the same name is another token.
        let before = tokens.account("ci", now()).unwrap().credential;
        tokens.revoke("ci").unwrap();
        assert_eq!(verified(&tokens, &ci, now()), Some(Err(MachineTokenRefused::Unknown)));
        assert!(tokens.account("ci", now()).is_none());
        tokens.create("ci", None, now()).unwrap();
        assert_eq!(verified(&tokens, &ci, now()), Some(Err(MachineTokenRefused::Unknown)));
        assert_ne!(tokens.account("ci", now()).unwrap().credential, before);
    }

    #[test]
    fn typing_mistakes_are_told_and_passwords_are_no_tokens() {
        let tokens = Memory::default().load().unwrap();
        let token = tokens.create("ci", None, now()).unwrap();
        for at in 4..token.len() {
            let other = if token.as_bytes()[at] == b'A' { "B" } else { "A" };
            let mistyped = format!("{}{other}{}", &token[..at], &token[at + 1..]);
            assert_eq!(verified(&tokens, &mistyped, now()), Some(Err(MachineTokenRefused::Typo)), "{at}");
        }
        for other in
            ["", "rst_", "secret", &token[1..], &token[..52], &format!("{token}A"), &token.replace("rst_", "rst-")]
        {
            assert_eq!(verified(&tokens, other, now()), None, "{other}");
        }
        assert_eq!(verified(&tokens, &format!("rst_{}", "ü".repeat(25)), now()), None);
    }

    #[test]
    fn changes_that_fail_change_nothing() {
        let file = Memory::default();
        let tokens = file.load().unwrap();
        let token = tokens.create("ci", None, now()).unwrap();
        assert_eq!(tokens.create("ci", None, now()), Err(MachineTokenError::Exists("ci".to_owned())));
        assert_eq!(tokens.revoke("none"), Err(MachineTokenError::None("none".to_owned())));
        assert_eq!(tokens.create("x", Some(Duration::from_millis(999)), now()), Err(MachineTokenError::Expired));
        for name in ["", "a:b", "a b", "a*", "anonymous", "a\nb", "a\u{202e}b"] {
            assert_eq!(tokens.create(name, None, now()), Err(MachineTokenError::Name(name.to_owned())));
        }
        file.0.lock().1 = true;
        assert!(matches!(tokens.revoke("ci"), Err(MachineTokenError::Write(_))));
        assert!(matches!(tokens.create("other", None, now()), Err(MachineTokenError::Write(_))));
        assert_eq!(verified(&tokens, &token, now()), Some(Ok("token:ci".to_owned())));
        assert_eq!(tokens.list().len(), 1);
    }

    #[test]
    fn a_damaged_file_is_an_error_with_the_remedy() {
        let hash = "0".repeat(64);
        let record = |name: &str, hash: &str| format!(r#"{{"name":"{name}","sha256":"{hash}","created":1}}"#);
        let file = |tokens: &[String]| format!(r#"{{"version":1,"tokens":[{}]}}"#, tokens.join(","));
        assert!(Tokens::parse(file(&[record("a", &hash)]).as_bytes()).is_ok());
        for text in [
            String::new(),
            "{}".to_owned(),
            r#"{"version":2,"tokens":[]}"#.to_owned(),
            file(&[record("a", &hash), record("a", &"1".repeat(64))]),
            file(&[record("a", &hash), record("b", &hash)]),
            file(&[record("a", "0")]),
            file(&[record("a:b", &hash)]),
        ] {
            let memory = Memory(Arc::new(Mutex::new((Some(text.clone().into_bytes()), false))));
            let error = memory.load().err().unwrap().to_string();
            assert!(error.ends_with("or remove it, which revokes all of them"), "{text}: {error}");
        }
    }
}
