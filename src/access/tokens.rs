//! Tokens: what the token endpoint gives to clients, and what they send with each request.
//!
//! A token is a JWT with HS256 that says *who* its bearer is, and not what it may do: every request is authorised again,
//! by the rules in force. So it holds no names of repositories. It holds the actions that it was asked for, because
//! clients get a new token only if the old one is refused for lacking them.
//!
//! It dies with the credential that it was issued for, as it holds a fingerprint of it: with the user's line in the file of
//! users, with the configuration of an issuer, with a machine token.

use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use moka::sync::Cache;
use parking_lot::RwLock;
use ring::hmac;
use serde::{Deserialize, Serialize};

use super::account::Account;
use super::principal::User;
use crate::config::{Right, Rights};

/// The one header that a token may have: `{"alg":"HS256","typ":"roadstead+jwt"}`. Its algorithm is never looked at.
const HEADER: &str = "eyJhbGciOiJIUzI1NiIsInR5cCI6InJvYWRzdGVhZCtqd3QifQ";
/// Largest token that is looked at. Ours have some hundred bytes.
const MAX_TOKEN_BYTES: usize = 8 << 10;
/// Verified tokens that are remembered.
const MAX_VERIFIED: u64 = 10_000;
/// All actions, in the claims.
const ALL: &str = "*";
/// Shortest secret in bytes.
pub(super) const MIN_SECRET_BYTES: usize = 32;

/// Makes and verifies tokens.
pub(super) struct Tokens {
    /// The first one signs, and all verify. At least one.
    keys: Vec<Keys>,
    lifetime: Duration,
    /// The claims of verified tokens, by all of their bytes.
    verified: Cache<Box<str>, Arc<Verified>>,
}

/// The keys that are made of one secret. One for each purpose, so that no fingerprint is ever a signature.
struct Keys {
    sign: hmac::Key,
    fingerprint: hmac::Key,
}

/// A token whose signature is ours.
#[derive(Debug)]
pub(super) struct Verified {
    /// `None` for nobody.
    pub(super) subject: Option<Subject>,
    pub(super) acts: Rights,
    /// Seconds since 1970.
    expires: u64,
}

/// The user or other identity of a token.
#[derive(Debug)]
pub(super) struct Subject {
    pub(super) user: Arc<User>,
    fingerprint: String,
    /// Whose fingerprint it is, in [`Tokens::keys`].
    key: usize,
    /// The credential that had the fingerprint when it was last computed, which takes longer than the rest of a request.
    proven: RwLock<Option<Arc<str>>>,
}

#[derive(Serialize, Deserialize)]
struct Claims {
    #[serde(skip_serializing_if = "Option::is_none")]
    sub: Option<String>,
    /// The fingerprint of the credential.
    #[serde(skip_serializing_if = "Option::is_none")]
    cred: Option<String>,
    /// Groups that the issuer of the identity has named.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    groups: Vec<String>,
    exp: u64,
    acts: Vec<String>,
}

// === impl Tokens ===

impl Tokens {
    /// `secret` has at least [`MIN_SECRET_BYTES`].
    pub(super) fn new(secret: &[u8], lifetime: Duration) -> Self {
        Self {
            keys: vec![Keys::new(secret)],
            lifetime,
            verified: Cache::builder().max_capacity(MAX_VERIFIED).time_to_live(lifetime).build(),
        }
    }

    /// The same, which also accepts tokens that were signed with other secrets: while a secret is replaced.
    pub(super) fn or_signed_with(mut self, secrets: &[Vec<u8>]) -> Self {
        self.keys.extend(secrets.iter().map(|secret| Keys::new(secret)));
        self
    }

    pub(super) fn lifetime(&self) -> Duration {
        self.lifetime
    }

    /// A token for a user, or for nobody.
    pub(super) fn issue(&self, account: Option<&Account>, acts: Rights, now: SystemTime) -> String {
        let acts = if acts == Rights::ALL {
            vec![ALL.to_owned()]
        } else {
            acts.iter().map(|act| act.as_str().to_owned()).collect()
        };
        let claims = Claims {
            sub: account.map(|account| account.user.name().to_owned()),
            cred: account.map(|account| self.keys[0].fingerprint(account)),
            groups: account.map(|account| account.user.groups().to_vec()).unwrap_or_default(),
            exp: seconds(now).saturating_add(self.lifetime.as_secs()),
            acts,
        };
        let claims = serde_json::json!(claims).to_string();
        let signed = format!("{HEADER}.{}", URL_SAFE_NO_PAD.encode(claims));
        let signature = URL_SAFE_NO_PAD.encode(hmac::sign(&self.keys[0].sign, signed.as_bytes()));
        format!("{signed}.{signature}")
    }

    /// What a token says; `None` if it is not ours or has expired. The user may be gone: see [`Tokens::is_of`].
    pub(super) fn verify(&self, token: &str, now: SystemTime) -> Option<Arc<Verified>> {
        if token.len() > MAX_TOKEN_BYTES {
            return None;
        }
        let verified = match self.verified.get(token) {
            Some(verified) => verified,
            None => {
                let verified = Arc::new(self.verify_signature(token)?);
                if verified.is_valid(now) {
                    self.verified.insert(token.into(), verified.clone());
                }
                verified
            }
        };
        verified.is_valid(now).then_some(verified)
    }

    fn verify_signature(&self, token: &str) -> Option<Verified> {
        let (signed, signature) = token.rsplit_once('.')?;
        let claims = signed.strip_prefix(HEADER)?.strip_prefix('.')?;
        let signature = URL_SAFE_NO_PAD.decode(signature).ok()?;
        let is_of = |keys: &Keys| hmac::verify(&keys.sign, signed.as_bytes(), &signature).is_ok();
        let key = self.keys.iter().position(is_of)?;
        let claims: Claims = serde_json::from_slice(&URL_SAFE_NO_PAD.decode(claims).ok()?).ok()?;
        let subject = match (claims.sub, claims.cred) {
            (Some(name), Some(fingerprint)) => {
                let user = Arc::new(User::new(&name).with_groups(claims.groups));
                Some(Subject { user, fingerprint, key, proven: RwLock::default() })
            }
            (None, None) => None,
            _ => return None,
        };
        let acts = if claims.acts.iter().any(|act| act == ALL) {
            Rights::ALL
        } else {
            claims.acts.iter().filter_map(|act| Right::parse(act)).collect()
        };
        Some(Verified { subject, acts, expires: claims.exp })
    }

    /// Whether the token is of this user, and the credential is still the same.
    pub(super) fn is_of(&self, subject: &Subject, account: &Account) -> bool {
        if subject.user.name() != account.user.name() {
            return false;
        }
        // While it is kept here, no other credential has its address.
        if subject.proven.read().as_ref().is_some_and(|proven| Arc::ptr_eq(proven, &account.credential)) {
            return true;
        }
        let keys = self.keys.get(subject.key);
        let is_same = keys.is_some_and(|keys| subject.fingerprint == keys.fingerprint(account));
        if is_same {
            *subject.proven.write() = Some(account.credential.clone());
        }
        is_same
    }
}

impl Keys {
    fn new(secret: &[u8]) -> Self {
        let secret = hmac::Key::new(hmac::HMAC_SHA256, secret);
        let key = |purpose: &[u8]| hmac::Key::new(hmac::HMAC_SHA256, hmac::sign(&secret, purpose).as_ref());
        Self { sign: key(b"roadstead token 1"), fingerprint: key(b"roadstead fingerprint 1") }
    }

    fn fingerprint(&self, account: &Account) -> String {
        const BYTES: usize = 16;
        let line = format!("{}:{}", account.user.name(), account.credential);
        URL_SAFE_NO_PAD.encode(&hmac::sign(&self.fingerprint, line.as_bytes()).as_ref()[..BYTES])
    }
}

impl Verified {
    fn is_valid(&self, now: SystemTime) -> bool {
        seconds(now) < self.expires
    }
}

fn seconds(time: SystemTime) -> u64 {
    time.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs()
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECRET: [u8; 32] = [7; 32];
    const LIFETIME: Duration = Duration::from_secs(900);

    fn account(name: &str, hash: &str) -> Account {
        Account { user: Arc::new(User::new(name)), credential: hash.into() }
    }

    fn now() -> SystemTime {
        UNIX_EPOCH + Duration::from_secs(1_000_000)
    }

    fn signed(tokens: &Tokens, header: &str, claims: &str) -> String {
        let signed = format!("{}.{}", URL_SAFE_NO_PAD.encode(header), URL_SAFE_NO_PAD.encode(claims));
        let signature = hmac::sign(&tokens.keys[0].sign, signed.as_bytes());
        format!("{signed}.{}", URL_SAFE_NO_PAD.encode(signature))
    }

    #[test]
    fn a_replaced_secret_is_accepted_as_long_as_it_is_named() {
        let (ann, other) = (account("ann", "hash"), [8; 32]);
        let (old, new) = (Tokens::new(&SECRET, LIFETIME), Tokens::new(&other, LIFETIME));
        let both = Tokens::new(&other, LIFETIME).or_signed_with(&[SECRET.to_vec()]);
        let token = |tokens: &Tokens| tokens.issue(Some(&ann), Rights::ALL, now());
        for (tokens, token, accepted) in [
            (&old, token(&old), true),
            (&new, token(&old), false),
            (&both, token(&old), true),
            (&both, token(&new), true),
            (&new, token(&both), true),
            (&old, token(&both), false),
        ] {
            let verified = tokens.verify(&token, now());
            let is_of_ann = verified.is_some_and(|verified| tokens.is_of(verified.subject.as_ref().unwrap(), &ann));
            assert_eq!(is_of_ann, accepted);
        }
        // The line of the user is compared with the key that has made the fingerprint.
        let verified = both.verify(&token(&old), now()).unwrap();
        assert!(!both.is_of(verified.subject.as_ref().unwrap(), &account("ann", "changed")));
    }

    #[test]
    fn an_issued_token_says_who_and_which_actions_until_it_expires() {
        let tokens = Tokens::new(&SECRET, LIFETIME);
        let ann = account("ann", "hash");
        let acts: Rights = [Right::Pull, Right::Push].into_iter().collect();
        let token = tokens.issue(Some(&ann), acts, now());
        for _ in 0..2 {
            let verified = tokens.verify(&token, now() + LIFETIME - Duration::from_secs(1)).unwrap();
            assert_eq!(verified.acts, acts);
            assert!(tokens.is_of(verified.subject.as_ref().unwrap(), &ann));
            assert!(tokens.verify(&token, now() + LIFETIME).is_none(), "also if it is remembered");
        }
        for acts in [Rights::ALL, Rights::NONE, Right::Delete.into()] {
            let verified = tokens.verify(&tokens.issue(None, acts, now()), now()).unwrap();
            assert!(verified.acts == acts && verified.subject.is_none());
        }
        assert!(token.len() < 400, "{}", token.len());
    }

    #[test]
    fn the_claims_do_not_say_when_the_token_was_made() {
        let tokens = Tokens::new(&SECRET, LIFETIME);
        let token = tokens.issue(Some(&account("ann", "hash")), Rights::ALL, now());
        let claims = URL_SAFE_NO_PAD.decode(token.split('.').nth(1).unwrap()).unwrap();
        let claims: serde_json::Value = serde_json::from_slice(&claims).unwrap();
        let names: Vec<&String> = claims.as_object().unwrap().keys().collect();
        assert_eq!(names, ["acts", "cred", "exp", "sub"]);
        assert_eq!(claims["acts"], serde_json::json!(["*"]));
        assert!(!claims.to_string().contains("hash"));
        let header = URL_SAFE_NO_PAD.decode(HEADER).unwrap();
        assert_eq!(header, br#"{"alg":"HS256","typ":"roadstead+jwt"}"#);
    }

    #[test]
    fn a_changed_or_foreign_line_is_another_user() {
        let tokens = Tokens::new(&SECRET, LIFETIME);
        let token = tokens.issue(Some(&account("ann", "hash")), Rights::ALL, now());
        let verified = tokens.verify(&token, now()).unwrap();
        for (name, hash) in [("ann", "other"), ("bob", "hash"), ("an", "n:hash")] {
            assert!(!tokens.is_of(verified.subject.as_ref().unwrap(), &account(name, hash)), "{name}:{hash}");
        }
    }

    #[test]
    fn forged_tokens_are_refused() {
        let tokens = Tokens::new(&SECRET, LIFETIME);
        let good = tokens.issue(None, Rights::ALL, now());
        let claims = r#"{"exp":9999999999,"acts":["*"]}"#;
        let ours = r#"{"alg":"HS256","typ":"roadstead+jwt"}"#;
        assert!(tokens.verify(&signed(&tokens, ours, claims), now()).is_some());
        let (head, signature) = good.rsplit_once('.').unwrap();
        let none = format!("{}.{}.", URL_SAFE_NO_PAD.encode(r#"{"alg":"none"}"#), URL_SAFE_NO_PAD.encode(claims));
        let mut flipped = URL_SAFE_NO_PAD.decode(signature).unwrap();
        flipped[31] ^= 1;
        let many = signed(&tokens, ours, &format!(r#"{{"exp":9999999999,"acts":[{}"x"]}}"#, r#""x","#.repeat(3000)));
        for forged in [
            String::new(),
            "..".to_owned(),
            "a.b.c".to_owned(),
            head.to_owned(),
            format!("{head}."),
            format!("{head}.{}", URL_SAFE_NO_PAD.encode(flipped)),
            format!("{head}.{signature}="),
            format!("{good}.x"),
            format!("{good} "),
            format!("{good}\n"),
            none,
            signed(&tokens, r#"{"alg":"HS256","typ":"JWT"}"#, claims),
            signed(&tokens, r#"{"typ":"roadstead+jwt","alg":"HS256"}"#, claims),
            signed(&tokens, ours, r#"{"exp":9999999999}"#),
            signed(&tokens, ours, r#"{"exp":"9999999999","acts":["*"]}"#),
            signed(&tokens, ours, r#"{"sub":"ann","exp":9999999999,"acts":["*"]}"#),
            signed(&tokens, ours, "[]"),
            Tokens::new(&[8; 32], LIFETIME).issue(None, Rights::ALL, now()),
            "x".repeat(1 << 20),
            many,
        ] {
            assert!(tokens.verify(&forged, now()).is_none(), "{}", &forged[..forged.len().min(200)]);
        }
        assert_eq!(tokens.verified.iter().count(), 1, "only good tokens are remembered");
    }
}
