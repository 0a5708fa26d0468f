//! What the rules of `[auth]` allow.
//!
//! Rules only add rights: a request is allowed if any rule allows it, and refused if none does. So their order has no
//! meaning, and one rule explains a permission.

use std::collections::HashSet;

use super::patterns::{self, matches_text};
use super::principal::{Principal, User};
use crate::config::{AccessPattern, AccessRule, AuthConfig, IdentityPattern, Member, Right, Rights, Subject};
use crate::oci::{RepoId, Scope};

/// The rules in force.
#[derive(Debug)]
pub struct Policy {
    rules: Vec<Rule>,
}

/// One rule, with its groups replaced by their members.
#[derive(Debug)]
struct Rule {
    /// Everybody, logged in or not.
    everybody: bool,
    /// Every user, and every other identity.
    authenticated: bool,
    /// Users, and identities that are written out.
    names: HashSet<Box<str>>,
    /// The other identities.
    identities: Vec<IdentityPattern>,
    /// Groups of issuers.
    groups: Vec<IdentityPattern>,
    on: Vec<AccessPattern>,
    may: Rights,
    /// Also repositories that are private at their upstream.
    private: bool,
    place: String,
}

// === impl Policy ===

impl Policy {
    pub fn new(auth: &AuthConfig) -> Self {
        let rule = |rule: &AccessRule| {
            let (mut names, mut identities, mut groups) = (HashSet::new(), Vec::new(), Vec::new());
            for member in rule.who.iter().flat_map(|subject| members(subject, auth)) {
                match member {
                    Member::User(name) => {
                        names.insert(name.as_str().into());
                    }
                    Member::Identities(pattern) if pattern.is_exact() => {
                        names.insert(pattern.as_str().into());
                    }
                    Member::Identities(pattern) => identities.push(pattern.clone()),
                    Member::IssuerGroups(pattern) => groups.push(pattern.clone()),
                }
            }
            Rule {
                everybody: rule.who.contains(&Subject::Anonymous),
                authenticated: rule.who.contains(&Subject::Authenticated),
                names,
                identities,
                groups,
                on: rule.on.clone(),
                may: rule.may,
                private: rule.private,
                place: rule.place.clone(),
            }
        };
        Self { rules: auth.rules.iter().map(rule).collect() }
    }

    /// The place of a rule that allows this; `None` if no rule does.
    pub fn allowed_by(&self, principal: &Principal, right: Right, repo: &RepoId) -> Option<&str> {
        self.allows_user(principal.user(), right.into(), repo)
    }

    /// The place of a rule that allows to pull from the repository also if it is private at its upstream.
    pub fn private_allowed_by(&self, principal: &Principal, repo: &RepoId) -> Option<&str> {
        let mut rules = self.rules_for(principal.user(), Right::Pull.into(), repo);
        rules.find(|rule| rule.private).map(|rule| rule.place.as_str())
    }

    /// The places of the rules that are about the principal, other than those that are about everybody.
    pub fn rules_of(&self, principal: &Principal) -> impl Iterator<Item = &str> {
        let rules = self.rules.iter().filter(move |rule| !rule.everybody && rule.is_about(principal.user()));
        rules.map(|rule| rule.place.as_str())
    }

    /// Whether a rule allows anything with the repository.
    pub fn allows_something(&self, principal: &Principal, repo: &RepoId) -> bool {
        self.allows_user(principal.user(), Rights::ALL, repo).is_some()
    }

    /// The place of a rule that allows this to everybody.
    pub fn allows_everybody(&self, right: Right, repo: &RepoId) -> bool {
        self.allows_user(None, right.into(), repo).is_some()
    }

    /// Whether everybody may pull something of this scope.
    pub fn everybody_may_pull_in(&self, scope: &Scope) -> bool {
        let in_scope = |pattern: &AccessPattern| patterns::may_match_in(pattern, scope, None);
        self.for_everybody(Right::Pull.into()).any(|rule| rule.on.iter().any(in_scope))
    }

    /// Whether everybody may pull something.
    pub fn everybody_may_pull(&self) -> bool {
        self.for_everybody(Right::Pull.into()).next().is_some()
    }

    /// Whether a rule is about this group of an issuer.
    pub fn names_group(&self, issuer: &str, group: &str) -> bool {
        self.rules.iter().any(|rule| rule.names_group(issuer, group))
    }

    /// Whether everybody may do something.
    pub fn everybody_may_do_something(&self) -> bool {
        self.for_everybody(Rights::ALL).next().is_some()
    }

    /// The place of a rule that gives a right about the server, such as `metrics`, whatever repositories it names.
    pub fn allows_on_server(&self, principal: &Principal, right: Right) -> Option<&str> {
        let mut rules = self.rules.iter().filter(|rule| rule.may.contains(right));
        rules.find(|rule| rule.is_about(principal.user())).map(|rule| rule.place.as_str())
    }

    fn for_everybody(&self, any_of: Rights) -> impl Iterator<Item = &Rule> {
        self.rules.iter().filter(move |rule| rule.everybody && rule.may.intersects(any_of))
    }

    fn allows_user(&self, user: Option<&User>, any_of: Rights, repo: &RepoId) -> Option<&str> {
        self.rules_for(user, any_of, repo).next().map(|rule| rule.place.as_str())
    }

    /// The rules that allow any of this.
    fn rules_for<'p>(&'p self, user: Option<&User>, any_of: Rights, repo: &RepoId) -> impl Iterator<Item = &'p Rule> {
        let component = user.and_then(User::as_component);
        let allows = move |rule: &&Rule| {
            rule.may.intersects(any_of)
                && rule.is_about(user)
                && rule.on.iter().any(|pattern| patterns::matches(pattern, repo, component))
        };
        self.rules.iter().filter(allows)
    }
}

// === impl Rule ===

impl Rule {
    fn is_about(&self, user: Option<&User>) -> bool {
        self.everybody || user.is_some_and(|user| self.authenticated || self.names(user))
    }

    /// Whether the rule is about this user by name.
    fn names(&self, user: &User) -> bool {
        if self.names.contains(user.name()) {
            return true;
        }
        let Some((prefix, value)) = user.as_identity() else { return false };
        self.identities.iter().any(|pattern| matches_value(pattern, prefix, value))
            || user.groups().iter().any(|group| self.names_group(prefix, group))
    }

    fn names_group(&self, issuer: &str, group: &str) -> bool {
        self.groups.iter().any(|pattern| matches_value(pattern, issuer, group))
    }
}

/// The prefixes are compared alone, so that no pattern reaches across the colon.
fn matches_value(pattern: &IdentityPattern, prefix: &str, value: &str) -> bool {
    pattern.prefix() == prefix && matches_text(pattern.value(), value)
}

/// Whom a subject names; nobody for those that are about everybody.
fn members<'a>(subject: &'a Subject, auth: &'a AuthConfig) -> &'a [Member] {
    match subject {
        Subject::Member(member) => std::slice::from_ref(member),
        Subject::Group(group) => auth.groups.get(group).map_or(&[], Vec::as_slice),
        Subject::Anonymous | Subject::Authenticated => &[],
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::sync::Arc;

    use proptest::prelude::*;

    use super::*;
    use crate::config::Config;

    fn auth(groups: &[(&str, &[&str])], rules: Vec<AccessRule>) -> AuthConfig {
        let members = |members: &[&str]| members.iter().map(|member| Member::for_test(member)).collect();
        let groups: BTreeMap<_, _> = groups.iter().map(|(name, users)| ((*name).to_owned(), members(users))).collect();
        AuthConfig {
            htpasswd: None,
            token_key_files: Vec::new(),
            token_lifetime: AuthConfig::TOKEN_LIFETIME,
            groups,
            issuers: Vec::new(),
            rules,
            is_of_registry_2: false,
        }
    }

    fn rule(who: &[&str], on: &[&str], may: &[Right]) -> AccessRule {
        let config = Config::default();
        AccessRule {
            who: who.iter().map(|who| Subject::for_test(who)).collect(),
            on: on.iter().map(|on| AccessPattern::for_test(on, &config)).collect(),
            may: may.iter().copied().collect(),
            private: false,
            place: format!("{who:?} {on:?}"),
        }
    }

    fn principal(name: Option<&str>) -> Principal {
        name.map_or(Principal::Anonymous, |name| Principal::of_password(Arc::new(User::new(name))))
    }

    fn repo(text: &str) -> RepoId {
        match text.split_once(':') {
            Some((upstream, name)) => RepoId::new(Scope::Upstream(upstream.into()), name.parse().unwrap()),
            None => RepoId::local(text.parse().unwrap()),
        }
    }

    #[test]
    fn rules_add_rights_and_nothing_else_is_allowed() {
        let policy = Policy::new(&auth(
            &[("dev", &["ann", "bob"])],
            vec![
                rule(&["anonymous"], &["docker.io/**", "base/*"], &[Right::Pull]),
                rule(&["authenticated"], &["shared/**"], &[Right::Pull]),
                rule(&["group:dev"], &["team/**", "users/{user}/**"], &[Right::Pull, Right::Push]),
                rule(&["bob"], &["team/app"], &[Right::Delete]),
            ],
        ));
        let may = |who, right, name| policy.allowed_by(&principal(who), right, &repo(name)).is_some();
        for who in [None, Some("ann"), Some("eve")] {
            assert!(may(who, Right::Pull, "docker.io:library/alpine") && may(who, Right::Pull, "base/os"));
            assert!(!may(who, Right::Push, "base/os") && !may(who, Right::Pull, "ghcr.io:a/b"));
        }
        assert!(!may(None, Right::Pull, "shared/x") && may(Some("eve"), Right::Pull, "shared/x"));
        assert!(may(Some("ann"), Right::Push, "team/app") && !may(Some("eve"), Right::Push, "team/app"));
        assert!(may(Some("ann"), Right::Push, "users/ann/x") && !may(Some("ann"), Right::Push, "users/bob/x"));
        assert!(may(Some("bob"), Right::Delete, "team/app") && !may(Some("ann"), Right::Delete, "team/app"));
        assert!(!may(Some("bob"), Right::Delete, "team/other"));
        assert_eq!(
            policy.allowed_by(&principal(Some("bob")), Right::Delete, &repo("team/app")),
            Some("[\"bob\"] [\"team/app\"]")
        );
        assert!(policy.everybody_may_pull_in(&repo("docker.io:a").scope) && policy.everybody_may_pull());
        assert!(!policy.everybody_may_pull_in(&repo("ghcr.io:a").scope));
    }

    #[test]
    fn a_name_with_slashes_selects_no_repository() {
        let policy = Policy::new(&auth(&[], vec![rule(&["authenticated"], &["{user}/**"], &[Right::Push])]));
        for (name, target) in [("a/b", "a/b/c"), ("A", "a/x"), ("..", "a/x"), ("**", "a/x"), ("*", "a/x")] {
            assert_eq!(policy.allowed_by(&principal(Some(name)), Right::Push, &repo(target)), None, "{name}");
        }
        assert!(policy.allowed_by(&principal(Some("a")), Right::Push, &repo("a/x")).is_some());
    }

    #[test]
    fn identities_have_the_rights_of_their_patterns() {
        let policy = Policy::new(&auth(
            &[("ci", &["github:acme/*", "ann", "token:nightly"])],
            vec![
                rule(&["group:ci"], &["team/**"], &[Right::Push]),
                rule(&["cert:spiffe://cluster/ns/**"], &["nodes/**"], &[Right::Pull]),
                rule(&["authenticated"], &["shared/**", "users/{user}/**"], &[Right::Pull]),
            ],
        ));
        let may = |who, right, name| policy.allowed_by(&principal(Some(who)), right, &repo(name)).is_some();
        for who in ["github:acme/app", "ann", "token:nightly"] {
            assert!(may(who, Right::Push, "team/app"), "{who}");
        }
        for who in ["github:acme/app/x", "github:evil/app", "gitlab:acme/app", "token:nightly2", "acme/app", "nightly"]
        {
            assert!(!may(who, Right::Push, "team/app") && may(who, Right::Pull, "shared/x"), "{who}");
        }
        assert!(may("cert:spiffe://cluster/ns/a/sa/b", Right::Pull, "nodes/x"));
        assert!(!may("cert:spiffe://other/ns/a", Right::Pull, "nodes/x"));
        assert!(may("ann", Right::Pull, "users/ann/x") && !may("token:ann", Right::Pull, "users/ann/x"));
        assert!(!may("x:ann", Right::Push, "team/app"), "a user's name is no identity");
    }

    #[test]
    fn groups_of_an_issuer_are_of_its_identities_alone() {
        let policy = Policy::new(&auth(
            &[("dev", &["group:corp:dev"])],
            vec![rule(&["group:dev", "group:corp:/teams/*"], &["team/**"], &[Right::Push])],
        ));
        let may = |name: &str, group: &str| {
            let user = User::new(name).with_groups(vec!["x".to_owned(), group.to_owned()]);
            let principal = Principal::of_password(Arc::new(user));
            policy.allowed_by(&principal, Right::Push, &repo("team/app")).is_some()
        };
        assert!(may("corp:ann", "dev") && may("corp:ann", "/teams/a") && may("corp:bob", "dev"));
        assert!(!may("corp:ann", "Dev") && !may("corp:ann", "/teams/a/b") && !may("corp:dev", "y"));
        assert!(!may("other:ann", "dev") && !may("ann", "dev") && !may("token:ann", "dev"));
        assert!(policy.names_group("corp", "dev") && policy.names_group("corp", "/teams/x"));
        assert!(!policy.names_group("corp", "ops") && !policy.names_group("other", "dev"));
    }

    #[test]
    fn nobody_may_do_anything_without_a_rule() {
        let policy = Policy::new(&auth(&[], Vec::new()));
        assert!(policy.allowed_by(&principal(Some("ann")), Right::Pull, &repo("a")).is_none());
        assert!(!policy.everybody_may_do_something());
    }

    /// An independent reading of the rules: patterns as text, by recursion over lists of components.
    mod model {
        use crate::config::{AccessRule, Right, Subject};

        pub(super) struct Asked<'a> {
            pub(super) user: Option<&'a str>,
            pub(super) right: Right,
            /// Without an upstream, it is local.
            pub(super) upstream: Option<&'a str>,
            pub(super) name: &'a str,
        }

        pub fn allows(rules: &[AccessRule], dev: &[&str], asked: &Asked<'_>) -> bool {
            let mut allowed = false;
            for rule in rules {
                let mut is_meant = false;
                for who in &rule.who {
                    is_meant |= match (who, asked.user) {
                        (Subject::Anonymous, _) => true,
                        (_, None) => false,
                        (Subject::Authenticated, Some(_)) => true,
                        (Subject::Member(member), Some(user)) => is_member(&member.to_string(), user),
                        (Subject::Group(group), Some(user)) => {
                            group == "dev" && dev.iter().any(|member| is_member(member, user))
                        }
                    };
                }
                let has_right = rule.may.iter().any(|right| right == asked.right);
                let is_on = rule.on.iter().any(|pattern| covers(pattern.as_str(), asked));
                allowed |= is_meant && has_right && is_on;
            }
            allowed
        }

        fn is_member(member: &str, user: &str) -> bool {
            match (member.split_once(':'), user.split_once(':')) {
                (None, _) => member == user,
                (Some((of_pattern, pattern)), Some((prefix, value))) => {
                    of_pattern == prefix && identity(pattern.as_bytes(), value.as_bytes())
                }
                (Some(_), None) => false,
            }
        }

        fn identity(pattern: &[u8], value: &[u8]) -> bool {
            match pattern {
                [] => value.is_empty(),
                [b'*', b'*', rest @ ..] => (0..=value.len()).any(|skipped| identity(rest, &value[skipped..])),
                [b'*', rest @ ..] => {
                    let slash = value.iter().position(|byte| *byte == b'/').unwrap_or(value.len());
                    (0..=slash).any(|skipped| identity(rest, &value[skipped..]))
                }
                [first, rest @ ..] => value.first() == Some(first) && identity(rest, &value[1..]),
            }
        }

        fn covers(pattern: &str, asked: &Asked<'_>) -> bool {
            if pattern == "**" {
                return true;
            }
            let parts: Vec<&str> = pattern.split('/').collect();
            let is_host = parts[0].contains('.') && parts.len() > 1;
            let expected = if is_host { Some(parts[0]) } else { None };
            let names: Vec<&str> = asked.name.split('/').collect();
            expected == asked.upstream && list(&parts[usize::from(is_host)..], &names, asked.user)
        }

        fn list(pattern: &[&str], names: &[&str], user: Option<&str>) -> bool {
            match pattern {
                [] => names.is_empty(),
                ["**"] => !names.is_empty(),
                ["**", rest @ ..] => (0..=names.len()).any(|skipped| list(rest, &names[skipped..], user)),
                [first, rest @ ..] => {
                    !names.is_empty()
                        && (if *first == "{user}" {
                            user == Some(names[0])
                        } else {
                            text(first.as_bytes(), names[0].as_bytes())
                        })
                        && list(rest, &names[1..], user)
                }
            }
        }

        fn text(pattern: &[u8], name: &[u8]) -> bool {
            match pattern {
                [] => name.is_empty(),
                [b'*', rest @ ..] => (0..=name.len()).any(|skipped| text(rest, &name[skipped..])),
                [first, rest @ ..] => name.first() == Some(first) && text(rest, &name[1..]),
            }
        }
    }

    fn patterns() -> impl Strategy<Value = String> {
        let component = prop_oneof!["[ab]", "[ab*]{1,3}", Just("**".to_owned()), Just("{user}".to_owned())];
        let name = prop::collection::vec(component, 1..5).prop_map(|parts| parts.join("/"));
        (prop_oneof![3 => Just(""), 1 => Just("docker.io/"), 1 => Just("ghcr.io/")], name)
            .prop_map(|(host, name)| format!("{host}{name}"))
            .prop_filter("it is a pattern", |text| AccessPattern::is_valid_for_test(text))
    }

    fn texts(texts: &[String]) -> Vec<&str> {
        texts.iter().map(String::as_str).collect()
    }

    fn identity_patterns() -> impl Strategy<Value = String> {
        ("(cert|token)", "[ab/:*]{1,6}").prop_filter_map("it is a pattern", |(prefix, value)| {
            (!value.contains("***")).then(|| format!("{prefix}:{value}"))
        })
    }

    fn identities() -> impl Strategy<Value = String> {
        prop_oneof![
            2 => prop::sample::select(vec!["a", "b", "ab", "c"]).prop_map(str::to_owned),
            3 => "(cert|token):[ab/:]{1,8}",
        ]
    }

    fn rules() -> impl Strategy<Value = Vec<AccessRule>> {
        let named = prop_oneof![
            prop::sample::select(vec!["anonymous", "authenticated", "a", "b", "group:dev"]).prop_map(str::to_owned),
            identity_patterns(),
        ];
        let who = prop::collection::vec(named, 1..3);
        let may = prop::sample::subsequence(Right::ALL.to_vec(), 1..3);
        let one = (who, prop::collection::vec(patterns(), 1..3), may);
        prop::collection::vec(one, 0..4).prop_map(|rules| {
            let made = |(who, on, may): &(Vec<String>, Vec<String>, Vec<Right>)| rule(&texts(who), &texts(on), may);
            rules.iter().map(made).collect()
        })
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(2000))]

        #[test]
        fn decisions_are_those_of_an_independent_evaluator(
            rules in rules(),
            user in prop::option::of(identities()),
            right in prop::sample::select(Right::ALL.to_vec()),
            upstream in prop_oneof![2 => Just(None), 1 => Just(Some("docker.io")), 1 => Just(Some("ghcr.io"))],
            name in "[ab]{1,3}(/[ab]{1,3}){0,4}",
        ) {
            let dev = ["a", "ab", "cert:a*/**b"];
            let user = user.as_deref();
            let policy = Policy::new(&auth(&[("dev", &dev)], rules.clone()));
            let scope = upstream.map_or(Scope::Local, |upstream| Scope::Upstream(upstream.into()));
            let repo = RepoId::new(scope, name.parse().unwrap());
            let asked = model::Asked { user, right, upstream, name: &name };
            let expected = model::allows(&rules, &dev, &asked);
            prop_assert_eq!(policy.allowed_by(&principal(user), right, &repo).is_some(), expected);
            if expected && user.is_none() && right == Right::Pull {
                prop_assert!(policy.everybody_may_pull_in(&repo.scope) && policy.everybody_may_do_something());
            }
        }
    }
}
