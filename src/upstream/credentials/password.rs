//! Parses the password in a file or in a program's output.

use serde::Deserialize;

use super::Credentials;

/// Google's user name for the key of a service account, which is a JSON document of several lines.
const JSON_KEY_USER: &str = "_json_key";

/// Reads the first line, as secret files may end with or without a line break; for a JSON key, the complete text. The
/// error is a predicate that follows the file's name.
pub(super) fn read(username: &str, bytes: &[u8]) -> Result<Credentials, &'static str> {
    let text = std::str::from_utf8(bytes).map_err(|_| "is not text")?;
    let password = if username == JSON_KEY_USER { text.trim() } else { text.lines().next().unwrap_or("").trim_end() };
    if password.is_empty() {
        return Err("is empty");
    }
    Credentials::new(username, password).ok_or("contains characters that are not allowed in a password")
}

/// A user name and password as JSON, with the field names of Docker's helpers or of the configuration.
#[derive(Deserialize)]
pub(super) struct CredentialObject {
    #[serde(alias = "Username")]
    username: String,
    #[serde(alias = "Secret", alias = "secret", alias = "Password")]
    password: String,
    /// How long the password is valid, in seconds.
    #[serde(default)]
    pub(super) expires_in: Option<u64>,
}

// === impl CredentialObject ===

impl CredentialObject {
    /// `None` if the output is not such an object.
    pub(super) fn parse(bytes: &[u8]) -> Option<Self> {
        serde_json::from_slice(bytes).ok()
    }

    /// `None` for an empty password, with which some helpers say that they have none.
    pub(super) fn credentials(&self) -> Option<Credentials> {
        if self.password.is_empty() { None } else { Credentials::new(&self.username, &self.password) }
    }
}
