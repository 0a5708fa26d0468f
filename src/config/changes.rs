//! Which settings differ between two configurations. A reload puts some in force; the others need a restart.

use super::{AuthConfig, Config};

impl Config {
    /// The tables and keys that differ, without the rules and groups of `[auth]`.
    pub fn differences(&self, other: &Self) -> Vec<&'static str> {
        // Each field is named, so that a new one cannot be forgotten.
        let Self {
            server,
            storage,
            cache,
            gc,
            local,
            push,
            delete,
            auth,
            audit,
            metrics,
            scrub,
            log,
            docker_config,
            default_upstream,
            upstreams,
            builtin_upstreams,
            ignored_settings: _,
        } = self;
        let settings = [
            ("builtin_upstreams", *builtin_upstreams != other.builtin_upstreams),
            ("default_upstream", *default_upstream != other.default_upstream),
            ("docker_config", *docker_config != other.docker_config),
            ("server", *server != other.server),
            ("storage", *storage != other.storage),
            ("cache", *cache != other.cache),
            ("gc", *gc != other.gc),
            ("local", *local != other.local),
            ("push", *push != other.push),
            ("delete", *delete != other.delete),
            ("auth", has_other_auth(auth.as_ref(), other.auth.as_ref())),
            ("audit", *audit != other.audit),
            ("metrics", *metrics != other.metrics),
            ("scrub", *scrub != other.scrub),
            ("log", *log != other.log),
            ("upstream", *upstreams != other.upstreams),
        ];
        settings.into_iter().filter_map(|(name, differs)| differs.then_some(name)).collect()
    }
}

/// Whether anything but rules and groups differs.
fn has_other_auth(one: Option<&AuthConfig>, other: Option<&AuthConfig>) -> bool {
    match (one, other) {
        (None, None) => false,
        (Some(one), Some(other)) => {
            let (groups, rules) = (one.groups.clone(), one.rules.clone());
            AuthConfig { groups, rules, ..other.clone() } != *one
        }
        _ => true,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rules_and_groups_are_no_difference_and_all_else_is() {
        let config = |toml: &str| Config::from_toml(toml, "test").unwrap();
        let auth = "default_upstream = \"none\"\n[auth]\nhtpasswd = \"/dev/null\"\n";
        let rule = "[[auth.rule]]\nwho = \"ann\"\non = \"**\"\nmay = \"pull\"\n";
        let one = config(&format!("{auth}{rule}"));
        let rules = config(&format!("{auth}[auth.groups]\ndev = [\"ann\"]\n{rule}{rule}"));
        assert_eq!((one.differences(&one), one.differences(&rules)), (vec![], vec![]));
        let lifetime = config(&format!("{auth}token_lifetime = \"5m\"\n{rule}"));
        assert_eq!(one.differences(&lifetime), ["auth"]);
        let none = config("default_upstream = \"none\"\n[cache]\ntag_ttl = \"5s\"\n[server]\nnames = [\"a\"]");
        assert_eq!(one.differences(&none), ["server", "cache", "auth"]);
    }
}
