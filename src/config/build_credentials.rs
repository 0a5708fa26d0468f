//! Builds the credential rules of an upstream from their keys. Keys that contradict each other, or would have no
//! effect, are errors.

use std::path::Path;

use super::error::SourceLocation;
use super::layer::{CredentialKeys, Located, RepositoryCredentialKeys};
use super::{ConfigError, CredentialConfig, CredentialSource};

/// The rule of one `[[upstream."host".credentials]]` table. `path` is the table's dotted name, for errors.
pub(super) fn repository_rule(
    keys: Located<RepositoryCredentialKeys>,
    path: &str,
) -> Result<CredentialConfig, ConfigError> {
    let Located { value: RepositoryCredentialKeys { repository, credentials }, location } = keys;
    let Some(repository) = repository else {
        let message = "has no repository; write for example repository = \"org/**\"";
        return Err(ConfigError::new(&location, path, message));
    };
    let Some(source) = source(credentials, path)? else {
        let message = "has no credentials; write username and password, password_file or exec, or docker_config";
        return Err(ConfigError::new(&location, path, message));
    };
    Ok(CredentialConfig { repository: Some(repository.value), source })
}

/// The rule of an upstream's own table, for every repository; `None` if the table has no credentials.
pub(super) fn upstream_rule(keys: CredentialKeys, path: &str) -> Result<Option<CredentialConfig>, ConfigError> {
    Ok(source(keys, path)?.map(CredentialConfig::new))
}

fn wrong<T>(path: &str, location: &SourceLocation, key: &str, message: &str) -> Result<T, ConfigError> {
    Err(ConfigError::new(location, format!("{path}.{key}"), message))
}

/// Rejects keys that would have no effect.
fn check(keys: &CredentialKeys, path: &str) -> Result<(), ConfigError> {
    let mut sources = keys.sources();
    if let (Some((one, _)), Some((other, location))) = (sources.next(), sources.next()) {
        return wrong(path, location, other, &format!("{one} is set as well; keep one of the two"));
    }
    if let (Some(lifetime), None) = (&keys.exec_lifetime, &keys.exec) {
        return wrong(path, &lifetime.location, "exec_lifetime", "is set without exec; set exec too, or remove it");
    }
    if let (Some(username), Some(_)) = (&keys.username, &keys.docker_config) {
        return wrong(
            path,
            &username.location,
            "username",
            "cannot be combined with docker_config, which contains user names; remove one of the two",
        );
    }
    Ok(())
}

/// The one source that the keys name; `None` if no key is set.
fn source(keys: CredentialKeys, path: &str) -> Result<Option<CredentialSource>, ConfigError> {
    check(&keys, path)?;
    let wrong = |location: &SourceLocation, key: &str, message: &str| wrong(path, location, key, message);
    if let Some(exec) = keys.exec {
        let command = exec.value.0;
        if command.is_empty() {
            return wrong(&exec.location, "exec", "is empty; write the program and its arguments");
        }
        let lifetime = keys.exec_lifetime.map_or(CredentialSource::EXEC_LIFETIME, |lifetime| lifetime.value.0);
        let username = keys.username.map(|username| username.value);
        return Ok(Some(CredentialSource::Exec { command, username, lifetime }));
    }
    if let Some(file) = keys.docker_config {
        let path = super::build_value::readable(file, &format!("{path}.docker_config"))?;
        return Ok(Some(CredentialSource::Docker { path }));
    }
    match (keys.username, keys.password, keys.password_file) {
        (None, None, None) => Ok(None),
        (Some(username), Some(password), _) => {
            Ok(Some(CredentialSource::Password { username: username.value, password: password.value }))
        }
        (Some(username), None, Some(file)) => match check_password(&file.value) {
            Ok(()) => Ok(Some(CredentialSource::File { username: username.value, path: file.value })),
            Err(why) => wrong(&file.location, "password_file", &format!("\"{}\" {why}", file.value.display())),
        },
        (Some(username), None, None) => {
            wrong(&username.location, "username", "is set without a password; set password, password_file or exec too")
        }
        (None, Some(password), _) => wrong(&password.location, "password", "is set without username; set username too"),
        (None, None, Some(file)) => wrong(&file.location, "password_file", "is set without username; set username too"),
    }
}

/// Checks the password file at the start, so that a wrong path is reported before the first pull.
fn check_password(path: &Path) -> Result<(), String> {
    let read = crate::file::read(path).map_err(|error| format!("cannot be read: {error}"))?;
    let text = String::from_utf8(read).map_err(|_| "is not text".to_owned())?;
    if text.lines().next().is_none_or(str::is_empty) { Err("is empty".to_owned()) } else { Ok(()) }
}
