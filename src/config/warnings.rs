//! What is allowed and yet worth a line at the start.

use std::time::Duration;

use super::units::format_duration;
use super::{Config, IgnoredSettings, Pin, UpstreamConfig};

/// containerd takes a registry for dead after this long without the head of an answer.
const CLIENTS_GIVE_UP_AFTER: Duration = Duration::from_secs(30);

// === impl Config ===

impl Config {
    /// One line each, the gravest first.
    pub fn warnings(&self) -> Vec<String> {
        let mut warnings: Vec<String> = self.open_to_anybody().into_iter().collect();
        warnings.extend(self.upstreams.iter().filter_map(password_in_the_clear));
        warnings.extend(self.upstreams.iter().filter_map(anybodys_certificate));
        if self.cache.answer_within >= CLIENTS_GIVE_UP_AFTER {
            let within = format_duration(self.cache.answer_within);
            warnings.push(format!(
                "cache.answer_within is {within}: containerd gives up after 30s without an answer; keep it below"
            ));
        }
        if self.cache.tag_ttl.is_zero() && !self.cache.stale_while_revalidate.is_zero() {
            let what =
                "cache.stale_while_revalidate has no effect: with tag_ttl = \"0s\" every tag is asked for every time";
            warnings.push(what.to_owned());
        }
        warnings.extend(self.cache.pin.iter().filter_map(|pin| self.pin_of_nothing(pin)));
        let IgnoredSettings { auth, others } = &self.ignored_settings;
        if !auth.is_empty() {
            let what = "nobody has to log in here, and these settings of registry:2 have no effect: ";
            warnings.insert(
                0,
                format!("{what}{}; server.tls.client_ca lets in only who has a certificate", auth.join(", ")),
            );
        }
        if !others.is_empty() {
            warnings.push(format!("settings of registry:2 without a meaning here: {}", others.join(", ")));
        }
        warnings
    }

    fn pin_of_nothing(&self, pin: &Pin) -> Option<String> {
        let may_match = self.upstreams.iter().any(|upstream| pin.may_mean(upstream.name.as_str()));
        let pattern = pin.as_str();
        (!may_match).then(|| format!("cache.pin \"{pattern}\" matches no configured upstream: it pins nothing"))
    }

    /// What a network may do to a server that asks nobody who they are.
    fn open_to_anybody(&self) -> Option<String> {
        let clients_have_certificates = self.server.tls.as_ref().is_some_and(|tls| tls.client_ca.is_some());
        if self.server.listen.is_loopback() || clients_have_certificates {
            return None;
        }
        let mut may = vec!["pull every image that is here or at an upstream"];
        if self.upstreams.iter().any(|upstream| !upstream.credentials.is_empty()) {
            may.push("pull with the credentials of upstreams that have some");
        }
        let read_only = self.storage.read_only;
        if self.push.enabled && !read_only {
            may.push(if self.local.namespaces.is_empty() { "push any image, under names of the default upstream that nobody has pulled yet, too ([local] namespaces prevents it)" } else { "push to the local namespaces" });
        }
        if self.deletes_enabled() && !read_only {
            may.push("delete what was pushed");
        }
        let deletes_off = match self.delete.enabled {
            None if !read_only => "; deletes are off until delete.enabled = true",
            _ => "",
        };
        let listen = &self.server.listen;
        Some(format!(
            "listening on {listen} without authentication: whoever reaches it may {}{deletes_off}",
            may.join(" and ")
        ))
    }
}

fn password_in_the_clear(upstream: &UpstreamConfig) -> Option<String> {
    if !upstream.has_credentials() {
        return None;
    }
    let url = upstream.urls.iter().find(|url| url.scheme() == "http")?;
    let name = &upstream.name;
    Some(format!("upstream.\"{name}\" has credentials and the URL {url}: they are sent unencrypted; use https"))
}

fn anybodys_certificate(upstream: &UpstreamConfig) -> Option<String> {
    let over_tls = upstream.urls.iter().any(|url| url.scheme() == "https");
    (upstream.insecure_skip_verify && over_tls).then(|| {
        let name = &upstream.name;
        format!(
            "upstream.\"{name}\" has insecure_skip_verify: whoever is on the way to it can read its passwords and \
             change its tags; use ca_file"
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const OPEN: &str = "[server]\nlisten = \":5000\"\n";

    #[test]
    fn a_server_with_defaults_has_nothing_to_say() {
        assert_eq!(Config::default().warnings(), [""; 0]);
    }

    #[test]
    fn each_thing_worth_a_line_has_one() {
        let cases = [
            (
                OPEN.to_owned(),
                "listening on :5000 without authentication: whoever reaches it may pull every image that is here or at \
                 an upstream and push any image, under names of the default upstream that nobody has pulled yet, too ([local] namespaces prevents it); deletes are off until delete.enabled = true",
            ),
            (
                format!("{OPEN}[delete]\nenabled = true\n[local]\nnamespaces = [\"team/**\"]"),
                "listening on :5000 without authentication: whoever reaches it may pull every image that is here or at \
                 an upstream and push to the local namespaces and delete what was pushed",
            ),
            (
                format!("{OPEN}[push]\nenabled = false\n[delete]\nenabled = false"),
                "listening on :5000 without authentication: whoever reaches it may pull every image that is here or at \
                 an upstream",
            ),
            (
                "[cache]\nanswer_within = \"45s\"".to_owned(),
                "cache.answer_within is 45s: containerd gives up after 30s without an answer; keep it below",
            ),
            (
                "[cache]\ntag_ttl = \"0s\"\nstale_while_revalidate = \"1m\"".to_owned(),
                "cache.stale_while_revalidate has no effect: with tag_ttl = \"0s\" every tag is asked for every time",
            ),
            (
                "[upstream.\"a.b\"]\nurl = \"http://a.b\"\nusername = \"ann\"\npassword = \"x\"".to_owned(),
                "upstream.\"a.b\" has credentials and the URL http://a.b/: they are sent unencrypted; use https",
            ),
            (
                "[upstream.\"a.b\"]\nurl = \"https://a.b\"\ninsecure_skip_verify = true".to_owned(),
                "upstream.\"a.b\" has insecure_skip_verify: whoever is on the way to it can read its passwords and \
                 change its tags; use ca_file",
            ),
            (
                "[cache]\npin = [\"docker.io/library/*\", \"qay.io/a/b:*\"]".to_owned(),
                "cache.pin \"qay.io/a/b:*\" matches no configured upstream: it pins nothing",
            ),
        ];
        for (text, warning) in cases {
            assert_eq!(Config::from_toml(&text, "test").unwrap().warnings(), [warning], "{text}");
        }
    }

    #[test]
    fn deletes_are_on_for_this_machine_alone_until_somebody_says_otherwise() {
        let enabled = |text: &str| Config::from_toml(text, "test").unwrap().deletes_enabled();
        assert!(enabled(""));
        assert!(!enabled(OPEN));
        assert!(enabled(&format!("{OPEN}[delete]\nenabled = true")));
        assert!(!enabled("[delete]\nenabled = false"));
    }
}
