//! Warnings about settings that have no effect, or another effect than they seem to have. Each names the setting, the
//! cause and the remedy.

use url::Url;

use super::units::{format_duration, format_size};
use super::upstream::{BUILTIN_UPSTREAMS, canonical_name, in_one_domain};
use super::{
    CERTIFICATE_PREFIX, CacheConfig, ClientAuth, Config, CredentialConfig, DOCKER_IO, GcConfig, Member, Namespace, Pin,
    ScrubConfig, Subject, UpstreamConfig,
};

/// Websites that users mistake for registries, and the host of the registry.
/// The same names with `www.` are meant too.
const WEBSITES: [(&str, &str); 8] = [
    ("docker.io", "registry-1.docker.io"),
    ("docker.com", "registry-1.docker.io"),
    ("hub.docker.com", "registry-1.docker.io"),
    ("index.docker.io", "registry-1.docker.io"),
    ("github.com", "ghcr.io"),
    ("gitlab.com", "registry.gitlab.com"),
    ("k8s.gcr.io", "registry.k8s.io"),
    ("gallery.ecr.aws", "public.ecr.aws"),
];

/// A cache that is smaller than this cannot hold one large layer.
const LARGE_LAYER_BYTES: u64 = 1 << 30;

// === impl Config ===

impl Config {
    /// One line each. `disk_bytes`: the size of the data folder's file system, if it is known.
    pub(super) fn ineffective_settings(&self, disk_bytes: Option<u64>) -> Vec<String> {
        let mut found = Vec::new();
        for upstream in &self.upstreams {
            found.extend(self.useless_limits(upstream));
            found.extend(self.long_limits_for_one_url(upstream));
            found.extend(upstream.urls.iter().filter_map(|url| not_a_registry(upstream, url)));
            found.extend(repeated_url(upstream));
            found.extend(useless_tls(upstream));
            found.extend(useless_token_realms(upstream));
            found.extend(unreachable_credentials(upstream));
        }
        found.extend(self.shared_urls());
        found.extend(self.cache.pin.iter().filter_map(|pin| self.useless_pin(pin)));
        found.extend(self.hidden_upstreams());
        found.extend(useless_times(&self.cache));
        found.extend(small_cache(&self.cache));
        found.extend(self.sizes_beyond_the_disk(disk_bytes));
        found.extend(self.uploads_beyond_the_disk(disk_bytes));
        found.extend(self.names_that_are_patterns());
        found.extend(self.switched_off());
        found.extend(self.certificates_without_rules());
        found.extend(self.rules_without_certificates());
        found
    }

    fn certificates_without_rules(&self) -> Option<String> {
        let tls = self.server.tls.as_ref().filter(|tls| tls.client_ca.is_some() && self.auth.is_none())?;
        (tls.client_auth == ClientAuth::Optional).then(|| {
            "server.tls.client_auth is \"optional\" without [auth]: a client certificate changes nothing; set \"required\", or \
             configure rules"
                .to_owned()
        })
    }

    fn rules_without_certificates(&self) -> Option<String> {
        if self.server.tls.as_ref().is_some_and(|tls| tls.client_ca.is_some()) {
            return None;
        }
        let auth = self.auth.as_ref()?;
        let of_rules = auth.rules.iter().flat_map(|rule| &rule.who).filter_map(Subject::member);
        let mut members = of_rules.chain(auth.groups.values().flatten());
        let of_certificate = |member: &&Member| matches!(member, Member::Identities(identities) if identities.prefix() == CERTIFICATE_PREFIX);
        let name = members.find(of_certificate)?;
        Some(format!("[auth] names {name}, and no client has a certificate; set server.tls.client_ca, or leave it out"))
    }

    fn useless_limits(&self, upstream: &UpstreamConfig) -> Vec<String> {
        let (name, within, default) = (&upstream.name, self.cache.answer_within, UpstreamConfig::new("", Vec::new()));
        let mut found = Vec::new();
        // A default is too long only if `answer_within` is short. That is not reported for each upstream.
        for (key, limit, default) in [
            ("header_timeout", upstream.header_timeout, default.header_timeout),
            ("connect_timeout", upstream.connect_timeout, default.connect_timeout),
        ] {
            if limit >= within && limit != default {
                found.push(format!(
                    "upstream.\"{name}\".{key} is {}, but a request ends after cache.answer_within ({}), so it has no \
                     effect; set it lower, such as \"{}\", or raise cache.answer_within",
                    format_duration(limit),
                    format_duration(within),
                    format_duration(default.min(within / 2))
                ));
            }
        }
        let all = self.cache.max_fills;
        if upstream.max_fills > all && upstream.max_fills != default.max_fills {
            found.push(format!(
                "upstream.\"{name}\".max_fills is {}, but cache.max_fills allows {all} for all upstreams together; raise \
                 cache.max_fills",
                upstream.max_fills
            ));
        }
        found
    }

    /// Each URL has an equal share of the remaining time.
    fn long_limits_for_one_url(&self, upstream: &UpstreamConfig) -> Vec<String> {
        let (name, within, default) = (&upstream.name, self.cache.answer_within, UpstreamConfig::new("", Vec::new()));
        let Some(urls) = u32::try_from(upstream.urls.len()).ok().filter(|urls| *urls > 1) else { return Vec::new() };
        let mut found = Vec::new();
        for (key, limit, default) in [
            ("header_timeout", upstream.header_timeout, default.header_timeout),
            ("connect_timeout", upstream.connect_timeout, default.connect_timeout),
        ] {
            if limit >= within / urls && limit < within && limit != default {
                let lower = default.min(within / urls / 2).as_secs().max(1);
                found.push(format!(
                    "upstream.\"{name}\".{key} is {}, but of cache.answer_within ({}) the first of {urls} URLs has a part \
                     only, so it has no effect there; set it lower, such as \"{lower}s\", or raise cache.answer_within",
                    format_duration(limit),
                    format_duration(within)
                ));
            }
        }
        found
    }

    /// Two upstreams with the same URL share content, but neither tags nor limits nor credentials.
    fn shared_urls(&self) -> Vec<String> {
        let mut found = Vec::new();
        for (place, one) in self.upstreams.iter().enumerate() {
            for other in &self.upstreams[place + 1..] {
                if let Some(url) = one.urls.iter().find(|url| other.urls.iter().any(|own| same_place(url, own))) {
                    found.push(format!(
                        "upstream.\"{}\" and upstream.\"{}\" both have the URL {url}: tags are asked for twice, and limits \
                         and credentials of one do not apply to the other; keep one of them",
                        one.name, other.name
                    ));
                }
            }
        }
        found
    }

    fn useless_pin(&self, pin: &Pin) -> Option<String> {
        let pattern = pin.as_str();
        let (host, rest) = pattern.split_once('/')?;
        let canonical = canonical_name(host);
        if canonical != host {
            return Some(format!(
                "cache.pin \"{pattern}\" pins nothing: {host} is another name of {canonical}; write \"{canonical}/{rest}\""
            ));
        }
        if !self.upstreams.iter().any(|upstream| pin.may_match_upstream(&upstream.name)) {
            let what = "matches no configured upstream and pins nothing; check the host";
            return Some(format!("cache.pin \"{pattern}\" {what}"));
        }
        let (name, tag) = pin.name_and_tag();
        if never_matches_a_name(name) {
            let right = format!("{}{tag}", name.to_ascii_lowercase());
            return Some(format!(
                "cache.pin \"{pattern}\" pins nothing: names of repositories are in lower case; write \"{right}\""
            ));
        }
        let official = pattern.strip_prefix(DOCKER_IO)?.strip_prefix('/')?;
        (!official.contains('/') && !official.contains("**")).then(|| {
            format!(
                "cache.pin \"{pattern}\" pins nothing: official images of {DOCKER_IO} are below library/; write \
                 \"{DOCKER_IO}/library/{official}\""
            )
        })
    }

    /// Names that are local, or that mean this server, are never requested from an upstream.
    fn hidden_upstreams(&self) -> Vec<String> {
        let mut found = Vec::new();
        if let Some(default) = &self.default_upstream {
            let hides = |pattern: &&Namespace| pattern.matches("library/alpine") || pattern.matches("alpine");
            if let Some(pattern) = self.local.namespaces.iter().find(hides) {
                found.push(format!(
                    "local.namespaces \"{}\" makes names such as library/alpine local, so default_upstream \"{default}\" is \
                     never asked for them; write a narrower pattern, such as \"team/**\"",
                    pattern.as_str()
                ));
            }
        }
        for upstream in &self.upstreams {
            let name = &upstream.name;
            if self.server.names.contains(name) {
                found.push(format!(
                    "server.names contains \"{name}\", so upstream.\"{name}\" is never asked for that host; remove one of \
                     the two"
                ));
            }
            let host_in_pattern = |pattern: &&Namespace| {
                pattern.as_str().strip_prefix(name.as_str()).is_some_and(|rest| rest.starts_with('/'))
            };
            if let Some(pattern) = self.local.namespaces.iter().find(host_in_pattern) {
                found.push(format!(
                    "local.namespaces \"{}\" matches no name: one that begins with {name} belongs to that upstream; remove \
                     the host from the pattern",
                    pattern.as_str()
                ));
            }
        }
        found
    }

    fn sizes_beyond_the_disk(&self, disk_bytes: Option<u64>) -> Option<String> {
        let disk = disk_bytes?;
        let (path, size) = (self.storage.path.display(), format_size(disk));
        if let Some(min_free) = self.cache.min_free.filter(|min_free| *min_free >= disk) {
            return Some(format!(
                "cache.min_free is {}, but the file system of {path} has {size}: nothing is cached and every push is \
                 refused; set it lower, or remove it for the default of a tenth",
                format_size(min_free)
            ));
        }
        let min_free = self.cache.min_free_on(disk_bytes);
        let max_size = self.cache.max_size.filter(|max_size| *max_size > disk - min_free.min(disk))?;
        Some(format!(
            "cache.max_size is {}, but the file system of {path} has {size}, of which cache.min_free ({}) stays free, so \
             max_size has no effect; set it lower, or remove it for the default",
            format_size(max_size),
            format_size(min_free)
        ))
    }

    fn uploads_beyond_the_disk(&self, disk_bytes: Option<u64>) -> Option<String> {
        let disk = disk_bytes?;
        let size = self.push.max_unfinished_size.filter(|size| *size > disk)?;
        Some(format!(
            "push.max_unfinished_size is {}, but the file system of {} has {}, so it has no effect; set it lower, or remove \
             it for the default",
            format_size(size),
            self.storage.path.display(),
            format_size(disk)
        ))
    }

    fn names_that_are_patterns(&self) -> Vec<String> {
        let mut found = Vec::new();
        for name in self.server.names.iter().filter(|name| name.contains(['*', '?', '{'])) {
            found.push(format!(
                "server.names \"{name}\" matches no host, because names are not patterns; write each name of this server"
            ));
        }
        found
    }

    fn switched_off(&self) -> Vec<String> {
        let (gc, scrub, mut found) = (GcConfig::default(), ScrubConfig::default(), Vec::new());
        if self.gc.interval.is_zero() && (GcConfig { interval: gc.interval, ..self.gc.clone() }) != gc {
            found.push(
                "gc.interval is 0s, so the other settings of [gc] apply to `roadstead gc` alone; set it, such as \"6h\""
                    .to_owned(),
            );
        }
        if self.scrub.interval.is_zero() && self.scrub.rate != scrub.rate {
            found.push("scrub.rate has no effect, because scrub.interval is 0s; set it, such as \"30d\"".to_owned());
        }
        if self.storage.read_only && self.delete.enabled {
            found.push("delete.enabled has no effect, because storage.read_only refuses deletes; remove it".to_owned());
        }
        if !self.push.enabled && !self.local.namespaces.is_empty() && self.default_upstream.is_none() {
            found.push(
                "local.namespaces has no effect, because pushes are switched off and every name without a host is local; \
                 remove it"
                    .to_owned(),
            );
        }
        found
    }
}

fn not_a_registry(upstream: &UpstreamConfig, url: &Url) -> Option<String> {
    let (name, host) = (&upstream.name, url.host_str()?);
    let site = host.strip_prefix("www.").unwrap_or(host);
    let website = WEBSITES.iter().find(|(website, _)| *website == site).map(|(_, right)| *right);
    // A registry of ours below `www.`, such as www.quay.io.
    let builtin = || BUILTIN_UPSTREAMS.iter().map(|(name, _)| *name).find(|name| site != host && *name == site);
    let right = website.or_else(builtin)?;
    Some(format!("upstream.\"{name}\".url {url} is not the address of a registry's API; write \"https://{right}\""))
}

/// Whether a pattern has a capital letter, which no name of a repository has. False for patterns with alternatives.
fn never_matches_a_name(pattern: &str) -> bool {
    pattern.bytes().any(|byte| byte.is_ascii_uppercase()) && !pattern.contains(['[', '{'])
}

fn repeated_url(upstream: &UpstreamConfig) -> Option<String> {
    let mut urls = upstream.urls.iter().enumerate();
    let (_, url) = urls.find(|(place, url)| upstream.urls[..*place].iter().any(|before| same_place(before, url)))?;
    let name = &upstream.name;
    Some(format!("upstream.\"{name}\".url has {url} twice; the second one has no effect, remove it"))
}

fn same_place(one: &Url, other: &Url) -> bool {
    one.origin() == other.origin() && one.path().trim_end_matches('/') == other.path().trim_end_matches('/')
}

fn useless_tls(upstream: &UpstreamConfig) -> Vec<String> {
    let name = &upstream.name;
    let keys = [
        ("ca_file", upstream.ca_file.is_some()),
        ("client_cert", upstream.client_certificate.is_some()),
        ("insecure_skip_verify", upstream.insecure_skip_verify),
    ];
    if upstream.urls.iter().all(|url| url.scheme() == "http") {
        let set = keys.into_iter().filter(|(_, is_set)| *is_set);
        let warning = |(key, _)| {
            format!("upstream.\"{name}\".{key} has no effect, because the URL is http; write an https URL or remove it")
        };
        return set.map(warning).collect();
    }
    if upstream.insecure_skip_verify && upstream.ca_file.is_some() {
        return vec![format!(
            "upstream.\"{name}\".ca_file has no effect, because insecure_skip_verify accepts every certificate; remove \
             insecure_skip_verify"
        )];
    }
    Vec::new()
}

fn useless_token_realms(upstream: &UpstreamConfig) -> Vec<String> {
    let name = &upstream.name;
    if upstream.credentials.is_empty() && !upstream.token_realms.is_empty() {
        return vec![format!(
            "upstream.\"{name}\".token_realms has no effect, because the upstream has no credentials; configure them, or \
             remove it"
        )];
    }
    let is_own = |realm: &&String| {
        let host = realm.split_once(':').map_or(realm.as_str(), |(host, _)| host);
        upstream.urls.iter().filter_map(Url::host_str).any(|own| own == host || in_one_domain(own, host))
    };
    let own = upstream.token_realms.iter().filter(is_own);
    let warning = |realm| {
        format!(
            "upstream.\"{name}\".token_realms \"{realm}\" has no effect, because a token server on the upstream's own domain \
             receives the credentials anyway; remove it"
        )
    };
    own.map(warning).collect()
}

/// The first rule that matches a repository is used, so a rule after a wider one is never used.
fn unreachable_credentials(upstream: &UpstreamConfig) -> Vec<String> {
    let (name, rules) = (&upstream.name, &upstream.credentials);
    let mut found = Vec::new();
    for (place, rule) in rules.iter().enumerate() {
        let pattern = rule.repository.as_ref().map(Namespace::as_str);
        let with_host = pattern.and_then(|pattern| pattern.strip_prefix(name.as_str())?.strip_prefix('/'));
        if let (Some(pattern), Some(right)) = (pattern, with_host) {
            found.push(format!(
                "upstream.\"{name}\".credentials \"{pattern}\" matches no repository, because their names have no host; \
                 write \"{right}\""
            ));
        } else if let Some(wider) = rules[..place].iter().find(|before| covers(before, rule)) {
            let wider = wider.repository.as_ref().map_or("**", Namespace::as_str);
            let narrower = pattern.map_or("of its own table".to_owned(), |pattern| format!("\"{pattern}\""));
            found.push(format!(
                "upstream.\"{name}\".credentials {narrower} is never used, because \"{wider}\" before it matches the same \
                 repositories; put the narrower pattern first"
            ));
        }
    }
    found
}

/// Whether `before` matches every repository that `rule` matches, as far as the patterns show.
fn covers(before: &CredentialConfig, rule: &CredentialConfig) -> bool {
    let Some(wide) = before.repository.as_ref() else { return true };
    if wide.as_str() == "**" {
        return true;
    }
    let Some(narrow) = rule.repository.as_ref() else { return false };
    let is_literal = !narrow.as_str().contains(['*', '?', '[', '{']);
    let prefix = wide.as_str().strip_suffix("**").filter(|prefix| !prefix.contains(['*', '?', '[', '{']));
    wide == narrow
        || (is_literal && wide.matches(narrow.as_str()))
        || prefix.is_some_and(|prefix| narrow.as_str().starts_with(prefix))
}

fn useless_times(cache: &CacheConfig) -> Vec<String> {
    let mut found = Vec::new();
    if cache.tag_ttl.is_zero() && !cache.stale_while_revalidate.is_zero() {
        let what = "cache.stale_while_revalidate has no effect: with tag_ttl = \"0s\" every pull waits for the upstream; set tag_ttl";
        found.push(what.to_owned());
    }
    // Zero switches it off on purpose.
    if !cache.stale_if_error.is_zero() && cache.stale_if_error <= cache.tag_ttl {
        found.push(format!(
            "cache.stale_if_error ({}) is not above cache.tag_ttl ({}), so no tag is served while its upstream fails; set it \
             higher, such as \"30d\"",
            format_duration(cache.stale_if_error),
            format_duration(cache.tag_ttl)
        ));
    }
    found
}

fn small_cache(cache: &CacheConfig) -> Option<String> {
    let max_size = cache.max_size.filter(|max_size| *max_size < LARGE_LAYER_BYTES)?;
    Some(format!(
        "cache.max_size is {}: a larger layer is never stored, and layers of several hundred megabytes are common; set it \
         to some GiB",
        format_size(max_size)
    ))
}

#[cfg(test)]
mod tests;
