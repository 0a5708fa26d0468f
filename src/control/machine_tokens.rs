//! `token`: makes, lists and revokes machine tokens.

use std::time::{Duration, SystemTime};

use serde::{Deserialize, Serialize};

use super::Control;
use crate::access::{MachineToken, MachineTokens, Policy, Principal, TokenFile};
use crate::config::{AuthConfig, Config, TOKEN_PREFIX};
use crate::store::Store;

/// The request of `POST /v1/token-create`.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CreateRequest {
    pub name: String,
    /// Seconds until it expires; `None` if it does not.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expires_in: Option<u64>,
}

/// A new token.
#[derive(Serialize, Deserialize)]
pub struct Created {
    /// The identity that rules name.
    pub identity: String,
    /// Shown this once.
    pub token: String,
    /// Seconds since 1970; `None` if it does not expire.
    pub expires: Option<u64>,
    /// The places of the rules that give it rights.
    pub rules: Vec<String>,
}

/// The request of `POST /v1/token-list`.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ListRequest {}

#[derive(Debug, Serialize, Deserialize)]
pub struct Listed {
    pub tokens: Vec<MachineToken>,
}

/// The request of `POST /v1/token-revoke`.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RevokeRequest {
    pub name: String,
}

#[derive(Debug, Serialize, Deserialize)]
pub struct Revoked {}

/// The file of machine tokens in a data folder.
pub struct StoredTokens(pub Store);

impl TokenFile for StoredTokens {
    fn read(&self) -> Result<Option<Vec<u8>>, String> {
        self.0.machine_tokens().map_err(|error| error.to_string())
    }

    fn write(&self, text: &[u8]) -> Result<(), String> {
        self.0.put_machine_tokens(text).map_err(|error| error.to_string())
    }
}

/// The tokens of a data folder. Blocks.
///
/// # Errors
/// The message; also if the configuration has no `[auth]`, because nobody needs a token then.
pub fn load(config: &Config, store: &Store) -> Result<MachineTokens, String> {
    auth(config)?;
    MachineTokens::load(Box::new(StoredTokens(store.clone()))).map_err(|error| error.to_string())
}

/// The tokens of a running server.
///
/// # Errors
/// As [`load`].
pub fn of_server(control: &Control) -> Result<&MachineTokens, String> {
    auth(&control.config)?;
    control.machine_tokens.as_deref().ok_or_else(|| "the server has no machine tokens".to_owned())
}

/// Makes a token. Blocks.
///
/// # Errors
/// The message.
pub fn create(config: &Config, tokens: &MachineTokens, request: &CreateRequest) -> Result<Created, String> {
    let auth = auth(config)?;
    let identity = format!("{TOKEN_PREFIX}:{}", request.name);
    let (lifetime, now) = (request.expires_in.map(Duration::from_secs), SystemTime::now());
    let token = tokens.create(&request.name, lifetime, now).map_err(|error| error.to_string())?;
    tracing::info!(identity, "made a machine token");
    let expires =
        tokens.list().into_iter().find(|listed| listed.name == request.name).and_then(|listed| listed.expires);
    let policy = Policy::new(auth);
    let rules = policy.rules_of(&Principal::named(&identity)).map(str::to_owned).collect();
    Ok(Created { identity, token, expires, rules })
}

/// Revokes a token. Blocks.
///
/// # Errors
/// The message.
pub fn revoke(tokens: &MachineTokens, request: &RevokeRequest) -> Result<Revoked, String> {
    tokens.revoke(&request.name).map_err(|error| error.to_string())?;
    tracing::info!(identity = format!("{TOKEN_PREFIX}:{}", request.name), "revoked a machine token");
    Ok(Revoked {})
}

pub fn list(tokens: &MachineTokens) -> Listed {
    Listed { tokens: tokens.list() }
}

fn auth(config: &Config) -> Result<&AuthConfig, String> {
    let message = "the configuration has no [auth], so everybody may do everything that is switched on, and a token would have \
                   no meaning; add [auth] and a rule first, such as one with who = \"token:NAME\"";
    config.auth.as_ref().ok_or_else(|| message.to_owned())
}
