//! The credentials of an upstream from their keys: one source each, and nothing beside it that would be ignored.

use std::path::Path;

use super::error::Site;
use super::layer::{CredentialKeys, Sited, UpstreamKeys};
use super::{ConfigError, CredentialConfig, CredentialSource};

/// One `[[upstream."host".credentials]]`.
pub(super) fn of_repositories(keys: Sited<CredentialKeys>, path: &str) -> Result<CredentialConfig, ConfigError> {
    let Sited { value: mut keys, site } = keys;
    let Some(repository) = keys.repository.take() else {
        let message = "has no repository; write for example repository = \"org/**\"";
        return Err(ConfigError::new(&site, path, message));
    };
    let Some(source) = source(keys, path)? else {
        let message = "has no credentials; write username and password, password_file or exec, or docker_config";
        return Err(ConfigError::new(&site, path, message));
    };
    Ok(CredentialConfig { repository: Some(repository.value), source })
}

/// Those of the upstream's own table, for every repository.
pub(super) fn of_all(keys: &mut UpstreamKeys, path: &str) -> Result<Option<CredentialConfig>, ConfigError> {
    let keys = CredentialKeys {
        repository: None,
        username: keys.username.take(),
        password: keys.password.take(),
        password_file: keys.password_file.take(),
        exec: keys.exec.take(),
        exec_lifetime: keys.exec_lifetime.take(),
        docker_config: keys.docker_config.take(),
    };
    Ok(source(keys, path)?.map(CredentialConfig::new))
}

fn wrong<T>(path: &str, site: &Site, key: &str, message: &str) -> Result<T, ConfigError> {
    Err(ConfigError::new(site, format!("{path}.{key}"), message))
}

/// What would be ignored is refused.
fn check(keys: &CredentialKeys, path: &str) -> Result<(), ConfigError> {
    let sites = [
        ("password", keys.password.as_ref().map(|key| &key.site)),
        ("password_file", keys.password_file.as_ref().map(|key| &key.site)),
        ("exec", keys.exec.as_ref().map(|key| &key.site)),
        ("docker_config", keys.docker_config.as_ref().map(|key| &key.site)),
    ];
    let mut there = sites.into_iter().filter_map(|(key, site)| Some((key, site?)));
    if let (Some((one, _)), Some((other, site))) = (there.next(), there.next()) {
        return wrong(path, site, other, &format!("there is a {one} as well; write one of the two"));
    }
    if let (Some(lifetime), None) = (&keys.exec_lifetime, &keys.exec) {
        return wrong(path, &lifetime.site, "exec_lifetime", "there is no exec that it is for");
    }
    if let (Some(username), Some(_)) = (&keys.username, &keys.docker_config) {
        return wrong(path, &username.site, "username", "docker_config brings its own");
    }
    Ok(())
}

fn source(keys: CredentialKeys, path: &str) -> Result<Option<CredentialSource>, ConfigError> {
    check(&keys, path)?;
    let wrong = |site: &Site, key: &str, message: &str| wrong(path, site, key, message);
    if let Some(exec) = keys.exec {
        let command = exec.value.0;
        if command.is_empty() {
            return wrong(&exec.site, "exec", "is empty; write the program and its arguments");
        }
        let lifetime = keys.exec_lifetime.map_or(CredentialSource::EXEC_LIFETIME, |lifetime| lifetime.value.0);
        let username = keys.username.map(|username| username.value);
        return Ok(Some(CredentialSource::Exec { command, username, lifetime }));
    }
    if let Some(file) = keys.docker_config {
        let path = super::build_upstream::readable(file, &format!("{path}.docker_config"))?;
        return Ok(Some(CredentialSource::Docker { path }));
    }
    match (keys.username, keys.password, keys.password_file) {
        (None, None, None) => Ok(None),
        (Some(username), Some(password), _) => {
            Ok(Some(CredentialSource::Password { username: username.value, password: password.value }))
        }
        (Some(username), None, Some(file)) => match check_password(&file.value) {
            Ok(()) => Ok(Some(CredentialSource::File { username: username.value, path: file.value })),
            Err(why) => wrong(&file.site, "password_file", &format!("\"{}\" {why}", file.value.display())),
        },
        (Some(username), None, None) => {
            wrong(&username.site, "username", "there is no password for it; write password, password_file or exec too")
        }
        (None, Some(password), _) => {
            wrong(&password.site, "password", "there is no username for it; write username too")
        }
        (None, None, Some(file)) => {
            wrong(&file.site, "password_file", "there is no username for it; write username too")
        }
    }
}

/// A file that is no password now is a mistake that is told at once, not by the first pull.
fn check_password(path: &Path) -> Result<(), String> {
    let read = crate::file::read(path).map_err(|error| format!("cannot be read: {error}"))?;
    let text = String::from_utf8(read).map_err(|_| "is not text".to_owned())?;
    if text.lines().next().is_none_or(str::is_empty) { Err("is empty".to_owned()) } else { Ok(()) }
}
