//! `reload`: reads the configuration again and puts its rules and groups in force. SIGHUP does the same.
//!
//! A configuration with a mistake changes nothing. Other settings that have changed are named: they need a restart.

use std::collections::HashSet;
use std::sync::Arc;

use parking_lot::Mutex;
use serde::{Deserialize, Serialize};

use crate::access::{Policy, Rules};
use crate::audit::{Audit, Event, Record};
use crate::config::{Config, ConfigError};

/// The request of `POST /v1/reload`.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ReloadRequest {}

/// The response of `POST /v1/reload`.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Reloaded {
    /// How many rules are in force; `None` if there are no users.
    pub rules: Option<usize>,
    /// Settings that have changed since the start, and need a restart.
    pub needs_restart: Vec<String>,
}

/// Reads the configuration as at the start. It blocks.
pub type ConfigSource = Box<dyn Fn() -> Result<Config, ConfigError> + Send + Sync>;

/// Reads the configuration again.
pub struct Reloader {
    /// `None` if the configuration is not from files and variables.
    source: Option<ConfigSource>,
    /// The rules in force; `None` if there are no users.
    rules: Option<Rules>,
    /// The configuration of the start, with the rules in force.
    config: Mutex<Config>,
    /// Held while the configuration is read again.
    turn: Mutex<()>,
    audit: Audit,
}

// === impl Reloader ===

impl Reloader {
    pub fn new(source: Option<ConfigSource>, config: &Config, rules: Option<&Rules>, audit: &Audit) -> Self {
        let (rules, config, audit) = (rules.cloned(), Mutex::new(config.clone()), audit.clone());
        Self { source, rules, config, turn: Mutex::default(), audit }
    }

    /// The rules in force; `None` if there are no users.
    pub fn policy(&self) -> Option<Arc<Policy>> {
        self.rules.as_ref().map(Rules::get)
    }

    /// The configuration of the start, with the rules in force.
    pub fn config(&self) -> Config {
        self.config.lock().clone()
    }

    /// Reads the configuration again, which blocks. `how` says who has asked for it, in the audit log.
    ///
    /// # Errors
    /// The mistake in the configuration. Nothing has changed then.
    pub fn reload(&self, how: &'static str) -> Result<Reloaded, String> {
        let reloaded = self.replace_rules();
        match &reloaded {
            Ok(Reloaded { rules, needs_restart }) => {
                tracing::info!(rules, "read the configuration again");
                if !needs_restart.is_empty() {
                    let settings = needs_restart.join(", ");
                    tracing::warn!(
                        settings,
                        "changed settings need a restart; rules and groups of [auth] are in force"
                    );
                }
            }
            Err(error) => tracing::error!(%error, "cannot use the changed configuration; the rules stay as they are"),
        }
        let outcome = Some(if reloaded.is_ok() { "done" } else { "failed" }.into());
        let reference = Some("reload".into());
        self.audit.write(&Record { how: Some(how), reference, outcome, ..Record::new(Event::Admin) });
        reloaded
    }

    fn replace_rules(&self) -> Result<Reloaded, String> {
        let source = self.source.as_ref().ok_or("the server was not started from a configuration")?;
        let _turn = self.turn.lock();
        let new = source().map_err(|error| error.to_string())?;
        let mut config = self.config.lock();
        let needs_restart: Vec<String> = config.differences(&new).into_iter().map(str::to_owned).collect();
        let before: HashSet<String> = config.warnings(None).into_iter().collect();
        for warning in new.warnings(None).iter().filter(|warning| !before.contains(*warning)) {
            tracing::warn!("{warning}");
        }
        if let (Some(rules), Some(auth), Some(new_auth)) = (&self.rules, &mut config.auth, &new.auth) {
            // What else differs needs a restart, and so do the rules then that are made from it.
            if auth.is_of_registry_2 == new_auth.is_of_registry_2 {
                rules.replace(Policy::new(new_auth));
                (auth.groups, auth.rules) = (new_auth.groups.clone(), new_auth.rules.clone());
            }
        }
        Ok(Reloaded { rules: config.auth.as_ref().map(|auth| auth.rules.len()), needs_restart })
    }
}
