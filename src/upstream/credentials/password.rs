//! The password in a file or in what a program printed.

use serde::Deserialize;

use super::Credentials;

/// Google's user name for a service account's key, which is a JSON document of many lines.
const JSON_KEY_USER: &str = "_json_key";

/// The first line, as secrets are mounted with and without a line break at their end; of a JSON key all of it.
pub(super) fn read(username: &str, bytes: &[u8]) -> Result<Credentials, &'static str> {
    let text = std::str::from_utf8(bytes).map_err(|_| "is not text")?;
    let password = if username == JSON_KEY_USER { text.trim() } else { text.lines().next().unwrap_or("").trim_end() };
    if password.is_empty() {
        return Err("is empty");
    }
    Credentials::new(username, password).ok_or("holds no password")
}

/// A name with its password, as programs print them: in the words of Docker's helpers or in our own.
#[derive(Deserialize)]
pub(super) struct Object {
    #[serde(alias = "Username")]
    username: String,
    #[serde(alias = "Secret", alias = "secret", alias = "Password")]
    password: String,
    /// Seconds.
    #[serde(default)]
    pub(super) expires_in: Option<u64>,
}

// === impl Object ===

impl Object {
    pub(super) fn parse(bytes: &[u8]) -> Option<Self> {
        serde_json::from_slice(bytes).ok()
    }

    /// `None` for empty ones: so some helpers say that they have nothing.
    pub(super) fn credentials(&self) -> Option<Credentials> {
        if self.password.is_empty() { None } else { Credentials::new(&self.username, &self.password) }
    }
}
