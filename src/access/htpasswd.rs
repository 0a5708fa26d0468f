//! The file with the users and the hashes of their passwords: `name:hash` in each line, as `htpasswd -B` writes it.
//!
//! Only bcrypt and argon2id are accepted (see `password_hash`). Weaker hashes and plain text are an error with the line and the command that makes a right
//! line. An error never repeats what is in the place of a hash.

use std::collections::HashMap;
use std::sync::Arc;

use ring::rand::{SecureRandom, SystemRandom};

use super::account::Account;
use super::password_hash::{Cost, DEFAULT_BCRYPT_COST, MAX_BCRYPT_PASSWORD_BYTES};
use super::principal::User;
use crate::config::is_user_name;
use crate::printable::Printable;

/// The users of a file.
#[derive(Debug)]
pub(super) struct UserFile {
    users: HashMap<Box<str>, Account>,
    /// A hash that no password has, for unknown users.
    unknown: Arc<str>,
}

/// A line that is not accepted.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("line {line}: {reason}")]
pub struct LineError {
    /// Counted from 1.
    pub line: usize,
    pub reason: String,
}

// === impl UserFile ===

impl UserFile {
    /// # Errors
    /// For the first line that is neither a user, nor a comment, nor blank.
    pub(super) fn parse(content: &[u8]) -> Result<Self, LineError> {
        let content = content.strip_prefix(b"\xef\xbb\xbf").unwrap_or(content);
        let mut users: HashMap<Box<str>, Account> = HashMap::new();
        let mut lines: HashMap<Box<str>, usize> = HashMap::new();
        let mut costs: HashMap<Cost, usize> = HashMap::new();
        for (at, bytes) in content.split(|byte| *byte == b'\n').enumerate() {
            let line = at + 1;
            let wrong = |reason: String| LineError { line, reason };
            let text = std::str::from_utf8(bytes).map_err(|_| wrong("is not UTF-8".to_owned()))?.trim_end();
            if text.trim_start().is_empty() || text.starts_with('#') {
                continue;
            }
            let (name, hash, cost) = account(text).map_err(wrong)?;
            if let Some(first) = lines.insert(name.into(), line) {
                let name = Printable(name);
                return Err(wrong(format!("the user {name} is on line {first} already; remove one of the two lines")));
            }
            *costs.entry(cost).or_default() += 1;
            users.insert(name.into(), Account { user: Arc::new(User::new(name)), credential: hash.into() });
        }
        let usual = costs.into_iter().max_by_key(|(cost, users)| (*users, *cost));
        let usual = usual.map_or(Cost::Bcrypt(DEFAULT_BCRYPT_COST), |(cost, _)| cost);
        Ok(Self { users, unknown: usual.without_password().into() })
    }

    pub(super) fn account(&self, name: &str) -> Option<&Account> {
        self.users.get(name)
    }

    /// A hash of the usual kind and cost that no password has.
    pub(super) fn unknown(&self) -> &Arc<str> {
        &self.unknown
    }

    pub(super) fn len(&self) -> usize {
        self.users.len()
    }
}

/// A password that cannot be hashed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PasswordError {
    #[error("the password is empty; write it to the standard input")]
    Empty,
    #[error(
        "the password has more than {MAX_BCRYPT_PASSWORD_BYTES} bytes, which bcrypt would cut off; choose a shorter one"
    )]
    TooLong,
    #[error("the password has a NUL or is not UTF-8, so no client could send it")]
    Unusable,
    #[error("the password has more than one line, so no client could send it; write it once")]
    SeveralLines,
    #[error("the password cannot be hashed: the kernel gives no random numbers")]
    Random,
}

/// The bcrypt hash of a password, with a new salt.
pub fn hash_password(password: &[u8]) -> Result<String, PasswordError> {
    if password.is_empty() {
        return Err(PasswordError::Empty);
    }
    if password.contains(&b'\n') {
        return Err(PasswordError::SeveralLines);
    }
    if password.len() > MAX_BCRYPT_PASSWORD_BYTES {
        return Err(PasswordError::TooLong);
    }
    if password.contains(&0) || std::str::from_utf8(password).is_err() {
        return Err(PasswordError::Unusable);
    }
    let mut salt = [0; 16];
    SystemRandom::new().fill(&mut salt).map_err(|_| PasswordError::Random)?;
    let hash = bcrypt::hash_with_salt(password, DEFAULT_BCRYPT_COST, salt).map_err(|_| PasswordError::Unusable)?;
    Ok(hash.format_for_version(bcrypt::Version::TwoB))
}

/// The name and the hash in a line, and the cost of the hash.
fn account(line: &str) -> Result<(&str, &str, Cost), String> {
    const EXAMPLE: &str = "write the line that `roadstead hash-password --user NAME` or `htpasswd -nBC 10 NAME` prints";
    let Some((name, hash)) = line.split_once(':') else {
        return Err(format!("is not a user and a hash with a colon between them; {EXAMPLE}"));
    };
    let shown = Printable(name);
    if !is_user_name(name) {
        return Err(format!(
            "\"{shown}\" cannot be the name of a user: it is empty, has a space, is too long or has a meaning in rules"
        ));
    }
    let cost = Cost::of(hash).map_err(|kind| format!("what follows the user {shown} {kind}; {EXAMPLE}"))?;
    Ok((name, hash, cost))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The hash of "secret" with cost 4.
    pub(in crate::access) fn hash() -> String {
        bcrypt::hash_with_salt("secret", 4, [7; 16]).unwrap().to_string()
    }

    #[test]
    fn users_comments_and_blank_lines_are_read() {
        let hash = hash();
        let (a, y) = (hash.replacen("$2b$", "$2a$", 1), hash.replacen("$2b$", "$2y$", 1));
        let text = format!("\u{feff}# users\r\n\r\nann:{hash}\r\n   \nbob@example.com:{a}  \n\n#eve:plain\njürgen:{y}");
        let file = UserFile::parse(text.as_bytes()).unwrap();
        assert_eq!(file.len(), 3);
        for name in ["ann", "bob@example.com", "jürgen"] {
            let account = file.account(name).unwrap();
            assert_eq!(account.user.name(), name);
            assert!(bcrypt::verify("secret", &account.credential).unwrap(), "{name}");
        }
        assert!(file.account("eve").is_none() && file.account("").is_none());
        assert_eq!(UserFile::parse(b"").unwrap().len(), 0);
    }

    #[test]
    fn wrong_lines_are_named_with_the_right_command() {
        let hash = hash();
        for (text, line, reason) in [
            ("\nann".to_owned(), 2, "is not a user and a hash"),
            ("ann:hunter2".to_owned(), 1, "is not a bcrypt hash"),
            ("ann:".to_owned(), 1, "is not a bcrypt hash"),
            ("ann:$apr1$x$hunter2".to_owned(), 1, "MD5"),
            ("ann:{SHA}hunter2=".to_owned(), 1, "SHA-1"),
            ("ann:$argon2id$v=19$hunter2".to_owned(), 1, "damaged"),
            ("ann:$argon2i$v=19$hunter2".to_owned(), 1, "another kind"),
            ("ann:$2x$04$hunter2".to_owned(), 1, "another kind"),
            (format!("ann:{}", &hash[..50]), 1, "damaged"),
            (format!("ann:{hash}hunter2"), 1, "damaged"),
            (format!("ann:{}", hash.replacen("$04$", "$15$", 1)), 1, "cost 15, not 4 to 14"),
            (format!("ann:{}", hash.replacen("$04$", "$03$", 1)), 1, "cost 3, not 4 to 14"),
            (format!("ann:{hash}\nbob:{hash}\nann:{hash}"), 3, "the user ann is on line 1 already"),
            (format!(":{hash}"), 1, "cannot be the name"),
            (format!("anonymous:{hash}"), 1, "cannot be the name"),
            (format!("ann smith:{hash}"), 1, "cannot be the name"),
        ] {
            let error = UserFile::parse(text.as_bytes()).unwrap_err();
            assert_eq!(error.line, line, "{text}");
            assert!(error.reason.contains(reason), "{text}: {error}");
            assert!(!error.reason.contains("hunter2"), "{error}");
            let names_the_command = error.reason.contains("roadstead hash-password --user NAME");
            assert_eq!(names_the_command, !reason.contains("name") && !reason.contains("already"), "{error}");
        }
        assert_eq!(UserFile::parse(b"ann:\xff").unwrap_err().reason, "is not UTF-8");
    }

    #[test]
    fn a_hashed_password_makes_a_line_of_the_file() {
        let long = "x".repeat(MAX_BCRYPT_PASSWORD_BYTES);
        for password in ["secret", "pass word:with ", "ä", &long] {
            let hash = hash_password(password.as_bytes()).unwrap();
            assert!(hash.starts_with("$2b$10$") && hash != hash_password(password.as_bytes()).unwrap());
            let file = UserFile::parse(format!("ann:{hash}").as_bytes()).unwrap();
            assert!(bcrypt::verify(password, &file.account("ann").unwrap().credential).unwrap(), "{password}");
        }
        for (password, error) in [
            (&b""[..], PasswordError::Empty),
            (format!("{long}x").as_bytes(), PasswordError::TooLong),
            (b"a\na", PasswordError::SeveralLines),
            (b"a\0b", PasswordError::Unusable),
            (b"\xff", PasswordError::Unusable),
        ] {
            assert_eq!(hash_password(password), Err(error));
        }
    }

    #[test]
    fn an_unknown_user_costs_what_most_users_cost() {
        let (four, five) = (hash(), bcrypt::hash_with_salt("x", 5, [1; 16]).unwrap().to_string());
        let file = UserFile::parse(format!("a:{four}\nb:{five}\nc:{five}").as_bytes()).unwrap();
        assert!(file.unknown().starts_with("$2b$05$"));
        assert!(!bcrypt::verify("secret", file.unknown()).unwrap());
        assert!(UserFile::parse(b"").unwrap().unknown().starts_with("$2b$10$"));
    }
}
