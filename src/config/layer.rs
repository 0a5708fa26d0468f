//! A layer: the settings of one configuration source, such as a file, the environment variables or the flags. Every
//! key is optional.
//!
//! [`section!`] declares all keys in one place. From a declaration it generates the fields, `set` and the merging of
//! two layers. Values keep their file and line, so that errors can report it.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use http::{HeaderName, HeaderValue};
use ipnet::IpNet;

use super::error::SourceLocation;
use super::units::Size;
use super::upstream_url::UpstreamUrl;
use super::value::{OneOrMore, Positive, RawValue, Setting};
use super::{
    AccessPattern, Algorithm, ClaimPattern, ClientAuth, ConfigError, ListenAddr, LogFormat, Member, Namespace,
    OnDenied, Pin, Right, Secret, Subject,
};

/// A value and the place where it was written.
#[derive(Clone, Debug)]
pub(super) struct Located<T> {
    pub(super) value: T,
    pub(super) location: SourceLocation,
}

/// The keys of one table, of any types.
pub(super) trait Section {
    /// The names of all keys, in the order of their declaration.
    fn keys(&self) -> Vec<&'static str>;

    /// The names of all keys with their Rust types, for the reference page.
    #[cfg(test)]
    fn kinds(&self) -> Vec<(&'static str, &'static str)>;

    /// Sets a key. Returns `None` if the table has no such key, and the message if the value is not accepted.
    fn set(&mut self, key: &str, raw: &RawValue<'_>, location: &SourceLocation) -> Option<Result<(), String>>;

    /// Merges two layers: a key of `self` takes precedence over the same key of `lower`.
    fn over(self, lower: Self) -> Self
    where
        Self: Sized;
}

/// Declares the keys of one table. `..group: Type` includes the keys of another declaration at this position.
macro_rules! section {
    ($(#[$doc:meta])* $name:ident {
        $($key:ident: $kind:ty,)*
        $(..$group:ident: $group_kind:ty, $($rest:ident: $rest_kind:ty,)*)?
    }) => {
        $(#[$doc])*
        #[derive(Default)]
        pub(super) struct $name {
            $(pub(super) $key: Option<Located<$kind>>,)*
            $(pub(super) $group: $group_kind, $(pub(super) $rest: Option<Located<$rest_kind>>,)*)?
        }

        impl Section for $name {
            fn keys(&self) -> Vec<&'static str> {
                [&[$(stringify!($key)),*][..] $(, &self.$group.keys()[..], &[$(stringify!($rest)),*][..])?].concat()
            }

            #[cfg(test)]
            fn kinds(&self) -> Vec<(&'static str, &'static str)> {
                [
                    &[$((stringify!($key), stringify!($kind))),*][..]
                    $(, &self.$group.kinds()[..], &[$((stringify!($rest), stringify!($rest_kind))),*][..])?
                ]
                .concat()
            }

            fn set(&mut self, key: &str, raw: &RawValue<'_>, location: &SourceLocation) -> Option<Result<(), String>> {
                match key {
                    $(stringify!($key) => Some(raw.read().map(|value| {
                        self.$key = Some(Located { value, location: location.clone() });
                    })),)*
                    $($(stringify!($rest) => Some(raw.read().map(|value| {
                        self.$rest = Some(Located { value, location: location.clone() });
                    })),)*)?
                    _ => None $(.or_else(|| self.$group.set(key, raw, location)))?,
                }
            }

            fn over(self, lower: Self) -> Self {
                Self {
                    $($key: self.$key.or(lower.$key),)*
                    $($group: self.$group.over(lower.$group), $($rest: self.$rest.or(lower.$rest),)*)?
                }
            }
        }
    };
}

section! {
    /// The top-level keys.
    RootKeys {
        builtin_upstreams: bool,
        default_upstream: String,
        docker_config: PathBuf,
    }
}

section! {
    ServerKeys {
        listen: ListenAddr,
        names: OneOrMore<String>,
        host_routes: OneOrMore<String>,
        external_url: UpstreamUrl,
        trusted_proxies: OneOrMore<IpNet>,
        max_connections: Positive<usize>,
        head_timeout: Positive<Duration>,
        keep_alive: Positive<Duration>,
        progress_timeout: Positive<Duration>,
        drain_timeout: Duration,
    }
}

section! {
    ServerTlsKeys {
        cert: PathBuf,
        key: PathBuf,
        client_ca: PathBuf,
        client_auth: ClientAuth,
    }
}

section! {
    StorageKeys {
        path: PathBuf,
        read_only: bool,
    }
}

section! {
    CacheKeys {
        max_size: Positive<Size>,
        min_free: Size,
        pin: OneOrMore<Pin>,
        tag_ttl: Duration,
        stale_while_revalidate: Duration,
        stale_if_error: Duration,
        negative_ttl: Duration,
        answer_within: Positive<Duration>,
        max_fills: Positive<usize>,
        max_bypasses: Positive<usize>,
    }
}

section! {
    GcKeys {
        interval: Duration,
        after_start: Duration,
        grace: Duration,
        unreferenced_after: Duration,
        untagged_after: Duration,
    }
}

section! {
    LocalKeys {
        namespaces: OneOrMore<Namespace>,
    }
}

section! {
    PushKeys {
        enabled: bool,
        max_unfinished: Positive<usize>,
        max_unfinished_size: Size,
    }
}

section! {
    DeleteKeys {
        enabled: bool,
    }
}

section! {
    AuthKeys {
        htpasswd: PathBuf,
        token_key_file: OneOrMore<PathBuf>,
        token_lifetime: Duration,
    }
}

section! {
    AuditKeys {
        file: PathBuf,
        pulls: bool,
    }
}

section! {
    MetricsKeys {
        auth: bool,
    }
}

section! {
    /// `[auth.issuer.NAME]`, without the claims in `require`.
    IssuerKeys {
        issuer: String,
        audience: OneOrMore<String>,
        name: String,
        groups: String,
        algorithms: OneOrMore<Algorithm>,
        jwks_file: PathBuf,
        ca_file: PathBuf,
        bearer_token_file: PathBuf,
    }
}

/// `[auth.issuer.NAME]`
#[derive(Default)]
pub(super) struct IssuerTable {
    pub(super) keys: IssuerKeys,
    /// The claims in `require`.
    pub(super) require: BTreeMap<String, Located<OneOrMore<ClaimPattern>>>,
}

section! {
    /// `[[auth.rule]]`
    AccessRuleKeys {
        who: OneOrMore<Subject>,
        on: OneOrMore<AccessPattern>,
        may: OneOrMore<Right>,
        private: bool,
    }
}

section! {
    ScrubKeys {
        interval: Duration,
        rate: Positive<Size>,
    }
}

section! {
    LogKeys {
        format: LogFormat,
    }
}

section! {
    /// The keys of one credential source, in an upstream's own table and in [`RepositoryCredentialKeys`].
    CredentialKeys {
        username: String,
        password: Secret,
        password_file: PathBuf,
        exec: OneOrMore<String>,
        exec_lifetime: Positive<Duration>,
        docker_config: PathBuf,
    }
}

section! {
    /// `[upstream."host"]`
    UpstreamKeys {
        url: OneOrMore<UpstreamUrl>,
        ..credentials: CredentialKeys,
        ca_file: PathBuf,
        client_cert: PathBuf,
        client_key: PathBuf,
        insecure_skip_verify: bool,
        on_denied: OnDenied,
        connect_timeout: Positive<Duration>,
        header_timeout: Positive<Duration>,
        idle_timeout: Positive<Duration>,
        min_rate: Size,
        max_fills: Positive<usize>,
        connections: Positive<usize>,
        token_realms: OneOrMore<String>,
        private_redirects: bool,
    }
}

section! {
    /// `[[upstream."host".credentials]]`
    RepositoryCredentialKeys {
        repository: Namespace,
        ..credentials: CredentialKeys,
    }
}

/// The settings of one configuration source.
#[derive(Default)]
pub(super) struct Layer {
    pub(super) root: RootKeys,
    pub(super) server: ServerKeys,
    pub(super) server_tls: ServerTlsKeys,
    pub(super) storage: StorageKeys,
    pub(super) cache: CacheKeys,
    pub(super) gc: GcKeys,
    pub(super) local: LocalKeys,
    pub(super) push: PushKeys,
    pub(super) delete: DeleteKeys,
    pub(super) auth: AuthKeys,
    /// Where `[auth]` is written. Only files have it.
    pub(super) auth_table: Option<SourceLocation>,
    /// `[auth.groups]`: the members of each group. Only files have it.
    pub(super) auth_groups: BTreeMap<String, Located<OneOrMore<Member>>>,
    /// `[auth.issuer.NAME]` by name. Only files have them.
    pub(super) auth_issuers: BTreeMap<String, Located<IssuerTable>>,
    /// `[[auth.rule]]` in the order of the file. Only files have them.
    pub(super) auth_rules: Vec<Located<AccessRuleKeys>>,
    /// Where the settings of `registry:2` name the file of users.
    pub(super) registry_auth: Option<SourceLocation>,
    pub(super) audit: AuditKeys,
    pub(super) metrics: MetricsKeys,
    pub(super) scrub: ScrubKeys,
    pub(super) log: LogKeys,
    /// The upstreams by name, each with the place where it is first mentioned. The names are valid.
    pub(super) upstreams: BTreeMap<String, Located<UpstreamKeys>>,
    /// `http.headers` of `registry:2`. No other source can set them.
    pub(super) response_headers: Vec<(HeaderName, HeaderValue)>,
    /// Credential rules by upstream, in the order of the file. Only files have them.
    pub(super) repository_credentials: BTreeMap<String, Vec<Located<RepositoryCredentialKeys>>>,
}

/// The tables with a fixed name. A nested table has a dotted name.
pub(super) const SECTIONS: [&str; 13] = [
    "server",
    "server.tls",
    "storage",
    "cache",
    "gc",
    "local",
    "push",
    "delete",
    "auth",
    "audit",
    "metrics",
    "scrub",
    "log",
];

/// The table that contains one table per upstream.
pub(super) const UPSTREAM: &str = "upstream";

/// The table about users, and the tables inside it.
pub(super) const AUTH: &str = "auth";
pub(super) const GROUPS: &str = "groups";
pub(super) const ISSUER: &str = "issuer";
/// The claims in the table of an issuer.
pub(super) const REQUIRE: &str = "require";
pub(super) const RULE: &str = "rule";

/// The list of credential rules in an upstream's table.
pub(super) const CREDENTIALS: &str = "credentials";

// === impl Located ===

impl<T: Setting> Located<T> {
    /// Parses a value from an environment variable or a flag.
    pub(super) fn from_text(text: &str, location: &SourceLocation) -> Result<Self, ConfigError> {
        let value = RawValue::Text(text).read().map_err(|message| ConfigError::new(location, "", message))?;
        Ok(Self { value, location: location.clone() })
    }
}

// === impl Layer ===

impl Layer {
    /// Returns the table of a name. The empty name is for the top-level keys.
    pub(super) fn section(&mut self, name: &str) -> Option<&mut dyn Section> {
        Some(match name {
            "" => &mut self.root,
            "server" => &mut self.server,
            "server.tls" => &mut self.server_tls,
            "storage" => &mut self.storage,
            "cache" => &mut self.cache,
            "gc" => &mut self.gc,
            "local" => &mut self.local,
            "push" => &mut self.push,
            "delete" => &mut self.delete,
            AUTH => &mut self.auth,
            "audit" => &mut self.audit,
            "metrics" => &mut self.metrics,
            "scrub" => &mut self.scrub,
            "log" => &mut self.log,
            _ => return None,
        })
    }

    /// Returns the table of an upstream, and adds it if it is absent. The caller has checked the name.
    pub(super) fn upstream(&mut self, name: &str, location: &SourceLocation) -> &mut UpstreamKeys {
        let new = || Located { value: UpstreamKeys::default(), location: location.clone() };
        &mut self.upstreams.entry(name.to_owned()).or_insert_with(new).value
    }

    /// Merges two layers: a key of `self` takes precedence over the same key of `lower`.
    pub(super) fn over(self, mut lower: Self) -> Self {
        for (name, upper) in self.upstreams {
            let merged = match lower.upstreams.remove(&name) {
                Some(lower) => Located { value: upper.value.over_credentials(lower.value), location: lower.location },
                None => upper,
            };
            lower.upstreams.insert(name, merged);
        }
        Self {
            root: self.root.over(lower.root),
            server: self.server.over(lower.server),
            server_tls: self.server_tls.over(lower.server_tls),
            storage: self.storage.over(lower.storage),
            cache: self.cache.over(lower.cache),
            gc: self.gc.over(lower.gc),
            local: self.local.over(lower.local),
            push: self.push.over(lower.push),
            delete: self.delete.over(lower.delete),
            auth: self.auth.over(lower.auth),
            auth_table: self.auth_table.or(lower.auth_table),
            auth_groups: if self.auth_groups.is_empty() { lower.auth_groups } else { self.auth_groups },
            auth_issuers: if self.auth_issuers.is_empty() { lower.auth_issuers } else { self.auth_issuers },
            auth_rules: if self.auth_rules.is_empty() { lower.auth_rules } else { self.auth_rules },
            registry_auth: self.registry_auth.or(lower.registry_auth),
            audit: self.audit.over(lower.audit),
            metrics: self.metrics.over(lower.metrics),
            scrub: self.scrub.over(lower.scrub),
            log: self.log.over(lower.log),
            response_headers: [self.response_headers, lower.response_headers].concat(),
            upstreams: lower.upstreams,
            repository_credentials: if self.repository_credentials.is_empty() {
                lower.repository_credentials
            } else {
                self.repository_credentials
            },
        }
    }
}

// === impl UpstreamKeys ===

impl UpstreamKeys {
    /// Like [`Section::over`], but a credential source in `self` replaces every credential source in `lower`.
    ///
    /// `username` in `lower` stays. A Docker file contains its own user names, so `username` is then dropped.
    fn over_credentials(self, mut lower: Self) -> Self {
        if self.credentials.sources().next().is_some() {
            let username = lower.credentials.username.filter(|_| self.credentials.docker_config.is_none());
            lower.credentials = CredentialKeys { username, ..CredentialKeys::default() };
        }
        self.over(lower)
    }
}

// === impl CredentialKeys ===

impl CredentialKeys {
    /// Returns the credential keys that are set. More than one is an error.
    pub(super) fn sources(&self) -> impl Iterator<Item = (&'static str, &SourceLocation)> {
        let locations = [
            ("password", self.password.as_ref().map(|key| &key.location)),
            ("password_file", self.password_file.as_ref().map(|key| &key.location)),
            ("exec", self.exec.as_ref().map(|key| &key.location)),
            ("docker_config", self.docker_config.as_ref().map(|key| &key.location)),
        ];
        locations.into_iter().filter_map(|(key, location)| Some((key, location?)))
    }
}

/// Returns all keys of all tables with a fixed name, as (table, key).
pub(super) fn fixed_keys() -> Vec<(&'static str, &'static str)> {
    let mut layer = Layer::default();
    let mut keys = Vec::new();
    for section in [""].into_iter().chain(SECTIONS) {
        let known = layer.section(section).map_or_else(Vec::new, |table| table.keys());
        keys.extend(known.into_iter().map(|key| (section, key)));
    }
    keys
}

/// Sets a key of a table. `path` is the dotted key for errors, and `unknown` makes the message for an unknown key.
pub(super) fn set(
    section: &mut dyn Section,
    key: &str,
    raw: &RawValue<'_>,
    location: &SourceLocation,
    path: &str,
    unknown: impl FnOnce() -> String,
) -> Result<(), ConfigError> {
    section
        .set(key, raw, location)
        .unwrap_or_else(|| Err(unknown()))
        .map_err(|message| ConfigError::new(location, path, message))
}
