//! Builds `[auth]` and checks the rules between its keys and the rest of the configuration.

use std::collections::BTreeMap;
use std::path::PathBuf;

use super::access_pattern::PatternScope;
use super::build_issuer::issuers;
use super::build_value::readable;
use super::error::SourceLocation;
use super::identity::CERTIFICATE_PREFIX;
use super::layer::{AccessRuleKeys, AuthKeys, IssuerTable, Located};
use super::units::format_duration;
use super::value::OneOrMore;
use super::{
    AccessPattern, AccessRule, AuthConfig, ConfigError, IssuerConfig, LocalConfig, Member, Right, Rights, Subject,
};

/// Two rules, for an error about a missing one.
const EXAMPLES: &str = "\
    [[auth.rule]] with who = \"anonymous\", on = \"**\", may = \"pull\" (everyone pulls), or \
    [[auth.rule]] with who = \"authenticated\", on = \"team/**\", may = [\"pull\", \"push\"] (every user pushes there)";

/// What the layers say about users.
pub(super) struct AuthLayer {
    pub(super) keys: AuthKeys,
    /// Where `[auth]` is written.
    pub(super) table: Option<SourceLocation>,
    pub(super) groups: BTreeMap<String, Located<OneOrMore<Member>>>,
    pub(super) issuers: BTreeMap<String, Located<IssuerTable>>,
    pub(super) rules: Vec<Located<AccessRuleKeys>>,
    /// Where the settings of `registry:2` name the file of users.
    pub(super) of_registry_2: Option<SourceLocation>,
}

/// The settings that rules depend on.
pub(super) struct Surroundings<'a> {
    pub(super) upstreams: Vec<&'a str>,
    pub(super) default_upstream: Option<&'a str>,
    pub(super) local: &'a LocalConfig,
    pub(super) deletes: bool,
    /// Whether clients may have certificates.
    pub(super) client_certificates: bool,
}

/// `None` if nothing says that there are users.
///
/// # Errors
/// For the first key that breaks a rule. An incomplete table never leaves the server open.
pub(super) fn auth(layer: AuthLayer, around: &Surroundings<'_>) -> Result<Option<AuthConfig>, ConfigError> {
    let AuthLayer { keys, table, groups, issuers: issuer_tables, rules, of_registry_2 } = layer;
    let of_keys = [
        keys.htpasswd.as_ref().map(|key| &key.location),
        keys.token_key_file.as_ref().map(|key| &key.location),
        keys.token_lifetime.as_ref().map(|key| &key.location),
    ];
    let Some(place) = table.as_ref().or(of_keys.into_iter().flatten().next()).cloned() else { return Ok(None) };
    let issuers = issuers(issuer_tables)?;
    let lifetime = match keys.token_lifetime {
        Some(lifetime) => token_lifetime(&lifetime)?,
        None => AuthConfig::TOKEN_LIFETIME,
    };
    let groups = groups.into_iter().map(|(name, members)| Ok((name.clone(), group(&name, members, &issuers)?)));
    let groups = groups.collect::<Result<BTreeMap<_, _>, ConfigError>>()?;
    let rules = rules.into_iter().map(|keys| rule(keys, &groups, &issuers, around)).collect::<Result<Vec<_>, _>>()?;
    let is_of_registry_2 = rules.is_empty() && of_registry_2.is_some();
    let rules = match of_registry_2 {
        Some(location) if rules.is_empty() => vec![rule_of_registry_2(&location, around.deletes)],
        _ if rules.is_empty() => {
            let message = format!("has no rule, so nobody could do anything; write {EXAMPLES}");
            return Err(ConfigError::new(&place, "auth", message));
        }
        _ => rules,
    };
    if keys.htpasswd.is_none() && issuers.is_empty() && !rules_name_others(&rules, &groups) {
        let message = "has no htpasswd, so nobody can log in; write for example htpasswd = \"/etc/roadstead/htpasswd\", and make \
                       its lines with `roadstead hash-password --user NAME`. Or add an [auth.issuer.NAME], or a rule for \
                       machine tokens (token:NAME)";
        return Err(ConfigError::new(&place, "auth", message));
    }
    // In the other case, everybody may do everything or nothing, so a refusal tells nothing.
    if let Some(default) = around.default_upstream.filter(|_| around.local.namespaces.is_empty() && !is_of_registry_2) {
        let message = format!(
            "needs [local] namespaces, because default_upstream is \"{default}\": they alone must decide which names are \
             local, or a refusal would tell which repositories exist; write for example namespaces = [\"team/**\"], or \
             default_upstream = \"none\""
        );
        return Err(ConfigError::new(&place, "auth", message));
    }
    Ok(Some(AuthConfig {
        htpasswd: keys.htpasswd.map(|file| readable(file, "auth.htpasswd")).transpose()?,
        token_key_files: token_key_files(keys.token_key_file)?,
        token_lifetime: lifetime,
        groups,
        issuers,
        rules,
        is_of_registry_2,
    }))
}

fn token_key_files(files: Option<Located<OneOrMore<PathBuf>>>) -> Result<Vec<PathBuf>, ConfigError> {
    let Some(Located { value: OneOrMore(files), location }) = files else { return Ok(Vec::new()) };
    let file = |value| readable(Located { value, location: location.clone() }, "auth.token_key_file");
    files.into_iter().map(file).collect()
}

fn token_lifetime(lifetime: &Located<std::time::Duration>) -> Result<std::time::Duration, ConfigError> {
    let (least, most) = (AuthConfig::MIN_TOKEN_LIFETIME, AuthConfig::MAX_TOKEN_LIFETIME);
    if (least..=most).contains(&lifetime.value) {
        return Ok(lifetime.value);
    }
    let [given, least, most] = [lifetime.value, least, most].map(format_duration);
    let message = format!("{given} is not from {least} to {most}; write for example \"15m\"");
    Err(ConfigError::new(&lifetime.location, "auth.token_lifetime", message))
}

fn group(
    name: &str,
    members: Located<OneOrMore<Member>>,
    issuers: &[IssuerConfig],
) -> Result<Vec<Member>, ConfigError> {
    let Located { value: OneOrMore(members), location } = members;
    let wrong = |message| ConfigError::new(&location, format!("auth.groups.{name}"), message);
    if name.is_empty() || name.contains(':') {
        return Err(wrong("cannot be the name of a group: it is empty or has a colon".to_owned()));
    }
    members.iter().try_for_each(|member| member.check(issuers)).map_err(wrong)?;
    Ok(members)
}

/// Whether a rule is about identities that need neither a file of users nor an issuer.
fn rules_name_others(rules: &[AccessRule], groups: &BTreeMap<String, Vec<Member>>) -> bool {
    let members = |subject: &Subject| match subject {
        Subject::Member(member) => vec![member.clone()],
        Subject::Group(group) => groups.get(group).cloned().unwrap_or_default(),
        Subject::Anonymous | Subject::Authenticated => Vec::new(),
    };
    let mut members = rules.iter().flat_map(|rule| rule.who.iter().flat_map(members));
    members.any(|member| matches!(member, Member::Identities(_)))
}

fn rule(
    rule: Located<AccessRuleKeys>,
    groups: &BTreeMap<String, Vec<Member>>,
    issuers: &[IssuerConfig],
    around: &Surroundings<'_>,
) -> Result<AccessRule, ConfigError> {
    let Located { value: AccessRuleKeys { who, on, may, private }, location } = rule;
    let place = location.to_string();
    let who = list(who, &location, "who", "who = \"authenticated\"")?;
    for subject in &who.value {
        if let Subject::Group(group) = subject
            && !groups.contains_key(group)
        {
            let known: Vec<&str> = groups.keys().map(String::as_str).collect();
            let known =
                if known.is_empty() { "there is none".to_owned() } else { format!("there are {}", known.join(", ")) };
            let message = format!("no group is called \"{group}\" ({known}); add it to [auth.groups]");
            return Err(ConfigError::new(&who.location, "auth.rule.who", message));
        }
    }
    let mut members = who.value.iter().filter_map(Subject::member);
    let checked = members.try_for_each(|member| member.check(issuers));
    checked.map_err(|message| ConfigError::new(&who.location, "auth.rule.who", message))?;
    if !around.client_certificates && who.value.iter().all(is_certificate) {
        let message = "is about client certificates, and no client can have one; set server.tls.client_ca";
        return Err(ConfigError::new(&who.location, "auth.rule.who", message));
    }
    let may = list(may, &location, "may", "may = \"pull\"")?;
    let on = match on {
        // These rights are about the server.
        None if may.value.iter().all(|right| matches!(right, Right::Metrics | Right::Admin)) => {
            let everything = AccessPattern::parse("**").into_iter().collect();
            Some(Located { value: OneOrMore(everything), location: location.clone() })
        }
        on => on,
    };
    let mut on = list(on, &location, "on", "on = \"team/**\"")?;
    let is_local = |host: &str| {
        let begins = |pattern: &str| pattern.strip_prefix(host).is_some_and(|rest| rest.starts_with('/'));
        around.local.namespaces.iter().any(|namespace| begins(namespace.as_str()))
    };
    for pattern in &mut on.value {
        let resolved = pattern.resolve(&around.upstreams, is_local);
        resolved.map_err(|message| ConfigError::new(&on.location, "auth.rule.on", message))?;
    }
    let Located { value: may, location: may_location } = may;
    let may: Rights = may.into_iter().collect();
    let of_pushed: Rights = [Right::Push, Right::Delete].into_iter().collect();
    let is_of_upstream = |pattern: &AccessPattern| matches!(pattern.scope(), PatternScope::Upstream(_));
    if may.intersects(of_pushed)
        && may.iter().all(|right| of_pushed.contains(right))
        && on.value.iter().all(is_of_upstream)
    {
        let message = "can never allow anything: mirrored repositories can only be pulled; name pushed repositories in `on`, \
                       such as \"team/**\", or write may = \"pull\"";
        return Err(ConfigError::new(&may_location, "auth.rule.may", message));
    }
    let private = private.filter(|private| private.value);
    if let Some(Located { location, .. }) = &private {
        let is_mirrored = |pattern: &AccessPattern| *pattern.scope() != PatternScope::Local;
        if !may.contains(Right::Pull) || !on.value.iter().any(is_mirrored) {
            let message = "has no effect: it lets users pull private repositories of upstreams, so it needs may = \"pull\" \
                           and an upstream in `on`, such as \"docker.io/acme/**\"; remove it";
            return Err(ConfigError::new(location, "auth.rule.private", message));
        }
    }
    Ok(AccessRule { who: who.value, on: on.value, may, private: private.is_some(), place })
}

fn is_certificate(subject: &Subject) -> bool {
    match subject.member() {
        Some(Member::Identities(identities)) => identities.prefix() == CERTIFICATE_PREFIX,
        _ => false,
    }
}

/// The values of a key that a rule must have.
fn list<T>(
    values: Option<Located<OneOrMore<T>>>,
    rule: &SourceLocation,
    key: &str,
    example: &str,
) -> Result<Located<Vec<T>>, ConfigError> {
    match values {
        Some(Located { value: OneOrMore(values), location }) if !values.is_empty() => {
            Ok(Located { value: values, location })
        }
        Some(empty) => {
            let message = format!("is empty, so the rule allows nothing; write for example {example}");
            Err(ConfigError::new(&empty.location, format!("auth.rule.{key}"), message))
        }
        None => {
            let message = format!("has no {key}; write for example {example}");
            Err(ConfigError::new(rule, "auth.rule", message))
        }
    }
}

/// In `registry:2`, every user may do everything that is switched on.
fn rule_of_registry_2(location: &SourceLocation, deletes: bool) -> AccessRule {
    let rights = [Some(Right::Pull), Some(Right::Push), deletes.then_some(Right::Delete)];
    AccessRule {
        who: vec![Subject::Authenticated],
        on: AccessPattern::parse("**").into_iter().collect(),
        may: rights.into_iter().flatten().collect::<Rights>(),
        // As in `registry:2`, every user gets what the server gets.
        private: true,
        place: location.to_string(),
    }
}
