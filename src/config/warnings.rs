//! Warnings about settings that are valid but risky, and about those without effect (`ineffective`). They are logged at
//! the start and printed by `roadstead check`.

use std::time::Duration;

use super::units::format_duration;
use super::{
    AccessRule, ClientAuth, Config, IgnoredSettings, Right, Rights, ServerConfig, Subject, TlsConfig, UpstreamConfig,
};

/// containerd gives up on a registry that has not sent response headers after this time.
const CONTAINERD_HEADER_TIMEOUT: Duration = Duration::from_secs(30);

// === impl Config ===

impl Config {
    /// One line each, the most severe first. Each names the setting, the risk and the remedy. `disk_bytes`: the size of
    /// the data folder's file system, if it is known.
    pub fn warnings(&self, disk_bytes: Option<u64>) -> Vec<String> {
        let mut warnings: Vec<String> = self.unauthenticated_access().into_iter().collect();
        warnings.extend(self.unencrypted_logins());
        warnings.extend(self.proxies_of_everybody());
        warnings.extend(self.changes_by_everybody());
        warnings.extend(self.upstreams.iter().filter_map(unencrypted_password));
        warnings.extend(self.upstreams.iter().filter_map(unverified_certificate));
        if self.cache.answer_within >= CONTAINERD_HEADER_TIMEOUT {
            let within = format_duration(self.cache.answer_within);
            warnings.push(format!(
                "cache.answer_within is {within}: containerd gives up after 30s without an answer; set it below 30s"
            ));
        }
        warnings.extend(self.ineffective_settings(disk_bytes));
        let IgnoredSettings { auth, others } = &self.ignored_settings;
        if !auth.is_empty() {
            let what = "these settings of registry:2 about logins have no effect here: ";
            warnings.insert(0, format!("{what}{}; configure users with [auth] htpasswd", auth.join(", ")));
        }
        if !others.is_empty() {
            warnings.push(format!("these settings of registry:2 have no effect here: {}", others.join(", ")));
        }
        warnings
    }

    /// Warns about what unauthenticated clients on the network may do.
    fn unauthenticated_access(&self) -> Option<String> {
        let needs_certificate = |tls: &TlsConfig| tls.client_ca.is_some() && tls.client_auth == ClientAuth::Required;
        let clients_have_certificates = self.server.tls.as_ref().is_some_and(needs_certificate);
        if self.server.listen.is_loopback() || clients_have_certificates || self.auth.is_some() {
            return None;
        }
        let mut may = vec!["pull every image that is stored here or at an upstream"];
        if self.upstreams.iter().any(|upstream| !upstream.credentials.is_empty()) {
            may.push("pull with the credentials of upstreams that have some");
        }
        let read_only = self.storage.read_only;
        if self.push.enabled && !read_only {
            may.push(match self.local.namespaces.as_slice() {
                [] => {
                    "push any image, even under names of the default upstream that are not cached yet (set [local] \
                     namespaces to prevent that)"
                }
                _ => "push to the local namespaces",
            });
        }
        if self.delete.enabled && !read_only {
            may.push("delete what was pushed");
        }
        let listen = &self.server.listen;
        Some(format!(
            "listening on {listen} without authentication: every client that can connect may {}; configure users with \
             [auth], or set server.tls.client_ca to require client certificates",
            may.join(" and ")
        ))
    }

    /// Warns if passwords and tokens can be read on the network.
    fn unencrypted_logins(&self) -> Option<String> {
        let ServerConfig { listen, tls, external_url, trusted_proxies, .. } = &self.server;
        let is_behind_tls = external_url.as_ref().is_some_and(|url| url.starts_with("https://"));
        let is_behind_tls = is_behind_tls || !trusted_proxies.is_empty();
        if self.auth.is_none() || tls.is_some() || listen.is_loopback() || is_behind_tls {
            return None;
        }
        Some(format!(
            "listening on {listen} with [auth] and without TLS: passwords and tokens can be read on the network; set \
             [server.tls], or server.trusted_proxies if a proxy encrypts"
        ))
    }

    /// Warns if every client may say who it is.
    fn proxies_of_everybody(&self) -> Option<String> {
        let everybody = self.server.trusted_proxies.iter().find(|network| network.prefix_len() == 0)?;
        Some(format!(
            "server.trusted_proxies has {everybody}: every client may send any X-Forwarded-For, and so try passwords \
             without a bound and forge the address in the log; write the addresses of the proxies"
        ))
    }

    /// Warns about rules that let everybody change something.
    fn changes_by_everybody(&self) -> Vec<String> {
        let changes: Rights = [Right::Push, Right::Delete, Right::Admin].into_iter().collect();
        let rules = self.auth.iter().flat_map(|auth| &auth.rules);
        let risky = rules.filter(|rule| rule.who.contains(&Subject::Anonymous) && rule.may.intersects(changes));
        let warning = |rule: &AccessRule| {
            let place = &rule.place;
            format!(
                "auth.rule ({place}) lets everyone change content, logged in or not; write \"authenticated\" or users"
            )
        };
        risky.map(warning).collect()
    }
}

fn unencrypted_password(upstream: &UpstreamConfig) -> Option<String> {
    if !upstream.has_credentials() {
        return None;
    }
    let url = upstream.urls.iter().find(|url| url.scheme() == "http")?;
    let name = &upstream.name;
    Some(format!("upstream.\"{name}\" has credentials and the URL {url}: they are sent unencrypted; use an https URL"))
}

fn unverified_certificate(upstream: &UpstreamConfig) -> Option<String> {
    let over_tls = upstream.urls.iter().any(|url| url.scheme() == "https");
    (upstream.insecure_skip_verify && over_tls).then(|| {
        let name = &upstream.name;
        format!(
            "upstream.\"{name}\" has insecure_skip_verify: any host on the network path can read its passwords and change \
             its tags; use ca_file instead"
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const OPEN: &str = "[server]\nlisten = \":5000\"\n";
    /// Users, and the beginning of a rule.
    const AUTH: &str = "[local]\nnamespaces = [\"team/**\"]\n[auth]\nhtpasswd = \"/dev/null\"\n[[auth.rule]]\n";

    #[test]
    fn defaults_give_no_warning() {
        assert_eq!(Config::default().warnings(None), [""; 0]);
    }

    #[test]
    fn each_risk_gives_one_warning() {
        let cases = [
            (
                OPEN.to_owned(),
                "listening on :5000 without authentication: every client that can connect may pull every image that is \
                 stored here or at an upstream and push any image, even under names of the default upstream that are \
                 not cached yet (set [local] namespaces to prevent that); configure users with [auth], or set \
                 server.tls.client_ca to require client certificates",
            ),
            (
                format!("{OPEN}[delete]\nenabled = true\n[local]\nnamespaces = [\"team/**\"]"),
                "listening on :5000 without authentication: every client that can connect may pull every image that is \
                 stored here or at an upstream and push to the local namespaces and delete what was pushed; configure users \
                 with [auth], or set server.tls.client_ca to require client certificates",
            ),
            (
                format!("{OPEN}[push]\nenabled = false\n[delete]\nenabled = false"),
                "listening on :5000 without authentication: every client that can connect may pull every image that is \
                 stored here or at an upstream; configure users with [auth], or set server.tls.client_ca to require client \
                 certificates",
            ),
            (
                format!("{OPEN}{AUTH}who = \"authenticated\"\non = \"**\"\nmay = \"push\""),
                "listening on :5000 with [auth] and without TLS: passwords and tokens can be read on the network; set \
                 [server.tls], or server.trusted_proxies if a proxy encrypts",
            ),
            (
                "[server]\ntrusted_proxies = [\"10.0.0.0/8\", \"::/0\"]".to_owned(),
                "server.trusted_proxies has ::/0: every client may send any X-Forwarded-For, and so try passwords without a \
                 bound and forge the address in the log; write the addresses of the proxies",
            ),
            (
                format!("{AUTH}who = [\"anonymous\", \"ann\"]\non = \"team/**\"\nmay = [\"pull\", \"push\"]"),
                "auth.rule (test:5) lets everyone change content, logged in or not; write \"authenticated\" or users",
            ),
            (
                "[cache]\nanswer_within = \"45s\"".to_owned(),
                "cache.answer_within is 45s: containerd gives up after 30s without an answer; set it below 30s",
            ),
            (
                "[upstream.\"a.b\"]\nurl = \"http://a.b\"\nusername = \"ann\"\npassword = \"x\"".to_owned(),
                "upstream.\"a.b\" has credentials and the URL http://a.b/: they are sent unencrypted; use an https URL",
            ),
            (
                "[upstream.\"a.b\"]\nurl = \"https://a.b\"\ninsecure_skip_verify = true".to_owned(),
                "upstream.\"a.b\" has insecure_skip_verify: any host on the network path can read its passwords and change \
                 its tags; use ca_file instead",
            ),
        ];
        for (text, warning) in cases {
            assert_eq!(Config::from_toml(&text, "test").unwrap().warnings(None), [warning], "{text}");
        }
    }

    #[test]
    fn deletes_are_off_unless_switched_on() {
        let enabled = |text: &str| Config::from_toml(text, "test").unwrap().delete.enabled;
        assert!(!enabled("") && !enabled(OPEN) && !enabled("[server]\nlisten = \"127.0.0.1:5000\""));
        assert!(enabled("[delete]\nenabled = true"));
        assert!(enabled(&format!("{OPEN}[delete]\nenabled = true")));
        assert!(!enabled("[delete]\nenabled = false"));
    }
}
