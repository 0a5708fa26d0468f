//! One source of settings: a file, a set of variables, or the flags. Every key may be there or not.
//!
//! [`section!`] is the list of all keys. From one declaration it makes the fields, the reading of a key by its name
//! (so that all sources read alike, and unknown keys are found), and the laying of one layer over another. Every
//! value remembers where it was written, so that rules between keys can still name the line.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use super::error::Site;
use super::units::Size;
use super::upstream_url::UpstreamUrl;
use super::value::{OneOrMore, Positive, Raw, Setting};
use super::{ConfigError, ListenAddr, LogFormat, Namespace, OnDenied, Pin, Secret};

/// A value and where it was written.
#[derive(Clone, Debug)]
pub(super) struct Sited<T> {
    pub(super) value: T,
    pub(super) site: Site,
}

/// The keys of one table, whatever their types.
pub(super) trait Section {
    fn keys(&self) -> &'static [&'static str];

    /// Sets one of [`Section::keys`]; the error says what is wrong with the value. `None` for any other key.
    fn set(&mut self, key: &str, raw: &Raw<'_>, site: &Site) -> Option<Result<(), String>>;

    /// What is set here, and beneath it what is set in `lower`.
    fn over(self, lower: Self) -> Self
    where
        Self: Sized;
}

macro_rules! section {
    ($(#[$doc:meta])* $name:ident { $($key:ident: $kind:ty,)* }) => {
        $(#[$doc])*
        #[derive(Default)]
        pub(super) struct $name {
            $(pub(super) $key: Option<Sited<$kind>>,)*
        }

        impl Section for $name {
            fn keys(&self) -> &'static [&'static str] {
                &[$(stringify!($key)),*]
            }

            fn set(&mut self, key: &str, raw: &Raw<'_>, site: &Site) -> Option<Result<(), String>> {
                match key {
                    $(stringify!($key) => Some(raw.read().map(|value| {
                        self.$key = Some(Sited { value, site: site.clone() });
                    })),)*
                    _ => None,
                }
            }

            fn over(self, lower: Self) -> Self {
                Self { $($key: self.$key.or(lower.$key),)* }
            }
        }
    };
}

section! {
    /// The keys above the first table.
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
    }
}

section! {
    DeleteKeys {
        enabled: bool,
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
    UpstreamKeys {
        url: OneOrMore<UpstreamUrl>,
        username: String,
        password: Secret,
        password_file: PathBuf,
        exec: OneOrMore<String>,
        exec_lifetime: Positive<Duration>,
        docker_config: PathBuf,
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
        token_realms: OneOrMore<String>,
        private_redirects: bool,
    }
}

section! {
    /// `[[upstream."host".credentials]]`
    CredentialKeys {
        repository: Namespace,
        username: String,
        password: Secret,
        password_file: PathBuf,
        exec: OneOrMore<String>,
        exec_lifetime: Positive<Duration>,
        docker_config: PathBuf,
    }
}

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
    pub(super) scrub: ScrubKeys,
    pub(super) log: LogKeys,
    /// By valid name, each with where it is first spoken of.
    pub(super) upstreams: BTreeMap<String, Sited<UpstreamKeys>>,
    /// Those for some repositories of an upstream, in their order. Only a file can have them.
    pub(super) credentials: BTreeMap<String, Vec<Sited<CredentialKeys>>>,
}

/// The tables with a fixed name; one within another has both names.
pub(super) const SECTIONS: [&str; 10] =
    ["server", "server.tls", "storage", "cache", "gc", "local", "push", "delete", "scrub", "log"];

/// The table that holds one table for each upstream.
pub(super) const UPSTREAM: &str = "upstream";

/// The list of tables that an upstream's table may hold.
pub(super) const CREDENTIALS: &str = "credentials";

// === impl Sited ===

impl<T: Setting> Sited<T> {
    /// A value from a variable or a flag.
    pub(super) fn from_text(text: &str, site: &Site) -> Result<Self, ConfigError> {
        let value = Raw::Text(text).read().map_err(|message| ConfigError::new(site, "", message))?;
        Ok(Self { value, site: site.clone() })
    }
}

// === impl Layer ===

impl Layer {
    /// A table by its name; the empty name is the keys above the first table.
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
            "scrub" => &mut self.scrub,
            "log" => &mut self.log,
            _ => return None,
        })
    }

    /// The table of an upstream whose name was found valid.
    pub(super) fn upstream(&mut self, name: &str, site: &Site) -> &mut UpstreamKeys {
        let new = || Sited { value: UpstreamKeys::default(), site: site.clone() };
        &mut self.upstreams.entry(name.to_owned()).or_insert_with(new).value
    }

    /// What is set here, and beneath it what is set in `lower`.
    pub(super) fn over(self, mut lower: Self) -> Self {
        for (name, upper) in self.upstreams {
            let merged = match lower.upstreams.remove(&name) {
                Some(lower) => Sited { value: upper.value.over_credentials(lower.value), site: lower.site },
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
            scrub: self.scrub.over(lower.scrub),
            log: self.log.over(lower.log),
            upstreams: lower.upstreams,
            credentials: if self.credentials.is_empty() { lower.credentials } else { self.credentials },
        }
    }
}

// === impl UpstreamKeys ===

impl UpstreamKeys {
    /// Like `over`, but where a password comes from here also replaces every other place below.
    fn over_credentials(self, mut lower: Self) -> Self {
        let from = [self.password.is_some(), self.password_file.is_some(), self.exec.is_some()];
        if from.contains(&true) || self.docker_config.is_some() {
            (lower.password, lower.password_file, lower.docker_config) = (None, None, None);
            (lower.exec, lower.exec_lifetime) = (None, None);
            if self.docker_config.is_some() {
                lower.username = None;
            }
        }
        self.over(lower)
    }
}

/// Every key of every table with a fixed name, as (table, key).
pub(super) fn fixed_keys() -> Vec<(&'static str, &'static str)> {
    let mut layer = Layer::default();
    let mut keys = Vec::new();
    for section in [""].into_iter().chain(SECTIONS) {
        let known = layer.section(section).map_or(&[][..], |table| table.keys());
        keys.extend(known.iter().map(|key| (section, *key)));
    }
    keys
}

/// Sets a key of a table; `path` is what an error calls it, `unknown` says what is wrong with a key that is not there.
pub(super) fn set(
    section: &mut dyn Section,
    key: &str,
    raw: &Raw<'_>,
    site: &Site,
    path: &str,
    unknown: impl FnOnce() -> String,
) -> Result<(), ConfigError> {
    section
        .set(key, raw, site)
        .unwrap_or_else(|| Err(unknown()))
        .map_err(|message| ConfigError::new(site, path, message))
}
