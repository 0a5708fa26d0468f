//! Formats the effective configuration as a configuration file, with secrets hidden.

use std::fmt::{Display, Write};
use std::path::PathBuf;

use toml::Value;
use url::Url;

use super::units::{format_duration, format_size};
use super::{
    AuthConfig, ClaimPattern, Config, CredentialConfig, CredentialSource, IssuerConfig, Secret, UpstreamConfig,
};

/// The TOML text written so far.
#[derive(Default)]
struct TomlWriter(String);

// === impl Config ===

impl Config {
    /// The configuration as TOML, in the order of `config/roadstead.toml`. Keys without a value are left out. Sizes
    /// that depend on the size of the data folder's file system, `disk_bytes`, are comments.
    pub fn to_toml(&self, disk_bytes: Option<u64>) -> String {
        let mut document = TomlWriter::default();
        document.key("builtin_upstreams", self.builtin_upstreams);
        document.key("default_upstream", self.default_upstream.as_deref().unwrap_or("none"));
        if let Some(path) = &self.docker_config {
            document.key("docker_config", path.display().to_string());
        }

        document.table("server");
        document.key("listen", self.server.listen.to_string());
        document.key("names", self.server.names.clone());
        document.key("host_routes", self.server.host_routes.clone());
        if let Some(url) = &self.server.external_url {
            document.key("external_url", url.as_str());
        }
        let proxies = self.server.trusted_proxies.iter().map(ToString::to_string);
        document.key("trusted_proxies", proxies.collect::<Vec<_>>());
        document.key("max_connections", count(self.server.max_connections));
        document.key("head_timeout", format_duration(self.server.head_timeout));
        document.key("keep_alive", format_duration(self.server.keep_alive));
        document.key("progress_timeout", format_duration(self.server.progress_timeout));
        document.key("drain_timeout", format_duration(self.server.drain_timeout));

        for (name, value) in &self.server.response_headers {
            // No key of this file can set this header.
            document.line(format_args!("# in every response, from registry:2: {name}: {value:?}"));
        }

        if let Some(tls) = &self.server.tls {
            document.table("server.tls");
            document.key("cert", tls.cert.display().to_string());
            document.key("key", tls.key.display().to_string());
            if let Some(file) = &tls.client_ca {
                document.key("client_ca", file.display().to_string());
                document.key("client_auth", tls.client_auth.as_str());
            }
        }

        document.table("storage");
        document.key("path", self.storage.path.display().to_string());
        document.key("read_only", self.storage.read_only);

        document.table("cache");
        let (max_size, min_free) = (self.cache.max_size_on(disk_bytes), self.cache.min_free_on(disk_bytes));
        document.key_or_default("max_size", self.cache.max_size.is_some(), format_size(max_size));
        document.key_or_default("min_free", self.cache.min_free.is_some(), format_size(min_free));
        let pins = self.cache.pin.iter().map(|pin| pin.as_str().to_owned());
        document.key("pin", pins.collect::<Vec<_>>());
        document.key("tag_ttl", format_duration(self.cache.tag_ttl));
        document.key("stale_while_revalidate", format_duration(self.cache.stale_while_revalidate));
        document.key("stale_if_error", format_duration(self.cache.stale_if_error));
        document.key("negative_ttl", format_duration(self.cache.negative_ttl));
        document.key("answer_within", format_duration(self.cache.answer_within));
        document.key("max_fills", count(self.cache.max_fills));
        document.key("max_bypasses", count(self.cache.max_bypasses));

        document.table("gc");
        document.key("interval", format_duration(self.gc.interval));
        document.key("after_start", format_duration(self.gc.after_start));
        document.key("grace", format_duration(self.gc.grace));
        document.key("unreferenced_after", format_duration(self.gc.unreferenced_after));
        document.key("untagged_after", format_duration(self.gc.untagged_after));

        document.table("local");
        let patterns = self.local.namespaces.iter().map(|namespace| namespace.as_str().to_owned());
        document.key("namespaces", patterns.collect::<Vec<_>>());

        document.table("push");
        document.key("enabled", self.push.enabled);
        document.key("max_unfinished", count(self.push.max_unfinished));
        if let Some(size) = self.push.max_unfinished_size {
            document.key("max_unfinished_size", format_size(size));
        }

        document.table("delete");
        document.key("enabled", self.delete.enabled);

        if let Some(auth) = &self.auth {
            document.auth(auth);
        }

        document.table("audit");
        if let Some(file) = &self.audit.file {
            document.key("file", file.display().to_string());
        }
        document.key("pulls", self.audit.pulls);

        document.table("metrics");
        document.key("auth", self.metrics.auth);

        document.table("scrub");
        document.key("interval", format_duration(self.scrub.interval));
        document.key("rate", format_size(self.scrub.rate));

        document.table("log");
        document.key("format", self.log.format.to_string());

        self.upstreams.iter().for_each(|upstream| document.upstream(upstream, self.docker_config.as_ref()));
        document.0
    }
}

// === impl TomlWriter ===

impl TomlWriter {
    fn table(&mut self, name: impl Display) {
        self.line(format_args!("\n[{name}]"));
    }

    fn key(&mut self, name: &str, value: impl Into<Value>) {
        self.line(format_args!("{name} = {}", value.into()));
    }

    /// A key that is configured, or a comment with the default that is in force.
    fn key_or_default(&mut self, name: &str, configured: bool, value: impl Into<Value>) {
        match configured {
            true => self.key(name, value),
            false => self.line(format_args!("# {name} = {} (the default on this file system)", value.into())),
        }
    }

    fn auth(&mut self, auth: &AuthConfig) {
        self.table("auth");
        if let Some(file) = &auth.htpasswd {
            self.key("htpasswd", file.display().to_string());
        }
        let keys: Vec<String> = auth.token_key_files.iter().map(|file| file.display().to_string()).collect();
        match keys.as_slice() {
            [] => {}
            [key] => self.key("token_key_file", key.as_str()),
            keys => self.key("token_key_file", keys.to_vec()),
        }
        self.key("token_lifetime", format_duration(auth.token_lifetime));
        if !auth.groups.is_empty() {
            self.table("auth.groups");
            for (name, members) in &auth.groups {
                let members: Vec<String> = members.iter().map(ToString::to_string).collect();
                self.key(&format!("{name:?}"), members);
            }
        }
        auth.issuers.iter().for_each(|issuer| self.issuer(issuer));
        for rule in &auth.rules {
            let mark = if auth.is_of_registry_2 { "# " } else { "" };
            self.line(format_args!("\n{mark}[[auth.rule]]"));
            if auth.is_of_registry_2 {
                self.line(format_args!("# from the settings of registry:2, until there is a rule in the file"));
            }
            let list = |texts: Vec<String>| Value::from(texts);
            let who = list(rule.who.iter().map(ToString::to_string).collect());
            let on = list(rule.on.iter().map(|pattern| pattern.as_str().to_owned()).collect());
            let may = list(rule.may.iter().map(|right| right.as_str().to_owned()).collect());
            let private = rule.private.then(|| ("private", Value::from(true)));
            [("who", who), ("on", on), ("may", may)]
                .into_iter()
                .chain(private)
                .for_each(|(key, value)| self.line(format_args!("{mark}{key} = {value}")));
        }
    }

    fn issuer(&mut self, issuer: &IssuerConfig) {
        self.table(format_args!("auth.issuer.{:?}", issuer.name));
        self.key("issuer", issuer.issuer.as_str());
        self.key("audience", issuer.audience.clone());
        self.key("name", issuer.name_claim.as_str());
        if let Some(claim) = &issuer.groups_claim {
            self.key("groups", claim.as_str());
        }
        let patterns = |patterns: &[ClaimPattern]| {
            Value::from(patterns.iter().map(|pattern| pattern.as_str().to_owned()).collect::<Vec<_>>())
        };
        let require = issuer.require.iter().map(|(claim, of_claim)| (claim.clone(), patterns(of_claim)));
        self.key("require", Value::Table(require.collect()));
        self.key("algorithms", issuer.algorithms.iter().map(ToString::to_string).collect::<Vec<_>>());
        for (key, file) in [
            ("jwks_file", &issuer.jwks_file),
            ("ca_file", &issuer.ca_file),
            ("bearer_token_file", &issuer.bearer_token_file),
        ] {
            if let Some(file) = file {
                self.key(key, file.display().to_string());
            }
        }
    }

    fn upstream(&mut self, upstream: &UpstreamConfig, docker_config: Option<&PathBuf>) {
        self.table(format_args!("upstream.\"{}\"", upstream.name));
        match upstream.urls.as_slice() {
            [url] => self.key("url", url.to_string()),
            urls => self.key("url", urls.iter().map(ToString::to_string).collect::<Vec<_>>()),
        }
        if upstream.urls.len() > 1 && !upstream.credentials.is_empty() {
            upstream
                .urls
                .iter()
                .for_each(|url| self.line(format_args!("# {url} gets {}", credentials_for(upstream, url))));
        }
        let (of_all, of_some): (Vec<_>, Vec<_>) =
            upstream.credentials.iter().partition(|rule| rule.repository.is_none());
        let shown_above = |source: &CredentialSource| match source {
            CredentialSource::Docker { path } => Some(path) == docker_config,
            _ => false,
        };
        of_all.iter().filter(|rule| !shown_above(&rule.source)).for_each(|rule| self.credentials(rule));
        if let Some(file) = &upstream.ca_file {
            self.key("ca_file", file.display().to_string());
        }
        if let Some(pair) = &upstream.client_certificate {
            self.key("client_cert", pair.certificate.display().to_string());
            self.key("client_key", pair.key.display().to_string());
        }
        self.key("insecure_skip_verify", upstream.insecure_skip_verify);
        if let Some(on_denied) = upstream.on_denied {
            self.key("on_denied", on_denied.as_str());
        }
        self.key("connect_timeout", format_duration(upstream.connect_timeout));
        self.key("header_timeout", format_duration(upstream.header_timeout));
        self.key("idle_timeout", format_duration(upstream.idle_timeout));
        self.key("min_rate", format_size(upstream.min_rate));
        self.key("max_fills", count(upstream.max_fills));
        self.key("connections", count(upstream.connections));
        self.key("token_realms", upstream.token_realms.clone());
        self.key("private_redirects", upstream.private_redirects);
        for rule in of_some {
            self.line(format_args!("\n[[upstream.\"{}\".credentials]]", upstream.name));
            self.credentials(rule);
        }
    }

    fn credentials(&mut self, rule: &CredentialConfig) {
        if let Some(repository) = &rule.repository {
            self.key("repository", repository.as_str());
        }
        match &rule.source {
            CredentialSource::Password { username, .. } => {
                self.key("username", username.as_str());
                self.key("password", Secret::HIDDEN);
            }
            CredentialSource::File { username, path } => {
                self.key("username", username.as_str());
                self.key("password_file", path.display().to_string());
            }
            CredentialSource::Exec { command, username, lifetime } => {
                if let Some(username) = username {
                    self.key("username", username.as_str());
                }
                // The program's arguments may contain secrets.
                let hidden = command.iter().skip(1).map(|_| Secret::HIDDEN);
                let shown = command.first().map(String::as_str).into_iter().chain(hidden);
                self.key("exec", shown.map(str::to_owned).collect::<Vec<_>>());
                self.key("exec_lifetime", format_duration(*lifetime));
            }
            CredentialSource::Docker { path } => self.key("docker_config", path.display().to_string()),
        }
    }

    fn line(&mut self, line: impl Display) {
        // Writing to a string cannot fail.
        let _ = writeln!(self.0, "{line}");
    }
}

/// Which credentials requests to one of several URLs have.
fn credentials_for(upstream: &UpstreamConfig, url: &Url) -> String {
    let for_url = |rule: &&CredentialConfig| !rule.source.is_certain() || upstream.credentials_are_for(url);
    let host = url.host_str().unwrap_or_default();
    let text = |rule: &CredentialConfig| {
        let repositories =
            rule.repository.as_ref().map(|pattern| format!(" for {}", pattern.as_str())).unwrap_or_default();
        match rule.source.is_certain() {
            true => format!("the {:?}{repositories}", rule.source),
            false => format!("the {:?} for {host}{repositories}", rule.source),
        }
    };
    let texts: Vec<String> = upstream.credentials.iter().filter(for_url).map(text).collect();
    if texts.is_empty() { "no credentials".to_owned() } else { texts.join(", ") }
}

fn count(number: usize) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shown_configuration_reads_back() {
        let text = r#"
            builtin_upstreams = false
            default_upstream = "localhost:5001"
            docker_config = "/dev/zero"
            [server]
            listen = ":5000"
            names = ["cache.example.com"]
            external_url = "https://cache.example.com/"
            [server.tls]
            cert = "/etc/roadstead/tls.crt"
            key = "/etc/roadstead/tls.key"
            client_ca = "/etc/roadstead/clients.pem"
            [storage]
            path = "/data/\"quoted\""
            [cache]
            max_size = 12345
            tag_ttl = "90s"
            stale_while_revalidate = "1h"
            [local]
            namespaces = ["team/**"]
            [delete]
            enabled = true
            [auth]
            htpasswd = "/dev/null"
            token_key_file = "/dev/zero"
            token_lifetime = "1h"
            [auth.groups]
            dev = ["ann", "bob", "cert:spiffe://cluster/*"]
            "other devs" = "cat"
            [auth.issuer.github]
            issuer = "https://token.actions.githubusercontent.com"
            audience = "cache.example.com"
            name = "repository"
            require = { repository_owner_id = 1234, ref = ["refs/heads/main", "refs/tags/*"], "/a b/\"c" = true }
            [auth.issuer.k8s]
            issuer = "https://kubernetes.default.svc"
            audience = ["cache", "cache.example.com"]
            groups = "/kubernetes.io/groups"
            algorithms = "ES384"
            ca_file = "/dev/zero"
            bearer_token_file = "/run/token"
            [auth.issuer.offline]
            issuer = "kubernetes/serviceaccount"
            audience = "cache"
            jwks_file = "/dev/zero"
            [[auth.rule]]
            who = "anonymous"
            on = "**"
            may = "pull"
            [[auth.rule]]
            who = ["group:dev", "group:other devs", "dan", "token:ci", "github:acme/*", "group:k8s:dev"]
            on = ["team/**", "docker.io/library/*"]
            may = ["push", "pull", "delete"]
            [log]
            format = "json"
            [upstream."docker.io"]
            url = "https://registry-1.docker.io"
            docker_config = "/dev/null"
            [[upstream."docker.io".credentials]]
            repository = "org/**"
            username = "ann"
            exec = ["print-password"]
            exec_lifetime = "5m"
            [[upstream."docker.io".credentials]]
            repository = "corp/*"
            exec = ["print-both"]
            [upstream."localhost:5001"]
            client_cert = "/dev/null"
            client_key = "/dev/null"
            insecure_skip_verify = true
            url = ["http://localhost:5001", "http://localhost:5002/base"]
            on_denied = "stale"
            min_rate = "64KiB"
            max_fills = 3
            connections = 2
        "#;
        let config = Config::from_toml(text, "test").unwrap();
        let shown = config.to_toml(None);
        assert_eq!(Config::from_toml(&shown, "shown"), Ok(config), "{shown}");
    }

    #[test]
    fn each_of_several_urls_is_shown_with_its_credentials() {
        let text = r#"
            docker_config = "/dev/null"
            [upstream."docker.io"]
            url = ["https://mirror.example.com", "https://registry-1.docker.io"]
            username = "ann"
            password = "hunter2"
            [[upstream."docker.io".credentials]]
            repository = "org/**"
            username = "bob"
            password = "hunter2"
            [upstream."quay.io"]
            url = ["https://quay.io", "https://mirror.example.com/quay"]
        "#;
        let shown = Config::from_toml(text, "test").unwrap().to_toml(None);
        for line in [
            "# https://mirror.example.com/ gets no credentials",
            "# https://registry-1.docker.io/ gets the password of bob for org/**, the password of ann",
            "# https://mirror.example.com/quay gets the logins in /dev/null for mirror.example.com",
        ] {
            assert!(shown.lines().any(|found| found == line), "{line} is not in\n{shown}");
        }
        assert!(!shown.contains("hunter2"));
    }

    #[test]
    fn default_sizes_are_shown_as_they_are_on_this_file_system() {
        let shown = Config::default().to_toml(Some(1 << 30));
        for line in [
            "# max_size = \"819MiB\" (the default on this file system)",
            "# min_free = \"102MiB\" (the default on this file system)",
        ] {
            assert!(shown.lines().any(|found| found == line), "{line} is not in\n{shown}");
        }
        assert_eq!(Config::from_toml(&shown, "shown"), Ok(Config::default()));
    }

    #[test]
    fn secrets_are_not_shown() {
        let text = "[upstream.\"docker.io\"]\nusername = \"ann\"\npassword = \"hunter2\"";
        let shown = Config::from_toml(text, "test").unwrap().to_toml(None);
        assert!(shown.contains("username = \"ann\"\npassword = \"***\"\n"), "{shown}");
        assert!(!shown.contains("hunter2"));
        let text = "[upstream.\"docker.io\"]\nusername = \"ann\"\nexec = [\"echo\", \"hunter2\"]";
        let shown = Config::from_toml(text, "test").unwrap().to_toml(None);
        assert!(shown.contains("exec = [\"echo\", \"***\"]\n") && !shown.contains("hunter2"), "{shown}");
    }
}
